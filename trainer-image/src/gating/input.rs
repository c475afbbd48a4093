//! Results that gates judge, and how files are read. Reads files.

use std::{collections::BTreeMap, path::Path};

use codex_provenance::files;
use codex_verdict::Measurement;

use super::GatingError;

/// The largest file that is read, in bytes.
const MAX_FILE: usize = 1 << 30;

/// Recorded results.
pub(super) trait Recorded {
    /// Returns the measurements, with corpus metrics bounded at `confidence` if that is given and possible.
    fn measure(&self, confidence: Option<f64>) -> BTreeMap<String, Measurement>;

    /// Returns what was measured, for people.
    fn subject(&self) -> String;
}

/// Reads a file that an argument names.
pub(super) fn read(argument: &'static str, path: &Path) -> Result<Vec<u8>, GatingError> {
    files::read_start(path, MAX_FILE).map_err(|source| GatingError::Unreadable {
        argument,
        path: path.to_owned(),
        source,
    })
}
