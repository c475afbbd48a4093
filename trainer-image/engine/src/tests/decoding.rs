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
fn assert_same_bits<N: Dtype>(config: &ModelConfig) {
    let state = state(config, 3);
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
        assert_same_bits::<f32>(&config);
        assert_same_bits::<Bf16>(&config);
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
