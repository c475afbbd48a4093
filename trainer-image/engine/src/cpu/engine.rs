//! The training engine on processors: forward and backward passes over buffers that are kept between steps. Pure.

use std::{borrow::Cow, sync::Arc};

use rayon::prelude::*;

use super::{
    activation::Activation,
    attention::{AttentionShape, Rotary, Sequences},
    block::{self, Context, Saved},
    buffer::Buffer,
    embedding::Embedding,
    head::{self, HeadWorkspace},
    kernels::add,
    lora::LoraContext,
    matrix::{Dtype, chunk_rows},
};
use crate::{
    AdamW, Engine, EngineError, EngineState, Layout, Lora, ModelConfig, MomentFormat, Moments, Packed, Settings,
    model::{Adapters, BlockAdapters, Dropout, Model, adapter_flops, flops},
    optim::norm,
};

/// The engine on processors, with activations of type `N`. It trains all parameters, or adapters beside frozen ones.
#[derive(Debug)]
pub(crate) struct CpuEngine<N: Dtype> {
    model: Model,
    settings: Settings,
    rotary: Option<Rotary>,
    /// The layout of the trained parameters.
    layout: Arc<Layout>,
    parameters: Vec<f32>,
    gradients: Vec<f32>,
    moments: Moments,
    average: Option<Vec<f32>>,
    /// The packed trained weights.
    packs: N::Packs,
    /// Whether the packed weights are up to date.
    packed: bool,
    /// What is not trained, if the trained parameters are those of adapters.
    frozen: Option<Frozen<N>>,
    workspace: Workspace<N>,
}

/// A frozen model and the adapters beside it. It has neither gradients nor moments, and its weights exist only packed.
#[derive(Debug)]
struct Frozen<N: Dtype> {
    /// Norms and biases; the model's ranges are in here.
    vectors: Vec<f32>,
    embedding: Embedding,
    packs: N::Packs,
    lora: Lora,
    adapters: Adapters,
    /// The adapters' matrices, and their gradients.
    matrices: Vec<f32>,
    gradients: Vec<f32>,
}

/// Rows that are worth sharing between sequences.
const SHARED: usize = 16;

/// A batch as it is computed: the rows with which all sequences begin, such as those of a system prompt, are computed once.
struct Batch<'a> {
    packed: Cow<'a, Packed>,
    /// The number of shared rows, which lie before the first sequence.
    prefix: usize,
}

/// The buffers of a step beside parameters, gradients and moments.
#[derive(Debug, Default)]
struct Workspace<N: Dtype> {
    /// The residual stream before each block and after the last one.
    stream: Vec<Buffer<f32>>,
    /// Saved activations per block; a single entry with gradient checkpointing.
    saved: Vec<Saved<N>>,
    backward: block::Workspace<N>,
    head: HeadWorkspace<N>,
    dy: Buffer<f32>,
}

impl<N: Dtype> CpuEngine<N> {
    /// Makes an engine that starts from `state`.
    ///
    /// # Errors
    /// The state belongs to another model.
    pub(crate) fn new(config: &ModelConfig, state: EngineState, settings: Settings) -> Result<Self, EngineError> {
        let model = Model::new(config);
        state.check(&model.layout)?;
        let layout = model.layout.clone();
        Ok(Self::start(model, layout, state, settings, None))
    }

    /// Makes an engine that trains adapters beside the frozen parameters `base`, starting from `state`. Copies what it needs
    /// of `base`.
    ///
    /// # Errors
    /// The state or the base belongs to another model, or the model cannot have these adapters.
    pub(crate) fn with_adapters(
        config: &ModelConfig,
        base: &[f32],
        lora: Lora,
        state: EngineState,
        settings: Settings,
    ) -> Result<Self, EngineError> {
        let mut model = Model::new(config);
        let adapters = lora.adapters(config)?;
        state.check(&adapters.layout)?;
        let mut packs = N::Packs::default();
        N::pack(&model.matrices(), base, &mut packs, true);
        let embedding = Embedding::new(&base[model.embedding.clone()]);
        let vectors = model.extract_vectors(base);
        let (matrices, gradients) = (vec![0.0; adapters.size], vec![0.0; adapters.size]);
        let layout = adapters.layout.clone();
        let frozen = Frozen { vectors, embedding, packs, lora, adapters, matrices, gradients };
        Ok(Self::start(model, layout, state, settings, Some(frozen)))
    }

