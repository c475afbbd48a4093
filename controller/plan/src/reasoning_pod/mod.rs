//! The plan of a ReasoningPod. Pure.

mod blocks;
mod children;
mod rollout;
mod servers;
mod stage;
mod status;

use std::{collections::BTreeMap, sync::Arc};

use codex_crds::{Evaluation, ReasoningPod, ReasoningPodStatus, TrainingRun};
use codex_provenance::{OmsPayloadDigest, PromotionDigest, Sha256};
use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use serde::{Deserialize, Serialize};

pub use rollout::{BundleNames, bundle_names, manifest};

use crate::{Plan, Received, Settings, events::events, whole_seconds};
use stage::{Stage, View};

/// Everything that the plan of a ReasoningPod depends on, besides the time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObservedReasoningPod {
    /// The object with its status.
    pub object: ReasoningPod,
    /// What the controller was started with.
    pub settings: Arc<Settings>,
    /// The TrainingRun of its namespace that `spec.trainingRun` names, if it exists.
    #[serde(default)]
    pub run: Option<TrainingRun>,
    /// The Evaluations of its namespace that `spec.evaluations` names, by name, as far as they exist.
    #[serde(default)]
    pub evaluations: BTreeMap<String, Evaluation>,
    /// The signer.
    pub signer: Signer,
    /// The ConfigMap [`BundleNames::oms`] and what the signer's public key says about it.
    #[serde(default)]
    pub oms: Bundle<SignedModel>,
    /// The ConfigMap [`BundleNames::promotion`] and what the signer's public key says about it.
    #[serde(default)]
    pub promotion: Bundle<SignedPromotion>,
    /// The Deployment `<name>-serve`, if it exists, the object (by uid) controls it, and its template is one that this
    /// controller made.
    #[serde(default)]
    pub deployment: Option<Deployment>,
    /// Whether it exists, the object controls it, and somebody changed its template.
    #[serde(default)]
    pub tampered: bool,
    /// The Deployment's pods, in any order.
    #[serde(default)]
    pub pods: Vec<Pod>,
    /// The newest report of each of its pods, also of pods that are gone, in any order.
    #[serde(default)]
    pub reports: Vec<Received>,
    /// When this controller last wrote the object's status; none when it has not since it started.
    #[serde(default)]
    pub status_written_at: Option<Timestamp>,
}

/// Whether anything can be signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Signer {
    /// Yes, by the key with this fingerprint.
    Available {
        /// SHA-256 of the public key's PEM text.
        fingerprint: Sha256,
    },
    /// No; one sentence says why.
    Unavailable {
        /// SHA-256 of the public key's PEM text: that one is pinned, whatever became of the private key.
        fingerprint: Sha256,
        /// Without the key itself, of course.
        reason: String,
    },
}

impl Signer {
    /// SHA-256 of the PEM text of the public key by which servers know what was signed.
    pub(crate) fn fingerprint(&self) -> Sha256 {
        match self {
            Self::Available { fingerprint } | Self::Unavailable { fingerprint, .. } => *fingerprint,
        }
    }
}

/// What a ConfigMap with a bundle is worth. The key is always the signer's, never the ConfigMap's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Bundle<T> {
    /// There is none (or it has no name yet).
    #[default]
    Absent,
    /// There is one, and no key to check it with.
    Unchecked,
    /// The signature holds; this is what it vouches for.
    Valid(T),
    /// It was signed by another key; one sentence names both fingerprints (`BundleError::AnotherKey`).
    Foreign(String),
    /// It holds nothing that can be relied upon; one sentence says why.
    Invalid(String),
}

/// What a valid OMS bundle vouches for: `verify::verify_signature` accepted it for the manifest of the run's model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SignedModel {
    /// `Signed::payload`.
    pub payload: OmsPayloadDigest,
}

/// What a valid promotion bundle vouches for: `verify::verify_promotion` accepted it for the signed model and the
/// object's ring, with no digest demanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SignedPromotion {
    /// `Promoted::digest`.
    pub digest: PromotionDigest,
    /// `Promoted::promotion.key().digest()`.
    pub key: Sha256,
}

/// What to do about a ReasoningPod.
pub fn plan(observed: &ObservedReasoningPod, now: Timestamp) -> Plan<ReasoningPodStatus> {
    let now = whole_seconds(now);
    let view = View::of(observed, now);
    let stage = Stage::of(&view);
    let desired = children::children(&view, &stage);
    let effects = rollout::effects(&view, &stage);
    let (status, requeue) = status::status(&view, &stage);
    let before = observed.object.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let events = events(before, &status.conditions);
    Plan { desired, effects, status, events, requeue }
}
