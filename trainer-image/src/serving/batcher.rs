//! Continuous batching: one thread owns the generator and works on token ids only.
//!
//! permit → bounded queue → engine thread → a channel per request. There are as many permits as slots and places in the
//! queue, so overload is refused before a request is queued. A request holds its permit until the thread is done with it. A
//! request whose receiver is gone is dropped before the next step.

use std::{io, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use codex_engine::End;

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
    prompt: Vec<u32>,
    /// At least 1.
    limit: usize,
    reply: oneshot::Sender<Result<Generated, GenerateError>>,
    permit: OwnedSemaphorePermit,
}

impl Request {
    /// Releases the permit and sends the result, in this order, so that a client that has its response can send another
    /// request.
    fn answer(self, answer: Result<Generated, GenerateError>) {
        drop(self.permit);
        // The client may have gone.
        let _ = self.reply.send(answer);
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

    /// Generates the response to a prompt, of at most `limit` tokens.
    pub(super) async fn answer(&self, prompt: Vec<u32>, limit: usize) -> Result<Generated, RequestError> {
        let overloaded = RequestError::Overloaded { capacity: self.capacity };
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else { return Err(overloaded) };
        let (reply, answer) = oneshot::channel();
        // A permit guarantees a place in the queue, so this fails only if the thread has ended.
        self.requests.try_send(Request { prompt, limit, reply, permit }).map_err(|_| RequestError::Ended)?;
        Ok(answer.await.map_err(|_| RequestError::Ended)??)
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

/// A request in a slot, and its tokens so far.
struct Running {
    request: Request,
    tokens: Vec<u32>,
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
            if request.reply.is_closed() {
                continue;
            }
            match generator.prefill(slot, &request.prompt) {
                Ok(()) => running[slot] = Some(Running { request, tokens: Vec::new() }),
                Err(error) => request.answer(Err(error)),
            }
        }
        for (slot, place) in running.iter_mut().enumerate() {
            if place.as_ref().is_some_and(|running| running.request.reply.is_closed()) {
                *place = None;
                generator.release(slot);
            }
        }
        let emitted = generator.step().unwrap_or_else(|error| {
            for (slot, place) in running.iter_mut().enumerate() {
                if let Some(running) = place.take() {
                    generator.release(slot);
                    running.request.answer(Err(error.clone()));
                }
            }
            Vec::new()
        });
        for emitted in emitted {
            let Some(place) = running.get_mut(emitted.slot) else { continue };
            let full = place.as_mut().is_some_and(|running| {
                running.tokens.push(emitted.token);
                running.tokens.len() >= running.request.limit
            });
            if full && emitted.end.is_none() {
                generator.release(emitted.slot);
            }
            if full || emitted.end.is_some() {
                let Some(Running { request, tokens }) = place.take() else { continue };
                request.answer(Ok(Generated { tokens, end: emitted.end }));
            }
        }
    }
}
