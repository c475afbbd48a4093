//! The samples that lm-evaluation-harness logs (`samples_<task>_<date>.jsonl`): one JSON object for each problem and filter, with
//! `doc_id`, `doc_hash`, `filter` and a field for each metric. Reads files.
//!
//! Metrics of single problems are numbers from 0 to 1. Those of the corpus are what the harness aggregates: for BLEU a pair of the
//! reference and the response, for perplexity the log-likelihood, alone or with the number of tokens, words or bytes that it is over.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use codex_provenance::text::counted;
use codex_verdict::{CorpusItem as _, Kind, Likelihood, Measurement, Metric, Resampling};
use serde_json::{Map, Value};

use super::{GatingError, input, input::Recorded};
use crate::evaluation::{
    bleu,
    items::{Item, compare, measure},
};

/// A metric, and the field of the samples that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    metric: Metric,
    field: String,
}

/// Reads `METRIC` or `METRIC=FIELD`.
pub(super) fn asked(text: &str) -> Result<Asked, String> {
    let (metric, field) = text.split_once('=').unwrap_or((text, text));
    let metric: Metric = metric.parse().map_err(|why: codex_verdict::UnknownMetric| {
        format!("{why}; if the samples name it otherwise, write METRIC=FIELD, such as exact_match=acc")
    })?;
    match metric {
        _ if field.is_empty() => Err("write METRIC=FIELD, such as exact_match=acc".to_owned()),
        Metric::WinRate | Metric::TraceCoverage | Metric::LowestTraceCoverage | Metric::Plugin => Err(format!(
            "{metric} is not measured by lm-evaluation-harness: use exact_match, token_f1, bleu or perplexity"
        )),
        _ => Ok(Asked { metric, field: field.to_owned() }),
    }
}

/// The samples of a file.
#[derive(Debug)]
pub(super) struct Samples {
    items: Vec<Item>,
    references: Vec<(String, Vec<Item>)>,
    name: String,
    seed: u64,
}

/// A sample with what identifies its problem.
#[derive(Debug)]
struct Sample {
    hash: Option<String>,
    item: Item,
}

impl Samples {
    /// Reads the samples of a model, and of those that it is compared with.
    ///
    /// # Errors
    /// A file cannot be read or used, or has other problems.
    pub(super) fn read(
        path: &Path,
        asked: &[Asked],
        filter: Option<&str>,
        references: &[(String, PathBuf)],
        seed: u64,
    ) -> Result<Self, GatingError> {
        let file = |argument, path: &Path| {
            let bytes = input::read(argument, path)?;
            parse(&bytes, asked, filter).map_err(|why| GatingError::Invalid { argument, path: path.to_owned(), why })
        };
        let own = file("--lm-eval", path)?;
        let mut others = Vec::new();
        for (name, path) in references {
            let other = file("--reference", path)?;
            same_problems(&own, &other).map_err(|why| GatingError::Invalid {
                argument: "--reference",
                path: path.clone(),
                why,
            })?;
            others.push((name.clone(), other.into_values().map(|sample| sample.item).collect()));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let items = own.into_values().map(|sample| sample.item).collect();
        Ok(Self { items, references: others, name, seed })
    }
}

impl Recorded for Samples {
    fn measure(&self, confidence: Option<f64>) -> BTreeMap<String, Measurement> {
        // Without a confidence no bound is looked at.
        let resampling = Resampling { seed: self.seed, confidence: confidence.unwrap_or(0.95) };
        let mut all = measure(&self.items, resampling);
        for (name, other) in &self.references {
            all.extend(compare(name, &self.items, other, |_| true, resampling));
        }
        all
    }

