//! `--check`: what cannot be combined is refused before a model is loaded.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Parser;
use codex_configs::{Resolved, Training};
use codex_engine::{Layout, ModelConfig};
use codex_reports::exit;
use safetensors::{Dtype, tensor::TensorView};

use super::base::{run, write_base, write_base_of, write_data};
use crate::{
    text::Tokenizer,
    training::{checks::Combination, command::Train, test_support::speck},
};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    train: Train,
}

fn refusals(resolved: &Resolved<Training>, base: Option<&Path>, files: &[(String, PathBuf)]) -> Vec<String> {
    Combination { resolved, base, is_remote: false, files }.check().refusals
}

fn one(refusals: &[String], told: &str) {
    assert!(refusals.len() == 1 && refusals[0].contains(told), "{told}: {refusals:#?}");
}

/// Writes a GPT-2 with the tokenizer of the other bases. Its weights are 0.
fn write_gpt2(place: &Path) {
    write_base(place);
    let tokens = Tokenizer::load(place).unwrap().vocabulary();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/fixtures/gpt2-f32/config.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(fixture).unwrap()).unwrap();
    json["vocab_size"] = tokens.into();
    json["n_positions"] = 256.into();
    let text = serde_json::to_vec(&json).unwrap();
    let layout = Layout::of(&ModelConfig::parse(&text).unwrap());
    let zeros = |shape: &[usize]| vec![0_u8; 4 * shape.iter().product::<usize>()];
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> =
        layout.tensors().iter().map(|it| (it.name.clone(), it.shape.clone(), zeros(&it.shape))).collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    fs::write(place.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    fs::write(place.join("config.json"), text).unwrap();
}

#[test]
fn what_can_be_trained_is_not_refused() {
    assert_eq!(refusals(&speck(&[]), None, &[]), [""; 0]);
    let place = tempfile::tempdir().unwrap();
    let base = place.path().join("base");
    write_base(&base);
    let files = write_data(place.path());
    for set in [
        &["training.method=lora", "training.dtype=bf16"][..],
        &["training.method=sft"],
        &["training.method=none"],
        &["training.method=grpo"],
    ] {
        // The second file has conversations without an answer.
        let files = if set[0].ends_with("grpo") { &files[..1] } else { &files[..] };
        assert_eq!(refusals(&run(files, set), Some(&base), files), [""; 0], "{set:?}");
    }
}

#[test]
fn every_impossible_combination_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let (base, files) = (at("base"), write_data(place.path()));
    write_base(&base);
    let with = |set: &[&str]| run(&files, set);
    let lora = ["training.method=lora"];
    one(&refusals(&with(&lora), None, &files), "training.method=lora needs a base: pass --base DIR");
    one(&refusals(&with(&lora), Some(&at("nowhere")), &files), "nowhere");

    write_gpt2(&at("gpt2"));
    assert_eq!(refusals(&with(&[]), Some(&at("gpt2")), &files), [""; 0]);
    one(&refusals(&with(&lora), Some(&at("gpt2")), &files), "LoRA needs a model with Llama's projections");

    // No kernel was compiled for heads of 20 numbers, and candle on a processor has no bf16.
    write_base_of(&at("odd"), 60);
    assert_eq!(refusals(&with(&["training.dtype=fp32"]), Some(&at("odd")), &files), [""; 0]);
    let told =
        "training.dtype is bf16, but heads have 20 numbers, for which candle multiplies no bf16 on a CPU: use fp32";
    one(&refusals(&with(&["training.dtype=bf16"]), Some(&at("odd")), &files), told);

    let dpo = refusals(&with(&["training.method=dpo"]), Some(&base), &files);
    assert_eq!(dpo.len(), 2, "{dpo:#?}");
    assert!(dpo[0].contains("pairs.jsonl:1: ") && dpo[0].contains("rejected"), "{dpo:#?}");
    let chat = [files[1].clone()];
    fs::write(at("mute.jsonl"), "{\"prompt\": \"Say nothing.\", \"response\": \"...\"}\n").unwrap();
    let mute = [("mute".to_owned(), at("mute.jsonl"))];
    one(
        &refusals(&run(&mute, &["training.method=grpo"]), Some(&base), &mute),
        "data mute, record 1: the response has no answer",
    );
    one(&refusals(&with(&[]), Some(&base), &chat), "pairs");
    let gone = [("chat".to_owned(), at("gone.jsonl"))];
    one(&refusals(&run(&chat, &[]), Some(&base), &gone), "gone.jsonl does not exist");
}

#[cfg(not(feature = "cuda"))]
#[test]
fn all_refusals_are_told_and_nothing_is_written() {
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("run");
    let path = output.to_str().unwrap();
    let line = ["train", "--template", "cot-starter", "--output", path, "--check"];
    let ended = |more: &[&str]| {
        Arguments::try_parse_from([&line, more].concat()).unwrap().train.run().map_err(|error| error.sentence())
    };
    assert_eq!(ended(&[]), Ok(exit::FINISHED));
    let impossible = ["--set", "training.method=none", "--set", "training.device=cuda"];
    assert_eq!(ended(&impossible), Ok(exit::BAD_INPUT));
    assert!(!output.exists());
    let found = refusals(&speck(&["training.method=none", "training.device=cuda"]), None, &[]);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].contains("training.method=none needs a base"), "{found:#?}");
    assert!(found[1].contains("training.device is cuda, but this program was built without CUDA"), "{found:#?}");
    let found = refusals(&speck(&["training.dtype=fp16"]), None, &[]);
    one(&found, "training.dtype is fp16, but a processor computes, and fp16 needs a GPU: use bf16 or fp32");
    // What no machine can compute is refused when it is composed.
    let half = ended(&["--set", "training.dtype=fp16", "--set", "training.device=cpu"]);
    assert!(half.is_err_and(|told| told.contains("training.device is cpu, and fp16 needs a GPU")));
    assert!(Arguments::try_parse_from([&line[..], &["--plan"]].concat()).is_err(), "one of the two");
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_run_that_falls_back_says_so() {
    use crate::{
        artifacts::environment::Environment,
        training::test_support::{attempt, finished},
    };
    for (device, falls_back) in [("training.device=auto", true), ("training.device=cpu", false)] {
        let output = tempfile::tempdir().unwrap();
        let ended = attempt(&speck(&[device, "training.stop_after=1"]), output.path(), false);
        finished(&ended);
        let used = ended.state.device.unwrap();
        assert!(used.engine.starts_with("cpu-") && used.driver.is_none(), "{used:?}");
        let bytes = fs::read(output.path().join("artifacts/environment.json")).unwrap();
        let environment: Environment = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((environment.fallback, environment.exact), (used.fallback.clone(), Some(true)), "{device}");
        assert_eq!(used.fallback.is_some_and(|why| why.starts_with("no CUDA device is usable: ")), falls_back);
    }
    let output = tempfile::tempdir().unwrap();
    let error = attempt(&speck(&["training.device=cuda"]), output.path(), false).outcome.unwrap_err();
    assert_eq!(error.exit(), exit::BAD_INPUT);
    assert!(crate::error::chain(&error).contains("this program was built without CUDA"), "{error}");
}
