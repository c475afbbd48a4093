//! Which checkpoints of a run stay, and why. Pure.

use std::collections::BTreeMap;

use codex_configs::{MetricMode, Optimization};
use codex_provenance::Sha256;
use serde::Serialize;

/// Which checkpoints stay.
#[derive(Clone, Debug)]
pub(super) struct Retention {
    every: u64,
    total: u64,
    keep_last: usize,
    keep_every: Option<u64>,
    /// How many of the best stay.
    pub(super) best_k: usize,
    /// What the best are by.
    pub(super) metric: String,
    pub(super) mode: MetricMode,
}

/// One checkpoint, as the store remembers it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) struct Entry {
    /// Its step.
    pub(super) step: u64,
    /// Its directory's name.
    pub(super) path: String,
    /// What its state hashes to, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) state_digest: Option<Sha256>,
    /// What was measured on the way to it.
    pub(super) metrics: BTreeMap<String, f64>,
    /// Why it is kept.
    pub(super) kept: Vec<&'static str>,
}

impl Retention {
    /// As a run of `total` steps is configured.
    pub(super) fn of(training: &Optimization, total: u64) -> Self {
        Self {
            every: training.checkpoint_every,
            total,
            keep_last: training.keep_last.max(1),
            keep_every: training.keep_every,
            best_k: training.best_k,
            metric: training.best_metric.clone(),
            mode: training.metric_mode,
        }
    }

    /// Every step's, of which the newest `count` stay.
    pub(super) fn newest(self, count: usize) -> Self {
        Self { every: 1, keep_last: count, keep_every: None, best_k: 0, ..self }
    }

    /// Whether the configuration asks for a checkpoint of `step`; others are there for the clock or an interruption, and
    /// only until a newer one is.
    pub(super) fn scheduled(&self, step: u64) -> bool {
        step.is_multiple_of(self.every) || step == self.total
    }

    /// Why each checkpoint of `entries` up to `newest` stays; those without a reason go.
    pub(super) fn kept(&self, entries: &BTreeMap<u64, Entry>, newest: u64) -> BTreeMap<u64, Vec<&'static str>> {
        let mut kept: BTreeMap<u64, Vec<&'static str>> = BTreeMap::new();
        let past: Vec<&Entry> = entries.values().rev().filter(|entry| entry.step <= newest).collect();
        for entry in past.iter().filter(|entry| self.scheduled(entry.step)).take(self.keep_last) {
            kept.entry(entry.step).or_default().push("last");
        }
        if !kept.contains_key(&newest) {
            kept.entry(newest).or_default().push("until the next");
        }
        if let Some(every) = self.keep_every {
            for entry in past.iter().filter(|entry| entry.step.is_multiple_of(every) && entry.step > 0) {
                kept.entry(entry.step).or_default().push("permanent");
            }
        }
        let mut measured: Vec<(f64, u64)> =
            past.iter().filter_map(|entry| Some((*entry.metrics.get(&self.metric)?, entry.step))).collect();
        // The better first; of equals the earlier one.
        measured.sort_by(|(a, first), (b, second)| {
            let order = match self.mode {
                MetricMode::Min => a.total_cmp(b),
                MetricMode::Max => b.total_cmp(a),
            };
            order.then(first.cmp(second))
        });
        for (_, step) in measured.into_iter().take(self.best_k) {
            kept.entry(step).or_default().push("best");
        }
        kept
    }
}
