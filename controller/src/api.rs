//! Requests to the API server that several modules make in the same way.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Resource, ResourceExt,
    api::{PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use tracing::info;

use crate::{MANAGER, error::answered};

/// Returns the parameters of a create or replace request by the controller's field manager.
pub fn post_params() -> PostParams {
    PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() }
}

/// Returns the parameters of a merge patch by the controller's field manager.
pub fn merge_params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() }
}

/// Returns `object`, created if it does not exist yet. If another process creates it first, its object is returned.
///
/// # Errors
/// When a request fails with anything but the conflict with another process.
pub async fn create_once<K>(api: &Api<K>, object: &K) -> Result<K, kube::Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned,
{
    let name = object.name_any();
    match api.create(&post_params(), object).await {
        Ok(created) => {
            info!("created the {} {name}", K::kind(&()));
            Ok(created)
        }
        Err(failure) if answered(&failure, 409) => api.get(&name).await,
        Err(failure) => Err(failure),
    }
}
