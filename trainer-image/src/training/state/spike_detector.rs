//! Detection of spikes: losses and gradient norms far above those of the last steps. Pure.
//!
//! "Far" is measured by a robust z-score, (value − median) / (1.4826 · MAD) over a window: unlike a mean and a standard deviation,
//! it is hardly moved by a few spikes. Every value enters the window, spikes too. A level that lasts becomes the median after
//! half a window, so steps are not skipped forever.

use std::collections::VecDeque;

use codex_configs::{Optimization, SpikeAction};

use super::snapshot::{Column, Columns};

/// Ratio of the standard deviation to the MAD of a normal distribution.
const MAD_TO_DEVIATION: f64 = 1.4826;
/// Lower bound of the deviation as a share of the median, for windows of equal values.
const LEAST_DEVIATION: f64 = 0.01;

/// Losses and gradient norms of the last steps, and the number of spikes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SpikeDetector {
    losses: VecDeque<f64>,
    norms: VecDeque<f64>,
    /// Number of steps with a spike.
    pub(crate) seen: u64,
    /// Number of those that were skipped.
    pub(crate) skipped: u64,
}

/// A value far above the window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spike {
    /// Name of the metric: `loss` or `grad_norm`.
    pub(crate) what: &'static str,
    /// The value of this step.
    pub(crate) value: f64,
    /// Median of the window.
    pub(crate) median: f64,
    /// Their distance in deviations.
    pub(crate) score: f64,
    /// Whether to skip the optimizer step.
    pub(crate) skip: bool,
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[middle - 1], sorted[middle]) } else { sorted[middle] }
}

/// Returns the median of a window and the distance of `value` above it in deviations.
fn score(window: &VecDeque<f64>, value: f64) -> (f64, f64) {
    let mut sorted: Vec<f64> = window.iter().copied().collect();
    sorted.sort_by(f64::total_cmp);
    let center = median(&sorted);
    let mut distances: Vec<f64> = sorted.iter().map(|x| (x - center).abs()).collect();
    distances.sort_by(f64::total_cmp);
    let deviation = (MAD_TO_DEVIATION * median(&distances)).max(LEAST_DEVIATION * center.abs()).max(f64::MIN_POSITIVE);
    (center, (value - center) / deviation)
}

impl SpikeDetector {
    /// Adds the loss and gradient norm of a step before its weights change, and returns the spike if there is one. The loss is
    /// checked first.
    pub(crate) fn observe(&mut self, training: &Optimization, loss: f64, norm: f64) -> Option<Spike> {
        if training.spike_action == SpikeAction::Ignore {
            return None;
        }
        let mut found = None;
        for (what, window, value) in [("loss", &mut self.losses, loss), ("grad_norm", &mut self.norms, norm)] {
            // With less than half a window the noise of the first steps would count as spikes.
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

    /// Adds the columns of this value to a snapshot.
    pub(crate) fn save(&self, rest: &mut Columns) {
        let Self { losses, norms, seen, skipped } = self;
        rest.insert("spikes/counts".to_owned(), Column::U64(vec![*seen, *skipped]));
        rest.insert("spikes/losses".to_owned(), Column::F64(losses.iter().copied().collect()));
        rest.insert("spikes/norms".to_owned(), Column::F64(norms.iter().copied().collect()));
    }

    /// Takes the value out of the columns of a snapshot; `None` if they are missing or malformed.
    pub(crate) fn load(rest: &mut Columns) -> Option<Self> {
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
    use crate::training::test_support::{both, resolved};

    fn settings(action: &str) -> Optimization {
        let action = format!("training.spike_action={action}");
        let run = resolved(&[&action, "training.spike_window=16", "training.spike_threshold=8"], both());
        run.spec().settings.training.clone()
    }

    /// A loss that falls with noise.
    fn usual(step: u32) -> f64 {
        2.0 / (1.0 + f64::from(step) / 50.0) + f64::from(step * 7919 % 13) * 0.01
    }

    #[test]
    fn a_spike_is_detected_and_noise_is_not() {
        let (training, mut spikes) = (settings("skip"), SpikeDetector::default());
        for step in 0..200 {
            assert_eq!(spikes.observe(&training, usual(step), usual(step + 3)), None, "{step}");
        }
        let spike = spikes.observe(&training, 6.0, 0.5).unwrap();
        assert!(spike.what == "loss" && spike.skip && spike.score > 8.0 && spike.median < 1.0, "{spike:?}");
        let spike = spikes.observe(&training, usual(201), 50.0).unwrap();
        assert_eq!(spike.what, "grad_norm");
        assert_eq!((spikes.seen, spikes.skipped), (2, 2));
    }

    #[test]
    fn a_lasting_level_stops_being_a_spike() {
        let (training, mut spikes) = (settings("skip"), SpikeDetector::default());
        for _ in 0..16 {
            spikes.observe(&training, 1.0, 1.0);
        }
        let skipped = (0..40).filter(|_| spikes.observe(&training, 5.0, 1.0).is_some()).count();
        assert!((1..=8).contains(&skipped), "{skipped}");
    }

    #[test]
    fn ignore_detects_nothing_and_count_skips_nothing() {
        let (training, mut spikes) = (settings("ignore"), SpikeDetector::default());
        for value in [vec![1.0; 20], vec![100.0]].concat() {
            assert_eq!(spikes.observe(&training, value, value), None);
        }
        assert_eq!(spikes, SpikeDetector::default());
        let training = settings("count");
        let found = [vec![1.0; 20], vec![100.0]].concat().into_iter().filter_map(|x| spikes.observe(&training, x, x));
        assert_eq!(found.map(|spike| spike.skip).collect::<Vec<_>>(), [false]);
        assert_eq!((spikes.seen, spikes.skipped), (1, 0));
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let (training, mut spikes) = (settings("count"), SpikeDetector::default());
        for step in 0..30 {
            spikes.observe(&training, usual(step), usual(step));
        }
        let mut rest = Columns::new();
        spikes.save(&mut rest);
        assert_eq!(SpikeDetector::load(&mut rest), Some(spikes));
        assert!(rest.is_empty());
        rest.insert("spikes/counts".to_owned(), Column::F64(vec![0.5]));
        assert_eq!(SpikeDetector::load(&mut rest), None);
    }
}
