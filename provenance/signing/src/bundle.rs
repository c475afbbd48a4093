//! Sigstore bundles v0.3 that hold one in-toto statement, signed with one key. Pure.
//!
//! Source: <https://github.com/sigstore/protobuf-specs/blob/main/protos/sigstore_bundle.proto>. Entries
//! of a transparency log are neither required nor checked.

use codex_provenance::{Sha256, text::Printable};
use sigstore_protobuf_specs::{
    dev::sigstore::{
        bundle::v1::{Bundle as Wire, VerificationMaterial, bundle, verification_material},
        common::v1::PublicKeyIdentifier,
    },
    io::intoto::{Envelope, Signature},
};

use crate::{
    dsse::{IN_TOTO, pre_authentication},
    key::PublicKey,
    keyless::Identity,
};

/// The media type of the bundles read and written here.
pub const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// Maximum size of a bundle in bytes: enough for a statement about the maximum number of files, with paths of the maximum
/// length. (A `ConfigMap` holds 1 MiB.)
pub const MAX_BYTES: usize = 32 << 20;

/// Reasons why a bundle is refused. Each message continues "the OMS bundle" or "the promotion bundle".
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The bundle is too large.
    #[error("is too large: at most {MAX_BYTES} bytes are allowed")]
    TooLarge,
    /// The text is not a Sigstore bundle in JSON.
    #[error("is not a Sigstore bundle: {}", Printable(&.0.to_string()))]
    Shape(#[source] serde_json::Error),
    /// The bundle has another version.
    #[error("has the media type {0:?}; only {MEDIA_TYPE:?} is supported")]
    MediaType(String),
    /// The bundle is signed with a certificate, or with nothing.
    #[error("names no public key; a key is trusted, and no identity that a certificate names")]
    NoKey,
    /// The bundle is signed with a key.
    #[error("is signed with a key; an identity is required, which a certificate names")]
    NoCertificate,
    /// The certificate, the log entry, a timestamp or the signature is refused.
    #[error("is not validly signed by an identity: {}", Printable(.0))]
    Keyless(String),
    /// The certificate names another identity.
    #[error("was signed by another identity: {}, but {} is trusted", Printable(found), Printable(expected))]
    Identity {
        /// The subject of the certificate.
        found: String,
        /// The trusted subject, or the pattern for it.
        expected: String,
    },
    /// The certificate names an identity of another issuer.
    #[error(
        "was signed by an identity of another issuer: {}, but {} is trusted",
        Printable(found),
        Printable(expected)
    )]
    Issuer {
        /// The issuer in the certificate.
        found: String,
        /// The trusted issuer.
        expected: String,
    },
    /// The certificate names an identity that matches none of the trusted ones.
    #[error("was signed by {}, but {} trusted", found, listed(expected))]
    NoneOf {
        /// The identity in the certificate, printable.
        found: String,
        /// The trusted identities and patterns, printable.
        expected: Vec<String>,
    },
    /// The statement names nothing that it is about.
    #[error("has a statement without a SHA-256 of its subject")]
    Subject,
    /// The bundle has no DSSE envelope.
    #[error("has no DSSE envelope")]
    NoEnvelope,
    /// The payload is not a statement in JSON.
    #[error("has the payload type {0:?}; only {IN_TOTO:?} is supported")]
    PayloadType(String),
    /// The bundle has no signature or several.
    #[error("has {0} signatures; exactly one is required")]
    Signatures(usize),
    /// The bundle is signed with another key.
    #[error("was signed with another key: it names {}, but {} trusted", Printable(found), trusted(expected))]
    AnotherKey {
        /// The hint in the bundle.
        found: String,
        /// The fingerprints of the trusted keys.
        expected: Vec<Sha256>,
    },
    /// The signature is not one of a trusted key over this payload.
    #[error("has an invalid signature: {} did not sign this payload", unsigned(.0))]
    Signature(Vec<Sha256>),
}

/// Maximum number of fingerprints that a message names.
const NAMED: usize = 4;

fn named(keys: &[Sha256]) -> String {
    let shown: Vec<_> = keys.iter().take(NAMED).map(ToString::to_string).collect();
    let more = keys.len().saturating_sub(NAMED);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}

pub(crate) fn trusted(keys: &[Sha256]) -> String {
    match keys {
        [] => "no key is".to_owned(),
        [key] => format!("{key} is"),
        keys => format!("only {} are", named(keys)),
    }
}

fn listed(identities: &[String]) -> String {
    match identities {
        [] => "no identity is".to_owned(),
        all => {
            let more = all.len().saturating_sub(NAMED);
            let shown = all.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
            if more == 0 { format!("only {shown} are") } else { format!("only {shown} and {more} more are") }
        }
    }
}

fn unsigned(keys: &[Sha256]) -> String {
    if let [key] = keys { format!("the key {key}") } else { format!("the keys {}", named(keys)) }
}

