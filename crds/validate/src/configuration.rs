//! The configuration that the controller would compose from an object: it refuses unknown templates, presets and settings.

use codex_configs::{Data, TEMPLATES, compose_evaluation, compose_training, compose_training_from, template_digest};
use codex_verdict::{Gate, GateSpec};
use serde_json::{Value, json};

use crate::document::Path;

/// Composes the configuration of an object that its CRD accepts. Templates of one's own are looked for in `config_maps`. Gates that lack
/// power are pointed out.
pub(crate) fn check(
    kind: &str,
    object: &Value,
    config_maps: &[Value],
    found: &mut Vec<(Path, String)>,
    notices: &mut Vec<(Path, String)>,
) {
    let path = Path::default().field("spec");
    let namespace = |object: &Value| object["metadata"]["namespace"].as_str().map(str::to_owned);
    let own = namespace(object);
    let is_near = |map: &&Value| namespace(map).is_none_or(|it| own.as_ref().is_none_or(|own| *own == it));
    let maps: Vec<&Value> = config_maps.iter().filter(is_near).collect();
    let template = &object["spec"]["redeploy"]["template"];
    if kind != "ReasoningPod" || template.is_null() {
        return of_spec(kind, &object["spec"], &path, &maps, found, notices);
    }
    // A ReasoningPod creates these objects.
    let path = path.field("redeploy").field("template");
    of_spec("TrainingRun", &template["trainingRun"], &path.field("trainingRun"), &maps, found, notices);
    for (index, evaluation) in template["evaluations"].as_array().into_iter().flatten().enumerate() {
        let path = path.field("evaluations").index(index).field("spec");
        of_spec("Evaluation", &evaluation["spec"], &path, &maps, found, notices);
    }
}

/// Returns the text of the template that `spec.templateFrom` names, if its ConfigMap is there.
fn template<'a>(from: &Value, config_maps: &[&'a Value]) -> Option<&'a str> {
    let map = config_maps.iter().find(|map| map["metadata"]["name"] == from["configMap"]["name"])?;
    map["data"][from["configMap"]["key"].as_str()?].as_str()
}

fn of_spec(
    kind: &str,
    spec: &Value,
    path: &Path,
    config_maps: &[&Value],
    found: &mut Vec<(Path, String)>,
    notices: &mut Vec<(Path, String)>,
) {
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
    let from = &spec["templateFrom"];
    let refused = match kind {
        "TrainingRun" if from.is_object() => {
            if let Some(own) = template(from, config_maps) {
                let (digest, pinned) = (template_digest(own), from["sha256"].as_str().unwrap_or_default());
                if digest != pinned {
                    let why =
                        format!("the text in the ConfigMap has the digest {digest}: pin this one, or restore the text");
                    found.push((path.field("templateFrom").field("sha256"), why));
                }
                compose_training_from(text("template"), own, &overrides, spec["config"].as_str(), seed, data)
                    .and_then(|resolved| resolved.spec().check_base(!spec["base"].is_null()))
            } else {
                let name = from["configMap"]["name"].as_str().unwrap_or_default();
                let why = format!("the template is in the ConfigMap {name}, so the settings are not checked here");
                notices.push((path.field("templateFrom"), why));
                if TEMPLATES.contains(&text("template")) {
                    let why = "an included template has this name: give yours another one";
                    found.push((path.field("template"), why.to_owned()));
                }
                Ok(())
            }
        }
        "TrainingRun" => compose_training(text("template"), &overrides, spec["config"].as_str(), seed, data)
            .and_then(|resolved| resolved.spec().check_base(!spec["base"].is_null())),
        "Evaluation" => {
            let gates = gates(spec);
            let composed = compose_evaluation(text("preset"), &overrides, seed, data);
            composed.and_then(|resolved| resolved.measuring(gates.iter().map(|(_, gate)| gate.metric))).map(
                |resolved| {
                    for (index, gate) in &gates {
                        if let Some((field, why)) = resolved.spec().undecidable(gate) {
                            found.push((path.field("gates").index(*index).field(field), why));
                            continue;
                        }
                        let told = codex_verdict::notices(gate, resolved.spec().most_problems());
                        notices.extend(told.into_iter().map(|why| (path.field("gates").index(*index), why)));
                    }
                },
            )
        }
        _ => Ok(()),
    };
    if let Err(error) = refused {
        let message = error.to_string();
        let field = ["template", "preset", "config", "overrides"].into_iter().find(|field| message.starts_with(field));
        found.push((field.map_or_else(|| path.clone(), |field| path.field(field)), message));
    }
}

/// The gates of an object with their indices. Those that are invalid were refused by the rules of the CRD.
fn gates(spec: &Value) -> Vec<(usize, Gate)> {
    let each = spec["gates"].as_array().into_iter().flatten().enumerate();
    let read = |gate: &Value| Gate::try_from(&serde_json::from_value::<GateSpec>(gate.clone()).ok()?).ok();
    each.filter_map(|(index, gate)| Some((index, read(gate)?))).collect()
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
