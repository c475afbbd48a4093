//! MLflow's file store: `<root>/<experiment>/<run>/{meta.yaml,params/,metrics/,tags/,artifacts/}`. Does I/O.
//!
//! Source: `mlflow/store/tracking/file_store.py`.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs, io,
    path::{Path, PathBuf},
};

use codex_provenance::Sha256;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Described, Ended, Start, Tracker, TrackingError, series};
use crate::{
    append::AppendFile,
    artifacts::{environment::variable, ledger::Row},
    atomic_fs::{self, FileError},
};

/// The tracker's name.
pub(super) const NAME: &str = "mlflow-files";
/// The directory of the file store in the directory of a run. MLflow ignores runs below a directory named `artifacts`.
pub(super) const DIRECTORY: &str = "mlruns";
/// The file of facts about an experiment or a run.
const META: &str = "meta.yaml";
/// The experiment without a name, and its id.
const DEFAULT: (&str, &str) = ("Default", "0");

/// State of a run, with the numbers of MLflow's `RunStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Running = 1,
    Finished = 3,
    Failed = 4,
    Killed = 5,
}

impl From<Ended> for Status {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Finished => Self::Finished,
            Ended::Interrupted => Self::Killed,
            Ended::Failed => Self::Failed,
        }
    }
}

impl Status {
    /// Returns the name, as MLflow's REST API has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Finished => "FINISHED",
            Self::Failed => "FAILED",
            Self::Killed => "KILLED",
        }
    }
}

/// Returns the name of the experiment that `MLFLOW_EXPERIMENT_NAME` asks for.
pub(super) fn experiment_name() -> String {
    variable("MLFLOW_EXPERIMENT_NAME").unwrap_or_else(|| DEFAULT.0.to_owned())
}

/// Returns the tags of a run, those that MLflow itself reads first.
pub(super) fn tags(run: &Described) -> Vec<(String, String)> {
    let own = [
        ("mlflow.runName", run.name.as_str()),
        ("mlflow.user", &run.owner),
        ("mlflow.source.name", "codex train"),
        ("mlflow.source.type", "JOB"),
    ];
    let own = own.map(|(key, value)| (key.to_owned(), value.to_owned()));
    own.into_iter().chain(run.tags.iter().cloned()).collect()
}

/// An experiment of a file store.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Experiment {
    /// The root of the file store.
    root: PathBuf,
    name: String,
    id: String,
}

/// The part of an experiment's facts that is read.
#[derive(Deserialize)]
struct Facts {
    name: String,
}

impl Experiment {
    /// Finds the experiment of this name in a file store, or chooses the id that it will have there.
    fn find(root: &Path, name: String) -> Result<Self, FileError> {
        let entries = match fs::read_dir(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            entries => Some(entries.map_err(FileError::of("reading", root))?),
        };
        let id = entries.into_iter().flatten().find_map(|entry| {
            let path = entry.ok()?.path();
            let facts: Facts = serde_yaml::from_slice(&fs::read(path.join(META)).ok()?).ok()?;
            (facts.name == name).then(|| path.file_name().map(|id| id.to_string_lossy().into_owned()))?
        });
        let id = id.unwrap_or_else(|| new_id(&name));
        Ok(Self { root: root.to_owned(), name, id })
    }

    fn path(&self) -> PathBuf {
        self.root.join(&self.id)
    }

    /// Returns the facts about the experiment.
    fn meta(&self, at: Timestamp) -> String {
        yaml(&[
            ("artifact_location", json!(uri(&self.path()))),
            ("creation_time", json!(at.as_millisecond())),
            ("experiment_id", json!(self.id)),
            ("last_update_time", json!(at.as_millisecond())),
            ("lifecycle_stage", json!("active")),
            ("name", json!(self.name)),
        ])
    }
}

/// Returns the id of a new experiment: 18 digits, as MLflow chooses them, but the same for the same name.
fn new_id(name: &str) -> String {
    if name == DEFAULT.0 {
        return DEFAULT.1.to_owned();
    }
    let hash = Sha256::of(name);
    let number = hash.bytes().iter().take(8).fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
    // The first digit is not 0.
    (100_000_000_000_000_000 + number % 900_000_000_000_000_000).to_string()
}

/// Returns fields in YAML. Values are in JSON's notation, which every reader of YAML takes for the same type.
fn yaml(fields: &[(&str, Value)]) -> String {
    let lines: Vec<String> = fields.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
    lines.concat()
}