/// Returns the bundle, in JSON, of a payload and its DER-encoded signature with the key `signer`.
pub(crate) fn assemble(payload: &[u8], signature: Vec<u8>, signer: Sha256) -> Result<Vec<u8>, serde_json::Error> {
    let hint = signer.to_string();
    serde_json::to_vec(&Wire {
        media_type: MEDIA_TYPE.to_owned(),
        verification_material: Some(VerificationMaterial {
            content: Some(verification_material::Content::PublicKey(PublicKeyIdentifier { hint })),
            ..Default::default()
        }),
        content: Some(bundle::Content::DsseEnvelope(Envelope {
            payload: payload.to_vec(),
            payload_type: IN_TOTO.to_owned(),
            // Without a key id, which is optional: cosign refuses each one but a fingerprint as SSH writes it.
            signatures: vec![Signature { sig: signature, keyid: String::new() }],
        })),
    })
}

/// Verifies the signature of a bundle with the trusted key and returns its payload.
///
/// # Errors
/// The first fault. The payload of a refused bundle is never returned.
pub fn open(bundle: &[u8], key: &PublicKey) -> Result<Vec<u8>, BundleError> {
    open_with(bundle, std::slice::from_ref(key)).map(|(payload, _)| payload)
}

/// Verifies that one of the trusted keys signed a bundle, and returns its payload and that key.
///
/// # Errors
/// The first fault. The payload of a refused bundle is never returned.
pub fn open_with<'k>(bundle: &[u8], keys: &'k [PublicKey]) -> Result<(Vec<u8>, &'k PublicKey), BundleError> {
    let Parts { material, envelope } = parts(bundle)?;
    let Some(verification_material::Content::PublicKey(PublicKeyIdentifier { hint })) = material else {
        return Err(BundleError::NoKey);
    };
    let [Signature { sig, keyid }] = envelope.signatures.as_slice() else {
        return Err(BundleError::Signatures(envelope.signatures.len()));
    };
    let encoded = pre_authentication(&envelope.payload);
    // Hints are not signed, and programs write them in different ways. They only lead to a better message.
    if let Some(key) = keys.iter().find(|key| key.verifies(&encoded, sig)) {
        return Ok((envelope.payload, key));
    }
    let hints = [hint, keyid.clone()];
    let foreign = |hint: &&String| !keys.is_empty() && keys.iter().all(|key| key.differs_from(hint));
    if let Some(found) = hints.iter().find(foreign) {
        let expected = keys.iter().map(PublicKey::fingerprint).collect();
        return Err(BundleError::AnotherKey { found: found.clone(), expected });
    }
    let is_named = |key: &&PublicKey| hints.iter().any(|hint| key.is_named_by(hint));
    let named: Vec<_> = keys.iter().filter(is_named).map(PublicKey::fingerprint).collect();
    let all = || keys.iter().map(PublicKey::fingerprint).collect();
    Err(BundleError::Signature(if named.is_empty() { all() } else { named }))
}

/// What a trusted signer signed.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The payload.
    pub payload: Vec<u8>,
    /// The fingerprint of the key or the identity that signed.
    pub signer: Sha256,
    /// The identity, if it is not a key that signed.
    pub identity: Option<Identity>,
}

/// The parts of a bundle with one in-toto statement. Nothing is verified.
struct Parts {
    material: Option<verification_material::Content>,
    envelope: Envelope,
}

fn parts(bundle: &[u8]) -> Result<Parts, BundleError> {
    if bundle.len() > MAX_BYTES {
        return Err(BundleError::TooLarge);
    }
    let wire: Wire = codex_json::from_slice(bundle).map_err(BundleError::Shape)?;
    if wire.media_type != MEDIA_TYPE {
        return Err(BundleError::MediaType(wire.media_type));
    }
    let material = wire.verification_material.and_then(|material| material.content);
    let Some(bundle::Content::DsseEnvelope(envelope)) = wire.content else {
        // The kind of signer is said first.
        return Err(match material {
            Some(verification_material::Content::PublicKey(_) | verification_material::Content::Certificate(_)) => {
                BundleError::NoEnvelope
            }
            _ => BundleError::NoKey,
        });
    };
    if envelope.payload_type != IN_TOTO {
        return Err(BundleError::PayloadType(envelope.payload_type));
    }
    Ok(Parts { material, envelope })
}

/// Whether a bundle is signed with a certificate. Nothing is verified.
pub(crate) fn has_certificate(bundle: &[u8]) -> bool {
    matches!(parts(bundle), Ok(Parts { material: Some(verification_material::Content::Certificate(_)), .. }))
}

/// Returns the payload of a bundle that is signed with a certificate. Nothing is verified.
pub(crate) fn payload_of_certificate(bundle: &[u8]) -> Result<Vec<u8>, BundleError> {
    let Parts { material, envelope } = parts(bundle)?;
    match material {
        Some(verification_material::Content::Certificate(_)) => {}
        Some(verification_material::Content::PublicKey(_)) => return Err(BundleError::NoCertificate),
        _ => return Err(BundleError::Keyless("it has no certificate".to_owned())),
    }
    match envelope.signatures.len() {
        1 => Ok(envelope.payload),
        count => Err(BundleError::Signatures(count)),
    }
}

/// Returns the SHA-256, in hexadecimal, of the first subject of a statement.
pub(crate) fn subject(payload: &[u8]) -> Result<String, BundleError> {
    let statement: serde_json::Value = codex_json::from_slice(payload).map_err(|_| BundleError::Subject)?;
    let digest = statement.pointer("/subject/0/digest/sha256").and_then(serde_json::Value::as_str);
    digest.map(str::to_owned).ok_or(BundleError::Subject)
}
