//! The result of `codex verify` as JSON. Pure.

use codex_provenance::{ModelDigest, PromotionDigest, Sha256, attestation::AttestationKind};
use schemars::JsonSchema;
use serde::Serialize;

use super::{Outcome, Steps};

/// The version of the shape.
const SCHEMA_VERSION: u32 = 1;

/// The result of `codex verify --format json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "codex verify --format json")]
pub struct Verification {
    /// The version of the shape.
    #[schemars(extend("const" = SCHEMA_VERSION))]
    pub schema_version: u32,
    /// Whether every check passed.
    pub verified: bool,
    /// Whether the signer was compared with one that was named: a fingerprint or an identity.
    pub pinned: bool,
    /// The checks in the order in which they were made. Nothing is checked after a refusal, which is the last one.
    pub checks: Vec<Checked>,
    /// What was verified; absent after a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<VerifiedModel>,
    /// The promotion; absent after a refusal, and if none was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promotion: Option<VerifiedPromotion>,
}

/// A check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Checked {
    /// What was checked.
    pub name: String,
    /// Whether it passed.
    pub passed: bool,
    /// What was found, or why it is refused.
    pub reason: String,
}

/// A model that is exactly what was signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VerifiedModel {
    /// Digest of the model.
    pub digest: ModelDigest,
    /// Number of files.
    pub files: usize,
    /// Size of all files in bytes.
    pub bytes: u64,
    /// Files that are not signed, because the signature leaves them out.
    pub skipped: Vec<String>,
    /// Who signed.
    pub signer: SignedBy,
}

/// A promotion that is valid for the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VerifiedPromotion {
    /// Ring of the promotion.
    pub ring: String,
    /// Digest of the statement.
    pub digest: PromotionDigest,
    /// Digest of the adapter beside the model; absent if the statement names none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<ModelDigest>,
    /// Who signed.
    pub signer: SignedBy,
    /// The attestations about the promotion that are valid.
    pub attestations: Vec<VerifiedAttestation>,
}

/// An attestation about a promotion that is valid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VerifiedAttestation {
    /// Its kind.
    pub kind: AttestationKind,
    /// Its predicate type.
    pub predicate_type: String,
    /// Digest of its payload.
    pub digest: Sha256,
}

/// A key or an identity that signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SignedBy {
    /// Fingerprint of the key or the identity.
    pub fingerprint: Sha256,
    /// Issuer, if an identity signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// Subject, if an identity signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
}

impl SignedBy {
    fn of(fingerprint: Sha256, identity: Option<&codex_signing::keyless::Identity>) -> Self {
        let part = |part: fn(&codex_signing::keyless::Identity) -> &String| identity.map(|it| part(it).clone());
        Self { fingerprint, issuer: part(|it| &it.issuer), subject: part(|it| &it.subject) }
    }
}

impl Verification {
    /// Returns what was found: the outcome, or why something was refused.
    pub(super) fn of(steps: &Steps, outcome: Result<&Outcome, String>) -> Self {
        let mut checks: Vec<Checked> = steps
            .0
            .iter()
            .map(|(name, reason)| Checked { name: (*name).to_owned(), passed: true, reason: reason.clone() })
            .collect();
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(reason) => {
                checks.push(Checked { name: "refused".to_owned(), passed: false, reason });
                return Self {
                    schema_version: SCHEMA_VERSION,
                    verified: false,
                    pinned: false,
                    checks,
                    model: None,
                    promotion: None,
                };
            }
        };
        let signed = &outcome.signed;
        let model = VerifiedModel {
            digest: signed.model,
            files: outcome.manifest.files.len(),
            bytes: outcome.manifest.size_bytes(),
            skipped: signed.skipped.clone(),
            signer: SignedBy::of(signed.signer, signed.identity.as_ref()),
        };
        let promotion = outcome.promoted.as_ref().map(|promoted| VerifiedPromotion {
            ring: promoted.promotion.reasons.ring.clone(),
            digest: promoted.digest,
            adapter: promoted.promotion.reasons.training.adapter,
            signer: SignedBy::of(promoted.signer, promoted.identity.as_ref()),
            attestations: outcome
                .attested
                .iter()
                .map(|it| VerifiedAttestation {
                    kind: it.kind,
                    predicate_type: it.kind.predicate_type().to_owned(),
                    digest: it.digest,
                })
                .collect(),
        });
        Self {
            schema_version: SCHEMA_VERSION,
            verified: true,
            pinned: outcome.pinned,
            checks,
            model: Some(model),
            promotion,
        }
    }
}
