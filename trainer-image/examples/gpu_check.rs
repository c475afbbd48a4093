//! Checks a GPU and measures it: compares losses and gradients with the kernels for processors, trains models of the shapes of
//! GPT-2 (124M) and SmolLM2-135M from seeds, and decodes. Prints a table in Markdown.
//!
//! `gpu_check` needs a GPU; without one it ends with exit code 2. `gpu_check rehearse` does the same with small shapes in candle on
//! the processor, to try the program itself: its speeds mean nothing. `make gpu-check` runs it.

use std::{
    env,
    fmt::Write as _,
    io::Write as _,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use codex::gpu;
use codex_engine::{
    AdamW, Backend, Device, Engine, EngineState, Family, Layout, Lora, ModelConfig, Packed, Precision, Projection,
    Rates, Settings, Shape, Vocabulary, check_cuda, decoder, engine, initial, lora_engine,
};

type Failure = Box<dyn std::error::Error>;

/// The longest time that one measurement of speed takes.
const MEASURED: Duration = Duration::from_secs(30);
/// Time after which no further measurement begins, so that the program ends within six minutes.
const ENOUGH: Duration = Duration::from_secs(300);

/// What is run: on a GPU, or small on a processor.
#[derive(Clone, Copy)]
struct Plan {
    device: Device,
    small: bool,
    begun: Instant,
}

impl Plan {
    fn settings(self, precision: Precision) -> Settings {
        // candle multiplies no bf16 on a processor.
        let precision = if self.device == Device::Cpu { Precision::F32 } else { precision };
        Settings { precision, gradient_checkpointing: false, backend: Backend::Candle(self.device) }
    }
}

fn main() -> ExitCode {
    let small = match env::args().nth(1).as_deref() {
        None => false,
        Some("rehearse") => true,
        Some(other) => {
            eprintln!("gpu_check: {other} is unknown: write rehearse, or nothing");
            return ExitCode::from(2);
        }
    };
    if !small && check_cuda().is_err() {
        eprintln!("gpu_check: no GPU is usable: build with --features cuda and run it where nvidia-smi lists a GPU");
        return ExitCode::from(2);
    }
    let device = if small { Device::Cpu } else { Device::Cuda };
    match run(Plan { device, small, begun: Instant::now() }) {
        Ok((table, agrees)) => {
            if let Err(error) = std::io::stdout().write_all(table.as_bytes()) {
                eprintln!("gpu_check: {error}");
                return ExitCode::FAILURE;
            }
            if agrees { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("gpu_check: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the table, and whether the GPU agrees with the processor.
fn run(plan: Plan) -> Result<(String, bool), Failure> {
    let mut table = String::new();
    describe(plan, &mut table)?;
    let agrees = agreement(plan, &mut table)?;
    training(plan, &mut table)?;
    decoding(plan, &mut table)?;
    writeln!(table, "\nTook {:.0} s.", plan.begun.elapsed().as_secs_f64())?;
    Ok((table, agrees))
}

fn describe(plan: Plan, table: &mut String) -> Result<(), Failure> {
    if plan.small {
        writeln!(table, "A rehearsal with small shapes on a processor: the speeds mean nothing.\n")?;
        return Ok(());
    }
    let sensors = gpu::sensors();
    let cuda = sensors.and_then(|sensors| sensors.cuda()).unwrap_or_else(|| "unknown".to_owned());
    match sensors.and_then(|sensors| sensors.describe().into_iter().next()) {
        Some(gpu::Gpu { name, memory_bytes, driver }) => writeln!(
            table,
            "{name}, {:.0} GB, driver {driver}, CUDA {cuda}; codex {}.\n",
            memory_bytes as f64 / 1e9,
            env!("CARGO_PKG_VERSION")
        )?,
        None => writeln!(table, "An unknown GPU (NVML is missing); codex {}.\n", env!("CARGO_PKG_VERSION"))?,
    }
    Ok(())
}

/// Returns small models of both families, with grouped heads and an untied output.
fn small_shapes() -> Result<[(&'static str, ModelConfig); 3], Failure> {
    let shape = Shape {
        hidden_size: 128,
        intermediate_size: 256,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        max_position_embeddings: 256,
        rope_theta: 10_000.0,
    };
    let llama = ModelConfig::new(shape, Vocabulary { size: 512, end: 1, pad: 0 })?;
    let grouped = ModelConfig { num_key_value_heads: 2, tie_word_embeddings: false, qkv_bias: true, ..llama.clone() };
    let gpt2 = ModelConfig { family: Family::Gpt2, bos_token_id: Some(1), ..llama.clone() };
    Ok([("Llama", llama), ("Qwen2, untied", grouped), ("GPT-2", gpt2)])
}

fn ids(count: usize, vocabulary: usize, seed: usize) -> Vec<u32> {
    let id = |at: usize| ((at + seed * 7919).wrapping_mul(2_654_435_761) >> 7) % vocabulary;
    (0..count).map(|at| id(at) as u32).collect()
}

/// Returns a batch of equally long sequences, all of whose tokens are targets.
fn batch(sequences: usize, tokens: usize, vocabulary: usize, seed: usize) -> Packed {
    let all: Vec<Vec<u32>> = (0..sequences).map(|at| ids(tokens, vocabulary, seed * sequences + at)).collect();
    Packed::new(all.iter().map(|ids| (ids.as_slice(), 1)))
}

/// Returns a batch of two pairs of sequences of several lengths, of whose tokens the last two thirds are targets.
fn uneven(vocabulary: usize) -> Packed {
    let all: Vec<Vec<u32>> = [97, 90, 41, 38].iter().map(|tokens| ids(*tokens, vocabulary, *tokens)).collect();
    Packed { noise: 5, ..Packed::new(all.iter().map(|ids| (ids.as_slice(), ids.len() / 3))) }
}

/// Weights of two sequences that depend on their losses, as those of preferences.
fn preferences(losses: &[f64]) -> Vec<f64> {
    let share = |difference: f64| 0.1 / (1.0 + (0.1 * difference).exp());
    losses.chunks_exact(2).flat_map(|it| [share(it[1] - it[0]), -share(it[1] - it[0])]).collect()
}

/// What is compared with the processor.
#[derive(Clone, Copy)]
enum Compared {
    All,
    Adapters,
    Preferences,
}

fn start(config: &ModelConfig, compared: Compared, settings: Settings) -> Result<Box<dyn Engine>, Failure> {
    let layout = Arc::new(Layout::of(config));
    let parameters = initial(config, &layout, 3);
    let Compared::Adapters = compared else {
        return Ok(engine(config.clone(), EngineState::new(layout, parameters), settings)?);
    };
    let lora = Lora { rank: 8, alpha: 16.0, dropout: 0.1, targets: Projection::ALL.into() };
    let layout = Arc::new(lora.layout(config)?);
    // Without zeros, so that every adapter has a gradient.
    let adapters = lora.initial(config, 4)?.iter().enumerate().map(|(at, x)| x + (at % 7) as f32 / 500.0).collect();
    Ok(lora_engine(config.clone(), &parameters, lora, EngineState::new(layout, adapters), settings)?)
}

/// Takes the gradients of a batch. Returns its loss.
fn gradients(engine: &mut dyn Engine, compared: Compared, batch: &Packed) -> Result<f64, Failure> {
    engine.clear_gradients()?;
    Ok(match compared {
        Compared::Preferences => engine.accumulate_weighted(batch, &mut preferences)?.iter().sum(),
        _ => engine.accumulate(batch, batch.targets.len())?,
    })
}

fn agreement(plan: Plan, table: &mut String) -> Result<bool, Failure> {
    writeln!(
        table,
        "| Compared with the kernels in fp32 | Type | Loss, relative | Gradients, of each tensor's largest | |"
    )?;
    writeln!(table, "|---|---|---|---|---|")?;
    let mut agrees = true;
    for (name, config) in small_shapes()? {
        for (what, compared) in
            [("all weights", Compared::All), ("LoRA", Compared::Adapters), ("preferences", Compared::Preferences)]
        {
            if matches!((compared, config.family), (Compared::Adapters, Family::Gpt2)) {
                continue;
            }
            let batch = uneven(config.vocab_size);
            let mut kernels = start(&config, compared, Settings::default())?;
            let expected = gradients(&mut *kernels, compared, &batch)?;
            for (dtype, precision, share) in
                [("fp32", Precision::F32, 2e-3), ("bf16", Precision::Bf16, 0.1), ("fp16", Precision::F16, 0.05)]
            {
                if plan.device == Device::Cpu && precision != Precision::F32 {
                    continue;
                }
                let mut here = start(&config, compared, plan.settings(precision))?;
                if precision == Precision::F16 {
                    here.scale_losses(1024.0);
                }
                let found = gradients(&mut *here, compared, &batch)?;
                let loss = ((found - expected) / expected).abs();
                let gradient = largest_difference(&*here, &*kernels)?;
                let right = loss < f64::from(share) && gradient < share;
                let repeats = repeats_its_bits(&mut *here, compared, &batch, found)?;
                agrees &= right && repeats;
                let mark = match (right, repeats) {
                    (true, true) => "agrees, and repeats its bits",
                    (true, false) => "agrees, but **does not repeat its bits**",
                    (false, _) => "**differs**",
                };
                writeln!(table, "| {name}, {what} | {dtype} | {loss:.1e} | {gradient:.1e} | {mark} |")?;
            }
        }
    }
    Ok(agrees)
}

/// Takes the gradients of the batch again. Whether they and the loss have the same bits, as an exact resume needs.
fn repeats_its_bits(engine: &mut dyn Engine, compared: Compared, batch: &Packed, loss: f64) -> Result<bool, Failure> {
    let before = engine.gradients()?.into_owned();
    let again = gradients(engine, compared, batch)?;
    let same = engine.gradients()?.iter().zip(&before).all(|(now, before)| now.to_bits() == before.to_bits());
    Ok(same && again.to_bits() == loss.to_bits())
}

/// Returns the largest difference of two gradients, as a share of the largest element of its tensor.
fn largest_difference(here: &dyn Engine, there: &dyn Engine) -> Result<f32, Failure> {
    let (here_all, there_all) = (here.gradients()?, there.gradients()?);
    let mut largest = 0.0_f32;
    for tensor in here.layout().tensors() {
        let (a, b) = (&here_all[tensor.range.clone()], &there_all[tensor.range.clone()]);
        let size = b.iter().fold(1e-12_f32, |top, x| top.max(x.abs()));
        for (a, b) in a.iter().zip(b) {
            let difference = (a - b).abs() / size;
            // NaN counts as a difference, too.
            largest = if difference.is_nan() { f32::INFINITY } else { largest.max(difference) };
        }
    }
    Ok(largest)
}

/// Returns the shape of GPT-2 with 124M parameters, and that of `SmolLM2`-135M with the same context.
fn real_shapes(small: bool) -> Result<[(&'static str, ModelConfig); 2], Failure> {
    let of = |layers, width, heads, inner, context, vocabulary, theta| {
        let shape = Shape {
            hidden_size: width,
            intermediate_size: inner,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            max_position_embeddings: context,
            rope_theta: theta,
        };
        ModelConfig::new(shape, Vocabulary { size: vocabulary, end: vocabulary as u32 - 1, pad: 0 })
    };
    let (gpt2, smol) = if small {
        (of(2, 64, 4, 256, 64, 500, 1e4)?, of(2, 64, 4, 128, 64, 500, 1e5)?)
    } else {
        (of(12, 768, 12, 3072, 1024, 50_257, 1e4)?, of(30, 576, 9, 1536, 1024, 49_152, 1e5)?)
    };
    let kv_heads = smol.num_attention_heads / if small { 2 } else { 3 };
    Ok([
        ("GPT-2 124M", ModelConfig { family: Family::Gpt2, bos_token_id: Some(1), ..gpt2 }),
        ("SmolLM2-135M", ModelConfig { num_key_value_heads: kv_heads, ..smol }),
    ])
}

/// Returns the memory in use, as the table writes it.
fn memory_in_use(plan: Plan) -> String {
    let used = || Some(gpu::sensors()?.read().first()?.memory?.0);
    let used = if plan.small { None } else { used() };
    used.map_or_else(|| "unknown".to_owned(), |bytes| format!("{:.1} GB", bytes as f64 / 1e9))
}

fn training(plan: Plan, table: &mut String) -> Result<(), Failure> {
    writeln!(
        table,
        "\n| Training, bf16, all weights | Sequences × tokens | Tokens/s | TFLOP/s | of large products | Memory | Loss, first to last |"
    )?;
    writeln!(table, "|---|---|---|---|---|---|---|")?;
    for (name, config) in real_shapes(plan.small)? {
        let (sequences, tokens) = (if plan.small { 2 } else { 16 }, config.max_position_embeddings);
        if plan.begun.elapsed() > ENOUGH {
            writeln!(table, "| {name} | {sequences} × {tokens} | not run: no time left | | | | |")?;
            continue;
        }
        let layout = Arc::new(Layout::of(&config));
        let state = EngineState::new(layout.clone(), initial(&config, &layout, 1));
        let mut engine = engine(config.clone(), state, plan.settings(Precision::Bf16))?;
        let rates = Rates::standard(&layout, 0.1);
        // The same batch again and again: the loss must fall.
        let batch = batch(sequences, tokens, config.vocab_size, 9);
        let (mut losses, mut timed, mut begun) = (Vec::new(), 0_u32, Instant::now());
        let limit = if plan.small { Duration::from_secs(1) } else { MEASURED };
        for step in 0..1000 {
            // The first steps allocate memory and load kernels.
            if step == 3 {
                begun = Instant::now();
            }
            engine.clear_gradients()?;
            losses.push(engine.accumulate(&batch, batch.targets.len())?);
            let scale = (1.0 / engine.gradient_norm()?).min(1.0);
            let rate = 3e-4;
            engine.update(&AdamW {
                step,
                rate,
                beta1: 0.9,
                beta2: 0.95,
                epsilon: 1e-8,
                scale,
                rates: &rates,
                muon: None,
            })?;
            if step >= 3 {
                timed += 1;
                if begun.elapsed() > limit {
                    break;
                }
            }
        }
        // Waits for the device.
        drop(engine.parameters()?);
        let seconds = begun.elapsed().as_secs_f64();
        let speed = f64::from(timed) * batch.tokens.len() as f64 / seconds;
        let flops = f64::from(timed) * engine.flops(&batch) / seconds / 1e12;
        let [Some(first), Some(last)] = [losses.first(), losses.last()] else { return Err("no step was taken".into()) };
        if !last.is_finite() || last >= first {
            return Err(
                format!("{name}: the loss went from {first} to {last} on one batch: training does not work").into()
            );
        }
        let memory = memory_in_use(plan);
        let peak = engine.peak_flops()? / 1e12;
        writeln!(
            table,
            "| {name} | {sequences} × {tokens} | {speed:.0} | {flops:.1} | {peak:.1} | {memory} | {first:.3} to {last:.3} |"
        )?;
    }
    Ok(())
}

fn decoding(plan: Plan, table: &mut String) -> Result<(), Failure> {
    writeln!(table, "\n| Decoding, bf16, greedy, after prompts of 64 tokens | Batch | Tokens/s | ms per step |")?;
    writeln!(table, "|---|---|---|---|")?;
    for (name, config) in real_shapes(plan.small)? {
        let (prompt, most) = if plan.small { (8, 16) } else { (64, 256) };
        let parameters = initial(&config, &Layout::of(&config), 1);
        for slots in [1, 8, 64] {
            if plan.begun.elapsed() > ENOUGH {
                writeln!(table, "| {name} | {slots} | not run: no time left | |")?;
                continue;
            }
            let mut decoder = decoder(&config, &parameters, plan.settings(Precision::Bf16), slots)?;
            for slot in 0..slots {
                decoder.prefill(slot, &ids(prompt, config.vocab_size, slot))?;
            }
            // Any token but the one that ends a response.
            let end = config.vocab_size - 1;
            let mut choose = |_: usize, logits: &[f32]| {
                let best = logits[..end].iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
                best.map_or(0, |(id, _)| id as u32)
            };
            // The first step processes the prompts.
            decoder.step_by(&mut choose)?;
            let (begun, mut steps) = (Instant::now(), 0_u32);
            while steps < most && begun.elapsed() < MEASURED / 3 {
                if decoder.step_by(&mut choose)?.len() != slots {
                    return Err(format!("{name}: a slot of {slots} ended early").into());
                }
                steps += 1;
            }
            let seconds = begun.elapsed().as_secs_f64();
            let (speed, step) = (f64::from(steps) * slots as f64 / seconds, 1e3 * seconds / f64::from(steps));
            writeln!(table, "| {name} | {slots} | {speed:.0} | {step:.2} |")?;
        }
    }
    Ok(())
}
