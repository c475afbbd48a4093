//! The device of a pod: what needs a GPU, and what a status says about it. Pure.

use codex_configs::{Dtype, Method, Optimization};
use codex_crds::{DeviceStatus, WorkerPod};
use codex_reports::Device;

use crate::numbers::count;

/// Returns what a status says about the device that a pod reported, cut to what the status may hold.
pub(crate) fn device_status(reported: &Device) -> DeviceStatus {
    let cut = |text: &str, most: usize| text.chars().take(most).collect::<String>();
    DeviceStatus {
        name: cut(&reported.name, 128),
        engine: cut(&reported.engine, 63),
        driver: reported.driver.as_deref().map(|driver| cut(driver, 63)),
        memory_bytes: reported.memory_bytes.map(count),
        fallback: reported.fallback.as_deref().map(|why| cut(why, 512)),
    }
}

/// A setting that needs a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NeedsGpu {
    /// The setting with its value.
    setting: &'static str,
    /// The same setting with a value that needs no GPU.
    instead: &'static str,
}

impl NeedsGpu {
    /// Returns the setting of a training that needs a GPU.
    pub(crate) fn of_training(training: &Optimization) -> Option<Self> {
        if training.method == Method::None {
            return None;
        }
        if training.device == codex_configs::Device::Cuda {
            return Some(Self { setting: "training.device=cuda", instead: "training.device=auto" });
        }
        let half = Self { setting: "training.dtype=fp16", instead: "training.dtype=bf16" };
        (training.dtype == Dtype::Fp16).then_some(half)
    }

    /// Returns the setting of an Evaluation that needs a GPU.
    pub(crate) fn of_evaluation(device: Option<codex_crds::Device>) -> Option<Self> {
        let cuda = Self { setting: "spec.device: cuda", instead: "spec.device: auto" };
        (device == Some(codex_crds::Device::Cuda)).then_some(cuda)
    }

    /// Returns the setting of a server that needs a GPU.
    pub(crate) fn of_server(device: Option<codex_crds::Device>) -> Option<Self> {
        let cuda = Self { setting: "spec.serving.device: cuda", instead: "spec.serving.device: auto" };
        (device == Some(codex_crds::Device::Cuda)).then_some(cuda)
    }

    /// Checks that a pod may have a GPU. A `RuntimeClass` can give it one that it does not ask for.
    ///
    /// # Errors
    /// One sentence that says what to change.
    pub(crate) fn check(self, pod: &WorkerPod) -> Result<(), String> {
        if pod.has_device() || pod.runtime_class_name.is_some() {
            return Ok(());
        }
        let Self { setting, instead } = self;
        Err(format!(
            "{setting} needs a GPU, but spec.pod asks for none: add nvidia.com/gpu: \"1\" to spec.pod.resources.limits, or write {instead}"
        ))
    }
}
