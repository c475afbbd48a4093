//! `environment.json`: what a run ran on. Nothing in it influences the model. Reads what the system says.

use std::fs;

use codex_provenance::Sha256;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The file's name.
pub const FILE: &str = "environment.json";

/// What a run ran on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "environment.json")]
pub struct Environment {
    /// The kernel's name and release, and the machine's architecture.
    pub platform: String,
    /// The compiler.
    pub toolchain: String,
    /// The program's version.
    pub codex_version: String,
    /// SHA-256 of the lock file that the program was built from.
    pub lock_file_sha256: Sha256,
    /// The commit that the program was built from, where its image names it; `-dirty` follows it where more was changed.
    pub git_commit: Option<String>,
    /// The image, by digest, where whoever started it named it.
    pub image_digest: Option<String>,
    /// The machine's name.
    pub node: String,
    /// The processor.
    pub cpu: Processor,
    /// Accelerators.
    pub gpus: Vec<String>,
    /// The version of CUDA.
    pub cuda: Option<String>,
    /// Which path computed, such as `cpu-f32`.
    pub engine: String,
    /// The run's seed.
    pub seed: u64,
    /// The command line.
    pub command: Vec<String>,
    /// SHA-256 over architecture, processor and threads: equal on machines that are equal to the program.
    pub hardware_fingerprint: Sha256,
}

/// A processor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Processor {
    /// Its name, where the kernel says it.
    pub model: Option<String>,
    /// The threads that compute.
    pub threads: usize,
}

impl Environment {
    /// What this process runs on.
    pub fn here(seed: u64, engine: &str) -> Self {
        let system = rustix::system::uname();
        let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
        let model = fs::read_to_string("/proc/cpuinfo").ok().and_then(|info| {
            let line = info.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        });
        let threads = rayon::current_num_threads();
        let machine = text(system.machine());
        // Keys in the order of their canonical form.
        let fingerprint = json!({ "machine": machine, "processor": model, "threads": threads });
        Self {
            platform: format!("{} {} {machine}", text(system.sysname()), text(system.release())),
            toolchain: format!("rustc {}", env!("CARGO_PKG_RUST_VERSION")),
            codex_version: env!("CARGO_PKG_VERSION").to_owned(),
            lock_file_sha256: Sha256::of(include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock"))),
            // The image says it, so that a commit that changes nothing here builds nothing anew.
            git_commit: variable("CODEX_GIT_COMMIT"),
            image_digest: variable("CODEX_IMAGE_DIGEST"),
            node: variable("CODEX_NODE_NAME").unwrap_or_else(|| text(system.nodename())),
            cpu: Processor { model, threads },
            gpus: Vec::new(),
            cuda: None,
            engine: engine.to_owned(),
            seed,
            command: std::env::args().collect(),
            hardware_fingerprint: Sha256::of(fingerprint.to_string()),
        }
    }
}

/// A variable that is set to something.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
