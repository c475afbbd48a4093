//! The HTTPRoute of the Gateway API, as far as this controller writes and reads it. No I/O.
//!
//! Its types are written here because a crate with every kind of the Gateway API would be larger than the rest of the plan.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The API group.
pub const GROUP: &str = "gateway.networking.k8s.io";

/// The spec of an HTTPRoute. The API server fills in group, kind and weight where they are absent, so a plan names them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource)]
#[kube(
    group = "gateway.networking.k8s.io",
    version = "v1",
    kind = "HTTPRoute",
    plural = "httproutes",
    root = "HttpRoute",
    namespaced,
    status = "HttpRouteStatus",
    derive = "PartialEq",
    schema = "disabled",
    doc = "An HTTPRoute of the Gateway API."
)]
#[serde(rename_all = "camelCase")]
pub struct HttpRouteSpec {
    /// The Gateways.
    #[serde(default)]
    pub parent_refs: Vec<ParentReference>,
    /// The host names.
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// Which requests go where.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// A Gateway, or one of its listeners.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentReference {
    /// Its API group.
    #[serde(default = "default_group")]
    pub group: String,
    /// Its kind.
    #[serde(default = "default_kind")]
    pub kind: String,
    /// Its namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// The listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// The port of the listeners.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
}

fn default_group() -> String {
    GROUP.to_owned()
}

fn default_kind() -> String {
    "Gateway".to_owned()
}

/// A rule. Filters are planned as an empty list, so that an added one, which could divert requests, is a difference.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// The requests.
    #[serde(default)]
    pub matches: Vec<Value>,
    /// What is done with them before.
    #[serde(default)]
    pub filters: Vec<Value>,
    /// The Services that answer.
    #[serde(default)]
    pub backend_refs: Vec<BackendRef>,
}

/// A Service with its weight.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRef {
    /// Its API group: empty for a Service.
    #[serde(default)]
    pub group: String,
    /// Its kind.
    #[serde(default)]
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
    /// Its share of the requests, of the sum of all weights.
    #[serde(default = "default_weight")]
    pub weight: i32,
    /// What is done with its requests before.
    #[serde(default)]
    pub filters: Vec<Value>,
}

fn default_weight() -> i32 {
    1
}

/// What the Gateways say about a route.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRouteStatus {
    /// The answers of the implementations.
    #[serde(default)]
    pub parents: Vec<RouteParentStatus>,
}

/// What an implementation of the Gateway API says about a route and one of its Gateways.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteParentStatus {
    /// The Gateway.
    pub parent_ref: ParentReference,
    /// The implementation.
    #[serde(default)]
    pub controller_name: String,
    /// The conditions `Accepted` and `ResolvedRefs`, among others.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}
