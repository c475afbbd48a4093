//! What the plan of a ReasoningPod depends on. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use codex_crds::{Evaluation, ReasoningPod, ShadowStatus, SignOff, TrainingRun};
use codex_provenance::{Identity, ModelDigest, OmsPayloadDigest, PromotionDigest, Sha256, Validity, promotion};
use codex_verdict::{
    Ring,
    policy::{Lineage, Policy},
};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler, core::v1::Pod, discovery::v1::EndpointSlice,
};
use serde::{Deserialize, Serialize};

use super::{cycles::ObservedCycle, endpoints::ForeignSlice};
use crate::{
    admission::Admission,
    http_route::HttpRoute,
    obstruction::Obstruction,
    pods::{ClusterWarning, Received, RefusedPod},
    seal::StatusSeal,
    settings::Settings,
};

/// Everything that the plan of a ReasoningPod depends on, besides the time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObservedReasoningPod {
    /// The object with its status. If a cycle is served, its run and Evaluations replace those in the spec.
    pub object: ReasoningPod,
    /// The settings of the controller.
    pub settings: Arc<Settings>,
    /// The TrainingRun that `spec.trainingRun` names, if it exists in the object's namespace.
    #[serde(default)]
    pub run: Option<TrainingRun>,
    /// The Evaluations that `spec.evaluations` names, by name, as far as they exist in the object's namespace.
    #[serde(default)]
    pub evaluations: BTreeMap<String, Evaluation>,
    /// The cycles of `spec.redeploy` whose objects exist, and which this controller created, by time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cycles: Vec<ObservedCycle>,
    /// The same observation with the run and the Evaluations of the cycle that has not ended, if there is one. They replace those in
    /// the spec of the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Box<Self>>,
    /// The same observation as the candidate, in the ring before the object's: its shadow runs on a promotion into that one. `None`
    /// without `spec.redeploy.shadow`, and in the first ring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<Box<Self>>,
    /// The signer.
    pub signer: Signer,
    /// The list of trusted keys and identities, including expired ones. Where it is empty, the signer's key is the only trusted one
    /// and never expires. Of a pattern for identities, it has those that sign now or signed a bundle here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trusted: Vec<TrustedKey>,
    /// The trusted root that verifies signatures by identities, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trusted_root: Option<Arc<TrustedRoot>>,
    /// The bundle in the ConfigMap [`BundleNames::oms`](super::BundleNames::oms), verified with all listed keys.
    #[serde(default)]
    pub oms: Bundle<SignedModel>,
    /// The bundles in which the same statement was signed again, by the fingerprint of the key in their names
    /// ([`codex_crds::bundle::again`]), verified likewise. Those that do not exist are left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub oms_again: BTreeMap<Sha256, Bundle<SignedModel>>,
    /// The bundle in the ConfigMap [`BundleNames::promotion`](super::BundleNames::promotion), verified likewise.
    #[serde(default)]
    pub promotion: Bundle<SignedPromotion>,
    /// The bundles in which the same promotion was signed again, likewise.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub promotion_again: BTreeMap<Sha256, Bundle<SignedPromotion>>,
    /// The policies that apply, by kind and name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<Policy>,
    /// The SignOffs that name the object or one of its Evaluations, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sign_offs: Vec<SignOff>,
    /// The promotions of the run's model and of served models that are recorded in this namespace, verified with all listed keys.
    /// Empty if no policy applies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub promotions: Vec<RecordedPromotion>,
    /// The admission policies that authenticate sign-offs.
    #[serde(default)]
    pub admission: Admission,
    /// The Deployment `codex-s-<name>`, if it exists, the object (by uid) controls it, and its pod template is sealed by this
    /// controller.
    #[serde(default)]
    pub deployment: Option<Deployment>,
    /// Whether that Deployment exists, the object controls it, and its pod template was modified.
    #[serde(default)]
    pub tampered: bool,
    /// The HorizontalPodAutoscaler of that Deployment, if it exists and the object controls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaler: Option<HorizontalPodAutoscaler>,
    /// Whether the cluster has HTTPRoutes of the Gateway API, and the controller may list them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gateway_api: bool,
    /// The HTTPRoute `codex-s-<name>`, if it exists and the object controls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_route: Option<HttpRoute>,
    /// The Deployment's pods, in any order.
    #[serde(default)]
    pub pods: Vec<Pod>,
    /// The Deployment's pods of former templates, in any order.
    #[serde(default)]
    pub former_pods: Vec<Pod>,
    /// The Deployment `codex-c-<name>` of a canary, if it exists, the object controls it, and its pod template is sealed by this
    /// controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Deployment>,
    /// The pods of that Deployment's current template, in any order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub canary_pods: Vec<Pod>,
    /// The Deployment `codex-a-<name>` of the activator, if it exists, the object controls it, and its pod template is sealed by this
    /// controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activator: Option<Deployment>,
    /// The pods of that Deployment, of its current and former templates, in any order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub activator_pods: Vec<Pod>,
    /// The ReasoningPod that `spec.shadow.of` names, if it exists in the object's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incumbent: Option<Incumbent>,
    /// The ReasoningPods of the namespace that shadow the object, by name, without dry runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shadows: Vec<Mirrored>,
    /// The promotions that a shadow may run on, in any order. Empty without `spec.shadow`, and in the first ring.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lent: Vec<LentPromotion>,
    /// What the shadows of the namespace that serve the run's model in the object's ring have compared, by name, without the object
    /// itself: from their sealed statuses. Empty if no policy applies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compared: Vec<Compared>,
    /// The names of pods that match the selector of the Service, and that the controller did not create.
    #[serde(default)]
    pub foreign_pods: BTreeSet<String>,
    /// Why admission policies do not keep others from labelling pods in this namespace; `None` if they do.
    #[serde(default)]
    pub unprotected: Option<String>,
    /// The EndpointSlices of the Service that the controller wrote.
    #[serde(default)]
    pub endpoint_slices: Vec<EndpointSlice>,
    /// The EndpointSlices of the Service that others wrote, such as the cluster for a Service with a selector.
    #[serde(default)]
    pub foreign_slices: Vec<ForeignSlice>,
    /// The names of the ConfigMaps in the status that no longer exist.
    #[serde(default)]
    pub missing_bundles: BTreeSet<String>,
    /// The names of the bundles that the object owns beside their run.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub held_bundles: BTreeSet<String>,
    /// Those among them that hold a promotion with provenance, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub held_proofs: BTreeMap<String, HeldProof>,
    /// What the cluster says about pods that do not start.
    #[serde(default)]
    pub warnings: Vec<ClusterWarning>,
    /// The newest report of each pod, including pods that no longer exist, in any order.
    #[serde(default)]
    pub reports: Vec<Received>,
    /// Pods of the object whose reports are refused.
    #[serde(default)]
    pub refused: Vec<RefusedPod>,
    /// What the seal of the object's status says. The statuses of other objects here are without the parts that were
    /// discarded.
    #[serde(default)]
    pub seal: StatusSeal,
    /// When this process last wrote the object's status.
    #[serde(default)]
    pub status_written_at: Option<Timestamp>,
    /// What kept this reconciliation from carrying out the plan without it.
    #[serde(default)]
    pub obstruction: Option<Obstruction>,
}

