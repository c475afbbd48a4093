//! Greedy generation with a cache of keys and values, for many sequences at once, without a graph. Pure, but for
//! [`Generator::load_directory`].
//!
//! A [`Generator`] has a fixed number of slots. [`prefill`](Generator::prefill) puts a prompt into one, every
//! [`step`](Generator::step) yields one token for each slot in use, and [`release`](Generator::release) empties one. Prompts
//! may be added between any two steps. What a slot yields depends on its prompt alone, bit for bit: not on the other slots,
//! not on the number of threads, not on when it was added.
//!
//! ```no_run
//! # use codex::model::Generator;
//! # fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let mut generator = Generator::load_directory(std::path::Path::new("model"), 8)?;
//! let prompt = generator.tokenizer().encode("347+86:")?;
//! generator.prefill(0, &prompt)?;
//! loop {
//!     let emitted = generator.step();
//!     print!("{}", generator.tokenizer().decode(&[emitted[0].token])?);
//!     if emitted[0].end.is_some() {
//!         break;
//!     }
//! }
//! # Ok(())
//! # }
//! ```

use std::{collections::BTreeMap, path::Path};

use codex_engine::{
    Layout, ModelConfig, dispatched,
    inference::{BlockWeights, Panels, Rotary, blocks, exponentials, rms_norm, scale as multiply, swiglu},
};
use pulp::Simd;
use rayon::prelude::*;

use super::{
    directory::{self, Loaded},
    files::{self, ModelError, ModelFiles},
};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// Slots that one task advances together.
const GROUP: usize = 8;

/// A loaded model with its slots.
pub struct Generator {
    weights: Weights,
    tokenizer: Tokenizer,
    slots: Vec<Slot>,
}

/// A token that a slot yielded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emitted {
    /// The slot.
    pub slot: usize,
    /// The token; the end token itself is yielded, too.
    pub token: u32,
    /// Set when this was the slot's last token; the slot is then empty again.
    pub end: Option<End>,
}

/// Why a sequence is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The model ended it.
    Stop,
    /// The context is full.
    Context,
}

/// A response to one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The response, its end token included when there is one.
    pub text: String,
    /// Tokens of the response.
    pub tokens: Vec<u32>,
    /// Why it is over; none when it reached the limit of new tokens.
    pub end: Option<End>,
}

/// A prompt that cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// Too long.
    #[error(
        "the prompt has {tokens} tokens, but the model's context holds {context} with at least one of the response"
    )]
    TooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens that fit.
        context: usize,
    },
    /// Nothing in it.
    #[error("the prompt is empty: write at least one character")]
    Empty,
    /// An id that the embedding has no row for.
    #[error("token id {id} is outside the vocabulary of {vocabulary}")]
    Id {
        /// The id.
        id: u32,
        /// Ids that there are.
        vocabulary: usize,
    },
    /// A slot that does not exist or is in use.
    #[error("slot {slot} is {state}: there are {slots}, and one takes a prompt at a time")]
    Slot {
        /// The slot.
        slot: usize,
        /// What is wrong with it.
        state: &'static str,
        /// Slots that there are.
        slots: usize,
    },
    /// A text that the tokenizer refuses.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// One sequence: what it attends to, and what has to be fed next.
#[derive(Default)]
struct Slot {
    /// Per layer: [positions / SPAN, hidden, SPAN], rotated.
    keys: Vec<Vec<f32>>,
    /// Per layer: [positions, hidden].
    values: Vec<Vec<f32>>,
    /// Tokens that the model has not seen; empty when the slot is free.
    pending: Vec<u32>,
    /// Positions that the cache holds.
    seen: usize,
}

impl Generator {
    /// Loads a model out of its files' bytes, with `slots` slots.
    ///
    /// # Errors
    /// When a file is missing or cannot be used.
    pub fn load(files: &ModelFiles, slots: usize) -> Result<Self, ModelError> {
        let Loaded { config, tokenizer, parameters } = directory::load(files)?;
        Ok(Self::of(config, &parameters, tokenizer, slots))
    }

    /// A model whose parameters lie as [`Layout::of`] says, with `slots` slots. Its weights are a copy.
    pub(crate) fn of(config: ModelConfig, parameters: &[f32], tokenizer: Tokenizer, slots: usize) -> Self {
        let slots = (0..slots.max(1)).map(|_| Slot::default()).collect();
        Self { weights: Weights::of(config, parameters), tokenizer, slots }
    }

