//! The progress of a curriculum: when its phases began, and what was measured in the active one. Pure.

use std::collections::BTreeMap;

use codex_configs::Phase;
use codex_reports::{Curriculum as Report, CurriculumPhase, PhaseStatus};

use super::snapshot::{Column, Columns};

const FIRSTS: &str = "curriculum/first_steps";
const VALUES: &str = "curriculum/values/";

/// When the phases of a run began, and what was measured in the active one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PhaseProgress {
    /// Steps before each phase that has begun. After the last phase its end follows.
    firsts: Vec<u64>,
    /// Latest values of the metrics of the active phase, each measured in it.
    values: BTreeMap<String, f64>,
}

impl Default for PhaseProgress {
    fn default() -> Self {
        Self { firsts: vec![0], values: BTreeMap::new() }
    }
}

impl PhaseProgress {
    /// Steps before each phase that has begun. After the last phase its end follows.
    pub(crate) fn firsts(&self) -> &[u64] {
        &self.firsts
    }

    /// Index of the active phase, or that of the last one once all are completed.
    pub(crate) fn active(&self, phases: &[Phase]) -> usize {
        (self.firsts.len() - 1).min(phases.len() - 1)
    }

    /// Whether all phases are completed.
    pub(crate) fn is_finished(&self, phases: &[Phase]) -> bool {
        self.firsts.len() > phases.len()
    }

