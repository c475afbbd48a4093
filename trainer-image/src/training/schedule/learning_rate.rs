//! The learning rate as a function of the step. Pure.
//!
//! After warm-up the rates equal those of the schedules of the same name in Hugging Face `transformers` (`step` equals torch's
//! `StepLR`, counted from the end of warm-up). Warm-up is one step ahead of theirs: their first step has rate 0 and changes
//! nothing.

use std::f64::consts::PI;

use codex_configs::{Optimization, Scheduler};

/// Default timescale of `inverse_sqrt` without warm-up.
const TIMESCALE: u64 = 10_000;

/// Returns the learning rate of `step`, counted from 0, for a schedule with this peak that spans `total` steps.
pub(crate) fn learning_rate(training: &Optimization, peak: f64, total: u64, step: u64) -> f64 {
    let Optimization { warmup_steps: warmup, .. } = *training;
    if step < warmup {
        return peak * (step + 1) as f64 / warmup as f64;
    }
    let since = (step - warmup) as f64;
    let done = since / total.saturating_sub(warmup).max(1) as f64;
    let left = 1.0 - done.min(1.0);
    match training.scheduler {
        Scheduler::Constant | Scheduler::ConstantWithWarmup => peak,
        Scheduler::Linear => peak * left,
        Scheduler::Cosine => peak * 0.5 * (1.0 + (PI * done.min(1.0)).cos()),
        Scheduler::CosineWithRestarts if done >= 1.0 => 0.0,
        Scheduler::CosineWithRestarts => {
            let within = (training.scheduler_cycles as f64 * done).fract();
            peak * 0.5 * (1.0 + (PI * within).cos())
        }
        Scheduler::Polynomial => {
            let end = training.scheduler_end_rate;
            (peak - end) * left.powf(training.scheduler_power) + end
        }
        Scheduler::InverseSqrt => {
            let otherwise = if warmup == 0 { TIMESCALE } else { warmup };
            let timescale = training.scheduler_timescale.unwrap_or(otherwise) as f64;
            peak / ((since + timescale) / timescale).sqrt()
        }
        Scheduler::Step => {
            let falls = (step - warmup) / training.scheduler_step_size;
            peak * training.scheduler_gamma.powf(falls as f64)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;

    use super::*;
    use crate::training::test_support::{both, resolved};

    /// `fixtures/schedules.json` as `fixtures/schedules.py` writes it.
    #[derive(serde::Deserialize)]
    struct Fixture {
        peak: f64,
        cases: Vec<Case>,
    }

    #[derive(serde::Deserialize)]
    struct Case {
        settings: BTreeMap<String, Value>,
        rates: Vec<f64>,
    }

    #[test]
    fn rates_are_those_of_transformers_and_torch() {
        let fixture: Fixture = serde_json::from_str(include_str!("fixtures/schedules.json")).unwrap();
        let mut schedulers = std::collections::BTreeSet::new();
        for Case { settings, rates } in fixture.cases {
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let mut overrides: Vec<String> =
                settings.iter().map(|(key, value)| format!("training.{key}={}", text(value))).collect();
            overrides.push(format!("training.learning_rate={}", fixture.peak));
            let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
            let run = resolved(&overrides, both());
            let training = &run.spec().settings.training;
            schedulers.insert(settings["scheduler"].to_string());
            for step in 0..training.max_steps {
                // Warm-up is one step ahead here.
                let index = if step < training.warmup_steps { step + 1 } else { step };
                let (ours, theirs) =
                    (learning_rate(training, fixture.peak, training.max_steps, step), rates[index as usize]);
                assert!((ours - theirs).abs() <= 1e-12 * fixture.peak, "{settings:?} step {step}: {ours} {theirs}");
            }
        }
        assert_eq!(schedulers.len(), 8);
    }

    #[test]
    fn no_rate_is_negative_or_rises_after_the_end() {
        for scheduler in ["linear", "cosine", "cosine_with_restarts", "polynomial"] {
            let run = resolved(&["training.max_steps=30", &format!("training.scheduler={scheduler}")], both());
            let training = &run.spec().settings.training;
            let end = training.scheduler_end_rate;
            let rate = |step| learning_rate(training, training.learning_rate, 30, step);
            assert!((30..90).all(|step| (0.0..=end).contains(&rate(step))), "{scheduler}");
        }
    }
}