    /// Loads a model directory, with `slots` slots.
    ///
    /// # Errors
    /// When a file is missing or cannot be used.
    pub fn load_directory(path: &Path, slots: usize) -> Result<Self, ModelError> {
        Self::load(&files::read_directory(path)?, slots)
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The model's shape; `max_position_embeddings` is how many tokens a prompt and its response may have together.
    pub fn config(&self) -> &ModelConfig {
        &self.weights.config
    }

    /// How many slots there are.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The lowest slot that is not in use.
    pub fn free_slot(&self) -> Option<usize> {
        self.slots.iter().position(|slot| slot.pending.is_empty())
    }

    /// Puts a prompt into an empty slot. It costs nothing yet: the next [`step`](Self::step) goes through it and yields the
    /// first token of the response.
    ///
    /// # Errors
    /// When the prompt is empty, has an unknown id or leaves no room for a response, or when the slot is not free.
    pub fn prefill(&mut self, slot: usize, tokens: &[u32]) -> Result<(), GenerateError> {
        let (config, slots) = (&self.weights.config, self.slots.len());
        let (context, vocabulary) = (config.max_position_embeddings, config.vocab_size);
        if tokens.is_empty() {
            return Err(GenerateError::Empty);
        }
        if tokens.len() >= context {
            return Err(GenerateError::TooLong { tokens: tokens.len(), context });
        }
        if let Some(id) = tokens.iter().find(|id| **id as usize >= vocabulary) {
            return Err(GenerateError::Id { id: *id, vocabulary });
        }
        let layers = config.num_hidden_layers;
        match self.slots.get_mut(slot) {
            None => Err(GenerateError::Slot { slot, state: "not there", slots }),
            Some(taken) if !taken.pending.is_empty() => Err(GenerateError::Slot { slot, state: "in use", slots }),
            Some(free) => {
                free.keys.resize(layers, Vec::new());
                free.values.resize(layers, Vec::new());
                free.pending = tokens.to_vec();
                Ok(())
            }
        }
    }

    /// Yields one token for every slot in use, in the order of slots; nothing when none is.
    pub fn step(&mut self) -> Vec<Emitted> {
        let weights = &self.weights;
        let mut used: Vec<(usize, &mut Slot)> =
            self.slots.iter_mut().enumerate().filter(|(_, slot)| !slot.pending.is_empty()).collect();
        let emitted: Vec<Vec<Emitted>> = used.par_chunks_mut(GROUP).map(|group| weights.advance(group)).collect();
        emitted.into_iter().flatten().collect()
    }

    /// Empties a slot, whatever was in it; its memory is kept for the next prompt.
    pub fn release(&mut self, slot: usize) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.clear();
        }
    }

    /// Answers many prompts, as many at a time as there are slots, each with at most `limit` new tokens. A prompt that cannot
    /// be taken has an error in its place. All slots must be free, and are so afterwards. `progress` hears how many are done.
    pub fn complete(
        &mut self,
        prompts: &[&str],
        limit: usize,
        mut progress: impl FnMut(usize),
    ) -> Vec<Result<Completion, GenerateError>> {
        let mut results: Vec<Option<Result<Completion, GenerateError>>> = prompts.iter().map(|_| None).collect();
        let mut waiting = prompts.iter().enumerate();
        let mut running: BTreeMap<usize, (usize, Vec<u32>)> = BTreeMap::new();
        let mut done = 0;
        loop {
            while let Some(slot) = self.free_slot() {
                let Some((index, prompt)) = waiting.next() else { break };
                let taken =
                    self.tokenizer.encode(prompt).map_err(GenerateError::from).and_then(|ids| self.prefill(slot, &ids));
                match taken {
                    Ok(()) => drop(running.insert(slot, (index, Vec::new()))),
                    Err(error) => {
                        results[index] = Some(Err(error));
                        done += 1;
                    }
                }
            }
            let emitted = self.step();
            if emitted.is_empty() {
                break;
            }
            for Emitted { slot, token, end } in emitted {
                let Some((index, tokens)) = running.get_mut(&slot) else { continue };
                tokens.push(token);
                if end.is_none() && tokens.len() < limit {
                    continue;
                }
                let completion = self.tokenizer.decode(tokens).map_err(GenerateError::from);
                let tokens = std::mem::take(tokens);
                results[*index] = Some(completion.map(|text| Completion { text, tokens, end }));
                running.remove(&slot);
                self.release(slot);
                done += 1;
            }
            progress(done);
        }
        progress(done);
        results.into_iter().map(|result| result.unwrap_or(Err(GenerateError::Empty))).collect()
    }
}

