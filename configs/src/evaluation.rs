//! The configuration of an evaluation. Pure.

use codex_verdict::{Gate, MAX_REFERENCES, Metric};
use regex::{Regex, RegexBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    BASELINE, ConfigError, Data, Environment, Explained, Located, Origin, PLUGIN_METRIC, PROBLEMS, REFERENCE, Resolved,
    Sources, benchmark, benchmark_file, data,
    defaults::parts,
    error::nearest,
    explained::explain,
    keys,
    layers::{Layers, recheck},
    options::EVALUATION,
    resolved::Spec,
};

/// The most bytes of a compiled regular expression.
const MAX_REGEX: usize = 1 << 20;

pub(crate) const GROUPS: &[(&str, &str, &str)] = &[
    ("base", "evaluation/base.yaml", include_str!("../evaluation/base.yaml")),
    ("cot-hard", "evaluation/cot-hard.yaml", include_str!("../evaluation/cot-hard.yaml")),
    ("cot-lite", "evaluation/cot-lite.yaml", include_str!("../evaluation/cot-lite.yaml")),
    ("gym-chain-sum", "evaluation/gym-chain-sum.yaml", include_str!("../evaluation/gym-chain-sum.yaml")),
    ("gym-gsm-symbolic", "evaluation/gym-gsm-symbolic.yaml", include_str!("../evaluation/gym-gsm-symbolic.yaml")),
    ("gym-products", "evaluation/gym-products.yaml", include_str!("../evaluation/gym-products.yaml")),
    ("math", "evaluation/math.yaml", include_str!("../evaluation/math.yaml")),
    ("tools", "evaluation/tools.yaml", include_str!("../evaluation/tools.yaml")),
];

/// The names of the presets.
pub const PRESETS: &[&str] =
    &["base", "cot-hard", "cot-lite", "gym-chain-sum", "gym-gsm-symbolic", "gym-products", "math", "tools"];

/// The configuration of an evaluator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Evaluation {
    /// The preset's name.
    pub preset: String,
    /// Seed of bootstrapped bounds and of sampled answers, recorded with the results.
    pub seed: u64,
    /// The settings.
    pub settings: EvaluationSettings,
    /// `problems` and, if there is one, `baseline`: the files of the preset or those that replace them. `reference-<name>` for
    /// the outcomes of each Evaluation that gates compare with.
    pub data: Vec<Data>,
}

impl Evaluation {
    /// Returns the field of a gate that this evaluation cannot decide, and why and what to change, in one sentence.
    pub fn undecidable(&self, gate: &Gate) -> Option<(&'static str, String)> {
        if let Some(why) = self.unmeasurable(gate.metric) {
            return Some(("metric", why));
        }
        let (metric, own) = (gate.metric, self.settings.evaluation.confidence);
        let other =
            gate.confidence.filter(|confidence| metric.is_of_corpus() && confidence.to_bits() != own.to_bits())?;
        let why = format!(
            "the gate on {metric} has confidence {other}, but its bounds are computed with evaluation.confidence {own}: use the \
             same one, such as by evaluation.confidence={other}"
        );
        Some(("confidence", why))
    }

    /// Returns the most problems that are asked, if the configuration tells it.
    pub fn most_problems(&self) -> Option<u64> {
        let problems = self.data.iter().find(|item| item.name == PROBLEMS)?;
        let known = problems
            .synthetic
            .as_ref()
            .map(|synthetic| synthetic.count)
            .or_else(|| Some(benchmark_file(&self.preset, problems.sha256?)?.records));
        match (known, self.settings.evaluation.limit) {
            (Some(known), Some(limit)) => Some(known.min(limit)),
            (known, limit) => known.or(limit),
        }
    }

    /// Returns whether a metric is measured if the data allow it.
    pub fn measures(&self, metric: Metric) -> bool {
        let asked = self.settings.evaluation.metrics.iter().flatten();
        !metric.is_on_demand() || asked.copied().any(|one| one.metric() == metric)
    }

    /// Returns the first measured metric for which the reference responses are fed to the model; `None` if none is.
    pub fn feeding_references(&self) -> Option<Metric> {
        OnDemand::ALL.into_iter().map(OnDemand::metric).find(|it| it.feeds_references() && self.measures(*it))
    }

