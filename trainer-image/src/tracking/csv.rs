//! A table of the metrics: `metrics.csv` with the columns of the ledger but those of its schema. Does I/O.

use jiff::Timestamp;
use serde::Serialize;

use super::{Ended, Start, Tracker, TrackingError};
use crate::{append::AppendFile, artifacts::ledger::Row, atomic_fs};

/// The tracker's name.
pub(super) const NAME: &str = "csv";
/// The file's name.
pub(super) const FILE: &str = "metrics.csv";
/// The first line.
const HEADER: [&str; 8] = ["timestamp", "run_id", "step", "split", "metric", "value", "dataset", "tags"];

/// A line of the table, in the order of [`HEADER`].
#[derive(Serialize)]
struct Line<'a> {
    timestamp: Timestamp,
    run_id: &'a str,
    step: u64,
    split: &'a str,
    metric: &'a str,
    value: f64,
    dataset: &'a str,
    /// As JSON.
    tags: String,
}

/// Returns the table of these rows.
pub(super) fn table(rows: &[Row]) -> Result<Vec<u8>, TrackingError> {
    let mut writer = writer();
    writer.write_record(HEADER)?;
    write(writer, rows)
}

/// Returns the lines of rows that follow others.
pub(super) fn lines(rows: &[Row]) -> Result<Vec<u8>, TrackingError> {
    write(writer(), rows)
}

fn writer() -> csv::Writer<Vec<u8>> {
    csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new())
}

fn write(mut writer: csv::Writer<Vec<u8>>, rows: &[Row]) -> Result<Vec<u8>, TrackingError> {
    for Row { timestamp, run_id, step, split, metric, value, dataset, tags, .. } in rows {
        let tags = serde_json::to_string(tags).map_err(std::io::Error::from).map_err(csv::Error::from)?;
        let (timestamp, step, value) = (*timestamp, *step, *value);
        writer.serialize(Line { timestamp, run_id, step, split, metric, value, dataset, tags })?;
    }
    Ok(writer.into_inner().map_err(csv::IntoInnerError::into_error).map_err(csv::Error::from)?)
}

/// The table of a run.
pub(super) struct Csv {
    file: AppendFile,
}

impl Csv {
    /// Writes the rows that the ledger kept, in place of an earlier table.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(super) fn start(start: &Start) -> Result<Self, TrackingError> {
        let path = start.artifacts.join(FILE);
        atomic_fs::write(&path, &table(start.history)?)?;
        Ok(Self { file: AppendFile::open(path)? })
    }
}

impl Tracker for Csv {
    fn log(&mut self, rows: &[Row]) -> Result<(), TrackingError> {
        Ok(self.file.append_unsynced(&lines(rows)?)?)
    }

    fn end(&mut self, _: Ended) -> Result<(), TrackingError> {
        Ok(())
    }
}
