//! The steps of a curriculum: which phase a step is of, and which of its examples are replayed, as functions of the step's number
//! and of the steps at which phases began. Pure.
//!
//! In a step that replays, slots take an example of earlier phases so that of the first `n` slots of all such steps of the phase
//! `n · ratio` rounded down are replayed. Own examples are numbered without gaps, so no record is skipped for a replayed one.

use codex_configs::{CurriculumSettings, Optimization, Phase, ReplaySettings, TrainingSettings};

/// Ratios are counted in millionths, so that every machine has the same order.
const UNIT: u128 = 1_000_000;

/// The curriculum of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Curriculum<'a> {
    training: &'a Optimization,
    replay: &'a ReplaySettings,
    /// The phases, at least one.
    pub(crate) phases: &'a [Phase],
}

/// Where a step is: its phase, and the number of steps of the phase before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Index of the phase.
    pub(crate) phase: usize,
    /// Steps of the phase before this one.
    pub(crate) within: u64,
}

/// What a slot of a step takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// An example of the phase itself, by its number among those of the phase.
    Own(u64),
    /// An example of an earlier phase, by its number among those that the phase replays.
    Replayed(u64),
}

impl<'a> Curriculum<'a> {
    /// Returns the curriculum of a configuration; `None` if it has no phases.
    pub(crate) fn of(settings: &'a TrainingSettings) -> Option<Self> {
        let TrainingSettings { training, data, curriculum: CurriculumSettings { phases, .. }, .. } = settings;
        (!phases.is_empty()).then_some(Self { training, replay: &data.replay, phases })
    }

    /// Settings of replay.
    pub(crate) fn replay(&self) -> &'a ReplaySettings {
        self.replay
    }

    /// Returns the place of the step after `done` steps. `firsts` has the number of steps before each phase that has begun; after
    /// the last phase its end follows.
    pub(crate) fn place(&self, firsts: &[u64], done: u64) -> Place {
        let begun = firsts.partition_point(|first| *first <= done);
        let phase = begun.saturating_sub(1).min(self.phases.len() - 1);
        Place { phase, within: done - firsts.get(phase).copied().unwrap_or(0).min(done) }
    }

    /// Number of examples in a forward pass of a phase.
    pub(crate) fn batch(&self, phase: usize) -> usize {
        self.phases[phase].batch_size.unwrap_or(self.training.batch_size)
    }

    /// Number of examples in a step of a phase.
    pub(crate) fn examples(&self, phase: usize) -> u64 {
        self.batch(phase) as u64 * self.training.gradient_accumulation as u64
    }

    /// Peak of the learning rate in a phase.
    pub(crate) fn peak(&self, phase: usize) -> f64 {
        self.phases[phase].learning_rate.unwrap_or(self.training.learning_rate)
    }

    /// Returns the number of examples of all steps before the one at `place`.
    pub(crate) fn first_example(&self, firsts: &[u64], place: Place) -> u64 {
        let before = firsts.windows(2).take(place.phase).zip(0..);
        let before: u64 = before.map(|(pair, phase)| (pair[1] - pair[0]) * self.examples(phase)).sum();
        before + place.within * self.examples(place.phase)
    }

    /// Returns what each slot of the step at `place` takes.
    pub(crate) fn slots(&self, place: Place) -> impl Iterator<Item = Slot> {
        let count = self.examples(place.phase);
        let mixes = (place.within + 1).is_multiple_of(self.replay.interleave_every);
        let earlier = place.within / self.replay.interleave_every * count;
        let share = if place.phase == 0 { 0 } else { self.share() };
        (0..count).map(move |slot| {
            let at = earlier + if mixes { slot } else { 0 };
            let before = replayed(at, share);
            if mixes && replayed(at + 1, share) > before {
                Slot::Replayed(before)
            } else {
                Slot::Own(place.within * count + slot - before)
            }
        })
    }

    /// Returns the number of own examples in `steps` steps of a phase. At least one, if there are steps.
    pub(crate) fn own_examples(&self, phase: usize, steps: u64) -> u64 {
        let count = self.examples(phase);
        let share = if phase == 0 { 0 } else { self.share() };
        steps * count - replayed(steps / self.replay.interleave_every * count, share)
    }

    /// Share of replayed examples, in millionths; less than all.
    fn share(&self) -> u128 {
        ((self.replay.ratio * UNIT as f64).round() as u128).min(UNIT - 1)
    }
}

