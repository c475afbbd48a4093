//! `codex deploy` and `codex status-report`: what a promotion needs, checked from files. Reads files; creates nothing in a cluster.
//!
//! The objects come from a file as `kubectl apply` takes it, everything else from the folder of the run. The checks, the numbers and
//! the wording are those of [`codex_checklist`], which `kubectl codex` uses for a cluster.

mod deploy;
mod gather;
mod objects;
mod survey;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use codex_provenance::text::Printable;

use crate::error::CommandError;

pub use codex_checklist::{Checklist, Survey};
pub use deploy::Deploy;
pub(crate) use objects::read as read_chain;
pub use survey::StatusReport;

/// Reads the values of `--evaluation`.
///
/// # Errors
/// Exit code 2: one is neither `NAME=FILE` nor a `FILE`.
fn reports_of(evaluations: &[String]) -> Result<Vec<(Option<String>, PathBuf)>, CommandError> {
    let read = |text: &String| {
        maybe_named(text).map_err(|why| CommandError::bad_input(format!("--evaluation {}: {why}", Printable(text))))
    };
    evaluations.iter().map(read).collect()
}

/// Parses `NAME=FILE`, or a `FILE` alone.
fn maybe_named(text: &str) -> Result<(Option<String>, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !name.contains('/') && !path.is_empty() => {
            Ok((Some(name.to_owned()), path.into()))
        }
        Some((name, _)) if name.contains('/') => Ok((None, text.into())),
        None if !text.is_empty() => Ok((None, text.into())),
        _ => Err("write EVALUATION=FILE or FILE, such as cot-lite=out/evaluation.json".to_owned()),
    }
}