    /// Returns why a metric will not be measured, and what to change, in one sentence. `None` if it will be.
    fn unmeasurable(&self, metric: Metric) -> Option<String> {
        if !self.measures(metric) {
            return Some(format!("{metric} is not measured: add it to evaluation.metrics"));
        }
        if metric == Metric::Plugin && !self.data.iter().any(|item| item.name == PLUGIN_METRIC) {
            return Some(format!(
                "{metric} is what a plugin of yours measures: add its file to the data under the name {PLUGIN_METRIC}, or remove this gate"
            ));
        }
        if metric.needs_samples() && self.settings.evaluation.samples < 2 {
            return Some(format!(
                "{metric} needs several answers to each problem: set evaluation.samples and evaluation.temperature, such as \
                 evaluation.samples=8 and evaluation.temperature=0.8"
            ));
        }
        if !metric.needs_baseline() || self.data.iter().any(|item| item.name == BASELINE) {
            return None;
        }
        let of_preset = benchmark(&self.preset);
        let why = if of_preset.iter().any(|file| file.name == BASELINE) {
            format!("the baseline of the preset {} answered other problems than these", self.preset)
        } else {
            format!("the preset {} has no baseline", self.preset)
        };
        Some(format!(
            "{metric} needs a baseline, and {why}: add a file of a baseline's predictions to the data under the name \
             {BASELINE} (codex evaluate --record-baseline writes one), or remove this gate"
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
    /// Number of answers to each problem.
    pub samples: usize,
    /// The k of `pass_at_k`. `None` means `samples`.
    pub k: Option<usize>,
    /// Divides the logits. 0 takes the most likely token.
    pub temperature: f64,
    /// Keeps the smallest set of most likely tokens whose probabilities add up to this.
    pub top_p: f64,
    /// Keeps this many of the most likely tokens. `None` keeps all.
    pub top_k: Option<usize>,
    /// Texts that end an answer, and are not part of it.
    #[serde(default)]
    pub stop: Vec<String>,
    /// How a problem becomes a prompt.
    pub prompt: PromptForm,
    /// What is compared of a response.
    pub answer: AnswerForm,
    /// The text before an answer, for [`AnswerForm::After`].
    pub after: Option<String>,
    /// The regular expression of an answer, for [`AnswerForm::Regex`].
    pub pattern: Option<String>,
    /// The number of letters to choose from, for [`AnswerForm::Choice`].
    pub choices: u64,
    /// Where the right answer is.
    pub reference: ReferenceForm,
    /// How two answers are compared.
    pub compare: Compare,
    /// How far two numbers may differ, for [`Compare::Numeric`].
    pub tolerance: f64,
    /// The metrics that are measured beside those that are always. `None` means none.
    pub metrics: Option<Vec<OnDemand>>,
    /// One-sided confidence of the bounds of BLEU, perplexity and the lowest trace coverage.
    pub confidence: f64,
}

/// A metric that is measured where something asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDemand {
    /// Lowest coverage of the reference's steps in any category.
    LowestTraceCoverage,
    /// F1 of the words of the answer.
    TokenF1,
    /// ROUGE-L of the answer.
    RougeL,
    /// Different words of the response.
    #[serde(rename = "distinct_1")]
    Distinct1,
    /// Different pairs of words of the response.
    #[serde(rename = "distinct_2")]
    Distinct2,
    /// Tokens of the reference responses that the model would choose. Costs as much time as answering.
    TokenAccuracy,
    /// BLEU of all answers.
    Bleu,
    /// Perplexity of the reference responses. Costs as much time as answering.
    Perplexity,
}

impl OnDemand {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::LowestTraceCoverage,
        Self::TokenF1,
        Self::RougeL,
        Self::Distinct1,
        Self::Distinct2,
        Self::TokenAccuracy,
        Self::Bleu,
        Self::Perplexity,
    ];

    /// Returns the metric.
    pub const fn metric(self) -> Metric {
        match self {
            Self::LowestTraceCoverage => Metric::LowestTraceCoverage,
            Self::TokenF1 => Metric::TokenF1,
            Self::RougeL => Metric::RougeL,
            Self::Distinct1 => Metric::Distinct1,
            Self::Distinct2 => Metric::Distinct2,
            Self::TokenAccuracy => Metric::TokenAccuracy,
            Self::Bleu => Metric::Bleu,
            Self::Perplexity => Metric::Perplexity,
        }
    }
}

impl Generation {
    /// Returns the regular expression of [`AnswerForm::Regex`]; `None` for other forms.
    ///
    /// # Errors
    /// [`ConfigError`] if it is missing or malformed.
    pub fn regex(&self) -> Result<Option<Regex>, ConfigError> {
        regex("evaluation", self.answer, self.pattern.as_deref())
    }

    /// Returns the settings that decide the outcome of a problem; those of others, such as the size of batches, have one value.
    #[must_use]
    pub fn deciding(&self) -> Self {
        Self { batch_size: 0, metrics: None, confidence: 0.0, ..self.clone() }
    }

