//! The work of the engine thread: which requests run, in which slots, and what a step gives them.

use std::{collections::VecDeque, ops::ControlFlow, time::Instant};

use codex_engine::{Emitted, End, LogProbabilities, Step};
use tokio::sync::mpsc;

use super::{Piece, Progress, Request, Token};
use crate::{
    model::Generator,
    serving::{capture, metrics::Metrics, place::Places, room::Room, thinking::Thinking},
};

/// Tokens by which each running response can grow after a request was admitted, at least, before one is pre-empted.
const GROWTH: usize = 16;

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
    /// Those of the tokens of the prompt so far, if they are asked for; `None` once they were sent.
    prompt: Option<Vec<LogProbabilities>>,
    /// Whether its grammar allows no token, so that what was chosen is none of the response.
    stuck: bool,
}

impl Running {
    fn new(request: Request, came: u64) -> Self {
        let (admitted, tokens, cached) = (false, Vec::new(), None);
        let (latest, first) = (request.queued, None);
        let prompt = request.job.prompt_scores.map(|_| Vec::new());
        Self { latest, first, request, came, admitted, tokens, cached, scores: None, prompt, stuck: false }
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
        if let Some(first) = self.first.filter(|_| gaps > 0 && !self.request.job.aside) {
            metrics.paced_at(self.latest.duration_since(first) / gaps);
        }
    }

    /// Takes the hidden state by which its newest token was chosen, if it is traced.
    fn pool(&mut self, state: &[f32]) {
        if let Some(trace) = self.request.trace.as_mut().filter(|_| !self.stuck) {
            trace.pool(state);
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
        if job.limit == 0 {
            // It is no part of a response, which ends with this step.
            return 0;
        }
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
        // They are complete with the first token.
        if let Some(prompt) = self.prompt.take() {
            // The client may have gone; the next step finds out.
            let _ = self.request.pieces.send(Piece::Prompt(prompt));
        }
        let cached = *self.cached.get_or_insert_with(|| {
            metrics.prompt_took_over(reused);
            reused
        });
        if self.stuck || self.request.job.limit == 0 {
            return ControlFlow::Break(None);
        }
        let now = Instant::now();
        let took = now.duration_since(self.latest);
        let is_first = self.tokens.is_empty();
        if is_first {
            self.first = Some(now);
        }
        match (self.request.job.aside, is_first) {
            (true, _) => {}
            (false, true) => metrics.first_token_after(took),
            (false, false) => metrics.next_token_after(took),
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
        let bound = room.bound(context);
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
        // A prompt that is scored takes over nothing.
        let continued: &[u32] = if next.prompt.is_some() { &[] } else { &sequence };
        // More slots than running requests exist, so that one is free.
        let slot = self.places.choose(&self.generator, continued).unwrap_or_default();
        if !next.admitted && !next.request.job.aside {
            metrics.admitted_after(next.request.queued.elapsed());
        }
        let prefilled = match (&mut next.prompt, next.request.job.prompt_scores) {
            (Some(prompt), Some(count)) => {
                // Those of a prompt that was pre-empted are computed again.
                prompt.clear();
                self.generator.prefill_scored(slot, &sequence, count)
            }
            _ => self.generator.prefill(slot, &sequence),
        };
        match prefilled {
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

/// Computes requests until the handle is dropped and all of them are answered.
pub(super) fn run(
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
        let Step { emitted, scored, states } = generator.step_within(budget, choose).unwrap_or_else(|error| {
            for (slot, place) in running.iter_mut().enumerate() {
                if let Some(running) = place.take() {
                    generator.release(slot);
                    running.request.end(Err(error.clone()));
                }
            }
            Step::default()
        });
        for (slot, scores) in scored {
            let running = running.get_mut(slot).and_then(Option::as_mut);
            if let Some(prompt) = running.and_then(|running| running.prompt.as_mut()) {
                prompt.push(scores);
            }
        }
        // Nothing is computed if every request was abandoned.
        if generator.computed() > 0 {
            metrics.step_of(generator.computed());
        }
        // There are none unless traces want them.
        let mut states = states.chunks_exact(generator.config().hidden_size);
        for emitted in emitted {
            let state = states.next();
            let Some(place) = running.get_mut(emitted.slot) else { continue };
            if let (Some(running), Some(state)) = (place.as_mut(), state) {
                running.pool(state);
            }
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