/// What a shadow depends on of the ReasoningPod that it shadows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Incumbent {
    /// Digest of the model that its servers verified, from its sealed status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelDigest>,
    /// Whether its servers encrypt requests.
    #[serde(default)]
    pub tls: bool,
    /// The ReasoningPod that it shadows itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow_of: Option<String>,
    /// The uids of its pods that exist.
    #[serde(default)]
    pub pods: BTreeSet<String>,
    /// The public keys with which they sign copies of requests, from their newest reports, by the uids of pods.
    #[serde(default)]
    pub keys: BTreeMap<String, String>,
}

/// A ReasoningPod that shadows the object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mirrored {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its `spec.shadow.samplePercent`.
    pub sample_percent: i32,
}

/// What a shadow has compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Compared {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its `status.shadow`.
    pub status: ShadowStatus,
}

/// A recorded promotion of the run's model into the ring of a shadow or the one before, with the signature of the model that it
/// names: `verify::verify_promotion` accepted both, and the statement names the object's namespace. The run may be another one that made
/// the same model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LentPromotion {
    /// The ring that it promotes into.
    pub ring: Ring,
    /// When the API server created its ConfigMap.
    pub since: Timestamp,
    /// The name of its ConfigMap.
    pub bundle: String,
    /// What it states.
    pub promotion: SignedPromotion,
    /// The name of the ConfigMap with the signature of the model.
    pub oms_bundle: String,
    /// What that states.
    pub oms: SignedModel,
}

