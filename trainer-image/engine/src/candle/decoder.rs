//! Generation with candle: the rows of all slots go through the linear layers together; each slot attends to its own cache.

use candle_core::{D, Result, Tensor};

use super::{
    attention::{Attend, Rope},
    device::Place,
    model::{Model, Weights},
    ops,
};
use crate::{
    Decoder, EngineError, Layout, LogProbabilities, ModelConfig, PromptError,
    decoder::{End, Logits, Slots, Turn},
    model::Read,
};

/// Positions that a cache has room for at first. It doubles when it is full.
const ROOM: usize = 256;

/// Rows that are scored at once, at most: each has a logit for every token of the vocabulary.
const SCORED: usize = 64;

/// A decoder in candle's operations.
#[derive(Debug)]
pub(crate) struct CandleDecoder {
    config: ModelConfig,
    place: Place,
    weights: Weights,
    slots: Slots,
    /// The keys and values [key-value heads, room, 2 · width] of each layer of each slot, once it was used.
    caches: Vec<Vec<Option<Tensor>>>,
    /// Whether hidden states are returned beside logits.
    returns_states: bool,
}

impl CandleDecoder {
    /// Makes a decoder with `slots` free slots. `read` fills a slice with a range of the parameters.
    ///
    /// # Errors
    /// The first error of `read`, or the weights do not fit on the device.
    pub(crate) fn load<E: From<EngineError>>(
        config: &ModelConfig,
        place: Place,
        slots: usize,
        read: &mut Read<E>,
    ) -> std::result::Result<Self, E> {
        let mut weights = Weights::new();
        for tensor in Layout::of(config).tensors() {
            let mut numbers = vec![0.0; tensor.count()];
            read(tensor.range.clone(), &mut numbers)?;
            let weight = place.tensor(&numbers, &tensor.shape).and_then(|weight| weight.to_dtype(place.dtype));
            weights.insert(tensor.name.clone(), weight.map_err(EngineError::from)?);
        }
        let slots = Slots::new(slots);
        let caches = vec![vec![None; config.num_hidden_layers]; slots.len()];
        Ok(Self { config: config.clone(), place, weights, slots, caches, returns_states: false })
    }

    fn rows(&mut self, budget: usize) -> Result<Logits> {
        let Self { config, place, weights, slots, caches, returns_states } = self;
        let turns = slots.take(slots.share_out(budget, |_| 0), 0);
        let (mut tokens, mut positions, mut last) = (Vec::new(), Vec::new(), Vec::new());
        let (mut sequences, mut used) = (Vec::new(), Vec::new());
        // The row before a token that is scored, its slot, the token, and how many are scored beside it.
        let mut wanted: Vec<(u32, usize, u32, usize)> = Vec::new();
        for (turn, caches) in turns.iter().zip(taken(caches, &turns)) {
            let (cached, rows) = (turn.cached, turn.tokens.len());
            sequences.push(Sequence {
                first_row: tokens.len(),
                rows,
                cached,
                rope: Rope::new(config, place, cached..cached + rows)?,
                mask: ops::causal(rows, cached + rows, &place.device)?,
                caches,
            });
            let next = turn.targets.next.iter().zip(tokens.len()..);
            wanted.extend(next.map(|(token, row)| (row as u32, turn.slot, *token, turn.targets.count)));
            tokens.extend_from_slice(&turn.tokens);
            positions.extend((cached..cached + rows).map(|position| position as u32));
            if turn.last {
                last.push((tokens.len() - 1) as u32);
                used.push(turn.slot);
            }
        }
        if turns.is_empty() {
            return Ok(Logits { vocabulary: config.vocab_size, ..Logits::default() });
        }
        let model = Model { config, place, weights, frozen: true, adapters: None };
        let hidden = model.hidden(&tokens, &positions, &mut Cached { sequences })?;
        let head = model.head()?.1.t()?;
        let states = |rows: &[u32]| hidden.index_select(&place.indices(rows)?, 0);
        let logits = |rows: &[u32]| numbers(&states(rows)?.matmul(&head)?);
        let mut scored = Vec::with_capacity(wanted.len());
        for wanted in wanted.chunks(SCORED) {
            let rows = logits(&wanted.iter().map(|(row, ..)| *row).collect::<Vec<_>>())?;
            let rows = rows.chunks_exact(config.vocab_size).zip(wanted);
            scored
                .extend(rows.map(|(row, (_, slot, token, count))| (*slot, LogProbabilities::of(row, *token, *count))));
        }
        let rows = if used.is_empty() { Vec::new() } else { logits(&last)? };
        let states = if used.is_empty() || !*returns_states { Vec::new() } else { numbers(&states(&last)?)? };
        Ok(Logits { slots: used, rows, vocabulary: config.vocab_size, scored, states })
    }
}

