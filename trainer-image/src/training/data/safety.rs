//! Safety rules over the records that are trained on: what they block is left out, what they redact is replaced. Reads the file of
//! rules; everything else is pure.

use std::{collections::BTreeSet, path::PathBuf};

use codex_configs::{SAFETY_RULES, SafetySettings, Training};
use codex_reports::DataFile;

use super::{DataError, examples::Example, input::Input, preferences::Preference, records::Counts};
use crate::{
    atomic_fs::FileError,
    safety::{Direction, MAX_RULES, Rules, RulesError},
    signals::Stop,
    tasks::Split,
    text::{Message, Role},
};

/// The safety rules of a run: those of the data named `safety-rules`, and the groups of known forms that `data.safety` names.
#[derive(Debug)]
pub(super) struct Screen {
    rules: Rules,
    /// The file of rules, if there is one.
    pub(super) file: Option<DataFile>,
    pub(super) settings: SafetySettings,
}

impl Screen {
    /// Reads the rules of a run; `None` if it has none. `seen` is called for their file as soon as it is hashed.
    ///
    /// # Errors
    /// When the file cannot be read, has another digest, or holds an invalid rule, so that nothing may be trained on.
    pub(super) fn of(
        training: &Training,
        files: &[(String, PathBuf)],
        stop: Stop,
        seen: &mut impl FnMut(DataFile),
    ) -> Result<Option<Self>, DataError> {
        let settings = &training.settings.data.safety;
        let data = training.data.iter().find(|data| data.name == SAFETY_RULES);
        if data.is_none() && settings.is_empty() {
            return Ok(None);
        }
        let input = data.map(|data| Input::open(data, Split::Train, files, stop, seen)).transpose();
        let input = input.map_err(unreadable)?;
        let bytes = input.as_ref().map(|input| input.start(MAX_RULES)).transpose().map_err(unreadable)?;
        if bytes.as_ref().is_some_and(|bytes| bytes.len() > MAX_RULES) {
            return Err(DataError::Safety(RulesError::too_large()));
        }
        let rules = Rules::of_data(bytes.as_deref(), settings).map_err(DataError::Safety)?;
        Ok(Some(Self { rules, file: input.map(|input| input.file), settings: settings.clone() }))
    }

    /// Returns a record without what the rules redact, and counts it; `None` if they block it.
    pub(super) fn check(&self, mut example: Example, counts: &mut Counts) -> Option<Example> {
        let (mut hits, mut blocked, mut redacted) = (BTreeSet::new(), false, false);
        each_text(&mut example, &mut |text: &mut String, direction| {
            let checked = self.rules.check_data(text, direction);
            hits.extend(checked.hits.into_iter().map(|hit| hit.rule));
            match checked.text {
                Some(kept) => {
                    redacted |= kept != *text;
                    *text = kept;
                }
                None => blocked = true,
            }
        });
        for rule in hits {
            *counts.rules.entry(rule).or_default() += 1;
        }
        counts.blocked += u64::from(blocked);
        counts.redacted += u64::from(redacted && !blocked);
        (!blocked).then_some(example)
    }
}

/// Rules that cannot be read are refused as invalid ones are: another attempt must not train without them.
fn unreadable(error: DataError) -> DataError {
    match error {
        DataError::File(FileError { path, source, .. }) => DataError::Safety(RulesError::Unreadable { path, source }),
        error => error,
    }
}

/// Returns the number of safety rules of a run; `None` if it has none.
///
/// # Errors
/// As when the run reads them.
pub(crate) fn count_safety_rules(training: &Training, files: &[(String, PathBuf)]) -> Result<Option<usize>, DataError> {
    let screen = Screen::of(training, files, &|| false, &mut |_| ())?;
    Ok(screen.map(|screen| screen.rules.len()))
}

/// Passes on all texts of a record, each with the direction in which a server would check it: what the assistant says is an answer. A
/// text that is learned as a whole has no direction.
fn each_text(example: &mut Example, each: &mut impl FnMut(&mut String, Option<Direction>)) {
    let (asked, answered) = (Some(Direction::Prompt), Some(Direction::Answer));
    match example {
        Example::Pair { prompt, response } => {
            each(prompt, asked);
            each(response, answered);
        }
        Example::Chat(messages) => each_message(messages, each),
        Example::Text(text) => each(text, None),
        Example::Preference(Preference::Texts { prompt, responses }) => {
            each(prompt, asked);
            for response in responses {
                each(response, answered);
            }
        }
        Example::Preference(Preference::Chat { prompt, responses }) => {
            each_message(prompt, each);
            for messages in responses {
                each_message(messages, each);
            }
        }
    }
}

fn each_message(messages: &mut [Message], each: &mut impl FnMut(&mut String, Option<Direction>)) {
    for Message { role, content } in messages {
        each(content, Some(if *role == Role::Assistant { Direction::Answer } else { Direction::Prompt }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: Role, content: &str) -> Message {
        Message { role, content: content.to_owned() }
    }

    fn pair(prompt: &str, response: &str) -> Example {
        Example::Pair { prompt: prompt.to_owned(), response: response.to_owned() }
    }

    /// Every text of every kind of record is checked in its direction.
    #[test]
    fn records_of_every_kind_are_checked() {
        let file = "rules: [{ id: ask, action: redact, literal: ASK, on: [prompt] }, { id: tell, action: redact, literal: TELL, on: [answer] }, \
                    { id: no, action: block, literal: NEVER }]";
        let settings = SafetySettings::default();
        let rules = Rules::of_data(Some(file.as_bytes()), &settings).unwrap();
        let screen = Screen { rules, file: None, settings };
        let mut counts = Counts::default();
        let mut check = |example| screen.check(example, &mut counts);
        assert_eq!(check(pair("ASK TELL", "ASK TELL")), Some(pair("{REDACTED} TELL", "ASK {REDACTED}")));
        let both = Example::Text("ASK TELL".to_owned());
        assert_eq!(check(both), Some(Example::Text("{REDACTED} {REDACTED}".to_owned())));
        let chat = |system: &str, answer: &str| {
            Example::Chat(vec![message(Role::System, system), message(Role::Assistant, answer)])
        };
        assert_eq!(check(chat("ASK", "TELL")), Some(chat("{REDACTED}", "{REDACTED}")));
        assert_eq!(check(chat("TELL", "ASK")), Some(chat("TELL", "ASK")));
        let texts = |prompt: &str, chosen: &str, rejected: &str| {
            let responses = [chosen.to_owned(), rejected.to_owned()];
            Example::Preference(Preference::Texts { prompt: prompt.to_owned(), responses })
        };
        assert_eq!(check(texts("ASK", "a", "TELL")), Some(texts("{REDACTED}", "a", "{REDACTED}")));
        assert_eq!(check(texts("ASK", "a", "NEVER")), None);
        let talks = |rejected: &str| {
            let responses = ["a", rejected].map(|text| vec![message(Role::Assistant, text)]);
            Example::Preference(Preference::Chat { prompt: vec![message(Role::User, "b")], responses })
        };
        assert_eq!(check(talks("TELL")), Some(talks("{REDACTED}")));
        assert_eq!(check(talks("NEVER TELL")), None);
        let hits = [("ask", 5), ("no", 2), ("tell", 6)].map(|(rule, count)| (rule.to_owned(), count));
        assert_eq!((counts.blocked, counts.redacted, counts.rules), (2, 5, hits.into()));
    }
}
