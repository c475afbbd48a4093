//! Continuous batching: one thread owns the generator and works on token ids only.
//!
//! permit → bounded queue → engine thread → a channel of tokens per request. There are as many permits as slots and places in the
//! queue, so overload is refused before a request is queued. A request holds its permit until the thread is done with it. A
//! request whose receiver is gone is dropped before the next step, also in the middle of its prompt.
//!
//! A step computes a bounded number of tokens: one for each response that is generated, and chunks of prompts in the order in which
//! they came. A long prompt so delays the next tokens of other requests by a chunk, not by its length. Chunks change no bit.

use std::{io, ops::ControlFlow, sync::Arc, time::Instant};

use codex_engine::{Emitted, End, LogProbabilities, Sampler};
use codex_reports::CopiedGrammar;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{
    access::Client,
    capture::{self, Capture, Trace},
    grammar::Constraint,
    metrics::Metrics,
    place::Places,
    shadow::{Mirror, Recording},
};
use crate::model::{GenerateError, Generator};

/// A handle of the engine thread. The thread ends when the handle is dropped and all requests are answered.
#[derive(Debug)]
pub(super) struct Batcher {
    requests: mpsc::Sender<Request>,
    pub(super) permits: Arc<Semaphore>,
    capacity: usize,
    /// Copies requests to shadows.
    mirror: Option<Arc<Mirror>>,
    /// Traces requests.
    capture: Option<Arc<Capture>>,
}

/// How much a batcher does and keeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Requests that are generated at the same time, at most.
    pub(super) running: usize,
    /// Requests that wait, at most.
    pub(super) queue: usize,
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
}

/// The pieces of a response, as they are generated. Dropping them ends the generation.
pub(super) struct Pieces {
    received: mpsc::UnboundedReceiver<Piece>,
    /// What is copied to shadows once the response has ended.
    copy: Option<Recording>,
}

impl Pieces {
    /// Returns the next piece; `None` if the engine thread has ended.
    pub(super) async fn recv(&mut self) -> Option<Piece> {
        let piece = self.received.recv().await;
        match (&piece, &mut self.copy) {
            (Some(Piece::Token(token)), Some(copy)) => copy.token(token.id),
            (Some(Piece::End(Ok(_))), _) => self.answered(false),
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
    /// The engine thread has ended.
    #[error("the engine thread has ended")]
    Ended,
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
        std::thread::Builder::new().name("engine".to_owned()).spawn(move || run(generator, taken, room, &metrics))?;
        Ok(Self { requests, permits: Arc::new(Semaphore::new(capacity)), capacity, mirror: None, capture: None })
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
        let (pieces, received) = mpsc::unbounded_channel();
        // A permit guarantees a place in the queue, so this fails only if the thread has ended.
        let copy = self.mirror.as_ref().and_then(|mirror| mirror.begin(&job));
        let trace = self.capture.as_ref().and_then(|capture| capture.begin(job.prompt.len()));
        let request = Request { job, pieces, permit, client, queued: Instant::now(), trace };
        self.requests.try_send(request).map_err(|_| RequestError::Ended)?;
        Ok(Pieces { received, copy })
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
                None => return Err(RequestError::Ended),
            }
        }
    }

    /// Returns the number of running and waiting requests.
    pub(super) fn active(&self) -> usize {
        self.capacity - self.permits.available_permits()
    }

    /// Returns whether the thread is running.
    pub(super) fn is_running(&self) -> bool {
        !self.requests.is_closed()
    }

    /// Waits until the thread has ended.
    pub(super) async fn ended(&self) {
        self.requests.closed().await;
    }
}

/// A request in a slot.
struct Running {
    request: Request,
    /// The number of its tokens so far.
    tokens: usize,
    /// When its latest token was sent; before the first one, when it was queued.
    latest: Instant,
    /// Those of the token that was chosen last.
    scores: Option<LogProbabilities>,
    /// Whether its grammar allows no token, so that what was chosen is none of the response.
    stuck: bool,
}

impl Running {
    fn new(request: Request) -> Self {
        Self { latest: request.queued, request, tokens: 0, scores: None, stuck: false }
    }

