//! `codex infer`: sends one prompt to a server and prints its completion. Uses the network.

use std::io::{Read as _, Write as _};

use serde_json::{Value, json};

use super::Remote;
use crate::error::CommandError;

/// The most bytes of an answer.
const MAX_ANSWER: u64 = 64 << 20;

/// Send a prompt to a server and print its completion.
#[derive(Debug, clap::Args)]
pub struct Infer {
    /// The prompt; `-` is standard input.
    #[arg(value_name = "TEXT")]
    prompt: String,
    #[command(flatten)]
    remote: Remote,
    /// The most tokens of the completion; the model's context by default.
    #[arg(long, value_name = "COUNT", value_parser = crate::arguments::whole::<u64>(1..=1 << 32))]
    max_new_tokens: Option<u64>,
    /// Print the whole answer as JSON, with the model's digest.
    #[arg(long)]
    json: bool,
}

impl Infer {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let mut prompt = self.prompt;
        if prompt == "-" {
            prompt.clear();
            std::io::stdin().take(MAX_ANSWER).read_to_string(&mut prompt).map_err(CommandError::failed)?;
        }
        let mut body = json!({ "prompt": prompt });
        if let Some(limit) = self.max_new_tokens {
            body["max_new_tokens"] = limit.into();
        }
        let mut text = String::new();
        let answer = self.remote.post(&self.remote.agent(), "/infer", &body)?;
        answer.take(MAX_ANSWER).read_to_string(&mut text).map_err(CommandError::failed)?;
        let shown = if self.json {
            text
        } else {
            let value: Value = serde_json::from_str(&text).map_err(CommandError::failed)?;
            let completion = value["completion"].as_str();
            completion.ok_or_else(|| CommandError::failed("the answer has no completion"))?.to_owned()
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{shown}").map_err(CommandError::failed)?;
        Ok(codex_reports::exit::FINISHED)
    }
}
