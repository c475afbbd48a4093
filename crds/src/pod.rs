//! Settings of the pods that a user may choose. No I/O.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Affinity, EnvVar, LocalObjectReference, PodResourceClaim, ResourceRequirements, Toleration},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Settings of the trainer pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrainerPod {
    /// Container image of the trainer. Defaults to the image that the controller is configured with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 500))]
    pub image: Option<String>,
    /// Environment variables of the trainer. Names that start with CODEX_ are reserved for the controller.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50), transform = without_file_key_ref)]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["name".into()]),
        validation = ("self.all(variable, !variable.name.startsWith('CODEX_'))", "pod.env[].name must not start with CODEX_, which is reserved for the controller: use another name")
    )]
    pub env: Vec<EnvVar>,
    /// Resources and placement of the pod.
    #[serde(flatten)]
    pub worker: WorkerPod,
}

/// Settings of the pod of an Evaluation or a ReasoningPod. Its image is the one that the controller is configured with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkerPod {
    /// Compute resources of the container. With a GPU, such as nvidia.com/gpu, the pod gets the CUDA image and tolerates the taint
    /// that GPU nodes usually have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(transform = bounded_quantities)]
    #[x_kube(
        validation = ("(!has(self.limits) || self.limits.all(name, isQuantity(string(self.limits[name])))) && (!has(self.requests) || self.requests.all(name, isQuantity(string(self.requests[name]))))", "pod.resources.limits and pod.resources.requests must hold quantities: write 500m, 2, 1Gi or 1G, not 1GB, 2 Gi or half"),
    )]
    pub resources: Option<ResourceRequirements>,
    /// Labels that a node must have to run the pod.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pod tolerates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Scheduling constraints of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Name of the PriorityClass of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// Name of the RuntimeClass of the pod, such as nvidia.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub runtime_class_name: Option<String>,
    /// ResourceClaims of dynamic resource allocation, which resources.claims assigns to the container. The pod gets the CUDA image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), transform = bounded_names)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub resource_claims: Vec<PodResourceClaim>,
    /// Size of /dev/shm, which is memory of the pod. Defaults to that of the container runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 64))]
    #[x_kube(
        validation = ("isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))", "pod.sharedMemory must be a quantity above 0: write 1Gi or 512Mi")
    )]
    pub shared_memory: Option<Quantity>,
    /// Ids that the processes of the pod run with. Those that are left out are the ones that the controller is configured with, or
    /// that the cluster fills in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_context: Option<Box<PodIds>>,
    /// Secrets of this namespace with credentials for pulling the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
}

/// Ids of a pod, under their names in a PodSecurityContext. The user is never root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodIds {
    /// User of the processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub run_as_user: Option<i64>,
    /// Group of the processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub run_as_group: Option<i64>,
    /// Group that owns the files of volumes which support ownership.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub fs_group: Option<i64>,
    /// Further groups of the processes, such as those that may read a shared volume.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(range(min = 0, max = 2_147_483_647)))]
    pub supplemental_groups: Vec<i64>,
}

impl WorkerPod {
    /// Returns the name of a GPU resource that the container asks for, such as `nvidia.com/gpu`.
    pub fn gpu(&self) -> Option<&str> {
        let resources = self.resources.as_ref()?;
        let lists = [&resources.limits, &resources.requests].into_iter().flatten();
        let asked = lists.flatten().filter(|(name, quantity)| name.ends_with("/gpu") && quantity.0.trim() != "0");
        asked.map(|(name, _)| name.as_str()).next()
    }

    /// Whether the pod gets a device: a GPU, or a claim of dynamic resource allocation.
    pub fn has_device(&self) -> bool {
        self.gpu().is_some() || !self.resource_claims.is_empty()
    }
}

/// Bounds the names of claims, because the API server estimates the cost of a rule from its bounds.
fn bounded_names(claims: &mut schemars::Schema) {
    for (name, longest) in [("name", 63), ("resourceClaimName", 253), ("resourceClaimTemplateName", 253)] {
        if let Some(name) = claims.pointer_mut(&format!("/items/properties/{name}")) {
            name["maxLength"] = longest.into();
        }
    }
}

/// Bounds the lists of quantities and the quantities themselves, because the API server estimates the cost of a rule from its
/// bounds.
fn bounded_quantities(resources: &mut schemars::Schema) {
    for list in ["limits", "requests"] {
        let Some(list) = resources.pointer_mut(&format!("/properties/{list}")) else { continue };
        list["maxProperties"] = 16.into();
        list["additionalProperties"]["maxLength"] = 64.into();
    }
    if let Some(claims) = resources.pointer_mut("/properties/claims") {
        claims["maxItems"] = 8.into();
        claims["items"]["properties"]["name"]["maxLength"] = 63.into();
    }
}

/// Removes `valueFrom.fileKeyRef` from the schema of `env`. It reads a file that another container of the pod has written
/// into a volume, and a trainer pod has neither such a container nor such a volume.
fn without_file_key_ref(env: &mut schemars::Schema) {
    let sources = env.pointer_mut("/items/properties/valueFrom/properties");
    if let Some(sources) = sources.and_then(serde_json::Value::as_object_mut) {
        sources.remove("fileKeyRef");
    }
}
