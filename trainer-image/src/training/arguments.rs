//! Arguments that several training commands share. Pure.

use codex_configs::{Data, Synthetic};

/// Number of records of each synthetic task without `--data`.
const DEFAULT_RECORDS: u64 = 100_000;

/// Returns the synthetic data of a template, for runs without `--data`.
pub(crate) fn default_data(template: &str) -> impl Iterator<Item = Data> {
    codex_configs::template_tasks(template).iter().map(|task| Data {
        name: (*task).to_owned(),
        sha256: None,
        synthetic: Some(Synthetic { task: (*task).to_owned(), seed: 1, count: DEFAULT_RECORDS }),
    })
}
