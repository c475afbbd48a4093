//! The problems and the baseline of an evaluation: read, hashed, checked. Reads files.

use std::{collections::HashMap, path::PathBuf};

use codex_configs::{BASELINE, Data, Evaluation, PLUGIN_METRIC, PROBLEMS, REFERENCE, benchmark_file};
use codex_provenance::{DataDigest, Sha256};
use codex_reports::DataFile;

use super::{EvaluateError, baseline::Baseline, outcomes::Outcomes};
use crate::{
    atomic_fs,
    plugins::{Kind, Plugin},
    tasks::{Answers, Record, Split, Task, materialise, parse_free_records, parse_records},
};

/// The longest name of a cluster, in characters.
pub(super) const MAX_CLUSTER: usize = 128;

/// What a model is asked, and what it is compared with.
#[derive(Debug)]
pub(super) struct Inputs {
    /// The name of the file of problems in errors.
    pub(super) file: String,
    /// The problems that are asked.
    pub(super) problems: Vec<Problem>,
    /// What another model answered; has every problem.
    pub(super) baseline: Option<Baseline>,
    /// The outcomes of the evaluations that this one is compared with, by name; each has every problem.
    pub(super) references: Vec<(String, Outcomes)>,
    /// The plugin that scores responses.
    pub(super) plugin: Option<Plugin>,
}

/// A problem and where it stands.
#[derive(Debug)]
pub(super) struct Problem {
    /// Its line, counted from 1.
    pub(super) line: usize,
    /// The problem with its solution.
    pub(super) record: Record,
}

impl Inputs {
    /// Reads the data of an evaluation. `files` gives the paths of data that was given by hand; what the preset brings
    /// along is embedded, what is synthetic is made. `seen` hears of every file as soon as it was hashed, before it is
    /// refused, and again with its records.
    ///
    /// # Errors
    /// When a file cannot be read, hashes to something else, or holds what cannot be asked.
    pub(super) fn read(
        evaluation: &Evaluation,
        files: &[(String, PathBuf)],
        answers: &Answers,
        mut seen: impl FnMut(DataFile),
    ) -> Result<Self, EvaluateError> {
        let known = |name: &str| evaluation.data.iter().any(|data| data.name == name);
        if let Some((name, _)) = files.iter().find(|(name, _)| !known(name)) {
            return Err(EvaluateError::Arguments(format!("--data {name} is not in the configuration")));
        }
        let mut problems = Vec::new();
        let (mut problems_file, mut problems_digest) = (String::new(), None);
        let mut baseline = None;
        let mut plugin = None;
        let mut references = Vec::new();
        for data in &evaluation.data {
            let (bytes, label) = bytes_of(evaluation, data, files)?;
            let sha256 = DataDigest(Sha256::of(&bytes));
            let mut file = DataFile { name: data.name.clone(), sha256, size: bytes.len() as u64, records: None };
            seen(file.clone());
            if let Some(expected) = data.sha256.filter(|expected| *expected != sha256) {
                return Err(EvaluateError::DataMismatch { name: data.name.clone(), found: sha256, expected });
            }
            if data.name == PLUGIN_METRIC {
                let loaded = Plugin::load(&bytes, Kind::Metric);
                plugin = Some(loaded.map_err(|source| EvaluateError::Plugin { file: label, source })?);
                continue;
            }
            let records = match data.name.as_str() {
                name if let Some(name) = name.strip_prefix(REFERENCE) => {
                    let outcomes =
                        Outcomes::parse(&bytes).map_err(|why| EvaluateError::Reference { file: label.clone(), why })?;
                    let records = outcomes.len();
                    references.push((name.to_owned(), label, outcomes));
                    records
                }
                PROBLEMS => {
                    problems_digest = Some(sha256);
                    problems = parse_problems(&label, &bytes, answers)?;
                    problems_file = label;
                    problems.len()
                }
                _ => baseline.insert(Baseline::parse(&label, &bytes)?).len(),
            };
            file.records = Some(records as u64);
            seen(file);
        }
        if let Some(limit) = evaluation.settings.evaluation.limit {
            problems.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        }
        if let Some(baseline) = &baseline {
            for problem in &problems {
                baseline.check(&problem.record.prompt, &problems_file, problem.line)?;
            }
        }
        for (_, file, outcomes) in &references {
            // Every configuration has problems.
            let Some(digest) = problems_digest else { continue };
            outcomes
                .check(&evaluation.settings.evaluation, digest, &problems)
                .map_err(|why| EvaluateError::Reference { file: file.clone(), why })?;
        }
        let references = references.into_iter().map(|(name, _, outcomes)| (name, outcomes)).collect();
        Ok(Self { file: problems_file, problems, baseline, references, plugin })
    }
}

/// The bytes of one file, and the name that errors call it by.
fn bytes_of(
    evaluation: &Evaluation,
    data: &Data,
    files: &[(String, PathBuf)],
) -> Result<(Vec<u8>, String), EvaluateError> {
    let given = files.iter().find(|(name, _)| *name == data.name);
    match (&data.synthetic, given) {
        (None, Some((name, path))) => {
            Ok((atomic_fs::read_named::<EvaluateError>(&format!("data {name}"), path)?, path.display().to_string()))
        }
        (Some(synthetic), None) => {
            let task: Task = synthetic.task.parse()?;
            let count = usize::try_from(synthetic.count).unwrap_or(usize::MAX);
            Ok((materialise(task, Split::HeldOut, synthetic.seed, count)?, data.name.clone()))
        }
        (None, None) => data
            .sha256
            .and_then(|digest| benchmark_file(&evaluation.preset, digest))
            .map(|file| (file.contents().to_vec(), file.path.to_owned()))
            .ok_or_else(|| EvaluateError::Arguments(format!("data {0} has no file: pass --data {0}=FILE", data.name))),
        (Some(_), Some(_)) => Err(EvaluateError::Arguments(format!(
            "data {0} is synthetic in the configuration: leave --data {0}=… out",
            data.name
        ))),
    }
}

