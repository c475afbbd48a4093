//! What a trainer counts for Prometheus, under the names that dashboards know. Pure.

use std::time::Duration;

use prometheus::{Error, Gauge, Histogram, HistogramOpts, IntCounter, Registry};

use super::progress::StepNumbers;

/// Seconds of a step: from a tiny model's to a large one's.
const STEP_BUCKETS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
/// Seconds of loading a step's data.
const DATA_BUCKETS: [f64; 9] = [1e-5, 1e-4, 5e-4, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5];

/// The counters of one trainer.
#[derive(Debug)]
pub struct Meter {
    registry: Registry,
    steps: IntCounter,
    tokens: IntCounter,
    spikes: IntCounter,
    damaged: IntCounter,
    loss: Gauge,
    val_loss: Gauge,
    learning_rate: Gauge,
    gradient_norm: Gauge,
    duration: Histogram,
    data: Histogram,
}

impl Meter {
    /// Fresh counters.
    ///
    /// # Errors
    /// When two have one name.
    pub fn new() -> Result<Self, Error> {
        let histogram = |name, help, buckets: &[f64]| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
        };
        let meter = Self {
            registry: Registry::new(),
            steps: IntCounter::new("codex_ml_training_steps_total", "Optimiser steps of this process.")?,
            tokens: IntCounter::new("codex_ml_training_tokens_total", "Tokens that went through the model.")?,
            spikes: IntCounter::new(
                "codex_ml_training_spikes_total",
                "Steps of this process whose loss or gradient stood out, skipped ones included.",
            )?,
            damaged: IntCounter::new(
                "codex_ml_checkpoints_damaged_total",
                "Checkpoints that this process found damaged and passed over.",
            )?,
            loss: Gauge::new(
                "codex_ml_training_loss",
                "Mean cross-entropy per target token of the newest step, in nats.",
            )?,
            val_loss: Gauge::new(
                "codex_ml_training_val_loss",
                "The same on held-out records, of the newest evaluation; NaN before the first.",
            )?,
            learning_rate: Gauge::new("codex_ml_training_learning_rate", "What the newest step was taken with.")?,
            gradient_norm: Gauge::new(
                "codex_ml_training_gradient_norm",
                "The norm of the newest step's gradient before clipping.",
            )?,
            duration: histogram(
                "codex_ml_training_duration_seconds",
                "Seconds of one step, its data and what follows it included.",
                &STEP_BUCKETS,
            )?,
            data: histogram(
                "codex_ml_data_loading_duration_seconds",
                "Seconds that a step waited for its data.",
                &DATA_BUCKETS,
            )?,
        };
        meter.val_loss.set(f64::NAN);
        let registry = &meter.registry;
        for counter in [&meter.steps, &meter.tokens, &meter.spikes, &meter.damaged] {
            registry.register(Box::new(counter.clone()))?;
        }
        for gauge in [&meter.loss, &meter.val_loss, &meter.learning_rate, &meter.gradient_norm] {
            registry.register(Box::new(gauge.clone()))?;
        }
        for histogram in [&meter.duration, &meter.data] {
            registry.register(Box::new(histogram.clone()))?;
        }
        Ok(meter)
    }

    /// What there is to scrape.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Hears of a step that took so long from the end of the one before.
    pub(super) fn step(&self, numbers: &StepNumbers, took: Duration) {
        self.steps.inc();
        self.tokens.inc_by(numbers.tokens as u64);
        self.loss.set(numbers.loss);
        self.learning_rate.set(numbers.learning_rate);
        self.gradient_norm.set(numbers.gradient_norm);
        self.duration.observe(took.as_secs_f64());
        self.data.observe(numbers.data_wait.as_secs_f64());
    }

    /// Hears of a spike.
    pub(super) fn spiked(&self) {
        self.spikes.inc();
    }

    /// Hears of a checkpoint that was passed over.
    pub(super) fn damaged(&self) {
        self.damaged.inc();
    }

    /// Hears of an evaluation.
    pub(super) fn evaluated(&self, val_loss: f64) {
        self.val_loss.set(val_loss);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_documented_metrics_of_a_trainer_are_those_that_exist() {
        let families = Meter::new().unwrap().registry().gather();
        let exposed: BTreeSet<String> = families.iter().map(|family| family.name().to_owned()).collect();
        let page = include_str!("../../../docs/metrics.md");
        let section = page.split("\n## ").find(|section| section.starts_with("A trainer\n")).unwrap();
        let named = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        assert_eq!(named.map(str::to_owned).collect::<BTreeSet<_>>(), exposed);
    }

    #[test]
    fn a_step_is_counted() {
        let meter = Meter::new().unwrap();
        let numbers = StepNumbers {
            step: 3,
            loss: 1.25,
            gradient_norm: 0.5,
            learning_rate: 0.005,
            tokens: 100,
            flops: 0.0,
            data_wait: Duration::from_micros(50),
        };
        meter.step(&numbers, Duration::from_millis(20));
        meter.evaluated(0.75);
        meter.spiked();
        let text = prometheus::TextEncoder::new().encode_to_string(&meter.registry().gather()).unwrap();
        for line in [
            "codex_ml_training_steps_total 1",
            "codex_ml_training_tokens_total 100",
            "codex_ml_training_spikes_total 1",
            "codex_ml_checkpoints_damaged_total 0",
            "codex_ml_training_loss 1.25",
            "codex_ml_training_val_loss 0.75",
            "codex_ml_training_duration_seconds_bucket{le=\"0.025\"} 1",
            "codex_ml_training_duration_seconds_bucket{le=\"0.01\"} 0",
            "codex_ml_data_loading_duration_seconds_count 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
