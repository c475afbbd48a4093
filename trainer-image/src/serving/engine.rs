//! The engine: one thread that owns the model and batches continuously. It works on token ids only.
//!
//! permit → bounded queue → engine → a channel per request. There are as many permits as slots and places in the queue, so
//! that overload is refused before anything is queued; a request takes its permit along and gives it back when the engine
//! lets go of it. A request whose receiver is gone is dropped before the next step.

use std::{io, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use codex_engine::End;

use crate::model::{GenerateError, Generator};

/// A running engine. It ends when this is dropped and all its requests are answered.
#[derive(Debug)]
pub(super) struct Engine {
    jobs: mpsc::Sender<Job>,
    pub(super) permits: Arc<Semaphore>,
    capacity: usize,
}

/// The tokens of a response.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) tokens: Vec<u32>,
    /// None: the limit was reached.
    pub(super) end: Option<End>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("{capacity} requests are being answered or waiting, and no more are taken: try again in a second")]
    Overloaded { capacity: usize },
    #[error(transparent)]
    Prompt(#[from] GenerateError),
    #[error("the engine does not run any more")]
    Gone,
}

struct Job {
    prompt: Vec<u32>,
    /// At least 1.
    limit: usize,
    reply: oneshot::Sender<Result<Answer, GenerateError>>,
    permit: OwnedSemaphorePermit,
}

impl Job {
    /// Gives the permit back first: whoever has an answer finds room for another request.
    fn answer(self, answer: Result<Answer, GenerateError>) {
        drop(self.permit);
        // Nobody waits any more: nobody minds.
        let _ = self.reply.send(answer);
    }
}

impl Engine {
    /// Gives `generator` to a thread of its own; `queue` requests may wait beside those in its slots.
    pub(super) fn start(generator: Generator, queue: usize) -> io::Result<Self> {
        let capacity = generator.slots() + queue;
        let (jobs, taken) = mpsc::channel(capacity);
        std::thread::Builder::new().name("engine".to_owned()).spawn(move || run(generator, taken))?;
        Ok(Self { jobs, permits: Arc::new(Semaphore::new(capacity)), capacity })
    }

    /// The response to a prompt, of at most `limit` tokens.
    pub(super) async fn answer(&self, prompt: Vec<u32>, limit: usize) -> Result<Answer, Refusal> {
        let overloaded = Refusal::Overloaded { capacity: self.capacity };
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else { return Err(overloaded) };
        let (reply, answer) = oneshot::channel();
        // With a permit there is room, so this fails only when the engine is gone.
        self.jobs.try_send(Job { prompt, limit, reply, permit }).map_err(|_| Refusal::Gone)?;
        Ok(answer.await.map_err(|_| Refusal::Gone)??)
    }

    /// Requests under way or waiting.
    pub(super) fn active(&self) -> usize {
        self.capacity - self.permits.available_permits()
    }

    /// Whether the thread still runs.
    pub(super) fn runs(&self) -> bool {
        !self.jobs.is_closed()
    }

    /// Waits until the thread has ended.
    pub(super) async fn ended(&self) {
        self.jobs.closed().await;
    }
}

/// A request in a slot.
struct Running {
    job: Job,
    tokens: Vec<u32>,
}

fn run(mut generator: Generator, mut jobs: mpsc::Receiver<Job>) {
    let mut running: Vec<Option<Running>> = Vec::new();
    running.resize_with(generator.slots(), || None);
    loop {
        while let Some(slot) = generator.free_slot() {
            let next = if running.iter().all(Option::is_none) {
                // Nothing to do: sleep until there is, or until nobody can ask any more.
                let Some(job) = jobs.blocking_recv() else { return };
                Some(job)
            } else {
                jobs.try_recv().ok()
            };
            let Some(job) = next else { break };
            if job.reply.is_closed() {
                continue;
            }
            match generator.prefill(slot, &job.prompt) {
                Ok(()) => running[slot] = Some(Running { job, tokens: Vec::new() }),
                Err(error) => job.answer(Err(error)),
            }
        }
        for (slot, place) in running.iter_mut().enumerate() {
            if place.as_ref().is_some_and(|running| running.job.reply.is_closed()) {
                *place = None;
                generator.release(slot);
            }
        }
        let emitted = generator.step().unwrap_or_else(|error| {
            for (slot, place) in running.iter_mut().enumerate() {
                if let Some(running) = place.take() {
                    generator.release(slot);
                    running.job.answer(Err(error.clone()));
                }
            }
            Vec::new()
        });
        for emitted in emitted {
            let Some(place) = running.get_mut(emitted.slot) else { continue };
            let full = place.as_mut().is_some_and(|running| {
                running.tokens.push(emitted.token);
                running.tokens.len() >= running.job.limit
            });
            if full && emitted.end.is_none() {
                generator.release(emitted.slot);
            }
            if full || emitted.end.is_some() {
                let Some(Running { job, tokens }) = place.take() else { continue };
                job.answer(Ok(Answer { tokens, end: emitted.end }));
            }
        }
    }
}
