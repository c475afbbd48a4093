//! The generation backend on processors: packed weights, a key-value cache per slot, and rows of all slots in one batch. Pure.
//!
//! Rows are computed by the kernels of training, which give a row the same bits whatever the rows beside it. A prompt
//! therefore has the bits of a training forward pass, in chunks of any size, within a step or over several.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    activation::{Activation, activate},
    attention::{AttentionShape, Rotary},
    buffer::Buffer,
    cache::{Cache, Part, attend},
    embedding::{Embedding, exact},
    kernels::add,
    matrix::{COLUMNS, Dtype, FEW, Out, Weight, chunk_rows, forward_parallel},
    norm::{NormWeights, norm},
    team::in_team,
};
use crate::{
    Decoder, EngineError, LogProbabilities, ModelConfig, PromptError,
    decoder::{End, Logits, Slots},
    model::{Linear, Model, Norm, Read},
};

/// Rows that are processed at once, at most. Prompts are cut into chunks of it.
const ROWS: usize = 512;

/// Tokens at the start of a prompt that are worth taking over from another slot.
const SHARED: usize = 16;

/// Rows that are scored at once, at most: each has a logit for every token of the vocabulary.
const SCORED: usize = 64;

/// A token of a prompt that is scored.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    slot: usize,
    /// The row of the token before it.
    row: usize,
    token: u32,
    /// How many of the most likely tokens are scored beside it.
    count: usize,
}

/// The decoder on processors, with activations of type `N`.
#[derive(Debug)]
pub(crate) struct CpuDecoder<N: Dtype> {
    /// The modules. Norms, biases and positions have their ranges in `vectors`.
    model: Model,
    vectors: Vec<f32>,
    /// `None` if it is read out of the packed output projection, which shares the weight.
    embedding: Option<Embedding>,
    packs: N::Packs,
    rotary: Option<Rotary>,
    slots: Slots,
    /// [layers][slots]
    caches: Vec<Vec<Cache>>,
    /// For each slot, the tokens whose keys and values its caches hold, also after the slot was released.
    held: Vec<Vec<u32>>,
    /// For each slot, how many tokens of its latest prompt were taken over.
    reused: Vec<usize>,
    workspace: Workspace<N>,
    /// Rows that are processed at once.
    rows: usize,
    /// Whether hidden states are returned beside logits.
    returns_states: bool,
}

/// The buffers of a batch.
#[derive(Debug, Default)]
struct Workspace<N> {
    /// The residual stream.
    x: Buffer<f32>,
    normed: Buffer<N>,
    qkv: Buffer<N>,
    attn_out: Buffer<N>,
    up: Buffer<N>,
    activated: Buffer<N>,
}

