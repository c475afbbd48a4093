//! The grammar of an override: what it does to which key. Pure.

/// How an override assigns a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Assignment {
    /// `key=value`: replaces the value of a key.
    Replace,
    /// `+key=value`: adds a key that does not exist.
    Add,
    /// `++key=value`: adds a key or replaces its value.
    AddOrReplace,
}

/// A change of a configuration, as an override writes it. The names of the forms are those of Hydra.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change<'a> {
    /// Assigns a value to a key.
    Assign {
        /// How.
        how: Assignment,
        /// The key.
        key: &'a str,
        /// The text of the value.
        raw: &'a str,
    },
    /// `~key`: removes a value, so that the key is null.
    Remove(&'a str),
}

impl<'a> Change<'a> {
    /// Parses an override; `None` if it has none of the forms.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let text = text.trim();
        if let Some(key) = text.strip_prefix('~') {
            let key = key.trim();
            return (!key.is_empty() && !key.contains('=')).then_some(Self::Remove(key));
        }
        let (how, rest) = match (text.strip_prefix("++"), text.strip_prefix('+')) {
            (Some(rest), _) => (Assignment::AddOrReplace, rest),
            (None, Some(rest)) => (Assignment::Add, rest),
            (None, None) => (Assignment::Replace, text),
        };
        let (key, raw) = rest.split_once('=')?;
        let (key, raw) = (key.trim(), raw.trim());
        (!key.is_empty() && !raw.is_empty()).then_some(Self::Assign { how, key, raw })
    }
}

/// Takes the choice of a group, such as `template=lora`, out of overrides. Returns the last choice and the other overrides, in
/// their order.
pub fn choose(group: &str, overrides: &[String]) -> (Option<String>, Vec<String>) {
    let mut chosen = None;
    let rest = overrides.iter().filter(|text| match Change::parse(text) {
        Some(Change::Assign { key, raw, .. }) if key == group => {
            chosen = Some(raw.to_owned());
            false
        }
        _ => true,
    });
    let rest = rest.cloned().collect();
    (chosen, rest)
}
