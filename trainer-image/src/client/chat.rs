//! `codex chat`: a conversation in the terminal, with thinking apart. Uses the network and the terminal.

use std::{
    io::{BufRead, IsTerminal as _, Write},
    path::PathBuf,
};

use codex_configs::Device;
use serde_json::{Value, json};

use super::{ClientError, Remote, session_log::SessionLog};
use crate::{error::CommandError, serving::local::Local};

/// Talk to a model in the terminal. An empty line sends nothing, /clear begins anew, /exit or the end of the input ends.
#[derive(Debug, clap::Args)]
pub struct Chat {
    /// A model directory, which is served to this machine for the conversation. Without it, the server at --url is used.
    #[arg(value_name = "DIR", conflicts_with = "url")]
    model: Option<PathBuf>,
    #[command(flatten)]
    remote: Remote,
    /// Name of the model; codex is whatever a Codex server serves.
    #[arg(long = "model", value_name = "NAME", default_value = "codex")]
    name: String,
    /// Where to compute, with DIR.
    #[arg(long, default_value = "auto", value_parser = crate::device::parser())]
    device: Device,
    /// Instructions before the conversation.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// The most tokens of an answer.
    #[arg(long, value_name = "COUNT", default_value_t = 1024, value_parser = crate::arguments::whole::<u64>(1..=1 << 32))]
    max_tokens: u64,
    /// Draw tokens at random: 1 as the model says, less to prefer likely ones. 0 always takes the most likely token.
    #[arg(long, value_name = "NUMBER", default_value_t = 0.0, allow_negative_numbers = true, value_parser = crate::arguments::number("write a number, at least 0"))]
    temperature: f64,
    /// The most tokens of thinking; then the answer begins. -1 lifts a budget of the server, which otherwise counts.
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true, value_parser = budget)]
    thinking_budget: Option<i64>,
    /// Do not show thinking.
    #[arg(long)]
    hide_thinking: bool,
    /// Append the conversation to this file as lines of JSON, which codex-tools sessions import reads, such as
    /// sessions/chat-1.ndjson.
    #[arg(long, value_name = "FILE")]
    session_log: Option<PathBuf>,
}

/// Parses a budget of thinking.
fn budget(text: &str) -> Result<i64, String> {
    let budget = text.parse().ok().filter(|budget| (-1..=1 << 32).contains(budget));
    budget.ok_or_else(|| format!("write a whole number from 0 to {}, or -1 for no budget", 1_u64 << 32))
}

impl Chat {
    pub(crate) fn run(mut self) -> Result<i32, CommandError> {
        let local = match &self.model {
            Some(directory) => Some(Local::start(directory.clone(), self.device)?),
            None => None,
        };
        if let Some(local) = &local {
            self.remote.url = format!("http://{}", local.address());
        }
        let (input, mut output) = (std::io::stdin(), std::io::stdout());
        let look = Look { prompts: input.is_terminal(), colours: output.is_terminal(), thinking: !self.hide_thinking };
        self.talk(&mut input.lock(), &mut output, look)?;
        Ok(codex_reports::exit::FINISHED)
    }

    /// Answers line by line.
    pub(super) fn talk(&self, input: &mut impl BufRead, out: &mut impl Write, look: Look) -> Result<(), CommandError> {
        let agent = self.remote.agent();
        let system = self.system.iter().map(|text| json!({ "role": "system", "content": text }));
        let beginning: Vec<Value> = system.collect();
        let mut messages = beginning.clone();
        let mut log = SessionLog::open(self.session_log.clone())?;
        self.system.iter().try_for_each(|text| log.add("system", text))?;
        loop {
            if look.prompts {
                write!(out, "> ").and_then(|()| out.flush()).map_err(CommandError::failed)?;
            }
            let mut line = String::new();
            if input.read_line(&mut line).map_err(CommandError::failed)? == 0 {
                return Ok(());
            }
            match line.trim() {
                "" => continue,
                "/exit" => return Ok(()),
                "/clear" => {
                    messages.clone_from(&beginning);
                    continue;
                }
                text => {
                    log.add("user", text)?;
                    messages.push(json!({ "role": "user", "content": text }));
                }
            }
            match self.answer(&agent, &messages, out, look) {
                Ok(content) => {
                    log.add("assistant", &content)?;
                    messages.push(json!({ "role": "assistant", "content": content }));
                }
                // In a terminal the conversation goes on without the message.
                Err(error @ ClientError::Refused { .. }) if look.prompts => {
                    messages.pop();
                    log.add("WARN", &error.to_string())?;
                    writeln!(out, "{error}").map_err(CommandError::failed)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn answer(
        &self,
        agent: &ureq::Agent,
        messages: &[Value],
        out: &mut impl Write,
        look: Look,
    ) -> Result<String, ClientError> {
        let mut body = json!({
            "model": self.name, "messages": messages, "stream": true, "max_tokens": self.max_tokens,
            "temperature": self.temperature,
        });
        if let Some(budget) = self.thinking_budget {
            body["thinking_token_budget"] = budget.into();
        }
        let mut content = String::new();
        let mut thinking = false;
        let broken =
            |error: std::io::Error| ClientError::Network { url: "the terminal".to_owned(), why: error.to_string() };
        self.remote.stream(agent, "/v1/chat/completions", &body, |event| {
            let delta = &event["choices"][0]["delta"];
            let text = |name: &str| delta[name].as_str().filter(|text| !text.is_empty());
            if let Some(text) = text("reasoning_content").or_else(|| text("reasoning")).filter(|_| look.thinking) {
                if !thinking {
                    thinking = true;
                    write!(out, "{}", look.before()).map_err(broken)?;
                }
                write!(out, "{text}").map_err(broken)?;
            }
            if let Some(text) = text("content") {
                if std::mem::take(&mut thinking) {
                    write!(out, "{}", look.after()).map_err(broken)?;
                }
                content.push_str(text);
                write!(out, "{text}").map_err(broken)?;
            }
            out.flush().map_err(broken)
        })?;
        let end = if thinking { look.after() } else { "\n" };
        write!(out, "{end}").and_then(|()| out.flush()).map_err(broken)?;
        Ok(content)
    }
}

/// How the conversation is shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Whether a person types the input.
    pub(super) prompts: bool,
    pub(super) colours: bool,
    pub(super) thinking: bool,
}

impl Look {
    fn before(self) -> &'static str {
        if self.colours { "\x1b[2m" } else { "[thinking]\n" }
    }

    fn after(self) -> &'static str {
        if self.colours { "\x1b[0m\n\n" } else { "\n[answer]\n" }
    }
}
