//! `codex-tools tasks`: maintenance, from a list. Reads and deletes files.
//!
//! A task is code of this program with a few typed settings. No task runs a command or a script.

mod partial;
#[cfg(test)]
mod tests;
mod verify;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use codex::{
    arguments::{Duration, duration},
    atomic_fs,
    error::CommandError,
};
use codex_provenance::{Sha256, text::counted};
use codex_reports::exit;

use self::verify::Verdict;
use crate::sessions::{Database, Journal, Limits, rotate};

/// Run a maintenance task of a fixed list.
#[derive(Debug, Args)]
pub struct Tasks {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the tasks.
    List,
    /// Run a task.
    Run(Run),
}

#[derive(Debug, Args)]
struct Run {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Verify the signature of every model below a folder; exit code 1 if one is refused.
    VerifyModels(VerifyModels),
    /// Remove what interrupted transfers and writes left below a folder: files and directories that end in .partial.
    CleanPartials(CleanPartials),
    /// Move old events of the session database to a file.
    RotateSessions(RotateSessions),
}

#[derive(Debug, Args)]
struct VerifyModels {
    /// The folder.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// The trusted public keys, a PEM file.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The SHA-256 fingerprint that every key must have, from a source that you trust.
    #[arg(long, value_name = "SHA256")]
    fingerprint: Option<Sha256>,
    /// Also refuse a model that has no model.sig inside.
    #[arg(long)]
    require_signature: bool,
}

#[derive(Debug, Args)]
struct CleanPartials {
    /// The folder.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Only what nothing has written to for this long.
    #[arg(long, value_name = "DURATION", default_value = "7d", value_parser = duration)]
    older_than: Duration,
    /// Only print what would be removed.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
struct RotateSessions {
    /// The database.
    #[arg(long, value_name = "FILE", env = "CODEX_SESSIONS_DB", default_value = "sessions/sessions.db")]
    db: PathBuf,
    /// Events that are older leave.
    #[arg(long, value_name = "DURATION", default_value = "90d", value_parser = duration)]
    max_age: Duration,
}

impl Tasks {
    /// Runs the command.
    ///
    /// # Errors
    /// Exit code 2: an argument is wrong. 1: the task failed.
    pub fn run(self) -> Result<i32, CommandError> {
        match self.command {
            Command::List => {
                let tasks = Run::augment_args(clap::Command::new("run"));
                for task in tasks.get_subcommands() {
                    let about = task.get_about().map(ToString::to_string).unwrap_or_default();
                    atomic_fs::say(&format!("{:<16} {about}", task.get_name()))?;
                }
                Ok(exit::FINISHED)
            }
            Command::Run(Run { task: Task::VerifyModels(task) }) => task.run(),
            Command::Run(Run { task: Task::CleanPartials(task) }) => task.run(),
            Command::Run(Run { task: Task::RotateSessions(task) }) => task.run(),
        }
    }
}

impl VerifyModels {
    fn run(self) -> Result<i32, CommandError> {
        let models = verify::models(&self.folder)?;
        let (mut refused, mut unsigned) = (0, 0);
        for model in &models {
            let shown = model.display();
            let line = match verify::verify(model, &self.key, self.fingerprint)? {
                Verdict::Signed { digest, signer } => {
                    format!("verified  {shown}  {digest}  signed by {}", signer.short())
                }
                Verdict::Unsigned(digest) => {
                    unsigned += 1;
                    format!("unsigned  {shown}  {digest}")
                }
                Verdict::Refused(why) => {
                    refused += 1;
                    format!("REFUSED   {shown}  {why}")
                }
            };
            atomic_fs::say(&line)?;
        }
        atomic_fs::say(&format!("{}, {refused} refused, {unsigned} unsigned", counted(models.len(), "model")))?;
        let failed = refused > 0 || (self.require_signature && unsigned > 0);
        Ok(if failed { exit::FAILED } else { exit::FINISHED })
    }
}

impl CleanPartials {
    fn run(self) -> Result<i32, CommandError> {
        let found = partial::find(&self.folder, self.older_than.0)?;
        let (mut count, mut sum) = (0_usize, 0);
        for (path, bytes) in &found {
            if !self.dry_run && !partial::remove(path)? {
                continue;
            }
            (count, sum) = (count + 1, sum + bytes);
            let what = if self.dry_run { "would be removed" } else { "removed" };
            atomic_fs::say(&format!("{what}  {}  {bytes} bytes", path.display()))?;
        }
        atomic_fs::say(&format!("{}, {sum} bytes", counted(count, "partial file")))?;
        Ok(exit::FINISHED)
    }
}

impl RotateSessions {
    fn run(self) -> Result<i32, CommandError> {
        // A database that does not exist has nothing to rotate, and must not be made.
        Database::read(&self.db)?;
        let mut database = Database::open(&self.db, Journal::Auto)?;
        let archive = self.db.parent().unwrap_or(std::path::Path::new("")).join("archive");
        let limits = Limits { max_age: Some(self.max_age.0), ..Limits::default() };
        let rotated = rotate(&mut database, limits, Some(&archive))?;
        let to = rotated.archive.map(|path| format!(", now in {}", path.display())).unwrap_or_default();
        atomic_fs::say(&format!("{} left{to}", counted(rotated.events, "event")))?;
        Ok(exit::FINISHED)
    }
}