impl Slot {
    fn clear(&mut self) {
        self.pending.clear();
        self.seen = 0;
        self.keys.iter_mut().chain(&mut self.values).for_each(Vec::clear);
    }
}

/// The weights, laid out for generation.
struct Weights {
    config: ModelConfig,
    /// [vocabulary, hidden]
    embedding: Vec<f32>,
    head: Panels,
    norm: Vec<f32>,
    layers: Vec<Layer>,
    rotary: Rotary,
}

struct Layer {
    input_norm: Vec<f32>,
    qkv: Panels,
    output: Panels,
    inner_norm: Vec<f32>,
    gate_up: Panels,
    down: Panels,
}

impl Weights {
    fn of(config: ModelConfig, parameters: &[f32]) -> Self {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let layout = Layout::of(&config);
        let tensor = |name: &str| layout.find(name).map_or(&[][..], |tensor| &parameters[tensor.range.clone()]);
        let embedding = tensor("model.embed_tokens.weight");
        let layer = |weights: BlockWeights| Layer {
            input_norm: weights.input_norm.to_vec(),
            qkv: Panels::of(weights.qkv, hidden),
            output: Panels::of(weights.output, hidden),
            inner_norm: weights.inner_norm.to_vec(),
            gate_up: Panels::of(weights.gate_up, hidden),
            down: Panels::of(weights.down, inner),
        };
        Self {
            head: Panels::of(embedding, hidden),
            embedding: embedding.to_vec(),
            norm: tensor("model.norm.weight").to_vec(),
            layers: blocks(&config, parameters).into_iter().map(layer).collect(),
            rotary: Rotary::new(config.max_position_embeddings, config.head_dim, config.rope_theta),
            config,
        }
    }

    /// Feeds what is pending in a group of slots and chooses their next tokens.
    fn advance(&self, group: &mut [(usize, &mut Slot)]) -> Vec<Emitted> {
        let hidden = self.config.hidden_size;
        let eps = self.config.norm_eps as f32;
        let fed: Vec<u32> = group.iter().flat_map(|(_, slot)| slot.pending.iter().copied()).collect();
        let rows = fed.len();
        let mut x: Vec<f32> = Vec::with_capacity(rows * hidden);
        for id in fed {
            x.extend_from_slice(&self.embedding[id as usize * hidden..][..hidden]);
        }
        let mut normed = vec![0.0; rows * hidden];
        let mut qkv = vec![0.0; rows * 3 * hidden];
        let mut gate_up = vec![0.0; rows * 2 * self.config.intermediate_size];
        let mut inner = vec![0.0; rows * self.config.intermediate_size];
        for (index, layer) in self.layers.iter().enumerate() {
            rms_norm(&x, &layer.input_norm, eps, &mut normed);
            layer.qkv.apply(&normed, &mut qkv, false);
            let mut row = 0;
            for (_, slot) in group.iter_mut() {
                let count = slot.pending.len();
                let (qkv, mixed) = (&mut qkv[row * 3 * hidden..][..count * 3 * hidden], &mut normed[row * hidden..]);
                let cache = Cache { keys: &mut slot.keys[index], values: &mut slot.values[index], first: slot.seen };
                attend_piece(self, qkv, cache, &mut mixed[..count * hidden]);
                row += count;
            }
            layer.output.apply(&normed, &mut x, true);
            rms_norm(&x, &layer.inner_norm, eps, &mut normed);
            layer.gate_up.apply(&normed, &mut gate_up, false);
            swiglu(&gate_up, self.config.intermediate_size, &mut inner);
            layer.down.apply(&inner, &mut x, true);
        }
        let mut last = Vec::with_capacity(group.len() * hidden);
        let mut row = 0;
        for (_, slot) in group.iter() {
            row += slot.pending.len();
            last.extend_from_slice(&x[(row - 1) * hidden..][..hidden]);
        }
        let mut normed = vec![0.0; last.len()];
        rms_norm(&last, &self.norm, eps, &mut normed);
        let mut logits = vec![0.0; group.len() * self.config.vocab_size];
        self.head.apply(&normed, &mut logits, false);
        group
            .iter_mut()
            .zip(logits.chunks_exact(self.config.vocab_size))
            .map(|((index, slot), logits)| self.choose(*index, slot, logits))
            .collect()
    }