impl<N: Dtype> CpuDecoder<N> {
    /// Makes a decoder with `slots` free slots. `read` fills a slice with a range of the parameters; at no time are many of
    /// them held beside the packed ones.
    ///
    /// # Errors
    /// The first error of `read`.
    pub(crate) fn load<E>(config: &ModelConfig, slots: usize, read: &mut Read<E>) -> Result<Self, E> {
        let mut model = Model::new(config);
        let mut packs = N::Packs::default();
        let mut buffer = Vec::new();
        let hidden = config.hidden_size;
        let mut embedding = None;
        for matrix in model.matrices() {
            let tied = matrix.weight == model.embedding;
            // The first row in the buffer. The first chunk is read once, whatever its width proves to be.
            let mut read_from = None;
            'width: for width in N::WIDTHS {
                N::shape(matrix, *width, &mut packs);
                for rows in chunks(matrix) {
                    if read_from != Some(rows.start) {
                        let start = matrix.weight.start;
                        let range = start + rows.start * matrix.inputs..start + rows.end * matrix.inputs;
                        buffer.resize(range.len(), 0.0);
                        read(range, &mut buffer)?;
                        read_from = Some(rows.start);
                        if tied && !N::EXACT && !exact(&buffer) {
                            embedding = Some(Embedding::F32(Vec::new()));
                        }
                    }
                    if !N::pack_columns(matrix, rows.start, &buffer, &mut packs) {
                        continue 'width;
                    }
                }
                break;
            }
        }
        let shared = model.head.weight == model.embedding;
        if !shared {
            embedding = Some(Embedding::Bf16(Vec::new()));
        }
        if let Some(embedding) = &mut embedding {
            let rows = (CHUNK / hidden).max(1);
            for start in model.embedding.clone().step_by(rows * hidden) {
                let range = start..model.embedding.end.min(start + rows * hidden);
                buffer.resize(range.len(), 0.0);
                read(range, &mut buffer)?;
                embedding.extend(&buffer);
            }
        }
        let vectors = model.read_vectors(read)?;
        let slots = Slots::new(slots);
        let caches = vec![vec![Cache::default(); slots.len()]; config.num_hidden_layers];
        let (held, reused) = (vec![Vec::new(); slots.len()], vec![0; slots.len()]);
        let rotary = Rotary::of(config);
        let workspace = Workspace::default();
        let (rows, returns_states) = (ROWS, false);
        Ok(Self {
            model,
            vectors,
            embedding,
            packs,
            rotary,
            slots,
            caches,
            held,
            reused,
            workspace,
            rows,
            returns_states,
        })
    }

    /// Cuts prompts into chunks of `rows`.
    #[cfg(test)]
    pub(crate) fn with_rows(self, rows: usize) -> Self {
        Self { rows, ..self }
    }

    /// Shares the budget of a step out and lets the prompts begin that it reaches: they take over the keys and values of tokens with
    /// which they begin, such as a system prompt, from slots that hold them. What all of them begin with is computed once. The keys
    /// and values of a token depend on the tokens before it alone, bit for bit, so that the logits do not change. Returns what is left
    /// to compute, and how many tokens were computed.
    pub(crate) fn share(&mut self, budget: usize) -> (Vec<(usize, usize)>, usize) {
        let known = |prompt: &[u32]| self.known(prompt);
        let shares = self.slots.share_out(budget, known);
        let new: Vec<(usize, Vec<u32>)> =
            shares.iter().filter_map(|(slot, _)| Some((*slot, self.slots.new_prompt(*slot)?.to_vec()))).collect();
        let allotted = |slot: usize| shares.iter().find(|share| share.0 == slot).map_or(0, |share| share.1);
        let (mut computed, mut computed_by) = (0, None);
        if let [(first, prompt), others @ ..] = new.as_slice()
            && let Some(shared) = others.iter().map(|(_, other)| takeable(prompt, other)).min()
            // The first prompt computes its last token itself.
            && let shared = shared.min(prompt.len() - 1)
            && shared >= SHARED.max(1 + self.known(prompt))
            // Computing what slots hold already is worth it only within the budget.
            && shared < allotted(*first)
        {
            for start in (0..shared).step_by(self.rows) {
                let count = self.rows.min(shared - start);
                let part = Part { slot: *first, row: 0, count, position: start };
                self.forward(&[part], &prompt[start..start + count]);
            }
            (computed, computed_by) = (shared, Some(*first));
        }
        for (slot, prompt) in &new {
            self.reused[*slot] = 0;
            let found = (0..self.held.len()).map(|from| (takeable(&self.held[from], prompt), from == *slot, from));
            let Some((count, own, from)) = found.max().filter(|(count, ..)| *count >= SHARED) else { continue };
            if !own {
                let heads = AttentionShape::new(&self.model.config, None);
                self.caches.par_iter_mut().for_each(|caches| {
                    if let Ok([from, to]) = caches.get_disjoint_mut([from, *slot]) {
                        to.copy(&heads, from, count);
                    }
                });
            }
            self.held[*slot] = prompt[..count].to_vec();
            self.slots.skip(*slot, count);
            if computed_by != Some(*slot) {
                self.reused[*slot] = count;
            }
        }
        let mut shares = self.slots.share_out(budget.saturating_sub(computed), |_| 0);
        // The others begin in a later step, when they may take over more.
        let begins = |slot: &usize| new.iter().any(|(new, _)| new == slot);
        shares.retain(|(slot, _)| self.slots.new_prompt(*slot).is_none() || begins(slot));
        (shares, computed)
    }

    /// Returns how many tokens of a prompt slots hold.
    fn known(&self, prompt: &[u32]) -> usize {
        let held = self.held.iter().map(|held| takeable(held, prompt)).max().unwrap_or(0);
        if held >= SHARED { held } else { 0 }
    }

    /// Runs the blocks over the tokens of `parts`, appends to the caches, and leaves the residual stream in the workspace.
    fn forward(&mut self, parts: &[Part], tokens: &[u32]) {
        let Self { model, vectors, embedding, packs, rotary, caches, held, workspace, .. } = self;
        for part in parts {
            held[part.slot].truncate(part.position);
            held[part.slot].extend_from_slice(&tokens[part.row..part.row + part.count]);
        }
        let config = &model.config;
        let (hidden, inner, rows) = (config.hidden_size, config.intermediate_size, tokens.len());
        let activation = Activation::of(config);
        let module = Module { vectors, packs, eps: config.norm_eps as f32 };
        let Workspace { x, normed, qkv, attn_out, up, activated } = workspace;
        x.resize(rows * hidden);
        for (row, token) in x.chunks_exact_mut(hidden).zip(tokens) {
            match embedding {
                Some(embedding) => embedding.read(*token, row),
                None => N::column(&model.head, *token as usize, packs, row),
            }
        }
        if let Some(positions) = &model.positions {
            let positions = &vectors[positions.clone()];
            for part in parts {
                let rows = &mut x[part.row * hidden..(part.row + part.count) * hidden];
                add(&positions[part.position * hidden..][..rows.len()], rows);
            }
        }
        for (block, caches) in model.blocks.iter().zip(caches) {
            let heads = AttentionShape::new(config, rotary.as_ref()).of_block(block, vectors, module.eps);
            normed.resize(rows * N::stride(hidden));
            qkv.resize(rows * N::stride(heads.all()));
            attn_out.resize(rows * N::stride(heads.queries()));
            up.resize(rows * N::stride(activation.inputs(inner)));
            activated.resize(rows * N::stride(inner));
            module.norm(&block.input_norm, x, normed);
            module.linear(&block.qkv, normed, Out::Store(qkv));
            attend(&heads, parts, caches, qkv, attn_out);
            module.linear(&block.output, attn_out, Out::Add(x));
            module.norm(&block.inner_norm, x, normed);
            module.linear(&block.up, normed, Out::Store(up));
            let (wide, narrow) = (N::stride(activation.inputs(inner)), N::stride(inner));
            let chunk = chunk_rows(rows);
            up.par_chunks(chunk * wide).zip(activated.par_chunks_mut(chunk * narrow)).for_each(|(up, activated)| {
                activate(activation, up, inner, activated);
            });
            module.linear(&block.down, activated, Out::Add(x));
        }
    }

    /// Returns some rows of the residual stream.
    fn stream(&self, rows: &[usize]) -> Vec<f32> {
        let hidden = self.model.config.hidden_size;
        rows.iter().flat_map(|row| &self.workspace.x[row * hidden..][..hidden]).copied().collect()
    }

    /// Returns the hidden states of some rows after the final norm, as those of a training engine.
    fn states(&self, rows: &[usize]) -> Vec<f32> {
        let Self { model, vectors, .. } = self;
        let x = self.stream(rows);
        let mut states = vec![0.0_f32; x.len()];
        norm(&x, NormWeights::new(&model.norm, vectors, model.config.norm_eps as f32), &mut states);
        states
    }

    /// Returns the logits of some rows of the residual stream.
    fn head(&self, rows: &[usize]) -> Vec<f32> {
        let Self { model, vectors, packs, .. } = self;
        let (hidden, vocabulary) = (model.config.hidden_size, model.config.vocab_size);
        let module = Module { vectors, packs, eps: model.config.norm_eps as f32 };
        let x = self.stream(rows);
        let mut normed = Buffer::<N>::default();
        normed.resize(rows.len() * N::stride(hidden));
        module.norm(&model.norm, &x, &mut normed);
        let mut logits = vec![0.0; rows.len() * vocabulary];
        module.linear(&model.head, &normed, Out::Set(&mut logits));
        logits
    }

    /// Returns the log-probabilities of tokens after rows of the residual stream, with their slots.
    fn scores(&self, wanted: &[Wanted]) -> Vec<(usize, LogProbabilities)> {
        let mut scored = Vec::with_capacity(wanted.len());
        for wanted in wanted.chunks(SCORED) {
            let rows: Vec<usize> = wanted.iter().map(|one| one.row).collect();
            let logits = self.head(&rows);
            let rows = logits.par_chunks_exact(self.model.config.vocab_size);
            let of = |(row, one): (&[f32], &Wanted)| (one.slot, LogProbabilities::of(row, one.token, one.count));
            scored.par_extend(rows.zip(wanted).map(of));
        }
        scored
    }
}

