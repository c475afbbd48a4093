//! TensorBoard: an event file for each attempt of a run. Does I/O.

use std::{
    fs,
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::{Described, Ended, Start, Tracker, TrackingError, event::Event, series};
use crate::{
    append::AppendFile,
    artifacts::ledger::Row,
    atomic_fs::{self, FileError},
};

/// The tracker's name.
pub(super) const NAME: &str = "tensorboard";
/// The directory of event files among the artifacts of a run.
pub(super) const DIRECTORY: &str = "tensorboard";
/// What the names of event files begin with.
const PREFIX: &str = "events.out.tfevents.";
/// The tag of the settings. The end is that of every text.
const SETTINGS: &str = "settings/text_summary";

/// Returns the start of an event file: a session that begins at `step`, and the settings of the run.
pub(super) fn opening(run: &Described, at: Timestamp, step: u64) -> Vec<u8> {
    let mut file = Vec::new();
    let at = seconds(at);
    Event::version(at).append_to(&mut file);
    Event::session(at, step).append_to(&mut file);
    Event::text(at, step, SETTINGS.to_owned(), markdown(run)).append_to(&mut file);
    file
}

/// Returns the records of rows.
pub(super) fn records(rows: &[Row]) -> Vec<u8> {
    let mut records = Vec::new();
    for row in rows {
        Event::scalar(seconds(row.timestamp), row.step, series(row), row.value).append_to(&mut records);
    }
    records
}

/// Returns the settings of a run as a table in Markdown.
fn markdown(run: &Described) -> String {
    let line = |(key, value): &(String, String)| format!("| {key} | {} |\n", value.replace('|', "\\|"));
    let lines: String = run.params.iter().chain(&run.tags).map(line).collect();
    format!("| setting | value |\n|---|---|\n{lines}")
}

fn seconds(at: Timestamp) -> f64 {
    at.as_microsecond() as f64 / 1e6
}

/// Returns the event files in a directory; none if it does not exist.
fn event_files(directory: &Path) -> Result<Vec<PathBuf>, FileError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(FileError::of("reading", directory))?,
    };
    let is_event_file =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_event_file).collect())
}

/// Writes the event file of an export. Its name follows from the run, so that another export replaces it.
///
/// # Errors
/// When the directory has event files of something else, or a file operation fails.
pub(super) fn export(run: &Described, rows: &[Row], directory: &Path) -> Result<PathBuf, TrackingError> {
    let first = rows.first().map_or(Timestamp::UNIX_EPOCH, |row| row.timestamp);
    let path = directory.join(format!("{PREFIX}{:010}.{}.0.0", first.as_second(), run.id));
    if event_files(directory)?.iter().any(|found| *found != path) {
        return Err(TrackingError::ForeignEvents { path: directory.to_owned() });
    }
    atomic_fs::make_directory(directory)?;
    atomic_fs::write(&path, &[opening(run, first, 0), records(rows)].concat())?;
    Ok(path)
}

/// The event file of an attempt.
pub(super) struct TensorBoard {
    file: AppendFile,
}

impl TensorBoard {
    /// Starts a file. In a run that resumes, its session replaces what earlier files have from the step on; if there are none,
    /// the file begins with all rows of the ledger.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(super) fn start(start: &Start) -> Result<Self, TrackingError> {
        let directory = atomic_fs::make_directory_in(start.artifacts, DIRECTORY)?;
        let earlier = event_files(&directory)?.len();
        let step = if earlier == 0 { 0 } else { start.step };
        let now = Timestamp::now();
        let mut bytes = opening(start.run, now, step);
        // The ledger may have rows of the step at which the session begins.
        let kept: Vec<Row> = start.history.iter().filter(|row| row.step >= step).cloned().collect();
        bytes.extend(records(&kept));
        let uname = rustix::system::uname();
        let (host, process) = (uname.nodename().to_string_lossy(), std::process::id());
        let path = directory.join(format!("{PREFIX}{:010}.{host}.{process}.{earlier}", now.as_second()));
        atomic_fs::write(&path, &bytes)?;
        Ok(Self { file: AppendFile::open(path)? })
    }
}

impl Tracker for TensorBoard {
    fn log(&mut self, rows: &[Row]) -> Result<(), TrackingError> {
        Ok(self.file.append_unsynced(&records(rows))?)
    }

    fn end(&mut self, _: Ended) -> Result<(), TrackingError> {
        Ok(())
    }
}
