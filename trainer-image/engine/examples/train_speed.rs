//! Times training steps on random tokens: forward and backward pass, clipping and AdamW. Prints one JSON object.
//!
//! `train_speed SHAPE DTYPE STEPS [THREADS] [checkpoint]`: `SHAPE` is a name of the list below, `DTYPE` is `fp32`, `bf16` or
//! `candle`. `make bench-train` runs it beside PyTorch.

use std::{
    env, fs,
    process::ExitCode,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use codex_engine::{
    AdamW, Backend, Device, EngineState, Layout, ModelConfig, Packed, Precision, Rates, Settings, Shape, Vocabulary,
    engine, flops, initial,
};

/// Layers, width, heads, inner width, vocabulary, tokens per sequence, sequences per batch.
const SHAPES: [(&str, [usize; 7]); 8] = [
    ("tiny", [2, 64, 4, 192, 98, 64, 64]),
    ("demo", [4, 64, 4, 192, 98, 32, 64]),
    ("0.8M", [4, 128, 4, 384, 98, 64, 64]),
    ("1M", [4, 128, 2, 512, 512, 256, 8]),
    ("4M", [5, 256, 4, 704, 1024, 256, 8]),
    ("12M", [6, 384, 6, 1024, 4096, 256, 8]),
    ("36M", [9, 576, 9, 1536, 4096, 256, 8]),
    ("100M", [12, 832, 13, 2240, 8192, 256, 8]),
];

/// Duration of the untimed steps before the timed ones.
const WARM_UP: Duration = Duration::from_secs(3);
/// Batches per step of the timed gradient accumulation.
const ACCUMULATED: usize = 4;

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
    let begun = Instant::now();
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [word, threads] = arguments.as_slice()
        && word == "peak"
    {
        println!("{{\"gflops\": {:.1}}}", peak_products(threads.parse()?));
        return Ok(());
    }
    let [name, dtype, steps, rest @ ..] = arguments.as_slice() else {
        return Err("use: train_speed SHAPE fp32|bf16|candle STEPS [THREADS] [checkpoint]".into());
    };
    let steps: u64 = steps.parse()?;
    if let Some(threads) = rest.first() {
        rayon::ThreadPoolBuilder::new().num_threads(threads.parse()?).build_global()?;
    }
    let known = || SHAPES.map(|(name, _)| name).join(", ");
    let Some((_, shape)) = SHAPES.iter().find(|(known, _)| known == name) else {
        return Err(format!("unknown shape {name}: use one of {}", known()).into());
    };
    let [layers, width, heads, inner, vocabulary, tokens, sequences] = *shape;
    let shape = Shape {
        hidden_size: width,
        intermediate_size: inner,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        max_position_embeddings: tokens,
        rope_theta: 10_000.0,
    };
    let config = ModelConfig::new(shape, Vocabulary { size: vocabulary, end: 1, pad: 0 })?;
    let layout = Arc::new(Layout::of(&config));
    let state = EngineState::new(layout.clone(), initial(&config, &layout, 1));
    let settings = Settings {
        precision: if dtype == "bf16" { Precision::Bf16 } else { Precision::F32 },
        gradient_checkpointing: rest.get(1).is_some_and(|word| word == "checkpoint"),
        backend: if dtype == "candle" { Backend::Candle(Device::Cpu) } else { Backend::Kernels },
    };
    let mut engine = engine(config.clone(), state, settings)?;
    let rates = Rates::standard(&layout, 0.01);
    let (mut times, mut accumulating, mut clipping, mut updating) = (vec![], vec![], vec![], vec![]);
    let (mut losses, mut first, mut used, mut warm) = (vec![], 0.0, 0.0, 0);
    for step in 0.. {
        // An idle processor needs time to reach its full clock rate.
        if warm == 0 && step >= 2 && begun.elapsed() >= WARM_UP {
            warm = step;
        }
        if warm > 0 && step == warm + steps {
            break;
        }
        let batch = random(step, vocabulary, tokens, sequences);
        let before = processor()?;
        let start = Instant::now();
        engine.clear_gradients()?;
        losses.push(engine.accumulate(&batch, batch.targets.len())?);
        let gradient = Instant::now();
        let norm = engine.gradient_norm()?;
        let clipped = Instant::now();
        let scale = (1.0 / norm).min(1.0);
        engine.update(&AdamW {
            step,
            rate: 1e-3,
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            scale,
            rates: &rates,
            muon: None,
        })?;
        let end = Instant::now();
        if step == 0 {
            first = (end - begun).as_secs_f64();
        }
        if warm == 0 {
            continue;
        }
        used += processor()? - before;
        times.push((end - start).as_secs_f64());
        clipping.push((clipped - gradient).as_secs_f64());
        updating.push((end - clipped).as_secs_f64());
        // Accumulate right after the single batch, so that both see the same load.
        let added = Instant::now();
        engine.clear_gradients()?;
        for _ in 0..ACCUMULATED {
            engine.accumulate(&batch, ACCUMULATED * batch.targets.len())?;
        }
        let alone = (gradient - start).as_secs_f64() * ACCUMULATED as f64;
        accumulating.push(added.elapsed().as_secs_f64() / alone - 1.0);
    }
    let processor_seconds = used / steps as f64;
    let per_step = median(&mut times);
    let batch = random(0, vocabulary, tokens, sequences);
    println!(
        "{{\"shape\": \"{name}\", \"path\": \"{}\", \"parameters\": {}, \"threads\": {}, \"tokens_per_second\": {:.0}, \
         \"gflops\": {:.1}, \"peak_gflops\": {:.1}, \"step_seconds\": {per_step:.5}, \"fastest_seconds\": {:.5}, \"processor_seconds\": {:.5}, \"clip_share\": {:.4}, \
         \"accumulation_cost\": {:.4}, \"update_share\": {:.4}, \"first_step_seconds\": {first:.3}, \"peak_mb\": {:.0}, \"held_mb\": {:.0}, \
         \"loss\": [{:.4}, {:.4}]}}",
        engine.path(),
        config.parameters(),
        rayon::current_num_threads(),
        batch.tokens.len() as f64 / per_step,
        flops(&config, &layout, &batch) / per_step / 1e9,
        engine.peak_flops()? / 1e9,
        times[0],
        processor_seconds,
        median(&mut clipping) / per_step,
        median(&mut accumulating),
        median(&mut updating) / per_step,
        peak()?,
        engine.memory() as f64 / 1e6,
        losses[0],
        losses[losses.len() - 1],
    );
    Ok(())
}

