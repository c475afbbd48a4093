//! The label of the leader's pod. The Service for reports selects it, so that no report goes to a process that stands by, which is
//! ready as well.
//!
//! Each leader takes the label from all other pods and gives it to its own, before it says that it is ready. A process that lost the
//! Lease cannot do so, because the fence stops its writes; until the next leader has taken its label, it refuses reports.

use codex_crds::label;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch},
};
use serde_json::json;
use tracing::info;

use crate::{
    api::merge_params,
    error::{answered, remedy},
};

/// The value of the label.
const LEADS: &str = "true";

/// Why the pod of the leader does not bear the label.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// A request to the API server failed.
    #[error("the pods of the controller cannot be labelled with {label}: {0}{remedy}", label = label::LEADER, remedy = remedy(.0))]
    Client(#[source] kube::Error),
    /// The named pod does not exist.
    #[error(
        "there is no pod {pod} in the namespace {namespace}: --pod-name must be the name of the controller's own pod"
    )]
    Missing {
        /// The name of the pod.
        pod: String,
        /// The namespace of the controller.
        namespace: String,
    },
}

/// Takes the label from all other pods of the controller's namespace, and gives it to the pod `pod`.
///
/// # Errors
/// See [`MarkError`].
pub async fn mark(client: &Client, namespace: &str, pod: &str) -> Result<(), MarkError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let labelled = ListParams::default().labels(label::LEADER);
    for other in pods.list_metadata(&labelled).await.map_err(MarkError::Client)?.items {
        let name = other.name_any();
        if name != pod {
            match pods.patch_metadata(&name, &merge_params(), &labelling(None)).await {
                Err(failure) if !answered(&failure, 404) => return Err(MarkError::Client(failure)),
                Ok(_) | Err(_) => info!(pod = name, "reports no longer go to the pod of a former leader"),
            }
        }
    }
    match pods.patch_metadata(pod, &merge_params(), &labelling(Some(LEADS))).await {
        Ok(_) => Ok(()),
        Err(failure) if answered(&failure, 404) => {
            Err(MarkError::Missing { pod: pod.to_owned(), namespace: namespace.to_owned() })
        }
        Err(failure) => Err(MarkError::Client(failure)),
    }
}

fn labelling(value: Option<&str>) -> Patch<serde_json::Value> {
    Patch::Merge(json!({"metadata": {"labels": {label::LEADER: value}}}))
}
