//! Chooses what computes on this machine.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use codex_configs::Device;
use codex_engine::Backend;

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
    match device {
        Device::Cuda => Backend::Candle(codex_engine::Device::Cuda),
        Device::Auto if codex_engine::cuda_is_usable() => Backend::Candle(codex_engine::Device::Cuda),
        Device::Auto | Device::Cpu => Backend::Kernels,
    }
}