/// Returns the GFLOP/s of large `f32` products, one per thread: the fastest of eight.
fn peak_products(threads: usize) -> f64 {
    const SIZE: usize = 1024;
    let product = || {
        let (a, b, mut c) = (vec![0.5_f32; SIZE * SIZE], vec![0.25_f32; SIZE * SIZE], vec![0.0_f32; SIZE * SIZE]);
        let mut fastest = f64::INFINITY;
        for _ in 0..8 {
            let start = Instant::now();
            // SAFETY: three separate matrices of SIZE × SIZE elements; the strides stay inside them.
            #[allow(unsafe_code)]
            unsafe {
                gemm::gemm(
                    SIZE,
                    SIZE,
                    SIZE,
                    c.as_mut_ptr(),
                    1,
                    SIZE.cast_signed(),
                    false,
                    a.as_ptr(),
                    1,
                    SIZE.cast_signed(),
                    b.as_ptr(),
                    1,
                    SIZE.cast_signed(),
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                );
            }
            fastest = fastest.min(start.elapsed().as_secs_f64());
        }
        2.0 * (SIZE * SIZE * SIZE) as f64 / fastest / 1e9
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(product)).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).sum()
    })
}

/// Sorts the values and returns the median.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Returns a batch of random token ids, all of them targets.
fn random(step: u64, vocabulary: usize, tokens: usize, sequences: usize) -> Packed {
    let mut state = step.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocabulary as u64) as u32
    };
    let all: Vec<Vec<u32>> = (0..sequences).map(|_| (0..=tokens).map(|_| next()).collect()).collect();
    Packed::new(all.iter().map(|ids| (ids.as_slice(), 1)))
}

/// Returns the CPU seconds of this process.
fn processor() -> Result<f64, Failure> {
    /// Linux reports hundredths of a second, whatever its internal clock.
    const PER_SECOND: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat")?;
    // After the name, which may contain anything, fields 12 and 13 are user and system time.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let [user, system] = [11, 12].map(|at| fields.get(at).and_then(|field| field.parse::<f64>().ok()));
    Ok((user.unwrap_or_default() + system.unwrap_or_default()) / PER_SECOND)
}

/// Returns the peak resident set in megabytes.
fn peak() -> Result<f64, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM in /proc/self/status")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1e3)
}
