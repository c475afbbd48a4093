//! How the number of servers follows the load. No I/O.

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerBehavior;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// The share of the requested CPU, in percent, that servers use on average, if the spec sets no target.
const CPU: i32 = 70;
/// Seconds after the last request after which the last server stops, if the spec sets none.
const IDLE_SECONDS: i32 = 300;

/// Automatic scaling: the controller creates a HorizontalPodAutoscaler for the Deployment of the servers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("self.minReplicas <= self.maxReplicas", "spec.autoscaling.minReplicas must not be above spec.autoscaling.maxReplicas: lower the one or raise the other"),
    validation = ("!has(self.idleSeconds) || self.minReplicas == 0", "spec.autoscaling.idleSeconds is the time after which the last server stops, and spec.autoscaling.minReplicas keeps servers: set minReplicas to 0, or remove idleSeconds"),
)]
pub struct Autoscaling {
    /// Least number of server pods. Defaults to 2. With 0, all servers stop once no request came for idleSeconds, an activator holds
    /// the next requests, and they start a server.
    #[serde(default = "default_min")]
    #[schemars(range(min = 0, max = 1000))]
    pub min_replicas: i32,
    /// Greatest number of server pods. Defaults to 10.
    #[serde(default = "default_max")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: i32,
    /// Seconds without a request after which the servers stop. Allowed only with minReplicas 0. Defaults to 300.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 604_800))]
    pub idle_seconds: Option<i32>,
    /// CPU that the servers should use on average, in percent of what they request, so spec.pod.resources must request CPU or
    /// limit it. Defaults to 70; with metrics and without this field, CPU has no target.
    #[serde(default, rename = "targetCPUUtilizationPercentage", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub target_cpu_utilization_percentage: Option<i32>,
    /// Targets besides CPU. The cluster must serve these metrics of pods through custom.metrics.k8s.io; the rules for Prometheus'
    /// adapter are in manifests/autoscaling. The target that asks for the most servers counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<AutoscalingMetrics>,
    /// Speed of scaling, passed to the HorizontalPodAutoscaler as it is. Defaults to that of Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behavior: Option<HorizontalPodAutoscalerBehavior>,
}

/// Targets of automatic scaling, besides CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("has(self.queueDepth) || has(self.p95Seconds)", "spec.autoscaling.metrics must set queueDepth, p95Seconds or both: set one, or remove metrics"),
)]
pub struct AutoscalingMetrics {
    /// Prompts that wait for a slot, per server pod on average: the metric codex_ml_inference_requests_waiting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub queue_depth: Option<i32>,
    /// Seconds within which a server pod completes 95 of 100 requests, on average over the pods, such as 0.7: the metric
    /// codex_ml_inference_latency_p95_seconds, which Prometheus' adapter computes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = crate::rules::seconds("spec.autoscaling.metrics.p95Seconds", "0.7"))]
    pub p95_seconds: Option<String>,
}

impl Autoscaling {
    /// Returns the target of CPU utilization in percent, if CPU has one.
    pub fn cpu(&self) -> Option<i32> {
        self.target_cpu_utilization_percentage.or_else(|| self.metrics.is_none().then_some(CPU))
    }

    /// Returns the seconds without a request after which the servers stop; `None` if they never do.
    pub fn idle_after(&self) -> Option<i32> {
        (self.min_replicas == 0).then(|| self.idle_seconds.unwrap_or(IDLE_SECONDS))
    }

    /// Returns the least number of servers while any runs.
    pub fn least(&self) -> i32 {
        self.min_replicas.max(1)
    }
}

fn default_min() -> i32 {
    2
}

fn default_max() -> i32 {
    10
}

#[cfg(test)]
mod tests {
    use super::Autoscaling;

    #[test]
    fn cpu_has_a_target_unless_only_other_metrics_are_named() {
        let of = |text: &str| serde_json::from_str::<Autoscaling>(text).unwrap();
        let all = of("{}");
        assert_eq!((all.min_replicas, all.max_replicas, all.cpu()), (2, 10, Some(70)));
        assert_eq!(of(r#"{"metrics": {"queueDepth": 4}}"#).cpu(), None);
        let both = of(r#"{"metrics": {"p95Seconds": "0.7"}, "targetCPUUtilizationPercentage": 50}"#);
        assert_eq!(both.cpu(), Some(50));
    }

    #[test]
    fn servers_stop_only_with_a_least_number_of_0() {
        let of = |text: &str| serde_json::from_str::<Autoscaling>(text).unwrap();
        let stops = |text: &str| (of(text).idle_after(), of(text).least());
        assert_eq!(stops("{}"), (None, 2));
        assert_eq!(stops(r#"{"minReplicas": 0}"#), (Some(300), 1));
        assert_eq!(stops(r#"{"minReplicas": 0, "idleSeconds": 10}"#), (Some(10), 1));
    }
}
