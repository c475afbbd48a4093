//! Resuming from a checkpoint: finds it, compares it with the current run, and restores its state. Does I/O.

use std::path::Path;

use super::{Session, inputs::data_digests};
use crate::training::{
    ResumeError, TrainError,
    base::TrainedModel,
    checkpoint::{Effect, Origin, ResumeDiff, RunIdentity, ValidCheckpoint, newest, peek},
    data::{Caches, Dataset, Places},
    privacy::Mechanism,
    records::LedgerRow,
    state::{State, engine_settings},
};

impl Session<'_> {
    /// Returns the effect of resuming, without changing anything.
    ///
    /// # Errors
    /// As for [`run`](Self::run), up to the comparison.
    pub(crate) fn resume_diff(&self) -> Result<ResumeDiff, TrainError> {
        let (model, tokenizer) = self.model()?;
        let encoder = self.encoder(&model, &tokenizer);
        let training = self.resolved.spec();
        let places = Places { synthetic: None, caches: Caches::of_run(self.output, false) };
        let dataset = self.read_data(&places, encoder)?;
        let validation = self.read_validation(&dataset, encoder)?;
        Mechanism::of(&training.settings.training, dataset.records())?;
        self.check_memory(&model, &dataset, validation.as_ref())?;
        let identity = self.identity(data_digests(&dataset, validation.as_ref()))?;
        let origin = Origin::here(engine_settings(&training.settings.training).suited(&model.config));
        Ok(compare(self.newest_checkpoint()?.as_ref(), &identity, &origin))
    }

    /// Refuses a directory whose newest checkpoint is of another run, before it is taken over from an attempt that may still
    /// run. No data is read for this check; the full comparison follows later.
    pub(super) fn refuse_foreign_directory(&self) -> Result<(), TrainError> {
        let Some((path, info)) = peek(&self.output.join("checkpoints")).map_err(TrainError::File)? else {
            return Ok(());
        };
        let identity = self.identity(info.identity.data.clone())?;
        let now = Origin::here(engine_settings(&self.resolved.spec().settings.training));
        Ok(self.refuse(&ResumeDiff::compare(&info, None, &identity, &now), &path)?)
    }

    /// Returns the newest valid checkpoint. Damaged ones are skipped with a notice.
    pub(super) fn newest_checkpoint(&self) -> Result<Option<ValidCheckpoint>, TrainError> {
        let mut notices = Vec::new();
        let found = newest(&self.output.join("checkpoints"), u64::MAX, |notice| notices.push(notice))?;
        let step = found.as_ref().map(|found| found.checkpoint.step);
        for notice in notices {
            if let Some(metrics) = self.metrics {
                metrics.count_damaged_checkpoint();
            }
            let from =
                step.map_or_else(|| "starts from the beginning".to_owned(), |step| format!("resumes from step {step}"));
            self.notice(format!("{notice}; training {from}"));
        }
        Ok(found)
    }

    /// Whether training would resume.
    pub(crate) fn permits(&self, diff: &ResumeDiff) -> bool {
        let least = if self.accept_other_bits { Effect::Refused } else { Effect::OtherBits };
        diff.requested(least).is_empty()
    }

    /// Logs the comparison with a checkpoint, and refuses to resume if it must not.
    pub(super) fn accept_diff(&self, diff: &ResumeDiff, found: Option<&ValidCheckpoint>) -> Result<(), ResumeError> {
        let Some(found) = found else { return Ok(()) };
        for line in diff.to_string().lines() {
            tracing::info!("{}", line.trim());
        }
        self.refuse(diff, &found.path)?;
        for value in diff.differences().filter(|value| value.effect == Effect::OtherBits) {
            self.notice(format!(
                "{} is {} and was {} before step {}: the result is valid, but its bits may differ from an uninterrupted run",
                value.name, value.now, value.before, found.checkpoint.step,
            ));
        }
        Ok(())
    }

    /// Refuses to resume from the checkpoint at `path` if `diff` does not permit it.
    fn refuse(&self, diff: &ResumeDiff, path: &Path) -> Result<(), ResumeError> {
        let list = |effect: Effect| {
            let values: Vec<String> = diff
                .requested(effect)
                .iter()
                .map(|value| format!("{}: {} → {}", value.name, value.before, value.now))
                .collect();
            values.join("; ")
        };
        let (path, refused) = (path.to_owned(), list(Effect::Refused));
        if !refused.is_empty() {
            let fix = "use an empty output directory";
            return Err(ResumeError::ForeignCheckpoint { path, differences: refused, fix });
        }
        let other = list(Effect::OtherBits);
        if !other.is_empty() && !self.accept_other_bits {
            let fix = "use an empty output directory, or pass --accept-other-bits to resume with these changes";
            return Err(ResumeError::ForeignCheckpoint { path, differences: other, fix });
        }
        Ok(())
    }

    /// Checks that the last step of the ledger, which the state is of, would see the same records again.
    pub(super) fn check_order(&self, row: &LedgerRow, state: &State, dataset: &Dataset) -> Result<(), TrainError> {
        let (first, addresses) = match &state.curriculum {
            // Examples are counted over the whole run, so this holds for another batch size, too.
            None if state.privacy.is_none() => (row.first, dataset.examples(row.first, row.examples)),
            progress => {
                let which = (progress.as_ref(), state.privacy.as_ref());
                let (first, addresses, _) = self.records_of(which, row.step.saturating_sub(1), dataset)?;
                (first, addresses)
            }
        };
        let expected = dataset.digest(&addresses)?;
        if expected == row.records && first == row.first {
            return Ok(());
        }
        Err(ResumeError::DataOrder { step: row.step, found: row.records.short(), expected: expected.short() }.into())
    }

    /// Restores the state of the checkpoint, or creates the initial one of a run with this number of records.
    pub(super) fn restore(
        &self,
        model: &TrainedModel,
        found: Option<&ValidCheckpoint>,
        records: u64,
    ) -> Result<State, TrainError> {
        let settings = engine_settings(&self.resolved.spec().settings.training);
        let seed = self.resolved.spec().seed;
        let mut state = model
            .state(self.base, seed, settings, |layout| Ok(found.map(|found| found.read(layout)).transpose()?))?;
        state.begin_curriculum(&self.resolved.spec().settings.curriculum.phases);
        state.begin_traces(&self.resolved.spec().settings, seed);
        let training = &self.resolved.spec().settings.training;
        state.begin_optimization(training, Mechanism::of(training, records)?, seed)?;
        let Some(found) = found else { return Ok(state) };
        tracing::info!(step = state.step, "training resumes from a checkpoint");
        self.reporter.update(|report| {
            report.resumed_from = Some(found.checkpoint.step);
            report.last_checkpoint = Some(found.checkpoint.clone());
        });
        Ok(state)
    }
}

/// Compares the newest checkpoint, if there is one, with the current run.
pub(super) fn compare(found: Option<&ValidCheckpoint>, identity: &RunIdentity, origin: &Origin) -> ResumeDiff {
    found.map_or_else(ResumeDiff::fresh, |found| {
        ResumeDiff::compare(&found.info, found.origin.as_ref(), identity, origin)
    })
}
