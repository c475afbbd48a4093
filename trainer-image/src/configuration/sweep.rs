//! `codex sweep`: writes a TrainingRun for each point of a sweep. Reads and writes files; prints.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use codex_configs::sweep::{Axis, MAX_POINTS, Point, SweepError, names, points};
use codex_provenance::text::{Printable, counted};
use codex_reports::exit;
use codex_validate::Validator;
use serde_json::{Value, json};

use super::{error::ConfigurationError, render, source::read};
use crate::{atomic_fs, error::CommandError};

/// The label that all runs of a sweep have.
const LABEL: &str = "codex-ml.dev/sweep";
/// The field of a run's file that holds a sweep.
const FIELD: &str = "sweep";
/// The most points that --most can allow.
const MOST: usize = 10_000;

/// Write a TrainingRun for each combination of values, with a common label.
///
/// Each is checked as `codex validate` does before anything is written. Files that exist are never replaced.
#[derive(Debug, Args)]
pub struct Sweep {
    /// File with the TrainingRun that is varied. Its field `sweep`, beside spec, may hold keys with lists of values or the
    /// forms of --sweep.
    #[arg(short = 'f', long, value_name = "RUN.yaml")]
    pub(super) file: PathBuf,
    /// Values of a key: KEY=choice(A,B), KEY=range(START,STOP,STEP) without the stop, or KEY=glob(PATTERN) for a key with a
    /// fixed list; repeatable. A key is a setting, seed or template.
    #[arg(long = "sweep", value_name = "KEY=VALUES")]
    pub(super) axes: Vec<String>,
    /// Value of the label, with which the names of the runs begin [default: the name of the run].
    #[arg(long, value_name = "NAME")]
    pub(super) label: Option<String>,
    /// Directory that receives a file for each run. Without it, all are printed.
    #[arg(short = 'o', long, value_name = "DIRECTORY")]
    pub(super) output: Option<PathBuf>,
    /// The most runs.
    #[arg(long, value_name = "NUMBER", default_value_t = MAX_POINTS, value_parser = crate::arguments::whole::<usize>(1..=MOST as u64))]
    pub(super) most: usize,
}

/// A run of the sweep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The name of its object.
    pub(super) name: String,
    /// Its manifest, with the comment at its head.
    pub(super) text: String,
}

impl Sweep {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let (label, runs) = self.runs()?;
        match &self.output {
            None => {
                let texts: Vec<&str> = runs.iter().map(|run| run.text.trim_end()).collect();
                atomic_fs::say(&texts.join("\n---\n"))?;
            }
            Some(directory) => {
                let written = write(directory, &runs)?;
                let told = format!(
                    "{} with the label {LABEL}={label} in {}: {written} written",
                    counted(runs.len(), "run"),
                    directory.display()
                );
                atomic_fs::say(&told)?;
            }
        }
        Ok(exit::FINISHED)
    }

    /// Composes every run. Returns the value of the label, too.
    ///
    /// # Errors
    /// The file holds no run, the sweep is malformed or too large, or a run would be refused.
    pub(super) fn runs(&self) -> Result<(String, Vec<Run>), ConfigurationError> {
        let wrong = |why: String| ConfigurationError::Run { path: self.file.clone(), why };
        let text = read("--file", &self.file)?;
        let documents = codex_validate::documents(&text).map_err(|finding| wrong(finding.to_string()))?;
        let ours = |object: &&Value| {
            object["kind"] == "TrainingRun"
                && object["apiVersion"].as_str().is_some_and(|version| version.starts_with("codex-ml.dev/"))
        };
        let found: Vec<&Value> = documents.iter().filter(ours).collect();
        let [object] = found.as_slice() else {
            return Err(wrong(format!("it holds {}: name a file with one", counted(found.len(), "TrainingRun"))));
        };
        let mut object = (*object).clone();
        let axes = self.axes(&mut object)?;
        if axes.is_empty() {
            let why = "nothing is swept: name a key with --sweep KEY=choice(A,B), or in its field sweep";
            return Err(wrong(why.to_owned()));
        }
        let metadata = &object["metadata"];
        let named = metadata["name"].as_str().or_else(|| metadata["generateName"].as_str());
        let named = named.map(|name| name.trim_end_matches('-').to_owned()).filter(|name| !name.is_empty());
        let label = match &self.label {
            Some(label) => label.clone(),
            None => named.ok_or_else(|| {
                wrong("metadata.name is missing: write one, or name the sweep with --label".to_owned())
            })?,
        };
        if !is_label(&label) {
            let why = format!(
                "--label: {} is no value of a label: use 1 to 63 letters, digits, dashes, dots and underscores, with a letter or \
                 digit first and last",
                Printable(&label)
            );
            return Err(ConfigurationError::Arguments(why));
        }
        let points = points(&axes, self.most).map_err(|error| swept("", error))?;
        let names = names(&label, &points);
        let validator = Validator::new()?;
        let count = points.len();
        let run = |(index, (point, name)): (usize, (&Point, String))| {
            let refuse = |why: String| ConfigurationError::Point { name: name.clone(), point: said(point), why };
            let manifest = render::yaml(&vary(&object, &label, &name, point).map_err(refuse)?);
            if let Some(finding) = validator.check(&manifest).findings.iter().find(|finding| !finding.is_notice) {
                return Err(refuse(format!("{}: {}", finding.field, finding.message)));
            }
            let head = format!("# Run {} of {count}: {}\n# Written by: {}", index + 1, said(point), self.command());
            Ok(Run { text: format!("{head}\n{manifest}"), name })
        };
        let runs = points.iter().zip(names).enumerate().map(run).collect::<Result<_, _>>()?;
        Ok((label, runs))
    }

    /// Takes the sweep out of the object, and adds that of the arguments.
    fn axes(&self, object: &mut Value) -> Result<Vec<Axis>, ConfigurationError> {
        let mut axes = Vec::new();
        let place = format!("{}: {FIELD}: ", self.file.display());
        let field = object.as_object_mut().and_then(|fields| fields.remove(FIELD));
        match field {
            None | Some(Value::Null) => {}
            Some(Value::Object(fields)) => {
                for (key, values) in fields {
                    let axis = match values {
                        Value::Array(items) => Axis::listed(&key, items.iter().map(written).collect()),
                        Value::String(form) => Axis::of(&key, form.trim()),
                        other => Err(SweepError::NotAnAxis(format!("{key}={}", written(&other)))),
                    };
                    axes.push(axis.map_err(|error| swept(&place, error))?);
                }
            }
            Some(_) => {
                let why = format!("its field {FIELD} has no keys: write KEY: [A, B], or KEY: range(START,STOP,STEP)");
                return Err(ConfigurationError::Run { path: self.file.clone(), why });
            }
        }
        for text in &self.axes {
            axes.push(Axis::parse(text).map_err(|error| swept("--sweep: ", error))?);
        }
        Ok(axes)
    }

    /// The command that makes the same runs, without the directory.
    fn command(&self) -> String {
        let mut words = vec!["codex".to_owned(), "sweep".to_owned(), "-f".to_owned()];
        words.push(quoted(&self.file.display().to_string()));
        for text in &self.axes {
            words.extend(["--sweep".to_owned(), quoted(text)]);
        }
        words.extend(self.label.iter().flat_map(|label| ["--label".to_owned(), quoted(label)]));
        if self.most != MAX_POINTS {
            words.extend(["--most".to_owned(), self.most.to_string()]);
        }
        Printable(&words.join(" ")).to_string()
    }
}

