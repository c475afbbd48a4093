//! Events as lines of JSON, in a file for each session. Reads and writes files.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
};

use codex::atomic_fs::{self, FileError};

use super::event::{Event, EventError, MAX_MESSAGE, SessionId};

/// How files of sessions end.
pub(super) const EXTENSION: &str = "ndjson";
/// The most bytes of a line: each byte of a message may be written as six.
const MAX_LINE: u64 = 6 * MAX_MESSAGE as u64 + (1 << 16);

/// Lines cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinesError {
    /// A line is no event.
    #[error("{}:{line}", path.display())]
    Line {
        path: PathBuf,
        line: usize,
        #[source]
        why: EventError,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Appends an event to the file of its session in a directory. Processes may do so at once.
///
/// # Errors
/// A file operation failed.
pub(super) fn append(directory: &Path, event: &Event) -> Result<PathBuf, FileError> {
    atomic_fs::make_directory(directory)?;
    let path = directory.join(format!("{}.{EXTENSION}", event.session_id));
    let mut file = OpenOptions::new().append(true).create(true).open(&path).map_err(FileError::of("opening", &path))?;
    // Not every volume has locks. One write to the end of a file is whole on those that have none, but for network file systems.
    let _ = file.lock();
    let line = event.line().map_err(std::io::Error::other).map_err(FileError::of("encoding", &path))?;
    file.write_all(line.as_bytes()).map_err(FileError::of("writing", &path))?;
    Ok(path)
}

/// Reads the events of a file. A last line without a line feed that is no event is left out: its writer may still be writing, or was
/// killed.
///
/// # Errors
/// A file operation failed, or a line is no event.
pub(super) fn read(path: &Path) -> Result<Vec<Event>, LinesError> {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let session: Result<SessionId, String> = stem.parse();
    let mut reader = BufReader::new(File::open(path).map_err(FileError::of("opening", path))?);
    let (mut events, mut line) = (Vec::new(), Vec::new());
    for number in 1.. {
        line.clear();
        let read = (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).map_err(FileError::of("reading", path))?;
        if read == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        match Event::parse(&line, session.as_ref().map_err(String::as_str)) {
            Ok(event) => events.push(event),
            Err(_) if !line.ends_with(b"\n") && (read as u64) < MAX_LINE => {
                tracing::warn!("{}:{number}: the last line is not finished and is left out", path.display());
            }
            Err(why) => return Err(LinesError::Line { path: path.to_owned(), line: number, why }),
        }
    }
    Ok(events)
}

/// Returns the files that a path names: itself, or the files of sessions in a directory, in the order of their names.
///
/// # Errors
/// A file operation failed.
pub(super) fn files(path: &Path) -> Result<Vec<PathBuf>, FileError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).map_err(FileError::of("listing", path))?;
    let entries: Result<Vec<_>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut found = entries.map_err(FileError::of("listing", path))?;
    found.retain(|path| path.extension().is_some_and(|extension| extension == EXTENSION || extension == "jsonl"));
    found.sort();
    Ok(found)
}
