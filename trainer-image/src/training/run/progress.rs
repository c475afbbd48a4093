//! Outputs of progress: two lines on a terminal or JSON lines in a log, reports to the controller, rows in the metrics ledger, and
//! Prometheus metrics. Does I/O.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use codex_reports::{Progress, TrainingState};
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    StepNumbers, TrainerMetrics,
    sparkline::Sparkline,
    system_metrics::{SYSTEM_SPLIT, SystemMetrics},
};
use crate::{
    artifacts::reasoning::TraceRow,
    error::chain,
    reporting::Reporter,
    terminal,
    tracking::{Ended, Trackers},
    training::{
        data::Sample,
        objective::{Measured, Preferences, Sampled},
        records::{MetricsLedger, TraceStore, VALIDATION_SPLIT},
    },
};

/// Steps between two rows of the ledger.
const ROW_EVERY: u64 = 10;
/// Time between two log lines.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Number of steps over which the speed is measured.
const WINDOW: usize = 50;

/// Totals at the end of a step.
#[derive(Clone, Copy, Debug)]
struct Sums {
    at: Instant,
    tokens: u64,
    flops: f64,
    data_wait: Duration,
}

/// Speed over the last steps.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Speed {
    tokens_per_second: f64,
    gflops: f64,
    data_wait: f64,
    step_seconds: f64,
}

/// All outputs of progress.
pub(super) struct ProgressOutputs<'a> {
    reporter: &'a Reporter<TrainingState>,
    ledger: MetricsLedger,
    /// Whether a failed write of the ledger was logged.
    failing: bool,
    /// Whether a failed write of a trace was logged.
    losing: bool,
    trackers: Trackers,
    /// The file of reasoning traces, if the run captures some.
    traces: Option<TraceStore>,
    /// What measures the machine, if the ledger has rows about it.
    system: Option<SystemMetrics>,
    metrics: Option<&'a TrainerMetrics>,
    bar: Option<ProgressBar>,
    total: u64,
    /// Totals after each of the last steps.
    recent: VecDeque<Sums>,
    /// Latest step, if the ledger has no row of it.
    unwritten: Option<(StepNumbers, Speed)>,
    losses: Sparkline,
    val_loss: Option<f64>,
    last_line: Option<Instant>,
}

impl<'a> ProgressOutputs<'a> {
    /// Creates the outputs for a run of `total` steps that starts or resumes at `step`.
    pub(super) fn new(
        reporter: &'a Reporter<TrainingState>,
        (ledger, trackers): (MetricsLedger, Trackers),
        metrics: Option<&'a TrainerMetrics>,
        step: u64,
        total: u64,
    ) -> Self {
        let bar = terminal::is_interactive().then(|| {
            let bar = ProgressBar::new(total).with_position(step).with_elapsed(Duration::ZERO);
            let style = ProgressStyle::with_template(
                "{bar:32} {pos}/{len} steps  {prefix}  {elapsed} elapsed, {eta} left\n{wide_msg}",
            );
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar
        });
        reporter.update(|state| state.progress = Some(Progress { step, total_steps: total, ..Progress::default() }));
        if let Some(metrics) = metrics {
            metrics.begin(step, total);
        }
        let start = Sums { at: Instant::now(), tokens: 0, flops: 0.0, data_wait: Duration::ZERO };
        Self {
            reporter,
            ledger,
            failing: false,
            losing: false,
            trackers,
            traces: None,
            system: None,
            metrics,
            bar,
            total,
            recent: VecDeque::from([start]),
            unwritten: None,
            losses: Sparkline::default(),
            val_loss: None,
            last_line: None,
        }
    }

    /// Adds the file of reasoning traces.
    pub(super) fn with_traces(self, traces: Option<TraceStore>) -> Self {
        Self { traces, ..self }
    }

    /// Adds what measures the machine.
    pub(super) fn with_system(self, system: Option<SystemMetrics>) -> Self {
        Self { system, ..self }
    }

