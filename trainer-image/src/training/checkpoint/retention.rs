//! Retention of checkpoints: which ones stay, and for which reason. Pure.

use std::collections::BTreeMap;

use codex_configs::{MetricMode, Optimization};
use codex_provenance::Sha256;
use serde::Serialize;

/// Retention policy of a run.
#[derive(Clone, Debug)]
pub(crate) struct Retention {
    every: u64,
    total: u64,
    keep_last: usize,
    keep_every: Option<u64>,
    /// Number of best checkpoints that stay.
    pub(crate) best_k: usize,
    /// Metric of the best checkpoints.
    pub(crate) metric: String,
    /// Whether smaller or larger values are better.
    pub(crate) mode: MetricMode,
}

/// A checkpoint in the store and the index.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) struct Entry {
    /// Step of the checkpoint.
    pub(crate) step: u64,
    /// Name of its directory.
    pub(crate) path: String,
    /// Digest of its state, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) state_digest: Option<Sha256>,
    /// Measurements at its step.
    pub(crate) metrics: BTreeMap<String, f64>,
    /// Reasons to keep it.
    pub(crate) kept: Vec<&'static str>,
}

impl Retention {
    /// Returns the configured policy for a run of `total` steps.
    pub(crate) fn of(training: &Optimization, total: u64) -> Self {
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

    /// Returns a policy that keeps a checkpoint of every step, of which the newest `count` stay.
    pub(crate) fn newest(self, count: usize) -> Self {
        Self { every: 1, keep_last: count, keep_every: None, best_k: 0, ..self }
    }

    /// Whether the configuration requires a checkpoint of `step`. Others are written by the clock or an interruption, and stay
    /// only until the next one.
    pub(crate) fn scheduled(&self, step: u64) -> bool {
        step.is_multiple_of(self.every) || step == self.total
    }

    /// Returns the reasons for which checkpoints of `entries` up to `newest` stay; the others are removed.
    pub(crate) fn kept(&self, entries: &BTreeMap<u64, Entry>, newest: u64) -> BTreeMap<u64, Vec<&'static str>> {
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
        // Best value first; among equal values the earlier step.
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
