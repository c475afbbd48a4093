//! The owners of bundles: a run controls those of its model, and what serves the model keeps them beside it. I/O.

use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{Resource, ResourceExt, api::Patch};
use serde_json::json;
use tracing::debug;

use super::{Apply, ApplyError};
use crate::{
    api::merge_params,
    observe::{caught_up, caught_up_deleted, get},
};

impl Apply<'_> {
    /// Makes the object an owner of a bundle, beside the run that controls it.
    pub(super) async fn hold(&self, name: &str, owner: Option<OwnerReference>) -> Result<(), ApplyError> {
        let owned = |bundle: &ConfigMap| bundle.owner_references().iter().any(|owner| owner.uid == self.owner);
        // What does not exist is named by the status.
        let Some(bundle) = get(&self.context.stores.config_maps, &self.namespace, name).filter(|it| !owned(it)) else {
            return Ok(());
        };
        let owners = bundle.owner_references().iter().cloned().chain(owner).collect();
        self.own(&bundle, owners).await
    }

    /// Ends the ownership of a bundle beside its run. Without another owner it is deleted, as the garbage collector would.
    pub(super) async fn release(&self, name: &str) -> Result<(), ApplyError> {
        let store = &self.context.stores.config_maps;
        let Some(bundle) = get(store, &self.namespace, name) else { return Ok(()) };
        let owners: Vec<_> =
            bundle.owner_references().iter().filter(|owner| owner.uid != self.owner).cloned().collect();
        if owners.is_empty() {
            self.delete::<ConfigMap>(name, bundle.uid()).await?;
            caught_up_deleted(store, &*bundle).await;
            return Ok(());
        }
        self.own(&bundle, owners).await
    }

    /// Replaces the owners of a bundle, unless it has changed meanwhile: the garbage collector changes them, too.
    async fn own(&self, bundle: &ConfigMap, owners: Vec<OwnerReference>) -> Result<(), ApplyError> {
        if bundle.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let name = bundle.name_any();
        let metadata = json!({ "ownerReferences": owners, "resourceVersion": bundle.metadata.resource_version });
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        let patched = self.api::<ConfigMap>().patch(&name, &merge_params(), &patch).await.map_err(|source| {
            let kind = ConfigMap::kind(&()).into_owned();
            ApplyError::Client { kind, name: name.clone(), verb: "given its owners", source: Box::new(source) }
        })?;
        self.context.metrics.wrote("ConfigMap", "correct");
        debug!("changed the owners of the ConfigMap {name}");
        caught_up(&self.context.stores.config_maps, &patched.metadata).await;
        Ok(())
    }
}