    /// Records values of metrics, of which those of the active phase are kept. A value that is not finite is none.
    pub(crate) fn record<'a>(&mut self, phases: &[Phase], measured: impl IntoIterator<Item = (&'a str, Option<f64>)>) {
        let metrics = &phases[self.active(phases)].metrics;
        for (metric, value) in measured.into_iter().filter(|(metric, _)| metrics.iter().any(|known| known == metric)) {
            match value.filter(|value| value.is_finite()) {
                Some(value) => self.values.insert(metric.to_owned(), value),
                None => self.values.remove(metric),
            };
        }
    }

    /// Begins the next phase after `step` steps if the active one is done and all its thresholds hold. Returns the index of the
    /// completed phase.
    pub(crate) fn advance(&mut self, phases: &[Phase], step: u64) -> Option<usize> {
        if self.is_finished(phases) {
            return None;
        }
        let active = self.active(phases);
        let done = step - self.firsts[active] >= phases[active].steps && self.unmet(&phases[active]).is_empty();
        done.then(|| {
            self.firsts.push(step);
            self.values.clear();
            active
        })
    }

    /// Returns a sentence for each threshold of the phase that does not hold.
    fn unmet(&self, phase: &Phase) -> Vec<String> {
        let judge = |(metric, (least, most)): (&str, (Option<f64>, Option<f64>))| {
            let bound = match (least, most) {
                (Some(least), Some(most)) => format!("from {least} to {most}"),
                (Some(least), None) => format!("at least {least}"),
                (None, Some(most)) => format!("at most {most}"),
                (None, None) => return None,
            };
            match self.values.get(metric) {
                None => Some(format!("{metric} has no value yet and must be {bound}")),
                Some(value) if least.is_some_and(|it| *value < it) || most.is_some_and(|it| *value > it) => {
                    Some(format!("{metric} is {value:.4} and must be {bound}"))
                }
                Some(_) => None,
            }
        };
        phase.thresholds().into_iter().filter_map(judge).collect()
    }

    /// Returns why the active phase goes on after `step` steps although its own steps are done; `None` if they are not.
    pub(crate) fn blocked(&self, phases: &[Phase], step: u64) -> Option<String> {
        if self.is_finished(phases) {
            return None;
        }
        let active = self.active(phases);
        let unmet = self.unmet(&phases[active]);
        (step - self.firsts[active] >= phases[active].steps && !unmet.is_empty()).then(|| unmet.join("; "))
    }

    /// Returns what is reported after `step` steps. With `over`, the run has ended: a phase that waits has failed, and those that
    /// did not begin are skipped.
    pub(crate) fn report(&self, phases: &[Phase], step: u64, over: bool) -> Report {
        let active = self.active(phases);
        let reason = self.blocked(phases, step);
        let waits = reason.is_some();
        let status = |index: usize| {
            if index + 1 < self.firsts.len() {
                PhaseStatus::Completed
            } else if index + 1 > self.firsts.len() {
                if over { PhaseStatus::Skipped } else { PhaseStatus::Pending }
            } else if over && waits {
                PhaseStatus::Failed
            } else {
                PhaseStatus::Active
            }
        };
        let phase = |(index, phase): (usize, &Phase)| CurriculumPhase {
            id: phase.id.clone(),
            status: status(index),
            first_step: self.firsts.get(index).copied(),
        };
        let end = self.firsts.get(active + 1).copied().unwrap_or(step);
        Report {
            phase: phases[active].id.clone(),
            index: active as u32 + 1,
            of: phases.len() as u32,
            steps_done: end - self.firsts[active],
            steps: phases[active].steps,
            reason,
            phases: phases.iter().enumerate().map(phase).collect(),
        }
    }

    /// Adds the columns of this value to a snapshot.
    pub(crate) fn save(&self, rest: &mut Columns) {
        let Self { firsts, values } = self;
        rest.insert(FIRSTS.to_owned(), Column::U64(firsts.clone()));
        rest.extend(values.iter().map(|(metric, value)| (format!("{VALUES}{metric}"), Column::F64(vec![*value]))));
    }

    /// Takes the value out of the columns of a snapshot: `Ok(None)` if the run has no curriculum.
    ///
    /// # Errors
    /// When the columns are malformed.
    pub(crate) fn load(rest: &mut Columns) -> Result<Option<Self>, ()> {
        let Some(firsts) = rest.remove(FIRSTS) else { return Ok(None) };
        let Column::U64(firsts) = firsts else { return Err(()) };
        if firsts.first() != Some(&0) || !firsts.is_sorted() {
            return Err(());
        }
        let names: Vec<String> = rest.keys().filter(|name| name.starts_with(VALUES)).cloned().collect();
        let mut values = BTreeMap::new();
        for name in names {
            let Some(Column::F64(column)) = rest.remove(&name) else { return Err(()) };
            let [value] = column[..] else { return Err(()) };
            values.insert(name[VALUES.len()..].to_owned(), value);
        }
        Ok(Some(Self { firsts, values }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn phases(text: &str) -> Vec<Phase> {
        serde_json::from_str(text).unwrap()
    }

    /// Two phases; the first waits for two metrics.
    fn waiting() -> Vec<Phase> {
        phases(
            r#"[{"id": "one", "steps": 3, "metrics": ["loss", "val_loss"], "max_metric_threshold": {"loss": 0.5, "val_loss": 0.4},
                 "min_metric_threshold": {"loss": 0.1}},
                {"id": "two", "steps": 2}]"#,
        )
    }

    fn statuses(report: &Report) -> Vec<PhaseStatus> {
        report.phases.iter().map(|phase| phase.status).collect()
    }

    #[test]
    fn a_phase_ends_once_its_steps_are_done_and_every_threshold_holds() {
        let (phases, mut progress) = (waiting(), PhaseProgress::default());
        progress.record(&phases, [("loss", Some(0.3)), ("val_loss", Some(0.3)), ("exact_match", Some(1.0))]);
        assert_eq!(progress.values.len(), 2, "other metrics are not of the phase");
        assert_eq!((progress.advance(&phases, 2), progress.blocked(&phases, 2)), (None, None));
        assert_eq!(progress.advance(&phases, 3), Some(0));
        assert_eq!((progress.firsts(), progress.active(&phases)), (&[0, 3][..], 1));
        assert!(progress.values.is_empty(), "values are of one phase");
        assert_eq!((progress.advance(&phases, 3), progress.advance(&phases, 4)), (None, None));
        assert!(!progress.is_finished(&phases));
        assert_eq!(progress.advance(&phases, 5), Some(1));
        assert!(progress.is_finished(&phases));
        assert_eq!((progress.advance(&phases, 9), progress.firsts()), (None, &[0, 3, 5][..]));
        let report = progress.report(&phases, 5, true);
        assert_eq!((report.phase.as_str(), report.index, report.steps_done), ("two", 2, 2));
        assert_eq!(statuses(&report), [PhaseStatus::Completed; 2]);
    }

    #[test]
    fn a_threshold_without_a_value_blocks_and_says_so() {
        let (phases, mut progress) = (waiting(), PhaseProgress::default());
        progress.record(&phases, [("loss", Some(0.6)), ("val_loss", None)]);
        assert_eq!(progress.advance(&phases, 7), None);
        let why = "loss is 0.6000 and must be from 0.1 to 0.5; val_loss has no value yet and must be at most 0.4";
        assert_eq!(progress.blocked(&phases, 7).as_deref(), Some(why));
        let report = progress.report(&phases, 7, false);
        assert_eq!((report.reason.as_deref(), report.steps_done, report.steps), (Some(why), 7, 3));
        assert_eq!(statuses(&report), [PhaseStatus::Active, PhaseStatus::Pending]);
        assert_eq!(statuses(&progress.report(&phases, 7, true)), [PhaseStatus::Failed, PhaseStatus::Skipped]);
        for (loss, held) in [(0.09, false), (0.1, true), (0.5, true), (0.51, false), (f64::NAN, false)] {
            let mut progress = progress.clone();
            progress.record(&phases, [("loss", Some(loss)), ("val_loss", Some(0.4))]);
            assert_eq!(progress.advance(&phases, 7).is_some(), held, "{loss}");
        }
    }

    /// A run that is cut off in a phase whose steps are not done has not failed.
    #[test]
    fn a_phase_that_is_cut_off_stays_active() {
        let (phases, progress) = (waiting(), PhaseProgress::default());
        assert_eq!(statuses(&progress.report(&phases, 2, true)), [PhaseStatus::Active, PhaseStatus::Skipped]);
    }

    #[test]
    fn malformed_columns_are_refused() {
        let columns = |firsts: Column| Columns::from([(FIRSTS.to_owned(), firsts)]);
        assert_eq!(PhaseProgress::load(&mut Columns::new()), Ok(None));
        for wrong in [Column::F64(vec![0.0]), Column::U64(vec![]), Column::U64(vec![1]), Column::U64(vec![0, 5, 4])] {
            assert_eq!(PhaseProgress::load(&mut columns(wrong)), Err(()));
        }
        let mut with_value = columns(Column::U64(vec![0]));
        with_value.insert(format!("{VALUES}loss"), Column::F64(vec![]));
        assert_eq!(PhaseProgress::load(&mut with_value), Err(()));
    }

    proptest! {
        /// A state that is saved and loaded after every step takes the same course as one that never is.
        #[test]
        fn resuming_at_any_step_changes_nothing(losses in prop::collection::vec(prop::option::of(0.0_f64..1.0), 1..40)) {
            let phases = waiting();
            let (mut straight, mut resumed) = (PhaseProgress::default(), PhaseProgress::default());
            for (loss, step) in losses.into_iter().zip(1..) {
                let mut columns = Columns::from([("other".to_owned(), Column::U64(vec![7]))]);
                resumed.save(&mut columns);
                resumed = PhaseProgress::load(&mut columns).unwrap().unwrap();
                prop_assert_eq!(columns.len(), 1, "columns of others stay");
                for progress in [&mut straight, &mut resumed] {
                    progress.record(&phases, [("loss", loss)]);
                    if step % 3 == 0 {
                        progress.record(&phases, [("val_loss", loss)]);
                    }
                }
                prop_assert_eq!(straight.advance(&phases, step), resumed.advance(&phases, step));
                prop_assert_eq!(&straight, &resumed);
                prop_assert_eq!(straight.advance(&phases, step), None, "advancing twice is advancing once");
            }
        }
    }
}
