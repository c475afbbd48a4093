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
    /// The bundle is signed with a certificate.
    #[error("names no public key; only bundles that are signed with a key are supported")]
    NoKey,
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

fn unsigned(keys: &[Sha256]) -> String {
    if let [key] = keys { format!("the key {key}") } else { format!("the keys {}", named(keys)) }
}

/// Returns the bundle, in JSON, of a payload and its DER-encoded signature with the key `signer`.
pub(crate) fn assemble(payload: &[u8], signature: Vec<u8>, signer: Sha256) -> Result<Vec<u8>, serde_json::Error> {
    // The specification requires the same hint in both places.
    let hint = signer.to_string();
    serde_json::to_vec(&Wire {
        media_type: MEDIA_TYPE.to_owned(),
        verification_material: Some(VerificationMaterial {
            content: Some(verification_material::Content::PublicKey(PublicKeyIdentifier { hint: hint.clone() })),
            ..Default::default()
        }),
        content: Some(bundle::Content::DsseEnvelope(Envelope {
            payload: payload.to_vec(),
            payload_type: IN_TOTO.to_owned(),
            signatures: vec![Signature { sig: signature, keyid: hint }],
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
    if bundle.len() > MAX_BYTES {
        return Err(BundleError::TooLarge);
    }
    let wire: Wire = codex_json::from_slice(bundle).map_err(BundleError::Shape)?;
    if wire.media_type != MEDIA_TYPE {
        return Err(BundleError::MediaType(wire.media_type));
    }
    let material = wire.verification_material.and_then(|material| material.content);
    let Some(verification_material::Content::PublicKey(PublicKeyIdentifier { hint })) = material else {
        return Err(BundleError::NoKey);
    };
    let Some(bundle::Content::DsseEnvelope(envelope)) = wire.content else {
        return Err(BundleError::NoEnvelope);
    };
    if envelope.payload_type != IN_TOTO {
        return Err(BundleError::PayloadType(envelope.payload_type));
    }
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
