//! `codex safety`: checks a text by safety rules. Reads files and standard input, and prints the result.

use std::{
    io::{Read as _, Write as _},
    path::PathBuf,
};

use clap::builder::PossibleValuesParser;

use super::{Direction, Guard, RulesError};
use crate::{atomic_fs::FileError, error::CommandError};

/// The most bytes of a text.
const MAX_TEXT: u64 = 64 << 20;

/// Check a text by safety rules: prints it without what they redact.
#[derive(Debug, clap::Args)]
pub struct Safety {
    /// The rules, in YAML.
    #[arg(long, value_name = "FILE")]
    rules: PathBuf,
    /// Check the text as a prompt or as an answer.
    #[arg(long = "as", default_value = "prompt", value_parser = PossibleValuesParser::new(["prompt", "answer"]))]
    direction: String,
    /// The text; `-` is standard input.
    #[arg(value_name = "FILE", default_value = "-")]
    text: PathBuf,
}

impl Safety {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let guard = Guard::new(&self.rules).map_err(|error| match error {
            RulesError::Unreadable { .. } => CommandError::failed(error),
            RulesError::Invalid(_) => CommandError::bad_input(error),
        })?;
        let rules = guard.rules().map_err(CommandError::bad_input)?;
        let mut text = String::new();
        let read = if self.text.as_os_str() == "-" {
            std::io::stdin().take(MAX_TEXT).read_to_string(&mut text)
        } else {
            std::fs::File::open(&self.text).and_then(|file| file.take(MAX_TEXT).read_to_string(&mut text))
        };
        read.map_err(FileError::of("reading", &self.text))?;
        let direction = if self.direction == "answer" { Direction::Answer } else { Direction::Prompt };
        let checked = rules.check(&text, direction);
        for hit in &checked.hits {
            tracing::info!(rule = hit.rule, action = ?hit.action, matches = hit.count, "hit");
        }
        match (&checked.text, checked.blocked_by()) {
            (Some(text), _) => {
                let written = std::io::stdout().lock().write_all(text.as_bytes());
                written.map_err(CommandError::failed)?;
                Ok(codex_reports::exit::FINISHED)
            }
            (None, rule) => {
                let told = format!("the text is blocked by the rule {:?}", rule.unwrap_or_default());
                Err(CommandError::bad_input(told))
            }
        }
    }
}
