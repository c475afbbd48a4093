//! The configuration of an evaluation. Pure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    BASELINE, ConfigError, Data, PROBLEMS, Resolved, benchmark, data,
    error::{meant, nearest},
    keys,
    layers::{Layers, recheck},
    resolved::Spec,
};

const GROUPS: &[(&str, &str, &str)] = &[
    ("cot-hard", "evaluation/cot-hard.yaml", include_str!("../evaluation/cot-hard.yaml")),
    ("cot-lite", "evaluation/cot-lite.yaml", include_str!("../evaluation/cot-lite.yaml")),
];

/// The names of the presets.
pub const PRESETS: &[&str] = &["cot-hard", "cot-lite"];

/// The metrics that an evaluation may measure.
pub const METRICS: &[&str] = &["exact_match", WIN_RATE, "trace_coverage"];
/// The metric that compares with a baseline.
const WIN_RATE: &str = "reasoning.win_rate";

/// The configuration of an evaluator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Evaluation {
    /// The preset's name.
    pub preset: String,
    /// Seed, recorded with the results. Greedy generation does not use it.
    pub seed: u64,
    /// The settings.
    pub settings: EvaluationSettings,
    /// `problems` and, if there is one, `baseline`: the files of the preset or those that replace them.
    pub data: Vec<Data>,
}

impl Evaluation {
    /// Why a metric will not be measured, if it will not: what to change, in one sentence.
    pub fn unmeasurable(&self, metric: &str) -> Option<String> {
        if !METRICS.contains(&metric) {
            let (meant, known) = (meant(nearest(metric, METRICS).as_deref()), METRICS.join(", "));
            return Some(format!("{metric:?} is no metric{meant}: known are {known}"));
        }
        if metric != WIN_RATE || self.data.iter().any(|item| item.name == BASELINE) {
            return None;
        }
        let known = benchmark(&self.preset);
        let why = if known.iter().any(|file| file.name == BASELINE) {
            format!("the baseline of the preset {} answered other problems than these", self.preset)
        } else {
            format!("the preset {} has no baseline", self.preset)
        };
        Some(format!(
            "{WIN_RATE} compares with a baseline, and {why}: name the file of a baseline's predictions {BASELINE} in the \
             data (codex evaluate --record-baseline writes one), or leave this gate out"
        ))
    }
}

/// The settings of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvaluationSettings {
    /// How problems are answered.
    pub evaluation: Generation,
}

/// How problems are answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    /// Number of problems to answer, from the first. `None` means all.
    pub limit: Option<u64>,
    /// Number of problems that are answered in a batch.
    pub batch_size: usize,
    /// Maximum number of tokens of an answer.
    pub max_new_tokens: usize,
}

/// Composes the configuration of an evaluator: preset ← overrides. `data` replaces files of the preset by name. If it
/// replaces the problems, the baseline of the preset is left out, because it answered other problems.
///
/// # Errors
/// [`ConfigError`] names the field or key that is wrong and what to write instead.
pub fn compose_evaluation(
    preset: &str,
    overrides: &[String],
    seed: u64,
    data: Vec<Data>,
) -> Result<Resolved<Evaluation>, ConfigError> {
    let Some((_, path, text)) = GROUPS.iter().find(|(name, ..)| *name == preset) else {
        return Err(ConfigError::UnknownName {
            field: "preset",
            name: preset.to_owned(),
            nearest: nearest(preset, PRESETS),
            known: PRESETS.to_vec(),
        });
    };
    let mut layers = Layers::new(keys::EVALUATION, ("evaluation.limit=500", "evaluation: {limit: 500}"));
    layers.group(path, text)?;
    layers.overrides(overrides)?;
    check_data(&data)?;
    let mut data = data;
    let own_problems = data.iter().any(|item| item.name == PROBLEMS);
    for file in benchmark(preset) {
        let given = data.iter().any(|item| item.name == file.name);
        if !given && !own_problems {
            data.push(Data { name: file.name.to_owned(), sha256: Some(file.digest()), synthetic: None });
        }
    }
    // The problems first, in whatever order the object names them.
    data.sort_by_key(|item| item.name != PROBLEMS);
    Resolved::new(Evaluation { preset: preset.to_owned(), seed, settings: layers.finish()?, data })
}

/// Checks the data of an object.
fn check_data(data: &[Data]) -> Result<(), ConfigError> {
    data::check(data)?;
    for (index, item) in data.iter().enumerate() {
        if ![PROBLEMS, BASELINE].contains(&item.name.as_str()) {
            return Err(ConfigError::Data {
                field: format!("data[{index}].name"),
                value: format!("{:?}", item.name),
                right: format!("use {PROBLEMS} or {BASELINE}"),
            });
        }
        if item.name == BASELINE && item.synthetic.is_some() {
            return Err(ConfigError::Data {
                field: format!("data[{index}].synthetic"),
                value: format!("set for {BASELINE}"),
                right: "name the file of recorded predictions, which codex evaluate --record-baseline writes"
                    .to_owned(),
            });
        }
    }
    Ok(())
}

impl Spec for Evaluation {
    const KIND: &'static str = "Evaluation";

    fn seed(&self) -> u64 {
        self.seed
    }

    fn check(&self) -> Result<(), ConfigError> {
        recheck(keys::EVALUATION, &self.settings)?;
        check_data(&self.data)?;
        if !self.data.iter().any(|item| item.name == PROBLEMS) {
            return Err(ConfigError::Data {
                field: "data".to_owned(),
                value: "without problems".to_owned(),
                right: format!("name the file of problems {PROBLEMS}"),
            });
        }
        Ok(())
    }
}
