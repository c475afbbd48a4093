//! The controller's rights: those that its role grants, and those that it used. Talks to the API server.

use std::{collections::BTreeSet, path::PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    rbac::v1::{ClusterRole, PolicyRule, Role},
};
use kube::{Api, Client, ResourceExt, api::ListParams};

use crate::{
    Result,
    audit::Follower,
    install::{CONTROLLER, CONTROLLER_USER, NAMESPACE},
};

/// Returns the rights that its roles grant, such as `patch batch/jobs`.
///
/// # Errors
/// If the API server does not answer.
pub async fn granted(client: &Client) -> Result<BTreeSet<String>> {
    let cluster: Api<ClusterRole> = Api::all(client.clone());
    let own: Api<Role> = Api::namespaced(client.clone(), NAMESPACE);
    let ours = |name: &str| name.starts_with(CONTROLLER);
    let cluster = cluster.list(&ListParams::default()).await?.items;
    let own = own.list(&ListParams::default()).await?.items;
    let cluster = cluster.into_iter().filter(|role| ours(&role.name_any())).filter_map(|role| role.rules);
    let own = own.into_iter().filter(|role| ours(&role.name_any())).filter_map(|role| role.rules);
    Ok(cluster.chain(own).flatten().flat_map(|rule| rights(&rule)).collect())
}

fn rights(rule: &PolicyRule) -> Vec<String> {
    let mut rights = Vec::new();
    for group in rule.api_groups.iter().flatten() {
        for resource in rule.resources.iter().flatten() {
            rights.extend(rule.verbs.iter().map(|verb| format!("{verb} {group}/{resource}")));
        }
    }
    rights
}

/// The rights that the controller used, and those that it was denied, since the installed version runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Rights that it used.
    pub used: BTreeSet<String>,
    /// Rights that any version used at any time that the log covers.
    pub ever: BTreeSet<String>,
    /// Requests that were forbidden.
    pub forbidden: BTreeSet<String>,
}

/// Reads the audit log from the start of the installed version.
///
/// # Errors
/// If the API server does not answer or the log cannot be read.
pub async fn seen(client: &Client, audit_log: PathBuf) -> Result<Seen> {
    let since = installed_since(client).await?;
    let mut seen = Seen::default();
    for request in Follower::from_start(audit_log)?.news()? {
        if request.user.username != CONTROLLER_USER || request.object_ref.is_none() {
            continue;
        }
        let mut rights = vec![request.right()];
        // Server-side apply of a missing object needs the right to create as well as the right to patch.
        if request.is_creation() && request.verb == "patch" {
            rights.push(request.right().replacen("patch", "create", 1));
        }
        let forbidden = request.is_forbidden();
        if !forbidden {
            seen.ever.extend(rights.iter().cloned());
        }
        if request.request_received_timestamp >= since {
            if forbidden { &mut seen.forbidden } else { &mut seen.used }.extend(rights);
        }
    }
    Ok(seen)
}

/// Returns the time at which the running version was first rolled out.
async fn installed_since(client: &Client) -> Result<Timestamp> {
    let replica_sets: Api<ReplicaSet> = Api::namespaced(client.clone(), NAMESPACE);
    let sets = replica_sets.list(&ListParams::default()).await?.items;
    let runs = |set: &&ReplicaSet| {
        set.name_any().starts_with(CONTROLLER) && set.status.as_ref().is_some_and(|status| status.replicas > 0)
    };
    let newest = sets.iter().filter(runs).filter_map(ResourceExt::creation_timestamp).map(|time| time.0).max();
    Ok(newest.unwrap_or(Timestamp::UNIX_EPOCH))
}
