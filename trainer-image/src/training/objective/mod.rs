//! The objectives of preferences and of rewards, and what objectives measure. Calls the engine, and keeps a cache; pure otherwise.

mod dpo;
mod grpo;
mod reference;

use codex_configs::DpoSettings;
use codex_engine::{Engine, EngineError, Packed};

pub(crate) use dpo::{Pair, Preferences, Tally};
pub(crate) use grpo::{Answer, Group, Rewards, Sampled, learned_tokens, weighted};
pub(crate) use reference::ReferenceCache;

/// What a step or an evaluation minimizes, measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Measured {
    /// Mean cross-entropy per target token in nats, or mean loss per pair, or the objective of rewards.
    pub(crate) loss: f64,
    /// Measurements of pairs, if preferences are trained.
    pub(crate) preferences: Option<Preferences>,
    /// Measurements of sampled answers, if rewards are learned from.
    pub(crate) sampled: Option<Sampled>,
}

/// Adds the pairs of a batch, whose sequences are a chosen and a rejected response in turn, to the tally.
///
/// # Errors
/// When the engine rejects the batch.
pub(crate) fn measure_pairs(
    engine: &mut dyn Engine,
    settings: &DpoSettings,
    batch: &Packed,
    reference: &[Pair],
    tally: &mut Tally,
) -> Result<(), EngineError> {
    let losses = engine.losses(batch)?;
    for (losses, reference) in losses.chunks_exact(2).zip(reference) {
        tally.add(&dpo::compare(settings, [-losses[0], -losses[1]], *reference));
    }
    Ok(())
}

/// As [`measure_pairs`], and adds the gradients of the pairs' losses divided by `pairs`, the number of pairs of the whole step.
///
/// # Errors
/// When the engine rejects the batch.
pub(crate) fn accumulate_pairs(
    engine: &mut dyn Engine,
    settings: &DpoSettings,
    batch: &Packed,
    reference: &[Pair],
    (pairs, tally): (usize, &mut Tally),
) -> Result<(), EngineError> {
    engine.accumulate_weighted(batch, &mut |losses| {
        let compared = losses.chunks_exact(2).zip(reference).map(|(losses, reference)| {
            let compared = dpo::compare(settings, [-losses[0], -losses[1]], *reference);
            tally.add(&compared);
            compared
        });
        // A sequence's loss is minus its log-probability.
        compared.flat_map(|it| [-it.slope / pairs as f64, it.slope / pairs as f64]).collect()
    })?;
    Ok(())
}