    fn choose(&self, index: usize, slot: &mut Slot, logits: &[f32]) -> Emitted {
        let mut token = 0;
        for (id, logit) in logits.iter().enumerate() {
            if *logit > logits[token] {
                token = id;
            }
        }
        let token = token as u32;
        slot.seen += slot.pending.len();
        slot.pending.clear();
        let end = if token == self.config.eos_token_id {
            Some(End::Stop)
        } else if slot.seen + 1 >= self.config.max_position_embeddings {
            Some(End::Context)
        } else {
            None
        };
        if end.is_some() {
            slot.clear();
        } else {
            slot.pending.push(token);
        }
        Emitted { slot: index, token, end }
    }
}

/// What one layer of one sequence remembers.
struct Cache<'a> {
    keys: &'a mut Vec<f32>,
    values: &'a mut Vec<f32>,
    /// The position of the first new row.
    first: usize,
}

dispatched!(attend_piece<'a>(
    weights: &'a Weights, qkv: &'a mut [f32], cache: Cache<'a>, out: &'a mut [f32],
) = attend);

/// Positions whose keys lie side by side in the cache.
const SPAN: usize = 16;

/// Attention of new rows over the cache and themselves; they join the cache.
#[inline(always)]
fn attend<S: Simd>(simd: S, weights: &Weights, qkv: &mut [f32], cache: Cache, out: &mut [f32]) {
    let Cache { keys, values, first } = cache;
    let (hidden, width) = (weights.config.hidden_size, weights.config.head_dim);
    let scale = 1.0 / (width as f32).sqrt();
    let mut scores = Vec::with_capacity(weights.config.max_position_embeddings.next_multiple_of(SPAN));
    for (row, (qkv, out)) in qkv.chunks_exact_mut(3 * hidden).zip(out.chunks_exact_mut(hidden)).enumerate() {
        let position = first + row;
        let (query, key_value) = qkv.split_at_mut(hidden);
        let (key, value) = key_value.split_at_mut(hidden);
        query.chunks_exact_mut(width).for_each(|head| weights.rotary.apply_rope(head, position, scale, 1.0));
        key.chunks_exact_mut(width).for_each(|head| weights.rotary.apply_rope(head, position, 1.0, 1.0));
        if position.is_multiple_of(SPAN) {
            keys.resize(keys.len() + hidden * SPAN, 0.0);
        }
        let block = &mut keys[position / SPAN * hidden * SPAN..];
        for (line, key) in block.chunks_exact_mut(SPAN).zip(key) {
            line[position % SPAN] = *key;
        }
        values.extend_from_slice(value);
        for (head, (query, out)) in query.chunks_exact(width).zip(out.chunks_exact_mut(width)).enumerate() {
            scores.clear();
            for block in keys.chunks_exact(hidden * SPAN) {
                let keys = S::as_simd_f32s(&block[head * width * SPAN..][..width * SPAN]).0;
                let per_line = SPAN / S::F32_LANES;
                for part in 0..per_line {
                    let mut sum = simd.splat_f32s(0.0);
                    for (query, line) in query.iter().zip(keys.chunks_exact(per_line)) {
                        sum = simd.mul_add_f32s(simd.splat_f32s(*query), line[part], sum);
                    }
                    let at = scores.len();
                    scores.resize(at + S::F32_LANES, 0.0);
                    S::as_mut_simd_f32s(&mut scores[at..]).0[0] = sum;
                }
            }
            scores.truncate(position + 1);
            let (_, sum) = exponentials(simd, &mut scores);
            multiply(simd, &mut scores, 1.0 / sum);
            let out = S::as_mut_simd_f32s(out).0;
            for (part, out) in out.iter_mut().enumerate() {
                *out = simd.splat_f32s(0.0);
                let at = head * width + part * S::F32_LANES;
                for (score, value) in scores.iter().zip(values.chunks_exact(hidden)) {
                    let value = S::as_simd_f32s(&value[at..at + S::F32_LANES]).0[0];
                    *out = simd.mul_add_f32s(simd.splat_f32s(*score), value, *out);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::describe;
    use codex_engine::{Engine, EngineState, Packed, Settings, Shape, engine, initial};

    fn files() -> (Box<dyn Engine>, ModelFiles) {
        let shape = Shape {
            hidden_size: 32,
            intermediate_size: 48,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            max_position_embeddings: 48,
            rope_theta: 10_000.0,
        };
        let tokenizer = Tokenizer::characters().unwrap();
        let config = ModelConfig::new(shape, tokenizer.for_model()).unwrap();
        let layout = Arc::new(Layout::of(&config));
        let parameters = initial(&config, &layout, 11);
        let files = describe(&config, &parameters, &tokenizer).unwrap();
        (engine(config, EngineState::new(layout, parameters), Settings::default()).unwrap(), files)
    }

    const PROMPTS: [&str; 5] = ["347+86:", "1-2:", "Jon has 3 eggs. Bob has 64 more.", "9", "208-9:"];

    #[test]
    fn the_same_tokens_alone_or_in_a_batch() {
        let (_, files) = files();
        let complete = |prompts: &[&str], slots, threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut generator = Generator::load(&files, slots).unwrap();
                let all = generator.complete(prompts, 30, |_| ());
                all.into_iter().map(|one| one.unwrap()).collect::<Vec<_>>()
            })
        };
        let together = complete(&PROMPTS, 5, 2);
        assert_eq!(together, complete(&PROMPTS, 2, 1));
        for (prompt, expected) in PROMPTS.iter().zip(&together) {
            assert_eq!(&complete(&[prompt], 1, 1)[0], expected);
            assert!(!expected.tokens.is_empty());
        }
    }

    #[test]
    fn tokens_are_those_of_training() {
        let (mut engine, files) = files();
        let mut generator = Generator::load(&files, 3).unwrap();
        for (prompt, completion) in PROMPTS.iter().zip(generator.complete(&PROMPTS, 12, |_| ())) {
            let mut ids = generator.tokenizer().encode(prompt).unwrap();
            for token in completion.unwrap().tokens {
                // The greedy choice is the token with the smallest loss.
                let mut loss = |candidate: u32| {
                    let sequence = [ids.as_slice(), &[candidate]].concat();
                    engine.loss(&Packed::new([(sequence.as_slice(), ids.len())])).unwrap()
                };
                let losses: Vec<f64> = (0..98).map(&mut loss).collect();
                let best = (0..98).min_by(|a, b| losses[*a as usize].total_cmp(&losses[*b as usize])).unwrap();
                assert_eq!(best, token);
                ids.push(token);
            }
        }
    }

    #[test]
    fn the_context_ends_a_sequence_and_frees_its_slot() {
        let (_, files) = files();
        let mut generator = Generator::load(&files, 1).unwrap();
        let prompt = generator.tokenizer().encode(PROMPTS[0]).unwrap();
        generator.prefill(0, &prompt).unwrap();
        assert!(matches!(generator.prefill(0, &prompt), Err(GenerateError::Slot { state: "in use", .. })));
        let mut tokens = 0;
        loop {
            let emitted = generator.step();
            tokens += 1;
            if let Some(end) = emitted[0].end {
                assert!(end == End::Stop || prompt.len() + tokens == 48);
                break;
            }
        }
        assert_eq!(generator.free_slot(), Some(0));
        assert!(generator.step().is_empty());
        let long = vec![5; 48];
        assert!(matches!(generator.prefill(0, &long), Err(GenerateError::TooLong { tokens: 48, context: 48 })));
        assert!(matches!(generator.prefill(0, &[999]), Err(GenerateError::Id { id: 999, .. })));
    }

    #[test]
    fn a_wrong_weight_is_named() {
        let (_, mut files) = files();
        let text = String::from_utf8(files["config.json"].clone()).unwrap();
        files.insert("config.json".to_owned(), text.replace("\"vocab_size\": 98", "\"vocab_size\": 97").into_bytes());
        let said = Generator::load(&files, 1).err().unwrap().to_string();
        assert!(said.contains("model.embed_tokens.weight") && said.contains("[98, 32]"), "{said}");
    }
}
