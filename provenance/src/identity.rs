//! Identities that sign instead of keys: what a certificate names, and patterns for it. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Sha256, text::Printable};

/// The identity that a certificate names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Identity {
    /// The issuer of the token for which the certificate was issued, such as `https://kubernetes.default.svc.cluster.local`.
    pub issuer: String,
    /// The subject alternative name, such as `https://kubernetes.io/namespaces/codex-system/serviceaccounts/codex-controller`.
    pub subject: String,
}

impl Identity {
    /// Returns the fingerprint of the identity, which stands where that of a key would: SHA-256 of issuer, line feed and subject.
    pub fn fingerprint(&self) -> Sha256 {
        Sha256::of(format!("{}\n{}", self.issuer, self.subject))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (issuer {})", Printable(&self.subject), Printable(&self.issuer))
    }
}

/// Why a pattern for identities is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The subject or the issuer is empty.
    #[error("the {0} of the certificate is empty: name the one that signs")]
    Empty(&'static str),
    /// The issuer holds a star.
    #[error("the issuer {0:?} holds *: name it exactly, as in the tokens that it issues")]
    IssuerPattern(String),
}

/// Identities that are trusted: those of one issuer whose subject matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityPattern {
    issuer: String,
    /// Exact, or with `*` for a run of characters other than `/`.
    subject: String,
}

impl IdentityPattern {
    /// Returns a pattern. `subject` is exact, or has `*` for a run of characters other than `/`; `issuer` is exact.
    ///
    /// # Errors
    /// If one of them is empty, or the issuer holds a star.
    pub fn new(issuer: &str, subject: &str) -> Result<Self, IdentityError> {
        for (value, name) in [(subject, "identity"), (issuer, "issuer")] {
            if value.is_empty() {
                return Err(IdentityError::Empty(name));
            }
        }
        if issuer.contains('*') {
            return Err(IdentityError::IssuerPattern(issuer.to_owned()));
        }
        Ok(Self { issuer: issuer.to_owned(), subject: subject.to_owned() })
    }

    /// Returns the issuer.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Returns the subject, or the pattern for it.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Returns the one identity that matches; `None` if the subject is a pattern.
    pub fn exact(&self) -> Option<Identity> {
        let exact = || Identity { issuer: self.issuer.clone(), subject: self.subject.clone() };
        (!self.subject.contains('*')).then(exact)
    }

    /// Whether an identity matches.
    pub fn admits(&self, identity: &Identity) -> bool {
        self.issuer == identity.issuer && matches(&self.subject, &identity.subject)
    }
}

/// The pattern of an identity. Names of service accounts hold no star.
impl From<&Identity> for IdentityPattern {
    fn from(identity: &Identity) -> Self {
        Self { issuer: identity.issuer.clone(), subject: identity.subject.clone() }
    }
}

impl fmt::Display for IdentityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (issuer {})", Printable(&self.subject), Printable(&self.issuer))
    }
}

/// Whether a pattern, with `*` for a run of characters other than `/`, matches a whole text.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(head) else { return false };
    let run = text.find('/').unwrap_or(text.len());
    (0..=run).filter(|end| text.is_char_boundary(*end)).any(|end| matches(rest, &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::{Identity, IdentityError, IdentityPattern, matches};

    #[test]
    fn a_star_stands_within_one_segment() {
        let account = "https://kubernetes.io/namespaces/codex-system/serviceaccounts/codex-controller";
        for pattern in [
            account,
            "https://kubernetes.io/namespaces/*/serviceaccounts/codex-controller",
            "https://kubernetes.io/namespaces/codex-*/serviceaccounts/*",
            "*//kubernetes.io/namespaces/codex-system*/serviceaccounts/codex-*er",
        ] {
            assert!(matches(pattern, account), "{pattern}");
        }
        for pattern in [
            "",
            "*",
            "https://kubernetes.io/*",
            "https://kubernetes.io/namespaces/*/serviceaccounts/",
            "https://kubernetes.io/namespaces/*/serviceaccounts/codex-controlle",
            "https://kubernetes.io/namespaces/Codex-*/serviceaccounts/*",
            "kubernetes.io/namespaces/*/serviceaccounts/codex-controller",
        ] {
            assert!(!matches(pattern, account), "{pattern}");
        }
        assert!(matches("*@example.com", "ada@example.com") && !matches("*@example.com", "ada@example.com.evil"));
        assert!(matches("ä*", "äö"));
    }

    #[test]
    fn issuer_and_subject_are_kept_apart_in_the_fingerprint() {
        let identity = |issuer: &str, subject: &str| {
            Identity { issuer: issuer.to_owned(), subject: subject.to_owned() }.fingerprint()
        };
        assert_ne!(identity("https://a", "b/c"), identity("https://a/b", "c"));
        assert_ne!(identity("https://a", "b"), identity("https://a", "B"));
    }

    #[test]
    fn only_a_subject_may_be_a_pattern() {
        let pattern = IdentityPattern::new("https://a", "b/*").unwrap();
        let of = |issuer: &str| Identity { issuer: issuer.to_owned(), subject: "b/c".to_owned() };
        assert!(pattern.exact().is_none() && pattern.admits(&of("https://a")) && !pattern.admits(&of("https://b")));
        assert_eq!(IdentityPattern::new("https://a", "b/c").unwrap().exact(), Some(of("https://a")));
        assert_eq!(IdentityPattern::new("", "b"), Err(IdentityError::Empty("issuer")));
        assert_eq!(IdentityPattern::new("https://a", ""), Err(IdentityError::Empty("identity")));
        assert_eq!(IdentityPattern::new("*", "b"), Err(IdentityError::IssuerPattern("*".to_owned())));
    }
}