/// Returns the numbers of a tensor in single precision.
fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()
}

/// Yields the caches of slots, which are given in ascending order.
fn taken<'a>(
    caches: &'a mut [Vec<Option<Tensor>>],
    turns: &'a [Turn],
) -> impl Iterator<Item = &'a mut Vec<Option<Tensor>>> {
    let mut used = turns.iter().map(|turn| turn.slot).peekable();
    caches.iter_mut().enumerate().filter(move |(index, _)| used.next_if_eq(index).is_some()).map(|(_, caches)| caches)
}

/// Attention of each sequence to its own cache.
struct Cached<'a> {
    sequences: Vec<Sequence<'a>>,
}

/// The rows of one slot in a forward pass.
struct Sequence<'a> {
    first_row: usize,
    rows: usize,
    /// Positions that the cache holds already.
    cached: usize,
    rope: Rope,
    mask: Tensor,
    caches: &'a mut Vec<Option<Tensor>>,
}

impl Attend for Cached<'_> {
    fn attend(&mut self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let outs: Result<Vec<_>> =
            self.sequences.iter_mut().map(|sequence| sequence.attend(layer, [q, k, v])).collect();
        Tensor::cat(&outs?, 0)
    }
}

impl Sequence<'_> {
    /// Appends keys and values to the cache of a layer, and returns the attention [rows, heads · width] of the sequence's rows.
    fn attend(&mut self, layer: usize, qkv: [&Tensor; 3]) -> Result<Tensor> {
        // [rows, heads, width] → [1, heads, rows, width]
        let of_sequence =
            |x: &Tensor| x.narrow(0, self.first_row, self.rows)?.transpose(0, 1)?.unsqueeze(0)?.contiguous();
        let [q, k, v] = qkv;
        let (q, k) = (self.rope.apply(&of_sequence(q)?)?, self.rope.apply(&of_sequence(k)?)?);
        let new = Tensor::cat(&[k, of_sequence(v)?], D::Minus1)?;
        let all = self.cached + self.rows;
        let cache = room(&mut self.caches[layer], &new, self.cached, all)?;
        cache.slice_set(&new, 2, self.cached)?;
        let kv = cache.narrow(2, 0, all)?;
        let [query, key, value] = ops::grouped(&q, &kv.contiguous()?)?;
        let out = ops::probabilities(&query, &key, &self.mask)?.matmul(&value)?.reshape(q.shape())?;
        let (_, heads, rows, width) = q.dims4()?;
        out.transpose(1, 2)?.reshape((rows, heads * width))
    }
}

/// Returns a cache with room for `needed` positions that holds the first `cached` ones.
fn room<'a>(cache: &'a mut Option<Tensor>, like: &Tensor, cached: usize, needed: usize) -> Result<&'a Tensor> {
    let (_, heads, _, width) = like.dims4()?;
    let held = cache.take();
    let large_enough = held.as_ref().is_some_and(|held| held.dims()[2] >= needed);
    let tensor = match held {
        Some(held) if large_enough => held,
        held => {
            let room = needed.next_power_of_two().max(ROOM);
            let fresh = Tensor::zeros((1, heads, room, width), like.dtype(), like.device())?;
            if let Some(held) = held.filter(|_| cached > 0) {
                fresh.slice_set(&held.narrow(2, 0, cached)?.contiguous()?, 2, 0)?;
            }
            fresh
        }
    };
    Ok(cache.insert(tensor))
}

impl Decoder for CandleDecoder {
    fn path(&self) -> &'static str {
        self.place.path()
    }

    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn slots(&self) -> &Slots {
        &self.slots
    }

    fn prefill(&mut self, slot: usize, tokens: &[u32]) -> std::result::Result<(), PromptError> {
        self.slots.prefill(&self.config, slot, tokens)
    }

    fn prefill_scored(&mut self, slot: usize, tokens: &[u32], count: usize) -> std::result::Result<(), PromptError> {
        self.slots.prefill(&self.config, slot, tokens)?;
        self.slots.score(slot, count);
        Ok(())
    }

    fn logits_within(&mut self, budget: usize) -> std::result::Result<Logits, EngineError> {
        Ok(self.rows(budget)?)
    }

    fn return_states(&mut self) {
        self.returns_states = true;
    }

    fn push(&mut self, slot: usize, token: u32) -> Option<End> {
        self.slots.push(&self.config, slot, token)
    }

    fn release(&mut self, slot: usize) {
        self.slots.release(slot);
    }

    fn forget(&mut self, slot: usize) {
        if self.slots.is_free(slot) {
            self.caches[slot].fill(None);
        }
    }

    fn memory(&self) -> usize {
        let bytes = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        let caches = self.caches.iter().flatten().flatten().map(bytes).sum::<usize>();
        self.weights.values().map(bytes).sum::<usize>() + caches
    }
}
