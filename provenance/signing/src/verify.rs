//! Verifying a model: whether exactly these bytes were signed, and may be served in this ring. Pure.
//!
//! The manifest must have been computed from the bytes that are about to be used, not read from anywhere. Every refusal
//! is one sentence that names the file, the bundle, the key or the ring.

use codex_provenance::{
    ModelDigest, OmsPayloadDigest, PromotionDigest, Sha256,
    manifest::{Difference, Manifest},
    oms::{self, Verdict},
    promotion::{self, Promotion},
};

use crate::{
    bundle::{self, BundleError},
    key::PublicKey,
};

/// How many changed files a refusal names.
const NAMED: usize = 5;

/// What a verifier was told by somebody whom it trusts more than the bundles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The model.
    pub model_digest: ModelDigest,
    /// The fingerprint of the key.
    pub key_fingerprint: Sha256,
    /// The ring that the model is to be served in.
    pub ring: String,
    /// The promotion statement.
    pub promotion_digest: PromotionDigest,
}

/// What an OMS bundle vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The model whose files were compared.
    pub model: ModelDigest,
    /// The statement about them.
    pub payload: OmsPayloadDigest,
    /// The fingerprint of the key that signed.
    pub signer: Sha256,
}

/// What a promotion bundle vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promoted {
    /// The statement.
    pub promotion: Promotion,
    /// Its digest.
    pub digest: PromotionDigest,
}

/// What was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// By the OMS bundle.
    pub signed: Signed,
    /// By the promotion bundle.
    pub promoted: Promoted,
}

