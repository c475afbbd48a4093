//! Traces of answered requests in a file, for a sample of them. Does I/O on a thread of its own.
//!
//! A trace is a measurement: which model answered, how many tokens, how sure the model was of the first token of its response, and, if
//! hidden states are captured, how large their mean is. The states themselves are not written, because a text can be guessed from
//! them. A trace has no text and is not what the model thinks. The queue to the file is bounded; what does not fit is dropped and
//! counted.

#[cfg(test)]
mod tests;
mod writer;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use codex_engine::{End, LogProbabilities};
use codex_provenance::ModelDigest;
use jiff::Timestamp;

use super::{ServeError, bounded_file::BoundedFile, metrics::Metrics};
use crate::{
    arguments::whole,
    artifacts::reasoning::{self, ServedTrace},
};

/// Traces that wait to be written, at most.
const QUEUE: usize = 1024;
/// The span of `--max-traces-per-minute`.
const MINUTE: Duration = Duration::from_secs(60);

/// What becomes of traces: values of the label `result`.
pub(super) const RESULTS: [&str; 5] = [WRITTEN, UNLIKELY, CAPPED, DROPPED, FAILED];
/// It is in the file.
const WRITTEN: &str = "written";
/// Its probability is below the threshold.
const UNLIKELY: &str = "unlikely";
/// The minute has its traces.
const CAPPED: &str = "capped";
/// The queue was full.
const DROPPED: &str = "dropped";
/// The file cannot be written.
const FAILED: &str = "failed";

/// The arguments of the capture.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Arguments {
    /// Append traces of answered requests to this file, as JSON lines without texts.
    #[arg(long, value_name = "FILE")]
    trace_store: Option<PathBuf>,
    /// What traces are taken from.
    #[arg(long, value_name = "MODE", value_enum, default_value_t = Mode::Weights, requires = "trace_store")]
    trace_mode: Mode,
    /// Share of the requests that are traced, such as 0.01.
    #[arg(long, value_name = "SHARE", default_value = "0.01", value_parser = share, requires = "trace_store")]
    trace_sample: f64,
    /// Drop traces whose most likely token has a lower probability.
    #[arg(long, value_name = "PROBABILITY", default_value = "0.15", value_parser = share, requires = "trace_store")]
    trace_threshold: f64,
    /// Number of tokens that a trace names.
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = whole::<usize>(1..=20), requires = "trace_store")]
    trace_top_k: usize,
    /// The most traces of a minute; 0 for any number.
    #[arg(long, value_name = "COUNT", default_value_t = 60, value_parser = whole::<u64>(0..=1 << 20), requires = "trace_store")]
    max_traces_per_minute: u64,
    /// The most bytes of the file. Then it is renamed to FILE.1, in place of an earlier one, and begins anew.
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 20, value_parser = whole::<u64>(4096..=1 << 40), requires = "trace_store")]
    trace_store_size: u64,
}

/// What traces are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Mode {
    /// The fingerprint of the weights.
    Weights,
    /// Also the hidden states by which the tokens of the response were chosen.
    Activations,
}

impl Mode {
    /// Returns the value of `trace_mode`.
    fn name(self) -> &'static str {
        match self {
            Self::Weights => reasoning::WEIGHTS,
            Self::Activations => reasoning::ACTIVATIONS,
        }
    }
}

/// Reads a share above 0 and up to 1.
fn share(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| *number > 0.0 && *number <= 1.0);
    number.ok_or_else(|| "write a number above 0 and up to 1, such as 0.01".to_owned())
}

/// What is captured, and where to.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// The file.
    pub(super) path: PathBuf,
    pub(super) mode: Mode,
    pub(super) sample: f64,
    pub(super) threshold: f64,
    pub(super) top: usize,
    /// The most traces of a minute; 0 for any number.
    pub(super) most: u64,
    /// The most bytes of the file.
    pub(super) size: u64,
}

impl Settings {
    /// Opens the file.
    ///
    /// # Errors
    /// A file operation fails.
    pub(super) fn open(&self) -> Result<BoundedFile, ServeError> {
        BoundedFile::open(&self.path, self.size).map_err(ServeError::Traces)
    }
}

impl Arguments {
    /// Returns the file of traces.
    pub(super) fn store(&self) -> Option<&PathBuf> {
        self.trace_store.as_ref()
    }

    /// Returns what to capture, if anything.
    pub(super) fn settings(self) -> Option<Settings> {
        let Self { trace_mode: mode, trace_sample: sample, trace_threshold: threshold, trace_top_k: top, .. } = self;
        let (most, size) = (self.max_traces_per_minute, self.trace_store_size);
        self.trace_store.map(|path| Settings { path, mode, sample, threshold, top, most, size })
    }
}

