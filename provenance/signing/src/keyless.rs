//! Verification of bundles that are signed with a certificate of an identity, such as a service account: keyless. Offline.
//!
//! The certificate must chain to a certificate authority of the trusted root and name the identity, the signature must be in a
//! transparency log of the trusted root, and a timestamp of an authority (or the log, for Rekor v1) must lie within the minutes in
//! which the certificate was valid. The trusted root is the JSON of `cosign trusted-root create` and of Sigstore's own
//! distribution (<https://github.com/sigstore/protobuf-specs/blob/main/protos/sigstore_trustroot.proto>). Nothing is downloaded.

use std::fmt;

use codex_provenance::{Sha256, text::Printable};
use sigstore_verify::{
    VerificationPolicy, Verifier,
    trust_root::TrustedRoot,
    types::{Bundle, Sha256Hash},
};

use crate::{
    bundle::{self, BundleError, Opened},
    verify::Trusts,
};

/// Maximum size of a trusted root in bytes.
pub const MAX_ROOT: usize = 4 << 20;

/// Reasons why an identity or a trusted root is refused.
#[derive(Debug, thiserror::Error)]
pub enum KeylessError {
    /// The trusted root is not one, or cannot be used.
    #[error("the trusted root is invalid: {}", Printable(.0))]
    Root(String),
    /// The trusted root lacks what every verification needs.
    #[error("the trusted root names no {0}, so no signature can be verified with it")]
    Lacks(&'static str),
    /// The identity or the issuer is empty.
    #[error("the {0} of the certificate is empty: name the one that signs")]
    Empty(&'static str),
    /// The issuer holds a star.
    #[error("the issuer {0:?} holds *: name it exactly, as in the tokens that it issues")]
    IssuerPattern(String),
}

/// The identity that a certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// Who is trusted to have signed, and what verifies it.
pub struct Keyless {
    verifier: Verifier,
    /// Exact, or with `*` for a run of characters other than `/`.
    subject: String,
    issuer: String,
    /// Whether certificates must be in a log of the trusted root. A root without such logs belongs to an authority without one.
    needs_sct: bool,
}

impl Keyless {
    /// Trusts the identities that match `subject` and `issuer`. `subject` is exact, or has `*` for a run of characters other than
    /// `/`; `issuer` is exact. `root` is a trusted root in JSON.
    ///
    /// # Errors
    /// If the trusted root is invalid or lacks authorities, or subject or issuer is empty.
    pub fn new(root: &str, subject: &str, issuer: &str) -> Result<Self, KeylessError> {
        for (value, name) in [(subject, "identity"), (issuer, "issuer")] {
            if value.is_empty() {
                return Err(KeylessError::Empty(name));
            }
        }
        if issuer.contains('*') {
            return Err(KeylessError::IssuerPattern(issuer.to_owned()));
        }
        let root = TrustedRoot::from_json(root).map_err(|why| KeylessError::Root(why.to_string()))?;
        let lacks = [
            (root.certificate_authorities.is_empty(), "certificate authority"),
            (root.tlogs.is_empty(), "transparency log"),
        ];
        if let Some((_, what)) = lacks.into_iter().find(|(lacks, _)| *lacks) {
            return Err(KeylessError::Lacks(what));
        }
        Ok(Self {
            verifier: Verifier::new(&root).map_err(|why| KeylessError::Root(why.to_string()))?,
            subject: subject.to_owned(),
            issuer: issuer.to_owned(),
            needs_sct: !root.ctlogs.is_empty(),
        })
    }
}

impl Trusts for Keyless {
    fn open(&self, bundle: &[u8]) -> Result<Opened, BundleError> {
        let payload = bundle::payload_of_certificate(bundle)?;
        let text = std::str::from_utf8(bundle).map_err(|_| BundleError::Keyless("it is not UTF-8".to_owned()))?;
        let refused = |why: &dyn fmt::Display| BundleError::Keyless(why.to_string());
        let wire = Bundle::from_json(text).map_err(|why| refused(&why))?;
        let mut policy = VerificationPolicy::any_identity();
        if !self.needs_sct {
            policy = policy.skip_sct();
        }
        // What the statement is about is compared with the files by the caller.
        let subject = Sha256Hash::from_hex(&bundle::subject(&payload)?).map_err(|why| refused(&why))?;
        let found = self.verifier.verify(subject, &wire, &policy).map_err(|why| refused(&why))?;
        if !(found.certificate_verified() && found.tlog_verified()) {
            return Err(BundleError::Keyless("certificate or log entry were not verified".to_owned()));
        }
        let claim = |claim: Option<&str>| claim.unwrap_or_default().to_owned();
        let identity = Identity {
            issuer: claim(found.issuer()),
            subject: claim(found.identity().map(sigstore_verify::SubjectAltName::as_str)),
        };
        if identity.issuer != self.issuer {
            return Err(BundleError::Issuer { found: identity.issuer, expected: self.issuer.clone() });
        }
        if !matches(&self.subject, &identity.subject) {
            return Err(BundleError::Identity { found: identity.subject, expected: self.subject.clone() });
        }
        Ok(Opened { payload, signer: identity.fingerprint(), identity: Some(identity) })
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
    use super::{Identity, matches};

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
}