    fn start(
        model: Model,
        layout: Arc<Layout>,
        state: EngineState,
        settings: Settings,
        frozen: Option<Frozen<N>>,
    ) -> Self {
        let EngineState { parameters, moments, average, .. } = state;
        let rotary = Rotary::of(&model.config);
        let gradients = vec![0.0; parameters.len()];
        Self {
            model,
            settings,
            rotary,
            layout,
            parameters,
            gradients,
            moments,
            average,
            packs: N::Packs::default(),
            packed: false,
            frozen,
            workspace: Workspace::default(),
        }
    }

    /// Checks a batch, and finds the rows that can be shared: not with learned positions, and not if adapters drop inputs out,
    /// because each sequence drops others.
    fn prepare<'a>(&self, batch: &'a Packed, train: bool) -> Result<Batch<'a>, EngineError> {
        batch.check(&self.model.config)?;
        let drops = train && self.frozen.as_ref().is_some_and(|frozen| frozen.lora.dropout > 0.0);
        let shared = if drops || self.model.positions.is_some() { None } else { batch.share_prefix(SHARED) };
        Ok(match shared {
            Some((packed, prefix)) => Batch { packed: Cow::Owned(packed), prefix },
            None => Batch { packed: Cow::Borrowed(batch), prefix: 0 },
        })
    }

    /// Runs the forward and the backward pass. `weigh` gets the saved state after the blocks and returns the scale of each target's
    /// loss. Returns Σ of the losses.
    fn step(&mut self, batch: &Packed, weigh: impl FnOnce(Head<'_, N>) -> Vec<f32>) -> Result<f64, EngineError> {
        let batch = &self.prepare(batch, true)?;
        self.forward(batch, true);
        let Self { model, rotary, parameters, gradients, packs, frozen, workspace, settings, .. } = self;
        // Taken out, because the rest of the frozen model is read while they are written.
        let mut taken = frozen.as_mut().map(|frozen| std::mem::take(&mut frozen.gradients));
        let weights = Weights { model, rotary: rotary.as_ref(), parameters, packs, frozen: frozen.as_ref() };
        let context = weights.context(batch, true);
        let batch = &*batch.packed;
        let Workspace { stream, saved, backward, head, dy } = workspace;
        let layers = model.blocks.len();
        let scales = weigh(Head { context, model, x: &stream[layers], batch });
        dy.resize(batch.tokens.len() * context.hidden);
        let of_head = taken.is_none().then_some(&mut gradients[..]);
        let sum = head::backward(context, model, (&stream[layers], &batch.targets, &scales), head, dy, of_head);
        for (layer, block) in model.blocks.iter().enumerate().rev() {
            let kept = saved.len();
            let block = (block, weights.adapters(layer));
            // The last block's activations are still there.
            if settings.gradient_checkpointing && layer + 1 < layers {
                let (x, y) = pair(stream, layer, layer + 1);
                block::forward(context, block, x, y, &mut saved[layer % kept]);
            }
            let gradients = taken.as_mut().unwrap_or(gradients);
            block::backward(context, block, &stream[layer], &saved[layer % kept], backward, dy, gradients);
        }
        match (frozen, taken) {
            (Some(frozen), Some(taken)) => {
                frozen.adapters.gather(&taken, gradients);
                frozen.gradients = taken;
            }
            _ => embed_backward(model, batch, dy, gradients),
        }
        Ok(sum)
    }

    /// Packs the weights, prepares the workspace for a batch, and runs the blocks. With `train`, blocks save their activations
    /// for the backward pass, and adapters drop inputs out.
    fn forward(&mut self, batch: &Batch, train: bool) {
        if !self.packed {
            match &mut self.frozen {
                None => N::pack(&self.model.matrices(), &self.parameters, &mut self.packs, true),
                Some(Frozen { adapters, matrices, .. }) => {
                    adapters.spread(&self.parameters, matrices);
                    N::pack(&adapters.matrices(), matrices, &mut self.packs, true);
                }
            }
            self.packed = true;
        }
        let Self { model, settings, rotary, parameters, packs, frozen, workspace, .. } = self;
        let weights = Weights { model, rotary: rotary.as_ref(), parameters, packs, frozen: frozen.as_ref() };
        let context = weights.context(batch, train);
        let (layers, size) = (model.blocks.len(), batch.packed.tokens.len() * context.hidden);
        workspace.stream.resize_with(if train { layers + 1 } else { 2.max(workspace.stream.len()) }, Buffer::default);
        workspace
            .saved
            .resize_with(if train { settings.kept(layers) } else { workspace.saved.len().max(1) }, Saved::default);
        weights.embed(&batch.packed, &mut workspace.stream[0], size);
        for (layer, block) in model.blocks.iter().enumerate() {
            let (from, to) = if train { (layer, layer + 1) } else { (layer % 2, (layer + 1) % 2) };
            let kept = workspace.saved.len();
            let saved = &mut workspace.saved[if train { layer % kept } else { 0 }];
            let (x, y) = pair(&mut workspace.stream, from, to);
            y.resize(size);
            block::forward(context, (block, weights.adapters(layer)), x, y, saved);
        }
    }
}

