//! Rotation: old events leave the database for a file of lines, by age and by size. Reads and writes files.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use codex::{
    atomic_fs::{self, FileError},
    error::CommandError,
};
use codex_provenance::Sha256;
use jiff::{SignedDuration, Timestamp};

use super::{
    database::{self, Database, DatabaseError},
    event::{Event, seconds, time},
};

/// What stays in a database.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Events that are older leave.
    pub max_age: Option<SignedDuration>,
    /// The oldest events leave until the others have about this many bytes.
    pub max_bytes: Option<u64>,
}

/// What left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rotated {
    /// The number of events.
    pub events: usize,
    /// The file that they are in now; `None` if they were deleted, or there were none.
    pub archive: Option<PathBuf>,
}

/// Events cannot be rotated. None is lost.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// The database fails.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
}

impl From<RotateError> for CommandError {
    fn from(error: RotateError) -> Self {
        match error {
            RotateError::Database(error) => error.into(),
            RotateError::File(error) => error.into(),
        }
    }
}

/// Bytes of an event in a database beside its texts: its row and the entry in the index, about.
const BESIDE: u64 = 48;

/// Moves the events over the limits to a file in `archive`, or deletes them without one. The file is complete on the disk before
/// an event is deleted.
///
/// # Errors
/// The database or the file system fails. A file may be left then, and its events are still in the database.
pub fn rotate(database: &mut Database, limits: Limits, archive: Option<&Path>) -> Result<Rotated, RotateError> {
    let over =
        limits.max_bytes.map(|most| Ok::<_, DatabaseError>(database.size()?.saturating_sub(most))).transpose()?;
    let oldest = limits.max_age.map(|age| seconds(Timestamp::now()) - age.as_secs_f64());
    let mut failed = None;
    let rotated = database.write(|transaction| {
        let mut leaving: Vec<(i64, Event)> = Vec::new();
        // Rows that are no events stay, and do not hold up the others.
        let mut select = transaction
            .prepare("SELECT ts, session_id, role, message, rowid FROM session_events ORDER BY ts, rowid")?;
        let mut rows = select.query(())?;
        let mut bytes = 0;
        while let Some(row) = rows.next()? {
            let Some(event) = database::event(row) else { continue };
            let is_old = oldest.is_some_and(|oldest| event.ts < oldest);
            if !is_old && over.is_none_or(|over| bytes >= over) {
                break;
            }
            bytes += (event.message.len() + 2 * event.session_id.as_str().len()) as u64 + BESIDE;
            leaving.push((row.get(4)?, event));
        }
        if leaving.is_empty() {
            return Ok(Rotated::default());
        }
        let archive = match archive.map(|directory| write(directory, &leaving)).transpose() {
            Ok(archive) => archive,
            Err(error) => {
                failed = Some(error);
                return Ok(Rotated::default());
            }
        };
        let mut delete = transaction.prepare("DELETE FROM session_events WHERE rowid = ?")?;
        for (row, _) in &leaving {
            delete.execute([row])?;
        }
        Ok(Rotated { events: leaving.len(), archive })
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    if rotated.events > 0 {
        database.shrink()?;
    }
    Ok(rotated)
}

/// Writes events to a file, which is named by the times of the first and the last one, their number and a digest. The same events give
/// the same file, and others another one.
fn write(directory: &Path, events: &[(i64, Event)]) -> Result<PathBuf, FileError> {
    let stamp = |event: Option<&(i64, Event)>| {
        let time = event.and_then(|(_, event)| time(event.ts)).unwrap_or_default();
        time.strftime("%Y%m%dT%H%M%S%6fZ").to_string()
    };
    let lines: Result<Vec<String>, _> = events.iter().map(|(_, event)| event.line()).collect();
    let text = lines.map_err(std::io::Error::other).map_err(FileError::of("encoding", directory))?.concat();
    let (first, last, digest) = (stamp(events.first()), stamp(events.last()), Sha256::of(&text).short());
    let path = directory.join(format!("sessions-{first}-{last}-{}-{digest}.ndjson", events.len()));
    atomic_fs::make_directory(directory)?;
    atomic_fs::write_with(&path, |file| file.write_all(text.as_bytes()))?;
    Ok(path)
}
