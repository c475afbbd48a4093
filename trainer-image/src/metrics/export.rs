//! `codex metrics export`: the metrics of a run, or the numbers of an evaluation, in the forms of other tools. Writes files.

use std::path::PathBuf;

use clap::Args;

use super::{
    error::MetricsError,
    evaluations::{self, Evaluated},
    input,
};
use crate::{
    artifacts::ledger,
    atomic_fs,
    overlap::{self, Named},
    tracking::{self, Format},
};

/// Write the metrics of a run, or the numbers of an evaluation, for another tool.
#[derive(Debug, Args)]
pub(super) struct Export {
    /// Directory of the run, its ledger (`metrics.ndjson`), or the directory of an evaluation.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Form of the export.
    #[arg(long)]
    format: Format,
    /// Directory to write into. For mlflow it is the root of the file store, which may hold other runs.
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Ignore invalid lines, and log how many there are.
    #[arg(long)]
    skip_bad: bool,
}

impl Export {
    pub(super) fn run(self) -> Result<(), MetricsError> {
        // A digest covers every file of a model and of a checkpoint.
        let inputs = ["model", "checkpoints"].map(|name| Named::new(format!("RUN/{name}"), self.run.join(name)));
        let ledger = Named::new("the ledger of RUN", ledger::locate(&self.run));
        let inputs: Vec<Named> = inputs.into_iter().chain([ledger]).collect();
        let outputs = [self.output.clone(), self.output.join(ledger::FILE)].map(|path| Named::new("--output", path));
        overlap::check(&outputs, &inputs)?;
        let (ledger, is_evaluation) = match evaluations::results(&self.run) {
            Some(path) => (Evaluated::read(path.clone(), input::name(&path))?.ledger()?, true),
            None => (input::read(&self.run, self.skip_bad)?, false),
        };
        let (path, lacking) = tracking::export(self.format, &ledger, &self.output)?;
        // What describes a run does not belong to an evaluation.
        let lacking = if is_evaluation { Vec::new() } else { lacking };
        for part in lacking {
            tracing::warn!("{part}: the export does not show it");
        }
        Ok(atomic_fs::say(&path.display().to_string())?)
    }
}
