//! `environment.json`: the machine and program of a run. Nothing in it influences the model. Reads from the system.

use std::fs;

use codex_provenance::Sha256;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::gpu::{self, Gpu};

/// The file's name.
pub const FILE: &str = "environment.json";

/// The content of `environment.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "environment.json")]
pub struct Environment {
    /// Kernel name and release, and machine architecture.
    pub platform: String,
    /// Version of the Rust compiler.
    pub toolchain: String,
    /// Version of the program.
    pub codex_version: String,
    /// SHA-256 of the `Cargo.lock` that the program was built from.
    pub lock_file_sha256: Sha256,
    /// Git commit that the program was built from, if its image has it; `-dirty` is appended for uncommitted changes.
    pub git_commit: Option<String>,
    /// Digest of the image, if `CODEX_IMAGE_DIGEST` is set.
    pub image_digest: Option<String>,
    /// Name of the node.
    pub node: String,
    /// The processor.
    pub cpu: Processor,
    /// The GPUs that the process may use; empty unless the engine computes on one.
    pub gpus: Vec<Gpu>,
    /// The version of CUDA that the driver supports.
    pub cuda: Option<String>,
    /// Code path of the engine, such as `cpu-f32`.
    pub engine: String,
    /// Why a processor computes although the configured device is `auto`; absent if it is the configured one, or a GPU computes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// Whether the run has the bits of one without interruptions: false once it was resumed from a state that another program, engine,
    /// instruction set, GPU or driver computed, or may have. Absent in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<bool>,
    /// Seed of the run.
    pub seed: u64,
    /// The command line.
    pub command: Vec<String>,
    /// SHA-256 over architecture, processor and threads; equal on machines that the program cannot tell apart.
    pub hardware_fingerprint: Sha256,
}

/// A processor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Processor {
    /// Model name, if the kernel reports it.
    pub model: Option<String>,
    /// Number of compute threads.
    pub threads: usize,
}

impl Environment {
    /// Describes this process and its machine.
    pub fn here(seed: u64, engine: &str, fallback: Option<String>, exact: bool) -> Self {
        let system = rustix::system::uname();
        let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
        let model = processor();
        let threads = rayon::current_num_threads();
        let machine = text(system.machine());
        let sensors = engine.contains("cuda").then(gpu::sensors).flatten();
        // The keys are in canonical order.
        let fingerprint = json!({ "machine": machine, "processor": model, "threads": threads });
        Self {
            platform: format!("{} {} {machine}", text(system.sysname()), text(system.release())),
            toolchain: format!("rustc {}", env!("CARGO_PKG_RUST_VERSION")),
            codex_version: env!("CARGO_PKG_VERSION").to_owned(),
            lock_file_sha256: Sha256::of(include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock"))),
            // Set by the image rather than at build time, so that a commit without code changes causes no rebuild.
            git_commit: variable("CODEX_GIT_COMMIT"),
            image_digest: variable("CODEX_IMAGE_DIGEST"),
            node: variable("CODEX_NODE_NAME").unwrap_or_else(|| text(system.nodename())),
            cpu: Processor { model, threads },
            gpus: sensors.map(|sensors| sensors.describe()).unwrap_or_default(),
            cuda: sensors.and_then(|sensors| sensors.cuda()),
            engine: engine.to_owned(),
            fallback,
            exact: Some(exact),
            seed,
            command: std::env::args().collect(),
            hardware_fingerprint: Sha256::of(fingerprint.to_string()),
        }
    }
}

/// Returns the model name of the processor, if the kernel reports it.
pub fn processor() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Returns an environment variable; an empty one counts as absent.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
