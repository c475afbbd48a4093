//! How Prometheus finds the programs: monitors of the Prometheus Operator, and a plain scrape configuration.

use serde_json::{Value, json};

/// The job of the controller.
pub const CONTROLLER: &str = "codex-controller";
/// The job of trainers.
pub const TRAINER: &str = "codex-trainer";
/// The job of servers.
pub const SERVER: &str = "codex-server";
/// The job of activators.
pub const ACTIVATOR: &str = "codex-activator";

/// The namespace that the controller is installed in.
pub const NAMESPACE: &str = "codex-system";
/// The label of the pods of this project, and its value.
pub const PART_OF: (&str, &str) = ("app.kubernetes.io/part-of", "codex");
/// The label that tells its programs apart.
pub const COMPONENT: &str = "app.kubernetes.io/component";

/// The programs that run in pods of any namespace: component, port, job.
pub const PODS: [(&str, &str, &str); 3] =
    [("trainer", "metrics", TRAINER), ("server", "admin", SERVER), ("activator", "admin", ACTIVATOR)];
/// Where servers of earlier releases have their metrics, which an upgrade of the controller does not restart: the name of the port, and
/// its number, which their annotation `prometheus.io/port` has. Later servers have neither metrics on that port nor its number there.
const EARLIER: (&str, &str) = ("http", "8000");
/// The label of a pod's annotation `prometheus.io/port`.
const SCRAPED_PORT: &str = "__meta_kubernetes_pod_annotation_prometheus_io_port";

/// The label of the phase of a pod. One that is `Pending` may have an address before its image is there, and one that has ended keeps
/// its address for a while. Neither can be scraped, and an alert would take it for a pod that is down.
const PHASE: &str = "__meta_kubernetes_pod_phase";

/// Returns the object metadata of a generated manifest.
pub fn metadata(name: &str) -> Value {
    json!({ "name": name, "namespace": NAMESPACE, "labels": { PART_OF.0: PART_OF.1 } })
}

/// Gives every series of a target the same job, whatever the name of the monitor is.
fn job(job: &str) -> Value {
    json!({ "targetLabel": "job", "replacement": job })
}

/// Returns the `ServiceMonitor` that finds the controllers, those that stand by included.
pub fn service_monitor() -> Value {
    json!({
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": metadata(CONTROLLER),
        "spec": {
            "selector": { "matchLabels": { PART_OF.0: PART_OF.1, COMPONENT: "controller" } },
            "namespaceSelector": { "matchNames": [NAMESPACE] },
            "endpoints": [{ "port": "metrics", "relabelings": [job(CONTROLLER)] }],
        },
    })
}

/// Returns the `PodMonitor`s that find trainers, servers and activators in all namespaces.
pub fn pod_monitors() -> Vec<Value> {
    let monitor = |(component, port, name): (&str, &str, &str)| {
        // The operator itself drops pods that have ended.
        let starting = json!({ "sourceLabels": [PHASE], "regex": "Pending", "action": "drop" });
        let mut endpoints = vec![json!({ "port": port, "relabelings": [starting, job(name)] })];
        if component == "server" {
            let keep = json!({ "sourceLabels": [SCRAPED_PORT], "regex": EARLIER.1, "action": "keep" });
            endpoints.push(json!({ "port": EARLIER.0, "relabelings": [keep, starting, job(name)] }));
        }
        json!({
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PodMonitor",
            "metadata": metadata(name),
            "spec": {
                "selector": { "matchLabels": { PART_OF.0: PART_OF.1, COMPONENT: component } },
                "namespaceSelector": { "any": true },
                "podMetricsEndpoints": endpoints,
            },
        })
    };
    PODS.into_iter().map(monitor).collect()
}

/// Returns the configuration of a Prometheus without its operator: it finds all pods by label and port.
pub fn configuration(rules: &str) -> Value {
    let meta = |label: &str| format!("__meta_kubernetes_pod_label_{}", label.replace(['.', '/', '-'], "_"));
    let scrape = |component: &str, port: &str, job: &str, namespaces: Option<&str>| {
        let port = match component {
            "server" => format!("({port};.*|{};{})", EARLIER.0, EARLIER.1),
            _ => format!("{port};.*"),
        };
        let mut discovery = json!({ "role": "pod" });
        if let Some(namespace) = namespaces {
            discovery["namespaces"] = json!({ "names": [namespace] });
        }
        json!({
            "job_name": job,
            "kubernetes_sd_configs": [discovery],
            "relabel_configs": [
                {
                    "source_labels": [meta(PART_OF.0), meta(COMPONENT), "__meta_kubernetes_pod_container_port_name", SCRAPED_PORT],
                    "regex": format!("{};{component};{port}", PART_OF.1),
                    "action": "keep",
                },
                { "source_labels": [PHASE], "regex": "Pending|Succeeded|Failed", "action": "drop" },
                { "source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace" },
                { "source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod" },
            ],
        })
    };
    let mut jobs = vec![scrape("controller", "health", CONTROLLER, Some(NAMESPACE))];
    jobs.extend(PODS.into_iter().map(|(component, port, job)| scrape(component, port, job, None)));
    json!({
        "global": { "scrape_interval": "15s", "evaluation_interval": "15s" },
        "rule_files": [rules],
        "scrape_configs": jobs,
    })
}
