//! Prometheus metrics of a trainer. Pure.

use std::time::Duration;

use prometheus::{Error, Gauge, Histogram, HistogramOpts, IntCounter, Registry};

use super::StepNumbers;

/// Buckets for the seconds of a step, from tiny models to large ones.
const STEP_BUCKETS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
/// Buckets for the seconds of loading the data of a step.
const DATA_BUCKETS: [f64; 9] = [1e-5, 1e-4, 5e-4, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5];

/// Metrics of one trainer.
#[derive(Debug)]
pub struct TrainerMetrics {
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

impl TrainerMetrics {
    /// Creates the metrics.
    ///
    /// # Errors
    /// When two metrics have the same name.
    pub fn new() -> Result<Self, Error> {
        let histogram = |name, help, buckets: &[f64]| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
        };
        let metrics = Self {
            registry: Registry::new(),
            steps: IntCounter::new("codex_ml_training_steps_total", "Optimizer steps of this process.")?,
            tokens: IntCounter::new("codex_ml_training_tokens_total", "Tokens trained on by this process.")?,
            spikes: IntCounter::new(
                "codex_ml_training_spikes_total",
                "Steps of this process with a spike of the loss or gradient norm, including skipped ones.",
            )?,
            damaged: IntCounter::new(
                "codex_ml_checkpoints_damaged_total",
                "Damaged checkpoints that this process skipped.",
            )?,
            loss: Gauge::new(
                "codex_ml_training_loss",
                "Mean cross-entropy per target token of the latest step, in nats.",
            )?,
            val_loss: Gauge::new(
                "codex_ml_training_val_loss",
                "Mean cross-entropy per target token of the latest evaluation, in nats; NaN before the first.",
            )?,
            learning_rate: Gauge::new("codex_ml_training_learning_rate", "Learning rate of the latest step.")?,
            gradient_norm: Gauge::new(
                "codex_ml_training_gradient_norm",
                "Gradient norm of the latest step before clipping.",
            )?,
            duration: histogram(
                "codex_ml_training_duration_seconds",
                "Seconds per step, including data loading and waits for checkpoints, but not evaluations.",
                &STEP_BUCKETS,
            )?,
            data: histogram(
                "codex_ml_data_loading_duration_seconds",
                "Seconds that a step waited for its data.",
                &DATA_BUCKETS,
            )?,
        };
        metrics.val_loss.set(f64::NAN);
        let registry = &metrics.registry;
        for counter in [&metrics.steps, &metrics.tokens, &metrics.spikes, &metrics.damaged] {
            registry.register(Box::new(counter.clone()))?;
        }
        for gauge in [&metrics.loss, &metrics.val_loss, &metrics.learning_rate, &metrics.gradient_norm] {
            registry.register(Box::new(gauge.clone()))?;
        }
        for histogram in [&metrics.duration, &metrics.data] {
            registry.register(Box::new(histogram.clone()))?;
        }
        Ok(metrics)
    }

    /// Registry of the metrics.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Records a step and the time since the end of the previous one.
    pub(super) fn step(&self, numbers: &StepNumbers, took: Duration) {
        self.steps.inc();
        self.tokens.inc_by(numbers.tokens as u64);
        self.loss.set(numbers.loss);
        self.learning_rate.set(numbers.learning_rate);
        self.gradient_norm.set(numbers.gradient_norm);
        self.duration.observe(took.as_secs_f64());
        self.data.observe(numbers.data_wait.as_secs_f64());
    }

    /// Counts a spike.
    pub(super) fn count_spike(&self) {
        self.spikes.inc();
    }

    /// Counts a damaged checkpoint.
    pub(super) fn count_damaged_checkpoint(&self) {
        self.damaged.inc();
    }

    /// Records the loss of an evaluation.
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
        let families = TrainerMetrics::new().unwrap().registry().gather();
        let exposed: BTreeSet<String> = families.iter().map(|family| family.name().to_owned()).collect();
        let page = include_str!("../../../../docs/metrics.md");
        let section = page.split("\n## ").find(|section| section.starts_with("A trainer\n")).unwrap();
        let named = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        assert_eq!(named.map(str::to_owned).collect::<BTreeSet<_>>(), exposed);
    }

    #[test]
    fn steps_and_spikes_are_counted() {
        let metrics = TrainerMetrics::new().unwrap();
        let numbers = StepNumbers {
            step: 3,
            loss: 1.25,
            gradient_norm: 0.5,
            learning_rate: 0.005,
            tokens: 100,
            flops: 0.0,
            data_wait: Duration::from_micros(50),
        };
        metrics.step(&numbers, Duration::from_millis(20));
        metrics.evaluated(0.75);
        metrics.count_spike();
        let text = prometheus::TextEncoder::new().encode_to_string(&metrics.registry().gather()).unwrap();
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
