//! The plan of one object. Pure.

use std::{collections::BTreeSet, time::Duration};

use codex_crds::{Evaluation, ReasoningPod, TrainingRun};
use codex_provenance::{
    DataDigest, attestation::Build, manifest::Manifest, promotion::Promotion, reproduction::Reproduction,
};
use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::Job,
    core::v1::{ConfigMap, Service},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use serde::Serialize;

use crate::{
    http_route::HttpRoute,
    reasoning_pod::{CycleKind, ForeignSlice},
};

/// The plan of one object. `S` is the status of its kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan<S> {
    /// The children that exist after the plan is carried out; every other child of the object is deleted.
    pub desired: Desired,
    /// Other actions, in order. The next observation shows that they were done, so each is done once.
    pub effects: Vec<Effect>,
    /// The whole status. It is written only if it differs from the object's.
    pub status: S,
    /// Events, on transitions only. They are recorded after the status was written.
    pub events: Vec<Event>,
    /// When to plan again although nothing changed; `None` if only a change can alter the plan.
    pub requeue: Option<Duration>,
}

/// The children of an object. Apply destructures it without `..`, so that no kind of child is forgotten.
///
/// Every child but a shared policy has the object as its controller. Children that a plan leaves out are deleted.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Desired {
    /// `ConfigMaps`. They are applied before the pods that mount them.
    pub config_maps: Vec<ConfigMap>,
    /// Jobs to create or change. A Job that stays as it is is in `kept`.
    pub jobs: Vec<Job>,
    /// Deployments. One that must not restart its pods has the live template.
    pub deployments: Vec<Deployment>,
    /// Autoscalers of Deployments, which then have no number of replicas here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub horizontal_pod_autoscalers: Vec<HorizontalPodAutoscaler>,
    /// Services.
    pub services: Vec<Service>,
    /// HTTPRoutes of the Gateway API. They are applied after the Services that they name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub http_routes: Vec<HttpRoute>,
    /// The EndpointSlices of Services without a selector. They are applied before the Services.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoint_slices: Vec<EndpointSlice>,
    /// EndpointSlices of these Services that others wrote. They are deleted, with the Endpoints object that they are copied
    /// from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub foreign_slices: Vec<ForeignSlice>,
    /// Pod disruption budgets.
    pub pod_disruption_budgets: Vec<PodDisruptionBudget>,
    /// Network policies.
    pub network_policies: Vec<NetworkPolicy>,
    /// Network policies that the objects of a namespace share. They have no owner, and stay when a plan leaves them out: they are
    /// deleted once the namespace has no object that needs them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shared_policies: Vec<NetworkPolicy>,
    /// The TrainingRuns and Evaluations of cycles to create or change. Those that are left out stay as they are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub training_runs: Vec<TrainingRun>,
    /// See [`Desired::training_runs`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub evaluations: Vec<Evaluation>,
    /// The shadows of cycles to create or change. Those that are left out stay as they are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasoning_pods: Vec<ReasoningPod>,
    /// The objects of cycles to delete. They are named, because what cannot be recognized must stay: servers
    /// may serve the model.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub expired: Vec<Expired>,
    /// Children that exist and stay as they are: neither applied nor deleted.
    pub kept: Vec<Kept>,
    /// The bundles that servers mount. The object is an owner of them beside their run, so that they outlive it. A bundle that does
    /// not exist is left out.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub mounted_bundles: BTreeSet<String>,
    /// The bundles that the object owns beside their run and no longer needs. Those without another owner are deleted.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub released_bundles: BTreeSet<String>,
}

/// An object of a cycle that is deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Expired {
    /// Its kind.
    pub kind: CycleKind,
    /// Its name, in the object's namespace.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// A child that stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Kept {
    /// Its kind.
    pub kind: KeptKind,
    /// Its name, in the object's namespace.
    pub name: String,
}

/// The kinds of child that can stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum KeptKind {
    /// A ConfigMap that pods mount or have mounted.
    ConfigMap,
    /// A Job whose fields are right, or that has ended.
    Job,
    /// A Deployment whose template was modified and cannot be restored.
    Deployment,
    /// An EndpointSlice that is deleted once the cluster has written its own.
    EndpointSlice,
}

/// An action beyond the children of an object. The status of the plan is written only after every effect was carried out.
///
/// Signing gives an immutable ConfigMap. If a ConfigMap of that name exists, it is left alone and the next observation verifies it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Effect {
    /// Signs the files of a model: `oms::payload(&manifest, &name)`.
    SignModel {
        /// The ConfigMap without its `data`: `bundle.json` and `key.pem`.
        config_map: ConfigMap,
        /// The files.
        manifest: Manifest,
        /// The name of the model in the statement.
        name: String,
    },
    /// Signs a promotion, and `attestation::attestations(&promotion, &build)` beside it.
    SignPromotion {
        /// The ConfigMap without its `data`: `bundle.json`, `key.pem` and the entries of the attestations.
        config_map: ConfigMap,
        /// The statement.
        #[serde(flatten)]
        promotion: Box<Promotion>,
        /// What the provenance says about the training beyond the statement.
        build: Box<Build>,
    },
    /// Signs that a model was trained again.
    SignReproduction {
        /// The ConfigMap without its `data`: `bundle.json` and `key.pem`.
        config_map: ConfigMap,
        /// The statement.
        #[serde(flatten)]
        reproduction: Box<Reproduction>,
    },
    /// Records that a verdict has read a set of problems, in the ledger of the controller. A read that is recorded already is left
    /// alone.
    RecordRead(Read),
}

/// A read of a set of problems by a verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Read {
    /// Digest of the problems.
    pub problems: DataDigest,
    /// What makes the read the same when it is recorded again: the uid of the Evaluation.
    pub key: String,
    /// Number that the ledger gave to the read: the plan states it.
    pub number: i64,
    /// Namespace and name of the Evaluation, for people.
    pub evaluation: String,
}

/// An Event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Normal or Warning.
    #[serde(rename = "type")]
    pub type_: EventType,
    /// The reason of the condition that changed.
    pub reason: String,
    /// The type of the condition that changed.
    pub action: String,
    /// The message of the condition that changed.
    pub note: String,
}

/// The type of an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum EventType {
    /// Information.
    Normal,
    /// A problem.
    Warning,
}