    fn choose(&mut self, logits: &[f32], metrics: &Metrics) -> u32 {
        let job = &mut self.request.job;
        let token = match &mut job.bound {
            None => job.sampler.choose(logits),
            Some(bound) => {
                let begun = Instant::now();
                let token = bound.constraint.choose(&mut job.sampler, logits);
                metrics.bound_in(begun.elapsed());
                self.stuck = token.is_none();
                token.unwrap_or_default()
            }
        };
        if let Some(trace) = &mut self.request.trace {
            trace.observe(logits, token);
        }
        // They are the model's own: temperature, settings and grammars do not change them.
        self.scores = job.scores.map(|count| LogProbabilities::of(logits, token, count));
        token
    }

    /// Sends the chosen token, or ends the response if there is none. Breaks with how the response ended, if it did.
    fn emit(&mut self, emitted: &Emitted, cached: usize, metrics: &Metrics) -> ControlFlow<Option<End>> {
        if self.stuck {
            return ControlFlow::Break(None);
        }
        let now = Instant::now();
        let took = now.duration_since(self.latest);
        if self.tokens == 0 {
            metrics.first_token_after(took);
        } else {
            metrics.next_token_after(took);
        }
        self.latest = now;
        self.tokens += 1;
        self.request.client.spend(1);
        let token = Token { id: emitted.token, scores: self.scores.take(), cached };
        // The client may have gone; the next step finds out.
        let _ = self.request.pieces.send(Piece::Token(token));
        let complete = self.request.job.bound.as_ref().is_some_and(|bound| bound.constraint.is_complete());
        match emitted.end {
            Some(end) => ControlFlow::Break(Some(end)),
            None if complete => ControlFlow::Break(Some(End::Stop)),
            None if self.tokens >= self.request.job.limit => ControlFlow::Break(None),
            None => ControlFlow::Continue(()),
        }
    }
}

fn run(mut generator: Generator, mut requests: mpsc::Receiver<Request>, room: Room, metrics: &Metrics) {
    let mut running: Vec<Option<Running>> = Vec::new();
    running.resize_with(generator.slots(), || None);
    let mut places = Places::new(&mut generator, room.prefixes);
    let most = room.running * generator.config().max_position_embeddings;
    let budget = room.budget(generator.path());
    loop {
        loop {
            let count = running.iter().flatten().count();
            if count >= room.running {
                break;
            }
            let next = if count == 0 {
                // Idle: wait for a request, or for the handle to be dropped.
                metrics.set_running(0, 0.0);
                let Some(request) = requests.blocking_recv() else { return };
                Some(request)
            } else {
                requests.try_recv().ok()
            };
            let Some(request) = next else { break };
            if request.pieces.is_closed() {
                continue;
            }
            // More slots than running requests exist, so that one is free.
            let slot = places.choose(&generator, &request.job.prompt).unwrap_or_default();
            metrics.admitted_after(request.queued.elapsed());
            match generator.prefill(slot, &request.job.prompt) {
                Ok(()) => {
                    request.client.spend(request.job.prompt.len());
                    running[slot] = Some(Running::new(request));
                }
                Err(error) => request.end(Err(error)),
            }
        }
        for (slot, place) in running.iter_mut().enumerate() {
            if place.as_ref().is_some_and(|running| running.request.pieces.is_closed()) {
                if let Some(Running { request: Request { trace: Some(trace), .. }, tokens, .. }) = place.take() {
                    trace.finish(tokens, capture::Ended::Closed);
                }
                generator.release(slot);
                places.released(&mut generator, slot);
            }
        }
        let slots = running.iter().enumerate().filter(|(_, place)| place.is_some());
        let (count, held) =
            slots.fold((0, 0), |(count, held), (slot, _)| (count + 1, held + generator.held(slot).len()));
        metrics.set_running(count, held as f64 / most.max(1) as f64);
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
            let cached = generator.reused(emitted.slot);
            let ended = place.as_mut().map(|running| running.emit(&emitted, cached, metrics));
            let Some(ControlFlow::Break(end)) = ended else { continue };
            if emitted.end.is_none() {
                generator.release(emitted.slot);
            }
            if let Some(mut running) = place.take() {
                places.released(&mut generator, emitted.slot);
                if let Some(trace) = running.request.trace.take() {
                    trace.finish(running.tokens, capture::Ended::Generated(end));
                }
                running.request.end(Ok(end));
            }
        }
    }
}
