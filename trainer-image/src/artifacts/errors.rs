//! `errors.ndjson`: a line for each failed attempt, or for each failure of a server. Appends to a file.

use std::{fs::OpenOptions, io::Write as _, path::Path};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::atomic_fs::{self, FileError};

/// The value of `$schema` in each line.
pub const SCHEMA: &str = "https://codex-ml.dev/schemas/errors/v1";
/// The file's name.
pub const FILE: &str = "errors.ndjson";

/// A failed attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "errors.ndjson: one line")]
pub struct ErrorRow {
    /// The schema of the line.
    #[serde(rename = "$schema")]
    #[schemars(extend("const" = SCHEMA))]
    pub schema: String,
    /// Time of writing.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub timestamp: Timestamp,
    /// The object's uid in a cluster, the output directory's name elsewhere.
    pub run_id: String,
    /// Optimizer steps done; null if the attempt failed before the training loop, and for evaluations.
    pub step: Option<u64>,
    /// The process's exit code.
    pub exit_code: i32,
    /// True when another attempt cannot succeed.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// The reason in CamelCase, such as `DataMismatch`.
    pub reason: String,
    /// The error and its causes, outermost first.
    #[schemars(length(min = 1))]
    pub chain: Vec<String>,
}

/// The value of `$schema` in each line of a server.
pub const SERVER_SCHEMA: &str = "https://codex-ml.dev/schemas/server-errors/v1";

/// A failure of a server. It holds no text of a request or an answer, and no key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "errors.ndjson of codex serve: one line")]
pub struct ServerErrorRow {
    /// The schema of the line.
    #[serde(rename = "$schema")]
    #[schemars(extend("const" = SERVER_SCHEMA))]
    pub schema: String,
    /// Time of writing.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub timestamp: Timestamp,
    /// The object's uid in a cluster, else the name of the served model; empty without a name.
    pub run_id: String,
    /// What failed.
    pub source: ServerErrorSource,
    /// The reason in CamelCase, such as `VerificationFailed`.
    pub reason: String,
    /// The path of the request that failed; null for other failures.
    pub endpoint: Option<String>,
    /// The process's exit code; null while the server goes on.
    pub exit_code: Option<i32>,
    /// The error and its causes, outermost first.
    #[schemars(length(min = 1))]
    pub chain: Vec<String>,
}

/// What failed in a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServerErrorSource {
    /// The server: it ends, or never becomes ready.
    Server,
    /// The engine: a decoder failed, or makes no step.
    Engine,
    /// A request, answered with status 500.
    Request,
    /// The API keys, read again.
    ApiKeys,
    /// The safety rules, read again.
    SafetyRules,
    /// The file of safety events.
    SafetyEvents,
    /// The certificate and its key, read again.
    Certificate,
    /// The file of shadows, read again.
    Shadows,
}

/// Returns the messages of an error and its causes, outermost first.
pub fn causes(error: &dyn std::error::Error) -> Vec<String> {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect()
}

/// Appends a line to the errors in `directory`, which has to exist, and syncs it.
///
/// # Errors
/// When the file cannot be written.
pub fn append(directory: &Path, row: &ErrorRow) -> Result<(), FileError> {
    let path = directory.join(FILE);
    let mut line = serde_json::to_vec(row).map_err(std::io::Error::other).map_err(FileError::of("encoding", &path))?;
    line.push(b'\n');
    let mut file = OpenOptions::new().create(true).append(true).open(&path).map_err(FileError::of("opening", &path))?;
    file.write_all(&line).and_then(|()| file.sync_all()).map_err(FileError::of("writing", &path))?;
    atomic_fs::sync_directory(directory)
}
