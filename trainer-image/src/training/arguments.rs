//! Arguments that several training commands share. Pure.

use std::path::PathBuf;

use codex_configs::{Data, Synthetic};

/// Number of records of each synthetic task without `--data`.
const DEFAULT_RECORDS: u64 = 100_000;

/// Parses `NAME=FILE`.
pub(crate) fn named_file(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.to_owned(), path.into())),
        _ => Err("write NAME=FILE".to_owned()),
    }
}

/// Returns the synthetic data of a template, for runs without `--data`.
pub(crate) fn default_data(template: &str) -> impl Iterator<Item = Data> {
    codex_configs::template_tasks(template).iter().map(|task| Data {
        name: (*task).to_owned(),
        sha256: None,
        synthetic: Some(Synthetic { task: (*task).to_owned(), seed: 1, count: DEFAULT_RECORDS }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_file_has_both_parts() {
        assert_eq!(named_file("mine=a=b").unwrap(), ("mine".to_owned(), "a=b".into()));
        assert!(["mine", "=a", "mine="].iter().all(|text| named_file(text).is_err()));
    }
}
