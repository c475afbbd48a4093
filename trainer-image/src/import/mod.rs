//! `codex import`: writes the model of a GGUF file as a Hugging Face directory. Reads and writes files.
//!
//! The weights are dequantized by candle and rounded to bf16, a few rows at a time. llama.cpp stores the rows of query and key
//! weights with the halves of a head interleaved, as its rotation wants them; here they are put apart again. The tokenizer, its
//! special tokens and the chat template are rebuilt from the metadata.

mod config;
mod error;
mod gguf;
mod sentencepiece;
#[cfg(test)]
pub(crate) mod tests;
mod vocabulary;
mod weights;

use std::path::{Path, PathBuf};

use codex_engine::Layout;

pub use error::ImportError;

use crate::{atomic_fs, error::CommandError, text::Tokenizer};
use gguf::Gguf;

/// Write the model of a GGUF file as a Hugging Face directory.
#[derive(Debug, clap::Args)]
pub struct Import {
    /// The GGUF file: llama architecture, in F32, F16, BF16, `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1`, `Q8_0`, `Q4_K`, `Q5_K` or `Q6_K`.
    #[arg(value_name = "FILE.gguf")]
    file: PathBuf,
    /// The directory to write, which must not exist yet.
    #[arg(value_name = "DIR")]
    output: PathBuf,
}

impl Import {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let (parameters, tokens) = import(&self.file, &self.output)?;
        atomic_fs::say(&format!("{}: {parameters} parameters, {tokens} tokens", self.output.display()))?;
        Ok(codex_reports::exit::FINISHED)
    }
}

/// Imports a file into a new directory. Returns the number of parameters and of tokens.
///
/// # Errors
/// The file is not a supported model, or the directory exists or cannot be written. Nothing is left in its place then.
pub fn import(file: &Path, output: &Path) -> Result<(usize, usize), ImportError> {
    if std::fs::symlink_metadata(output).is_ok() {
        return Err(ImportError::Exists(output.to_owned()));
    }
    let gguf = Gguf::open(file)?;
    let config = config::of(&gguf)?;
    let mut files = vocabulary::files(&gguf, &config)?;
    files.extend(config::files(&config)?);
    // Read once as any user of the directory will.
    let tokenizer = Tokenizer::from_files(&files)?;
    let layout = Layout::of(&config);
    atomic_fs::create_directory(output, |partial| {
        for (name, bytes) in &files {
            atomic_fs::make_parents(&partial.join(name))?;
            atomic_fs::write(&partial.join(name), bytes)?;
        }
        weights::write(&gguf, &config, &layout, &partial.join("model.safetensors"))
    })?;
    Ok((layout.size(), tokenizer.vocabulary()))
}
