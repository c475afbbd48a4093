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

use std::{
    collections::VecDeque,
    io,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use codex_engine::{Emitted, End, LogProbabilities, Sampler};
use codex_reports::CopiedGrammar;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{
    access::Client,
    capture::{self, Capture, Trace},
    errors::Errors,
    grammar::Constraint,
    metrics::Metrics,
    place::Places,
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

/// How much a batcher does and keeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Requests that are generated at the same time, at most.
    pub(super) running: usize,
    /// Requests that wait, at most.
    pub(super) queue: usize,
    /// Tokens whose keys and values running requests have together, at most: at least a whole context. `None` is a whole context for each,
    /// so that none is pre-empted.
    pub(super) cache: Option<usize>,
    /// Tokens whose keys and values are kept for later prompts, at most.
    pub(super) prefixes: usize,
    /// Tokens that a step computes, at most, those of prompts included; `None` for what suits the device. Each running request has
    /// one in any case.
    pub(super) batched: Option<usize>,
}

/// Tokens of a step on a processor: few, because its time grows with each, and enough to read the weights for many rows at once.
const BATCHED: usize = 256;
/// Tokens of a step on a GPU, which computes few of them no faster.
const BATCHED_ON_GPU: usize = 2048;
/// The time after which an engine thread that has requests and makes no step counts as stalled. Steps take less by far.
const STALLED: Duration = Duration::from_secs(120);
/// Tokens by which each running response can grow after a request was admitted, at least, before one is pre-empted.
const GROWTH: usize = 16;

impl Room {
    /// Returns the most tokens of a step of a decoder with this code path.
    fn budget(self, path: &str) -> usize {
        let suited = if path.contains("cuda") { BATCHED_ON_GPU } else { BATCHED };
        self.batched.unwrap_or(suited).max(self.running)
    }
}

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
    /// The most tokens of the response, at least 1.
    pub(super) limit: usize,
    /// Chooses the tokens.
    pub(super) sampler: Sampler,
    /// Asks for the log-probability of each token, and of this many of the most likely ones.
    pub(super) scores: Option<usize>,
    /// Binds the tokens to a grammar.
    pub(super) bound: Option<Bound>,
    /// Ends the reasoning in time.
    pub(super) thinking: Option<Thinking>,
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
        let capacity = room.running + room.queue;
        let (requests, taken) = mpsc::channel(capacity);
        let progress = Arc::new(Progress::new());
        let seen = Arc::clone(&progress);
        std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || run(generator, taken, room, &metrics, &seen))?;
        let permits = Arc::new(Semaphore::new(capacity));
        let errors = Arc::default();
        Ok(Self { requests, permits, capacity, time_limit: None, progress, mirror: None, capture: None, errors })
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
        if self.active() == 1 {
            // The thread was idle.
            self.progress.go_on(Instant::now());
        }
        let (pieces, received) = mpsc::unbounded_channel();
        // A permit guarantees a place in the queue, so this fails only if the thread has ended.
        let copy = self.mirror.as_ref().and_then(|mirror| mirror.begin(&job));
        let trace = self.capture.as_ref().and_then(|capture| capture.begin(job.prompt.len()));
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
                Some(Piece::Late(limit)) => return Err(RequestError::Late { limit }),
                None => return Err(RequestError::Ended),
            }
        }
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

/// A request in a slot, or one that waits for the tokens of others to go.
struct Running {
    request: Request,
    /// The number of the request, in the order in which they came.
    came: u64,
    /// Whether it has had a slot.
    admitted: bool,
    /// The tokens of its response so far, which have been sent.
    tokens: Vec<u32>,
    /// How many tokens of the prompt came from the prefix cache, once its first token is chosen.
    cached: Option<usize>,
    /// When its latest token was sent; before the first one, when it was queued.
    latest: Instant,
    /// When its first token was sent.
    first: Option<Instant>,
    /// Those of the token that was chosen last.
    scores: Option<LogProbabilities>,
    /// Whether its grammar allows no token, so that what was chosen is none of the response.
    stuck: bool,
}

impl Running {
    fn new(request: Request, came: u64) -> Self {
        let (admitted, tokens, cached) = (false, Vec::new(), None);
        let (latest, first) = (request.queued, None);
        Self { latest, first, request, came, admitted, tokens, cached, scores: None, stuck: false }
    }

    /// Returns the tokens that have keys and values after the next step, at most.
    fn length(&self) -> usize {
        self.request.job.prompt.len() + self.tokens.len()
    }

    /// Returns the tokens that are computed before its next one is chosen.
    fn sequence(&self) -> Vec<u32> {
        [self.request.job.prompt.as_slice(), &self.tokens].concat()
    }

    /// Whether nobody waits for its response any more.
    fn is_abandoned(&self) -> bool {
        self.request.pieces.is_closed()
    }

