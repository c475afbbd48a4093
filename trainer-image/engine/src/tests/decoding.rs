//! Tests of generation: its bits are those of a training forward pass, and its logits agree with candle.

use proptest::prelude::*;

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

/// Rounds parameters, so that a decoder holds them in eight bits.
fn in_eight_bits(config: &ModelConfig, mut parameters: Vec<f32>) -> Vec<f32> {
    for tensor in Layout::of(config).tensors() {
        round_to_eight_bits(config, tensor, &mut parameters[tensor.range.clone()]);
    }
    parameters
}

#[test]
fn weights_of_eight_bits_have_the_bits_of_bf16() {
    for config in shapes() {
        let before = state(&config, 3);
        let mut rounded = before.clone();
        rounded.parameters = in_eight_bits(&config, rounded.parameters);
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
        let all = usize::MAX;
        let computed = |decoder: &CpuDecoder<N>| -> Vec<usize> {
            decoder.slots().used().map(|(_, slot)| slot.pending.len()).collect()
        };
        for (slot, prompt) in prompts[..3].iter().enumerate() {
            decoder.prefill(slot, prompt).unwrap();
        }
        decoder.share(all);
        // The last token of a prompt is computed even if all of it is shared.
        assert_eq!(computed(&decoder), [10, 1, 10]);
        // What the prompts share was computed for the first of them.
        assert_eq!([0, 1, 2].map(|slot| decoder.reused(slot)), [0, 20, 20]);
        let logits = decoder.logits().unwrap();
        for (found, prompt) in logits.rows.chunks_exact(config.vocab_size).zip(&prompts) {
            assert!(bits(found) == bits(&alone(prompt)), "{rows}");
        }
        (0..3).for_each(|slot| decoder.release(slot));
        decoder.prefill(3, &prompts[3]).unwrap();
        decoder.share(all);
        assert_eq!(computed(&decoder), [28], "no slot holds this prompt");
        assert!(bits(&decoder.logits().unwrap().rows) == bits(&alone(&prompts[3])));
        assert_eq!(decoder.push(3, 2), None);
        // While slot 3 goes on, slot 0 takes over what it began with, and slot 1 what slot 2 holds.
        decoder.prefill(0, &prompts[4]).unwrap();
        decoder.prefill(1, &prompts[2]).unwrap();
        decoder.share(all);
        assert_eq!(computed(&decoder), [9, 1, 1]);
        assert_eq!([0, 1].map(|slot| decoder.reused(slot)), [19, 29]);
        let logits = decoder.logits().unwrap();
        let longer = [prompts[3].as_slice(), &[2]].concat();
        for (found, prompt) in logits.rows.chunks_exact(config.vocab_size).zip([&prompts[4], &prompts[2], &longer]) {
            assert!(bits(found) == bits(&alone(prompt)), "{rows}");
        }
    }
}

/// A slot that forgot what it held computes a prompt again, with the same bits.
#[test]
fn a_slot_forgets_what_it_held() {
    for config in shapes() {
        let parameters = state(&config, 3).parameters;
        let mut decoder = loaded::<f32>(&config, &parameters);
        let prompt = words(30, 9);
        let first = feed(&mut decoder, &prompt, 30);
        let full = decoder.memory();
        assert_eq!((decoder.held(0), decoder.reused(0)), (prompt.as_slice(), 0));
        assert_eq!((feed(&mut decoder, &prompt, 30), decoder.reused(0)), (first.clone(), 29));
        decoder.forget(0);
        assert!(decoder.held(0).is_empty() && decoder.memory() < full);
        assert_eq!((feed(&mut decoder, &prompt, 30), decoder.reused(0)), (first, 0));
        decoder.prefill(0, &prompt).unwrap();
        decoder.logits().unwrap();
        decoder.forget(0);
        assert_eq!(decoder.held(0), prompt, "a slot in use forgets nothing");
    }
}

#[test]
fn prompts_that_begin_alike_have_the_bits_that_they_have_alone() {
    for config in shapes() {
        assert_shared_prompts_have_their_bits::<f32>(&config);
        assert_shared_prompts_have_their_bits::<Bf16>(&config);
    }
}

/// A step of a schedule: what happens before it, and its budget.
#[derive(Clone, Debug)]
enum Act {
    /// Puts one of the prompts into a free slot.
    Begin(usize),
    /// Releases the slot, also in the middle of its prompt.
    Abandon(usize),
    /// Empties the slot if it is free.
    Forget(usize),
    /// A step within this budget.
    Step(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        3 => (0_usize..PROMPTS).prop_map(Act::Begin),
        1 => (0_usize..SLOTS).prop_map(Act::Abandon),
        1 => (0_usize..SLOTS).prop_map(Act::Forget),
        6 => prop_oneof![1_usize..8, 8_usize..40, Just(usize::MAX)].prop_map(Act::Step),
    ];
    prop::collection::vec(act, 1..40)
}

