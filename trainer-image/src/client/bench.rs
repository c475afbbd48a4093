//! `codex bench-serve`: sends requests to a server of OpenAI's API at given rates and measures how long answers take. Uses the
//! network.
//!
//! The loop is open: requests begin at their times whether or not earlier ones are answered, as those of independent clients do.
//! A closed loop would slow down with the server and hide the waiting.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use clap::builder::PossibleValuesParser;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    ClientError, Remote,
    knee::{Limits, Search},
};
use crate::error::CommandError;

/// Requests that run at once, at most. More are counted as failed, because the client could not send them.
const MAX_RUNNING: usize = 2048;

/// Measure the latency of a server under an open load.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchServe {
    #[command(flatten)]
    remote: Remote,
    /// Requests per second. May be repeated, to compare rates. With --knee, the first rate that is tried; 1 by default.
    #[arg(
        long,
        value_name = "NUMBER",
        required_unless_present = "knee",
        value_parser = crate::arguments::number("write a number above 0")
    )]
    rate: Vec<f64>,
    /// Find the highest rate that holds: double the rate until --max-first-token or --max-refused is passed, then bisect, until the
    /// rate that holds and the one that does not are within a tenth.
    #[arg(long)]
    knee: bool,
    /// With --knee: the most seconds of the 95th percentile of the time to the first token.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 0.7,
        requires = "knee",
        value_parser = crate::arguments::number("write a number of seconds above 0")
    )]
    max_first_token: f64,
    /// With --knee: the largest share of requests that are refused or fail.
    #[arg(
        long,
        value_name = "SHARE",
        default_value_t = 0.01,
        requires = "knee",
        value_parser = crate::arguments::number("write a number from 0 to 1")
    )]
    max_refused: f64,
    /// With --knee: seconds that a rate lasts, at least; --requests is then the least number of them. A queue needs time to grow.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, requires = "knee", value_parser = crate::arguments::whole::<u64>(0..=3600))]
    min_seconds: u64,
    /// With --knee: the most rates that are tried.
    #[arg(long, value_name = "COUNT", default_value_t = 16, requires = "knee", value_parser = crate::arguments::whole::<usize>(1..=100))]
    max_rates: usize,
    /// With --knee: seconds after which no further rate is tried.
    #[arg(long, value_name = "SECONDS", default_value_t = 1800, requires = "knee", value_parser = crate::arguments::whole::<u64>(1..=86_400))]
    max_seconds: u64,
    /// Number of requests at each rate. More of them make percentiles steadier, and show a queue that grows slowly.
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = crate::arguments::whole::<usize>(1..=1_000_000))]
    requests: usize,
    /// Times between requests: poisson, as of independent clients, or constant.
    #[arg(long, default_value = "poisson", value_parser = PossibleValuesParser::new(["poisson", "constant"]))]
    arrivals: String,
    /// Name of the model; codex is whatever a Codex server serves.
    #[arg(long, value_name = "NAME", default_value = "codex")]
    model: String,
    /// Ask /v1/chat/completions or /v1/completions.
    #[arg(long, default_value = "chat", value_parser = PossibleValuesParser::new(["chat", "completions"]))]
    endpoint: String,
    /// The prompt. Every {} in it becomes the number of the request, so that no two prompts are the same.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "{}: Tell a story about a lighthouse keeper.",
        allow_hyphen_values = true
    )]
    prompt: String,
    /// Send a prompt of this many words, answered with one token, in place of every eighth one: what it does to the time between
    /// the tokens of the others. The percentiles leave these requests out.
    #[arg(long, value_name = "WORDS", value_parser = crate::arguments::whole::<usize>(1..=1 << 20))]
    long_prompts: Option<usize>,
    /// The most tokens of an answer.
    #[arg(long, value_name = "COUNT", default_value_t = 64, value_parser = crate::arguments::whole::<u64>(1..=1 << 32))]
    max_tokens: u64,
    /// Seed of the times.
    #[arg(long, default_value_t = 1, value_parser = crate::arguments::seed)]
    seed: u64,
    /// Print JSON, one line for each rate, and one for the knee.
    #[arg(long)]
    json: bool,
}

/// With `--long-prompts`, one request of this many has one.
const LONG_EVERY: usize = 8;

/// What was measured of one request.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    /// Seconds to the first token.
    pub(super) first: f64,
    /// Seconds between tokens.
    pub(super) gaps: Vec<f64>,
    /// Seconds to the end.
    pub(super) whole: f64,
    /// Tokens of the answer.
    pub(super) tokens: u64,
    /// Whether its prompt is one of `--long-prompts`.
    pub(super) long: bool,
}

/// Percentiles of durations in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Percentiles {
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p95: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

/// What was measured at one rate.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) rate: f64,
    pub(super) sent: usize,
    pub(super) answered: usize,
    /// Refused with 429 or 503.
    pub(super) refused: usize,
    pub(super) failed: usize,
    /// Answered requests per second, from the first request to the last answer.
    pub(super) achieved: f64,
    /// Tokens of answers per second.
    pub(super) tokens_per_second: f64,
    pub(super) first_token: Option<Percentiles>,
    pub(super) between_tokens: Option<Percentiles>,
    pub(super) whole: Option<Percentiles>,
    /// Time to the first token of long prompts.
    pub(super) long_first_token: Option<Percentiles>,
    /// The first failure.
    pub(super) error: Option<String>,
}

