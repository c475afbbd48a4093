//! Curricula: training in phases, and the replay of earlier ones. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    ConfigError, Data, Method, Origin, TASKS, Training, TrainingSettings, VALIDATION,
    data::is_name_of,
    error::{meant, nearest},
};

/// The curricula that are included, with the paths and texts of their files.
pub(crate) const CURRICULA: &[(&str, &str, &str)] = &[
    (
        "difficulty_curriculum",
        "curriculum/difficulty_curriculum.yaml",
        include_str!("../curriculum/difficulty_curriculum.yaml"),
    ),
    ("difficulty_scaling", "curriculum/difficulty_scaling.yaml", include_str!("../curriculum/difficulty_scaling.yaml")),
    ("first_principles", "curriculum/first_principles.yaml", include_str!("../curriculum/first_principles.yaml")),
    ("starter", "curriculum/starter.yaml", include_str!("../curriculum/starter.yaml")),
];
/// The names of curricula for `curriculum.preset`.
pub const CURRICULUM_PRESETS: &[&str] =
    &["none", "starter", "first_principles", "difficulty_curriculum", "difficulty_scaling"];
/// The values of `curriculum.phase_schedule`.
pub(crate) const SCHEDULES: &[&str] =
    &["none", "starter", "first_principles", "difficulty_curriculum", "difficulty_scaling", CUSTOM];
/// The schedule without phases.
pub(crate) const NONE: &str = "none";
/// The schedule whose phases are those of `curriculum.phases`.
pub(crate) const CUSTOM: &str = "custom";
/// The key of the phases.
pub(crate) const PHASES: &str = "curriculum.phases";
/// Maximum number of phases. The trainer has a bit for each.
pub(crate) const MAX_PHASES: usize = 32;
/// Maximum number of steps of a phase.
const MAX_STEPS: u64 = 100_000_000;
/// Maximum number of characters of a description.
const MAX_DESCRIPTION: usize = 200;

/// The difficulties of records, from the least to the greatest.
pub const DIFFICULTIES: &[&str] = &["easy", "medium", "hard", "very_hard"];

/// What a phase can be measured by.
pub const PHASE_METRICS: &[&str] = &["loss", "val_loss", "exact_match", "trace_coverage", "explanation_depth"];
/// Those of them that are measured on answers to held-out prompts.
const SAMPLED: &[&str] = &["exact_match", "trace_coverage", "explanation_depth"];
/// Those of them that are shares.
const SHARES: &[&str] = &["exact_match", "trace_coverage"];

/// Metrics of other programs' curricula, and why training does not measure them.
const ELSEWHERE: &[(&str, &str)] = &[
    ("win_rate", "it compares with a baseline, which evaluations have and training does not; use exact_match"),
    (
        "reasoning.win_rate",
        "it compares with a baseline, which evaluations have and training does not; use exact_match",
    ),
    ("latency_p95", "it depends on the machine, so that a repeated run would have other phases; servers measure it"),
    ("judge_disagreement", "there is no judge in training; use exact_match"),
    ("critique_density", "it scores the form of a text and not its correctness; use trace_coverage"),
    ("consistency", "it takes several answers to each prompt, which evaluations sample (maj_at_k); use exact_match"),
];

/// A curriculum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CurriculumSettings {
    /// The curriculum that was chosen for the run.
    pub preset: String,
    /// Where the phases come from: `none`, the name of a curriculum that is included, or `custom`.
    pub phase_schedule: String,
    /// The phases, in their order. Empty for `none`.
    pub phases: Vec<Phase>,
}

