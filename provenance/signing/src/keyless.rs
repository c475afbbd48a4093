//! Verification of bundles that are signed with a certificate of an identity, such as a service account: keyless. Offline.
//!
//! The certificate must chain to a certificate authority of the trusted root and name the identity, the signature must be in a
//! transparency log of the trusted root, and a timestamp of an authority (or the log, for Rekor v1) must lie within the minutes in
//! which the certificate was valid. The trusted root is the JSON of `cosign trusted-root create` and of Sigstore's own
//! distribution (<https://github.com/sigstore/protobuf-specs/blob/main/protos/sigstore_trustroot.proto>). Nothing is downloaded.

use std::{fmt, sync::Arc};

pub use codex_provenance::{Identity, IdentityError, IdentityPattern};
use codex_provenance::{Sha256, text::Printable};
use jiff::Timestamp;
use sigstore_verify::{
    VerificationPolicy, Verifier,
    crypto::parse_certificate_info,
    trust_root::TrustedRoot,
    types::{Bundle, DerCertificate, Sha256Hash},
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
    /// The pattern for identities is invalid.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// A trusted root: the certificate authorities, logs and timestamp authorities that verify signatures by identities.
pub struct Root {
    verifier: Verifier,
    digest: Sha256,
    /// Whether certificates must be in a log of the trusted root. A root without such logs belongs to an authority without one.
    needs_sct: bool,
    /// Whether the root names timestamp authorities.
    has_timestamps: bool,
    ends: Option<Timestamp>,
}

impl Root {
    /// Reads a trusted root in JSON.
    ///
    /// # Errors
    /// If the text is not a trusted root, or lacks authorities or logs.
    pub fn from_json(text: &str) -> Result<Self, KeylessError> {
        if text.len() > MAX_ROOT {
            return Err(KeylessError::Root(format!("it has {} bytes; at most {MAX_ROOT} are read", text.len())));
        }
        let root = TrustedRoot::from_json(text).map_err(|why| KeylessError::Root(why.to_string()))?;
        let lacks = [
            (root.certificate_authorities.is_empty(), "certificate authority"),
            (root.tlogs.is_empty(), "transparency log"),
        ];
        if let Some((_, what)) = lacks.into_iter().find(|(lacks, _)| *lacks) {
            return Err(KeylessError::Lacks(what));
        }
        Ok(Self {
            verifier: Verifier::new(&root).map_err(|why| KeylessError::Root(why.to_string()))?,
            digest: Sha256::of(text),
            needs_sct: !root.ctlogs.is_empty(),
            has_timestamps: !root.timestamp_authorities.is_empty(),
            ends: ends(&root),
        })
    }

    /// Returns the SHA-256 of the text.
    pub fn digest(&self) -> Sha256 {
        self.digest
    }

    /// Whether timestamps of an authority can be verified.
    pub fn has_timestamps(&self) -> bool {
        self.has_timestamps
    }

    /// Returns when nothing new can be verified any more, because the last certificate authority or the last timestamp authority
    /// has ended. What was signed before stays valid. `None` if no end is known.
    pub fn ends(&self) -> Option<Timestamp> {
        self.ends
    }

    /// Verifies a bundle, and returns its payload and the identity that signed it, whoever that is.
    ///
    /// # Errors
    /// The first fault.
    pub fn identify(&self, bundle: &[u8]) -> Result<(Vec<u8>, Identity), BundleError> {
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
        Ok((payload, identity))
    }
}

/// Returns when the last authority of a kind ends, for the kind that ends first. An authority ends with the first of its certificates.
fn ends(root: &TrustedRoot) -> Option<Timestamp> {
    let chain = |certificates: Vec<&DerCertificate>, limit: Option<Timestamp>| {
        let certificates = certificates.into_iter().filter_map(|it| Some(parse_certificate_info(it).ok()?.not_after));
        certificates.chain(limit).min()
    };
    let issuing = root.certificate_authorities.iter().filter_map(|it| {
        let certificates = it.cert_chain.certificates.iter().map(|entry| &entry.raw_bytes);
        chain(certificates.collect(), it.valid_for.as_ref().and_then(|range| range.end))
    });
    let stamping = root.timestamp_authorities.iter().filter_map(|it| {
        let certificates = it.cert_chain.certificates.iter().map(|entry| &entry.raw_bytes);
        chain(certificates.collect(), it.valid_for.as_ref().and_then(|range| range.end))
    });
    [issuing.max(), stamping.max()].into_iter().flatten().min()
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Root").field(&self.digest).finish()
    }
}

/// Who is trusted to have signed, and what verifies it.
#[derive(Clone, Debug)]
pub struct Keyless {
    root: Arc<Root>,
    patterns: Vec<IdentityPattern>,
}

impl Keyless {
    /// Trusts the identities that match `subject` and `issuer`. `subject` is exact, or has `*` for a run of characters other than
    /// `/`; `issuer` is exact. `root` is a trusted root in JSON.
    ///
    /// # Errors
    /// If the trusted root is invalid or lacks authorities, or subject or issuer is empty.
    pub fn new(root: &str, subject: &str, issuer: &str) -> Result<Self, KeylessError> {
        let pattern = IdentityPattern::new(issuer, subject)?;
        Ok(Self::of(Root::from_json(root)?.into(), vec![pattern]))
    }

    /// Trusts the identities that match one of these patterns.
    pub fn of(root: Arc<Root>, patterns: Vec<IdentityPattern>) -> Self {
        Self { root, patterns }
    }

    /// Whether no identity is trusted.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }
}

impl Trusts for Keyless {
    fn open(&self, bundle: &[u8]) -> Result<Opened, BundleError> {
        let (payload, identity) = self.root.identify(bundle)?;
        if self.patterns.iter().any(|pattern| pattern.admits(&identity)) {
            return Ok(Opened { payload, signer: identity.fingerprint(), identity: Some(identity) });
        }
        Err(match self.patterns.as_slice() {
            [only] if only.issuer() != identity.issuer => {
                BundleError::Issuer { found: identity.issuer, expected: only.issuer().to_owned() }
            }
            [only] => BundleError::Identity { found: identity.subject, expected: only.subject().to_owned() },
            all => {
                let expected = all.iter().map(ToString::to_string).collect();
                BundleError::NoneOf { found: identity.to_string(), expected }
            }
        })
    }

    fn fingerprints(&self) -> Vec<Sha256> {
        self.patterns.iter().filter_map(IdentityPattern::exact).map(|identity| identity.fingerprint()).collect()
    }
}