    /// Writes a reasoning trace, the `number`th of the run. A failing volume loses traces, but does not end training.
    pub(super) fn trace(&mut self, row: &TraceRow, number: u64) {
        let Some(store) = &mut self.traces else { return };
        match store.append(row, number) {
            Ok(()) => self.losing = false,
            Err(error) if !std::mem::replace(&mut self.losing, true) => {
                tracing::warn!(
                    step = row.step,
                    error = chain(&error),
                    "reasoning traces cannot be written, from this step on"
                );
            }
            Err(_) => {}
        }
    }

    /// Reports a step.
    pub(super) fn step(&mut self, numbers: StepNumbers, executed: u64) {
        let now = Instant::now();
        let took = self.recent.back().map_or(Duration::ZERO, |last| now.duration_since(last.at));
        let speed = self.measure(now, &numbers);
        let left = (self.total.saturating_sub(numbers.step) as f64 * speed.step_seconds).ceil();
        let memory = resident_bytes();
        self.losses.push(numbers.loss);
        if let Some(metrics) = self.metrics {
            metrics.step(&numbers, took);
        }
        self.reporter.update(|state| {
            state.progress = Some(Progress {
                step: numbers.step,
                total_steps: self.total,
                loss: Some(numbers.loss).filter(|loss| loss.is_finite()),
                tokens_per_second: Some(speed.tokens_per_second),
                eta_seconds: Some(left as u64),
                learning_rate: Some(numbers.learning_rate),
                gradient_norm: Some(numbers.gradient_norm).filter(|norm| norm.is_finite()),
                gflops: Some(speed.gflops),
                data_wait: Some(speed.data_wait),
                memory_bytes: memory,
                val_loss: self.val_loss,
            });
            state.steps_executed = executed;
        });
        if let Some(bar) = &self.bar {
            bar.set_position(numbers.step);
            bar.set_prefix(format!("loss {:.4} {}", numbers.loss, self.losses));
            bar.set_message(line(&numbers, speed, memory, self.val_loss));
        } else if numbers.step == self.total || self.last_line.is_none_or(|then| now.duration_since(then) >= LINE_EVERY)
        {
            self.last_line = Some(now);
            tracing::info!(
                step = numbers.step,
                total_steps = self.total,
                loss = numbers.loss,
                learning_rate = numbers.learning_rate,
                gradient_norm = numbers.gradient_norm,
                tokens_per_second = speed.tokens_per_second.round(),
                gflops = (10.0 * speed.gflops).round() / 10.0,
                data_wait = (1e4 * speed.data_wait).round() / 1e4,
                eta_seconds = left,
                memory_bytes = memory,
                val_loss = self.val_loss,
                reward_margin = numbers.preferences.map(|it| it.margin),
                preference_accuracy = numbers.preferences.map(|it| it.accuracy),
                reward = numbers.sampled.map(|it| it.reward),
                answer_accuracy = numbers.sampled.map(|it| it.right),
                entropy = numbers.sampled.map(|it| it.entropy),
                gradient_noise_scale = numbers.noise_scale,
                epsilon = numbers.epsilon,
                "training"
            );
        }
        self.unwritten = Some((numbers, speed));
        if numbers.step.is_multiple_of(ROW_EVERY) {
            self.write_step();
        }
    }

    /// Writes the latest step to the ledger, unless it is there already.
    fn write_step(&mut self) {
        let Some((numbers, speed)) = self.unwritten.take() else { return };
        let mut metrics = vec![
            ("loss", numbers.loss),
            ("learning_rate", numbers.learning_rate),
            ("grad_norm", numbers.gradient_norm),
            ("tokens_per_second", speed.tokens_per_second),
            ("gflops", speed.gflops),
            ("data_wait", speed.data_wait),
        ];
        metrics.extend(rows(numbers.preferences));
        metrics.extend(numbers.sampled.into_iter().flat_map(Sampled::rows));
        metrics.extend(numbers.noise_scale.map(|scale| ("gradient_noise_scale", scale)));
        metrics.extend(numbers.epsilon.map(|epsilon| ("epsilon", epsilon)));
        self.write(numbers.step, "train", &metrics);
        if let Some(system) = &mut self.system {
            let measured = system.measure();
            let rows: Vec<(&str, f64)> = measured.iter().map(|(name, value)| (name.as_str(), *value)).collect();
            self.write(numbers.step, SYSTEM_SPLIT, &rows);
        }
    }