    /// Records the average time between its tokens, once it has ended.
    fn record_pace(&self, metrics: &Metrics) {
        let gaps = u32::try_from(self.tokens.len().saturating_sub(1)).unwrap_or(u32::MAX);
        if let Some(first) = self.first.filter(|_| gaps > 0) {
            metrics.paced_at(self.latest.duration_since(first) / gaps);
        }
    }

    /// Writes its trace, if it is traced.
    fn end_trace(&mut self, ended: capture::Ended) {
        if let Some(trace) = self.request.trace.take() {
            trace.finish(self.tokens.len(), ended);
        }
    }

    fn choose(&mut self, logits: &[f32], metrics: &Metrics) -> u32 {
        let job = &mut self.request.job;
        let forced = job.thinking.as_ref().and_then(Thinking::forced);
        let token = match (forced, &mut job.bound) {
            (Some(token), bound) => {
                if let Some(bound) = bound {
                    bound.constraint.take_inside(token);
                }
                token
            }
            (None, None) => job.sampler.choose(logits),
            (None, Some(bound)) => {
                let begun = Instant::now();
                let token = bound.constraint.choose(&mut job.sampler, logits);
                metrics.bound_in(begun.elapsed());
                self.stuck = token.is_none();
                token.unwrap_or_default()
            }
        };
        if let Some(thinking) = &mut job.thinking {
            if let Some(cause) = thinking.take(token) {
                metrics.closed(cause);
            }
            if thinking.is_over() {
                job.thinking = None;
            }
        }
        if let Some(trace) = &mut self.request.trace {
            trace.observe(logits, token);
        }
        // They are the model's own: temperature, settings and grammars do not change them.
        self.scores = job.scores.map(|count| LogProbabilities::of(logits, token, count));
        token
    }

    /// Sends the chosen token, or ends the response if there is none. Breaks with how the response ended, if it did.
    /// `reused` is the number of tokens of its sequence that were not computed.
    fn emit(&mut self, emitted: &Emitted, reused: usize, metrics: &Metrics) -> ControlFlow<Option<End>> {
        if self.stuck {
            return ControlFlow::Break(None);
        }
        let now = Instant::now();
        let took = now.duration_since(self.latest);
        let cached = *self.cached.get_or_insert(reused);
        if self.tokens.is_empty() {
            self.first = Some(now);
            metrics.first_token_after(took);
        } else {
            metrics.next_token_after(took);
        }
        self.latest = now;
        self.tokens.push(emitted.token);
        self.request.client.spend(1);
        let token = Token { id: emitted.token, scores: self.scores.take(), cached };
        // The client may have gone; the next step finds out.
        let _ = self.request.pieces.send(Piece::Token(token));
        let complete = self.request.job.bound.as_ref().is_some_and(|bound| bound.constraint.is_complete());
        match emitted.end {
            Some(end) => ControlFlow::Break(Some(end)),
            None if complete => ControlFlow::Break(Some(End::Stop)),
            None if self.tokens.len() >= self.request.job.limit => ControlFlow::Break(None),
            None => ControlFlow::Continue(()),
        }
    }
}

/// The requests of the engine thread.
struct Work {
    generator: Generator,
    places: Places,
    /// By slot.
    running: Vec<Option<Running>>,
    /// Requests that do not fit yet, and those that were pre-empted, in the order in which they came. All of them came after those that run.
    waiting: VecDeque<Running>,
    /// Requests that run, at most.
    most: usize,
    /// Tokens of requests that run, at most.
    bound: usize,
    /// The number of requests that came.
    came: u64,
}

impl Work {
    fn new(mut generator: Generator, room: Room) -> Self {
        let mut running = Vec::new();
        running.resize_with(generator.slots(), || None);
        let places = Places::new(&mut generator, room.prefixes);
        let context = generator.config().max_position_embeddings;
        let bound = room.cache.unwrap_or(usize::MAX).clamp(context, room.running.max(1).saturating_mul(context));
        Self { generator, places, running, waiting: VecDeque::new(), most: room.running, bound, came: 0 }
    }

    /// Returns the number of running requests, and their tokens.
    fn load(&self) -> (usize, usize) {
        self.running.iter().flatten().fold((0, 0), |(count, tokens), it| (count + 1, tokens + it.length()))
    }

    /// Empties a slot for good, or for a request that is pre-empted.
    fn leave(&mut self, slot: usize) -> Option<Running> {
        let left = self.running.get_mut(slot)?.take()?;
        self.generator.release(slot);
        Some(left)
    }

    /// Drops requests that nobody waits for.
    fn drop_abandoned(&mut self, metrics: &Metrics) {
        self.waiting.retain_mut(|waiting| {
            let abandoned = waiting.is_abandoned();
            if abandoned && waiting.admitted {
                waiting.record_pace(metrics);
                waiting.end_trace(capture::Ended::Closed);
            }
            !abandoned
        });
        for slot in 0..self.running.len() {
            if !self.running[slot].as_ref().is_some_and(Running::is_abandoned) {
                continue;
            }
            if let Some(mut left) = self.leave(slot) {
                left.record_pace(metrics);
                left.end_trace(capture::Ended::Closed);
                self.places.released(&mut self.generator, slot);
            }
        }
    }