/// Returns how many of the first tokens of `prompt` are those of `held`. The last one is not taken over, because its logits are
/// wanted.
fn takeable(held: &[u32], prompt: &[u32]) -> usize {
    let equal = held.iter().zip(prompt).take_while(|(held, token)| held == token).count();
    equal.min(prompt.len().saturating_sub(1))
}

/// Parameters that are read at once, at most, unless a weight is stored [inputs, outputs].
const CHUNK: usize = 1 << 20;

/// Yields the rows of a stored weight in pieces that are packed at once.
fn chunks(matrix: &Linear) -> Vec<Range<usize>> {
    let step = if matrix.inputs_first {
        matrix.outputs
    } else {
        (CHUNK / matrix.inputs).next_multiple_of(COLUMNS).max(COLUMNS)
    };
    (0..matrix.outputs).step_by(step).map(|start| start..matrix.outputs.min(start + step)).collect()
}

/// Computes single modules over rows.
struct Module<'a, N: Dtype> {
    vectors: &'a [f32],
    packs: &'a N::Packs,
    eps: f32,
}

impl<N: Dtype> Module<'_, N> {
    fn norm(&self, module: &Norm, x: &[f32], y: &mut [N]) {
        let weights = NormWeights::new(module, self.vectors, self.eps);
        let width = module.weight.len();
        let chunk = chunk_rows(x.len() / width);
        x.par_chunks(chunk * width).zip(y.par_chunks_mut(chunk * N::stride(width))).for_each(|(x, y)| {
            norm(x, weights, y);
        });
    }

    fn linear(&self, linear: &Linear, x: &[N], out: Out<N>) {
        forward_parallel(Weight { matrix: linear, parameters: self.vectors, packs: self.packs }, x, out);
    }
}