/// What the head computes losses from: the residual stream after the last block.
struct Head<'a, N: Dtype> {
    context: Context<'a, N>,
    model: &'a Model,
    x: &'a [f32],
    /// As it is computed: rows at the start may be shared.
    batch: &'a Packed,
}

impl<N: Dtype> Head<'_, N> {
    /// Returns the loss of each sequence.
    fn losses(&self) -> Vec<f64> {
        let Self { context, model, x, batch } = self;
        batch.sums(&head::losses(*context, model, x, &batch.targets).concat())
    }
}

/// The weights of a step, trained and frozen.
#[derive(Debug)]
struct Weights<'a, N: Dtype> {
    model: &'a Model,
    rotary: Option<&'a Rotary>,
    parameters: &'a [f32],
    packs: &'a N::Packs,
    frozen: Option<&'a Frozen<N>>,
}

impl<'a, N: Dtype> Weights<'a, N> {
    /// Returns the context that every block of a batch shares.
    fn context(&self, batch: &'a Batch, train: bool) -> Context<'a, N> {
        let Batch { packed: batch, prefix } = batch;
        let Self { model, rotary, parameters, packs, frozen } = *self;
        let config = &model.config;
        Context {
            sequences: Sequences {
                cu_seqlens: &batch.cu_seqlens,
                prefix: *prefix,
                heads: AttentionShape::new(config, rotary),
            },
            parameters: frozen.map_or(parameters, |frozen| &frozen.vectors),
            packs: frozen.map_or(packs, |frozen| &frozen.packs),
            activation: Activation::of(config),
            hidden: config.hidden_size,
            inner: config.intermediate_size,
            eps: config.norm_eps as f32,
            chunk_rows: chunk_rows(batch.tokens.len()),
            lora: frozen.map(|frozen| LoraContext {
                matrices: &frozen.matrices,
                packs,
                scale: frozen.lora.scale() as f32,
                dropout: Dropout::new(frozen.lora.dropout, batch.noise).filter(|_| train),
            }),
        }
    }

    /// Returns the adapters of a block.
    fn adapters(&self, layer: usize) -> &'a BlockAdapters {
        self.frozen.map_or(&BlockAdapters::NONE, |frozen| &frozen.adapters.blocks[layer])
    }

    /// Looks up the embeddings of the batch's tokens, and of their positions if these are learned.
    fn embed(&self, batch: &Packed, x: &mut Buffer<f32>, size: usize) {
        let hidden = self.model.config.hidden_size;
        x.resize(size);
        let rows = x.chunks_exact_mut(hidden).zip(&batch.tokens);
        if let Some(Frozen { embedding, .. }) = self.frozen {
            rows.for_each(|(row, token)| embedding.read(*token, row));
        } else {
            let embedding = &self.parameters[self.model.embedding.clone()];
            rows.for_each(|(row, token)| row.copy_from_slice(&embedding[*token as usize * hidden..][..hidden]));
        }
        let Some(positions) = &self.model.positions else { return };
        let vectors = self.frozen.map_or(self.parameters, |frozen| &frozen.vectors);
        let positions = &vectors[positions.clone()];
        for bounds in batch.cu_seqlens.windows(2) {
            let rows = &mut x[bounds[0] * hidden..bounds[1] * hidden];
            add(&positions[..rows.len()], rows);
        }
    }
}

#[cfg(test)]
impl<N: Dtype> CpuEngine<N> {
    /// Returns the logits of every row of a batch.
    pub(crate) fn logits(&mut self, batch: &Packed) -> Vec<f32> {
        // Not shared, because the logits of every row are wanted.
        let batch = &Batch { packed: Cow::Borrowed(batch), prefix: 0 };
        self.forward(batch, false);
        let Self { model, rotary, parameters, packs, frozen, workspace, .. } = self;
        let weights = Weights { model, rotary: rotary.as_ref(), parameters, packs, frozen: frozen.as_ref() };
        let context = weights.context(batch, false);
        let x = &workspace.stream[model.blocks.len() % 2];
        let rows = batch.packed.tokens.len();
        let mut normed = vec![N::default(); rows * N::stride(context.hidden)];
        super::norm::norm(x, context.norm(&model.norm), &mut normed);
        let mut logits = vec![0.0; rows * model.head.outputs];
        N::forward(context.weight(&model.head), &normed, super::matrix::Out::Set(&mut logits));
        logits
    }
}