/// A phase of a curriculum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// The name, unique in the curriculum.
    pub id: String,
    /// The records that are trained on.
    #[serde(default, skip_serializing_if = "PhaseData::is_all")]
    pub dataset: PhaseData,
    /// Number of optimizer steps, at least.
    pub steps: u64,
    /// What is measured, of [`PHASE_METRICS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<String>,
    /// Values of metrics that must be reached before the next phase begins.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub min_metric_threshold: BTreeMap<String, f64>,
    /// Values of metrics that must not be exceeded when the next phase begins.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub max_metric_threshold: BTreeMap<String, f64>,
    /// Peak learning rate in this phase. `None` means `training.learning_rate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Number of examples in a forward pass. `None` means `training.batch_size`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<usize>,
    /// What the phase is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// The records of a phase: those that all of these lists select. An empty list selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseData {
    /// Names of data.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
    /// Synthetic tasks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<String>,
    /// Difficulties, of [`DIFFICULTIES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub difficulties: Vec<String>,
    /// Categories.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub categories: Vec<String>,
}

impl PhaseData {
    /// Whether all records are selected.
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// Whether records of this data may be selected.
    pub fn takes(&self, data: &Data) -> bool {
        let task = data.synthetic.as_ref().map(|synthetic| &synthetic.task);
        data.is_trained_on()
            && (self.sources.is_empty() || self.sources.contains(&data.name))
            && (self.tasks.is_empty() || task.is_some_and(|task| self.tasks.contains(task)))
    }

    /// Whether records are selected by their labels.
    pub fn is_labelled(&self) -> bool {
        !(self.difficulties.is_empty() && self.categories.is_empty())
    }

    /// Whether a record with these labels is selected, if its data is.
    pub fn selects(&self, difficulty: Option<&str>, category: Option<&str>) -> bool {
        let among = |list: &[String], label: Option<&str>| {
            list.is_empty() || label.is_some_and(|label| list.iter().any(|known| known == label))
        };
        among(&self.difficulties, difficulty) && among(&self.categories, category)
    }
}

impl Phase {
    /// Returns the metrics with a threshold, and their bounds: at least, at most.
    pub fn thresholds(&self) -> BTreeMap<&str, (Option<f64>, Option<f64>)> {
        let mut bounds: BTreeMap<&str, (Option<f64>, Option<f64>)> = BTreeMap::new();
        for (metric, least) in &self.min_metric_threshold {
            bounds.entry(metric).or_default().0 = Some(*least);
        }
        for (metric, most) in &self.max_metric_threshold {
            bounds.entry(metric).or_default().1 = Some(*most);
        }
        bounds
    }

    /// Whether one of its metrics is measured on answers to held-out prompts.
    pub fn is_sampled(&self) -> bool {
        self.metrics.iter().any(|metric| SAMPLED.contains(&metric.as_str()))
    }

    /// Whether one of its metrics is measured by evaluations alone.
    pub fn is_evaluated(&self) -> bool {
        self.metrics.iter().any(|metric| metric != "loss")
    }
}

/// Records of earlier phases that are trained on again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplaySettings {
    /// Number of examples of earlier phases that are kept.
    pub buffer: u64,
    /// Share of the records of a step that are taken from there.
    pub ratio: f64,
    /// Every how many steps of a phase records are replayed.
    pub interleave_every: u64,
    /// How kept examples are drawn.
    pub sampling: ReplaySampling,
}

/// How kept examples are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplaySampling {
    /// Every kept example equally often.
    Uniform,
    /// Every difficulty equally often.
    DifficultyBalanced,
}

/// Returns the file of an included curriculum, with its path; `None` for `none` and `custom`.
pub(crate) fn included(schedule: &str) -> Option<(&'static str, &'static str)> {
    CURRICULA.iter().find(|(name, ..)| *name == schedule).map(|(_, path, text)| (*path, *text))
}

/// Returns the error of phases beside an included curriculum.
pub(crate) fn phases_beside(schedule: &str, origin: &Origin) -> ConfigError {
    ConfigError::Conflict {
        key: PHASES,
        value: format!("set by {origin}"),
        right: format!(
            "curriculum.phase_schedule is {schedule}, which has its own phases; write curriculum.phase_schedule=custom, or leave \
             the phases out"
        ),
    }
}

