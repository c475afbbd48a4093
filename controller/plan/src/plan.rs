//! The shape of a plan. Pure.

use std::time::Duration;

use codex_provenance::{ModelDigest, manifest::Manifest, promotion::Reasons};
use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::Job,
    core::v1::{ConfigMap, Service},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use serde::Serialize;

/// What to do about one object. `S` is the status of its kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan<S> {
    /// The children that exist once the plan is carried out; every other child of the object is removed.
    pub desired: Desired,
    /// What has to happen besides, in this order. Each is done once: the next observation says that it was.
    pub effects: Vec<Effect>,
    /// The whole status. It is written only where it differs from the object's.
    pub status: S,
    /// What to tell whoever watches, on transitions only. They are recorded once the status was written.
    pub events: Vec<Event>,
    /// When to look again although nothing changed; none when only a change can bring news.
    pub requeue: Option<Duration>,
}

/// The children of an object, complete: apply destructures it without `..`.
///
/// Every child carries the object as its controller. What a plan leaves out is removed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Desired {
    /// To be applied before whatever mounts them.
    pub config_maps: Vec<ConfigMap>,
    /// Jobs that have to be made or changed. A Job that is right as it is stands in `kept`.
    pub jobs: Vec<Job>,
    /// Deployments, each with the template that is to run; a template that must not roll is the live one.
    pub deployments: Vec<Deployment>,
    /// Services.
    pub services: Vec<Service>,
    /// Budgets of voluntary disruptions.
    pub pod_disruption_budgets: Vec<PodDisruptionBudget>,
    /// Network policies.
    pub network_policies: Vec<NetworkPolicy>,
    /// Children that exist and stay as they are: neither applied nor removed.
    pub kept: Vec<Kept>,
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
    /// A configuration that is mounted, or was.
    ConfigMap,
    /// Work that goes on, or is done.
    Job,
    /// Servers that somebody changed and nobody can put right.
    Deployment,
}

/// What the signer has to do. The result is an immutable ConfigMap; one that exists under that name already is left
/// alone, and the next observation says what it is worth.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Effect {
    /// Sign the files of a model: `oms::payload(&manifest, &name)`.
    SignModel {
        /// Everything of the ConfigMap but its `data`: `bundle.json` and `key.pem`.
        config_map: ConfigMap,
        /// The files.
        manifest: Manifest,
        /// What the statement calls the model.
        name: String,
    },
    /// Sign a promotion: `Promotion { model, reasons }.payload()`.
    SignPromotion {
        /// Everything of the ConfigMap but its `data`: `bundle.json` and `key.pem`.
        config_map: ConfigMap,
        /// The model.
        model: ModelDigest,
        /// Why it may be served, and where.
        reasons: Reasons,
    },
}

/// Something that a person may want to hear once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Whether somebody should worry.
    #[serde(rename = "type")]
    pub type_: EventType,
    /// The reason of the condition that changed.
    pub reason: String,
    /// What the controller was doing, in CamelCase: the type of the condition that changed.
    pub action: String,
    /// The message of the condition that changed.
    pub note: String,
}

/// Whether somebody should worry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum EventType {
    /// No.
    Normal,
    /// Yes.
    Warning,
}
