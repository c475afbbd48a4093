//! Devices that compute. No I/O.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Device that computes: auto, cpu or cuda. auto takes a GPU if the resources of the pod have one and the program can use it, else the
/// processor. With cuda a program without a usable GPU ends. Defaults to auto.
// kubectl explain shows these sentences, not those of the fields, because they are optional.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Device {
    /// A GPU if the program can use one, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The first GPU that CUDA shows. A program that cannot use one ends.
    Cuda,
}

impl Device {
    /// Returns the value of `--device`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Device that a pod computed on, as the pod reported it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStatus {
    /// Product name of the GPU, or model name of the processor.
    #[schemars(length(max = 128))]
    pub name: String,
    /// Code path of the engine, such as cpu-f32 or candle-cuda-bf16.
    #[schemars(length(max = 63))]
    pub engine: String,
    /// Version of the GPU's driver. Absent for a processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub driver: Option<String>,
    /// Memory of the GPU in bytes. Absent for a processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<i64>,
    /// Why a processor computed although the configured device is auto. Absent if the device is the configured one, or a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub fallback: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::Device;

    #[test]
    fn names_are_those_of_the_schema() {
        for device in [Device::Auto, Device::Cpu, Device::Cuda] {
            assert_eq!(serde_json::to_value(device).unwrap(), device.name());
        }
    }
}