/// Checks the curriculum and the replay of a run.
///
/// # Errors
/// [`ConfigError`] names the key or the phase and what to write instead.
pub(crate) fn check(run: &Training) -> Result<(), ConfigError> {
    let TrainingSettings { training, data, curriculum, .. } = &run.settings;
    let conflict = |key, value: &str, right: String| Err(ConfigError::Conflict { key, value: value.to_owned(), right });
    let CurriculumSettings { phase_schedule: schedule, phases, .. } = curriculum;
    if phases.is_empty() {
        if schedule != NONE {
            let right = "list at least one phase, or write curriculum.phase_schedule=none".to_owned();
            return conflict(PHASES, "empty", right);
        }
        if data.replay.ratio > 0.0 {
            let right = "there are no earlier phases to replay; set curriculum.phase_schedule, or write 0".to_owned();
            return conflict("data.replay.ratio", &data.replay.ratio.to_string(), right);
        }
        return Ok(());
    }
    if schedule == NONE {
        let right = "write curriculum.phase_schedule=custom to train in these phases, or leave them out".to_owned();
        return conflict(PHASES, "set", right);
    }
    let refused = match training.method {
        Method::Sft | Method::Lora | Method::Grpo => None,
        Method::Dpo => Some("dpo"),
        Method::None => Some("none"),
    };
    if let Some(method) = refused {
        let right = format!("training.method={method} has no phases; write none, or training.method=sft, lora or grpo");
        return conflict("curriculum.phase_schedule", schedule, right);
    }
    if let Some(epochs) = training.max_epochs {
        let right = "the phases of a curriculum count steps; write null, and training.max_steps".to_owned();
        return conflict("training.max_epochs", &epochs.to_string(), right);
    }
    let mut ids = BTreeSet::new();
    for (index, phase) in phases.iter().enumerate() {
        if !is_name_of(&phase.id, &['-', '_', '.']) {
            let right = "write 1 to 63 lower-case letters, digits and inner dashes, underscores and dots".to_owned();
            return Err(refuse(index, "id", format!("{:?}", phase.id), right));
        }
        if !ids.insert(&phase.id) {
            let right = "give each phase a unique id".to_owned();
            return Err(refuse(index, "id", format!("{:?}", phase.id), right));
        }
        check_phase(run, index, phase)?;
    }
    Ok(())
}

/// Returns the error of a field of a phase.
fn refuse(index: usize, field: &str, value: String, right: String) -> ConfigError {
    ConfigError::Data { field: format!("{PHASES}[{index}].{field}"), value, right }
}

fn check_phase(run: &Training, index: usize, phase: &Phase) -> Result<(), ConfigError> {
    let training = &run.settings.training;
    let refuse = |field: &str, value: String, right: String| Err(refuse(index, field, value, right));
    if !(1..=MAX_STEPS).contains(&phase.steps) {
        return refuse("steps", phase.steps.to_string(), format!("write a whole number from 1 to {MAX_STEPS}"));
    }
    check_data(run, index, phase)?;
    check_metrics(run, index, phase)?;
    if let Some(rate) = phase.learning_rate {
        if !(rate > 0.0 && rate <= 1.0) {
            return refuse("learning_rate", rate.to_string(), "write a number above 0 and at most 1".to_owned());
        }
        if training.scheduler == crate::Scheduler::Polynomial && training.scheduler_end_rate >= rate {
            let right = format!("write more than training.scheduler_end_rate ({})", training.scheduler_end_rate);
            return refuse("learning_rate", rate.to_string(), right);
        }
    }
    if let Some(batch) = phase.batch_size
        && !(1..=65_536).contains(&batch)
    {
        return refuse("batch_size", batch.to_string(), "write a whole number from 1 to 65536".to_owned());
    }
    if let Some(text) = &phase.description
        && (text.chars().count() > MAX_DESCRIPTION || text.trim().is_empty() || text.chars().any(char::is_control))
    {
        let shown = format!("{:?}", text.chars().take(60).collect::<String>());
        return refuse("description", shown, format!("write one line of 1 to {MAX_DESCRIPTION} characters"));
    }
    Ok(())
}

