//! Owner references: which object controls which.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};

use crate::MANAGER;

/// Returns the owner reference with `controller: true`.
pub fn controller<K: Resource>(object: &K) -> Option<&OwnerReference> {
    object.owner_references().iter().find(|owner| owner.controller == Some(true))
}

/// Returns whether the object with this uid controls `object`.
pub fn is_controlled_by<K: Resource>(object: &K, uid: &str) -> bool {
    controller(object).is_some_and(|owner| owner.uid == uid)
}

/// Returns whether the objects of a namespace share `object`: this controller made it, and no object controls it. Its content is
/// always that of the plan, so it needs no seal.
pub fn is_shared<K: Resource>(object: &K) -> bool {
    let made_by = object.labels().get("app.kubernetes.io/managed-by");
    controller(object).is_none() && made_by.is_some_and(|made_by| made_by == MANAGER)
}
