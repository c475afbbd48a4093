//! Deployment presets: how a ReasoningPod serves its model. Pure.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    ConfigError, Environment, Origin, PRESETS, TrainingSettings, defaults::parts, error::nearest, keys, layers::Layers,
    options::DEPLOYMENT,
};

/// The presets: name, path and text of each file.
pub(crate) const GROUPS: &[(&str, &str, &str)] = &[
    ("reasoning_pod", "deploy/reasoning_pod.yaml", include_str!("../deploy/reasoning_pod.yaml")),
    ("single", "deploy/single.yaml", include_str!("../deploy/single.yaml")),
];

/// The names of the deployment presets.
pub const DEPLOYMENT_PRESETS: &[&str] = &["reasoning_pod", "single"];

/// The preset that a training run is meant for, of evaluations or of deployments. It changes nothing in the run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IntendedPreset {
    /// Its name. `None` for none in particular.
    pub preset: Option<String>,
}

impl IntendedPreset {
    /// Whether no preset is named.
    pub fn is_unset(&self) -> bool {
        self.preset.is_none()
    }
}

/// Checks that the presets exist that a training run is meant for.
///
/// # Errors
/// [`ConfigError::UnknownName`] names the key and the presets.
pub(crate) fn check_intended(settings: &TrainingSettings) -> Result<(), ConfigError> {
    let intended = [
        ("evaluation.preset", &settings.evaluation, PRESETS),
        ("deployment.preset", &settings.deployment, DEPLOYMENT_PRESETS),
    ];
    for (field, IntendedPreset { preset }, known) in intended {
        if let Some(name) = preset.as_deref().filter(|name| !known.contains(name)) {
            return Err(unknown(field, name, known));
        }
    }
    Ok(())
}

fn unknown(field: &'static str, name: &str, known: &[&'static str]) -> ConfigError {
    ConfigError::UnknownName { field, name: name.to_owned(), nearest: nearest(name, known), known: known.to_vec() }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    deployment: Deployment,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Deployment {
    dry_run: bool,
    replicas: u64,
    autoscaling: Autoscaling,
    resources: Resources,
    serving: Serving,
    shadow: Shadow,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Autoscaling {
    min_replicas: Option<u64>,
    max_replicas: u64,
    cpu_percent: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Resources {
    requests: Amounts,
    limits: Amounts,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Amounts {
    cpu: String,
    memory: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Serving {
    request_timeout_seconds: Option<u64>,
    rate_limit: Option<String>,
    max_num_seqs: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shadow {
    of: Option<String>,
    sample_percent: u64,
    max_divergence: String,
}

impl Deployment {
    /// Returns the fields of the spec that follow from these settings.
    fn spec(&self) -> Value {
        let Self { dry_run, replicas, autoscaling, resources, serving, shadow } = self;
        let amounts = |it: &Amounts| json!({ "cpu": it.cpu, "memory": it.memory });
        let mut spec = json!({
            "dryRun": dry_run,
            "pod": { "resources": { "requests": amounts(&resources.requests), "limits": amounts(&resources.limits) } },
        });
        match autoscaling.min_replicas {
            Some(least) => {
                spec["autoscaling"] = json!({
                    "minReplicas": least,
                    "maxReplicas": autoscaling.max_replicas,
                    "targetCPUUtilizationPercentage": autoscaling.cpu_percent,
                });
            }
            None => spec["replicas"] = json!(replicas),
        }
        let limits = [
            ("requestTimeoutSeconds", serving.request_timeout_seconds.map(Value::from)),
            ("rateLimit", serving.rate_limit.clone().map(Value::from)),
            ("maxNumSeqs", serving.max_num_seqs.map(Value::from)),
        ];
        for (field, value) in limits {
            if let Some(value) = value {
                spec["serving"][field] = value;
            }
        }
        if let Some(of) = &shadow.of {
            spec["shadow"] = json!({
                "of": of, "samplePercent": shadow.sample_percent, "maxDivergence": shadow.max_divergence,
            });
        }
        spec
    }
}

/// Composes the fields of a ReasoningPod's spec that a deployment preset decides: preset ← overrides. The ring, the TrainingRun and the
/// Evaluations are not among them.
///
/// # Errors
/// [`ConfigError`] names the preset or key that is wrong and what to write instead.
pub fn deployment(preset: &str, overrides: &[String]) -> Result<Value, ConfigError> {
    let found = GROUPS.iter().find(|(name, ..)| *name == preset);
    let (_, path, text) = found.ok_or_else(|| unknown("deployment.preset", preset, DEPLOYMENT_PRESETS))?;
    let example = ("deployment.replicas=3", "deployment: {replicas: 3}");
    let mut layers = Layers::new(keys::DEPLOYMENT, example, &DEPLOYMENT);
    layers.all(&parts(&DEPLOYMENT, &[(Origin::Group(path), *text)], None, overrides)?, overrides)?;
    let Settings { deployment } = layers.finish(Environment::ABSENT)?;
    let Autoscaling { min_replicas, max_replicas, .. } = deployment.autoscaling;
    match min_replicas {
        Some(least) if least > max_replicas => Err(ConfigError::Conflict {
            key: "deployment.autoscaling.min_replicas",
            value: least.to_string(),
            right: format!("write at most deployment.autoscaling.max_replicas ({max_replicas})"),
        }),
        _ => Ok(deployment.spec()),
    }
}

/// Returns the preset that decides number, size and limits of the servers of a ReasoningPod, by its spec. `None` if they are those of no
/// preset.
pub fn deployment_preset(spec: &Value) -> Option<&'static str> {
    let own = shape(spec);
    DEPLOYMENT_PRESETS.iter().copied().find(|preset| deployment(preset, &[]).is_ok_and(|spec| shape(&spec) == own))
}

/// Returns number, size and limits of the servers of a spec. Its other fields may differ between ReasoningPods of a preset.
fn shape(spec: &Value) -> Value {
    let scaling = &spec["autoscaling"];
    let replicas = match (scaling, &spec["replicas"]) {
        (Value::Null, Value::Null) => json!(1),
        (Value::Null, replicas) => replicas.clone(),
        _ => Value::Null,
    };
    json!({
        "replicas": replicas,
        "autoscaling": [scaling["minReplicas"], scaling["maxReplicas"], scaling["targetCPUUtilizationPercentage"]],
        "requests": spec["pod"]["resources"]["requests"],
        "limits": spec["pod"]["resources"]["limits"],
        "serving": [
            spec["serving"]["requestTimeoutSeconds"], spec["serving"]["rateLimit"], spec["serving"]["maxNumSeqs"],
        ],
    })
}
