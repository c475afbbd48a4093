//! A conversation as lines of JSON, which `codex-tools sessions import` reads. Writes a file.

use std::path::PathBuf;

use jiff::Timestamp;
use serde_json::json;

use crate::{
    append::AppendFile,
    atomic_fs::{self, FileError},
};

/// The file of a session, if it is logged.
pub(super) struct SessionLog(Option<(String, AppendFile)>);

impl SessionLog {
    /// Opens a log, which goes on where the file ends. The session is named like the file, without its extension.
    ///
    /// # Errors
    /// A file operation failed.
    pub(super) fn open(path: Option<PathBuf>) -> Result<Self, FileError> {
        let Some(path) = path else { return Ok(Self(None)) };
        atomic_fs::make_parents(&path)?;
        let session = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self(Some((session, AppendFile::open(path)?))))
    }

    /// Adds a message.
    ///
    /// # Errors
    /// A file operation failed.
    pub(super) fn add(&mut self, role: &str, message: &str) -> Result<(), FileError> {
        let Some((session, file)) = &mut self.0 else { return Ok(()) };
        let ts = Timestamp::now().as_microsecond() as f64 / 1e6;
        let line = json!({ "ts": ts, "session_id": session, "role": role, "message": message });
        file.append(format!("{line}\n").as_bytes())
    }
}
