//! Times prefill and greedy decoding of a Hugging Face directory with `model.safetensors` in `bf16` or `f32`. Prints one JSON
//! object.
//!
//! `decode_speed DIRECTORY DTYPE [THREADS] [REFERENCE]`, where `DTYPE` is `fp32` or `bf16`, and `REFERENCE` is a JSON file
//! `{prompt, response, logits}` of another implementation: token ids, and the logits after the prompt.

use std::{env, fs, process::ExitCode, time::Instant};

use codex_engine::{Decoder, Layout, ModelConfig, Precision, Settings, decoder};
use safetensors::{Dtype, SafeTensors};

type Failure = Box<dyn std::error::Error>;

/// Tokens of the timed prompt.
const PROMPT: usize = 512;
/// Tokens that are decoded per slot.
const STEPS: usize = 64;

#[derive(serde::Deserialize)]
struct Reference {
    prompt: Vec<u32>,
    response: Vec<u32>,
    logits: Vec<f32>,
}

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
    let [directory, dtype, rest @ ..] = arguments.as_slice() else {
        return Err("use: decode_speed DIRECTORY fp32|bf16 [THREADS] [REFERENCE]".into());
    };
    if let Some(threads) = rest.first() {
        rayon::ThreadPoolBuilder::new().num_threads(threads.parse()?).build_global()?;
    }
    let config = ModelConfig::parse(&fs::read(format!("{directory}/config.json"))?)?;
    let begun = Instant::now();
    let parameters = load(&config, &fs::read(format!("{directory}/model.safetensors"))?)?;
    let precision = if dtype == "bf16" { Precision::Bf16 } else { Precision::F32 };
    let settings = Settings { precision, ..Settings::default() };
    let mut decoder = decoder(&config, &parameters, settings, 8)?;
    drop(parameters);
    let loaded = begun.elapsed().as_secs_f64();
    let checked = rest.get(1).map(|path| check(decoder.as_mut(), path)).transpose()?;
    let ids: Vec<u32> = (0..PROMPT as u32).map(|at| at * 7919 % config.vocab_size as u32).collect();
    let mut prefill = f64::INFINITY;
    for _ in 0..3 {
        decoder.prefill(0, &ids)?;
        let start = Instant::now();
        decoder.logits()?;
        prefill = prefill.min(start.elapsed().as_secs_f64());
        decoder.release(0);
        // Else the next round takes the prompt over.
        decoder.forget(0);
    }
    let alone = decode(decoder.as_mut(), 1, &ids[..64])?;
    let eight = decode(decoder.as_mut(), 8, &ids[..64])?;
    println!(
        "{{\"path\": \"{}\", \"parameters\": {}, \"threads\": {}, \"load_seconds\": {loaded:.2}, \"prefill_tokens_per_second\": {:.1}, \
         \"decode_1_tokens_per_second\": {alone:.1}, \"decode_8_tokens_per_second\": {eight:.1}, \"held_mb\": {:.0}{}}}",
        decoder.path(),
        config.parameters(),
        rayon::current_num_threads(),
        PROMPT as f64 / prefill,
        decoder.memory() as f64 / 1e6,
        checked.unwrap_or_default(),
    );
    Ok(())
}

/// Returns tokens per second over all slots: the best of three rounds.
fn decode(decoder: &mut dyn Decoder, slots: usize, prompt: &[u32]) -> Result<f64, Failure> {
    let mut best = 0.0_f64;
    for _ in 0..3 {
        for slot in 0..slots {
            decoder.prefill(slot, &prompt[slot..])?;
        }
        let mut start = Instant::now();
        for step in 0..=STEPS {
            let logits = decoder.logits()?;
            for (slot, row) in logits.slots.iter().zip(logits.rows.chunks_exact(logits.vocabulary)) {
                // Never the end token, so that all slots stay in use.
                decoder.push(*slot, 3 + u32::from(row[3] > row[4]));
            }
            if step == 0 {
                start = Instant::now();
            }
        }
        best = best.max((slots * STEPS) as f64 / start.elapsed().as_secs_f64());
        (0..slots).for_each(|slot| decoder.release(slot));
    }
    Ok(best)
}

/// Compares with another implementation.
fn check(decoder: &mut dyn Decoder, path: &str) -> Result<String, Failure> {
    let Reference { prompt, response, logits } = serde_json::from_slice(&fs::read(path)?)?;
    decoder.prefill(0, &prompt)?;
    let found = decoder.logits()?.rows;
    let largest = found.iter().zip(&logits).map(|(a, b)| (a - b).abs()).fold(0.0_f32, f32::max);
    let size = logits.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
    decoder.release(0);
    decoder.prefill(0, &prompt)?;
    let mut same = 0;
    for expected in &response {
        let emitted = decoder.step()?;
        if emitted.first().map(|one| one.token) != Some(*expected) {
            break;
        }
        same += 1;
        if emitted.iter().any(|one| one.end.is_some()) {
            break;
        }
    }
    decoder.release(0);
    let total = response.len();
    Ok(format!(
        ", \"largest_difference\": {largest:.2e}, \"largest_logit\": {size:.2}, \"equal_tokens\": \"{same} of {total}\""
    ))
}

/// Reads the parameters in the order of the layout.
fn load(config: &ModelConfig, bytes: &[u8]) -> Result<Vec<f32>, Failure> {
    let stored = SafeTensors::deserialize(bytes)?;
    let layout = Layout::of(config);
    let mut parameters = Vec::with_capacity(layout.size());
    for part in layout.tensors() {
        let tensor = stored.tensor(&part.name)?;
        match tensor.dtype() {
            Dtype::F32 => {
                parameters.extend(tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
            }
            Dtype::BF16 => parameters.extend(
                tensor
                    .data()
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|bytes| f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16)),
            ),
            other => return Err(format!("{} is {other:?}: use F32 or BF16", part.name).into()),
        }
    }
    Ok(parameters)
}
