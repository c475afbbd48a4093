//! The metrics of GPUs, in `codex train` and `codex serve` on CUDA.

use crate::{label::GPU, metric::metrics};

metrics! {
    MEMORY_USED = Gauge("codex_ml_gpu_memory_used_bytes", Bytes, [GPU],
        "Memory of the GPU that is in use, by all its processes.")
        .more("These metrics are absent without a GPU or NVML.").later();
    MEMORY_SIZE = Gauge("codex_ml_gpu_memory_size_bytes", Bytes, [GPU],
        "All memory that the GPU has.").more("As above.").later();
    UTILIZATION = Gauge("codex_ml_gpu_utilization_ratio", Ratio, [GPU],
        "Share of the last sample period in which a kernel ran on the GPU.").more("As above.").later();
    TEMPERATURE = Gauge("codex_ml_gpu_temperature_celsius", Celsius, [GPU],
        "Temperature of the GPU now.").more("As above.").later();
    POWER = Gauge("codex_ml_gpu_power_watts", Watts, [GPU],
        "Power that the GPU draws.").more("As above.").later();
}
