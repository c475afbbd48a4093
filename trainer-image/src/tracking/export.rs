//! The metrics of any ledger in the form of a tracker. Does I/O.

use std::{
    io,
    path::{Path, PathBuf},
};

use clap::ValueEnum;

use super::{
    TrackingError, csv,
    described::Described,
    mlflow_files::{self, experiment_name},
    tensorboard, wandb,
};
use crate::{
    artifacts::ledger::{self, Ledger},
    atomic_fs::{self, FileError},
};

/// The form of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table: `metrics.csv`.
    Csv,
    /// Lines of JSON in the form of the ledger: `metrics.ndjson`.
    Ndjson,
    /// An event file of TensorBoard.
    Tensorboard,
    /// A file store of MLflow.
    Mlflow,
    /// An offline directory of Weights & Biases.
    Wandb,
}

/// Writes the rows of a ledger into the directory `output`, with what the files beside the ledger say about the run. Returns the
/// file or directory of the run, and a sentence for each file beside the ledger that is missing or damaged.
///
/// # Errors
/// When `output` has event files of another run, or a file operation fails.
pub(crate) fn export(format: Format, ledger: &Ledger, output: &Path) -> Result<(PathBuf, Vec<String>), TrackingError> {
    let described = || {
        let artifacts = ledger.path.parent().filter(|path| !path.as_os_str().is_empty());
        Described::read(artifacts.unwrap_or(Path::new(".")), None)
    };
    atomic_fs::make_directory(output)?;
    match format {
        Format::Csv => {
            let path = output.join(csv::FILE);
            atomic_fs::write(&path, &csv::table(&ledger.rows)?)?;
            Ok((path, Vec::new()))
        }
        Format::Ndjson => {
            let path = output.join(ledger::FILE);
            let mut lines = Vec::new();
            for row in &ledger.rows {
                serde_json::to_writer(&mut lines, row)
                    .map_err(io::Error::other)
                    .map_err(FileError::of("encoding", &path))?;
                lines.push(b'\n');
            }
            atomic_fs::write(&path, &lines)?;
            Ok((path, Vec::new()))
        }
        Format::Tensorboard => {
            let (run, lacking) = described();
            Ok((tensorboard::export(&run, &ledger.rows, output)?, lacking))
        }
        Format::Mlflow => {
            let (run, lacking) = described();
            Ok((mlflow_files::export(&run, &ledger.rows, output, experiment_name())?, lacking))
        }
        Format::Wandb => {
            let (run, lacking) = described();
            Ok((wandb::export(&run, &ledger.rows, output, &wandb::Place::of_environment())?, lacking))
        }
    }
}