    /// Checks the settings that depend on each other.
    fn check(&self) -> Result<(), ConfigError> {
        let refuse =
            |key, value: String, right: &str| Err(ConfigError::Conflict { key, value, right: right.to_owned() });
        if self.samples > 1 && self.temperature <= 0.0 {
            let right = "at evaluation.temperature 0 all answers to a problem are the same; write 1, or a temperature such as 0.8";
            return refuse("evaluation.samples", self.samples.to_string(), right);
        }
        if let Some(k) = self.k.filter(|k| *k > self.samples) {
            return refuse("evaluation.k", k.to_string(), "write at most evaluation.samples");
        }
        if self.temperature <= 0.0 && (self.top_p < 1.0 || self.top_k.is_some()) {
            let (key, value) = match self.top_k {
                Some(top_k) => ("evaluation.top_k", top_k.to_string()),
                None => ("evaluation.top_p", self.top_p.to_string()),
            };
            return refuse(
                key,
                value,
                "at evaluation.temperature 0 it has no effect; leave it out, or write a temperature such as 0.8",
            );
        }
        check_answer("evaluation", self.answer, self.after.as_deref(), self.pattern.as_deref())
    }

    /// Returns the k of `pass_at_k`.
    pub fn k(&self) -> usize {
        self.k.unwrap_or(self.samples)
    }
}

/// Returns the regular expression of [`AnswerForm::Regex`]; `None` for other forms. `section` is the key of the settings.
///
/// # Errors
/// [`ConfigError`] if it is missing or malformed.
pub(crate) fn regex(section: &str, answer: AnswerForm, pattern: Option<&str>) -> Result<Option<Regex>, ConfigError> {
    let Some(pattern) = checked_pattern(section, answer, pattern)? else { return Ok(None) };
    RegexBuilder::new(pattern).size_limit(MAX_REGEX).build().map(Some).map_err(|_| ConfigError::Data {
        field: format!("{section}.pattern"),
        value: format!("{pattern:?}"),
        right: "write a shorter regular expression: compiled, this one has more than 1 MiB".to_owned(),
    })
}

/// Checks the syntax of the regular expression of [`AnswerForm::Regex`] and returns it; `None` for other forms. Only its parser is
/// needed, so that programs without evaluations, such as the controller, do without the rest; how large it is when compiled is checked where
/// it is used.
fn checked_pattern<'a>(
    section: &str,
    answer: AnswerForm,
    pattern: Option<&'a str>,
) -> Result<Option<&'a str>, ConfigError> {
    let (AnswerForm::Regex, pattern) = (answer, pattern) else { return Ok(None) };
    let Some(pattern) = pattern else {
        return Err(ConfigError::Data {
            field: format!("{section}.pattern"),
            value: "null".to_owned(),
            right: format!("write a regular expression, because {section}.answer is regex"),
        });
    };
    regex_syntax::parse(pattern).map(|_| Some(pattern)).map_err(|_| ConfigError::Data {
        field: format!("{section}.pattern"),
        value: format!("{pattern:?}"),
        right: "write a regular expression without look-around, such as \"answer is (-?[0-9]+)\"".to_owned(),
    })
}

/// Checks the settings that say where an answer is. `section` is their key.
///
/// # Errors
/// [`ConfigError`] names the key and what to write instead.
pub(crate) fn check_answer(
    section: &str,
    answer: AnswerForm,
    after: Option<&str>,
    pattern: Option<&str>,
) -> Result<(), ConfigError> {
    if answer == AnswerForm::After && after.is_none() {
        return Err(ConfigError::Data {
            field: format!("{section}.after"),
            value: "null".to_owned(),
            right: format!("write the text before an answer, because {section}.answer is after"),
        });
    }
    checked_pattern(section, answer, pattern).map(drop)
}

/// How a problem becomes a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PromptForm {
    /// As a user's message by the chat template of the model, and as it is if the model has none.
    Auto,
    /// As it is.
    Plain,
    /// As a user's message by the chat template of the model, which must have one.
    Chat,
}

/// What is compared of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AnswerForm {
    /// The text between the last `#` and the final `$`.
    Marked,
    /// The last number, by its value: 7, 7.0 and +07 are equal.
    LastNumber,
    /// The text after the last marker, up to the end of its line.
    After,
    /// The last match of a regular expression, or its first group.
    Regex,
    /// The last letter that stands alone, from A.
    Choice,
    /// All of it.
    Whole,
}

/// Where the right answer is in a reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceForm {
    /// Where it is in a response.
    Same,
    /// The reference is the answer.
    Whole,
}