impl<N: Dtype> Decoder for CpuDecoder<N> {
    fn path(&self) -> &'static str {
        N::path()
    }

    fn config(&self) -> &ModelConfig {
        &self.model.config
    }

    fn slots(&self) -> &Slots {
        &self.slots
    }

    fn prefill(&mut self, slot: usize, tokens: &[u32]) -> Result<(), PromptError> {
        self.slots.prefill(&self.model.config, slot, tokens)
    }

    fn prefill_scored(&mut self, slot: usize, tokens: &[u32], count: usize) -> Result<(), PromptError> {
        self.slots.prefill(&self.model.config, slot, tokens)?;
        self.slots.score(slot, count);
        self.reused[slot] = 0;
        Ok(())
    }

    fn logits_within(&mut self, budget: usize) -> Result<Logits, EngineError> {
        let (shares, computed) = self.share(budget);
        let work = self.slots.take(shares, computed);
        let mut logits = Logits { vocabulary: self.model.config.vocab_size, ..Logits::default() };
        let (mut parts, mut tokens, mut last): (Vec<Part>, Vec<u32>, Vec<usize>) = Default::default();
        let mut wanted: Vec<Wanted> = Vec::new();
        for (at, turn) in work.iter().enumerate() {
            let (pending, mut done) = (&turn.tokens, 0);
            while done < pending.len() {
                let count = (pending.len() - done).min(self.rows - tokens.len());
                parts.push(Part { slot: turn.slot, row: tokens.len(), count, position: turn.cached + done });
                let next = turn.targets.next.iter().skip(done).take(count).zip(tokens.len()..);
                let beside = turn.targets.count;
                wanted.extend(next.map(|(token, row)| Wanted { slot: turn.slot, row, token: *token, count: beside }));
                tokens.extend_from_slice(&pending[done..done + count]);
                done += count;
                if turn.last && done == pending.len() {
                    last.push(tokens.len() - 1);
                    logits.slots.push(turn.slot);
                }
                let ended = at + 1 == work.len() && done == pending.len();
                if tokens.len() == self.rows || ended {
                    let few = tokens.len() <= FEW;
                    let mut work = || {
                        self.forward(&parts, &tokens);
                        if last.is_empty() { Vec::new() } else { self.head(&last) }
                    };
                    logits.rows.extend(if few { in_team(work) } else { work() });
                    logits.scored.extend(self.scores(&wanted));
                    if self.returns_states {
                        logits.states.extend(self.states(&last));
                    }
                    wanted.clear();
                    parts.clear();
                    tokens.clear();
                    last.clear();
                }
            }
        }
        Ok(logits)
    }

    fn return_states(&mut self) {
        self.returns_states = true;
    }

    fn push(&mut self, slot: usize, token: u32) -> Option<End> {
        self.slots.push(&self.model.config, slot, token)
    }

    fn release(&mut self, slot: usize) {
        self.slots.release(slot);
    }

    fn held(&self, slot: usize) -> &[u32] {
        self.held.get(slot).map_or(&[], Vec::as_slice)
    }

    fn reused(&self, slot: usize) -> usize {
        self.reused.get(slot).copied().unwrap_or_default()
    }

    fn forget(&mut self, slot: usize) {
        if self.slots.is_free(slot) {
            self.held[slot] = Vec::new();
            for caches in &mut self.caches {
                caches[slot] = Cache::default();
            }
        }
    }

    fn memory(&self) -> usize {
        let caches: usize = self.caches.iter().flatten().map(Cache::bytes).sum();
        size_of_val(self.vectors.as_slice())
            + self.embedding.as_ref().map_or(0, Embedding::bytes)
            + N::bytes(&self.packs, &N::Workspace::default())
            + caches
    }
}
