//! Continuous batching: one thread owns the generator and works on token ids only.
//!
//! permit → bounded queue → engine thread → a channel of tokens per request. There are as many permits as slots and places in the
//! queue, so overload is refused before a request is queued. A request holds its permit until the thread is done with it. A
//! request whose receiver is gone is dropped before the next step, also in the middle of its prompt.
//!
//! Requests may have more slots than the cache holds whole contexts. One is admitted if its tokens so far fit, not its longest response. When
//! the responses have grown beyond the bound, the request that came last is pre-empted: its slot is emptied, and it waits before all
//! others until its tokens fit again. Then prompt and response so far are computed again, which gives the same bits, and it goes on.
//!
//! A step computes a bounded number of tokens: one for each response that is generated, and chunks of prompts in the order in which
//! they came. A long prompt so delays the next tokens of other requests by a chunk, not by its length. Chunks change no bit.

mod work;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use codex_engine::{End, LogProbabilities, Sampler};
use codex_reports::CopiedGrammar;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{
    access::Client,
    capture::{Capture, Trace},
    errors::Errors,
    grammar::Constraint,
    metrics::Metrics,
    room::{EngineStatus, Room},
    shadow::{Mirror, Recording},
    thinking::Thinking,
};
use crate::model::{GenerateError, Generator};

/// A handle of the engine thread. The thread ends when the handle is dropped and all requests are answered.
#[derive(Debug)]
pub(super) struct Batcher {
    requests: mpsc::Sender<Request>,
    pub(super) permits: Arc<Semaphore>,
    capacity: usize,
    /// Requests that are generated at the same time, at most.
    running: usize,
    /// The settings that are in force.
    pub(super) engine: EngineStatus,
    /// The longest time from the arrival of a request to the end of its response.
    time_limit: Option<Duration>,
    progress: Arc<Progress>,
    /// Copies requests to shadows.
    mirror: Option<Arc<Mirror>>,
    /// Traces requests.
    capture: Option<Arc<Capture>>,
    /// Where failures are recorded.
    errors: Arc<Errors>,
}

/// When the engine thread was last seen to go on.
#[derive(Debug)]
struct Progress {
    begun: Instant,
    /// Milliseconds since `begun`.
    latest: AtomicU64,
}

impl Progress {
    fn new() -> Self {
        Self { begun: Instant::now(), latest: AtomicU64::new(0) }
    }

    fn go_on(&self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.begun).as_millis();
        self.latest.store(u64::try_from(elapsed).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Returns how long it has not gone on, if that is so long that it never will.
    fn stalled(&self, now: Instant) -> Option<Duration> {
        let latest = Duration::from_millis(self.latest.load(Ordering::Relaxed));
        let since = now.saturating_duration_since(self.begun).saturating_sub(latest);
        (since >= STALLED).then_some(since)
    }
}

/// The time after which an engine thread that has requests and makes no step counts as stalled. Steps take less by far.
const STALLED: Duration = Duration::from_secs(120);

/// The tokens of a response.
#[derive(Debug)]
pub(super) struct Generated {
    pub(super) tokens: Vec<u32>,
    /// How many tokens of the prompt came from the prefix cache.
    pub(super) cached: usize,
    /// Why the response ended; `None` if it reached the limit of new tokens.
    pub(super) end: Option<End>,
}

/// A token of a response.
#[derive(Debug)]
pub(super) struct Token {
    /// Its id.
    pub(super) id: u32,
    /// Log-probabilities, if they were asked for.
    pub(super) scores: Option<LogProbabilities>,
    /// How many tokens of the prompt came from the prefix cache.
    pub(super) cached: usize,
}

/// What the engine thread sends for a request.
#[derive(Debug)]
pub(super) enum Piece {
    /// The log-probabilities of the tokens of the prompt but the first, if they were asked for. It comes before all others.
    Prompt(Vec<LogProbabilities>),
    /// The next token, the end token included.
    Token(Token),
    /// The last piece: why the response ended, `None` if it reached the limit of new tokens; or why it failed.
    End(Result<Option<End>, GenerateError>),
    /// Nothing more comes, because the time limit, which is given, has passed.
    Late(Duration),
}

/// The pieces of a response, as they are generated. Dropping them ends the generation.
pub(super) struct Pieces {
    received: mpsc::UnboundedReceiver<Piece>,
    /// When the response must have ended, and the time limit.
    deadline: Option<(tokio::time::Instant, Duration)>,
    /// What is copied to shadows once the response has ended.
    copy: Option<Recording>,
    errors: Arc<Errors>,
}

impl Pieces {
    /// Returns the next piece; `None` if the engine thread has ended.
    pub(super) async fn recv(&mut self) -> Option<Piece> {
        let piece = match self.deadline {
            None => self.received.recv().await,
            Some((deadline, limit)) => {
                let piece = tokio::time::timeout_at(deadline, self.received.recv()).await;
                piece.unwrap_or(Some(Piece::Late(limit)))
            }
        };
        match (&piece, &mut self.copy) {
            (Some(Piece::Token(token)), Some(copy)) => copy.token(token.id),
            (Some(Piece::End(Ok(_))), _) => self.answered(false),
            (Some(Piece::End(Err(error))), _) => self.errors.generation(error),
            _ => {}
        }
        piece
    }