/// How two answers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compare {
    /// They are the same text.
    Exact,
    /// Their last numbers differ by a tolerance at most.
    Numeric,
    /// Their parts between commas, semicolons and line feeds are the same set.
    Set,
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
    let mut layers = layers();
    layers.all(&parts(&EVALUATION, &[group(preset)?], None, overrides)?, overrides)?;
    resolve(preset, seed, layers.finish(Environment::ABSENT)?, data)
}

/// Composes the configuration of an evaluator with the origin of each value, as [`compose_evaluation`] does; a file of settings may
/// stand between preset and overrides.
///
/// # Errors
/// [`Located`] names the field or key that is wrong, what to write instead, and the line.
pub fn explain_evaluation(sources: &Sources<'_>, seed: u64, data: Vec<Data>) -> Result<Explained<Evaluation>, Located> {
    let preset = sources.group.unwrap_or_default();
    let group = group(preset).map_err(Located::nowhere)?;
    let parts = parts(&EVALUATION, &[group], sources.config, sources.overrides);
    let parts = parts.map_err(|error| Located::chosen(error, sources))?;
    explain(layers(), &parts, sources, |layers| resolve(preset, seed, layers.finish(sources.environment)?, data))
}

/// Returns the file of the preset of this name, with its text.
fn group(preset: &str) -> Result<(Origin, &'static str), ConfigError> {
    let found = GROUPS.iter().find(|(name, ..)| *name == preset).map(|(_, path, text)| (Origin::Group(path), *text));
    found.ok_or_else(|| ConfigError::UnknownName {
        field: "preset",
        name: preset.to_owned(),
        nearest: nearest(preset, PRESETS),
        known: PRESETS.to_vec(),
    })
}

fn layers() -> Layers {
    Layers::new(keys::EVALUATION, ("evaluation.limit=500", "evaluation: {limit: 500}"), &EVALUATION)
}

fn resolve(
    preset: &str,
    seed: u64,
    settings: EvaluationSettings,
    mut data: Vec<Data>,
) -> Result<Resolved<Evaluation>, ConfigError> {
    check_data(&data)?;
    let own_problems = data.iter().any(|item| item.name == PROBLEMS);
    for file in benchmark(preset) {
        let given = data.iter().any(|item| item.name == file.name);
        if !given && !own_problems {
            data.push(Data { name: file.name.to_owned(), sha256: Some(file.digest()), synthetic: None });
        }
    }
    // The problems first, in whatever order the object names them.
    data.sort_by_key(|item| item.name != PROBLEMS);
    Resolved::new(Evaluation { preset: preset.to_owned(), seed, settings, data })
}

impl Resolved<Evaluation> {
    /// Returns the configuration that also measures these metrics, which gates name.
    ///
    /// # Errors
    /// [`ConfigError`] as of [`Resolved::new`].
    pub fn measuring(self, metrics: impl IntoIterator<Item = Metric>) -> Result<Self, ConfigError> {
        let named: Vec<Metric> = metrics.into_iter().collect();
        let evaluation = self.spec();
        let add = |one: &OnDemand| named.contains(&one.metric()) || evaluation.measures(one.metric());
        let all: Vec<OnDemand> = OnDemand::ALL.into_iter().filter(add).collect();
        if all.iter().all(|one| evaluation.measures(one.metric())) {
            return Ok(self);
        }
        let mut measuring = evaluation.clone();
        measuring.settings.evaluation.metrics = Some(all);
        Self::new(measuring)
    }
}

/// Checks the data of an object.
fn check_data(data: &[Data]) -> Result<(), ConfigError> {
    data::check(data)?;
    data::check_plugins(data, &[PLUGIN_METRIC])?;
    let references = data.iter().filter(|item| item.name.starts_with(REFERENCE)).count();
    if references > MAX_REFERENCES {
        return Err(ConfigError::Data {
            field: "data".to_owned(),
            value: format!("{references} files of outcomes"),
            right: format!("compare with at most {MAX_REFERENCES} evaluations"),
        });
    }
    for (index, item) in data.iter().enumerate() {
        if item.name.starts_with(REFERENCE) && item.synthetic.is_none() {
            continue;
        }
        if item.is_plugin() {
            continue;
        }
        if ![PROBLEMS, BASELINE].contains(&item.name.as_str()) {
            return Err(ConfigError::Data {
                field: format!("data[{index}].name"),
                value: format!("{:?}", item.name),
                right: format!("use {PROBLEMS}, {BASELINE} or {PLUGIN_METRIC}"),
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
        self.settings.evaluation.check()?;
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
