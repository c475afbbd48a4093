//! `codex tokenizer`: trains, checks and uses tokenizers on the command line. Reads and writes files.
//!
//! A tokenizer is a directory with `tokenizer.json`, and for those that `train` makes, `manifest.json`: what it was made from, and
//! the digest of `tokenizer.json`. The same input gives the same bytes.

mod error;
mod manifest;
mod report;
#[cfg(test)]
mod tests;
mod train;

use std::path::{Path, PathBuf};

use codex_provenance::text::counted;
use serde_json::json;

pub use error::TokenizingError;
pub use manifest::Manifest;

use crate::{
    atomic_fs,
    error::CommandError,
    overlap,
    text::{Tokenizer, TokenizerError},
};

/// Train, check and use tokenizers.
#[derive(Debug, clap::Args)]
pub struct Tokenizing {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Train a tokenizer on text files.
    Train(train::Train),
    /// Check that a tokenizer is complete, and that it gives back the text of files.
    Validate(Validate),
    /// Print the token ids of a text as JSON.
    Encode(Encode),
    /// Print the text of token ids.
    Decode(Decode),
    /// Count the tokens of files.
    Stats(Stats),
    /// Show what a tokenizer consists of.
    Inspect(Named),
    /// Copy the files of a model's tokenizer, byte for byte, into a new directory.
    Export(Export),
}

/// A tokenizer.
#[derive(Debug, clap::Args)]
struct Named {
    /// A model directory, a directory with `tokenizer.json`, or such a file.
    #[arg(value_name = "TOKENIZER")]
    path: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Validate {
    #[command(flatten)]
    tokenizer: Named,
    /// Text files whose lines must come back as they were.
    #[arg(long, value_name = "FILE")]
    data: Vec<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct Encode {
    #[command(flatten)]
    tokenizer: Named,
    /// The text. Special tokens in it are text.
    #[arg(allow_hyphen_values = true)]
    text: String,
    /// Leave out the special tokens that the tokenizer puts around a text.
    #[arg(long)]
    plain: bool,
    /// Cut after this many tokens.
    #[arg(long, value_name = "COUNT", value_parser = crate::arguments::whole::<usize>(1..=1 << 24))]
    max_length: Option<usize>,
    /// `max_length` fills up to --max-length with the padding token; `longest` and `do_not_pad` leave a single text as it is.
    #[arg(long, default_value = "do_not_pad", value_parser = ["max_length", "longest", "do_not_pad"])]
    padding: String,
}

#[derive(Debug, clap::Args)]
struct Decode {
    #[command(flatten)]
    tokenizer: Named,
    /// The token ids.
    #[arg(required = true, value_name = "ID", value_parser = crate::arguments::whole::<u32>(0..=u32::MAX.into()))]
    ids: Vec<u32>,
}

#[derive(Debug, clap::Args)]
struct Stats {
    #[command(flatten)]
    tokenizer: Named,
    /// Text files, counted line by line.
    #[arg(long, value_name = "FILE", required = true)]
    data: Vec<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct Export {
    #[command(flatten)]
    tokenizer: Named,
    /// The directory to write, which must not exist yet.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

impl Tokenizing {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let text = match self.command {
            Command::Train(command) => command.run()?,
            Command::Validate(command) => command.run()?,
            Command::Encode(command) => command.run()?,
            Command::Decode(command) => command.run()?,
            Command::Stats(command) => report::stats(&command.tokenizer.load()?, &command.data)?,
            Command::Inspect(command) => report::inspect(&command.load()?)?,
            Command::Export(command) => command.run()?,
        };
        atomic_fs::say(&text)?;
        Ok(codex_reports::exit::FINISHED)
    }
}

impl Named {
    fn load(&self) -> Result<Tokenizer, TokenizingError> {
        if self.path.is_dir() {
            return Ok(Tokenizer::load(&self.path)?);
        }
        let bytes = atomic_fs::read(&self.path)?;
        Ok(Tokenizer::from_files(&[("tokenizer.json".to_owned(), bytes)].into())?)
    }
}

impl Validate {
    fn run(&self) -> Result<String, TokenizingError> {
        let tokenizer = self.tokenizer.load()?;
        if self.tokenizer.path.is_dir() {
            manifest::check(&self.tokenizer.path)?;
        }
        let mut lines = 0;
        for path in &self.data {
            for (number, line) in lines_of(path)?.lines().enumerate() {
                if line.is_empty() {
                    continue;
                }
                let at = || (path.clone(), number + 1);
                let ids = tokenizer.encode_more(line).map_err(|source| {
                    let (file, line) = at();
                    TokenizingError::Line { file, line, source: source.of_file() }
                })?;
                let back = tokenizer.decode(&ids)?;
                if back != line {
                    let (file, number) = at();
                    let same = back.chars().zip(line.chars()).take_while(|(one, other)| one == other).count();
                    return Err(TokenizingError::Lossy { file, line: number, at: same + 1 });
                }
                lines += 1;
            }
        }
        Ok(format!(
            "valid: {}, {} came back unchanged",
            counted(tokenizer.vocabulary(), "token"),
            counted(lines, "line")
        ))
    }
}

impl Encode {
    fn run(&self) -> Result<String, TokenizingError> {
        let tokenizer = self.tokenizer.load()?;
        let mut ids = if self.plain { tokenizer.encode_more(&self.text) } else { tokenizer.encode(&self.text) }?;
        if let Some(length) = self.max_length {
            ids.truncate(length);
        }
        if self.padding == "max_length" {
            let length = self.max_length.ok_or(TokenizingError::Padding("--padding max_length needs --max-length"))?;
            let pad = tokenizer.pad().ok_or(TokenizingError::Padding(
                "the tokenizer has no padding token: write pad_token into tokenizer_config.json",
            ))?;
            ids.resize(length.max(ids.len()), pad);
        }
        let tokens: Vec<Option<String>> = ids.iter().map(|id| tokenizer.token(*id)).collect();
        Ok(json!({ "ids": ids, "tokens": tokens }).to_string())
    }
}

impl Decode {
    fn run(&self) -> Result<String, TokenizingError> {
        let tokenizer = self.tokenizer.load()?;
        let vocabulary = tokenizer.vocabulary();
        if let Some(id) = self.ids.iter().find(|id| **id as usize >= vocabulary) {
            return Err(TokenizingError::Id { id: *id, vocabulary });
        }
        Ok(tokenizer.decode(&self.ids)?)
    }
}

impl Export {
    fn run(&self) -> Result<String, TokenizingError> {
        let tokenizer = self.tokenizer.load()?;
        if std::fs::symlink_metadata(&self.output).is_ok() {
            return Err(TokenizingError::Exists(self.output.clone()));
        }
        let input = overlap::Named::new("TOKENIZER", &self.tokenizer.path);
        overlap::check(&[overlap::Named::new("--output", &self.output)], &[input])?;
        atomic_fs::create_directory(&self.output, |partial| tokenizer.write(partial).map_err(TokenizingError::from))?;
        Ok(format!("{}: {} tokens", self.output.display(), tokenizer.vocabulary()))
    }
}

/// Reads a text file.
fn lines_of(path: &Path) -> Result<String, TokenizingError> {
    let bytes = atomic_fs::read_named::<TokenizingError>("--data", path)?;
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.split(|byte| *byte == b'\n').count();
        TokenizingError::Encoding { file: path.to_owned(), line }
    })
}

impl From<TokenizerError> for TokenizingError {
    fn from(error: TokenizerError) -> Self {
        Self::Tokenizer(error)
    }
}