/// Why a model is refused.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Somebody put another key in its place.
    #[error("the public key is another one: its fingerprint is {found}, and {expected} is trusted")]
    Key {
        /// Of the key at hand.
        found: Sha256,
        /// Of the key that is trusted.
        expected: Sha256,
    },
    /// The OMS bundle itself is refused.
    #[error("the OMS bundle {0}")]
    Oms(#[source] BundleError),
    /// The OMS bundle is genuine and says something else.
    #[error("the OMS bundle holds no model signing statement: {0}")]
    OmsStatement(String),
    /// The OMS bundle is genuine and the files are others.
    #[error("the model's files are not the signed ones: {}", name(.0))]
    Files(Vec<Difference>),
    /// The files are the ones demanded, and the OMS bundle is about others.
    #[error("the OMS bundle was made for another model than {model}: {}", name(.differences))]
    OmsModel {
        /// The model at hand, which is the one demanded.
        model: ModelDigest,
        /// How the two differ.
        differences: Vec<Difference>,
    },
    /// The files are signed, and others are demanded.
    #[error("the files are the model {found}, and {expected} is demanded")]
    Model {
        /// The model at hand.
        found: ModelDigest,
        /// The model demanded.
        expected: ModelDigest,
    },
    /// The promotion bundle itself is refused.
    #[error("the promotion bundle {0}")]
    Promotion(#[source] BundleError),
    /// The promotion bundle is genuine and says something else.
    #[error("the promotion bundle holds no promotion statement: {0}")]
    PromotionStatement(String),
    /// The promotion is about another model.
    #[error("the promotion bundle was made for another model: {found}, not {expected}")]
    PromotionModel {
        /// The model that it promotes.
        found: ModelDigest,
        /// The model at hand.
        expected: ModelDigest,
    },
    /// The promotion is about another OMS statement.
    #[error("the promotion bundle was made for another OMS bundle: payload {found}, not {expected}")]
    PromotionPayload {
        /// The payload that it names.
        found: OmsPayloadDigest,
        /// The payload at hand.
        expected: OmsPayloadDigest,
    },
    /// The promotion is for another ring.
    #[error("the promotion bundle was made for the ring {found:?}, and {expected:?} is demanded")]
    Ring {
        /// The ring that it allows.
        found: String,
        /// The ring demanded.
        expected: String,
    },
    /// A genuine promotion for the same model and ring, and not the one demanded.
    #[error("the promotion bundle holds another statement: {found}, and {expected} is demanded")]
    PromotionDigest {
        /// The statement at hand.
        found: PromotionDigest,
        /// The statement demanded.
        expected: PromotionDigest,
    },
}

fn name(differences: &[Difference]) -> String {
    let named: Vec<String> = differences.iter().take(NAMED).map(ToString::to_string).collect();
    let rest = differences.len().saturating_sub(NAMED);
    if rest == 0 { named.join("; ") } else { format!("{}; and {rest} more", named.join("; ")) }
}

/// Checks that `bundle` is a signature by `key` over exactly the files of `manifest`, names included. `demanded` is the
/// digest that somebody trusted named, if anybody did.
///
/// # Errors
/// The first thing that does not hold.
pub fn verify_signature(
    manifest: &Manifest,
    bundle: &[u8],
    key: &PublicKey,
    demanded: Option<ModelDigest>,
) -> Result<Signed, VerifyError> {
    let payload = bundle::open(bundle, key).map_err(VerifyError::Oms)?;
    let model = manifest.digest();
    match oms::compare(&payload, manifest).map_err(VerifyError::OmsStatement)? {
        Verdict::Different(differences) if demanded == Some(model) => {
            return Err(VerifyError::OmsModel { model, differences });
        }
        Verdict::Different(differences) => return Err(VerifyError::Files(differences)),
        Verdict::Same => {}
    }
    if let Some(expected) = demanded
        && expected != model
    {
        return Err(VerifyError::Model { found: model, expected });
    }
    Ok(Signed { model, payload: oms::payload_digest(&payload), signer: key.fingerprint() })
}

/// Checks that `bundle` is a promotion by `key` of the model that `signed` is about, into `ring`. `demanded` is the
/// digest that somebody trusted named, if anybody did.
///
/// # Errors
/// The first thing that does not hold.
pub fn verify_promotion(
    signed: &Signed,
    bundle: &[u8],
    key: &PublicKey,
    ring: &str,
    demanded: Option<PromotionDigest>,
) -> Result<Promoted, VerifyError> {
    let payload = bundle::open(bundle, key).map_err(VerifyError::Promotion)?;
    let promotion = Promotion::read(&payload).map_err(VerifyError::PromotionStatement)?;
    let digest = promotion::payload_digest(&payload);
    if promotion.model != signed.model {
        return Err(VerifyError::PromotionModel { found: promotion.model, expected: signed.model });
    }
    if promotion.reasons.oms_payload != signed.payload {
        let found = promotion.reasons.oms_payload;
        return Err(VerifyError::PromotionPayload { found, expected: signed.payload });
    }
    if promotion.reasons.ring != ring {
        return Err(VerifyError::Ring { found: promotion.reasons.ring, expected: ring.to_owned() });
    }
    match demanded {
        Some(expected) if expected != digest => Err(VerifyError::PromotionDigest { found: digest, expected }),
        _ => Ok(Promoted { promotion, digest }),
    }
}

/// Checks everything that a server demands: the key, the files, the OMS bundle, the promotion bundle, the ring.
///
/// # Errors
/// The first thing that does not hold.
pub fn verify_model(
    manifest: &Manifest,
    oms_bundle: &[u8],
    promotion_bundle: &[u8],
    key: &PublicKey,
    expected: &Expected,
) -> Result<Verified, VerifyError> {
    let found = key.fingerprint();
    if found != expected.key_fingerprint {
        return Err(VerifyError::Key { found, expected: expected.key_fingerprint });
    }
    let signed = verify_signature(manifest, oms_bundle, key, Some(expected.model_digest))?;
    let promoted = verify_promotion(&signed, promotion_bundle, key, &expected.ring, Some(expected.promotion_digest))?;
    Ok(Verified { signed, promoted })
}
