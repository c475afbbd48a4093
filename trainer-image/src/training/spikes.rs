//! Spikes of the loss and of the gradient norm: values that stand far above those of the last steps. Pure.
//!
//! "Far" is a robust z-score: (value − median) / (1.4826 · MAD) over a window, which one spike, or many, cannot widen as they
//! would widen a mean and a standard deviation. Every value enters the window, spikes too: a level that stays becomes the
//! median after half a window, so that a skipped step is never the beginning of skipping for good.

use std::collections::VecDeque;

use codex_configs::{Optimization, SpikeAction};

use super::snapshot::{Column, Rest};

/// What a normal distribution's MAD is multiplied by to give its standard deviation.
const MAD_TO_DEVIATION: f64 = 1.4826;
/// A deviation counts as at least this share of the median: a window of equal values has none.
const LEAST_DEVIATION: f64 = 0.01;

/// The values of the last steps, and how many spikes there were.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Spikes {
    losses: VecDeque<f64>,
    norms: VecDeque<f64>,
    /// Steps with a spike.
    pub(super) seen: u64,
    /// Those of them that changed no weight.
    pub(super) skipped: u64,
}

/// A value that stands out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spike {
    /// `loss` or `grad_norm`.
    pub(super) what: &'static str,
    /// The value.
    pub(super) value: f64,
    /// The median of the steps before.
    pub(super) median: f64,
    /// How many deviations lie between them.
    pub(super) score: f64,
    /// Whether the step is to change no weight.
    pub(super) skip: bool,
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[middle - 1], sorted[middle]) } else { sorted[middle] }
}

/// The median of a window, and how many deviations `value` stands above it.
fn score(window: &VecDeque<f64>, value: f64) -> (f64, f64) {
    let mut sorted: Vec<f64> = window.iter().copied().collect();
    sorted.sort_by(f64::total_cmp);
    let center = median(&sorted);
    let mut distances: Vec<f64> = sorted.iter().map(|x| (x - center).abs()).collect();
    distances.sort_by(f64::total_cmp);
    let deviation = (MAD_TO_DEVIATION * median(&distances)).max(LEAST_DEVIATION * center.abs()).max(f64::MIN_POSITIVE);
    (center, (value - center) / deviation)
}

impl Spikes {
    /// Hears of a step's loss and gradient norm before the weights change. The loss is looked at first.
    pub(super) fn judge(&mut self, training: &Optimization, loss: f64, norm: f64) -> Option<Spike> {
        if training.spike_action == SpikeAction::Ignore {
            return None;
        }
        let mut found = None;
        for (what, window, value) in [("loss", &mut self.losses, loss), ("grad_norm", &mut self.norms, norm)] {
            // Half a window is enough to judge by; fewer values would call the first steps' noise a spike.
            if found.is_none() && window.len() >= training.spike_window / 2 {
                let (median, score) = score(window, value);
                if score > training.spike_threshold {
                    let skip = training.spike_action == SpikeAction::Skip;
                    found = Some(Spike { what, value, median, score, skip });
                }
            }
            window.push_back(value);
            while window.len() > training.spike_window {
                window.pop_front();
            }
        }
        if let Some(spike) = found {
            self.seen += 1;
            self.skipped += u64::from(spike.skip);
        }
        found
    }

    /// Into a state.
    pub(super) fn save(&self, rest: &mut Rest) {
        let Self { losses, norms, seen, skipped } = self;
        rest.insert("spikes/counts".to_owned(), Column::U64(vec![*seen, *skipped]));
        rest.insert("spikes/losses".to_owned(), Column::F64(losses.iter().copied().collect()));
        rest.insert("spikes/norms".to_owned(), Column::F64(norms.iter().copied().collect()));
    }

    /// Out of a state; none when it has no such columns.
    pub(super) fn load(rest: &mut Rest) -> Option<Self> {
        let counts = rest.remove("spikes/counts")?;
        let (losses, norms) = (rest.remove("spikes/losses")?, rest.remove("spikes/norms")?);
        let (Column::U64(counts), Column::F64(losses), Column::F64(norms)) = (counts, losses, norms) else {
            return None;
        };
        let [seen, skipped] = counts.try_into().ok()?;
        Some(Self { losses: losses.into(), norms: norms.into(), seen, skipped })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::tests::{both, resolved};

    fn settings(action: &str) -> Optimization {
        let action = format!("training.spike_action={action}");
        let run = resolved(&[&action, "training.spike_window=16", "training.spike_threshold=8"], both());
        run.spec().settings.training.clone()
    }

    /// A loss that falls with noise, as losses do.
    fn usual(step: u32) -> f64 {
        2.0 / (1.0 + f64::from(step) / 50.0) + f64::from(step * 7919 % 13) * 0.01
    }

    #[test]
    fn a_spike_is_seen_and_the_usual_is_not() {
        let (training, mut spikes) = (settings("skip"), Spikes::default());
        for step in 0..200 {
            assert_eq!(spikes.judge(&training, usual(step), usual(step + 3)), None, "{step}");
        }
        let spike = spikes.judge(&training, 6.0, 0.5).unwrap();
        assert!(spike.what == "loss" && spike.skip && spike.score > 8.0 && spike.median < 1.0, "{spike:?}");
        let spike = spikes.judge(&training, usual(201), 50.0).unwrap();
        assert_eq!(spike.what, "grad_norm");
        assert_eq!((spikes.seen, spikes.skipped), (2, 2));
    }

    #[test]
    fn a_level_that_stays_is_no_spike_for_long() {
        let (training, mut spikes) = (settings("skip"), Spikes::default());
        for _ in 0..16 {
            spikes.judge(&training, 1.0, 1.0);
        }
        let skipped = (0..40).filter(|_| spikes.judge(&training, 5.0, 1.0).is_some()).count();
        assert!((1..=8).contains(&skipped), "{skipped}");
    }

    #[test]
    fn nothing_is_looked_for_when_ignored_and_nothing_is_skipped_when_counted() {
        let (training, mut spikes) = (settings("ignore"), Spikes::default());
        for value in [vec![1.0; 20], vec![100.0]].concat() {
            assert_eq!(spikes.judge(&training, value, value), None);
        }
        assert_eq!(spikes, Spikes::default());
        let training = settings("count");
        let found = [vec![1.0; 20], vec![100.0]].concat().into_iter().filter_map(|x| spikes.judge(&training, x, x));
        assert_eq!(found.map(|spike| spike.skip).collect::<Vec<_>>(), [false]);
        assert_eq!((spikes.seen, spikes.skipped), (1, 0));
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let (training, mut spikes) = (settings("count"), Spikes::default());
        for step in 0..30 {
            spikes.judge(&training, usual(step), usual(step));
        }
        let mut rest = Rest::new();
        spikes.save(&mut rest);
        assert_eq!(Spikes::load(&mut rest), Some(spikes));
        assert!(rest.is_empty());
        rest.insert("spikes/counts".to_owned(), Column::F64(vec![0.5]));
        assert_eq!(Spikes::load(&mut rest), None);
    }
}
