//! Numbers of the machine for the metrics ledger: processors, memory, the volume of the run, and GPUs. The names are those of MLflow's
//! system metrics. Reads `/proc`, the volume, and NVML.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::fs::statvfs;

use crate::{
    gpu::{self, Reading},
    training::resources::resident_memory,
};

/// The split of the rows: with it, trackers have the names of MLflow, such as `system/cpu_utilization_percentage`.
pub(super) const SYSTEM_SPLIT: &str = "system";
/// Bytes of a megabyte, as MLflow counts them.
const MEGABYTE: f64 = 1e6;

/// Measures the machine. A number that the system does not report is left out.
#[derive(Debug)]
pub(super) struct SystemMetrics {
    /// A directory on the volume of the run.
    volume: PathBuf,
    /// Whether the engine computes on a GPU.
    on_gpu: bool,
    /// Processor time at the last measurement.
    before: Option<ProcessorTime>,
}

/// Time of all processors since the machine started, in the kernel's ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ProcessorTime {
    busy: u64,
    all: u64,
}

impl SystemMetrics {
    /// Begins to measure for a run in the directory `volume`, whose engine computes on the path `engine`.
    pub(super) fn begin(volume: &Path, engine: &str) -> Self {
        Self { volume: volume.to_owned(), on_gpu: engine.contains("cuda"), before: processor_time(&read("/proc/stat")) }
    }

    /// Returns names and values. Processors are measured since the last call.
    pub(super) fn measure(&mut self) -> Vec<(String, f64)> {
        let now = processor_time(&read("/proc/stat"));
        let before = std::mem::replace(&mut self.before, now);
        let mut rows: Vec<(String, f64)> = Vec::new();
        let mut add = |name: &str, value: f64| rows.push((name.to_owned(), value));
        if let Some(share) = before.zip(now).and_then(|(before, now)| utilization(before, now)) {
            add("cpu_utilization_percentage", 100.0 * share);
        }
        if let Some((used, all)) = memory(&read("/proc/meminfo")) {
            add("system_memory_usage_megabytes", used / MEGABYTE);
            add("system_memory_usage_percentage", 100.0 * used / all);
        }
        add("process_memory_usage_megabytes", resident_memory().0 as f64 / MEGABYTE);
        if let Ok(volume) = statvfs(&self.volume) {
            let bytes = |blocks: u64| blocks as f64 * volume.f_frsize as f64;
            let (used, available) = (bytes(volume.f_blocks.saturating_sub(volume.f_bfree)), bytes(volume.f_bavail));
            add("disk_usage_megabytes", used / MEGABYTE);
            // As df counts: blocks that only root may use are neither used nor available.
            add("disk_usage_percentage", 100.0 * used / (used + available).max(1.0));
            add("disk_available_megabytes", available / MEGABYTE);
        }
        let sensors = self.on_gpu.then(gpu::sensors).flatten();
        rows.extend(sensors.map(|sensors| of_gpus(&sensors.read())).into_iter().flatten());
        rows
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Returns the processor time of `/proc/stat`.
fn processor_time(stat: &str) -> Option<ProcessorTime> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    // user, nice, system, idle, iowait, irq, softirq, steal. What follows is counted in user and nice.
    let times: Vec<u64> = line.split_whitespace().take(8).map(|time| time.parse().ok()).collect::<Option<_>>()?;
    let (all, idle) = (times.iter().sum::<u64>(), times.get(3)? + times.get(4)?);
    Some(ProcessorTime { busy: all - idle, all })
}

/// Returns the share of the time between two measurements in which processors were busy; `None` if no time has passed.
fn utilization(before: ProcessorTime, now: ProcessorTime) -> Option<f64> {
    let (busy, all) = (now.busy.saturating_sub(before.busy), now.all.saturating_sub(before.all));
    (all > 0).then(|| (busy as f64 / all as f64).min(1.0))
}

/// Returns the bytes of memory of `/proc/meminfo` that are in use, and all of them.
fn memory(text: &str) -> Option<(f64, f64)> {
    let field = |name: &str| -> Option<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? as f64 * 1024.0)
    };
    let (all, available) = (field("MemTotal:")?, field("MemAvailable:")?);
    (all > 0.0).then_some((all - available, all))
}

/// Yields names and values of GPUs.
fn of_gpus(readings: &[Reading]) -> Vec<(String, f64)> {
    let mut rows = Vec::new();
    for (index, Reading { memory, utilization, power, .. }) in readings.iter().enumerate() {
        let mut add =
            |name: &str, value: Option<f64>| rows.extend(value.map(|value| (format!("gpu_{index}_{name}"), value)));
        add("memory_usage_megabytes", memory.map(|(used, _)| used as f64 / MEGABYTE));
        add("memory_usage_percentage", memory.map(|(used, all)| 100.0 * used as f64 / all.max(1) as f64));
        add("utilization_percentage", utilization.map(|share| 100.0 * share));
        add("power_usage_watts", *power);
    }
    rows
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn processors_are_busy_between_two_measurements() {
        let before = processor_time("cpu  100 0 50 800 50 0 0 0 70 0\ncpu0 1 1 1 1\n").unwrap();
        assert_eq!(before, ProcessorTime { busy: 150, all: 1000 });
        let now = processor_time("cpu  160 0 65 815 60 0 0 0 70 0\n").unwrap();
        assert_eq!(utilization(before, now), Some(0.75));
        assert_eq!(utilization(now, now), None, "no time has passed");
        assert_eq!((processor_time(""), processor_time("cpu  1 2 x 4 5\n")), (None, None));
    }

    #[test]
    fn memory_in_use_is_what_is_not_available() {
        let text = "MemTotal:       1000 kB\nMemFree:  10 kB\nMemAvailable:    750 kB\n";
        assert_eq!(memory(text), Some((250.0 * 1024.0, 1000.0 * 1024.0)));
        assert_eq!(memory("MemTotal: 1000 kB\n"), None);
    }

    #[test]
    fn gpus_are_numbered_and_what_they_do_not_report_is_left_out() {
        let first =
            Reading { memory: Some((3_000_000, 4_000_000)), utilization: Some(0.5), temperature: None, power: None };
        let second = Reading { power: Some(310.5), ..Reading::default() };
        let expected = [
            ("gpu_0_memory_usage_megabytes", 3.0),
            ("gpu_0_memory_usage_percentage", 75.0),
            ("gpu_0_utilization_percentage", 50.0),
            ("gpu_1_power_usage_watts", 310.5),
        ];
        assert_eq!(of_gpus(&[first, second]), expected.map(|(name, value)| (name.to_owned(), value)));
    }

    #[test]
    fn this_machine_is_measured() {
        let directory = tempfile::tempdir().unwrap();
        let mut metrics = SystemMetrics {
            before: Some(ProcessorTime { busy: 0, all: 0 }),
            ..SystemMetrics::begin(directory.path(), "cpu-f32")
        };
        let rows: BTreeMap<String, f64> = metrics.measure().into_iter().collect();
        for (name, value) in &rows {
            assert!(
                value.is_finite() && *value >= 0.0 && (!name.ends_with("percentage") || *value <= 100.0),
                "{name} {value}"
            );
        }
        let names: Vec<&str> = rows.keys().map(String::as_str).collect();
        let expected = [
            "cpu_utilization_percentage",
            "disk_available_megabytes",
            "disk_usage_megabytes",
            "disk_usage_percentage",
            "process_memory_usage_megabytes",
            "system_memory_usage_megabytes",
            "system_memory_usage_percentage",
        ];
        assert_eq!(names, expected);
        assert!(rows["process_memory_usage_megabytes"] > 1.0);
    }
}