fn parse_problems(file: &str, bytes: &[u8], answers: &Answers) -> Result<Vec<Problem>, EvaluateError> {
    // Only a marked answer ends in a mark.
    let records = if answers.has_steps() { parse_records(file, bytes)? } else { parse_free_records(file, bytes)? };
    // Lines of white space hold no record; all others hold one, or parsing had refused them.
    let filled = |line: &[u8]| !String::from_utf8_lossy(line).trim().is_empty();
    let lines = bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| filled(line));
    let mut first_lines = HashMap::new();
    let mut problems = Vec::with_capacity(records.len());
    for ((index, _), record) in lines.zip(records) {
        let (file, line) = (file.to_owned(), index + 1);
        if let Err(wanted) = answers.of_reference(&record.response) {
            return Err(EvaluateError::Answerless { file, line, wanted });
        }
        if let Some(first) = first_lines.insert(record.prompt.clone(), line) {
            return Err(EvaluateError::Repeated { file, line, first });
        }
        if let Some(cluster) = record.cluster.as_ref().filter(|name| !is_cluster(name)) {
            return Err(EvaluateError::Cluster { file, line, cluster: cluster.clone() });
        }
        if let Some(Problem { line: other, record: before }) = problems.first()
            && before.cluster.is_some() != record.cluster.is_some()
        {
            return Err(EvaluateError::Clusters { file, line, other: *other, has_cluster: record.cluster.is_some() });
        }
        problems.push(Problem { line, record });
    }
    Ok(problems)
}

/// Whether a text can name a cluster.
pub(super) fn is_cluster(name: &str) -> bool {
    (1..=MAX_CLUSTER).contains(&name.chars().count())
}

/// The data that files given by hand make: `NAME=FILE` becomes a name with the digest that the file has now.
///
/// # Errors
/// When a file cannot be read.
pub(super) fn pin(files: &[(String, PathBuf)]) -> Result<Vec<Data>, EvaluateError> {
    files
        .iter()
        .map(|(name, path)| {
            let bytes = atomic_fs::read_named::<EvaluateError>(&format!("data {name}"), path)?;
            let sha256 = Some(DataDigest(Sha256::of(bytes)));
            Ok(Data { name: name.clone(), sha256, synthetic: None })
        })
        .collect()
}

/// True for a name that an evaluation's data can have.
pub(super) fn is_name(name: &str) -> bool {
    [PROBLEMS, BASELINE, PLUGIN_METRIC].contains(&name)
        || name.strip_prefix(REFERENCE).is_some_and(|rest| !rest.is_empty())
}

#[cfg(test)]
mod tests {
    use codex_configs::{PRESETS, compose_evaluation};

    use super::*;

    #[test]
    fn every_problem_has_a_cluster_or_none_has() {
        let resolved = compose_evaluation("cot-lite", &[], 1, Vec::new()).unwrap();
        let answers = Answers::of(&resolved.spec().settings.evaluation).unwrap();
        let line = |sum: usize, cluster: &str| {
            format!(
                r##"{{"prompt":"1+{sum}:","response":"#{sum}$","difficulty":"easy","category":"addition"{cluster}}}"##
            )
        };
        let read = |clusters: &[&str]| {
            let lines: Vec<String> = clusters.iter().enumerate().map(|(sum, cluster)| line(sum, cluster)).collect();
            let read = parse_problems("held.jsonl", lines.join("\n").as_bytes(), &answers);
            read.map(|read| read.into_iter().map(|it| it.record.cluster).collect::<Vec<_>>())
                .map_err(|why| why.to_string())
        };
        let (a, b) = (r#","cluster":"a""#, r#","cluster":"b""#);
        assert_eq!(read(&[a, b, a]).unwrap(), ["a", "b", "a"].map(|name| Some(name.to_owned())));
        assert_eq!(read(&["", ""]).unwrap(), [None, None]);
        assert_eq!(
            read(&[a, b, ""]).unwrap_err(),
            "held.jsonl:3: the problem has no cluster, but that of line 1 has one: give a cluster to every problem, or to none"
        );
        assert_eq!(
            read(&["", b]).unwrap_err(),
            "held.jsonl:2: the problem has a cluster, but that of line 1 has none: give a cluster to every problem, or to none"
        );
        let empty = read(&[a, r#","cluster":"""#]).unwrap_err();
        assert_eq!(empty, "held.jsonl:2: the cluster \"\" is invalid: use 1 to 128 characters");
    }

    #[test]
    fn the_problems_of_every_preset_have_answers() {
        for preset in PRESETS {
            let resolved = compose_evaluation(preset, &[], 1, Vec::new()).unwrap();
            let answers = Answers::of(&resolved.spec().settings.evaluation).unwrap();
            let inputs = Inputs::read(resolved.spec(), &[], &answers, |_| ()).unwrap();
            assert!(inputs.problems.len() >= 50, "{preset}: {}", inputs.problems.len());
            for problem in inputs.problems {
                let response = &problem.record.response;
                let expected = answers.of_reference(response).unwrap();
                assert_eq!(answers.of_response(response), Some(expected), "{preset}:{}", problem.line);
            }
        }
    }
}