impl BenchServe {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        if let Some(rate) = self.rate.iter().find(|rate| **rate <= 0.0) {
            return Err(CommandError::bad_input(format!("--rate {rate}: write a number above 0")));
        }
        let mut out = std::io::stdout().lock();
        if self.knee {
            return self.find_knee(&mut out);
        }
        let mut answered = 0;
        for (index, rate) in self.rate.iter().enumerate() {
            answered += self.show(&mut out, index * self.requests, *rate)?.answered;
        }
        if answered == 0 {
            return Err(CommandError::failed("no request was answered"));
        }
        Ok(codex_reports::exit::FINISHED)
    }

    /// Measures a rate and prints its row. The prompts are numbered from `from` on, so that no rate finds those of another one in the
    /// server's cache.
    fn show(&self, out: &mut impl std::io::Write, from: usize, rate: f64) -> Result<Row, CommandError> {
        let row = self.measure(rate, from);
        let line = if self.json { serde_json::to_string(&row).map_err(CommandError::failed)? } else { row.line() };
        if from == 0 && !self.json {
            writeln!(out, "{}", Row::HEAD).map_err(CommandError::failed)?;
        }
        writeln!(out, "{line}").and_then(|()| out.flush()).map_err(CommandError::failed)?;
        if let Some(error) = &row.error {
            tracing::warn!(rate, "{error}");
        }
        Ok(row)
    }

    /// Finds the highest rate that holds, and prints the rows of the rates that it tries, and the knee.
    ///
    /// # Errors
    /// The options contradict each other, no tried rate holds, or the output cannot be written.
    pub(super) fn find_knee(&self, out: &mut impl std::io::Write) -> Result<i32, CommandError> {
        let first = match self.rate[..] {
            [] => 1.0,
            [rate] => rate,
            _ => return Err(CommandError::bad_input("--rate: with --knee, give the first rate only")),
        };
        if self.max_first_token <= 0.0 {
            let told = format!("--max-first-token {}: write a number of seconds above 0", self.max_first_token);
            return Err(CommandError::bad_input(told));
        }
        if !(0.0..=1.0).contains(&self.max_refused) {
            return Err(CommandError::bad_input(format!(
                "--max-refused {}: write a number from 0 to 1",
                self.max_refused
            )));
        }
        let limits = Limits { first_token: self.max_first_token, refused: self.max_refused };
        let (begun, mut search, mut why, mut sent) = (Instant::now(), Search::new(first), None, 0);
        for _ in 0..self.max_rates {
            let Some(rate) = search.next().filter(|_| begun.elapsed().as_secs() < self.max_seconds) else { break };
            let row = self.show(out, sent, rate)?;
            sent += row.sent;
            if row.answered + row.refused == 0 {
                return Err(CommandError::failed("no request was answered"));
            }
            let broken = limits.broken(&row);
            search.tried(rate, broken.is_none());
            why = broken.or(why);
        }
        let told = if self.json {
            json!({ "knee": search, "limits": limits, "complete": search.next().is_none() }).to_string()
        } else {
            search.sentence(&why.unwrap_or_default())
        };
        writeln!(out, "{told}").and_then(|()| out.flush()).map_err(CommandError::failed)?;
        match search.holds {
            Some(_) => Ok(codex_reports::exit::FINISHED),
            None => Err(CommandError::failed("no rate that was tried holds")),
        }
    }

    /// Returns when each request begins, in seconds.
    pub(super) fn times(&self, rate: f64) -> Vec<f64> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let mut at = 0.0;
        let mut next = || {
            let now = at;
            let share: f64 = random.random();
            at += if self.arrivals == "constant" { 1.0 } else { -(1.0 - share).ln() } / rate;
            now
        };
        let least = if self.knee { (rate * self.min_seconds as f64).ceil() as usize } else { 0 };
        (0..self.requests.max(least)).map(|_| next()).collect()
    }

    /// Sends the requests of one rate, whose prompts are numbered from `from` on, and waits for their answers.
    pub(super) fn measure(&self, rate: f64, from: usize) -> Row {
        let agent = self.remote.agent();
        let (running, results) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for (number, at) in self.times(rate).into_iter().enumerate() {
                let wait = Duration::from_secs_f64(at).saturating_sub(begun.elapsed());
                std::thread::sleep(wait);
                let keep = |result| results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                if running.fetch_add(1, Ordering::Relaxed) >= MAX_RUNNING {
                    running.fetch_sub(1, Ordering::Relaxed);
                    let why = format!("{MAX_RUNNING} requests are running");
                    keep(Err(ClientError::Network { url: "this client".to_owned(), why }));
                    continue;
                }
                let (agent, running) = (agent.clone(), Arc::clone(&running));
                let results = Arc::clone(&results);
                scope.spawn(move || {
                    let result = self.sample(&agent, number, from + number);
                    running.fetch_sub(1, Ordering::Relaxed);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                });
            }
        });
        let took = begun.elapsed().as_secs_f64();
        let results = std::mem::take(&mut *results.lock().unwrap_or_else(PoisonError::into_inner));
        Row::of(rate, took, results)
    }

    /// Sends a request, the `index`th of its rate.
    fn sample(&self, agent: &ureq::Agent, index: usize, number: usize) -> Result<Sample, ClientError> {
        let long = self.long_prompts.filter(|_| index % LONG_EVERY == LONG_EVERY - 1);
        let (prompt, most) = match long {
            Some(words) => (format!("{number}:{}", " 1".repeat(words)), 1),
            None => (self.prompt.replace("{}", &number.to_string()), self.max_tokens),
        };
        let mut body = json!({
            "model": self.model, "stream": true, "stream_options": { "include_usage": true }, "max_tokens": most,
            "temperature": 0,
        });
        let path = if self.endpoint == "chat" {
            body["messages"] = json!([{ "role": "user", "content": prompt }]);
            "/v1/chat/completions"
        } else {
            body["prompt"] = prompt.into();
            "/v1/completions"
        };
        let begun = Instant::now();
        let (mut sample, mut last, mut pieces) = (Sample { long: long.is_some(), ..Sample::default() }, None, 0);
        self.remote.stream(agent, path, &body, |event| {
            if let Some(tokens) = event["usage"]["completion_tokens"].as_u64() {
                sample.tokens = tokens;
            }
            if has_text(&event["choices"][0]) {
                let now = begun.elapsed().as_secs_f64();
                pieces += 1;
                match last.replace(now) {
                    None => sample.first = now,
                    Some(last) => sample.gaps.push(now - last),
                }
            }
            Ok(())
        })?;
        sample.whole = begun.elapsed().as_secs_f64();
        // Not every server tells the number of tokens.
        sample.tokens = sample.tokens.max(pieces);
        if last.is_none() {
            sample.first = sample.whole;
        }
        Ok(sample)
    }
}

