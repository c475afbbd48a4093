//! Which examples a step sees, and how many steps there are. Pure.
//!
//! Examples are counted over the whole run. Without epochs every step has the same number of examples. With
//! `training.max_epochs` an epoch has as many examples as there are records, and its last step takes the remainder: fewer
//! batches, of which the last may be shorter.

use codex_configs::Optimization;

/// The examples of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Examples {
    /// Index of the first example, counted over the whole run.
    pub(crate) first: u64,
    /// Number of examples.
    pub(crate) count: u64,
}

/// Number of examples of a full step.
fn full(training: &Optimization) -> u64 {
    training.batch_size as u64 * training.gradient_accumulation as u64
}

/// Returns the examples of the step after `done` steps, for data with `records` records.
pub(crate) fn examples_of_step(training: &Optimization, records: u64, done: u64) -> Examples {
    let full = full(training);
    if training.max_epochs.is_none() {
        return Examples { first: done * full, count: full };
    }
    let steps = records.div_ceil(full).max(1);
    let (epoch, within) = (done / steps, done % steps * full);
    Examples { first: epoch * records + within, count: full.min(records - within) }
}

/// Returns the number of optimizer steps that the learning rate schedule spans.
pub(crate) fn scheduled_steps(training: &Optimization, records: u64) -> u64 {
    training.max_epochs.map_or(training.max_steps, |epochs| epochs * records.div_ceil(full(training)).max(1))
}

/// Returns the number of optimizer steps that the run executes.
pub(crate) fn executed_steps(training: &Optimization, records: u64) -> u64 {
    let steps = scheduled_steps(training, records);
    training.stop_after.map_or(steps, |stop| stop.min(steps))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::training::test_support::{attempt, both, finished, resolved, synthetic};

    fn training(batch: u64, accumulation: u64, epochs: Option<u64>) -> Optimization {
        let epochs = epochs.map_or_else(|| "null".to_owned(), |epochs| epochs.to_string());
        let overrides = [
            format!("training.batch_size={batch}"),
            format!("training.gradient_accumulation={accumulation}"),
            format!("training.max_epochs={epochs}"),
        ];
        let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
        resolved(&overrides, both()).spec().settings.training.clone()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn epochs_see_every_example_once_in_order(
            batch in 1_u64..20, accumulation in 1_u64..5, epochs in 1_u64..4, records in 1_u64..200,
        ) {
            let training = training(batch, accumulation, Some(epochs));
            let (mut next, mut flushed) = (0, 0);
            for done in 0..scheduled_steps(&training, records) {
                let Examples { first, count } = examples_of_step(&training, records, done);
                prop_assert_eq!(first, next);
                prop_assert!((1..=batch * accumulation).contains(&count));
                next += count;
                if count < batch * accumulation {
                    flushed += 1;
                    prop_assert_eq!(next % records, 0);
                }
            }
            prop_assert_eq!(next, epochs * records);
            prop_assert_eq!(flushed, if records.is_multiple_of(batch * accumulation) { 0 } else { epochs });
        }

        #[test]
        fn without_epochs_every_step_has_the_same_number_of_examples(batch in 1_u64..20, accumulation in 1_u64..5, done in 0_u64..1000) {
            let training = training(batch, accumulation, None);
            let count = batch * accumulation;
            prop_assert_eq!(examples_of_step(&training, 7, done), Examples { first: done * count, count });
            prop_assert_eq!(scheduled_steps(&training, 7), training.max_steps);
        }
    }

    /// Batches of 16, two a step, over 40 records: a step of 32 and one of 8.
    #[test]
    fn the_last_step_of_an_epoch_takes_the_remainder() {
        let run = |epochs: u64, warmup: u64| {
            let overrides = [
                format!("training.max_epochs={epochs}"),
                format!("training.warmup_steps={warmup}"),
                "training.batch_size=16".to_owned(),
                "training.gradient_accumulation=2".to_owned(),
            ];
            let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
            resolved(&overrides, vec![synthetic("arithmetic", 40)])
        };
        let output = tempfile::tempdir().unwrap();
        let ended = attempt(&run(3, 2), output.path(), false);
        finished(&ended);
        let progress = ended.state.progress.unwrap();
        assert_eq!((progress.step, progress.total_steps), (6, 6));
        let past = crate::training::forensics::RecordedRun::open(output.path()).unwrap();
        let ledger = past.ledger().unwrap();
        let seen: Vec<(u64, u64)> = ledger.values().map(|row| (row.first, row.examples)).collect();
        assert_eq!(seen, [(0, 32), (32, 8), (40, 32), (72, 8), (80, 32), (112, 8)]);
        // The rate decays over these six steps, not over max_steps.
        assert!(progress.learning_rate.unwrap() < 0.002, "{progress:?}");
        let output = tempfile::tempdir().unwrap();
        let refused = attempt(&run(3, 7), output.path(), false).outcome.unwrap_err().to_string();
        assert_eq!(
            refused,
            "training.warmup_steps is 7, but training.max_epochs yields only 6 steps with this data: use at most 6"
        );
    }
}
