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
