//! Runs that start from a base: a small model of SmolLM2's shape, in bf16, with its tokenizer and chat template.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use codex_configs::{Data, Resolved, Training};
use codex_engine::{Layout, ModelConfig, Shape, Vocabulary, initial};
use codex_provenance::{DataDigest, ModelDigest, Sha256, manifest::Manifest};
use codex_reports::{Model, TrainingState, exit};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::{
    artifacts::metadata::RunMetadata,
    model::Generator,
    reporting::Reporter,
    text::Tokenizer,
    training::{
        Base, BaseError, Outcome, Session, TrainError,
        checkpoint::newest,
        test_support::{finished, resolved, with_files},
    },
};

/// Writes the base, and returns its digest.
pub(super) fn write_base(place: &Path) -> ModelDigest {
    write_base_of(place, 48)
}

/// Writes a base whose three heads share this many numbers, and returns its digest.
pub(super) fn write_base_of(place: &Path, hidden_size: usize) -> ModelDigest {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/text/fixtures/smollm2");
    fs::create_dir_all(place).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(fixtures.join(file), place.join(file)).unwrap();
    }
    let tokenizer = Tokenizer::load(place).unwrap();
    let shape = Shape {
        hidden_size: 48,
        intermediate_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 3,
        max_position_embeddings: 256,
        rope_theta: 10_000.0,
    };
    let end = tokenizer.ends()[0];
    let config = ModelConfig::new(shape, Vocabulary { size: tokenizer.vocabulary(), end, pad: end }).unwrap();
    let config = ModelConfig { num_key_value_heads: 1, hidden_size, head_dim: hidden_size / 3, ..config };
    let layout = Layout::of(&config);
    let parameters = initial(&config, &layout, 5);
    let halves: Vec<Vec<u8>> = layout
        .tensors()
        .iter()
        .map(|tensor| {
            parameters[tensor.range.clone()].iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect()
        })
        .collect();
    let views = layout.tensors().iter().zip(&halves).map(|(tensor, bytes)| {
        (tensor.name.clone(), TensorView::new(Dtype::BF16, tensor.shape.clone(), bytes).unwrap())
    });
    fs::write(place.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    fs::write(place.join("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    Manifest::of_dir(place).unwrap().digest()
}

/// Writes records of both kinds.
pub(super) fn write_data(place: &Path) -> Vec<(String, PathBuf)> {
    let pair = |at: u32| serde_json::json!({"prompt": format!("What is {at} + 1?"), "response": format!("{at} + 1 = {0}. #{0}", at + 1)});
    let chat = |at: u32| {
        let question = serde_json::json!({"role": "user", "content": format!("Count to {at}.")});
        serde_json::json!({"messages": [question, {"role": "assistant", "content": at.to_string()}]})
    };
    let lines = |values: Vec<serde_json::Value>| values.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let (pairs, chat) = (lines((0..40).map(pair).collect()), lines((0..24).map(chat).collect()));
    ["pairs", "chat"]
        .into_iter()
        .zip([pairs, chat])
        .map(|(name, text)| {
            let path = place.join(format!("{name}.jsonl"));
            fs::write(&path, text).unwrap();
            (name.to_owned(), path)
        })
        .collect()
}

pub(super) fn run(files: &[(String, PathBuf)], overrides: &[&str]) -> Resolved<Training> {
    let data = files.iter().map(|(name, path)| Data {
        name: name.clone(),
        sha256: Some(DataDigest(Sha256::of(fs::read(path).unwrap()))),
        synthetic: None,
    });
    let small = ["training.batch_size=4", "training.gradient_accumulation=2", "training.checkpoint_every=2"];
    resolved(&[&small, overrides].concat(), data.collect())
}

pub(super) fn train(
    run: &Resolved<Training>,
    base: &Base,
    files: &[(String, PathBuf)],
    output: &Path,
) -> (Result<Outcome, TrainError>, TrainingState) {
    let reporter = Reporter::<TrainingState>::nowhere();
    let session = Session { base: Some(base), ..Session::new(run, files, output, &reporter, &|| false) };
    (session.run(), reporter.state())
}

pub(super) fn model(ended: (Result<Outcome, TrainError>, TrainingState)) -> Model {
    match ended.0 {
        Ok(Outcome::Finished(model)) => *model,
        other => panic!("{other:?}"),
    }
}

struct Place {
    directory: tempfile::TempDir,
    base: Base,
    files: Vec<(String, PathBuf)>,
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("base");
    let digest = write_base(&path);
    let base = Base::open(&path, Some(digest)).unwrap();
    assert_eq!(base.digest(), digest);
    let files = write_data(directory.path());
    Place { directory, base, files }
}

const LORA: [&str; 4] =
    ["training.method=lora", "training.lora.rank=4", "training.lora.dropout=0.2", "training.learning_rate=0.01"];

/// Returns the bytes of every tensor of a file by name.
pub(super) fn tensors(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = fs::read(path).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    read.tensors().into_iter().map(|(name, tensor)| (name, tensor.data().to_vec())).collect()
}

#[test]
fn adapters_resume_exactly_and_are_merged_into_the_base() {
    let Place { directory, base, files } = place();
    for dtype in ["fp32", "bf16"] {
        let dtype = format!("training.dtype={dtype}");
        let overrides = |stop| [&LORA[..], &[dtype.as_str(), stop]].concat();
        let (straight, resumed) = (directory.path().join("straight"), directory.path().join("resumed"));
        let whole = model(train(&run(&files, &overrides("training.stop_after=6")), &base, &files, &straight));
        model(train(&run(&files, &overrides("training.stop_after=3")), &base, &files, &resumed));
        let again = train(&run(&files, &overrides("training.stop_after=6")), &base, &files, &resumed);
        assert_eq!(again.1.resumed_from, Some(3));
        assert_eq!(model(again).digest, whole.digest);

        // The checkpoint has the adapters alone, and names the base.
        let found = newest(&straight.join("checkpoints"), u64::MAX, |notice| panic!("{notice}")).unwrap().unwrap();
        assert_eq!(found.info.identity.base, Some(base.digest()));
        assert!(found.info.tensors.keys().filter(|name| name.starts_with("first/")).all(|name| name.contains("lora_")));
        // Every file of the base is there; only the projections differ.
        let manifest = |path: &Path| -> BTreeSet<String> {
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        let written = straight.join("model");
        assert_eq!(manifest(&written), manifest(base.path()));
        for file in ["tokenizer.json", "tokenizer_config.json", "config.json"] {
            assert!(fs::read(written.join(file)).unwrap() == fs::read(base.path().join(file)).unwrap());
        }
        let (before, after) =
            (tensors(&base.path().join("model.safetensors")), tensors(&written.join("model.safetensors")));
        for (name, bytes) in &before {
            assert_eq!(name.ends_with("_proj.weight"), after[name] != *bytes, "{name}");
            assert_eq!(after[name].len(), bytes.len());
        }
        // The model is served as it was trained: its weights are W + (α / r) · B A, rounded once.
        let adapter = straight.join("artifacts/adapter");
        let stored = tensors(&adapter.join("adapter_model.safetensors"));
        let floats = |bytes: &[u8]| -> Vec<f32> {
            bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
        };
        let halves = |bytes: &[u8]| -> Vec<f32> {
            bytes.as_chunks::<2>().0.iter().map(|two| half::bf16::from_le_bytes(*two).to_f32()).collect()
        };
        let name = "model.layers.1.mlp.down_proj";
        let factor = |part: &str| floats(&stored[&format!("base_model.model.{name}.{part}.weight")]);
        let (a, b) = (factor("lora_A"), factor("lora_B"));
        let weight = format!("{name}.weight");
        let (old, new) = (halves(&before[&weight]), halves(&after[&weight]));
        for (at, (old, new)) in old.iter().zip(&new).enumerate() {
            let (row, column) = (at / 64, at % 64);
            let delta: f32 = (0..4).map(|rank| b[row * 4 + rank] * a[rank * 64 + column]).sum();
            let expected = old + 16.0 / 4.0 * delta;
            assert!((new - expected).abs() <= expected.abs() / 200.0 + 1e-6, "{new} {expected}");
        }
        let config: serde_json::Value =
            serde_json::from_slice(&fs::read(adapter.join("adapter_config.json")).unwrap()).unwrap();
        assert_eq!((&config["peft_type"], &config["r"]), (&"LORA".into(), &4.into()));
        assert_eq!(config["target_modules"].as_array().unwrap().len(), 7);
        // The records of the run name both.
        let metadata = fs::read(straight.join("artifacts/run_metadata.json")).unwrap();
        let metadata: RunMetadata = serde_json::from_slice(&metadata).unwrap();
        assert_eq!(metadata.base.unwrap().digest, base.digest());
        assert_eq!(metadata.adapter, Some(Manifest::of_dir(&adapter).unwrap().digest()));
        assert!(Generator::load_directory(&written, 1, codex_configs::Device::Cpu).is_ok());
        // `codex merge` of the same adapter writes the same bytes, and refuses another base.
        let merged = directory.path().join("merged");
        let again = crate::merge::merge(base.path(), &adapter, &merged).unwrap();
        assert_eq!((again.manifest.digest(), again.tensors), (whole.digest, 14));
        assert_eq!(Manifest::of_dir(&merged).unwrap().digest(), whole.digest);
        let other = directory.path().join("other");
        write_base(&other);
        fs::write(other.join("README.md"), "another").unwrap();
        let nowhere = directory.path().join("nowhere");
        let said = crate::merge::merge(&other, &adapter, &nowhere).unwrap_err().to_string();
        assert!(said.contains("the adapter was trained beside") && said.contains(&base.digest().to_string()), "{said}");
        assert!(!nowhere.exists());
        fs::remove_dir_all(&merged).unwrap();
        fs::remove_dir_all(&straight).unwrap();
        fs::remove_dir_all(&resumed).unwrap();
    }
}

#[test]
fn a_run_is_not_resumed_on_another_base_or_method() {
    let Place { directory, base, files } = place();
    let output = directory.path().join("output");
    let stop = |overrides: &[&str], stop| run(&files, &[overrides, &[stop]].concat());
    model(train(&stop(&LORA, "training.stop_after=2"), &base, &files, &output));
    let refused = |run: &Resolved<Training>, base: &Base| {
        let error = train(run, base, &files, &output).0.unwrap_err();
        assert_eq!(error.exit(), exit::BAD_INPUT, "{error}");
        error.to_string()
    };
    let longer = "training.stop_after=4";
    let said = refused(&stop(&[&LORA[..], &["training.lora.rank=2"]].concat(), longer), &base);
    assert!(said.contains("training.lora.rank: 4 → 2"), "{said}");
    let said = refused(&stop(&[&LORA[..], &["training.method=sft"]].concat(), longer), &base);
    assert!(said.contains("training.method: \"lora\" → \"sft\""), "{said}");
    let other = directory.path().join("other");
    write_base(&other);
    fs::write(other.join("README.md"), "another").unwrap();
    let other = Base::open(&other, None).unwrap();
    let said = refused(&stop(&LORA, longer), &other);
    assert!(said.contains("base: "), "{said}");
}

#[test]
fn all_weights_of_a_base_are_trained_in_its_type() {
    let Place { directory, base, files } = place();
    let output = directory.path().join("output");
    let ended = model(train(&run(&files, &["training.stop_after=3"]), &base, &files, &output));
    assert_ne!(ended.digest, base.digest());
    let (before, after) =
        (tensors(&base.path().join("model.safetensors")), tensors(&output.join("model/model.safetensors")));
    assert!(before.iter().all(|(name, bytes)| after[name] != *bytes && after[name].len() == bytes.len()));
    assert!(!output.join("artifacts/adapter").exists());
}

#[test]
fn without_a_method_the_base_is_the_model() {
    let Place { directory, base, files } = place();
    let output = directory.path().join("output");
    let ended = train(&run(&files, &["training.method=none"]), &base, &files, &output);
    assert_eq!(ended.1.model.as_ref().map(|model| model.digest), Some(base.digest()));
    assert_eq!(model(ended).digest, base.digest());
    assert_eq!(Manifest::of_dir(&output.join("model")).unwrap().digest(), base.digest());
}

#[test]
fn samples_of_an_evaluation_come_from_the_adapted_model() {
    let Place { directory, base, mut files } = place();
    files.push(("validation".to_owned(), directory.path().join("held-out.jsonl")));
    fs::write(&files[2].1, "{\"prompt\": \"What is 7 + 8?\", \"response\": \"15. #15\"}\n").unwrap();
    let overrides = [&LORA[..], &["training.eval_every=2", "training.stop_after=2", "training.eval_max_new_tokens=4"]];
    let ended = train(&run(&files, &overrides.concat()), &base, &files, &directory.path().join("output"));
    model(ended);
}

#[test]
fn what_cannot_be_trained_is_final() {
    let Place { directory, base, files } = place();
    let output = directory.path().join("output");
    for method in ["lora", "none"] {
        let run = run(&files, &[&format!("training.method={method}")]);
        let error = with_files(&run, &files, &output, &|| false).outcome.unwrap_err();
        assert!(matches!(error, TrainError::Base(BaseError::None(_))), "{error}");
        assert_eq!(error.exit(), exit::BAD_INPUT);
        assert!(
            error.to_string().contains(&format!("training.method={method} needs a base: pass --base DIR")),
            "{error}"
        );
    }
    let expected = ModelDigest(Sha256::of("other"));
    let error = TrainError::from(Base::open(base.path(), Some(expected)).unwrap_err());
    assert_eq!(error.exit(), exit::BAD_INPUT);
    let said = error.to_string();
    assert!(said.contains(&base.digest().to_string()) && said.contains(&expected.to_string()), "{said}");
    // A key that no kernel knows.
    let odd = directory.path().join("odd");
    write_base(&odd);
    let config = fs::read_to_string(odd.join("config.json")).unwrap();
    fs::write(odd.join("config.json"), config.replace("\"silu\"", "\"relu\"")).unwrap();
    let error = TrainError::from(Base::open(&odd, None).unwrap_err());
    assert_eq!(error.exit(), exit::BAD_INPUT);
    assert!(crate::error::chain(&error).contains("hidden_act"), "{}", crate::error::chain(&error));
    // The base may not change during a run.
    fs::write(base.path().join("config.json"), "{}").unwrap();
    assert!(base.parameters().unwrap_err().to_string().contains("do not change it during a run"));
    let error = Base::open(&directory.path().join("nowhere"), None).unwrap_err();
    assert!(error.to_string().contains("nowhere"), "{error}");
}

#[test]
fn a_run_without_a_base_is_as_before() {
    let output = tempfile::tempdir().unwrap();
    let ended = crate::training::test_support::attempt(
        &resolved(&["training.stop_after=1"], crate::training::test_support::both()),
        output.path(),
        false,
    );
    finished(&ended);
    let metadata = fs::read_to_string(output.path().join("artifacts/run_metadata.json")).unwrap();
    assert!(!metadata.contains("\"base\"") && !metadata.contains("\"adapter\""), "{metadata}");
}