/// Returns two neighbors of the residual stream: one to read, one to write.
fn pair<T>(stream: &mut [T], from: usize, to: usize) -> (&T, &mut T) {
    let (before, after) = stream.split_at_mut(from.max(to));
    if from < to { (&before[from], &mut after[0]) } else { (&after[0], &mut before[to]) }
}

impl<N: Dtype> Frozen<N> {
    /// Returns the bytes held.
    fn bytes(&self) -> usize {
        let floats = self.vectors.len() + self.matrices.len() + self.gradients.len();
        size_of::<f32>() * floats + self.embedding.bytes() + N::bytes(&self.packs, &N::Workspace::default())
    }
}

/// Adds the gradients of the embeddings.
fn embed_backward(model: &Model, batch: &Packed, dx: &[f32], gradients: &mut [f32]) {
    let hidden = model.config.hidden_size;
    let rows = model.config.vocab_size.div_ceil(16);
    gradients[model.embedding.clone()].par_chunks_mut(rows * hidden).enumerate().for_each(|(part, gradient)| {
        let ids = part * rows..(part + 1) * rows;
        for (dx, token) in dx.chunks_exact(hidden).zip(&batch.tokens) {
            let token = *token as usize;
            if ids.contains(&token) {
                add(dx, &mut gradient[(token - ids.start) * hidden..][..hidden]);
            }
        }
    });
    let Some(positions) = &model.positions else { return };
    gradients[positions.clone()].par_chunks_mut(64 * hidden).enumerate().for_each(|(part, gradient)| {
        for bounds in batch.cu_seqlens.windows(2) {
            let (first, last) = (bounds[0] + part * 64, bounds[1].min(bounds[0] + (part + 1) * 64));
            if first < last {
                let dx = &dx[first * hidden..last * hidden];
                add(dx, &mut gradient[..dx.len()]);
            }
        }
    });
}

