//! NVML, the library of the NVIDIA driver that reports the state of its GPUs. It is loaded at run time.

use nvml_wrapper::{Device, Nvml, enum_wrappers::device::TemperatureSensor, error::NvmlError};

use super::{Gpu, Reading, Sensors};

/// The loaded library, and the GPUs that CUDA may use.
pub(super) struct Library {
    nvml: Nvml,
    visible: Vec<Visible>,
}

/// How `CUDA_VISIBLE_DEVICES` names a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Visible {
    /// By its index.
    Index(u32),
    /// By its UUID.
    Uuid(String),
}

impl Library {
    /// Loads the library.
    ///
    /// # Errors
    /// When the machine has no NVIDIA driver, or no GPU of it is usable.
    pub(super) fn open() -> Result<Self, NvmlError> {
        let nvml = Nvml::init()?;
        let visible = visible(std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref(), nvml.device_count()?);
        Ok(Self { nvml, visible })
    }

    /// Yields the visible GPUs that answer.
    fn devices(&self) -> impl Iterator<Item = Device<'_>> {
        self.visible.iter().filter_map(|visible| match visible {
            Visible::Index(index) => self.nvml.device_by_index(*index).ok(),
            Visible::Uuid(uuid) => self.nvml.device_by_uuid(uuid.clone()).ok(),
        })
    }
}

/// Returns the GPUs that CUDA may use, of `count`: all, or those of the variable up to its first invalid entry.
fn visible(variable: Option<&str>, count: u32) -> Vec<Visible> {
    let Some(list) = variable else { return (0..count).map(Visible::Index).collect() };
    let read = |entry: &str| match entry.trim() {
        uuid if uuid.starts_with("GPU-") || uuid.starts_with("MIG-") => Some(Visible::Uuid(uuid.to_owned())),
        index => index.parse().ok().filter(|index| *index < count).map(Visible::Index),
    };
    list.split(',').map_while(read).collect()
}

impl Sensors for Library {
    fn describe(&self) -> Vec<Gpu> {
        let driver = self.nvml.sys_driver_version().unwrap_or_else(|_| "unknown".to_owned());
        let describe = |device: Device| {
            Some(Gpu {
                name: device.name().ok()?,
                memory_bytes: device.memory_info().ok()?.total,
                driver: driver.clone(),
            })
        };
        self.devices().filter_map(describe).collect()
    }

    fn cuda(&self) -> Option<String> {
        self.nvml.sys_cuda_driver_version().ok().map(version)
    }

    fn read(&self) -> Vec<Reading> {
        let read = |device: Device| Reading {
            memory: device.memory_info().ok().map(|memory| (memory.used, memory.total)),
            utilization: device.utilization_rates().ok().map(|rates| f64::from(rates.gpu) / 100.0),
            temperature: device.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
            // In milliwatts.
            power: device.power_usage().ok().map(|power| f64::from(power) / 1000.0),
        };
        self.devices().map(read).collect()
    }
}

/// Returns CUDA's number of a version as text: 13010 is 13.1.
fn version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visible_devices_are_those_of_cuda() {
        let index = |indices: &[u32]| indices.iter().copied().map(Visible::Index).collect::<Vec<_>>();
        assert_eq!(visible(None, 2), index(&[0, 1]));
        assert_eq!(visible(Some("1,0"), 2), index(&[1, 0]));
        // As in CUDA, nothing after an invalid entry is visible.
        assert_eq!(visible(Some("1, 7,0"), 2), index(&[1]));
        assert_eq!(visible(Some(""), 2), index(&[]));
        assert_eq!(visible(Some("GPU-5e,0"), 2), [Visible::Uuid("GPU-5e".to_owned()), Visible::Index(0)]);
    }

    #[test]
    fn versions_are_text() {
        assert_eq!((version(13_000), version(12_080)), ("13.0".to_owned(), "12.8".to_owned()));
    }
}
