//! Stands in for the discovery of Kubernetes, without which Debian builds Prometheus: writes the pods of the cluster to files
//! that Prometheus follows, with the labels that the real discovery gives them. Talks to the API server.

use std::{
    fs,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use serde_json::{Map, Value, json};

use super::SCRAPE_INTERVAL;

/// A scrape job, and the namespaces in which its pods are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    name: String,
    namespaces: Vec<String>,
}

/// Replaces the discovery of Kubernetes in a configuration by files, one for each job. A job that looks into all namespaces
/// looks only into `namespace`: pods of other tests come and go.
pub(super) fn replace(configuration: &mut Value, namespace: &str) -> Vec<Job> {
    let mut jobs = Vec::new();
    for job in configuration["scrape_configs"].as_array_mut().into_iter().flatten() {
        let name = job["job_name"].as_str().unwrap_or_default().to_owned();
        let Some(discovery) = job.as_object_mut().and_then(|job| job.remove("kubernetes_sd_configs")) else { continue };
        let named = discovery[0]["namespaces"]["names"].as_array();
        let namespaces = named.map_or_else(
            || vec![namespace.to_owned()],
            |names| names.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        );
        job["file_sd_configs"] = json!([{ "files": [file(&name)], "refresh_interval": "1s" }]);
        jobs.push(Job { name, namespaces });
    }
    jobs
}

/// Returns the name of the file with the targets of a job.
fn file(job: &str) -> String {
    format!("targets-{job}.json")
}

/// Writes the targets of the jobs into `folder`, again and again, until it is aborted.
pub(super) async fn follow(cluster: Client, jobs: Vec<Job>, folder: PathBuf) {
    loop {
        for job in &jobs {
            if let Err(error) = update(&cluster, job, &folder).await {
                tracing::debug!(%error, "finding the targets of {}", job.name);
            }
        }
        tokio::time::sleep(SCRAPE_INTERVAL).await;
    }
}

async fn update(cluster: &Client, job: &Job, folder: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut groups = Vec::new();
    for namespace in &job.namespaces {
        let pods = Api::<Pod>::namespaced(cluster.clone(), namespace).list(&ListParams::default()).await?;
        groups.extend(pods.iter().flat_map(targets));
    }
    // Renamed, so that Prometheus never reads half of a file.
    let (path, new) = (folder.join(file(&job.name)), folder.join(format!("{}.new", job.name)));
    fs::write(&new, Value::from(groups).to_string())?;
    Ok(fs::rename(new, path)?)
}

/// Returns a name as Prometheus has it in labels.
fn sanitized(name: &str) -> String {
    name.chars().map(|it| if it.is_ascii_alphanumeric() { it } else { '_' }).collect()
}

/// Returns a target for each port that the containers of a pod declare, as the discovery of Kubernetes does for the role `pod`.
/// A pod without an address has none.
fn targets(pod: &Pod) -> Vec<Value> {
    let Some(status) = &pod.status else { return Vec::new() };
    let Some(address) = &status.pod_ip else { return Vec::new() };
    let mut labels = Map::new();
    let mut set = |name: &str, value: &str| labels.insert(format!("__meta_kubernetes_{name}"), json!(value));
    set("namespace", &pod.namespace().unwrap_or_default());
    set("pod_name", &pod.name_any());
    set("pod_ip", address);
    set("pod_phase", status.phase.as_deref().unwrap_or_default());
    for (name, value) in pod.labels() {
        set(&format!("pod_label_{}", sanitized(name)), value);
    }
    for (name, value) in pod.annotations() {
        set(&format!("pod_annotation_{}", sanitized(name)), value);
    }
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten().map(move |port| (container, port)));
    ports
        .map(|(container, port)| {
            let mut labels = labels.clone();
            let mut set = |name: &str, value: &str| {
                labels.insert(format!("__meta_kubernetes_pod_container_{name}"), json!(value))
            };
            set("name", &container.name);
            set("port_name", port.name.as_deref().unwrap_or_default());
            set("port_number", &port.container_port.to_string());
            json!({ "targets": [format!("{address}:{}", port.container_port)], "labels": labels })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use codex_metrics::scrape;

    use super::*;

    #[test]
    fn only_the_discovery_of_a_configuration_is_replaced() {
        let original = scrape::configuration("alerts.yaml");
        let mut configuration = original.clone();
        let jobs = replace(&mut configuration, "team");
        let job = |name: &str, namespace: &str| Job { name: name.to_owned(), namespaces: vec![namespace.to_owned()] };
        assert_eq!(
            jobs,
            [
                job(scrape::CONTROLLER, scrape::NAMESPACE),
                job(scrape::TRAINER, "team"),
                job(scrape::SERVER, "team"),
                job(scrape::ACTIVATOR, "team")
            ]
        );
        let [before, after] = [&original, &configuration].map(|it| it["scrape_configs"].as_array().unwrap());
        for (before, after) in before.iter().zip(after) {
            assert_eq!(before["relabel_configs"], after["relabel_configs"]);
            assert!(after.get("kubernetes_sd_configs").is_none() && after["file_sd_configs"].is_array());
        }
    }

    #[test]
    fn a_pod_has_a_target_for_each_port_with_the_labels_that_are_selected_by() {
        let mut pod = json!({
            "metadata": {
                "name": "a", "namespace": "team",
                "labels": { "app.kubernetes.io/part-of": "codex", "app.kubernetes.io/component": "trainer" },
                "annotations": { "prometheus.io/port": "9464" },
            },
            "spec": { "containers": [{ "name": "trainer", "ports": [{ "name": "metrics", "containerPort": 9464 }] }] },
            "status": { "podIP": "10.0.0.7", "phase": "Running" },
        });
        let found = targets(&serde_json::from_value(pod.clone()).unwrap());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0]["targets"], json!(["10.0.0.7:9464"]));
        let relabelled = scrape::configuration("alerts.yaml")["scrape_configs"][1]["relabel_configs"].clone();
        for rule in relabelled.as_array().unwrap() {
            for label in rule["source_labels"].as_array().unwrap() {
                assert!(found[0]["labels"][label.as_str().unwrap()].is_string(), "{label} is missing: {}", found[0]);
            }
        }
        pod["status"] = json!({ "phase": "Pending" });
        assert_eq!(targets(&serde_json::from_value(pod).unwrap()), Vec::<Value>::new());
    }
}
