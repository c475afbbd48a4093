//! Chooses what computes on this machine, and says what it is. Reads from the system.

use std::{path::Path, sync::OnceLock};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use codex_configs::Device;
use codex_engine::Backend;

use crate::{artifacts::environment, error::chain, gpu};

/// What computes, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The backend: candle on a GPU, the kernels on a processor.
    pub(crate) backend: Backend,
    /// Why a processor computes although the configured device is `auto`.
    pub(crate) fallback: Option<String>,
}

/// Returns the parser of `--device`.
pub(crate) fn parser() -> impl TypedValueParser<Value = Device> {
    PossibleValuesParser::new(["auto", "cpu", "cuda"]).map(|name| match name.as_str() {
        "cpu" => Device::Cpu,
        "cuda" => Device::Cuda,
        _ => Device::Auto,
    })
}

/// Returns the backend of a configured device: candle on a GPU, the kernels on a processor. `auto` prefers a usable GPU.
pub(crate) fn backend(device: Device) -> Backend {
    choose(device).backend
}

/// Chooses what computes for a configured device.
pub(crate) fn choose(device: Device) -> Choice {
    match device {
        Device::Cpu => Choice { backend: Backend::Kernels, fallback: None },
        Device::Cuda => Choice { backend: Backend::Candle(codex_engine::Device::Cuda), fallback: None },
        Device::Auto => auto().clone(),
    }
}

/// Returns what `auto` is on this machine, which the first call finds out.
fn auto() -> &'static Choice {
    static AUTO: OnceLock<Choice> = OnceLock::new();
    AUTO.get_or_init(|| match codex_engine::check_cuda() {
        Ok(()) => choose(Device::Cuda),
        Err(error) => {
            let why: String = format!("no CUDA device is usable: {}", chain(&error)).chars().take(512).collect();
            Choice { fallback: Some(why), ..choose(Device::Cpu) }
        }
    })
}

/// Returns the device that an engine on the code path `engine` computes on, and logs it. Warns if a GPU is reserved for this process but
/// a processor computes.
pub(crate) fn announce(device: Device, engine: &str) -> codex_reports::Device {
    let used = describe(device, engine);
    let codex_reports::Device { name, driver, memory_bytes, fallback, .. } = &used;
    let reserved = reservation(environment::variable("NVIDIA_VISIBLE_DEVICES").as_deref(), Path::new("/dev"));
    match (fallback, reserved) {
        (Some(why), Some(reserved)) => {
            tracing::warn!(
                engine,
                name,
                reserved,
                "device chosen: cpu, although this process has a GPU, because {why}"
            );
        }
        (Some(why), None) => tracing::info!(engine, name, "device chosen: cpu, because {why}"),
        (None, _) => tracing::info!(engine, name, driver, memory_bytes, "device"),
    }
    used
}

/// Describes the device that an engine on the code path `engine` computes on.
fn describe(device: Device, engine: &str) -> codex_reports::Device {
    let engine = engine.to_owned();
    if !engine.contains("cuda") {
        let name = environment::processor().unwrap_or_else(|| std::env::consts::ARCH.to_owned());
        return codex_reports::Device {
            name,
            engine,
            driver: None,
            memory_bytes: None,
            fallback: choose(device).fallback,
        };
    }
    // The engine computes on the first GPU.
    let gpu = gpu::sensors().and_then(|sensors| sensors.describe().into_iter().next());
    let (name, driver, memory_bytes) = match gpu {
        Some(gpu) => (gpu.name, Some(gpu.driver), Some(gpu.memory_bytes)),
        None => ("GPU".to_owned(), None, None),
    };
    codex_reports::Device { name, engine, driver, memory_bytes, fallback: None }
}

/// Returns what says that a GPU is reserved for this process: a device file, or the variable that container runtimes set.
fn reservation(visible: Option<&str>, devices: &Path) -> Option<String> {
    let file = ["nvidia0", "nvidiactl", "dxg"].map(|name| devices.join(name)).into_iter().find(|path| path.exists());
    // `all` is the default of images with CUDA, and says nothing about a pod.
    let named = visible.filter(|names| !["", "all", "none", "void"].contains(names));
    file.map(|path| path.display().to_string()).or_else(|| Some(format!("NVIDIA_VISIBLE_DEVICES={}", named?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn auto_takes_the_processor_and_says_why() {
        let Choice { backend, fallback } = choose(Device::Auto);
        assert_eq!(backend, Backend::Kernels);
        let why = fallback.unwrap();
        assert!(why.starts_with("no CUDA device is usable: this program was built without CUDA"), "{why}");
        let used = announce(Device::Auto, "cpu-f32");
        assert_eq!((used.engine.as_str(), used.fallback), ("cpu-f32", Some(why)));
        assert!(!used.name.is_empty() && used.driver.is_none() && used.memory_bytes.is_none(), "{}", used.name);
    }

    #[test]
    fn a_configured_device_is_taken_without_a_reason() {
        assert_eq!(choose(Device::Cpu), Choice { backend: Backend::Kernels, fallback: None });
        let cuda = Backend::Candle(codex_engine::Device::Cuda);
        assert_eq!(choose(Device::Cuda), Choice { backend: cuda, fallback: None });
        assert_eq!(announce(Device::Cpu, "cpu-bf16").fallback, None);
    }

    #[test]
    fn a_reserved_gpu_is_seen_by_its_device_file_or_by_name() {
        let devices = tempfile::tempdir().unwrap();
        for nothing in [None, Some("all"), Some("void"), Some("none")] {
            assert_eq!(reservation(nothing, devices.path()), None);
        }
        let named = reservation(Some("GPU-1b2c"), devices.path());
        assert_eq!(named.as_deref(), Some("NVIDIA_VISIBLE_DEVICES=GPU-1b2c"));
        std::fs::write(devices.path().join("nvidia0"), "").unwrap();
        assert!(reservation(None, devices.path()).unwrap().ends_with("/nvidia0"));
    }
}