    /// Pre-empts the requests that came last until the tokens of the others fit.
    fn preempt(&mut self, metrics: &Metrics) {
        loop {
            let (count, tokens) = self.load();
            if count <= 1 || tokens <= self.bound {
                return;
            }
            let last = (0..self.running.len()).max_by_key(|slot| self.running[*slot].as_ref().map(|it| it.came));
            let Some((slot, left)) = last.and_then(|slot| Some((slot, self.leave(slot)?))) else { return };
            self.generator.forget(slot);
            metrics.preempted();
            self.waiting.push_front(left);
        }
    }

    /// Whether a request fits beside those that run, which then can all grow for a while.
    fn fits(&self, next: &Running) -> bool {
        let (count, tokens) = self.load();
        count == 0 || tokens + next.length() + (count + 1) * GROWTH <= self.bound
    }

    /// Gives requests slots. Waits for one if none runs; breaks if none can come any more.
    fn admit(&mut self, requests: &mut mpsc::Receiver<Request>, metrics: &Metrics) -> ControlFlow<()> {
        loop {
            let (count, _) = self.load();
            if count >= self.most {
                return ControlFlow::Continue(());
            }
            let next = if let Some(next) = self.waiting.pop_front() {
                next
            } else {
                let request = if count == 0 {
                    // Idle: wait for a request, or for the handle to be dropped.
                    metrics.set_running(0, 0.0);
                    let Some(request) = requests.blocking_recv() else { return ControlFlow::Break(()) };
                    request
                } else {
                    let Ok(request) = requests.try_recv() else { return ControlFlow::Continue(()) };
                    request
                };
                self.came += 1;
                Running::new(request, self.came)
            };
            if next.is_abandoned() {
                continue;
            }
            if !self.fits(&next) {
                self.waiting.push_front(next);
                return ControlFlow::Continue(());
            }
            self.start(next, metrics);
        }
    }

    fn start(&mut self, mut next: Running, metrics: &Metrics) {
        let sequence = next.sequence();
        // More slots than running requests exist, so that one is free.
        let slot = self.places.choose(&self.generator, &sequence).unwrap_or_default();
        if !next.admitted {
            metrics.admitted_after(next.request.queued.elapsed());
        }
        match self.generator.prefill(slot, &sequence) {
            Ok(()) => {
                if !std::mem::replace(&mut next.admitted, true) {
                    next.request.client.spend(next.request.job.prompt.len());
                }
                self.running[slot] = Some(next);
            }
            Err(error) => next.request.end(Err(error)),
        }
    }
}

fn run(
    generator: Generator,
    mut requests: mpsc::Receiver<Request>,
    room: Room,
    metrics: &Metrics,
    progress: &Progress,
) {
    let budget = room.budget(generator.path());
    let mut work = Work::new(generator, room);
    loop {
        progress.go_on(Instant::now());
        work.drop_abandoned(metrics);
        work.preempt(metrics);
        if work.admit(&mut requests, metrics).is_break() {
            return;
        }
        let Work { generator, places, running, bound, .. } = &mut work;
        let slots = running.iter().enumerate().filter(|(_, place)| place.is_some());
        let (count, held) =
            slots.fold((0, 0), |(count, held), (slot, _)| (count + 1, held + generator.held(slot).len()));
        metrics.set_running(count, held as f64 / (*bound).max(1) as f64);
        // Only slots with a request are in use.
        let choose =
            |slot: usize, logits: &[f32]| running[slot].as_mut().map_or(0, |running| running.choose(logits, metrics));
        let emitted = generator.step_within(budget, choose).unwrap_or_else(|error| {
            for (slot, place) in running.iter_mut().enumerate() {
                if let Some(running) = place.take() {
                    generator.release(slot);
                    running.request.end(Err(error.clone()));
                }
            }
            Vec::new()
        });
        // Nothing is computed if every request was abandoned.
        if generator.computed() > 0 {
            metrics.step_of(generator.computed());
        }
        for emitted in emitted {
            let Some(place) = running.get_mut(emitted.slot) else { continue };
            let reused = generator.reused(emitted.slot);
            let ended = place.as_mut().map(|running| running.emit(&emitted, reused, metrics));
            let Some(ControlFlow::Break(end)) = ended else { continue };
            if emitted.end.is_none() {
                generator.release(emitted.slot);
            }
            if let Some(mut running) = place.take() {
                places.released(generator, emitted.slot);
                running.record_pace(metrics);
                running.end_trace(capture::Ended::Generated(end));
                running.request.end(Ok(end));
            }
        }
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
