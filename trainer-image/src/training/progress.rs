//! How far training is, for everyone who watches: a bar on a terminal, lines of JSON in a log, reports to the controller, rows in
//! the metrics ledger. Does I/O.

use std::{
    collections::VecDeque,
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use codex_reports::{Progress, TrainingState};
use indicatif::{ProgressBar, ProgressStyle};

use super::{TrainError, artifacts::Ledger};
use crate::reporting::Reporter;

/// Steps between two rows of the ledger.
const ROW_EVERY: u64 = 10;
/// Time between two lines of a log.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Steps that the speed is measured over.
const WINDOW: usize = 50;

/// What one step came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepNumbers {
    /// Steps done, this one included.
    pub(super) step: u64,
    /// Mean cross-entropy per target token, in nats.
    pub(super) loss: f64,
    /// The norm of the gradient before clipping.
    pub(super) gradient_norm: f64,
    /// What the step was taken with.
    pub(super) learning_rate: f64,
    /// Tokens that went through the model.
    pub(super) tokens: usize,
}

/// Tells everyone.
pub(super) struct Watchers<'a> {
    reporter: &'a Reporter<TrainingState>,
    ledger: Ledger,
    bar: Option<ProgressBar>,
    total: u64,
    /// When each of the last steps ended, and the tokens up to then.
    recent: VecDeque<(Instant, u64)>,
    tokens: u64,
    /// Losses since the last row.
    losses: Vec<f64>,
    last_line: Option<Instant>,
}

impl<'a> Watchers<'a> {
    /// For a run of `total` steps that goes on from `step`.
    pub(super) fn new(reporter: &'a Reporter<TrainingState>, ledger: Ledger, step: u64, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total).with_position(step).with_elapsed(Duration::ZERO);
            let style =
                ProgressStyle::with_template("{bar:32} {pos}/{len} steps  {msg}  {elapsed} elapsed, {eta} left");
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar
        });
        let progress = Progress { step, total_steps: total, loss: None, tokens_per_second: None, eta_seconds: None };
        reporter.update(|state| state.progress = Some(progress));
        let recent = VecDeque::from([(Instant::now(), 0)]);
        Self { reporter, ledger, bar, total, recent, tokens: 0, losses: Vec::new(), last_line: None }
    }

    /// Hears of a step.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub(super) fn step(&mut self, numbers: StepNumbers, executed: u64) -> Result<(), TrainError> {
        let now = Instant::now();
        self.tokens += numbers.tokens as u64;
        self.losses.push(numbers.loss);
        self.recent.push_back((now, self.tokens));
        if self.recent.len() > WINDOW {
            self.recent.pop_front();
        }
        let (seconds, tokens) = self.recent.front().map_or((0.0, 0), |(then, tokens)| {
            (now.duration_since(*then).as_secs_f64().max(1e-9), self.tokens - tokens)
        });
        let speed = tokens as f64 / seconds;
        let step_seconds = seconds / (self.recent.len() - 1).max(1) as f64;
        let left = (self.total - numbers.step) as f64 * step_seconds;
        self.reporter.update(|state| {
            state.progress = Some(Progress {
                step: numbers.step,
                total_steps: self.total,
                loss: Some(numbers.loss).filter(|loss| loss.is_finite()),
                tokens_per_second: Some(speed),
                eta_seconds: Some(left.ceil() as u64),
            });
            state.steps_executed = executed;
        });
        let last = numbers.step == self.total;
        if let Some(bar) = &self.bar {
            bar.set_position(numbers.step);
            bar.set_message(format!("loss {:.4}  {speed:.0} tokens/s", numbers.loss));
        } else if last || self.last_line.is_none_or(|then| now.duration_since(then) >= LINE_EVERY) {
            self.last_line = Some(now);
            tracing::info!(
                step = numbers.step,
                total_steps = self.total,
                loss = numbers.loss,
                learning_rate = numbers.learning_rate,
                tokens_per_second = speed.round(),
                eta_seconds = left.ceil(),
                "training"
            );
        }
        if last || numbers.step.is_multiple_of(ROW_EVERY) {
            let loss = self.losses.iter().sum::<f64>() / self.losses.len() as f64;
            self.losses.clear();
            self.ledger.append(
                numbers.step,
                &[
                    ("loss", loss),
                    ("learning_rate", numbers.learning_rate),
                    ("grad_norm", numbers.gradient_norm),
                    ("tokens_per_second", speed),
                ],
            )?;
        }
        Ok(())
    }

    /// Leaves the terminal as it should be.
    pub(super) fn close(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}
