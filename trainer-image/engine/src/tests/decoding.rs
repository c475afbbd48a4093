//! Tests of generation: its bits are those of a training forward pass, and its logits agree with candle.

use super::*;
use crate::cpu::{Bf16, CpuDecoder, CpuEngine, Dtype};

/// Feeds `tokens` into slot 0: `prompt` tokens as a prompt, the others one at a time. Returns the logits after each call.
fn feed(decoder: &mut dyn Decoder, tokens: &[u32], prompt: usize) -> Vec<f32> {
    decoder.prefill(0, &tokens[..prompt]).unwrap();
    let mut rows = Vec::new();
    for at in prompt..=tokens.len() {
        rows.extend(decoder.logits().unwrap().rows);
        if let Some(token) = tokens.get(at) {
            assert_eq!(decoder.push(0, *token), None);
        }
    }
    decoder.release(0);
    rows
}

/// Makes a decoder of two slots from parameters.
fn loaded<N: Dtype>(config: &ModelConfig, parameters: &[f32]) -> CpuDecoder<N> {
    let mut read = |range: std::ops::Range<usize>, to: &mut [f32]| -> Result<(), EngineError> {
        to.copy_from_slice(&parameters[range]);
        Ok(())
    };
    CpuDecoder::load(config, 2, &mut read).unwrap()
}

/// Token ids without the end token.
fn words(count: usize, seed: u32) -> Vec<u32> {
    ids(count, seed).into_iter().map(|id| if id == 1 { 2 } else { id }).collect()
}

/// Asserts that cached decoding and prompts in chunks have the bits of a forward pass over the whole sequence.
fn assert_same_bits<N: Dtype>(config: &ModelConfig, state: &EngineState) {
    let tokens = words(45, 9);
    let vocabulary = config.vocab_size;
    let mut engine = CpuEngine::<N>::new(config, state.clone(), Settings::default()).unwrap();
    let sequence = [tokens.as_slice(), &[2]].concat();
    let whole = engine.logits(&Packed::new([(&words(20, 5)[..], 1), (&sequence[..], 1)]));
    let whole = &whole[19 * vocabulary..];
    let bits = |rows: &[f32]| rows.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    for rows in [512, 7, 1] {
        for prompt in [1, 33, 40, 45] {
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let found = pool.install(|| {
                    let mut decoder = loaded::<N>(config, &state.parameters).with_rows(rows);
                    // Another sequence beside it changes nothing.
                    decoder.prefill(1, &words(11, 7)).unwrap();
                    decoder.prefill(0, &words(30, 8)).unwrap();
                    decoder.release(0);
                    let mut alone = Vec::new();
                    decoder.prefill(0, &tokens[..prompt]).unwrap();
                    for at in prompt..=tokens.len() {
                        let logits = decoder.logits().unwrap();
                        assert_eq!(logits.slots, [0, 1]);
                        alone.extend_from_slice(&logits.rows[..vocabulary]);
                        decoder.push(1, 3);
                        if let Some(token) = tokens.get(at) {
                            decoder.push(0, *token);
                        }
                    }
                    alone
                });
                let expected = &whole[(prompt - 1) * vocabulary..];
                assert!(bits(&found) == bits(expected), "{rows} rows, prompt of {prompt}, {threads} threads");
            }
        }
    }
}

#[test]
fn decoding_has_the_bits_of_training() {
    for config in shapes() {
        assert_same_bits::<f32>(&config, &state(&config, 3));
        assert_same_bits::<Bf16>(&config, &state(&config, 3));
    }
}

#[test]
fn weights_of_eight_bits_have_the_bits_of_bf16() {
    for config in shapes() {
        let before = state(&config, 3);
        let mut rounded = before.clone();
        for tensor in Layout::of(&config).tensors() {
            round_to_eight_bits(&config, tensor, &mut rounded.parameters[tensor.range.clone()]);
        }
        assert!(rounded.parameters != before.parameters);
        let memory = |state: &EngineState| loaded::<Bf16>(&config, &state.parameters).memory();
        assert!(memory(&rounded) < memory(&before));
        assert_same_bits::<Bf16>(&config, &rounded);
    }
}