/// Returns whether a piece of a choice has text.
fn has_text(choice: &Value) -> bool {
    let delta = &choice["delta"];
    let texts = [&choice["text"], &delta["content"], &delta["reasoning_content"], &delta["reasoning"]];
    texts.into_iter().any(|text| text.as_str().is_some_and(|text| !text.is_empty())) || delta["tool_calls"].is_array()
}

impl Percentiles {
    /// Returns percentiles by the nearest rank; `None` without values.
    pub(super) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let max = *values.last()?;
        let at = |share: f64| values[((share * values.len() as f64).ceil() as usize).clamp(1, values.len()) - 1];
        Some(Self { p50: at(0.5), p90: at(0.9), p95: at(0.95), p99: at(0.99), max })
    }
}

impl Row {
    const HEAD: &str = "requests/s  answered  refused  failed  achieved/s  tokens/s   first token p50/p95/p99   between p50/p95/p99   whole p50/p95/p99 (ms)";

    fn of(rate: f64, took: f64, results: Vec<Result<Sample, ClientError>>) -> Self {
        let sent = results.len();
        let refused =
            results.iter().filter(|it| matches!(it, Err(ClientError::Refused { status: 429 | 503, .. }))).count();
        let error = results.iter().find_map(|it| it.as_ref().err()).map(ToString::to_string);
        let samples: Vec<Sample> = results.into_iter().filter_map(Result::ok).collect();
        let tokens: u64 = samples.iter().map(|sample| sample.tokens).sum();
        let of = |long: bool| samples.iter().filter(move |sample| sample.long == long);
        Self {
            rate,
            sent,
            answered: samples.len(),
            refused,
            failed: sent - samples.len() - refused,
            achieved: samples.len() as f64 / took.max(1e-9),
            tokens_per_second: tokens as f64 / took.max(1e-9),
            first_token: Percentiles::of(of(false).map(|sample| sample.first).collect()),
            between_tokens: Percentiles::of(of(false).flat_map(|sample| sample.gaps.clone()).collect()),
            whole: Percentiles::of(of(false).map(|sample| sample.whole).collect()),
            long_first_token: Percentiles::of(of(true).map(|sample| sample.first).collect()),
            error,
        }
    }

    /// Returns the row of the table.
    fn line(&self) -> String {
        let shown = |percentiles: Option<Percentiles>| {
            percentiles.map_or_else(
                || "-".to_owned(),
                |it| {
                    let ms = |seconds: f64| format!("{:.0}", seconds * 1000.0);
                    format!("{}/{}/{}", ms(it.p50), ms(it.p95), ms(it.p99))
                },
            )
        };
        format!(
            "{:>10}  {:>8}  {:>7}  {:>6}  {:>10.2}  {:>8.1}   {:>23}   {:>19}   {:>17}",
            self.rate,
            self.answered,
            self.refused,
            self.failed,
            self.achieved,
            self.tokens_per_second,
            shown(self.first_token),
            shown(self.between_tokens),
            shown(self.whole)
        )
    }
}