fn uri(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// Returns the facts about a run in an experiment.
fn meta(
    run: &Described,
    experiment: &Experiment,
    began: Timestamp,
    status: Status,
    ended: Option<Timestamp>,
) -> String {
    yaml(&[
        ("artifact_uri", json!(uri(&experiment.path().join(&run.id).join("artifacts")))),
        ("end_time", json!(ended.map(Timestamp::as_millisecond))),
        ("entry_point_name", json!("")),
        ("experiment_id", json!(experiment.id)),
        ("lifecycle_stage", json!("active")),
        ("run_id", json!(run.id)),
        ("run_name", json!(run.name)),
        ("run_uuid", json!(run.id)),
        ("source_name", json!("")),
        // LOCAL; the tag mlflow.source.type says more.
        ("source_type", json!(4)),
        ("source_version", json!("")),
        ("start_time", json!(began.as_millisecond())),
        ("status", json!(status as u8)),
        ("tags", json!([])),
        ("user_id", json!(run.owner)),
    ])
}

/// Returns the files of parameters and tags by their paths below the run.
fn description(run: &Described) -> BTreeMap<String, String> {
    let params = run.params.iter().map(|(key, value)| (format!("params/{key}"), value.clone()));
    let tags = tags(run).into_iter().map(|(key, value)| (format!("tags/{key}"), value));
    params.chain(tags).collect()
}

/// Returns what rows append to the files of their metrics, by the names of the metrics. A line is time in milliseconds, value and step.
fn metrics(rows: &[Row]) -> BTreeMap<String, String> {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for row in rows {
        let line = format!("{} {:?} {}\n", row.timestamp.as_millisecond(), row.value, row.step);
        files.entry(series(row)).or_default().push_str(&line);
    }
    files
}

/// Writes a file with missing parents. It is not synced: everything is written again when the run resumes.
fn put(path: &Path, text: &str) -> Result<(), FileError> {
    atomic_fs::make_parents(path)?;
    fs::write(path, text).map_err(FileError::of("writing", path))
}

/// Writes a run with these rows into a file store, in place of one with the same id, and returns its directory and experiment.
fn write(
    run: &Described,
    root: &Path,
    experiment: String,
    rows: &[Row],
    (began, status, ended): (Timestamp, Status, Option<Timestamp>),
) -> Result<(PathBuf, Experiment), FileError> {
    atomic_fs::make_directory(root)?;
    let root = &fs::canonicalize(root).map_err(FileError::of("reading", root))?;
    // MLflow creates it in every store, and could not on a read-only volume.
    atomic_fs::make_directory(&root.join(".trash"))?;
    let experiment = Experiment::find(root, experiment)?;
    let facts = experiment.path().join(META);
    if !facts.exists() {
        put(&facts, &experiment.meta(began))?;
    }
    let directory = experiment.path().join(&run.id);
    for part in ["params", "metrics"] {
        atomic_fs::remove_directory(&directory.join(part))?;
        atomic_fs::make_directory(&directory.join(part))?;
    }
    atomic_fs::make_directory(&directory.join("artifacts"))?;
    for (name, text) in description(run) {
        put(&directory.join(name), &text)?;
    }
    for (name, text) in metrics(rows) {
        put(&directory.join("metrics").join(name), &text)?;
    }
    atomic_fs::write(&directory.join(META), meta(run, &experiment, began, status, ended).as_bytes())?;
    Ok((directory, experiment))
}

/// Writes a run into the file store at `root` and returns its directory. A run with a model is finished.
///
/// # Errors
/// When MLflow would not read a store at this place, or a file operation fails.
pub(super) fn export(run: &Described, rows: &[Row], root: &Path, experiment: String) -> Result<PathBuf, TrackingError> {
    let whole = std::path::absolute(root).map_err(FileError::of("finding", root))?;
    if whole.components().any(|part| part.as_os_str() == "artifacts") {
        return Err(TrackingError::BelowArtifacts { path: root.to_owned() });
    }
    let at = |row: Option<&Row>| row.map_or(Timestamp::UNIX_EPOCH, |row| row.timestamp);
    let (began, last) = (at(rows.first()), at(rows.last()));
    let state = if run.has_model { (began, Status::Finished, Some(last)) } else { (began, Status::Running, None) };
    Ok(write(run, root, experiment, rows, state)?.0)
}

/// The file store of a run.
pub(super) struct MlflowFiles {
    run: Described,
    experiment: Experiment,
    began: Timestamp,
    directory: PathBuf,
    /// Open files of metrics by their names.
    metrics: BTreeMap<String, AppendFile>,
}

impl MlflowFiles {
    /// Writes the run with the rows that the ledger kept.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(super) fn start(start: &Start) -> Result<Self, TrackingError> {
        Ok(Self::open(start, experiment_name())?)
    }

    /// As [`start`](Self::start), in the experiment of this name.
    pub(super) fn open(start: &Start, experiment: String) -> Result<Self, FileError> {
        let began = start.history.first().map_or_else(Timestamp::now, |row| row.timestamp);
        let root = start.artifacts.with_file_name(DIRECTORY);
        let state = (began, Status::Running, None);
        let (directory, experiment) = write(start.run, &root, experiment, start.history, state)?;
        Ok(Self { run: start.run.clone(), experiment, began, directory, metrics: BTreeMap::new() })
    }
}

impl Tracker for MlflowFiles {
    fn log(&mut self, rows: &[Row]) -> Result<(), TrackingError> {
        for (name, text) in metrics(rows) {
            let path = Path::new("metrics").join(&name);
            let file = match self.metrics.entry(name) {
                Entry::Occupied(open) => open.into_mut(),
                Entry::Vacant(new) => {
                    if let Some(parent) = path.parent() {
                        atomic_fs::make_directory_in(&self.directory, parent)?;
                    }
                    new.insert(AppendFile::open(self.directory.join(path))?)
                }
            };
            file.append_unsynced(text.as_bytes())?;
        }
        Ok(())
    }

    fn end(&mut self, ended: Ended) -> Result<(), TrackingError> {
        let now = Some(Timestamp::now());
        let text = meta(&self.run, &self.experiment, self.began, ended.into(), now);
        atomic_fs::write(&self.directory.join(META), text.as_bytes())?;
        Ok(())
    }
}
