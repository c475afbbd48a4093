//! Adapters as PEFT saves them, merged into small models of both families.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use codex_engine::{Layout, ModelConfig};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

use super::{MergeError, merge};
use crate::{
    error::chain,
    model::{ModelFiles, parameters, read_directory},
};

const LLAMA: &str = "trained";
const GPT2: &str = "gpt2-f32";

/// An adapter that is written to a directory.
#[derive(Clone)]
struct Written {
    config: Value,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

fn fixture(name: &str) -> (PathBuf, ModelFiles, Layout) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/fixtures").join(name);
    let files = read_directory(&path).unwrap();
    let layout = Layout::of(&ModelConfig::parse(&files["config.json"]).unwrap());
    (path, files, layout)
}

/// Numbers that differ and are exact in `f32`.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|at| ((at * 37 + seed * 11) % 64) as f32 / 256.0 - 0.125).collect()
}

/// Returns an adapter of rank 2 and alpha 3 with these targets.
fn adapter(layout: &Layout, targets: &Value, chosen: impl Fn(&str) -> bool) -> Written {
    let mut tensors = BTreeMap::new();
    for (at, tensor) in layout.tensors().iter().enumerate().filter(|(_, tensor)| chosen(&tensor.name)) {
        let [rows, columns] = tensor.shape[..] else { panic!("{}", tensor.name) };
        let [outputs, inputs] = if tensor.name.starts_with("transformer.") { [columns, rows] } else { [rows, columns] };
        let name =
            |part: &str| format!("base_model.model.{}.{part}.weight", tensor.name.strip_suffix(".weight").unwrap());
        tensors.insert(name("lora_A"), (vec![2, inputs], numbers(2 * inputs, at)));
        tensors.insert(name("lora_B"), (vec![outputs, 2], numbers(2 * outputs, at + 5)));
    }
    // What PEFT 0.17 writes.
    let config = json!({
        "alpha_pattern": {}, "auto_mapping": null, "base_model_name_or_path": "some/model", "bias": "none", "corda_config": null,
        "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true,
        "init_lora_weights": true, "layer_replication": null, "layers_pattern": null, "layers_to_transform": null,
        "loftq_config": {}, "lora_alpha": 3, "lora_bias": false, "lora_dropout": 0.05, "megatron_config": null,
        "megatron_core": "megatron.core", "modules_to_save": null, "peft_type": "LORA", "qalora_group_size": 16, "r": 2,
        "rank_pattern": {}, "revision": null, "target_modules": targets, "target_parameters": null,
        "task_type": "CAUSAL_LM", "trainable_token_indices": null, "use_dora": false, "use_qalora": false,
        "use_rslora": false,
    });
    Written { config, tensors }
}

