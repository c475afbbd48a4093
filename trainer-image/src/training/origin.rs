//! What wrote a checkpoint. Reads the environment, and this program's own file once.

use std::{fs, sync::OnceLock};

use codex_configs::Optimization;
use codex_engine::Isa;
use codex_provenance::Sha256;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use super::state;
use crate::artifacts::environment;

/// `origin.json`: what wrote a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Origin {
    /// The version of codex.
    pub(super) version: String,
    /// The commit that it was built from, where the build says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) git_commit: Option<String>,
    /// The SHA-256 of the program, where it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) program: Option<String>,
    /// The engine's path, such as `cpu-f32`.
    pub(super) engine: String,
    /// The processor's instructions that kernels choose by.
    pub(super) instructions: String,
    /// Threads.
    pub(super) threads: usize,
}

impl Origin {
    /// This process, for whoever goes on from its checkpoints.
    pub(super) fn here(training: &Optimization) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            git_commit: environment::variable("CODEX_GIT_COMMIT"),
            program: program().map(str::to_owned),
            engine: state::settings(training).path().to_owned(),
            instructions: instructions(),
            threads: rayon::current_num_threads(),
        }
    }
}

/// The SHA-256 of this program's file, where it can be read: two programs of one version may compute other bits.
fn program() -> Option<&'static str> {
    static PROGRAM: OnceLock<Option<String>> = OnceLock::new();
    let digest = || {
        let mut hasher = sha2::Sha256::new();
        std::io::copy(&mut fs::File::open("/proc/self/exe").ok()?, &mut hasher).ok()?;
        Some(Sha256::finish(hasher).to_string())
    };
    PROGRAM.get_or_init(digest).as_deref()
}

/// The processor's architecture and the instructions that kernels choose by.
fn instructions() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        let all = [
            ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
            ("avx512bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
            ("avx2", std::arch::is_x86_feature_detected!("avx2")),
            ("fma", std::arch::is_x86_feature_detected!("fma")),
        ];
        let there = all.iter().filter(|(_, there)| *there).map(|(name, _)| format!(" {name}"));
        let held = Isa::limit().ok().filter(|isa| *isa < Isa::Amx).map(|isa| format!(", held to {isa}"));
        format!("x86_64{}{}", there.collect::<String>(), held.unwrap_or_default())
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::env::consts::ARCH.to_owned()
}
