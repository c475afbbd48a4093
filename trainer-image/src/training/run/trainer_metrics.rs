//! Prometheus metrics of a trainer. Pure.

use std::time::Duration;

use codex_metrics::trainer as contract;
use codex_reports::Curriculum;
use prometheus::{Counter, Error, Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, Registry};

use super::StepNumbers;
use crate::{artifacts::metadata::SafetyReport, tracking};

/// Metrics of one trainer.
#[derive(Debug)]
pub struct TrainerMetrics {
    registry: Registry,
    steps: IntCounter,
    tokens: IntCounter,
    flops: Counter,
    peak_flops: Gauge,
    spikes: IntCounter,
    damaged: IntCounter,
    tracking: IntCounterVec,
    blocked: IntGauge,
    redacted: IntGauge,
    step: IntGauge,
    target: IntGauge,
    refused: IntCounter,
    phase: IntGauge,
    phase_waits: IntGauge,
    loss: Gauge,
    val_loss: Gauge,
    reward_margin: Gauge,
    preference_accuracy: Gauge,
    reward: Gauge,
    reward_deviation: Gauge,
    answer_accuracy: Gauge,
    solved: Gauge,
    entropy: Gauge,
    answer_tokens: Gauge,
    truncated: Gauge,
    learning_rate: Gauge,
    gradient_norm: Gauge,
    noise_scale: Gauge,
    epsilon: Gauge,
    duration: Histogram,
    data: Histogram,
}

impl TrainerMetrics {
    /// Creates the metrics.
    ///
    /// # Errors
    /// When two metrics have the same name.
    pub fn new() -> Result<Self, Error> {
        let registry = Registry::new();
        let metrics = Self {
            steps: contract::STEPS.single(&registry)?,
            tokens: contract::TOKENS.single(&registry)?,
            flops: contract::FLOPS.float(&registry)?,
            peak_flops: contract::PEAK_FLOPS.float(&registry)?,
            spikes: contract::SPIKES.single(&registry)?,
            damaged: contract::DAMAGED.single(&registry)?,
            tracking: contract::TRACKING_FAILURES.labelled(&registry)?,
            refused: contract::REFUSED_CONNECTIONS.single(&registry)?,
            blocked: contract::BLOCKED_RECORDS.single(&registry)?,
            redacted: contract::REDACTED_RECORDS.single(&registry)?,
            step: contract::STEP.single(&registry)?,
            target: contract::TARGET.single(&registry)?,
            phase: contract::CURRICULUM_PHASE.single(&registry)?,
            phase_waits: contract::CURRICULUM_WAITS.single(&registry)?,
            loss: contract::LOSS.float(&registry)?,
            val_loss: contract::VAL_LOSS.float(&registry)?,
            reward_margin: contract::REWARD_MARGIN.float(&registry)?,
            preference_accuracy: contract::PREFERENCE_ACCURACY.float(&registry)?,
            reward: contract::REWARD.float(&registry)?,
            reward_deviation: contract::REWARD_DEVIATION.float(&registry)?,
            answer_accuracy: contract::ANSWER_ACCURACY.float(&registry)?,
            solved: contract::SOLVED_PROMPTS.float(&registry)?,
            entropy: contract::ENTROPY.float(&registry)?,
            answer_tokens: contract::ANSWER_TOKENS.float(&registry)?,
            truncated: contract::TRUNCATED_ANSWERS.float(&registry)?,
            learning_rate: contract::LEARNING_RATE.float(&registry)?,
            gradient_norm: contract::GRADIENT_NORM.float(&registry)?,
            noise_scale: contract::GRADIENT_NOISE_SCALE.float(&registry)?,
            epsilon: contract::EPSILON.float(&registry)?,
            duration: contract::STEP_DURATION.single(&registry)?,
            data: contract::DATA_DURATION.single(&registry)?,
            registry,
        };
        let of_pairs = [&metrics.reward_margin, &metrics.preference_accuracy];
        let of_answers = [
            &metrics.reward,
            &metrics.reward_deviation,
            &metrics.answer_accuracy,
            &metrics.solved,
            &metrics.entropy,
            &metrics.answer_tokens,
            &metrics.truncated,
        ];
        for unmeasured in
            [&metrics.val_loss, &metrics.noise_scale, &metrics.epsilon].into_iter().chain(of_pairs).chain(of_answers)
        {
            unmeasured.set(f64::NAN);
        }
        for tracker in tracking::NAMES {
            metrics.tracking_failures(tracker);
        }
        Ok(metrics)
    }

    /// Registry of the metrics.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Records the step at which the process starts or resumes, and the last step of the run.
    pub(super) fn begin(&self, step: u64, total: u64) {
        let number = |step: u64| i64::try_from(step).unwrap_or(i64::MAX);
        self.step.set(number(step));
        self.target.set(number(total));
    }

    /// Records the speed of the device.
    pub(super) fn peak(&self, flops_per_second: f64) {
        self.peak_flops.set(flops_per_second);
    }