    /// Writes to the ledger, and what the ledger has to the trackers. A failing volume loses rows, but does not end training.
    fn write(&mut self, step: u64, split: &str, metrics: &[(&str, f64)]) {
        match self.ledger.append(step, split, metrics) {
            Ok(rows) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!(step, "metrics can be written again, from this step on");
                }
                self.trackers.log(&rows);
            }
            Err(error) if !std::mem::replace(&mut self.failing, true) => {
                tracing::warn!(step, error = chain(&error), "metrics cannot be written, from this step on");
            }
            Err(_) => {}
        }
    }

    /// Reports the evaluation after `step` steps, which took this long, with the losses on the validation records of phases.
    pub(super) fn evaluated(
        &mut self,
        step: u64,
        measured: Measured,
        phases: &[(&str, f64)],
        (samples, took): (&[Sample], Duration),
    ) {
        let Measured { loss, preferences, .. } = measured;
        // The speed counts the time of steps only.
        for sums in &mut self.recent {
            sums.at += took;
        }
        self.val_loss = Some(loss).filter(|loss| loss.is_finite());
        if let Some(metrics) = self.metrics {
            metrics.evaluated(loss);
        }
        self.reporter.update(|state| {
            if let Some(progress) = &mut state.progress {
                progress.val_loss = self.val_loss;
            }
        });
        if let Some(bar) = &self.bar {
            bar.println(format!("step {step}: validation loss {loss:.4}{}", suffix(preferences)));
            for sample in samples {
                bar.println(format!("  {sample}"));
            }
        } else {
            tracing::info!(
                step,
                val_loss = loss,
                reward_margin = preferences.map(|it| it.margin),
                preference_accuracy = preferences.map(|it| it.accuracy),
                "evaluation"
            );
            for Sample { prompt, written, correct, .. } in samples {
                match written {
                    Ok(text) => tracing::info!(step, prompt, answered = text, correct, "sample"),
                    Err(error) => tracing::info!(step, prompt, error, "sample"),
                }
            }
        }
        if loss.is_finite() {
            let mut metrics = vec![("loss", loss)];
            metrics.extend(rows(preferences));
            self.write(step, VALIDATION_SPLIT, &metrics);
            for (id, loss) in phases {
                self.write(step, VALIDATION_SPLIT, &[(&format!("loss.{id}"), *loss)]);
            }
        }
    }

    /// Computes the speed over the last steps, this one included.
    fn measure(&mut self, now: Instant, numbers: &StepNumbers) -> Speed {
        let before = self.recent.back().copied();
        let before = before.unwrap_or(Sums { at: now, tokens: 0, flops: 0.0, data_wait: Duration::ZERO });
        let sums = Sums {
            at: now,
            tokens: before.tokens + numbers.tokens as u64,
            flops: before.flops + numbers.flops,
            data_wait: before.data_wait + numbers.data_wait,
        };
        self.recent.push_back(sums);
        if self.recent.len() > WINDOW {
            self.recent.pop_front();
        }
        let first = self.recent.front().copied().unwrap_or(before);
        let seconds = now.duration_since(first.at).as_secs_f64().max(1e-9);
        Speed {
            tokens_per_second: (sums.tokens - first.tokens) as f64 / seconds,
            gflops: (sums.flops - first.flops) / seconds / 1e9,
            data_wait: (sums.data_wait.saturating_sub(first.data_wait).as_secs_f64() / seconds).min(1.0),
            step_seconds: seconds / (self.recent.len() - 1).max(1) as f64,
        }
    }

    /// Writes the last step to the ledger, ends the trackers, and finishes the terminal output.
    pub(super) fn close(&mut self, ended: Ended) {
        self.write_step();
        self.trackers.end(ended);
        if let Some(bar) = &self.bar {
            // The time that is left is unknown once the attempt ends before the run.
            if let Ok(style) =
                ProgressStyle::with_template("{bar:32} {pos}/{len} steps  {prefix}  {elapsed} elapsed\n{wide_msg}")
            {
                bar.set_style(style);
            }
            bar.abandon();
        }
    }
}