impl<N: Dtype> Engine for CpuEngine<N> {
    fn path(&self) -> &'static str {
        N::path()
    }

    fn config(&self) -> &ModelConfig {
        &self.model.config
    }

    fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    fn flops(&self, batch: &Packed) -> f64 {
        let Model { config, layout, .. } = &self.model;
        match &self.frozen {
            None => flops(config, layout, batch),
            Some(_) => adapter_flops(config, layout, &self.layout, batch),
        }
    }

    fn peak_flops(&self) -> Result<f64, EngineError> {
        Ok(super::peak::peak_flops::<N>())
    }

    fn clear_gradients(&mut self) -> Result<(), EngineError> {
        let matrices = self.frozen.iter_mut().map(|frozen| &mut frozen.gradients);
        for gradients in matrices.chain([&mut self.gradients]) {
            gradients.par_chunks_mut(1 << 16).for_each(|part| part.fill(0.0));
        }
        Ok(())
    }

    fn accumulate(&mut self, batch: &Packed, total_targets: usize) -> Result<f64, EngineError> {
        let slope = 1.0 / total_targets as f32;
        let sum = self.step(batch, |head| vec![slope; head.batch.targets.len()])?;
        Ok(sum / total_targets as f64)
    }

    fn accumulate_weighted(
        &mut self,
        batch: &Packed,
        weigh: &mut dyn FnMut(&[f64]) -> Vec<f64>,
    ) -> Result<Vec<f64>, EngineError> {
        let mut losses = Vec::new();
        self.step(batch, |head| {
            losses = head.losses();
            head.batch.spread(&weigh(&losses))
        })?;
        Ok(losses)
    }

    fn accumulate_scaled(&mut self, batch: &Packed, scales: &[f32]) -> Result<f64, EngineError> {
        assert_eq!(scales.len(), batch.targets.len(), "one scale for each target");
        // A shared prefix has no targets, and the others keep their order.
        self.step(batch, |_| scales.to_vec())
    }

    fn hidden_states(&mut self, batch: &Packed) -> Result<Vec<f32>, EngineError> {
        batch.check(&self.model.config)?;
        // Not shared, because the states of every row are wanted.
        let batch = &Batch { packed: Cow::Borrowed(batch), prefix: 0 };
        self.forward(batch, false);
        let Self { model, rotary, parameters, packs, frozen, workspace, .. } = self;
        let weights = Weights { model, rotary: rotary.as_ref(), parameters, packs, frozen: frozen.as_ref() };
        let context = weights.context(batch, false);
        let mut states = vec![0.0_f32; batch.packed.tokens.len() * context.hidden];
        super::norm::norm(&workspace.stream[model.blocks.len() % 2], context.norm(&model.norm), &mut states);
        Ok(states)
    }

    fn losses(&mut self, batch: &Packed) -> Result<Vec<f64>, EngineError> {
        let batch = &self.prepare(batch, false)?;
        self.forward(batch, false);
        let Self { model, rotary, parameters, packs, frozen, workspace, .. } = self;
        let weights = Weights { model, rotary: rotary.as_ref(), parameters, packs, frozen: frozen.as_ref() };
        let (context, x) = (weights.context(batch, false), &workspace.stream[model.blocks.len() % 2]);
        Ok(Head { context, model, x, batch: &batch.packed }.losses())
    }

    fn loss(&mut self, batch: &Packed) -> Result<f64, EngineError> {
        let batch = &self.prepare(batch, false)?;
        self.forward(batch, false);
        let Self { model, rotary, parameters, packs, frozen, workspace, .. } = self;
        let weights = Weights { model, rotary: rotary.as_ref(), parameters, packs, frozen: frozen.as_ref() };
        let context = weights.context(batch, false);
        Ok(head::loss(context, model, &workspace.stream[model.blocks.len() % 2], &batch.packed.targets))
    }

    fn parameters(&self) -> Result<Cow<'_, [f32]>, EngineError> {
        Ok(Cow::Borrowed(&self.parameters))
    }

    fn gradients(&self) -> Result<Cow<'_, [f32]>, EngineError> {
        Ok(Cow::Borrowed(&self.gradients))
    }

    fn gradient_norm(&self) -> Result<f64, EngineError> {
        norm(&self.layout, &self.gradients)
    }

    fn update(&mut self, step: &AdamW) -> Result<(), EngineError> {
        step.apply(&self.layout, &mut self.parameters, &self.gradients, &mut self.moments);
        self.packed = false;
        Ok(())
    }

    fn keep_moments(&mut self, format: MomentFormat) -> Result<(), EngineError> {
        self.moments.convert(&self.layout, format);
        Ok(())
    }

    fn set_gradients(&mut self, gradients: &[f32]) -> Result<(), EngineError> {
        self.gradients.copy_from_slice(gradients);
        Ok(())
    }

    fn keep_average(&mut self, keep: bool) -> Result<(), EngineError> {
        if !keep {
            self.average = None;
        } else if self.average.is_none() {
            self.average = Some(self.parameters.clone());
        }
        Ok(())
    }

    fn average(&mut self, decay: f64) -> Result<(), EngineError> {
        let Some(average) = &mut self.average else { return Ok(()) };
        let (keep, take) = (decay as f32, (1.0 - decay) as f32);
        let pieces = average.par_chunks_mut(1 << 16).zip(self.parameters.par_chunks(1 << 16));
        pieces.for_each(|(average, now)| {
            average.iter_mut().zip(now).for_each(|(average, now)| *average = keep * *average + take * now);
        });
        Ok(())
    }

    fn swap_average(&mut self) -> Result<(), EngineError> {
        if let Some(average) = &mut self.average {
            std::mem::swap(average, &mut self.parameters);
            self.packed = false;
        }
        Ok(())
    }

    fn memory(&self) -> usize {
        let Workspace { stream, saved, backward, head, dy } = &self.workspace;
        let stream: usize = stream.iter().chain([dy]).map(Buffer::bytes).sum();
        let saved: usize = saved.iter().map(Saved::bytes).sum();
        let frozen = self.frozen.as_ref().map_or(0, Frozen::bytes);
        let vectors = 2 + usize::from(self.average.is_some());
        let trained = vectors * size_of::<f32>() * self.parameters.len() + self.moments.bytes();
        trained + frozen + stream + saved + backward.bytes(&self.packs) + head.bytes()
    }

    fn export(&self) -> Result<EngineState, EngineError> {
        Ok(EngineState {
            layout: self.layout.clone(),
            parameters: self.parameters.clone(),
            moments: self.moments.clone(),
            average: self.average.clone(),
        })
    }

    fn export_into(&self, state: &mut EngineState) -> Result<(), EngineError> {
        state.layout.clone_from(&self.layout);
        state.parameters.clone_from(&self.parameters);
        state.moments.copy_from(&self.moments);
        state.average.clone_from(&self.average);
        Ok(())
    }

    fn import(&mut self, state: &EngineState) -> Result<(), EngineError> {
        state.check(&self.layout)?;
        self.parameters.copy_from_slice(&state.parameters);
        self.moments.copy_from(&state.moments);
        self.average.clone_from(&state.average);
        self.packed = false;
        Ok(())
    }
}