    /// Records what safety rules did with the training data.
    pub(super) fn screened(&self, report: &SafetyReport) {
        let number = |records: u64| i64::try_from(records).unwrap_or(i64::MAX);
        self.blocked.set(number(report.blocked));
        self.redacted.set(number(report.redacted));
    }

    /// Records the progress of the curriculum.
    pub(super) fn phase(&self, curriculum: &Curriculum) {
        self.phase.set(i64::from(curriculum.index));
        self.phase_waits.set(i64::from(curriculum.reason.is_some()));
    }

    /// Counter of connections that the port of the metrics refused.
    pub(crate) fn refused_connections(&self) -> IntCounter {
        self.refused.clone()
    }

    /// Records a step and the time since the end of the previous one.
    pub(super) fn step(&self, numbers: &StepNumbers, took: Duration) {
        self.steps.inc();
        self.step.set(i64::try_from(numbers.step).unwrap_or(i64::MAX));
        self.tokens.inc_by(numbers.tokens as u64);
        // A counter takes no other numbers. The formula gives none, unless a model has no parameters.
        if numbers.flops.is_finite() && numbers.flops >= 0.0 {
            self.flops.inc_by(numbers.flops);
        }
        self.loss.set(numbers.loss);
        if let Some(preferences) = numbers.preferences {
            self.reward_margin.set(preferences.margin);
            self.preference_accuracy.set(preferences.accuracy);
        }
        if let Some(scale) = numbers.noise_scale {
            self.noise_scale.set(scale);
        }
        if let Some(epsilon) = numbers.epsilon {
            self.epsilon.set(epsilon);
        }
        if let Some(sampled) = numbers.sampled {
            self.reward.set(sampled.reward);
            self.reward_deviation.set(sampled.deviation);
            self.answer_accuracy.set(sampled.right);
            self.solved.set(sampled.solved);
            self.entropy.set(sampled.entropy);
            self.answer_tokens.set(sampled.length);
            self.truncated.set(sampled.truncated);
        }
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

    /// Counter of failed writes to the tracker of this name.
    pub(crate) fn tracking_failures(&self, tracker: &str) -> IntCounter {
        self.tracking.with_label_values(&[tracker])
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
    use crate::training::objective::{Preferences, Sampled};

    #[test]
    fn the_exposition_is_that_of_the_contract() {
        let families = TrainerMetrics::new().unwrap().registry().gather();
        let exposed: BTreeSet<_> = families
            .iter()
            .map(|family| (family.name(), format!("{:?}", family.get_field_type()).to_lowercase()))
            .collect();
        assert_eq!(exposed, contract::ALL.iter().map(|it| (it.name, it.kind.name().to_owned())).collect());
    }

    #[test]
    fn steps_and_spikes_are_counted() {
        let metrics = TrainerMetrics::new().unwrap();
        let numbers = StepNumbers {
            step: 3,
            loss: 1.25,
            preferences: Some(Preferences { margin: 0.5, accuracy: 0.875 }),
            sampled: Some(Sampled { reward: 0.75, entropy: 1.5, ..Sampled::default() }),
            gradient_norm: 0.5,
            learning_rate: 0.005,
            noise_scale: Some(12.5),
            epsilon: Some(1.25),
            tokens: 100,
            flops: 1.5e9,
            data_wait: Duration::from_micros(50),
        };
        metrics.peak(6e12);
        metrics.begin(2, 40);
        metrics.step(&numbers, Duration::from_millis(20));
        metrics.evaluated(0.75);
        metrics.count_spike();
        metrics.phase(&Curriculum {
            phase: "second".to_owned(),
            index: 2,
            of: 3,
            steps_done: 5,
            steps: 4,
            reason: Some("loss is 1.2500 and must be at most 1".to_owned()),
            phases: Vec::new(),
        });
        let text = prometheus::TextEncoder::new().encode_to_string(&metrics.registry().gather()).unwrap();
        for line in [
            "codex_ml_training_steps_total 1",
            "codex_ml_training_tokens_total 100",
            "codex_ml_training_flops_total 1500000000",
            "codex_ml_training_peak_flops 6000000000000",
            "codex_ml_training_step 3",
            "codex_ml_training_target_steps 40",
            "codex_ml_training_spikes_total 1",
            "codex_ml_checkpoints_damaged_total 0",
            "codex_ml_training_curriculum_phase 2",
            "codex_ml_training_curriculum_waits 1",
            "codex_ml_tracking_failures_total{tracker=\"tensorboard\"} 0",
            "codex_ml_training_loss 1.25",
            "codex_ml_training_reward_margin 0.5",
            "codex_ml_training_preference_accuracy 0.875",
            "codex_ml_training_reward 0.75",
            "codex_ml_training_entropy 1.5",
            "codex_ml_training_gradient_noise_scale 12.5",
            "codex_ml_training_epsilon 1.25",
            "codex_ml_training_val_loss 0.75",
            "codex_ml_training_duration_seconds_bucket{le=\"0.025\"} 1",
            "codex_ml_training_duration_seconds_bucket{le=\"0.01\"} 0",
            "codex_ml_data_loading_duration_seconds_count 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
