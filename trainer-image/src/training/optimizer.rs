//! AdamW with clipping and a schedule, over plain numbers in the order of names. Pure.

use codex_configs::{Optimization, Scheduler};

/// The learning rate of `step`, counted from 0.
pub(super) fn learning_rate(training: &Optimization, step: u64) -> f64 {
    let Optimization { warmup_steps, max_steps, learning_rate: peak, .. } = *training;
    if step < warmup_steps {
        return peak * (step + 1) as f64 / warmup_steps as f64;
    }
    match training.scheduler {
        Scheduler::Constant => peak,
        Scheduler::Cosine => {
            let done = (step - warmup_steps) as f64 / (max_steps - warmup_steps).max(1) as f64;
            peak * 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Optimization {
        Optimization {
            max_steps: 100,
            stop_after: None,
            batch_size: 1,
            gradient_accumulation: 1,
            dtype: codex_configs::Dtype::Fp32,
            gradient_checkpointing: false,
            learning_rate: 0.1,
            scheduler: Scheduler::Cosine,
            warmup_steps: 10,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            grad_clip_norm: 1.0,
            checkpoint_every: 10,
            checkpoint_interval_seconds: None,
            keep_last: 1,
            keep_every: None,
            best_k: 0,
            best_metric: "val_loss".to_owned(),
            metric_mode: codex_configs::MetricMode::Min,
            state_digest_every: None,
            spike_action: codex_configs::SpikeAction::Count,
            spike_threshold: 10.0,
            spike_window: 64,
        }
    }

    #[test]
    fn the_rate_rises_and_falls() {
        let rate = |step| learning_rate(&settings(), step);
        assert!((rate(0) - 0.01).abs() < 1e-12 && (rate(9) - 0.1).abs() < 1e-12);
        assert!((rate(10) - 0.1).abs() < 1e-12 && (rate(55) - 0.05).abs() < 1e-12 && rate(100) < 1e-12);
    }
}