fn write(adapter: &Written, place: &Path) {
    fs::create_dir_all(place).unwrap();
    fs::write(place.join("adapter_config.json"), adapter.config.to_string()).unwrap();
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = adapter
        .tensors
        .iter()
        .map(|(name, (shape, values))| (name, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect()))
        .collect();
    let views =
        bytes.iter().map(|(name, shape, bytes)| (*name, TensorView::new(Dtype::F32, (*shape).clone(), bytes).unwrap()));
    fs::write(place.join("adapter_model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Merges an adapter into a fixture. Returns the files of the model.
fn merged(base: &Path, adapter: &Written) -> Result<ModelFiles, MergeError> {
    let place = tempfile::tempdir().unwrap();
    write(adapter, &place.path().join("adapter"));
    let output = place.path().join("merged");
    let ended = merge(base, &place.path().join("adapter"), &output);
    assert_eq!(ended.is_ok(), output.exists());
    ended.map(|_| read_directory(&output).unwrap())
}

/// Checks that exactly the weights with an adapter are `W + scale · B A`.
fn check(name: &str, adapter: &Written, scale: f32) {
    let (path, before, layout) = fixture(name);
    let after = merged(&path, adapter).unwrap();
    assert!(before.iter().all(|(name, bytes)| name.ends_with(".safetensors") || after[name] == *bytes));
    let (old, new) = (parameters(&before, &layout).unwrap(), parameters(&after, &layout).unwrap());
    let mut found = 0;
    for tensor in layout.tensors() {
        let module = tensor.name.trim_end_matches(".weight");
        let factor = |part: &str| adapter.tensors.get(&format!("base_model.model.{module}.{part}.weight"));
        let (old, new) = (&old[tensor.range.clone()], &new[tensor.range.clone()]);
        let (Some((_, a)), Some((_, b))) = (factor("lora_A"), factor("lora_B")) else {
            assert_eq!(old, new, "{}", tensor.name);
            continue;
        };
        found += 1;
        let (inputs, outputs) = (a.len() / 2, b.len() / 2);
        for row in 0..outputs {
            for column in 0..inputs {
                let transposed = tensor.name.starts_with("transformer.");
                let at = if transposed { column * outputs + row } else { row * inputs + column };
                let delta = b[2 * row] * a[column] + b[2 * row + 1] * a[inputs + column];
                let expected = old[at] + scale * delta;
                assert!((new[at] - expected).abs() < 1e-6, "{} {row} {column}: {} {expected}", tensor.name, new[at]);
            }
        }
    }
    assert_eq!(2 * found, adapter.tensors.len());
}

#[test]
fn projections_by_name_pattern_and_all_of_them_are_merged() {
    let (_, _, layout) = fixture(LLAMA);
    let some = |name: &str| name.contains("q_proj") || name.contains("down_proj");
    check(LLAMA, &adapter(&layout, &json!(["q_proj", "mlp.down_proj"]), some), 1.5);
    check(LLAMA, &adapter(&layout, &json!(".*\\.(q|down)_proj"), some), 1.5);
    check(LLAMA, &adapter(&layout, &json!("all-linear"), |name| name.contains("_proj")), 1.5);
    let mut layers = adapter(&layout, &json!(["q_proj"]), |name| name.contains("layers.0.self_attn.q_proj"));
    layers.config["layers_to_transform"] = json!([0]);
    check(LLAMA, &layers, 1.5);
}

#[test]
fn a_rank_stabilized_adapter_has_its_own_scale() {
    let (_, _, layout) = fixture(LLAMA);
    let mut stable = adapter(&layout, &json!(["v_proj"]), |name| name.contains("v_proj"));
    stable.config["use_rslora"] = json!(true);
    check(LLAMA, &stable, 3.0 / 2.0_f32.sqrt());
}

#[test]
fn the_transposed_weights_of_gpt2_are_merged_whatever_fan_in_fan_out_says() {
    let (_, _, layout) = fixture(GPT2);
    for fan_in_fan_out in [true, false] {
        let mut both = adapter(&layout, &json!(["c_attn", "mlp.c_proj"]), |name| {
            name.ends_with("c_attn.weight") || name.ends_with("mlp.c_proj.weight")
        });
        both.config["fan_in_fan_out"] = json!(fan_in_fan_out);
        check(GPT2, &both, 1.5);
    }
}

#[test]
fn half_weights_in_shards_are_rounded_once() {
    let name = "llama-f16-sharded";
    let (path, before, layout) = fixture(name);
    let adapter = adapter(&layout, &json!(["o_proj"]), |name| name.contains("o_proj"));
    let after = merged(&path, &adapter).unwrap();
    let (old, new) = (parameters(&before, &layout).unwrap(), parameters(&after, &layout).unwrap());
    let tensor = layout.find("model.layers.0.self_attn.o_proj.weight").unwrap();
    let inputs = tensor.shape[1];
    let ((_, a), (_, b)) = (
        &adapter.tensors["base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight"],
        &adapter.tensors["base_model.model.model.layers.0.self_attn.o_proj.lora_B.weight"],
    );
    for (at, (old, new)) in old[tensor.range.clone()].iter().zip(&new[tensor.range.clone()]).enumerate() {
        let (row, column) = (at / inputs, at % inputs);
        let delta = b[2 * row] * a[column] + b[2 * row + 1] * a[inputs + column];
        assert_eq!(new.to_bits(), half::f16::from_f32(old + 1.5 * delta).to_f32().to_bits(), "{at}");
    }
}

#[test]
fn what_would_change_other_weights_is_refused_by_name() {
    let (path, _, layout) = fixture(LLAMA);
    let right = adapter(&layout, &json!(["q_proj"]), |name| name.contains("q_proj"));
    merged(&path, &right).unwrap();
    for (key, value, said) in [
        ("modules_to_save", json!(["lm_head"]), "modules_to_save is [\"lm_head\"], which is not supported"),
        ("peft_type", json!("IA3"), "peft_type is \"IA3\", which is not supported: only LORA is"),
        ("bias", json!("all"), "bias is \"all\""),
        ("use_dora", json!(true), "use_dora is true"),
        ("rank_pattern", json!({"q_proj": 4}), "rank_pattern is {\"q_proj\":4}"),
        ("layer_replication", json!([[0, 1]]), "layer_replication is [[0,1]]"),
        ("a_new_key", json!(0.5), "a_new_key is 0.5, which is not supported: the key is unknown"),
        ("r", json!(0), "r is 0, which is not supported: write a whole number"),
        ("lora_alpha", json!("x"), "lora_alpha is \"x\""),
        ("use_rslora", json!(1), "use_rslora is 1"),
        ("fan_in_fan_out", json!("no"), "fan_in_fan_out is \"no\""),
        ("layers_to_transform", json!([-1]), "layers_to_transform is [-1]"),
        ("target_modules", json!([]), "target_modules is []"),
        ("target_modules", json!("("), "target_modules is no regular expression"),
        ("target_modules", json!(["c_attn"]), "target_modules is c_attn, but the base has q_proj, k_proj"),
        ("target_modules", json!(["q_proj", "lm_head"]), "the base shares its weight with the embedding"),
    ] {
        let mut wrong = right.clone();
        wrong.config[key] = value;
        let error = merged(&path, &wrong).unwrap_err();
        let told = chain(&error);
        assert!(told.contains(said) && told.starts_with("--adapter"), "{told}");
        assert_eq!(crate::error::CommandError::from(error).exit, codex_reports::exit::BAD_INPUT);
    }
}

#[test]
fn tensors_that_do_not_fit_the_base_are_named() {
    let (path, _, layout) = fixture(LLAMA);
    let right = adapter(&layout, &json!(["q_proj"]), |name| name.contains("q_proj"));
    let told = |change: &dyn Fn(&mut Written)| {
        let mut wrong = right.clone();
        change(&mut wrong);
        chain(&merged(&path, &wrong).unwrap_err())
    };
    let [a, b] =
        ["lora_A", "lora_B"].map(|part| format!("base_model.model.model.layers.0.self_attn.q_proj.{part}.weight"));
    let said = told(&|wrong| drop(wrong.tensors.remove(&b)));
    assert!(said.contains(&format!("{b} is missing")), "{said}");
    let said = told(&|wrong| drop(wrong.tensors.insert(a.clone(), (vec![2, 8], vec![0.0; 16]))));
    assert!(said.contains(&format!("{a} is F32 [2, 8], but rank and base ask for F32, F16 or BF16 [2, 32]")), "{said}");
    let more = a.replace("layers.0", "layers.9");
    let said = told(&|wrong| drop(wrong.tensors.insert(more.clone(), (vec![2, 32], vec![0.0; 64]))));
    assert!(said.contains(&format!("{more} belongs to no target module of the base")), "{said}");
    let said = told(&|wrong| wrong.tensors.get_mut(&a).unwrap().1[3] = f32::NAN);
    assert!(said.contains(&format!("{a} is not finite: value 3 is NaN")), "{said}");
    let said = told(&|wrong| wrong.config["r"] = json!(4));
    assert!(said.contains("[4, 32]"), "{said}");
}

#[test]
fn directories_that_cannot_be_used_are_named() {
    let (path, _, layout) = fixture(LLAMA);
    let place = tempfile::tempdir().unwrap();
    let (right, output) = (place.path().join("adapter"), place.path().join("merged"));
    write(&adapter(&layout, &json!(["q_proj"]), |name| name.contains("q_proj")), &right);
    let told = |base: &Path, adapter: &Path, output: &Path| chain(&merge(base, adapter, output).unwrap_err());
    let said = told(&path, &place.path().join("nothing"), &output);
    assert!(said.starts_with("--adapter") && said.contains("nothing"), "{said}");
    let said = told(&right, &right, &output);
    assert!(said.starts_with("--base") && said.contains("config.json"), "{said}");
    let said = told(&path, &right, &right);
    assert!(said.contains("exists: name a directory that does not exist yet"), "{said}");
    let said = told(&path, &right, &right.join("inside"));
    assert!(said.contains("is inside --adapter"), "{said}");
    fs::remove_file(right.join("adapter_model.safetensors")).unwrap();
    let said = told(&path, &right, &output);
    assert!(said.contains("adapter_model.safetensors is missing"), "{said}");
    fs::write(right.join("adapter_model.safetensors"), "not tensors at all").unwrap();
    let said = told(&path, &right, &output);
    assert!(said.contains("adapter_model.safetensors cannot be read"), "{said}");
    assert!(!output.exists());
}
