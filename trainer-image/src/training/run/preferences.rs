//! The log-probabilities of preferences under the model that a run starts from. Does I/O.

use std::collections::BTreeSet;

use codex_provenance::Sha256;

use super::Session;
use crate::training::{
    Base, BaseError, TrainError,
    base::TrainedModel,
    data::{Address, Dataset, ValidationSet},
    objective::ReferenceCache,
    resources::release_memory,
    schedule::{examples_of_step, executed_steps},
    state::engine_settings,
};

/// Whether computed log-probabilities are written to the run's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// They are.
    Yes,
    /// They are not: the directory is only read.
    No,
}

impl Session<'_> {
    /// Sets the log-probabilities under the reference of all records of the run, if it trains preferences. Those that the run's
    /// directory does not have are computed with the weights that the run starts from.
    ///
    /// # Errors
    /// When a file operation fails, a record or the base cannot be read, or the attempt is interrupted.
    pub(crate) fn reference(
        &self,
        model: &TrainedModel,
        dataset: &mut Dataset,
        validation: Option<&mut ValidationSet>,
        keep: Keep,
    ) -> Result<(), TrainError> {
        let run = self.resolved.spec();
        let settings = &run.settings.training;
        if settings.preferences().is_none() {
            return Ok(());
        }
        let base = self.base.map(Base::digest).ok_or(BaseError::None("dpo"))?;
        let (mut cache, notice) = ReferenceCache::open(self.output, base, settings.dtype)?;
        if let Some(notice) = notice {
            self.notice(notice);
        }
        let mut missing: Vec<(Sha256, Address)> = Vec::new();
        for address in self.trained_on(dataset) {
            let key = dataset.key(address)?;
            if cache.get(&key).is_none() {
                missing.push((key, address));
            }
        }
        let held_out: Vec<_> = validation
            .iter()
            .flat_map(|validation| validation.pairs())
            .filter(|(keys, _)| keys.iter().any(|key| cache.get(key).is_none()))
            .map(|(keys, batch)| (keys.clone(), batch.clone()))
            .collect();
        if !missing.is_empty() || !held_out.is_empty() {
            tracing::info!(
                records = missing.len() + held_out.iter().map(|(keys, _)| keys.len()).sum::<usize>(),
                "computing the log-probabilities of the reference"
            );
            let mut start = model.state(self.base, run.seed, engine_settings(settings), |_| Ok(None))?;
            let batches = missing.chunks(settings.batch_size).map(|records| {
                let (keys, addresses): (Vec<Sha256>, Vec<Address>) = records.iter().copied().unzip();
                Ok((keys, dataset.pack(&addresses)?))
            });
            let batches = batches.chain(held_out.into_iter().map(Ok));
            let finished = cache.compute(start.engine.as_mut(), batches, self.stop)?;
            drop(start);
            release_memory();
            // What is computed is kept, so that the next attempt goes on from there.
            if keep == Keep::Yes {
                cache.save(base, settings.dtype)?;
            }
            if !finished {
                return Err(TrainError::Interrupted);
            }
        }
        dataset.set_reference(|key| cache.get(key))?;
        if let Some(validation) = validation {
            validation.set_reference(|key| cache.get(key));
        }
        Ok(())
    }

    /// Returns the records that the steps of the run see, in the order of the data: all, unless it is shorter than a pass.
    fn trained_on(&self, dataset: &Dataset) -> Vec<Address> {
        let settings = &self.resolved.spec().settings.training;
        let steps = executed_steps(settings, dataset.records());
        let last = steps.checked_sub(1).map(|done| examples_of_step(settings, dataset.records(), done));
        let examples = last.map_or(0, |last| last.first + last.count);
        if examples >= dataset.records() {
            return dataset.all().collect();
        }
        dataset.examples(0, examples).into_iter().collect::<BTreeSet<_>>().into_iter().collect()
    }
}
