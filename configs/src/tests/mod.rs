//! Tests of composition.

mod arbitrary;
mod composition;
mod curriculum;
mod defaults;
mod deployment;
mod explained;
mod reasoning;
mod refusals;
mod resolved;

use crate::{Data, Resolved, Synthetic, Training, compose_training};

pub(crate) fn synthetic(task: &str) -> Data {
    Data {
        name: task.to_owned(),
        sha256: None,
        synthetic: Some(Synthetic { task: task.to_owned(), seed: 1, count: 100_000 }),
    }
}

pub(crate) fn data() -> Vec<Data> {
    vec![synthetic("arithmetic"), synthetic("word-problems")]
}

pub(crate) fn overrides(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

pub(crate) fn starter(texts: &[&str], config: Option<&str>) -> Resolved<Training> {
    compose_training("cot-starter", &overrides(texts), config, 42, data()).expect("a good configuration")
}