/// Returns how many of the first `slots` slots are replayed.
fn replayed(slots: u64, share: u128) -> u64 {
    (u128::from(slots) * share / UNIT) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::training::test_support::{both, resolved};

    fn settings(batch: u64, ratio: f64, every: u64) -> TrainingSettings {
        let overrides = [
            "curriculum.phase_schedule=custom".to_owned(),
            "curriculum.phases=[{id: a, steps: 3}, {id: b, steps: 4, batch_size: 5, learning_rate: 0.5}, {id: c, steps: 2}]"
                .to_owned(),
            format!("training.batch_size={batch}"),
            format!("data.replay.ratio={ratio}"),
            format!("data.replay.interleave_every={every}"),
        ];
        let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
        resolved(&overrides, both()).spec().settings.clone()
    }

    #[test]
    fn steps_have_their_place() {
        let settings = settings(2, 0.0, 1);
        let curriculum = Curriculum::of(&settings).unwrap();
        // The first phase waited for two steps.
        let firsts = [0, 5, 9];
        let places: Vec<(usize, u64)> = [0, 4, 5, 8, 9, 30]
            .map(|done| curriculum.place(&firsts, done))
            .iter()
            .map(|place| (place.phase, place.within))
            .collect();
        assert_eq!(places, [(0, 0), (0, 4), (1, 0), (1, 3), (2, 0), (2, 21)]);
        let ended = [0, 5, 9, 11];
        assert_eq!(curriculum.place(&ended, 11), Place { phase: 2, within: 2 }, "no phase follows the last");
        let first = |done| curriculum.first_example(&firsts, curriculum.place(&firsts, done));
        assert_eq!([0, 4, 5, 6, 9, 10].map(first), [0, 8, 10, 15, 30, 32]);
        assert_eq!([0, 1, 2].map(|phase| curriculum.examples(phase)), [2, 5, 2]);
        assert!((curriculum.peak(1) - 0.5).abs() < f64::EPSILON && (curriculum.peak(2) - 0.01).abs() < f64::EPSILON);
    }

    #[test]
    fn a_ratio_of_0_replays_nothing() {
        let settings = settings(7, 0.0, 3);
        let curriculum = Curriculum::of(&settings).unwrap();
        for within in 0..20 {
            let slots: Vec<Slot> = curriculum.slots(Place { phase: 2, within }).collect();
            assert_eq!(slots, (7 * within..7 * within + 7).map(Slot::Own).collect::<Vec<_>>());
        }
    }

    proptest! {
        /// Own and replayed examples are numbered without gaps, and their share is exact.
        #[test]
        fn slots_are_counted(batch in 1_u64..9, ratio in 0.0_f64..0.99, every in 1_u64..6) {
            let settings = settings(batch, ratio, every);
            let curriculum = Curriculum::of(&settings).unwrap();
            for phase in 0..3 {
                let count = curriculum.examples(phase);
                let (mut own, mut replayed, mut mixed) = (0, 0, 0);
                for within in 0..40 {
                    prop_assert_eq!(curriculum.own_examples(phase, within), own);
                    let mixes = (within + 1) % every == 0;
                    for slot in curriculum.slots(Place { phase, within }) {
                        match slot {
                            Slot::Own(number) => {
                                prop_assert_eq!(number, own);
                                own += 1;
                            }
                            Slot::Replayed(number) => {
                                prop_assert!(mixes && phase > 0);
                                prop_assert_eq!(number, replayed);
                                replayed += 1;
                            }
                        }
                    }
                    mixed += if mixes { count } else { 0 };
                }
                let expected = if phase == 0 { 0.0 } else { ratio * mixed as f64 };
                prop_assert!((replayed as f64 - expected).abs() < 1.01, "{} {}", replayed, expected);
            }
        }
    }
}
