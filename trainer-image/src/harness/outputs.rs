//! The results and samples of a task, in the shape of lm-evaluation-harness, and samples that are scored again. Reads and writes files.
//!
//! What is written depends on the task, the model's digest, the seed and the responses alone, so samples that are scored again give the
//! same bytes. The time is in the names of the files only.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use codex_provenance::{ModelDigest, Sha256};
use serde_json::{Map, Value, json};

use super::{
    HarnessError,
    metric::{OutputType, Said},
    session::Response,
    task::{Question, Task},
};
use crate::atomic_fs::{self, FileError};

/// The results and samples of a task.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Results {
    /// The content of `results_<time>.json`.
    numbers: Value,
    /// The content of `samples_<task>_<time>.jsonl`.
    samples: Vec<u8>,
    task: String,
}

/// Results and the time in the names of their files.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) time: String,
    pub(super) results: Results,
}

/// Returns the time as the harness has it in names of files.
pub(super) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%S.%6f").to_string()
}

impl Written {
    /// Returns the paths of results and samples.
    pub(super) fn places(&self, output: &Path) -> [PathBuf; 2] {
        let Self { time, results } = self;
        [format!("results_{time}.json"), format!("samples_{}_{time}.jsonl", results.task)].map(|name| output.join(name))
    }

    /// Writes both files, each whole or not at all.
    ///
    /// # Errors
    /// The file system refuses.
    pub(super) fn write(&self, [results, samples]: &[PathBuf; 2]) -> Result<(), FileError> {
        atomic_fs::make_parents(samples)?;
        atomic_fs::write(samples, &self.results.samples)?;
        atomic_fs::write_json(results, &self.results.numbers)?;
        Ok(())
    }

    /// Returns what is printed: a line of JSON with the files and the numbers.
    pub(super) fn told(&self, [results, samples]: &[PathBuf; 2]) -> String {
        json!({
            "results": results,
            "samples": samples,
            "model": self.results.numbers["codex"]["model_digest"],
            "metrics": self.results.numbers["results"],
        })
        .to_string()
    }
}

fn hash(text: &str) -> String {
    Sha256::of(text).to_string()
}

/// Returns the hash of a document as the harness computes it: of its JSON, indented by two.
fn document_hash(document: &Map<String, Value>) -> String {
    hash(&serde_json::to_string_pretty(document).unwrap_or_default())
}

/// Returns what of the responses a metric reads, and the responses as the samples have them.
fn responses(response: &Response) -> Value {
    match response {
        Response::Texts(texts) => json!([texts]),
        Response::Likelihoods(all) => {
            all.iter().map(|(log_probability, greedy)| json!([[log_probability, greedy]])).collect()
        }
    }
}