    fn subject(&self) -> String {
        format!("{} · {}", self.name, counted(self.items.len(), "problem"))
    }
}

/// Checks that two files are about the same problems.
fn same_problems(own: &BTreeMap<u64, Sample>, other: &BTreeMap<u64, Sample>) -> Result<(), String> {
    if !own.keys().eq(other.keys()) {
        let (own, other) = (own.len(), other.len());
        return Err(format!("it has {other} problems with other values of doc_id than the {own} of --lm-eval"));
    }
    let differs =
        |((_, one), (_, two)): &((&u64, &Sample), (&u64, &Sample))| one.hash.is_some() && one.hash != two.hash;
    match own.iter().zip(other).find(differs) {
        Some(((id, _), _)) => {
            Err(format!("its doc_id {id} is another problem than that of --lm-eval: doc_hash differs"))
        }
        None => Ok(()),
    }
}

/// Reads samples by the number of their problem.
fn parse(bytes: &[u8], asked: &[Asked], filter: Option<&str>) -> Result<BTreeMap<u64, Sample>, String> {
    let mut samples: BTreeMap<u64, Sample> = BTreeMap::new();
    let mut filters: Vec<String> = Vec::new();
    for (index, text) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if text.trim_ascii().is_empty() {
            continue;
        }
        let line = index + 1;
        let object: Map<String, Value> = serde_json::from_slice(text)
            .map_err(|_| format!("line {line} is no JSON object: name a samples_*.jsonl of lm-evaluation-harness"))?;
        let own = object.get("filter").and_then(Value::as_str).unwrap_or("none").to_owned();
        if !filters.contains(&own) {
            filters.push(own.clone());
        }
        if filter.is_some_and(|wanted| wanted != own) {
            continue;
        }
        if let [first, second, ..] = &filters[..]
            && filter.is_none()
        {
            return Err(format!("it has samples of the filters {first} and {second}: name one with --filter"));
        }
        let Some(id) = object.get("doc_id").and_then(Value::as_u64) else {
            return Err(format!("line {line} has no doc_id: name a samples_*.jsonl of lm-evaluation-harness"));
        };
        let hash = object.get("doc_hash").and_then(Value::as_str).map(str::to_owned);
        let item = item(line, &object, asked)?;
        if let Some(Sample { item: first, .. }) = samples.insert(id, Sample { hash, item }) {
            return Err(format!("line {line} has the doc_id {id} of line {}: each problem counts once", first.line));
        }
    }
    match (samples.is_empty(), filter) {
        (false, _) => Ok(samples),
        (true, Some(filter)) if !filters.is_empty() => {
            Err(format!("no sample has the filter {filter}: use {}", filters.join(", ")))
        }
        (true, _) => Err("it has no samples".to_owned()),
    }
}

/// Returns the number of samples of a metric, as [`asked`] reads it, and a filter.
#[cfg(test)]
pub(crate) fn count(bytes: &[u8], metric: &str, filter: Option<&str>) -> Result<usize, String> {
    parse(bytes, &[asked(metric)?], filter).map(|samples| samples.len())
}