const SLOTS: usize = 3;
const PROMPTS: usize = 6;

/// Returns prompts of which some begin alike, and one is a single token.
fn prompts() -> [Vec<u32>; PROMPTS] {
    let (system, other) = (words(21, 9), words(19, 70));
    let with = |start: &[u32], count: usize, seed: u32| [start, &words(count, seed)].concat();
    [with(&system, 9, 5), system.clone(), with(&system, 17, 7), with(&other, 8, 8), with(&other, 2, 6), vec![5]]
}

/// Runs a schedule, and asserts that each slot has the logits that its prompt has alone, and that a step keeps to its budget.
fn assert_a_schedule_changes_no_bit<N: Dtype>(parameters: &[f32], acts: &[Act], rows: usize) {
    const MOST: usize = 3;
    let config = tiny();
    let bits = |rows: &[f32]| rows.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    // What each prompt gives alone, with the same tokens after it.
    let alone = prompts().map(|prompt| {
        let tokens = [prompt.as_slice(), &[3; MOST - 1]].concat();
        let rows = feed(&mut loaded::<N>(&config, parameters), &tokens, prompt.len());
        rows.chunks_exact(config.vocab_size).map(bits).collect::<Vec<_>>()
    });
    let mut read = |range: std::ops::Range<usize>, to: &mut [f32]| -> Result<(), EngineError> {
        to.copy_from_slice(&parameters[range]);
        Ok(())
    };
    let mut decoder = CpuDecoder::<N>::load(&config, SLOTS, &mut read).unwrap().with_rows(rows);
    // The prompt of each slot, and how many tokens it has yielded.
    let mut running: [Option<(usize, usize)>; SLOTS] = [None; SLOTS];
    let step = |decoder: &mut CpuDecoder<N>, running: &mut [Option<(usize, usize)>; SLOTS], budget: usize| {
        let responds = |slot: &usize| running[*slot].is_some_and(|(_, yielded)| yielded > 0);
        let responding: Vec<usize> = (0..SLOTS).filter(responds).collect();
        let logits = decoder.logits_within(budget).unwrap();
        assert!(responding.iter().all(|slot| logits.slots.contains(slot)), "a response waited: {logits:?}");
        // Responses go on in any case, and so does a prompt.
        assert!(decoder.slots().computed() <= budget.max(SLOTS + 1), "{budget}");
        for (slot, row) in logits.slots.iter().zip(logits.rows.chunks_exact(config.vocab_size)) {
            let (prompt, yielded) = running[*slot].unwrap();
            assert!(bits(row) == alone[prompt][yielded], "prompt {prompt}, token {yielded}");
            assert_eq!(decoder.push(*slot, 3), None);
            running[*slot] = Some((prompt, yielded + 1)).filter(|(_, yielded)| *yielded < MOST);
            if running[*slot].is_none() {
                decoder.release(*slot);
            }
        }
    };
    for act in acts {
        match *act {
            Act::Begin(prompt) => {
                let Some(slot) = decoder.slots().free() else { continue };
                decoder.prefill(slot, &prompts()[prompt]).unwrap();
                running[slot] = Some((prompt, 0));
            }
            Act::Abandon(slot) => {
                decoder.release(slot);
                running[slot] = None;
            }
            Act::Forget(slot) => decoder.forget(slot),
            Act::Step(budget) => step(&mut decoder, &mut running, budget),
        }
    }
    // Every prompt comes to its end, however small the budget.
    for _ in 0..SLOTS * (40 + MOST) {
        step(&mut decoder, &mut running, 1);
    }
    assert_eq!(running, [None; SLOTS]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_schedule_of_chunks_changes_a_bit(acts in acts(), rows in prop_oneof![Just(512_usize), Just(5), Just(1)]) {
        let parameters = state(&tiny(), 3).parameters;
        assert_a_schedule_changes_no_bit::<f32>(&parameters, &acts, rows);
        assert_a_schedule_changes_no_bit::<Bf16>(&parameters, &acts, rows);
        assert_a_schedule_changes_no_bit::<Bf16>(&in_eight_bits(&tiny(), parameters), &acts, rows);
    }
}

/// Steps share their budget between responses and prompts, in the order in which the prompts came.
#[test]
fn a_budget_is_shared_out_in_order() {
    let config = tiny();
    let parameters = state(&config, 3).parameters;
    let settings = [Settings::default(), Settings { backend: Backend::Candle(Device::Cpu), ..Settings::default() }];
    for settings in settings {
        let mut decoder = decoder(&config, &parameters, settings, 4).unwrap();
        decoder.prefill(2, &words(5, 1)).unwrap();
        assert_eq!(decoder.logits_within(5).unwrap().slots, [2]);
        assert_eq!(decoder.push(2, 3), None);
        decoder.prefill(3, &words(20, 2)).unwrap();
        decoder.prefill(0, &words(6, 3)).unwrap();
        // One token of the response and seven of the prompt that came first, and so on.
        for (budget, ready) in [(8, vec![2]), (8, vec![2]), (9, vec![2, 3]), (1, vec![2, 3])] {
            let found = decoder.logits_within(budget).unwrap();
            assert_eq!(found.slots, ready, "{}", decoder.path());
            assert_eq!(found.rows.len(), ready.len() * config.vocab_size);
            assert_eq!(decoder.slots().computed(), budget.max(ready.len() + usize::from(budget == 1)));
            for slot in found.slots {
                assert_eq!(decoder.push(slot, 3), None);
            }
        }
        // Two tokens of the last prompt were computed with the third budget, and one with the fourth.
        assert_eq!(decoder.logits_within(5).unwrap().slots, [0, 2, 3]);
        assert_eq!(decoder.slots().computed(), 5);
    }
}

/// A prompt that waits for the budget takes over what the prompts before it have computed meanwhile.
#[test]
fn a_prompt_that_waits_takes_over_more() {
    let config = tiny();
    let parameters = state(&config, 3).parameters;
    let mut decoder = loaded::<f32>(&config, &parameters);
    let prompt = words(40, 9);
    for slot in [0, 1] {
        decoder.prefill(slot, &prompt).unwrap();
    }
    for _ in 0..2 {
        assert!(decoder.logits_within(16).unwrap().slots.is_empty());
        assert_eq!(decoder.slots().computed(), 16);
    }
    // The rest of the first prompt, and what the second one does not take over of it.
    let found = decoder.logits_within(16).unwrap();
    assert_eq!((found.slots, decoder.slots().computed()), (vec![0, 1], 16));
    assert_eq!([0, 1].map(|slot| decoder.reused(slot)), [0, 32]);
    let alone = feed(&mut loaded::<f32>(&config, &parameters), &prompt, 40);
    assert!(found.rows.chunks_exact(config.vocab_size).all(|row| row == alone));
}

/// Runs steps within a budget until slot 0 yields its first token, and returns the log-probabilities of its prompt.
fn scores_of_prompt(decoder: &mut dyn Decoder, budget: usize) -> Vec<LogProbabilities> {
    let mut found = Vec::new();
    loop {
        let step = decoder.step_within(budget, &mut |_, _| 3).unwrap();
        found.extend(step.scored.into_iter().filter(|(slot, _)| *slot == 0).map(|(_, scores)| scores));
        if step.emitted.iter().any(|emitted| emitted.slot == 0) {
            return found;
        }
    }
}

/// Asserts that the scores of a prompt have the bits of a forward pass over the whole sequence, whatever slots hold and beside any
/// other prompt.
fn assert_scores_have_the_bits_of_training<N: Dtype>(config: &ModelConfig) {
    let state = state(config, 3);
    let tokens = words(45, 9);
    let mut engine = CpuEngine::<N>::new(config, state.clone(), Settings::default()).unwrap();
    let whole = engine.logits(&Packed::new([(&tokens[..], 1)]));
    let expected: Vec<LogProbabilities> = tokens[1..]
        .iter()
        .zip(whole.chunks_exact(config.vocab_size))
        .map(|(token, row)| LogProbabilities::of(row, *token, 2))
        .collect();
    for rows in [512, 7, 1] {
        for budget in [usize::MAX, 20, 1] {
            let mut decoder = loaded::<N>(config, &state.parameters).with_rows(rows);
            decoder.prefill(0, &tokens[..30]).unwrap();
            decoder.logits().unwrap();
            decoder.release(0);
            // The other prompt begins alike, and may take over what the first slot holds.
            decoder.prefill_scored(0, &tokens, 2).unwrap();
            decoder.prefill(1, &tokens[..25]).unwrap();
            let found = scores_of_prompt(&mut decoder, budget);
            assert!(found == expected, "{rows} rows, budget {budget}");
            assert_eq!(decoder.reused(0), 0, "a prompt that is scored takes over nothing");
            decoder.release(0);
            // Nor does it stay scored.
            decoder.prefill(0, &tokens).unwrap();
            assert!(scores_of_prompt(&mut decoder, budget).is_empty());
            assert_eq!(decoder.reused(0), 44);
        }
    }
}

#[test]
fn scores_of_prompts_have_the_bits_of_training() {
    for config in shapes() {
        assert_scores_have_the_bits_of_training::<f32>(&config);
        assert_scores_have_the_bits_of_training::<Bf16>(&config);
    }
}

#[test]
fn scores_of_prompts_agree_with_candle() {
    for config in shapes() {
        let parameters = state(&config, 3).parameters;
        let tokens = words(40, 9);
        let scores = |backend, budget| {
            let settings = Settings { backend, ..Settings::default() };
            let mut decoder = decoder(&config, &parameters, settings, 2).unwrap();
            decoder.prefill(1, &words(11, 7)).unwrap();
            decoder.prefill_scored(0, &tokens, 1).unwrap();
            scores_of_prompt(&mut *decoder, budget)
        };
        let kernels = scores(Backend::Kernels, usize::MAX);
        assert_eq!(kernels.len(), 39);
        for budget in [usize::MAX, 9] {
            let candle = scores(Backend::Candle(Device::Cpu), budget);
            assert_eq!(candle.len(), kernels.len());
            for (found, expected) in candle.iter().zip(&kernels) {
                assert!((found.chosen - expected.chosen).abs() < 1e-3, "{found:?} {expected:?}");
                assert!((found.top[0].1 - expected.top[0].1).abs() < 1e-3, "{found:?} {expected:?}");
            }
        }
    }
}

/// Asserts that hidden states beside logits have the bits of a forward pass over the whole sequence, whatever is computed beside them, and
/// that no logit changes.
fn assert_states_have_the_bits_of_training<N: Dtype>(config: &ModelConfig) {
    let state = state(config, 3);
    let (tokens, hidden) = (words(45, 9), config.hidden_size);
    let mut engine = CpuEngine::<N>::new(config, state.clone(), Settings::default()).unwrap();
    // The last token of a packed sequence is a target only, so one more is needed to have the states of all.
    let longer: Vec<u32> = tokens.iter().copied().chain([0]).collect();
    let whole = engine.hidden_states(&Packed::new([(&longer[..], 1)])).unwrap();
    assert_eq!(whole.len(), tokens.len() * hidden);
    let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    for rows in [512, 7, 1] {
        for prompt in [1, 33, 45] {
            let mut decoder = loaded::<N>(config, &state.parameters).with_rows(rows);
            let plain = feed(&mut decoder, &tokens, prompt);
            decoder.return_states();
            decoder.prefill(1, &words(11, 7)).unwrap();
            // It takes over what the slot held before.
            decoder.prefill(0, &tokens[..prompt]).unwrap();
            let mut found = Vec::new();
            for at in prompt..=tokens.len() {
                let logits = decoder.logits().unwrap();
                assert_eq!((&logits.slots[..], logits.states.len()), (&[0, 1][..], 2 * hidden));
                found.extend_from_slice(&logits.rows[..config.vocab_size]);
                let expected = &whole[(at - 1) * hidden..at * hidden];
                assert!(bits(&logits.states[..hidden]) == bits(expected), "{rows} rows, prompt of {prompt}, {at}");
                decoder.push(1, 3);
                if let Some(token) = tokens.get(at) {
                    decoder.push(0, *token);
                }
            }
            assert!(bits(&found) == bits(&plain), "{rows} rows, prompt of {prompt}");
        }
    }
}

#[test]
fn states_have_the_bits_of_training() {
    for config in shapes() {
        assert_states_have_the_bits_of_training::<f32>(&config);
        assert_states_have_the_bits_of_training::<Bf16>(&config);
    }
}

#[test]
fn states_agree_with_candle_and_come_only_when_asked_for() {
    for config in shapes() {
        let parameters = state(&config, 3).parameters;
        let states = |backend, asks: bool| {
            let settings = Settings { backend, ..Settings::default() };
            let mut decoder = decoder(&config, &parameters, settings, 2).unwrap();
            if asks {
                decoder.return_states();
            }
            decoder.prefill(1, &words(11, 7)).unwrap();
            decoder.prefill(0, &words(40, 9)).unwrap();
            // The second prompt is complete in a later step.
            let steps: Vec<Step> = (0..3).map(|_| decoder.step_within(20, &mut |_, _| 3).unwrap()).collect();
            for step in &steps {
                let rows = if asks { step.emitted.len() } else { 0 };
                assert_eq!(step.states.len(), rows * config.hidden_size);
            }
            steps.into_iter().flat_map(|step| step.states).collect::<Vec<f32>>()
        };
        let (kernels, candle) = (states(Backend::Kernels, true), states(Backend::Candle(Device::Cpu), true));
        assert_eq!(kernels.len(), candle.len());
        let size = kernels.iter().fold(0.0_f32, |top, x| top.max(x.abs()));
        for (found, expected) in candle.iter().zip(&kernels) {
            assert!((found - expected).abs() < 1e-3 * size, "{found} {expected} of {size}");
        }
        assert!(states(Backend::Kernels, false).is_empty() && states(Backend::Candle(Device::Cpu), false).is_empty());
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
