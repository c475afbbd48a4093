//! `codex-tools mcp`: a server of the Model Context Protocol over runs, evaluations, verdicts and signatures. Reads files.
//!
//! It speaks over standard input and output, and only reads. Every path that a client names must lie in the root that the command
//! line names, links included.

mod look;
mod server;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use codex::error::CommandError;
use codex_reports::exit;

/// Answer a client of the Model Context Protocol over standard input and output. Only reads.
///
/// Tools: `list_runs`, `show_run`, `tail_metrics`, `list_evaluations`, `judge_evaluation`, `verify_model`.
#[derive(Debug, clap::Args)]
pub struct Mcp {
    /// The directory that clients may look at: nothing outside it is read.
    #[arg(long, value_name = "DIR", env = "CODEX_MCP_ROOT", default_value = ".")]
    root: PathBuf,
}

impl Mcp {
    /// Serves until the client closes the input.
    ///
    /// # Errors
    /// Exit code 2: the root is no directory. 1: the client breaks the protocol.
    pub fn run(self) -> Result<i32, CommandError> {
        let root = look::Root::new(&self.root).map_err(CommandError::bad_input)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(CommandError::failed)?;
        runtime.block_on(server::serve(root)).map_err(CommandError::failed)?;
        Ok(exit::FINISHED)
    }
}