fn check_data(run: &Training, index: usize, phase: &Phase) -> Result<(), ConfigError> {
    let PhaseData { sources, tasks, difficulties, categories } = &phase.dataset;
    let refuse =
        |field: &str, value: String, right: String| Err(refuse(index, &format!("dataset{field}"), value, right));
    let trained: Vec<&Data> = run.data.iter().filter(|data| data.is_trained_on()).collect();
    let names = || trained.iter().map(|data| data.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(name) = sources.iter().find(|name| !trained.iter().any(|data| data.name == **name)) {
        let right = if name == VALIDATION {
            format!("validation records are not trained on; name some of {}", names())
        } else {
            format!("no data has that name; name some of {}", names())
        };
        return refuse(".sources", format!("{name:?}"), right);
    }
    for (field, list, known) in [(".tasks", tasks, TASKS), (".difficulties", difficulties, DIFFICULTIES)] {
        if let Some(word) = list.iter().find(|word| !known.contains(&word.as_str())) {
            let near = meant(nearest(word, known).as_deref());
            return refuse(field, format!("{word:?}"), format!("use some of {}{near}", known.join(", ")));
        }
    }
    if let Some(category) = categories.iter().find(|category| category.trim().is_empty()) {
        return refuse(".categories", format!("{category:?}"), "name a category of the records".to_owned());
    }
    if !trained.iter().any(|data| phase.dataset.takes(data)) {
        let right = format!("it selects none of the data, which is {}; name other sources or tasks", names());
        return refuse("", format!("of the tasks {}", tasks.join(", ")), right);
    }
    Ok(())
}

fn check_metrics(run: &Training, index: usize, phase: &Phase) -> Result<(), ConfigError> {
    let training = &run.settings.training;
    let refuse = |field: &str, value: String, right: String| Err(refuse(index, field, value, right));
    let mut seen = BTreeSet::new();
    for metric in &phase.metrics {
        if !PHASE_METRICS.contains(&metric.as_str()) {
            let elsewhere = ELSEWHERE.iter().find(|(name, _)| name == metric);
            let why = elsewhere.map_or_else(
                || format!("training does not measure it{}", meant(nearest(metric, PHASE_METRICS).as_deref())),
                |(_, why)| (*why).to_owned(),
            );
            let right = format!("{why}; the metrics of a phase are {}", PHASE_METRICS.join(", "));
            return refuse("metrics", format!("{metric:?}"), right);
        }
        if !seen.insert(metric) {
            return refuse("metrics", format!("{metric:?}"), "name each metric once".to_owned());
        }
    }
    for (field, bounds) in
        [("min_metric_threshold", &phase.min_metric_threshold), ("max_metric_threshold", &phase.max_metric_threshold)]
    {
        for (metric, bound) in bounds {
            if !phase.metrics.contains(metric) {
                let right = format!("add the metric {metric} to metrics, or remove its threshold");
                return refuse(field, format!("set for {metric:?}"), right);
            }
            if !bound.is_finite() {
                return refuse(field, format!("{metric}: {bound}"), "write a finite number".to_owned());
            }
            if SHARES.contains(&metric.as_str()) && !(0.0..=1.0).contains(bound) {
                let right = "it is a share; write a number from 0 to 1".to_owned();
                return refuse(field, format!("{metric}: {bound}"), right);
            }
        }
    }
    for (metric, bounds) in phase.thresholds() {
        if let (Some(least), Some(most)) = bounds
            && least > most
        {
            let right = format!("write at most the max_metric_threshold of {metric} ({most})");
            return refuse("min_metric_threshold", format!("{metric}: {least}"), right);
        }
    }
    if phase.is_evaluated() && training.eval_every.is_none() {
        let metric = phase.metrics.iter().find(|metric| *metric != "loss").map_or("", String::as_str);
        let right = "it is measured by evaluations only; set training.eval_every".to_owned();
        return refuse("metrics", format!("{metric:?}"), right);
    }
    if phase.is_sampled() && training.eval_samples == 0 {
        let sampled = SAMPLED.join(", ");
        let right = format!("{sampled} are measured on training.eval_samples answers; set it to more than 0");
        return refuse("metrics", format!("{:?}", phase.metrics.join(", ")), right);
    }
    Ok(())
}
