//! Sigstore bundles v0.3 that hold one in-toto statement signed by one key. Pure.
//!
//! Source: <https://github.com/sigstore/protobuf-specs/blob/main/protos/sigstore_bundle.proto>. A transparency log is
//! not asked: entries that a bundle may carry are neither needed nor believed.

use codex_provenance::Sha256;
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
/// The most bytes that a bundle may have: as many as fit in a `ConfigMap`.
pub const MAX_BYTES: usize = 1 << 20;

/// Why a bundle is refused. Each sentence goes on after "the OMS bundle" or "the promotion bundle".
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// More bytes than any bundle of a model needs.
    #[error("has {0} bytes, more than {MAX_BYTES}")]
    TooLarge(usize),
    /// No JSON, or not of the bundle's shape.
    #[error("is no Sigstore bundle: {0}")]
    Shape(#[source] serde_json::Error),
    /// Another version, or something else.
    #[error("has the media type {0:?}, and {MEDIA_TYPE:?} is the one known here")]
    MediaType(String),
    /// Signed without a key of its own.
    #[error("names no public key: only bundles that a key signed are accepted here")]
    NoKey,
    /// A bare signature.
    #[error("holds no DSSE envelope")]
    NoEnvelope,
    /// Not a statement in JSON.
    #[error("has the payload type {0:?}, and {IN_TOTO:?} is the one known here")]
    PayloadType(String),
    /// None or several.
    #[error("has {0} signatures, and exactly one is allowed")]
    Signatures(usize),
    /// The envelope names another key than the bundle.
    #[error("names the key {0:?} in its envelope and another one beside it")]
    Hints(String),
    /// Made by another key.
    #[error("was signed by another key: it names the fingerprint {found}, and {expected} is trusted")]
    AnotherKey {
        /// The hint in the bundle.
        found: String,
        /// The fingerprint of the trusted key.
        expected: Sha256,
    },
    /// Payload, signature or hint were changed, or another key made it.
    #[error("does not verify: its signature was not made over this payload by the key {0}")]
    Signature(Sha256),
}

/// Assembles the bundle of a payload and its DER-encoded signature by the key `signer`: JSON.
pub(crate) fn assemble(payload: &[u8], signature: Vec<u8>, signer: Sha256) -> Result<Vec<u8>, serde_json::Error> {
    // The specification wants the same hint in both places.
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

/// Checks a bundle against the one trusted key and returns the statement that it vouches for.
///
/// # Errors
/// The first thing that is not as it must be; the payload of a refused bundle is never returned.
pub fn open(bundle: &[u8], key: &PublicKey) -> Result<Vec<u8>, BundleError> {
    if bundle.len() > MAX_BYTES {
        return Err(BundleError::TooLarge(bundle.len()));
    }
    let wire: Wire = serde_json::from_slice(bundle).map_err(BundleError::Shape)?;
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
    // The hint is not authenticated: it only leads to a better sentence. An absent one says nothing.
    if !keyid.is_empty() && *keyid != hint {
        return Err(BundleError::Hints(keyid.clone()));
    }
    let fingerprint = key.fingerprint();
    if !hint.is_empty() && hint != fingerprint.to_string() {
        return Err(BundleError::AnotherKey { found: hint, expected: fingerprint });
    }
    if !key.verifies(&pre_authentication(&envelope.payload), sig) {
        return Err(BundleError::Signature(fingerprint));
    }
    Ok(envelope.payload)
}
