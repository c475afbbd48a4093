//! The configuration that the controller would compose from an object: it refuses unknown templates, presets and settings.

use codex_configs::{Data, compose_evaluation, compose_training};
use codex_verdict::Metric;
use serde_json::{Value, json};

use crate::document::Path;

/// Composes the configuration of an object that its CRD accepts.
pub(crate) fn check(kind: &str, object: &Value, found: &mut Vec<(Path, String)>) {
    let spec = &object["spec"];
    let path = Path::default().field("spec");
    let text = |field: &str| spec[field].as_str().unwrap_or_default();
    let overrides: Vec<String> =
        spec["overrides"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    let data = match data(spec) {
        Ok(data) => data,
        Err((field, message)) => {
            found.push((path.join(&field), message));
            return;
        }
    };
    let seed = spec["seed"].as_u64().unwrap_or(1);
    let refused = match kind {
        "TrainingRun" => compose_training(text("template"), &overrides, spec["config"].as_str(), seed, data)
            .and_then(|resolved| resolved.spec().check_base(!spec["base"].is_null())),
        "Evaluation" => compose_evaluation(text("preset"), &overrides, seed, data).map(|resolved| {
            for (index, gate) in spec["gates"].as_array().into_iter().flatten().enumerate() {
                let metric: Option<Metric> = gate["metric"].as_str().and_then(|name| name.parse().ok());
                if let Some(why) = metric.and_then(|metric| resolved.spec().unmeasurable(metric)) {
                    found.push((path.field("gates").index(index).field("metric"), why));
                }
            }
        }),
        _ => Ok(()),
    };
    if let Err(error) = refused {
        let message = error.to_string();
        let field = ["template", "preset", "config", "overrides"].into_iter().find(|field| message.starts_with(field));
        found.push((field.map_or_else(|| path.clone(), |field| path.field(field)), message));
    }
}

/// The data of an object in the form of configurations.
fn data(spec: &Value) -> Result<Vec<Data>, (Path, String)> {
    let items = spec["data"].as_array().into_iter().flatten().enumerate();
    items
        .map(|(index, item)| {
            let mut data = json!({ "name": item["name"] });
            for (field, value) in [("sha256", &item["sha256"]), ("synthetic", &item["source"]["synthetic"])] {
                if !value.is_null() {
                    data[field] = value.clone();
                }
            }
            serde_json::from_value(data)
                .map_err(|error| (Path::default().field("data").index(index), error.to_string()))
        })
        .collect()
}