fn item(line: usize, object: &Map<String, Value>, asked: &[Asked]) -> Result<Item, String> {
    let mut item = Item {
        line,
        cluster: None,
        category: None,
        tokens: None,
        values: BTreeMap::new(),
        bleu: None,
        perplexity: None,
    };
    for Asked { metric, field } in asked {
        let refuse = |right: &str| format!("line {line}: {field} is not {right}, which {metric} needs");
        let Some(value) = object.get(field) else {
            return Err(format!(
                "line {line} has no field {field}: name the field of {metric} as --metric {metric}=FIELD"
            ));
        };
        match metric {
            Metric::Bleu => {
                let pair = value.as_array().map(Vec::as_slice).unwrap_or_default();
                let [reference, response] = pair else { return Err(refuse("a pair of reference and response")) };
                // The harness lists several references; with more than one, BLEU counts otherwise.
                let reference = match reference {
                    Value::Array(all) if all.len() == 1 => &all[0],
                    single => single,
                };
                let response = match response {
                    Value::Array(all) if all.len() == 1 => &all[0],
                    single => single,
                };
                let (Some(reference), Some(response)) = (reference.as_str(), response.as_str()) else {
                    return Err(refuse("a pair of one reference and one response"));
                };
                item.bleu = Some(bleu::counts(response, reference));
            }
            Metric::Perplexity => {
                let numbers: Option<Vec<f64>> = match value {
                    Value::Array(all) => all.iter().map(Value::as_f64).collect(),
                    single => single.as_f64().map(|number| vec![number]),
                };
                let right = "a log-likelihood, or a pair of a log-likelihood and a number of tokens";
                let (log_probability, tokens) = match numbers.as_deref() {
                    Some([likelihood]) => (*likelihood, 1.0),
                    Some([likelihood, tokens]) if *tokens >= 1.0 && tokens.fract() == 0.0 => (*likelihood, *tokens),
                    _ => return Err(refuse(right)),
                };
                let likelihood = Likelihood { log_probability, tokens: tokens as u64 };
                if likelihood.impossible().is_some() {
                    return Err(refuse(right));
                }
                item.perplexity = Some(likelihood);
            }
            _ => {
                let number = value.as_bool().map(|right| f64::from(u8::from(right))).or_else(|| value.as_f64());
                let is_share = metric.kind() == Kind::Share;
                let possible =
                    |number: &f64| (0.0..=1.0).contains(number) && (!is_share || *number <= 0.0 || *number >= 1.0);
                let right = if is_share { "0 or 1" } else { "a number from 0 to 1" };
                let number = number.filter(possible).ok_or_else(|| refuse(right))?;
                item.values.insert(metric.to_string(), number);
            }
        }
    }
    Ok(item)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str, metrics: &[&str], filter: Option<&str>) -> Result<usize, String> {
        let asked: Vec<Asked> = metrics.iter().map(|text| asked(text).unwrap()).collect();
        parse(text.as_bytes(), &asked, filter).map(|it| it.len())
    }

    #[test]
    fn samples_of_each_kind_are_read() {
        let text = concat!(
            r#"{"doc_id":0,"doc_hash":"a","filter":"strict","exact_match":1.0,"f1":0.5,"bleu":[["a b"],["a b"]],"ppl":[-3.5,2]}"#,
            "\n",
            r#"{"doc_id":1,"doc_hash":"b","filter":"strict","exact_match":false,"f1":0,"bleu":["a b","a"],"ppl":-1}"#,
            "\n\n",
            r#"{"doc_id":0,"doc_hash":"a","filter":"loose","exact_match":1.0}"#,
            "\n"
        );
        let all = ["exact_match", "token_f1=f1", "bleu", "perplexity=ppl"];
        assert_eq!(told(text, &all, Some("strict")), Ok(2));
        assert_eq!(told(text, &["exact_match"], Some("loose")), Ok(1));
        assert_eq!(
            told(text, &["exact_match"], None).unwrap_err(),
            "it has samples of the filters strict and loose: name one with --filter"
        );
        assert_eq!(
            told(text, &["exact_match"], Some("x")).unwrap_err(),
            "no sample has the filter x: use strict, loose"
        );
    }

    #[test]
    fn malformed_samples_are_refused_with_their_line() {
        for (text, metric, wrong) in [
            (
                r#"{"doc_id":0,"exact_match":0.5}"#,
                "exact_match",
                "line 1: exact_match is not 0 or 1, which exact_match needs",
            ),
            (
                r#"{"doc_id":0,"acc":1}"#,
                "exact_match",
                "line 1 has no field exact_match: name the field of exact_match as --metric",
            ),
            (r#"{"doc_id":0,"maj":0.5}"#, "maj_at_k=maj", "line 1: maj is not 0 or 1, which maj_at_k needs"),
            (r#"{"doc_id":0,"f1":1.5}"#, "token_f1=f1", "line 1: f1 is not a number from 0 to 1, which token_f1 needs"),
            (r#"{"doc_id":0,"f1":"high"}"#, "token_f1=f1", "line 1: f1 is not a number from 0 to 1"),
            (r#"{"doc_id":0,"bleu":0.3}"#, "bleu", "line 1: bleu is not a pair of reference and response"),
            (
                r#"{"doc_id":0,"bleu":[["a","b"],"c"]}"#,
                "bleu",
                "line 1: bleu is not a pair of one reference and one response",
            ),
            (r#"{"doc_id":0,"perplexity":[-1,0]}"#, "perplexity", "line 1: perplexity is not a log-likelihood"),
            (r#"{"doc_id":0,"perplexity":3}"#, "perplexity", "line 1: perplexity is not a log-likelihood"),
            (r#"{"exact_match":1}"#, "exact_match", "line 1 has no doc_id"),
            ("[1]", "exact_match", "line 1 is no JSON object"),
            ("\n", "exact_match", "it has no samples"),
            (
                "{\"doc_id\":3,\"acc\":1}\n{\"doc_id\":3,\"acc\":0}",
                "exact_match=acc",
                "line 2 has the doc_id 3 of line 1: each",
            ),
        ] {
            let found = told(text, &[metric], None).unwrap_err();
            assert!(found.starts_with(wrong), "{text}: {found}");
        }
    }

    #[test]
    fn metrics_are_named_with_their_fields() {
        assert_eq!(asked("exact_match=acc"), Ok(Asked { metric: Metric::ExactMatch, field: "acc".to_owned() }));
        assert!(asked("acc").unwrap_err().contains("write METRIC=FIELD, such as exact_match=acc"));
        assert!(asked("lowest_trace_coverage").unwrap_err().contains("is not measured by lm-evaluation-harness"));
        assert!(asked("trace_coverage").unwrap_err().contains("is not measured by lm-evaluation-harness"));
        assert!(asked("exact_match=").is_err());
    }
}
