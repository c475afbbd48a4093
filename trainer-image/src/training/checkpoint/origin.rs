//! The program and machine that wrote a checkpoint. Reads the environment, and the file of this program once.

use std::{fs, sync::OnceLock};

use codex_engine::{Backend, Device, Isa, Settings};
use codex_provenance::Sha256;
use codex_reports::Computation;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::{
    artifacts::environment,
    gpu::{self, Gpu},
};

/// Content of `origin.json`: the program and machine that wrote a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Origin {
    /// Version of codex.
    pub(crate) version: String,
    /// Commit of the build, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) git_commit: Option<String>,
    /// SHA-256 of the program, if it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) program: Option<String>,
    /// Path of the engine, such as `cpu-f32`.
    pub(crate) engine: String,
    /// Processor instructions that select kernels.
    pub(crate) instructions: String,
    /// Architecture and instruction set of the kernels, such as `x86_64 avx512`; `None` on a GPU, and in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kernels: Option<String>,
    /// Name of the GPU and version of its driver; `None` on a processor, without NVML, and in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gpu: Option<String>,
    /// Whether an earlier attempt computed with another program, engine, kernels, GPU or driver, or may have.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) mixed: bool,
    /// Number of threads.
    pub(crate) threads: usize,
}

impl Origin {
    /// Returns the origin of checkpoints of this process, whose engine has these settings.
    pub(crate) fn here(settings: Settings) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            git_commit: environment::variable("CODEX_GIT_COMMIT"),
            program: program().map(str::to_owned),
            engine: settings.path().to_owned(),
            instructions: instructions(),
            kernels: settings.kernels(),
            gpu: gpu_of(settings.backend),
            mixed: false,
            threads: rayon::current_num_threads(),
        }
    }

    /// Returns the origin of what this process computes from the state of a checkpoint with the origin `before`, if that is known.
    pub(crate) fn after(self, before: Option<&Self>) -> Self {
        let same = before.is_some_and(|before| {
            let all = |it: &Self| (it.program.clone(), it.engine.clone(), it.kernels.clone(), it.gpu.clone());
            let known = self.program.is_some() && (self.gpu.is_some() || !self.on_gpu());
            !before.mixed && all(before) == all(&self) && known
        });
        Self { mixed: !same, ..self }
    }

    /// Whether the engine computes on a GPU.
    pub(crate) fn on_gpu(&self) -> bool {
        self.engine.contains("cuda")
    }

    /// Returns what computes, for reports; `None` on a GPU, or if the program cannot be read.
    pub(crate) fn computation(&self) -> Option<Computation> {
        Some(Computation {
            program: self.program.as_ref()?.parse().ok()?,
            engine: self.engine.clone(),
            kernels: self.kernels.clone()?,
            mixed: self.mixed,
        })
    }
}

/// Returns the GPU on which a backend computes, which is the first one, and its driver.
fn gpu_of(backend: Backend) -> Option<String> {
    if backend != Backend::Candle(Device::Cuda) {
        return None;
    }
    let Gpu { name, driver, .. } = gpu::sensors()?.describe().into_iter().next()?;
    Some(format!("{name}, driver {driver}"))
}

/// Returns the SHA-256 of this program, if it can be read: two builds of one version may compute different bits.
fn program() -> Option<&'static str> {
    static PROGRAM: OnceLock<Option<String>> = OnceLock::new();
    let digest = || {
        let mut hasher = sha2::Sha256::new();
        std::io::copy(&mut fs::File::open("/proc/self/exe").ok()?, &mut hasher).ok()?;
        Some(Sha256::finish(hasher).to_string())
    };
    PROGRAM.get_or_init(digest).as_deref()
}

/// Returns the processor architecture and the instructions that select kernels.
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