/// A promotion that is recorded in a ConfigMap: `verify::read_promotion` accepted it, and it names the object's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecordedPromotion {
    /// `Promoted::digest`.
    pub digest: PromotionDigest,
    /// The ring that it promotes into.
    pub ring: Ring,
    /// When the API server created its ConfigMap. A ConfigMap that is copied or created again has a later time.
    pub since: Timestamp,
    /// Where its model comes from.
    pub lineage: Lineage,
    /// The parity that it states.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parity: Vec<promotion::Parity>,
    /// Uid of the TrainingRun that it names.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub run: String,
    /// Uids of the sign-offs that it states.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub sign_offs: BTreeSet<String>,
}

/// A key or an identity whose signatures count within a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrustedKey {
    /// SHA-256 of the public key's PEM text, or the fingerprint of the identity.
    pub fingerprint: Sha256,
    /// When its signatures count.
    #[serde(default)]
    pub validity: Validity,
    /// The identity, if it is not a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
}

/// A promotion whose provenance proves a model, if the run is created again that trained it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeldProof {
    /// The model.
    pub model: ModelDigest,
    /// When it was recorded.
    pub since: Timestamp,
}

/// A trusted root of Sigstore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrustedRoot {
    /// SHA-256 of the text.
    pub digest: Sha256,
    /// The root, in JSON.
    pub text: String,
    /// When nothing new can be signed that it verifies; what was signed before stays valid. `None` if no end is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<Timestamp>,
}

/// The state of the signer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Signer {
    /// The signer has the private key with this fingerprint, or signs as the identity with it.
    Available {
        /// SHA-256 of the public key's PEM text, or the fingerprint of the identity.
        fingerprint: Sha256,
    },
    /// The signer has no usable private key.
    Unavailable {
        /// SHA-256 of the public key's PEM text. The public key stays pinned although the private key is unusable. `None` if no
        /// key is pinned.
        #[serde(default)]
        fingerprint: Option<Sha256>,
        /// One sentence; it never contains key material.
        reason: String,
    },
}

impl Signer {
    /// Returns the SHA-256 of the public key's PEM text: servers verify signatures with that key.
    pub(crate) fn fingerprint(&self) -> Option<Sha256> {
        match self {
            Self::Available { fingerprint } => Some(*fingerprint),
            Self::Unavailable { fingerprint, .. } => *fingerprint,
        }
    }
}

/// The bundle in a ConfigMap, verified. The keys are always the listed ones, never the one in the ConfigMap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Bundle<T> {
    /// The ConfigMap does not exist, or its name is not known yet.
    #[default]
    Absent,
    /// The bundle exists, but there is no key to verify it with.
    Unchecked,
    /// The signature is one of a listed key, whether or not that counts now; the value is what it states.
    Valid(T),
    /// Another key signed the bundle; the sentence names both fingerprints (`BundleError::AnotherKey`).
    Foreign(String),
    /// The bundle is invalid; the sentence says why.
    Invalid(String),
}

/// What a valid OMS bundle states: `verify::verify_signature` accepted it for the manifest of the run's model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SignedModel {
    /// `Signed::payload`.
    pub payload: OmsPayloadDigest,
    /// `Signed::signer`.
    pub signer: Sha256,
}

/// What a valid promotion bundle states: `verify::verify_promotion` accepted it for the signed model and the object's
/// ring, whatever its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SignedPromotion {
    /// `Promoted::digest`.
    pub digest: PromotionDigest,
    /// `Promoted::promotion.key().digest()`.
    pub key: Sha256,
    /// `Promoted::signer`.
    pub signer: Sha256,
}
