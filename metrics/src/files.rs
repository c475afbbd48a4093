//! The generated files of `manifests/monitoring/`.

use serde_json::{Value, json};

use crate::{alerts, dashboard::Dashboard, dashboards, scrape};

/// The folder of a plain Prometheus and of the dashboards as JSON.
const PLAIN: &str = "plain";
const ALERTS: &str = "alerts.yaml";
/// The first line of each generated YAML file.
const HEADER: &str =
    "# Generated from metrics/: UPDATE=1 cargo test --release --locked --workspace --test monitoring\n";

/// Returns the generated files: the path below `manifests/monitoring/`, and the text.
///
/// # Errors
/// When a file cannot be written as YAML or JSON, which is a bug.
pub fn all() -> Result<Vec<(String, String)>, serde_yaml::Error> {
    let boards = dashboards::all();
    let plain = |name: &str| format!("{PLAIN}/{name}");
    let mut files = vec![
        ("kustomization.yaml".to_owned(), yaml(&[kustomization()])?),
        ("dashboards.yaml".to_owned(), yaml(&boards.iter().map(config_map).collect::<Vec<_>>())?),
        ("monitors.yaml".to_owned(), yaml(&[vec![scrape::service_monitor()], scrape::pod_monitors()].concat())?),
        ("alerts.yaml".to_owned(), yaml(&[prometheus_rule()])?),
        (plain(ALERTS), yaml(&[json!({ "groups": alerts::groups() })])?),
        (plain("alerts.test.yaml"), yaml(&[alerts::tests(ALERTS)])?),
        (plain("prometheus.yaml"), yaml(&[scrape::configuration(ALERTS)])?),
    ];
    files.extend(boards.iter().map(|board| (plain(&format!("dashboards/{}.json", board.uid)), text(board))));
    Ok(files)
}

/// Returns a dashboard as the text of a JSON file.
fn text(dashboard: &Dashboard) -> String {
    format!("{:#}\n", sorted(dashboard.json()))
}

fn config_map(dashboard: &Dashboard) -> Value {
    let mut metadata = scrape::metadata(&format!("{}-dashboard", dashboard.uid));
    // The sidecar of Grafana's Helm chart loads ConfigMaps with this label.
    metadata["labels"]["grafana_dashboard"] = json!("1");
    let file = format!("{}.json", dashboard.uid);
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": { file: text(dashboard) } })
}

fn prometheus_rule() -> Value {
    json!({
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": scrape::metadata("codex"),
        "spec": { "groups": alerts::groups() },
    })
}

fn kustomization() -> Value {
    json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["dashboards.yaml", "monitors.yaml", "alerts.yaml"],
    })
}

fn yaml(documents: &[Value]) -> Result<String, serde_yaml::Error> {
    let documents = documents
        .iter()
        .map(|document| serde_yaml::to_string(&sorted(document.clone())))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(format!("{HEADER}{}", documents.join("---\n")))
}

/// Sorts the keys of all objects, so that the text does not depend on the features of `serde_json`.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(entries) => {
            let mut entries: Vec<_> = entries.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            entries.sort_by(|(one, _), (other, _)| one.cmp(other));
            Value::Object(entries.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}
