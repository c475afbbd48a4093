//! Tests that a model of each family, as transformers saves it, has the logits here that transformers computes, with the kernels and with
//! candle. `fixtures/families` was written by `fixtures/save_families.py`. The other direction, and adapters, are tried by
//! `make test-transformers`.

use std::{collections::BTreeMap, path::Path};

use codex_engine::{Backend, Decoder, Device, Layout, ModelConfig, Settings, decoder};
use serde::Deserialize;

use super::{read_directory, weights::parameters};

/// What transformers computed.
#[derive(Deserialize)]
struct Expected {
    tokens: Vec<u32>,
    /// The numbers of tokens after which there are logits.
    lengths: Vec<usize>,
    /// Logits after each number of tokens, by the name of the model.
    logits: BTreeMap<String, Vec<Vec<f32>>>,
}

/// Asserts that a decoder has these logits after these tokens.
fn assert_logits(decoder: &mut dyn Decoder, tokens: &[u32], expected: &[f32], what: &str) {
    decoder.prefill(0, tokens).unwrap();
    let found = decoder.logits().unwrap().rows;
    decoder.release(0);
    assert_eq!(found.len(), expected.len());
    for (id, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() < 1e-4, "{what}, {} tokens, id {id}: {found} {expected}", tokens.len());
    }
}

#[test]
fn every_family_has_the_logits_of_transformers() {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/fixtures/families");
    let expected: Expected = serde_json::from_slice(include_bytes!("fixtures/families/logits.json")).unwrap();
    let names: Vec<&str> = expected.logits.keys().map(String::as_str).collect();
    assert_eq!(names, ["gpt2", "llama-linear", "llama-llama3", "mistral", "qwen2", "qwen3"]);
    for (name, logits) in &expected.logits {
        let files = read_directory(&place.join(name)).unwrap();
        let config = ModelConfig::parse(&files["config.json"]).unwrap();
        // What is written means the same.
        assert_eq!(ModelConfig::parse(&serde_json::to_vec(&config).unwrap()).unwrap(), config, "{name}");
        let parameters = parameters(&files, &Layout::of(&config)).unwrap();
        for backend in [Backend::Kernels, Backend::Candle(Device::Cpu)] {
            let settings = Settings { backend, ..Settings::default() };
            let mut decoder = decoder(&config, &parameters, settings, 1).unwrap();
            let what = format!("{name}, {}", decoder.path());
            for (length, logits) in expected.lengths.iter().zip(logits) {
                assert_logits(&mut *decoder, &expected.tokens[..*length], logits, &what);
            }
        }
    }
}
