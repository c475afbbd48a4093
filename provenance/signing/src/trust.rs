//! Lists of trusted public keys, each with the time in which its signatures count. Pure.
//!
//! A list is text with one or more PEM blocks (`PUBLIC KEY`). Lines `notBefore: TIME` and `notAfter: TIME` before a block limit
//! its key; times are RFC 3339. Other text between blocks does not count, so the file of a single key, as `cosign
//! generate-key-pair` or `openssl pkey -pubout` writes it, is a list. PEM allows text around blocks
//! (<https://www.rfc-editor.org/rfc/rfc7468#section-2>), so other programs read the same file.

use codex_provenance::{IdentityError, IdentityPattern, Sha256, Validity, text::Printable};
use jiff::Timestamp;

use crate::key::{KeyError, PublicKey};

/// Maximum number of trusted keys.
pub const MAX_KEYS: usize = 64;

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";

/// A trusted public key.
#[derive(Clone, Debug)]
pub struct TrustedKey {
    /// The key.
    pub key: PublicKey,
    /// When its signatures count.
    pub validity: Validity,
}

/// Identities that are trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedIdentity {
    /// The identity, or a pattern for several.
    pub pattern: IdentityPattern,
    /// When its signatures count.
    pub validity: Validity,
}

/// Reasons why a list of keys is refused.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A line about an identity is not of the one form.
    #[error(
        "line {line}: {:?} says nothing about an identity: write issuer:, subject:, notBefore: or notAfter: once each, and a value",
        Printable(text).to_string()
    )]
    IdentityLine {
        /// Number of the line, from 1.
        line: usize,
        /// The start of the line.
        text: String,
    },
    /// An identity is incomplete or invalid.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// An identity can never count.
    #[error("the identity {0} is never valid: its notAfter is not later than its notBefore")]
    NeverIdentity(String),
    /// A block is not a public key. The line is the first of its block, or the end of the text.
    #[error("line {line}: {source}")]
    Key {
        /// Number of the line, from 1.
        line: usize,
        /// Why.
        #[source]
        source: KeyError,
    },
    /// A line is meant to limit a key, and is not of the one form.
    #[error(
        "line {line}: {:?} does not limit a key: write notBefore: or notAfter: and a time such as 2027-01-31T00:00:00Z",
        Printable(text).to_string()
    )]
    Limit {
        /// Number of the line, from 1.
        line: usize,
        /// The start of the line.
        text: String,
    },
    /// A limit is given twice for a key, or no key follows.
    #[error("line {line}: {name} stands twice before a key, or no key follows: give each limit once, above its key")]
    Stray {
        /// Number of the line, from 1.
        line: usize,
        /// Name of the limit.
        name: &'static str,
    },
    /// A key can never count.
    #[error("line {line}: the key {key} is never valid: its notAfter is not later than its notBefore")]
    Never {
        /// Number of the first line of its block.
        line: usize,
        /// Fingerprint of the key.
        key: Sha256,
    },
    /// A key stands twice in the list.
    #[error("the key {0} is listed twice: list it once, with one validity")]
    Twice(Sha256),
    /// The list is too long.
    #[error("{0} keys are listed: list at most {MAX_KEYS}")]
    TooMany(usize),
}

/// The names of the limits.
const LIMITS: [&str; 2] = ["notBefore", "notAfter"];

/// Reads a list of trusted keys: at least one.
///
/// # Errors
/// The first line that is wrong. A line that looks like a limit and is none is refused, never left out.
pub fn read(text: &str) -> Result<Vec<TrustedKey>, TrustError> {
    let mut keys = Vec::new();
    let mut limits: [Option<(usize, Timestamp)>; 2] = [None, None];
    let mut block: Option<(usize, String)> = None;
    let mut last = 0;
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        last = number;
        let bare = line.trim();
        if let Some((begun, pem)) = &mut block {
            pem.push_str(bare);
            pem.push('\n');
            if bare.starts_with(END) {
                let begun = *begun;
                let key = PublicKey::from_pem(pem).map_err(|source| TrustError::Key { line: begun, source })?;
                let [not_before, not_after] = limits.map(|limit| limit.map(|(_, time)| time));
                let validity = Validity { not_before, not_after };
                if !validity.is_possible() {
                    return Err(TrustError::Never { line: begun, key: key.fingerprint() });
                }
                keys.push(TrustedKey { key, validity });
                (block, limits) = (None, [None, None]);
            }
        } else if bare.starts_with(BEGIN) {
            block = Some((number, format!("{bare}\n")));
        } else if let Some(limit) = limit_in(bare, number)? {
            let (which, time) = limit;
            if limits[which].replace((number, time)).is_some() {
                return Err(TrustError::Stray { line: number, name: LIMITS[which] });
            }
        }
    }
    if let Some((line, pem)) = block {
        // A block without an end. The parser of single keys says what is wrong with it.
        let source = PublicKey::from_pem(&pem).err().unwrap_or(KeyError::Damaged { what: "public key" });
        return Err(TrustError::Key { line, source });
    }
    for (limit, name) in limits.into_iter().zip(LIMITS) {
        if let Some((line, _)) = limit {
            return Err(TrustError::Stray { line, name });
        }
    }
    if keys.is_empty() {
        return Err(TrustError::Key { line: last.max(1), source: KeyError::NotPem { what: "public key" } });
    }
    check(&keys)?;
    Ok(keys)
}

