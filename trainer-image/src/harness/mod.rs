//! Tasks as data: `codex evaluate --task` reads a documented subset of the task files of lm-evaluation-harness, asks a model, and
//! writes results and samples in that program's shape.
//!
//! What is outside of the subset is refused by its name, with file and line. A prompt is what the harness makes of the same file: the
//! text as it is, without a chat template.

mod documents;
mod error;
mod filter;
mod include;
mod metric;
mod outputs;
mod read;
mod session;
mod task;
mod template;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use codex_configs::Device;
use codex_provenance::ModelDigest;
use codex_reports::exit;

pub use self::error::HarnessError;
use self::{
    outputs::{Results, Written},
    session::Session,
    task::Task,
};
use crate::{
    atomic_fs,
    error::CommandError,
    overlap::{self, Named},
};

/// What `codex evaluate --task` is told.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    /// A file, or the name of an included task.
    pub(crate) task: &'a str,
    /// Samples whose responses are scored again, in place of a model.
    pub(crate) rescore: Option<&'a Path>,
    /// The model directory.
    pub(crate) model: Option<&'a Path>,
    /// What the model must hash to.
    pub(crate) expected: Option<ModelDigest>,
    /// Where to compute.
    pub(crate) device: Device,
    /// Seed of sampling.
    pub(crate) seed: u64,
    /// Where the results go.
    pub(crate) output: &'a Path,
    /// Set when the evaluation should end without results.
    pub(crate) stop: &'a AtomicBool,
}

impl Asked<'_> {
    /// Asks the model, or reads what it said, and writes the results.
    ///
    /// # Errors
    /// [`HarnessError`].
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let Self { output, rescore, .. } = self;
        atomic_fs::check_output(output).map_err(HarnessError::from)?;
        let task = Task::open(self.task)?;
        let inputs =
            [self.model.map(|path| Named::new("--model", path)), rescore.map(|path| Named::new("--rescore", path))];
        let inputs: Vec<Named> =
            inputs.into_iter().flatten().chain(task.files().map(|path| Named::new("--task", path))).collect();
        let written = match (rescore, self.model) {
            (Some(path), _) => outputs::rescored(&task, path)?,
            (None, Some(model)) => {
                let session =
                    Session { model, expected: self.expected, device: self.device, seed: self.seed, stop: self.stop };
                let Some((digest, said)) = session.ask(&task)? else { return Ok(exit::INTERRUPTED) };
                Written { time: outputs::now(), results: Results::of(&task, digest, self.seed, &said)? }
            }
            (None, None) => return Err(HarnessError::Arguments("--model: name the model directory".to_owned()).into()),
        };
        let places = written.places(output);
        let named: Vec<Named> = places.iter().map(|path| Named::new("--output", path)).collect();
        overlap::check(&named, &inputs).map_err(HarnessError::from)?;
        written.write(&places).map_err(HarnessError::from)?;
        atomic_fs::say(&written.told(&places)).map_err(HarnessError::from)?;
        Ok(exit::FINISHED)
    }
}

/// Returns what a path is relative to: the directory of the file that names it.
fn beside(file: &Path, path: &str) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).join(path)
}
