//! `codex config` and `codex sweep`: shows where settings come from, compares and checks configurations, and writes the runs of a
//! sweep. Reads and writes files; prints.

mod check;
mod diff;
mod error;
mod render;
mod show;
mod source;
mod sweep;
mod tree;

use clap::{Args, Subcommand, ValueEnum};
use codex_configs::schema;
use codex_reports::exit;

pub use error::ConfigurationError;
pub use sweep::Sweep;

use crate::{atomic_fs, error::CommandError};

/// Show, compare and check configurations.
#[derive(Debug, Args)]
pub struct Config {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the settings that a configuration gives; with --origins, also where each comes from.
    Show(show::Show),
    /// Print the settings in which two configurations differ, with their origins.
    Diff(diff::Diff),
    /// Check files of settings and resolved configurations; exit code 2 if one is refused.
    Validate(check::Validate),
    /// Print the JSON Schema of a file of settings, for editors.
    Schema(Schema),
    /// Print the layers of a configuration, weakest first, and how much each sets.
    DefaultsTree(tree::DefaultsTree),
}

/// Print the JSON Schema of a file of settings, for editors.
#[derive(Debug, Args)]
struct Schema {
    /// What the settings are for.
    #[arg(value_name = "KIND")]
    kind: Kind,
}

/// What settings are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A training run.
    Training,
    /// An evaluation.
    Evaluation,
}

impl Config {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        match self.command {
            Command::Show(command) => command.run()?,
            Command::Diff(command) => command.run()?,
            Command::Validate(command) => return Ok(command.run()?),
            Command::Schema(Schema { kind }) => {
                let schema = match kind {
                    Kind::Training => schema::training(),
                    Kind::Evaluation => schema::evaluation(),
                };
                atomic_fs::say(&render::json(&schema))?;
            }
            Command::DefaultsTree(command) => command.run()?,
        }
        Ok(exit::FINISHED)
    }
}

#[cfg(test)]
mod tests;