/// Returns the rows of the metrics ledger for measurements of pairs.
fn rows(preferences: Option<Preferences>) -> impl Iterator<Item = (&'static str, f64)> {
    let rows = |it: Preferences| [("reward_margin", it.margin), ("preference_accuracy", it.accuracy)];
    preferences.into_iter().flat_map(rows)
}

/// Returns measurements of pairs for a line on a terminal.
fn suffix(preferences: Option<Preferences>) -> String {
    let text = |it: Preferences| format!("  margin {:.3}  preferred {:.1} %", it.margin, 100.0 * it.accuracy);
    preferences.map(text).unwrap_or_default()
}

/// Returns the line below the progress bar.
fn line(numbers: &StepNumbers, speed: Speed, memory: Option<u64>, val_loss: Option<f64>) -> String {
    let mut parts = vec![
        format!("rate {:.2e}", numbers.learning_rate),
        format!("gradient {:.3}", numbers.gradient_norm),
        format!("{:.0} tokens/s", speed.tokens_per_second),
        format!("{:.1} GFLOP/s", speed.gflops),
        format!("data wait {:.1} %", 100.0 * speed.data_wait),
    ];
    parts.extend(memory.map(|bytes| format!("memory {:.0} MiB", bytes as f64 / f64::from(1 << 20))));
    parts.extend(val_loss.map(|loss| format!("val loss {loss:.4}")));
    parts.extend(numbers.noise_scale.map(|scale| format!("noise scale {scale:.0}")));
    parts.extend(numbers.epsilon.map(|epsilon| format!("epsilon {epsilon:.3}")));
    parts.extend(numbers.sampled.map(|it| format!("reward {:.3}  right {:.1} %", it.reward, 100.0 * it.right)));
    parts.join("  ") + &suffix(numbers.preferences)
}

/// Returns the resident memory of this process in bytes, from `/proc`.
fn resident_bytes() -> Option<u64> {
    let pages: u64 = std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_measured() {
        let before = resident_bytes().unwrap();
        let block = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = resident_bytes().unwrap();
        assert!(after >= before + (48 << 20) && block[12_345] == 1, "{before} {after}");
    }

    #[test]
    fn the_line_below_the_bar() {
        let numbers = StepNumbers {
            step: 1,
            loss: 1.0,
            preferences: None,
            sampled: None,
            gradient_norm: 0.5,
            learning_rate: 0.005,
            noise_scale: None,
            epsilon: None,
            tokens: 10,
            flops: 1e9,
            data_wait: Duration::ZERO,
        };
        let speed = Speed { tokens_per_second: 21_480.4, gflops: 61.44, data_wait: 0.0125, step_seconds: 0.1 };
        assert_eq!(
            line(&numbers, speed, Some(314_572_800), Some(0.25)),
            "rate 5.00e-3  gradient 0.500  21480 tokens/s  61.4 GFLOP/s  data wait 1.2 %  memory 300 MiB  val loss 0.2500"
        );
        let preferences = Some(Preferences { margin: 0.125, accuracy: 0.75 });
        let told = line(&StepNumbers { preferences, ..numbers }, speed, None, None);
        assert!(told.ends_with("data wait 1.2 %  margin 0.125  preferred 75.0 %"), "{told}");
        let sampled = Some(Sampled { reward: 0.5, right: 0.375, ..Sampled::default() });
        let told = line(&StepNumbers { sampled, ..numbers }, speed, None, None);
        assert!(told.ends_with("data wait 1.2 %  reward 0.500  right 37.5 %"), "{told}");
    }
}
