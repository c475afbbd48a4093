//! `codex metrics export`: the metrics of a run in the forms of other tools. Writes files.

use std::path::PathBuf;

use clap::Args;

use super::{error::MetricsError, input};
use crate::{
    artifacts::ledger,
    atomic_fs,
    overlap::{self, Named},
    tracking::{self, Format},
};

/// Write the metrics of a run for another tool.
#[derive(Debug, Args)]
pub(super) struct Export {
    /// Directory of the run, or its ledger (`metrics.ndjson`).
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
        overlap::check(&[Named::new("--output", &self.output)], &inputs)?;
        let ledger = input::read(&self.run, self.skip_bad)?;
        let (path, lacking) = tracking::export(self.format, &ledger, &self.output)?;
        for part in lacking {
            tracing::warn!("{part}: the export does not show it");
        }
        Ok(atomic_fs::say(&path.display().to_string())?)
    }
}