/// Decodes prompts that begin alike in four slots, some at once and one after another in a slot that was used before, and asserts
/// that each has the bits that it has alone.
fn assert_shared_prompts_have_their_bits<N: Dtype>(config: &ModelConfig) {
    let parameters = state(config, 3).parameters;
    let with_end = |start: &[u32], seed: u32| [start, &words(9, seed)].concat();
    let (system, other) = (words(21, 9), words(19, 70));
    let prompts =
        [with_end(&system, 5), system.clone(), with_end(&system, 7), with_end(&other, 8), with_end(&other, 6)];
    let bits = |rows: &[f32]| rows.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let alone = |prompt: &[u32]| feed(&mut loaded::<N>(config, &parameters), prompt, prompt.len());
    for rows in [512, 6] {
        let mut read = |range: std::ops::Range<usize>, to: &mut [f32]| -> Result<(), EngineError> {
            to.copy_from_slice(&parameters[range]);
            Ok(())
        };
        let mut decoder = CpuDecoder::<N>::load(config, 4, &mut read).unwrap().with_rows(rows);
        let computed = |decoder: &CpuDecoder<N>| -> Vec<usize> {
            decoder.slots().used().map(|(_, slot)| slot.pending.len()).collect()
        };
        for (slot, prompt) in prompts[..3].iter().enumerate() {
            decoder.prefill(slot, prompt).unwrap();
        }
        decoder.share();
        // The last token of a prompt is computed even if all of it is shared.
        assert_eq!(computed(&decoder), [10, 1, 10]);
        let logits = decoder.logits().unwrap();
        for (found, prompt) in logits.rows.chunks_exact(config.vocab_size).zip(&prompts) {
            assert!(bits(found) == bits(&alone(prompt)), "{rows}");
        }
        (0..3).for_each(|slot| decoder.release(slot));
        decoder.prefill(3, &prompts[3]).unwrap();
        decoder.share();
        assert_eq!(computed(&decoder), [28], "no slot holds this prompt");
        assert!(bits(&decoder.logits().unwrap().rows) == bits(&alone(&prompts[3])));
        assert_eq!(decoder.push(3, 2), None);
        // While slot 3 goes on, slot 0 takes over what it began with, and slot 1 what slot 2 holds.
        decoder.prefill(0, &prompts[4]).unwrap();
        decoder.prefill(1, &prompts[2]).unwrap();
        decoder.share();
        assert_eq!(computed(&decoder), [9, 1, 1]);
        let logits = decoder.logits().unwrap();
        let longer = [prompts[3].as_slice(), &[2]].concat();
        for (found, prompt) in logits.rows.chunks_exact(config.vocab_size).zip([&prompts[4], &prompts[2], &longer]) {
            assert!(bits(found) == bits(&alone(prompt)), "{rows}");
        }
    }
}

#[test]
fn prompts_that_begin_alike_have_the_bits_that_they_have_alone() {
    for config in shapes() {
        assert_shared_prompts_have_their_bits::<f32>(&config);
        assert_shared_prompts_have_their_bits::<Bf16>(&config);
    }
}

#[test]
fn logits_agree_with_candle() {
    for config in shapes() {
        let parameters = state(&config, 3).parameters;
        let tokens = words(40, 9);
        let logits = |settings| feed(&mut *decoder(&config, &parameters, settings, 1).unwrap(), &tokens, 20);
        let expected = logits(Settings { backend: Backend::Candle(Device::Cpu), ..Settings::default() });
        let size = expected.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
        for (settings, share) in [(Settings::default(), 1e-4), (BF16, 0.06)] {
            for (found, expected) in logits(settings).iter().zip(&expected) {
                assert!((found - expected).abs() < share * size, "{found} {expected} of {size}");
            }
        }
    }
}

#[test]
fn slots_end_and_are_free_again() {
    let config = tiny();
    let parameters = state(&config, 3).parameters;
    let mut decoder = decoder(&config, &parameters, Settings::default(), 2).unwrap();
    assert!(decoder.step().unwrap().is_empty());
    decoder.prefill(1, &[5; 62]).unwrap();
    assert_eq!(decoder.slots().free(), Some(0));
    let said = decoder.prefill(1, &[5]).unwrap_err().to_string();
    assert_eq!(said, "slot 1 is in use: there are 2, and each takes one prompt at a time");
    let said = decoder.prefill(2, &[5]).unwrap_err().to_string();
    assert_eq!(said, "slot 2 does not exist: there are 2, and each takes one prompt at a time");
    assert!(matches!(decoder.prefill(0, &[5; 64]), Err(PromptError::TooLong { tokens: 64, context: 64 })));
    assert!(matches!(decoder.prefill(0, &[37]), Err(PromptError::Id { id: 37, vocabulary: 37 })));
    assert!(matches!(decoder.prefill(0, &[]), Err(PromptError::Empty)));
    decoder.logits().unwrap();
    assert_eq!(decoder.push(1, 2), None);
    decoder.logits().unwrap();
    assert_eq!(decoder.push(1, 2), Some(End::Context));
    assert_eq!(decoder.slots().free(), Some(0));
    decoder.prefill(0, &[3, 4]).unwrap();
    decoder.logits().unwrap();
    assert_eq!(decoder.push(0, config.eos_token_ids[0]), Some(End::Stop));
    assert!(decoder.logits().unwrap().slots.is_empty());
    assert!(decoder.memory() > 4 * parameters.len() / 2);
}

/// A cache of candle's decoder begins with room for 256 positions. The rows before and after it grew agree with the kernels.
#[test]
fn caches_of_candle_grow() {
    let config = ModelConfig { max_position_embeddings: 700, ..grouped() };
    let parameters = state(&config, 3).parameters;
    let tokens = words(540, 9);
    let logits = |backend| {
        let settings = Settings { backend, ..Settings::default() };
        let mut decoder = decoder(&config, &parameters, settings, 2).unwrap();
        // Another sequence, so that slots have caches of different sizes.
        decoder.prefill(1, &words(11, 7)).unwrap();
        decoder.prefill(0, &tokens[..250]).unwrap();
        let mut rows = Vec::new();
        for token in &tokens[250..] {
            rows.extend_from_slice(&decoder.logits().unwrap().rows[..config.vocab_size]);
            decoder.push(0, *token);
            decoder.push(1, 3);
        }
        rows
    };
    let (kernels, candle) = (logits(Backend::Kernels), logits(Backend::Candle(Device::Cpu)));
    let size = kernels.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
    for (found, expected) in candle.iter().zip(&kernels) {
        assert!((found - expected).abs() < 1e-4 * size, "{found} {expected} of {size}");
    }
}
