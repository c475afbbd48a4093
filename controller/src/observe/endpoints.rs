//! The EndpointSlices of a ReasoningPod's Services.

use std::{collections::BTreeSet, sync::Arc};

use codex_plan::reasoning_pod::{ForeignSlice, SERVICE_NAME, WRITTEN_BY};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, ResourceExt, api::ListParams};

use super::{cache::Name, error::ObserveError};
use crate::{context::Context, ownership::is_controlled_by};

/// The value of [`WRITTEN_BY`] in slices that the cluster copies from an Endpoints object.
const MIRRORED: &str = "endpointslicemirroring-controller.k8s.io";

/// The EndpointSlices of Services.
#[derive(Default)]
pub(super) struct Slices {
    /// Those that the controller wrote.
    pub own: Vec<EndpointSlice>,
    /// Those of others.
    pub foreign: Vec<ForeignSlice>,
}

/// Returns the EndpointSlices of these Services, and all that the owner has. With `all`, the API server is asked, because slices of others need not bear
/// the label by which the cache selects.
pub(super) async fn slices(
    context: &Context,
    namespace: &str,
    services: &[String],
    owner: &str,
    all: bool,
) -> Result<Slices, ObserveError> {
    let store = &context.stores.endpoint_slices;
    let cached = services.iter().flat_map(|name| store.naming(namespace, &Name::Service(name.clone())));
    let mut slices = Slices::default();
    let mut foreign = BTreeSet::new();
    let mut other = |slice: &EndpointSlice| {
        if slice.metadata.deletion_timestamp.is_none() && !is_controlled_by(slice, owner) {
            let mirrored = slice.labels().get(WRITTEN_BY).is_some_and(|writer| writer == MIRRORED);
            foreign.insert(ForeignSlice { name: slice.name_any(), uid: slice.uid().unwrap_or_default(), mirrored });
        }
    };
    if !all {
        cached.for_each(|slice| other(&slice));
    }
    let own = store.naming(namespace, &Name::Owner(owner.to_owned()));
    slices.own.extend(own.into_iter().map(Arc::unwrap_or_clone));
    slices.own.sort_by_key(ResourceExt::name_any);
    if all {
        let api: Api<EndpointSlice> = Api::namespaced(context.client.clone(), namespace);
        for name in services {
            let of_service = ListParams::default().labels(&format!("{SERVICE_NAME}={name}"));
            let failed =
                |source| ObserveError::Client { kind: "EndpointSlices of Service", name: name.clone(), source };
            api.list(&of_service).await.map_err(failed)?.iter().for_each(&mut other);
        }
    }
    slices.foreign = foreign.into_iter().collect();
    Ok(slices)
}