impl Results {
    /// Scores what a model said about each document.
    ///
    /// # Errors
    /// A document cannot be asked about.
    pub(super) fn of(task: &Task, model: ModelDigest, seed: u64, said: &[Response]) -> Result<Self, HarnessError> {
        let questions = task.questions()?;
        let names: Vec<&str> = match task.output {
            OutputType::GenerateUntil => task.filters.iter().map(|filter| filter.name.as_str()).collect(),
            _ => vec!["none"],
        };
        let mut values: BTreeMap<(usize, usize), Vec<f64>> = BTreeMap::new();
        let mut samples = Vec::new();
        for (document, (question, response)) in questions.iter().zip(said).enumerate() {
            for (number, name) in names.iter().enumerate() {
                let (filtered, own) = score(task, number, question, response);
                let mut sample = Map::from_iter([
                    ("doc_id".to_owned(), json!(document)),
                    ("doc".to_owned(), Value::Object(task.documents.all[document].clone())),
                    ("target".to_owned(), question.target.clone()),
                    ("arguments".to_owned(), arguments(task, question)),
                    ("resps".to_owned(), responses(response)),
                    ("filtered_resps".to_owned(), filtered),
                    ("filter".to_owned(), json!(name)),
                    ("metrics".to_owned(), task.metrics.iter().map(|metric| metric.name).collect()),
                    ("doc_hash".to_owned(), document_hash(&task.documents.all[document]).into()),
                    ("prompt_hash".to_owned(), hash(&question.prompt).into()),
                    ("target_hash".to_owned(), hash(&text_of(&question.target)).into()),
                ]);
                for (at, value) in own.into_iter().enumerate() {
                    values.entry((number, at)).or_default().push(value);
                    sample.insert(task.metrics[at].name.to_owned(), json!(value));
                }
                samples.extend(serde_json::to_vec(&sample).unwrap_or_default());
                samples.push(b'\n');
            }
        }
        let mut numbers = Map::from_iter([("alias".to_owned(), json!(task.name))]);
        for ((number, at), values) in &values {
            let (metric, filter) = (&task.metrics[*at], names[*number]);
            let (value, error) = metric.aggregate(values);
            numbers.insert(format!("{},{filter}", metric.name), json!(value));
            // As in the harness, what has none says so.
            let error = error.map_or_else(|| json!("N/A"), |error| json!(error));
            numbers.insert(format!("{}_stderr,{filter}", metric.name), error);
        }
        let better: Map<String, Value> =
            task.metrics.iter().map(|metric| (metric.name.to_owned(), metric.higher_is_better.into())).collect();
        let of_task = |value: Value| Value::Object(Map::from_iter([(task.name.clone(), value)]));
        let count = questions.len();
        let all = json!({
            "results": of_task(numbers.into()),
            "group_subtasks": of_task(json!([])),
            "configs": of_task(task.config.clone()),
            "versions": of_task(task.version.clone()),
            "n-shot": of_task(json!(task.shots)),
            "higher_is_better": of_task(better.into()),
            "n-samples": of_task(json!({ "original": count, "effective": count })),
            "config": { "model": "codex", "model_args": "", "batch_size": null, "limit": null, "random_seed": seed },
            "codex": {
                "model_digest": model, "task_digest": task.digest, "data": task.data(), "seed": seed,
                "version": env!("CARGO_PKG_VERSION"),
            },
        });
        Ok(Self { numbers: all, samples, task: task.name.clone() })
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Returns the requests about a document, as the samples have them.
fn arguments(task: &Task, Question { prompt, continuations, .. }: &Question) -> Value {
    let second: Vec<Value> = match task.output {
        OutputType::GenerateUntil => vec![task.generation.arguments.clone()],
        _ => continuations.iter().map(|more| json!(more)).collect(),
    };
    let pair = |(at, second): (usize, Value)| (format!("gen_args_{at}"), json!({ "arg_0": prompt, "arg_1": second }));
    second.into_iter().enumerate().map(pair).collect::<Map<_, _>>().into()
}

/// Returns what is compared of a response after the filter of this number, and the value of each metric.
fn score(task: &Task, filter: usize, question: &Question, response: &Response) -> (Value, Vec<f64>) {
    match response {
        Response::Texts(texts) => {
            let found = task.filters[filter].apply(texts);
            let said = Said::Text { response: &found, target: question.target.as_str().unwrap_or_default() };
            let values = task.metrics.iter().map(|metric| metric.value(&said)).collect();
            (json!([found]), values)
        }
        Response::Likelihoods(all) => {
            let log_probabilities: Vec<f64> = all.iter().map(|(log_probability, _)| *log_probability).collect();
            let said = match all.first() {
                Some((log_probability, greedy)) if task.output == OutputType::Loglikelihood => {
                    Said::Likelihood { log_probability: *log_probability, greedy: *greedy }
                }
                _ => Said::Choices {
                    log_probabilities: &log_probabilities,
                    choices: &question.choices,
                    right: question.right,
                },
            };
            let values = task.metrics.iter().map(|metric| metric.value(&said)).collect();
            (all.iter().map(|(own, greedy)| json!([own, greedy])).collect(), values)
        }
    }
}

/// Scores the responses of earlier samples again. The results beside them name the model.
///
/// # Errors
/// The files cannot be read, or are of another task, of other documents, or incomplete.
pub(super) fn rescored(task: &Task, path: &Path) -> Result<Written, HarnessError> {
    let wrong = |why: String| HarnessError::Samples { path: path.to_owned(), why };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let time = name.strip_prefix(&format!("samples_{}_", task.name)).and_then(|rest| rest.strip_suffix(".jsonl"));
    let time =
        time.ok_or_else(|| wrong(format!("name a samples_{}_<time>.jsonl, as codex evaluate writes it", task.name)))?;
    let beside = path.with_file_name(format!("results_{time}.json"));
    let about = atomic_fs::read_named::<HarnessError>("the results beside --rescore", &beside)?;
    let about: Value = serde_json::from_slice(&about).unwrap_or_default();
    let digest = about["codex"]["model_digest"].as_str().and_then(|digest| digest.parse::<ModelDigest>().ok());
    let (Some(model), Some(seed)) = (digest, about["codex"]["seed"].as_u64()) else {
        return Err(wrong(format!("{} is of another program: it names no model digest", beside.display())));
    };
    let bytes = atomic_fs::read_named::<HarnessError>("--rescore", path)?;
    let questions = task.questions()?;
    let mut said: Vec<Option<Response>> = vec![None; questions.len()];
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
        let line_number = index + 1;
        let sample: Value =
            serde_json::from_slice(line).map_err(|_| wrong(format!("line {line_number} is no JSON object")))?;
        let document = sample["doc_id"].as_u64().and_then(|id| usize::try_from(id).ok());
        let Some(document) = document.filter(|document| *document < questions.len()) else {
            return Err(wrong(format!(
                "line {line_number} has no doc_id of the {} documents of the task",
                questions.len()
            )));
        };
        let same = sample["doc_hash"] == document_hash(&task.documents.all[document]).as_str()
            && sample["arguments"] == arguments(task, &questions[document]);
        if !same {
            return Err(wrong(format!(
                "line {line_number} is about another document, prompt, choice or way to answer than the task has"
            )));
        }
        let response = read_responses(&sample["resps"], task, &questions[document]);
        let response =
            response.ok_or_else(|| wrong(format!("line {line_number} has other resps than the task asks for")))?;
        // Each filter has a line of its own, with the same responses.
        if said[document].replace(response.clone()).is_some_and(|before| before != response) {
            return Err(wrong(format!("line {line_number} has other resps than an earlier line of the same document")));
        }
    }
    let Some(said) = said.into_iter().collect::<Option<Vec<_>>>() else {
        return Err(wrong("it lacks a document of the task, which would count as wrong".to_owned()));
    };
    Ok(Written { time: time.to_owned(), results: Results::of(task, model, seed, &said)? })
}

fn read_responses(value: &Value, task: &Task, question: &Question) -> Option<Response> {
    let all = value.as_array()?;
    if task.output == OutputType::GenerateUntil {
        let texts: Option<Vec<String>> =
            all.first()?.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect();
        return texts.filter(|texts| all.len() == 1 && texts.len() == task.repeats).map(Response::Texts);
    }
    let pair = |one: &Value| Some((one.get(0)?.get(0)?.as_f64()?, one.get(0)?.get(1)?.as_bool()?));
    let pairs: Option<Vec<(f64, bool)>> = all.iter().map(pair).collect();
    pairs.filter(|pairs| pairs.len() == question.continuations.len()).map(Response::Likelihoods)
}
