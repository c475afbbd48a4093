//! What GPUs report about themselves: for the records of a run, and for the metrics of trainers and servers. NVML is loaded when a
//! program first computes on a GPU; without it there are no such numbers.

mod nvml;

use std::sync::{Arc, OnceLock};

use codex_configs::Device;
use codex_engine::Backend;
use codex_metrics::gpu as contract;
use prometheus::{
    Error, GaugeVec, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use nvml::Library;

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// Name of the product.
    pub name: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Version of the driver.
    pub driver: String,
}

/// What a GPU measures. A value is `None` if the GPU does not report it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Bytes of memory in use, and all of them.
    pub memory: Option<(u64, u64)>,
    /// Share of the last sample period in which a kernel ran.
    pub utilization: Option<f64>,
    /// Temperature in degrees Celsius.
    pub temperature: Option<f64>,
    /// Power in watts.
    pub power: Option<f64>,
}

/// A source of numbers about the GPUs that this process may use.
pub trait Sensors: Send + Sync {
    /// Describes each GPU.
    fn describe(&self) -> Vec<Gpu>;

    /// Returns the version of CUDA that the driver supports, such as `13.0`.
    fn cuda(&self) -> Option<String>;

    /// Reads each GPU, in the order of [`describe`](Self::describe).
    fn read(&self) -> Vec<Reading>;
}

/// Returns the sensors of this machine; `None` without NVML, which the first call logs.
pub fn sensors() -> Option<&'static Arc<dyn Sensors>> {
    static SENSORS: OnceLock<Option<Arc<dyn Sensors>>> = OnceLock::new();
    let open = || match Library::open() {
        Ok(library) => Some(Arc::new(library) as Arc<dyn Sensors>),
        Err(error) => {
            tracing::warn!(
                error = crate::error::chain(&error),
                "NVML cannot be used: the metrics and records of this process have no numbers of GPUs"
            );
            None
        }
    };
    SENSORS.get_or_init(open).as_ref()
}

/// Registers the metrics of GPUs, if `device` is one and NVML is usable.
///
/// # Errors
/// If the registry has a metric of that name.
pub fn register(registry: &Registry, device: Device) -> Result<(), Error> {
    let on_gpu = crate::device::backend(device) == Backend::Candle(codex_engine::Device::Cuda);
    match on_gpu.then(sensors).flatten() {
        Some(sensors) => registry.register(Box::new(GpuMetrics::new(Arc::clone(sensors))?)),
        None => Ok(()),
    }
}

/// The metrics of GPUs, read when they are collected.
struct GpuMetrics {
    sensors: Arc<dyn Sensors>,
    memory_used: GaugeVec,
    memory_total: GaugeVec,
    utilization: GaugeVec,
    temperature: GaugeVec,
    power: GaugeVec,
}

impl GpuMetrics {
    fn new(sensors: Arc<dyn Sensors>) -> Result<Self, Error> {
        Ok(Self {
            sensors,
            memory_used: contract::MEMORY_USED.unregistered_float()?,
            memory_total: contract::MEMORY_SIZE.unregistered_float()?,
            utilization: contract::UTILIZATION.unregistered_float()?,
            temperature: contract::TEMPERATURE.unregistered_float()?,
            power: contract::POWER.unregistered_float()?,
        })
    }

    fn gauges(&self) -> [&GaugeVec; 5] {
        [&self.memory_used, &self.memory_total, &self.utilization, &self.temperature, &self.power]
    }
}

impl Collector for GpuMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.gauges().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // A GPU that no longer answers shows no old numbers.
        self.gauges().into_iter().for_each(GaugeVec::reset);
        for (index, reading) in self.sensors.read().into_iter().enumerate() {
            let index = index.to_string();
            let set = |gauge: &GaugeVec, value: Option<f64>| {
                if let Some(value) = value {
                    gauge.with_label_values(&[&index]).set(value);
                }
            };
            let Reading { memory, utilization, temperature, power } = reading;
            set(&self.memory_used, memory.map(|(used, _)| used as f64));
            set(&self.memory_total, memory.map(|(_, total)| total as f64));
            set(&self.utilization, utilization);
            set(&self.temperature, temperature);
            set(&self.power, power);
        }
        self.gauges().into_iter().flat_map(Collector::collect).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;

    /// Two GPUs, of which the second reports no power and may be lost.
    #[derive(Default)]
    struct Two {
        lost: AtomicBool,
    }

    impl Sensors for Two {
        fn describe(&self) -> Vec<Gpu> {
            vec![Gpu { name: "A".to_owned(), memory_bytes: 8, driver: "580".to_owned() }]
        }

        fn cuda(&self) -> Option<String> {
            Some("13.0".to_owned())
        }

        fn read(&self) -> Vec<Reading> {
            let first = Reading {
                memory: Some((3 << 30, 80 << 30)),
                utilization: Some(0.75),
                temperature: Some(51.0),
                power: Some(310.5),
            };
            let second = Reading { power: None, ..first };
            if self.lost.load(Ordering::Relaxed) { vec![first] } else { vec![first, second] }
        }
    }

    #[test]
    fn each_scrape_reads_the_gpus() {
        let (registry, two) = (Registry::new(), Arc::new(Two::default()));
        registry.register(Box::new(GpuMetrics::new(two.clone()).unwrap())).unwrap();
        let text = || prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let found = text();
        for line in [
            "codex_ml_gpu_memory_used_bytes{gpu=\"0\"} 3221225472",
            "codex_ml_gpu_memory_size_bytes{gpu=\"1\"} 85899345920",
            "codex_ml_gpu_utilization_ratio{gpu=\"0\"} 0.75",
            "codex_ml_gpu_temperature_celsius{gpu=\"1\"} 51",
            "codex_ml_gpu_power_watts{gpu=\"0\"} 310.5",
        ] {
            assert!(found.lines().any(|it| it == line), "{line}: {found}");
        }
        assert!(!found.contains("power_watts{gpu=\"1\"}"), "{found}");
        two.lost.store(true, Ordering::Relaxed);
        assert!(!text().contains("gpu=\"1\""));
        let names: BTreeSet<String> = registry.gather().iter().map(|family| family.name().to_owned()).collect();
        assert_eq!(names, contract::ALL.iter().map(|metric| metric.name.to_owned()).collect());
    }

    #[test]
    fn a_processor_has_no_metrics_of_gpus() {
        let registry = Registry::new();
        register(&registry, Device::Cpu).unwrap();
        assert!(registry.gather().is_empty());
    }
}
