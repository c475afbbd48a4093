//! Devices that compute models. Pure.

use serde::{Deserialize, Serialize};

/// The device that computes a model, as the program that computes reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    /// Product name of the GPU, or model name of the processor.
    pub name: String,
    /// Code path of the engine, such as `cpu-f32` or `candle-cuda-bf16`.
    pub engine: String,
    /// Version of the GPU's driver. Absent for a processor, and if NVML is not usable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Memory of the GPU in bytes. Absent for a processor, and if NVML is not usable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Why a processor computes although the configured device is `auto`. Absent if the device is the configured one, or a GPU, and in
    /// promotion statements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
}
