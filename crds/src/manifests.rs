//! Renders the CRDs, for `manifests/crd/`. Pure.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use crate::{Evaluation, ReasoningPod, TrainingRun};

/// The three CRDs, each with the name of its file.
pub fn all() -> [(&'static str, CustomResourceDefinition); 3] {
    [
        ("trainingruns.yaml", TrainingRun::crd()),
        ("evaluations.yaml", Evaluation::crd()),
        ("reasoningpods.yaml", ReasoningPod::crd()),
    ]
}