/// Captures traces of one model.
#[derive(Debug)]
pub(super) struct Capture {
    settings: Settings,
    weights: ModelDigest,
    metrics: Arc<Metrics>,
    queue: SyncSender<ServedTrace>,
    /// Requests so far.
    requests: AtomicU64,
    /// When the minute began, and its traces so far.
    minute: Mutex<(Instant, u64)>,
}

impl Capture {
    /// Starts the thread that writes traces of this model. It ends when the capture is dropped.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start(
        settings: Settings,
        store: BoundedFile,
        weights: ModelDigest,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, ServeError> {
        let (queue, traces) = sync_channel(QUEUE);
        let counts = Arc::clone(&metrics);
        let thread = std::thread::Builder::new().name("traces".to_owned());
        thread.spawn(move || writer::write(store, &traces, &counts)).map_err(ServeError::Engine)?;
        let minute = Mutex::new((Instant::now(), 0));
        Ok(Arc::new(Self { settings, weights, metrics, queue, requests: AtomicU64::new(0), minute }))
    }

    /// Begins the trace of a request, if it is among the sample.
    pub(super) fn begin(self: &Arc<Self>, prompt_tokens: usize) -> Option<Trace> {
        let before = self.requests.fetch_add(1, Ordering::Relaxed);
        // The first request is traced, and then every time that the share adds up to another one.
        let share = |count: u64| (count as f64 * self.settings.sample).ceil();
        let is_sampled = share(before + 1) > share(before);
        is_sampled.then(|| Trace {
            capture: Arc::clone(self),
            request: before + 1,
            prompt_tokens,
            first: None,
            states: (0, Vec::new()),
        })
    }

    /// Whether the minute has room for another trace.
    fn admits(&self) -> bool {
        let most = self.settings.most;
        let mut minute = self.minute.lock().unwrap_or_else(PoisonError::into_inner);
        if minute.0.elapsed() >= MINUTE {
            *minute = (Instant::now(), 0);
        }
        let admits = most == 0 || minute.1 < most;
        minute.1 += u64::from(admits);
        admits
    }
}

/// How a response ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ended {
    /// The model or a limit ended it.
    Generated(Option<End>),
    /// A stop text ended it, or the client went.
    Closed,
}

impl Ended {
    fn name(self) -> &'static str {
        match self {
            Self::Generated(Some(End::Stop)) => "stop",
            Self::Generated(Some(End::Context)) => "context",
            Self::Generated(None) => "length",
            Self::Closed => "closed",
        }
    }
}

/// The trace of a request that is answered.
pub(super) struct Trace {
    capture: Arc<Capture>,
    request: u64,
    prompt_tokens: usize,
    /// Those of the first token.
    first: Option<LogProbabilities>,
    /// The number and the sum of the hidden states so far.
    states: (u64, Vec<f64>),
}

impl Trace {
    /// Takes the logits of the first token of the response. Later ones change nothing.
    pub(super) fn observe(&mut self, logits: &[f32], token: u32) {
        let top = self.capture.settings.top;
        self.first.get_or_insert_with(|| LogProbabilities::of(logits, token, top));
    }

    /// Takes the hidden state by which a token of the response was chosen.
    pub(super) fn pool(&mut self, state: &[f32]) {
        let (count, sum) = &mut self.states;
        *count += 1;
        sum.resize(state.len(), 0.0);
        sum.iter_mut().zip(state).for_each(|(sum, number)| *sum += f64::from(*number));
    }

    /// Queues the trace of a response with this number of tokens, if it is to be kept.
    pub(super) fn finish(self, completion_tokens: usize, ended: Ended) {
        let Self { capture, request, prompt_tokens, first, states: (count, sum) } = self;
        let top = first.unwrap_or_default().top;
        let Some(likely) = top.first().map(|(_, log)| f64::from(*log).exp()) else { return };
        let Capture { settings, weights, metrics, queue, .. } = &*capture;
        if likely < settings.threshold {
            return metrics.traced(UNLIKELY);
        }
        if !capture.admits() {
            return metrics.traced(CAPPED);
        }
        let trace = ServedTrace {
            kind: reasoning::TYPE.to_owned(),
            timestamp: Timestamp::now(),
            request,
            trace_mode: settings.mode.name().to_owned(),
            weights: weights.to_string(),
            prompt_tokens: prompt_tokens as u64,
            completion_tokens: completion_tokens as u64,
            end: ended.name().to_owned(),
            top_tokens: top.iter().map(|(token, _)| *token).collect(),
            top_probability: likely,
            embedding_norm: (count > 0).then(|| sum.iter().map(|sum| sum * sum).sum::<f64>().sqrt() / count as f64),
        };
        if queue.try_send(trace).is_err() {
            metrics.traced(DROPPED);
        }
    }
}
