//! `codex generate`: completes a prompt or answers a message with a model directory, and prints the text as it is generated.
//! Reads files and standard input.

use std::{
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    time::Instant,
};

use codex_configs::Device;
use codex_engine::{Sampler, Sampling};

use crate::{
    atomic_fs::{FileError, Misnamed},
    error::CommandError,
    model::{Generator, ModelError},
    text::{Clock, Message, Role, Stops},
};

/// The most bytes of a prompt.
const MAX_PROMPT: u64 = 64 << 20;

/// Complete a prompt or answer a message, and print the text as it is generated.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["prompt", "chat", "file"])))]
pub struct Generate {
    /// The model directory, as Hugging Face's libraries write it.
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// Where to compute; auto takes a GPU if this program was built with CUDA and finds one, else the processor.
    #[arg(long, default_value = "auto", value_parser = crate::device::parser())]
    device: Device,
    /// Complete this text.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Answer this message, by the model's chat template.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    chat: Option<String>,
    /// Complete the text of a file; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Instructions before the message of --chat.
    #[arg(long, value_name = "TEXT", requires = "chat", allow_hyphen_values = true)]
    system: Option<String>,
    /// The most tokens to generate.
    #[arg(long, value_name = "COUNT", default_value_t = 256, value_parser = crate::arguments::whole::<usize>(1..=1 << 20))]
    max_tokens: usize,
    /// Draw tokens at random: 1 as the model says, less to prefer likely ones. 0 always takes the most likely token.
    #[arg(long, value_name = "NUMBER", default_value_t = 0.0, allow_negative_numbers = true, value_parser = crate::arguments::number("write a number, at least 0"))]
    temperature: f64,
    /// Draw among the most likely tokens whose probabilities add up to this. Needs --temperature.
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, allow_negative_numbers = true, requires = "temperature", value_parser = crate::arguments::number("write a number above 0, at most 1"))]
    top_p: f64,
    /// Draw among this many of the most likely tokens; 0 is all. Needs --temperature.
    #[arg(long, value_name = "COUNT", default_value_t = 0, requires = "temperature", value_parser = crate::arguments::whole::<usize>(0..=u64::MAX))]
    top_k: usize,
    /// Seed of the draws.
    #[arg(long, allow_negative_numbers = true, default_value_t = 1, value_parser = crate::arguments::seed)]
    seed: u64,
    /// End before this text, which is not printed. May be repeated.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    stop: Vec<String>,
}

impl Generate {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let sampling =
            Sampling { temperature: self.temperature, top_p: self.top_p, top_k: self.top_k, seed: self.seed };
        let mut sampler = Sampler::new(sampling).map_err(CommandError::bad_input)?;
        let prompt = self.prompt()?;
        let begun = Instant::now();
        let mut generator = Generator::load_directory(&self.model, 1, self.device).map_err(|error| match error {
            ModelError::File(error) => error.into(),
            error => CommandError::bad_input(error),
        })?;
        let tokenizer = generator.tokenizer().clone().with_clock(Clock::At(jiff::Zoned::now().datetime()));
        let ids = match &prompt {
            Prompt::Plain(text) => tokenizer.encode(text),
            Prompt::Chat(messages) => tokenizer.encode_chat(messages),
        };
        let ids = ids.map_err(CommandError::bad_input)?;
        generator.prefill(0, &ids).map_err(CommandError::bad_input)?;
        let loaded = begun.elapsed();
        let mut stream = tokenizer.stream();
        let mut stops = Stops::new(&self.stop);
        let mut count = 0;
        let generating = Instant::now();
        let mut first = None;
        while count < self.max_tokens {
            let emitted = generator.step_by(|_, logits| sampler.choose(logits)).map_err(CommandError::failed)?;
            let Some(emitted) = emitted.first().copied() else { break };
            first.get_or_insert_with(|| generating.elapsed());
            count += 1;
            let is_end = emitted.end == Some(codex_engine::End::Stop);
            if !is_end {
                say(&stops.push(&stream.push(emitted.token).map_err(CommandError::failed)?))?;
            }
            if stops.reached() || emitted.end.is_some() {
                break;
            }
        }
        if !stops.reached() {
            say(&stops.push(&stream.finish().map_err(CommandError::failed)?))?;
            say(&stops.finish())?;
        }
        say("\n")?;
        let seconds = generating.elapsed().saturating_sub(first.unwrap_or_default()).as_secs_f64();
        tracing::info!(
            path = generator.path(),
            load_seconds = loaded.as_secs_f64(),
            prompt_tokens = ids.len(),
            prompt_seconds = first.unwrap_or_default().as_secs_f64(),
            tokens = count,
            tokens_per_second = (count.saturating_sub(1)) as f64 / seconds.max(1e-9),
            peak_memory_bytes = peak_memory(),
            "generated"
        );
        Ok(codex_reports::exit::FINISHED)
    }

    fn prompt(&self) -> Result<Prompt, CommandError> {
        if let Some(text) = &self.chat {
            let message = |role, content: &String| Message { role, content: content.clone() };
            let system = self.system.iter().map(|text| message(Role::System, text));
            return Ok(Prompt::Chat(system.chain([message(Role::User, text)]).collect()));
        }
        match (&self.prompt, &self.file) {
            (Some(text), _) => Ok(Prompt::Plain(text.clone())),
            (None, Some(path)) => read(path).map(Prompt::Plain),
            (None, None) => Err(CommandError::bad_input("give --prompt, --chat or --file")),
        }
    }
}

/// What the model is given.
enum Prompt {
    Plain(String),
    Chat(Vec<Message>),
}

/// Reads a prompt from a file, or from standard input if it is `-`.
fn read(path: &Path) -> Result<String, CommandError> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(MAX_PROMPT + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_PROMPT + 1).read_to_end(&mut bytes))
    };
    read.map_err(FileError::of("reading", path))?;
    let misnamed =
        |wrong| CommandError::bad_input(Misnamed { what: "--file".to_owned(), path: path.to_owned(), wrong });
    if bytes.len() as u64 > MAX_PROMPT {
        return Err(misnamed("is longer than 64 MiB"));
    }
    String::from_utf8(bytes).map_err(|_| misnamed("is not UTF-8"))
}

/// Prints text at once.
fn say(text: &str) -> Result<(), CommandError> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(FileError::of("writing", Path::new("standard output")))
        .map_err(CommandError::failed)
}

/// Returns the most memory that this process has held at once, in bytes; `None` if the system does not say.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
