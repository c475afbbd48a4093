//! The offline directory of Weights & Biases: `wandb/offline-run-<time>-<id>/run-<id>.wandb` and files beside it, which
//! `wandb sync` uploads and `wandb leet` shows. Does I/O.
//!
//! The history has one record for each step, written when rows of a later step arrive.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Value, json};

use super::{
    Described, Ended, Start, Tracker, TrackingError, series,
    wandb_record::{Config, Exit, Files, Header, History, Item, Log, Run, Summary, What},
};
use crate::{
    append::AppendFile,
    artifacts::{environment::variable, ledger::Row},
    atomic_fs::{self, FileError},
};

/// The tracker's name.
pub(super) const NAME: &str = "wandb";
/// The directory of runs among the artifacts of a run, as the client of W&B names it.
pub(super) const DIRECTORY: &str = "wandb";
/// The project of runs whose project nobody named, as for the client of W&B.
const PROJECT: &str = "uncategorized";

/// Which project a run belongs to, and whose that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    project: String,
    entity: String,
}

impl Place {
    /// Returns what `WANDB_PROJECT` and `WANDB_ENTITY` say.
    pub(super) fn of_environment() -> Self {
        let project = variable("WANDB_PROJECT").unwrap_or_else(|| PROJECT.to_owned());
        Self { project, entity: variable("WANDB_ENTITY").unwrap_or_default() }
    }
}

/// Returns a value as a setting: a number or a list as it is, anything else as a text.
fn setting(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Number(_) | Value::Bool(_) | Value::Null | Value::Array(_))) => value,
        _ => text.into(),
    }
}

/// Returns the settings of a run, and the facts about it.
fn settings(run: &Described) -> impl Iterator<Item = (&str, Value)> {
    run.params.iter().chain(&run.tags).map(|(key, value)| (key.as_str(), setting(value)))
}

fn seconds(at: Timestamp) -> f64 {
    at.as_microsecond() as f64 / 1e6
}

/// The file of a run while rows arrive.
struct Writing {
    log: Log,
    began: Timestamp,
    /// Rows of steps that may not be complete, by their steps.
    pending: BTreeMap<u64, Vec<Row>>,
    /// The last value of each series.
    last: BTreeMap<String, Value>,
}

impl Writing {
    /// Begins a file.
    fn new(run: &Described, place: &Place, began: Timestamp) -> Self {
        let mut log = Log::new();
        log.push(What::Header(Header::new(concat!("codex ", env!("CARGO_PKG_VERSION")))));
        let update = settings(run).map(|(key, value)| Item::top(key, &value)).collect();
        log.push(What::Run(Run {
            id: run.id.clone(),
            entity: place.entity.clone(),
            project: place.project.clone(),
            config: Some(Config { update }),
            display_name: run.name.clone(),
            job_type: "train".to_owned(),
            start_time: Some(began.into()),
        }));
        log.push(What::Files(Files::of(METADATA)));
        Self { log, began, pending: BTreeMap::new(), last: BTreeMap::new() }
    }

    /// Takes rows, and writes the steps before the latest one.
    fn take(&mut self, rows: &[Row]) {
        for row in rows {
            self.pending.entry(row.step).or_default().push(row.clone());
        }
        while self.pending.len() > 1 {
            self.step();
        }
    }

    /// Writes the first pending step.
    fn step(&mut self) {
        let Some((step, rows)) = self.pending.pop_first() else { return };
        let at = rows.iter().map(|row| row.timestamp).max().unwrap_or(self.began);
        let mut values: BTreeMap<String, Value> = rows.iter().map(|row| (series(row), json!(row.value))).collect();
        values.insert("_step".to_owned(), json!(step));
        values.insert("_timestamp".to_owned(), json!(seconds(at)));
        values.insert("_runtime".to_owned(), json!((seconds(at) - seconds(self.began)).max(0.0)));
        let item = values.iter().map(|(key, value)| Item::nested(key, value)).collect();
        self.log.push(What::History(History::new(item, step)));
        self.last.extend(values);
    }

    /// Writes what is pending and the last values, and how the run ended.
    fn end(&mut self, code: Option<i32>) {
        while !self.pending.is_empty() {
            self.step();
        }
        let update = self.last.iter().map(|(key, value)| Item::nested(key, value)).collect();
        self.log.push(What::Summary(Summary { update }));
        if let Some(code) = code {
            self.log.push(What::Exit(Exit { code, runtime: self.runtime() }));
        }
    }

    fn runtime(&self) -> i32 {
        self.last.get("_runtime").and_then(Value::as_f64).map_or(0, |seconds| seconds as i32)
    }
}

