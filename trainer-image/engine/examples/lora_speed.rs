//! Times LoRA steps on random tokens in the shape of SmolLM2-135M: rank 16 on all seven projections, 16 sequences of 76 tokens of
//! which 40 count for the loss. Forward and backward pass, clipping and AdamW. Prints one JSON object.
//!
//! `lora_speed DTYPE STEPS [THREADS]`: `DTYPE` is `fp32` or `bf16`. Speed does not depend on the values of weights, which are random.

use std::{env, fs, process::ExitCode, sync::Arc, time::Instant};

use codex_engine::{
    AdamW, Backend, EngineState, Layout, Lora, ModelConfig, Packed, Precision, Projection, Rates, Settings, Shape,
    Vocabulary, initial, lora_engine,
};

const SEQUENCES: u32 = 16;
const TOKENS: u32 = 77;
const PROMPT: usize = 37;
/// Untimed steps.
const WARM_UP: u64 = 2;

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<(), Failure> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [dtype, steps, rest @ ..] = arguments.as_slice() else {
        return Err("use: lora_speed fp32|bf16 STEPS [THREADS]".into());
    };
    let precision = match dtype.as_str() {
        "fp32" => Precision::F32,
        "bf16" => Precision::Bf16,
        other => return Err(format!("unknown type {other}: use fp32 or bf16").into()),
    };
    let steps: u64 = steps.parse()?;
    if let Some(threads) = rest.first() {
        rayon::ThreadPoolBuilder::new().num_threads(threads.parse()?).build_global()?;
    }
    let shape = Shape {
        hidden_size: 576,
        intermediate_size: 1536,
        num_hidden_layers: 30,
        num_attention_heads: 9,
        max_position_embeddings: 8192,
        rope_theta: 100_000.0,
    };
    let config = ModelConfig::new(shape, Vocabulary { size: 49_152, end: 2, pad: 2 })?;
    let config = ModelConfig { num_key_value_heads: 3, ..config };
    let lora = Lora { rank: 16, alpha: 32.0, dropout: 0.05, targets: Projection::ALL.into() };
    let layout = Arc::new(lora.layout(&config)?);
    let state = EngineState::new(layout.clone(), lora.initial(&config, 1)?);
    let settings = Settings { precision, gradient_checkpointing: false, backend: Backend::Kernels };
    let base = initial(&config, &Layout::of(&config), 1);
    let mut engine = lora_engine(config.clone(), &base, lora, state, settings)?;
    drop(base);
    let loading = peak()?;
    let rates = Rates::standard(&layout, 0.01);
    let (mut times, mut used, mut losses) = (Vec::new(), 0.0, Vec::new());
    for step in 0..WARM_UP + steps {
        let batch = random(step);
        let before = processor()?;
        let start = Instant::now();
        engine.clear_gradients()?;
        losses.push(engine.accumulate(&batch, batch.targets.len())?);
        let scale = (1.0 / engine.gradient_norm()?).min(1.0);
        engine.update(&AdamW {
            step,
            rate: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            scale,
            rates: &rates,
            muon: None,
        })?;
        if step >= WARM_UP {
            times.push(start.elapsed().as_secs_f64());
            used += processor()? - before;
        }
    }
    times.sort_by(f64::total_cmp);
    let batch = random(0);
    let (median, tokens) = (times[times.len() / 2], batch.tokens.len() as f64);
    println!(
        "{{\"path\": \"{}\", \"threads\": {}, \"trained\": {}, \"tokens_per_second\": {:.0}, \"fastest_tokens_per_second\": {:.0}, \
         \"processor_ms_per_token\": {:.2}, \"gflops\": {:.1}, \"held_mb\": {:.0}, \"peak_loading_mb\": {:.0}, \"peak_mb\": {:.0}, \
         \"loss\": [{:.4}, {:.4}]}}",
        engine.path(),
        rayon::current_num_threads(),
        layout.size(),
        tokens / median,
        tokens / times[0],
        used / steps as f64 / tokens * 1e3,
        engine.flops(&batch) / median / 1e9,
        engine.memory() as f64 / 1e6,
        loading,
        peak()?,
        losses[0],
        losses[losses.len() - 1],
    );
    Ok(())
}

/// Returns a batch of random tokens.
fn random(step: u64) -> Packed {
    let id = |sequence: u32, at: u32| {
        let mixed = (sequence * TOKENS + at).wrapping_add(step as u32 * 7919).wrapping_mul(2_654_435_761);
        (mixed >> 7) % 49_152
    };
    let all: Vec<Vec<u32>> = (0..SEQUENCES).map(|sequence| (0..TOKENS).map(|at| id(sequence, at)).collect()).collect();
    Packed { noise: step, ..Packed::new(all.iter().map(|ids| (ids.as_slice(), PROMPT))) }
}

/// Returns the processor seconds that this process has used.
fn processor() -> Result<f64, Failure> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / 100.0)
}

/// Returns the peak of resident memory in MB.
fn peak() -> Result<f64, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("VmHWM is missing")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? * 1.024e-3)
}
