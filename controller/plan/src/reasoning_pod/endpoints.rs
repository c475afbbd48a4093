//! The EndpointSlices that the controller writes itself. Pure.
//!
//! A Service with a selector answers for every pod that bears the labels. Admission policies keep others from setting these
//! labels. Without the policies the Service has no selector, and its EndpointSlices list only verified servers.

use std::collections::BTreeMap;

use codex_crds::child;
use k8s_openapi::{
    api::{
        core::v1::ObjectReference,
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

use super::{
    canary,
    children::{PORT, encrypted, scheme},
    idle, route,
    servers::Servers,
    stage::Stage,
    view::View,
};
use crate::{
    metadata::Component,
    plan::{Kept, KeptKind},
    pods::Facts,
};

/// The label that names the Service of an EndpointSlice.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label that names the writer of an EndpointSlice.
pub const WRITTEN_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// The value of [`WRITTEN_BY`] in the slices of this controller.
pub const WRITER: &str = "codex-controller";
/// The most endpoints of a slice, a limit of the API.
const MAX_ENDPOINTS: usize = 1_000;

/// An EndpointSlice of the Service that another client wrote.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ForeignSlice {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Whether the cluster copies it from the Endpoints object of the Service.
    #[serde(default)]
    pub mirrored: bool,
}

/// Returns the slices to write: one for each address family, with at most 1,000 servers each.
pub(crate) fn slices(view: &View<'_>, stage: &Stage) -> Vec<EndpointSlice> {
    if view.observed.unprotected.is_none() {
        return Vec::new();
    }
    let recorded: Vec<&str> = view
        .observed
        .endpoint_slices
        .iter()
        .flat_map(|slice| &slice.endpoints)
        .filter_map(|endpoint| endpoint.target_ref.as_ref()?.uid.as_deref())
        .collect();
    let held = view.status.verified.as_ref();
    let alone = canary::answers_alone(view, stage);
    let servers = view.servers.iter().filter(|_| !alone).map(|servers| servers.verified_pods(&recorded, held));
    let servers: Vec<_> = servers.flatten().collect();
    let held = view.status.rollout.as_ref().and_then(|rollout| rollout.verified.as_ref());
    let canary =
        view.canary.iter().filter(|_| canary::answers(view, stage)).map(|canary| canary.verified_pods(&recorded, held));
    let canary: Vec<_> = canary.flatten().collect();
    let (service, prefix) = (view.owner.name.clone(), child::server(&view.owner.name));
    let named = child::canary(&view.owner.name);
    let of_canary = if canary::is_named(view) { of_service(view, &named, &named, &canary) } else { Vec::new() };
    let Some(_) = route::gateway(view) else {
        let all: Vec<_> = servers.into_iter().chain(canary).collect();
        if !idle::stops(view) {
            return of_service(view, &service, &prefix, &all).into_iter().chain(of_canary).collect();
        }
        let own = child::activator(&view.owner.name);
        let mut slices = of_service(view, &own, &own, &all);
        let activators: Vec<_> = view.activator.iter().flat_map(Servers::ready).collect();
        slices.extend(of_service(view, &service, &prefix, if idle::holds(view) { &activators } else { &all }));
        return slices;
    };
    let apart = canary::answers_apart(view, stage);
    let all: Vec<_> = servers.into_iter().chain(canary.into_iter().filter(|_| !apart)).collect();
    of_service(view, &service, &prefix, &all).into_iter().chain(of_canary).collect()
}

/// Returns the slices of a Service that answers with these servers.
fn of_service(view: &View<'_>, service: &str, prefix: &str, servers: &[&Facts<'_>]) -> Vec<EndpointSlice> {
    let mut slices = Vec::new();
    for (family, suffix) in [("IPv4", "ipv4"), ("IPv6", "ipv6")] {
        let endpoints: Vec<_> = servers.iter().filter_map(|facts| endpoint(facts, family)).collect();
        for (index, endpoints) in endpoints.chunks(MAX_ENDPOINTS).enumerate() {
            let number = if index == 0 { String::new() } else { format!("-{index}") };
            let name = format!("{prefix}-{suffix}{number}");
            slices.push(slice(view, service, name, family, endpoints.to_vec()));
        }
    }
    slices
}

/// Returns the slices that stay as they are. Once the selector is back, the Service would have no endpoints until the cluster has
/// written its own slices. While a modified template is being restored, its pods are not observed.
pub(crate) fn kept(view: &View<'_>) -> Vec<Kept> {
    let observed = view.observed;
    let stays = match &observed.unprotected {
        None => observed.foreign_slices.is_empty(),
        Some(_) => view.servers.is_none() && view.former.is_some(),
    };
    if !stays {
        return Vec::new();
    }
    let kept = |slice: &EndpointSlice| Kept { kind: KeptKind::EndpointSlice, name: slice.name_any() };
    observed.endpoint_slices.iter().map(kept).collect()
}

/// Returns the slices of other writers, which go where the controller writes the endpoints itself.
pub(crate) fn foreign(view: &View<'_>) -> Vec<ForeignSlice> {
    if view.observed.unprotected.is_some() { view.observed.foreign_slices.clone() } else { Vec::new() }
}

fn slice(view: &View<'_>, service: &str, name: String, family: &str, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let mut metadata: ObjectMeta = view.owner.child(name, Component::Server, &view.observed.settings.version);
    let labels = [(SERVICE_NAME, service), (WRITTEN_BY, WRITER)];
    let labels: BTreeMap<_, _> = labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    metadata.labels.get_or_insert_default().extend(labels);
    EndpointSlice {
        metadata,
        address_type: family.to_owned(),
        endpoints,
        ports: Some(vec![EndpointPort {
            name: Some(scheme(view).to_owned()),
            port: Some(PORT),
            protocol: Some("TCP".to_owned()),
            app_protocol: encrypted(view),
        }]),
    }
}

/// Returns the endpoint of a server; `None` if its pod has no address of this family.
fn endpoint(facts: &Facts<'_>, family: &str) -> Option<Endpoint> {
    let address = facts.addresses().find(|address| address.contains(':') == (family == "IPv6"))?;
    let terminating = facts.pod.metadata.deletion_timestamp.is_some();
    Some(Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(!terminating),
            serving: Some(true),
            terminating: Some(terminating),
        }),
        node_name: facts.pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            name: Some(facts.name()),
            namespace: facts.pod.namespace(),
            uid: Some(facts.uid().to_owned()),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    })
}
