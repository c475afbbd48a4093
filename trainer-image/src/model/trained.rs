//! Tests that transformers loads a model directory that we trained, and computes the same with it.
//!
//! `fixtures/trained` was written by `codex train`; `fixtures/trained.json` has what transformers computed with it (see
//! `fixtures/load_trained_model.py`). The writer must still write that directory byte for byte, so the fixture speaks for the
//! models that are trained today.

use std::path::Path;

use codex_engine::{Layout, ModelConfig, Settings, Shape, decoder};
use serde::Deserialize;

use super::{
    ModelFiles, describe,
    directory::{self, Loaded},
    generate::Generator,
    read_directory,
};
use crate::text::Tokenizer;

/// What transformers computed for a prompt.
#[derive(Deserialize)]
struct Expected {
    prompt: String,
    tokens: Vec<u32>,
    /// Logits after the last token of the prompt.
    logits: Vec<f32>,
    /// 24 tokens of greedy generation.
    response: String,
}

fn files() -> ModelFiles {
    read_directory(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/fixtures/trained")).unwrap()
}

fn expected() -> Vec<Expected> {
    serde_json::from_slice(include_bytes!("fixtures/trained.json")).unwrap()
}

#[test]
fn transformers_computes_the_same_logits_and_text() {
    let Loaded { config, tokenizer, parameters } = directory::load(&files()).unwrap();
    let mut decoder = decoder(&config, &parameters, Settings::default(), 1).unwrap();
    let mut generator = Generator::load(&files(), 1, codex_configs::Device::Cpu).unwrap();
    for Expected { prompt, tokens, logits, response } in expected() {
        assert_eq!(tokenizer.encode(&prompt).unwrap(), tokens, "{prompt}");
        decoder.prefill(0, &tokens).unwrap();
        let found = decoder.logits().unwrap().rows;
        decoder.release(0);
        assert_eq!(found.len(), logits.len());
        for (token, (found, expected)) in found.iter().zip(&logits).enumerate() {
            assert!((found - expected).abs() < 1e-4, "{prompt}: token {token}: {found} {expected}");
        }
        let completion = generator.complete(&[&prompt], 24, |_| ()).remove(0).unwrap();
        assert_eq!(completion.text, response, "{prompt}");
    }
}

#[test]
fn a_directory_that_is_read_in_pieces_gives_the_same_text() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/fixtures/trained");
    let mut generator = Generator::load_directory(&path, 2, codex_configs::Device::Cpu).unwrap();
    assert_eq!(generator.path(), "cpu-f32");
    for Expected { prompt, response, .. } in expected() {
        let completion = generator.complete(&[&prompt], 24, |_| ()).remove(0).unwrap();
        assert_eq!(completion.text, response, "{prompt}");
    }
}

#[test]
fn the_directory_that_transformers_loaded_is_what_is_written_today() {
    let files = files();
    let shape = Shape {
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        max_position_embeddings: 96,
        rope_theta: 10_000.0,
    };
    let tokenizer = Tokenizer::characters().unwrap();
    let config = ModelConfig::new(shape, tokenizer.for_model().unwrap()).unwrap();
    let parameters = super::weights::parameters(&files, &Layout::of(&config)).unwrap();
    let written = describe(&config, &parameters, &tokenizer).unwrap();
    assert_eq!(written.keys().collect::<Vec<_>>(), files.keys().collect::<Vec<_>>());
    for (name, bytes) in written {
        assert!(
            bytes == files[&name],
            "{name} differs from the fixture: run load_trained_model.py with a model of today"
        );
    }
}