fn swept(place: &str, error: SweepError) -> ConfigurationError {
    ConfigurationError::Sweep { place: place.to_owned(), error }
}

/// Writes a value of the field `sweep` as an override has it.
fn written(value: &Value) -> String {
    value.as_str().map_or_else(|| render::scalar(value), str::to_owned)
}

/// Writes a point for people.
fn said(point: &Point) -> String {
    let each: Vec<String> = point.iter().map(|(key, value)| format!("{key}={value}")).collect();
    Printable(&each.join(" ")).to_string()
}

/// Quotes a word for a shell.
fn quoted(word: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "_./-=:,".contains(character);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn is_label(text: &str) -> bool {
    let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    text.len() <= 63
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && ends(text.bytes().next())
        && ends(text.bytes().last())
}

/// Returns the object of a point.
///
/// # Errors
/// What is wrong with a field of the object.
fn vary(object: &Value, label: &str, name: &str, point: &Point) -> Result<Value, String> {
    let mut object = object.clone();
    let fields = object.as_object_mut().ok_or("it is no object")?;
    fields.remove("status");
    let metadata = fields.entry("metadata").or_insert_with(|| json!({}));
    let metadata = metadata.as_object_mut().ok_or("metadata has no fields: write name")?;
    metadata.remove("generateName");
    metadata.insert("name".to_owned(), json!(name));
    let labels = metadata.entry("labels").or_insert_with(|| json!({}));
    if labels.is_null() {
        *labels = json!({});
    }
    labels
        .as_object_mut()
        .ok_or("metadata.labels has no keys: write KEY: VALUE")?
        .insert(LABEL.to_owned(), json!(label));
    let spec = fields.get_mut("spec").and_then(Value::as_object_mut).ok_or("spec has no fields: write rolloutRing")?;
    for (key, value) in point {
        match key.as_str() {
            "seed" => {
                let seed: u64 = value.parse().map_err(|_| format!("seed is {value}: write a whole number"))?;
                spec.insert(key.clone(), json!(seed));
            }
            "template" => drop(spec.insert(key.clone(), json!(value))),
            _ => {
                let overrides = spec.entry("overrides").or_insert_with(|| json!([]));
                let overrides = overrides.as_array_mut().ok_or("spec.overrides is no list: write [KEY=VALUE]")?;
                overrides.push(json!(format!("{key}={value}")));
            }
        }
    }
    Ok(object)
}

/// Writes the runs that are not there yet, and returns their number. A file with the same contents stays as it is.
///
/// # Errors
/// A file exists with other contents, and nothing was written; or a file cannot be written.
pub(super) fn write(directory: &Path, runs: &[Run]) -> Result<usize, ConfigurationError> {
    let mut missing = Vec::new();
    for run in runs {
        let path = directory.join(format!("{}.yaml", run.name));
        if fs::symlink_metadata(&path).is_err() {
            missing.push((path, run));
        } else if fs::read(&path).ok().as_deref() != Some(run.text.as_bytes()) {
            return Err(ConfigurationError::Exists(path));
        }
    }
    atomic_fs::make_directory(directory)?;
    for (path, run) in &missing {
        atomic_fs::write(path, run.text.as_bytes())?;
    }
    Ok(missing.len())
}