/// Returns the limit in a line: which of [`LIMITS`], and its time.
fn limit_in(line: &str, number: usize) -> Result<Option<(usize, Timestamp)>, TrustError> {
    let letters = line.chars().filter(char::is_ascii_alphanumeric);
    let letters = letters.take(10).collect::<String>().to_ascii_lowercase();
    // A line that begins with # is a comment.
    let meant = LIMITS.iter().any(|name| letters.starts_with(&name.to_ascii_lowercase()));
    if !meant || line.starts_with('#') {
        return Ok(None);
    }
    let given = line.split_once(':').and_then(|(name, time)| {
        let which = LIMITS.iter().position(|known| *known == name.trim_end())?;
        Some((which, time.trim().parse().ok()?))
    });
    given.map(Some).ok_or_else(|| TrustError::Limit { line: number, text: line.chars().take(80).collect() })
}

/// Reads one identity: the lines `issuer: ISSUER` and `subject: SUBJECT`, and `notBefore: TIME` and `notAfter: TIME` if its
/// signatures count within a time. In the subject, `*` stands for a run of characters other than `/`. Lines that begin with `#` are
/// comments.
///
/// # Errors
/// The first line that is wrong, or what is missing.
pub fn read_identity(text: &str) -> Result<TrustedIdentity, TrustError> {
    let (mut issuer, mut subject) = (None, None);
    let mut limits: [Option<Timestamp>; 2] = [None, None];
    for (index, line) in text.lines().enumerate() {
        let bare = line.trim();
        if bare.is_empty() || bare.starts_with('#') {
            continue;
        }
        let wrong = || TrustError::IdentityLine { line: index + 1, text: bare.chars().take(80).collect() };
        let (name, value) = bare.split_once(':').ok_or_else(wrong)?;
        let (name, value) = (name.trim_end(), value.trim());
        let is_first = match name {
            "issuer" => issuer.replace(value.to_owned()).is_none(),
            "subject" => subject.replace(value.to_owned()).is_none(),
            limit => {
                let which = LIMITS.iter().position(|known| *known == limit).ok_or_else(wrong)?;
                limits[which].replace(value.parse().map_err(|_| wrong())?).is_none()
            }
        };
        if !is_first {
            return Err(wrong());
        }
    }
    let pattern = IdentityPattern::new(&issuer.unwrap_or_default(), &subject.unwrap_or_default())?;
    let [not_before, not_after] = limits;
    let validity = Validity { not_before, not_after };
    if !validity.is_possible() {
        return Err(TrustError::NeverIdentity(pattern.to_string()));
    }
    Ok(TrustedIdentity { pattern, validity })
}

/// Checks the keys of several lists together.
///
/// # Errors
/// A key that stands twice, or too many keys.
pub fn check(keys: &[TrustedKey]) -> Result<(), TrustError> {
    if keys.len() > MAX_KEYS {
        return Err(TrustError::TooMany(keys.len()));
    }
    let mut known = std::collections::BTreeSet::new();
    let twice = keys.iter().map(|trusted| trusted.key.fingerprint()).find(|key| !known.insert(*key));
    twice.map_or(Ok(()), |key| Err(TrustError::Twice(key)))
}

#[cfg(test)]
mod tests {
    use super::read_identity;

    #[test]
    fn an_identity_is_read_from_its_lines() {
        let text = "# The controller.\nissuer: https://kubernetes.default.svc\nsubject: https://kubernetes.io/namespaces/*/x\n\n\
                    notAfter: 2027-01-31T00:00:00Z\n";
        let read = read_identity(text).unwrap();
        assert_eq!(read.pattern.issuer(), "https://kubernetes.default.svc");
        assert_eq!(read.pattern.subject(), "https://kubernetes.io/namespaces/*/x");
        assert_eq!(read.validity.not_after, Some("2027-01-31T00:00:00Z".parse().unwrap()));
        assert_eq!(read.validity.not_before, None);
    }

    #[test]
    fn a_line_that_says_nothing_is_refused() {
        let told = |text: &str| read_identity(text).unwrap_err().to_string();
        assert!(told("").contains("identity of the certificate is empty"));
        assert!(told("subject: a").contains("issuer of the certificate is empty"));
        assert!(told("issuer: https://*.example.com\nsubject: a").contains("name it exactly"));
        for wrong in ["issuer: a\nissuer: b", "identity: a", "issuer a", "notAfter: tomorrow", "Issuer: a"] {
            assert!(told(wrong).starts_with("line "), "{wrong}: {}", told(wrong));
        }
        let never = "issuer: a\nsubject: b\nnotBefore: 2027-01-02T00:00:00Z\nnotAfter: 2027-01-01T00:00:00Z";
        assert!(told(never).contains("is never valid"));
    }
}
