//! Continuous batching: one thread owns the generator and works on token ids only.
//!
//! permit → bounded queue → engine thread → a channel of tokens per request. There are as many permits as slots and places in the
//! queue, so overload is refused before a request is queued. A request holds its permit until the thread is done with it. A
//! request whose receiver is gone is dropped before the next step.

use std::{io, sync::Arc};

use codex_engine::{End, Sampler};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::model::{GenerateError, Generator};

/// A handle of the engine thread. The thread ends when the handle is dropped and all requests are answered.
#[derive(Debug)]
pub(super) struct Batcher {
    requests: mpsc::Sender<Request>,
    pub(super) permits: Arc<Semaphore>,
    capacity: usize,
}

/// The tokens of a response.
#[derive(Debug)]
pub(super) struct Generated {
    pub(super) tokens: Vec<u32>,
    /// Why the response ended; `None` if it reached the limit of new tokens.
    pub(super) end: Option<End>,
}

/// What the engine thread sends for a request.
#[derive(Debug)]
pub(super) enum Piece {
    /// The next token, the end token included.
    Token(u32),
    /// The last piece: why the response ended, `None` if it reached the limit of new tokens; or why it failed.
    End(Result<Option<End>, GenerateError>),
}

/// What is asked of the engine thread.
#[derive(Debug)]
pub(super) struct Job {
    /// The ids of the prompt.
    pub(super) prompt: Vec<u32>,
    /// The most tokens of the response, at least 1.
    pub(super) limit: usize,
    /// Chooses the tokens.
    pub(super) sampler: Sampler,
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
    /// Starts the engine thread with `generator`. Up to `queue` requests wait for a free slot.
    pub(super) fn start(generator: Generator, queue: usize) -> io::Result<Self> {
        let capacity = generator.slots() + queue;
        let (requests, taken) = mpsc::channel(capacity);
        std::thread::Builder::new().name("engine".to_owned()).spawn(move || run(generator, taken))?;
        Ok(Self { requests, permits: Arc::new(Semaphore::new(capacity)), capacity })
    }

    /// Generates the response to a prompt. The caller receives its tokens one by one; dropping the receiver ends the
    /// generation.
    ///
    /// # Errors
    /// The server is overloaded, or the engine thread has ended.
    pub(super) fn stream(&self, job: Job) -> Result<mpsc::UnboundedReceiver<Piece>, RequestError> {
        let overloaded = RequestError::Overloaded { capacity: self.capacity };
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else { return Err(overloaded) };
        let (pieces, received) = mpsc::unbounded_channel();
        // A permit guarantees a place in the queue, so this fails only if the thread has ended.
        self.requests.try_send(Request { job, pieces, permit }).map_err(|_| RequestError::Ended)?;
        Ok(received)
    }

    /// Generates the response to a prompt and returns it whole.
    ///
    /// # Errors
    /// The request is refused, or the decoder fails.
    pub(super) async fn answer(&self, job: Job) -> Result<Generated, RequestError> {
        let mut pieces = self.stream(job)?;
        let mut tokens = Vec::new();
        loop {
            match pieces.recv().await {
                Some(Piece::Token(token)) => tokens.push(token),
                Some(Piece::End(end)) => return Ok(Generated { tokens, end: end? }),
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

/// A request in a slot, and the number of its tokens so far.
struct Running {
    request: Request,
    tokens: usize,
}

fn run(mut generator: Generator, mut requests: mpsc::Receiver<Request>) {
    let mut running: Vec<Option<Running>> = Vec::new();
    running.resize_with(generator.slots(), || None);
    loop {
        while let Some(slot) = generator.free_slot() {
            let next = if running.iter().all(Option::is_none) {
                // Idle: wait for a request, or for the handle to be dropped.
                let Some(request) = requests.blocking_recv() else { return };
                Some(request)
            } else {
                requests.try_recv().ok()
            };
            let Some(request) = next else { break };
            if request.pieces.is_closed() {
                continue;
            }
            match generator.prefill(slot, &request.job.prompt) {
                Ok(()) => running[slot] = Some(Running { request, tokens: 0 }),
                Err(error) => request.end(Err(error)),
            }
        }
        for (slot, place) in running.iter_mut().enumerate() {
            if place.as_ref().is_some_and(|running| running.request.pieces.is_closed()) {
                *place = None;
                generator.release(slot);
            }
        }
        let choose = |slot: usize, logits: &[f32]| {
            // Only slots with a request are in use.
            running[slot].as_mut().map_or(0, |running| running.request.job.sampler.choose(logits))
        };
        let emitted = generator.step_by(choose).unwrap_or_else(|error| {
            for (slot, place) in running.iter_mut().enumerate() {
                if let Some(running) = place.take() {
                    generator.release(slot);
                    running.request.end(Err(error.clone()));
                }
            }
            Vec::new()
        });
        for emitted in emitted {
            let Some(place) = running.get_mut(emitted.slot) else { continue };
            let full = place.as_mut().is_some_and(|running| {
                running.tokens += 1;
                // The client may have gone; the next step finds out.
                let _ = running.request.pieces.send(Piece::Token(emitted.token));
                running.tokens >= running.request.job.limit
            });
            if full && emitted.end.is_none() {
                generator.release(emitted.slot);
            }
            if (full || emitted.end.is_some())
                && let Some(running) = place.take()
            {
                running.request.end(Ok(emitted.end));
            }
        }
    }
}