    /// Says that the response is complete although the generation has not ended: a text ended it.
    pub(super) fn stopped(&mut self) {
        self.answered(true);
    }

    fn answered(&mut self, stopped: bool) {
        if let Some(copy) = self.copy.take() {
            copy.finish(stopped);
        }
    }
}

/// What is asked of the engine thread.
#[derive(Clone, Debug)]
pub(super) struct Job {
    /// The ids of the prompt.
    pub(super) prompt: Vec<u32>,
    /// The most tokens of the response. 0 computes the prompt alone.
    pub(super) limit: usize,
    /// Chooses the tokens.
    pub(super) sampler: Sampler,
    /// Asks for the log-probability of each token, and of this many of the most likely ones.
    pub(super) scores: Option<usize>,
    /// Asks for the same of the tokens of the prompt.
    pub(super) prompt_scores: Option<usize>,
    /// Binds the tokens to a grammar.
    pub(super) bound: Option<Bound>,
    /// Ends the reasoning in time.
    pub(super) thinking: Option<Thinking>,
    /// Whether nobody waits for it, so that its times are not among those of requests.
    pub(super) aside: bool,
}

impl Job {
    /// Asks for the most likely tokens after a prompt, and nothing else.
    pub(super) fn greedy(prompt: Vec<u32>, limit: usize) -> Self {
        let sampler = Sampler::greedy();
        let (scores, prompt_scores, bound, thinking) = (None, None, None, None);
        Self { prompt, limit, sampler, scores, prompt_scores, bound, thinking, aside: false }
    }
}

/// What binds the tokens of a response.
#[derive(Clone, Debug)]
pub(super) struct Bound {
    pub(super) constraint: Constraint,
    /// What it was compiled from, for copies of the request.
    pub(super) source: Arc<CopiedGrammar>,
}

/// The reasons for which a request gets no response.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// No permit is free.
    #[error("the server is overloaded: {capacity} requests are running or waiting; retry in a second")]
    Overloaded { capacity: usize },
    /// The prompt is refused, or the decoder failed.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The time limit has passed.
    #[error("the response did not end within the {} s that a request may take here: ask for fewer tokens", limit.as_secs())]
    Late { limit: Duration },
    /// The engine thread has ended.
    #[error("the engine thread has ended")]
    Ended,
    /// The engine thread makes no step.
    #[error("the engine has made no step for {} s although requests wait", since.as_secs())]
    Stalled { since: Duration },
}

/// A request on its way to the engine thread.
struct Request {
    job: Job,
    /// Holds at most the tokens of the response.
    pieces: mpsc::UnboundedSender<Piece>,
    permit: OwnedSemaphorePermit,
    /// Pays for the tokens.
    client: Client,
    /// When it was queued.
    queued: Instant,
    trace: Option<Trace>,
}

impl Request {
    /// Releases the permit and sends the end, in this order, so that a client that has its response can send another
    /// request.
    fn end(self, end: Result<Option<End>, GenerateError>) {
        drop(self.permit);
        // The client may have gone.
        let _ = self.pieces.send(Piece::End(end));
    }
}

