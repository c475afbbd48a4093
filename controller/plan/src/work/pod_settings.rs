//! The settings of a pod that may change until one has started, as a digest by which a Job is compared with its spec. Pure.

use codex_checklist::Quantity;
use codex_crds::{WorkerPod, annotation};
use codex_provenance::Sha256;
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt as _;
use serde_json::Value;

/// Returns the digest of the settings of a pod. Equal settings that are written otherwise have the same one: `100m` and `0.1`, `affinity: {}`
/// and no `affinity`. `None` if JSON cannot represent them.
pub(crate) fn digest(pod: &WorkerPod) -> Option<Sha256> {
    let mut settings = serde_json::to_value(pod).ok()?;
    for list in ["/resources/limits", "/resources/requests"] {
        let quantities = settings.pointer_mut(list).and_then(Value::as_object_mut);
        quantities.into_iter().flatten().for_each(|(_, quantity)| normalize(quantity));
    }
    settings.get_mut("sharedMemory").into_iter().for_each(normalize);
    if let Some(settings) = settings.as_object_mut() {
        settings.retain(|_, value| value.as_object().is_none_or(|fields| !fields.is_empty()));
    }
    serde_json::to_vec(&settings).ok().map(Sha256::of)
}

/// Whether a Job was created with other settings of its pods than those with this digest. A Job of a former release has no digest.
pub(crate) fn differ(job: &Job, wanted: Sha256) -> bool {
    job.annotations().get(annotation::POD_DIGEST).is_some_and(|created| *created != wanted.to_string())
}

/// Writes a quantity in the one form that all equal ones have.
fn normalize(quantity: &mut Value) {
    if let Some(same) = Quantity::of(quantity) {
        *quantity = Value::String(same.to_string());
    }
}

#[cfg(test)]
mod tests {
    use codex_crds::WorkerPod;
    use serde_json::{Value, json};

    use super::digest;

    fn of(pod: Value) -> codex_provenance::Sha256 {
        digest(&serde_json::from_value::<WorkerPod>(pod).unwrap()).unwrap()
    }

    #[test]
    fn equal_settings_have_one_digest() {
        let resources = |cpu: &str, memory: &str| json!({"resources": {"requests": {"cpu": cpu, "memory": memory}}});
        assert_eq!(of(resources("100m", "1Gi")), of(resources("0.1", "1024Mi")));
        assert_ne!(of(resources("100m", "1Gi")), of(resources("100m", "1G")));
        assert_eq!(of(json!({})), of(json!({"affinity": {}, "resources": {}, "tolerations": [], "nodeSelector": {}})));
        assert_eq!(of(json!({"sharedMemory": "1Gi"})), of(json!({"sharedMemory": "1024Mi"})));
        for other in [
            json!({"priorityClassName": "high"}),
            json!({"nodeSelector": {"a": "b"}}),
            json!({"tolerations": [{"key": "a"}]}),
            json!({"runtimeClassName": "nvidia"}),
        ] {
            assert_ne!(of(other.clone()), of(json!({})), "{other}");
        }
    }
}