/// The file with facts about the machine and the program.
const METADATA: &str = "wandb-metadata.json";

/// The directory of a run.
struct Folder {
    path: PathBuf,
    id: String,
}

impl Folder {
    /// Returns the directory of a run below `root`: the one that is there, or one for a run that began at `began`.
    fn of(root: &Path, run: &Described, began: Timestamp) -> Result<Self, FileError> {
        let end = format!("-{}", run.id);
        let entries = match fs::read_dir(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            entries => Some(entries.map_err(FileError::of("reading", root))?),
        };
        let named = |name: &str| name.starts_with("offline-run-") && name.ends_with(&end);
        let there = entries.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        let there = there.filter(|path| path.file_name().is_some_and(|name| named(&name.to_string_lossy()))).min();
        let new = || root.join(format!("offline-run-{}{end}", began.to_zoned(TimeZone::UTC).strftime("%Y%m%d_%H%M%S")));
        Ok(Self { path: there.unwrap_or_else(new), id: run.id.clone() })
    }

    fn log(&self) -> PathBuf {
        self.path.join(format!("run-{}.wandb", self.id))
    }

    /// Writes the files beside the records.
    fn describe(&self, run: &Described, began: Timestamp) -> Result<(), FileError> {
        let files = self.path.join("files");
        atomic_fs::make_directory(&files)?;
        let config: serde_json::Map<String, Value> =
            settings(run).map(|(key, value)| (key.to_owned(), json!({ "value": value }))).collect();
        // Every reader of YAML reads JSON.
        atomic_fs::write(&files.join("config.yaml"), format!("{}\n", Value::from(config)).as_bytes())?;
        let metadata = json!({
            "os": std::env::consts::OS, "startedAt": began.to_string(), "program": "codex train", "username": run.owner,
        });
        atomic_fs::write(&files.join(METADATA), metadata.to_string().as_bytes())?;
        Ok(())
    }

    fn summarize(&self, writing: &Writing) -> Result<(), FileError> {
        let text = json!(writing.last).to_string();
        atomic_fs::write(&self.path.join("files/wandb-summary.json"), text.as_bytes())?;
        Ok(())
    }
}

/// Writes a run below `root`, in place of an earlier one with the same id, and returns its directory. A run with a model is finished.
///
/// # Errors
/// When a file operation fails.
pub(super) fn export(run: &Described, rows: &[Row], root: &Path, place: &Place) -> Result<PathBuf, TrackingError> {
    let began = rows.first().map_or(Timestamp::UNIX_EPOCH, |row| row.timestamp);
    let folder = Folder::of(root, run, began)?;
    let mut writing = Writing::new(run, place, began);
    writing.take(rows);
    // One that did not end has no record of it, as if it was killed.
    writing.end(run.has_model.then_some(0));
    folder.describe(run, began)?;
    atomic_fs::write(&folder.log(), &writing.log.drain())?;
    folder.summarize(&writing)?;
    Ok(folder.path)
}

/// The offline directory of a run.
pub(super) struct Wandb {
    folder: Folder,
    writing: Writing,
    file: AppendFile,
}

impl Wandb {
    /// Writes the run with the rows that the ledger kept.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(super) fn start(start: &Start) -> Result<Self, TrackingError> {
        let began = start.history.first().map_or_else(Timestamp::now, |row| row.timestamp);
        let root = start.artifacts.join(DIRECTORY);
        let folder = Folder::of(&root, start.run, began)?;
        folder.describe(start.run, began)?;
        let mut writing = Writing::new(start.run, &Place::of_environment(), began);
        writing.take(start.history);
        let path = folder.log();
        atomic_fs::write(&path, &writing.log.drain())?;
        Ok(Self { folder, writing, file: AppendFile::open(path)? })
    }

    /// Appends what was not written yet. It is kept for the next time if that fails, because records depend on their place.
    fn write(&mut self) -> Result<(), FileError> {
        self.file.append_unsynced(self.writing.log.waiting())?;
        self.writing.log.drain();
        Ok(())
    }
}

impl Tracker for Wandb {
    fn log(&mut self, rows: &[Row]) -> Result<(), TrackingError> {
        self.writing.take(rows);
        Ok(self.write()?)
    }

    fn end(&mut self, ended: Ended) -> Result<(), TrackingError> {
        self.writing.end(Some(match ended {
            Ended::Finished => 0,
            Ended::Interrupted => 143,
            Ended::Failed => 1,
        }));
        self.write()?;
        Ok(self.folder.summarize(&self.writing)?)
    }
}