impl Batcher {
    /// Starts the engine thread with `generator`, which runs as many requests at once as `room` says and may have more slots.
    pub(super) fn start(generator: Generator, room: Room, metrics: Arc<Metrics>) -> io::Result<Self> {
        let (capacity, engine) = (room.running + room.queue, room.in_force(&generator));
        let (requests, taken) = mpsc::channel(capacity);
        let progress = Arc::new(Progress::new());
        let seen = Arc::clone(&progress);
        std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || work::run(generator, taken, room, &metrics, &seen))?;
        let permits = Arc::new(Semaphore::new(capacity));
        let errors = Arc::default();
        let (time_limit, mirror, capture) = (None, None, None);
        let running = room.running;
        Ok(Self { requests, permits, capacity, running, engine, time_limit, progress, mirror, capture, errors })
    }

    /// Ends responses that have not ended within this time.
    pub(super) fn with_time_limit(self, time_limit: Option<Duration>) -> Self {
        Self { time_limit, ..self }
    }

    /// Records failures of the decoder.
    pub(super) fn with_errors(self, errors: Arc<Errors>) -> Self {
        Self { errors, ..self }
    }

    /// Copies requests to shadows, once they are answered.
    pub(super) fn with_mirror(self, mirror: Option<Arc<Mirror>>) -> Self {
        Self { mirror, ..self }
    }

    /// Traces requests.
    pub(super) fn with_capture(self, capture: Option<Arc<Capture>>) -> Self {
        Self { capture, ..self }
    }

    /// Generates the response to a prompt. The caller receives its tokens one by one; dropping the pieces ends the
    /// generation.
    ///
    /// # Errors
    /// The server is overloaded, or the engine thread has ended.
    pub(super) fn stream(&self, job: Job, client: Client) -> Result<Pieces, RequestError> {
        let overloaded = RequestError::Overloaded { capacity: self.capacity };
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else { return Err(overloaded) };
        self.begin(job, client, permit)
    }

    /// As [`stream`](Self::stream), for what nobody waits for: it is refused unless fewer than half of the slots are in use, so that
    /// requests find the others free, and its times are not among theirs.
    ///
    /// # Errors
    /// Half of the slots are in use, or the engine thread has ended.
    pub(super) fn stream_aside(&self, job: Job, client: Client) -> Result<Pieces, RequestError> {
        if self.active() * 2 >= self.running {
            return Err(RequestError::Overloaded { capacity: self.capacity });
        }
        self.stream(Job { aside: true, ..job }, client)
    }

    /// As [`stream`](Self::stream), but waits for a permit: for the later prompts of a request that was admitted.
    ///
    /// # Errors
    /// The engine thread has ended.
    pub(super) async fn stream_when_free(&self, job: Job, client: Client) -> Result<Pieces, RequestError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| RequestError::Ended)?;
        self.begin(job, client, permit)
    }

    fn begin(&self, job: Job, client: Client, permit: OwnedSemaphorePermit) -> Result<Pieces, RequestError> {
        if self.active() == 1 {
            // The thread was idle.
            self.progress.go_on(Instant::now());
        }
        let (pieces, received) = mpsc::unbounded_channel();
        // A permit guarantees a place in the queue, so this fails only if the thread has ended.
        // Without a response there is nothing to compare or to trace. A copy is neither copied nor traced.
        let answers_client = job.limit > 0 && !job.aside;
        let copy = self.mirror.as_ref().filter(|_| answers_client).and_then(|mirror| mirror.begin(&job));
        let capture = self.capture.as_ref().filter(|_| answers_client);
        let trace = capture.and_then(|capture| capture.begin(job.prompt.len()));
        let request = Request { job, pieces, permit, client, queued: Instant::now(), trace };
        self.requests.try_send(request).map_err(|_| RequestError::Ended)?;
        let deadline = self.time_limit.map(|limit| (tokio::time::Instant::now() + limit, limit));
        Ok(Pieces { received, deadline, copy, errors: Arc::clone(&self.errors) })
    }

    /// Generates the response to a prompt and returns it whole.
    ///
    /// # Errors
    /// The request is refused, or the decoder fails.
    pub(super) async fn answer(&self, job: Job, client: &Client) -> Result<Generated, RequestError> {
        let mut pieces = self.stream(job, client.clone())?;
        let (mut tokens, mut cached) = (Vec::new(), 0);
        loop {
            match pieces.recv().await {
                Some(Piece::Token(token)) => {
                    cached = token.cached;
                    tokens.push(token.id);
                }
                Some(Piece::End(end)) => return Ok(Generated { tokens, cached, end: end? }),
                Some(Piece::Prompt(_)) => {}
                Some(Piece::Late(limit)) => return Err(RequestError::Late { limit }),
                None => return Err(RequestError::Ended),
            }
        }
    }

    /// Returns the longest time from the arrival of a request to the end of its response, if there is one.
    pub(super) fn time_limit(&self) -> Option<Duration> {
        self.time_limit
    }

    /// Returns the number of running and waiting requests.
    pub(super) fn active(&self) -> usize {
        self.capacity - self.permits.available_permits()
    }

    /// Checks that the thread is alive and goes on with its requests.
    ///
    /// # Errors
    /// It has ended or stalled.
    pub(super) fn check(&self) -> Result<(), RequestError> {
        if self.requests.is_closed() {
            return Err(RequestError::Ended);
        }
        let stalled = self.progress.stalled(Instant::now()).filter(|_| self.active() > 0);
        stalled.map_or(Ok(()), |since| Err(RequestError::Stalled { since }))
    }

    /// Waits until the thread has ended.
    pub(super) async fn ended(&self) {
        self.requests.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Progress, STALLED};

    #[test]
    fn an_engine_without_a_step_for_long_is_stalled() {
        let progress = Progress::new();
        let begun = progress.begun;
        let after = |seconds: u64| begun + Duration::from_secs(seconds);
        assert_eq!(progress.stalled(after(119)), None);
        assert_eq!(progress.stalled(after(120)), Some(STALLED));
        progress.go_on(after(100));
        assert_eq!(progress.stalled(after(219)), None);
        assert_eq!(progress.stalled(after(250)), Some(Duration::from_secs(150)));
    }
}
