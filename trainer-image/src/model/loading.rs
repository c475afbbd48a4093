//! Memory that loading a model takes beside its weights. Each load runs in a process of its own, whose peak the kernel counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::Path,
    process::Command,
};

use codex_configs::Device;
use codex_engine::{Layout, ModelConfig, Shape};
use codex_provenance::{files, manifest::Manifest};

use super::{files::is_kept, generate::Generator};
use crate::text::Tokenizer;

/// The variables that tell the process what to load, and how.
const MODEL: &str = "CODEX_TEST_MODEL";
const WAY: &str = "CODEX_TEST_WAY";
/// Layers of the model that every test run loads: 129 MB.
const LAYERS: usize = 5;

/// Writes a model in bf16 into as many files, and returns the size of its weights in bytes.
fn write_model(directory: &Path, num_hidden_layers: usize, shards: usize) -> u64 {
    let shape = Shape {
        hidden_size: 1024,
        intermediate_size: 2816,
        num_hidden_layers,
        num_attention_heads: 16,
        max_position_embeddings: 64,
        rope_theta: 10_000.0,
    };
    let tokenizer = Tokenizer::characters().unwrap();
    let config = ModelConfig::new(shape, tokenizer.for_model().unwrap()).unwrap();
    tokenizer.write(directory).unwrap();
    fs::write(directory.join("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    let layout = Layout::of(&config);
    let mut index = BTreeMap::new();
    for (number, tensors) in layout.tensors().chunks(layout.tensors().len().div_ceil(shards)).enumerate() {
        let name =
            if shards == 1 { "model.safetensors".to_owned() } else { format!("model-{}.safetensors", number + 1) };
        let mut header = serde_json::Map::new();
        let mut end = 0;
        for tensor in tensors {
            let start = end;
            end += 2 * tensor.range.len();
            let entry = serde_json::json!({"dtype": "BF16", "shape": tensor.shape, "data_offsets": [start, end]});
            header.insert(tensor.name.clone(), entry);
            index.insert(tensor.name.clone(), name.clone());
        }
        let header = serde_json::Value::Object(header).to_string();
        let mut file = BufWriter::with_capacity(1 << 20, File::create(directory.join(&name)).unwrap());
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(header.as_bytes()).unwrap();
        for tensor in tensors {
            for at in tensor.range.clone() {
                let value = half::bf16::from_f32((at % 251) as f32 / 12_500.0 - 0.01);
                file.write_all(&value.to_le_bytes()).unwrap();
            }
        }
        file.flush().unwrap();
    }
    if shards > 1 {
        let index = serde_json::json!({"weight_map": index}).to_string();
        fs::write(directory.join("model.safetensors.index.json"), index).unwrap();
    }
    2 * layout.size() as u64
}

/// Returns a number of `/proc/self/status` in bytes.
fn status(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let number = line.trim_start_matches(':').trim().trim_end_matches("kB").trim();
    number.parse::<u64>().unwrap() * 1024
}

/// Loads the model that the variables name, and prints the bytes that this took at most.
#[test]
#[ignore = "other tests run it as a process of its own"]
fn child() {
    let (Some(path), Ok(way)) = (std::env::var_os(MODEL), std::env::var(WAY)) else { return };
    let path = Path::new(&path);
    let before = status("VmRSS");
    let generator = if way == "held" {
        let entries = files::walk(path, &BTreeSet::new()).unwrap();
        let (_, held) = Manifest::hold(&entries, is_kept).unwrap();
        Generator::load_held(held, 1, Device::Cpu).unwrap()
    } else {
        Generator::load_directory(path, 1, Device::Cpu).unwrap()
    };
    println!("\npeak={} path={}", status("VmHWM") - before, generator.path());
}

/// Returns the peak memory of a load.
fn peak(path: &Path, way: &str) -> u64 {
    let program = std::env::current_exe().unwrap();
    let arguments = ["--exact", "model::loading::child", "--ignored", "--nocapture", "--test-threads=1"];
    let output = Command::new(program).args(arguments).env(MODEL, path).env(WAY, way).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    let line = told.lines().find_map(|line| line.strip_prefix("peak=")).unwrap();
    assert!(line.contains(" path=cpu-bf16"), "{line}");
    line.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn loading_takes_little_memory_beside_the_weights() {
    for shards in [1, 3] {
        let place = tempfile::tempdir().unwrap();
        let weights = write_model(place.path(), LAYERS, shards);
        for way in ["directory", "held"] {
            let peak = peak(place.path(), way);
            // Buffers have a fixed size, which matters only beside a small model.
            let most = weights + weights / 10 + (24 << 20);
            assert!(peak >= weights / 2 && peak <= most, "{way}, {shards}: {peak} bytes for {weights}");
        }
    }
}

/// Prints what loading a model of 1 GB takes: `cargo test --release -p codex --lib -- --ignored a_large_model --nocapture`.
#[test]
#[ignore = "writes 1 GB"]
fn a_large_model_is_measured() {
    for shards in [1, 8] {
        let place = tempfile::tempdir().unwrap();
        let weights = write_model(place.path(), 40, shards);
        for way in ["directory", "held"] {
            let peak = peak(place.path(), way);
            println!("{way}, {shards} files, {weights} bytes: {peak} bytes, {:.3} times", peak as f64 / weights as f64);
        }
    }
}
