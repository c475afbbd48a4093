//! The training engine on processors: forward and backward passes over buffers that are kept between steps. Pure.

use std::{borrow::Cow, sync::Arc};

use rayon::prelude::*;

use super::{
    activation::Activation,
    attention::{AttentionShape, Rotary, Sequences},
    block::{self, Context, Saved},
    buffer::Buffer,
    head::{self, HeadWorkspace},
    kernels::add,
    matrix::{Dtype, chunk_rows},
};
use crate::{
    AdamW, Engine, EngineError, EngineState, Layout, ModelConfig, Packed, Settings, model::Model, optim::norm,
};

/// The engine on processors, with activations of type `N`.
#[derive(Debug)]
pub(crate) struct CpuEngine<N: Dtype> {
    model: Model,
    settings: Settings,
    rotary: Option<Rotary>,
    parameters: Vec<f32>,
    gradients: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
    packs: N::Packs,
    /// Whether the packed weights are up to date.
    packed: bool,
    workspace: Workspace<N>,
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
        let EngineState { parameters, first, second, .. } = state;
        let rotary = Rotary::of(config);
        let gradients = vec![0.0; parameters.len()];
        Ok(Self {
            model,
            settings,
            rotary,
            parameters,
            gradients,
            first,
            second,
            packs: N::Packs::default(),
            packed: false,
            workspace: Workspace::default(),
        })
    }

    /// Packs the weights, prepares the workspace for a batch, and runs the blocks. With `keep`, blocks save their
    /// activations for the backward pass.
    fn forward(&mut self, batch: &Packed, keep: bool) -> Result<(), EngineError> {
        batch.check(&self.model.config)?;
        if !self.packed {
            N::pack(&self.model, &self.parameters, &mut self.packs, true);
            self.packed = true;
        }
        let Self { model, rotary, parameters, packs, workspace, .. } = self;
        let context = context::<N>(model, rotary.as_ref(), parameters, packs, batch);
        let (layers, size) = (model.blocks.len(), batch.tokens.len() * context.hidden);
        workspace.stream.resize_with(if keep { layers + 1 } else { 2.max(workspace.stream.len()) }, Buffer::default);
        workspace
            .saved
            .resize_with(if keep { self.settings.kept(layers) } else { workspace.saved.len().max(1) }, Saved::default);
        embed(model, parameters, batch, &mut workspace.stream[0], size);
        for (layer, block) in model.blocks.iter().enumerate() {
            let (from, to) = if keep { (layer, layer + 1) } else { (layer % 2, (layer + 1) % 2) };
            let kept = workspace.saved.len();
            let saved = &mut workspace.saved[if keep { layer % kept } else { 0 }];
            let (x, y) = pair(&mut workspace.stream, from, to);
            y.resize(size);
            block::forward(context, block, x, y, saved);
        }
        Ok(())
    }
}

#[cfg(test)]
impl<N: Dtype> CpuEngine<N> {
    /// Returns the logits of every row of a batch.
    pub(crate) fn logits(&mut self, batch: &Packed) -> Vec<f32> {
        self.forward(batch, false).unwrap();
        let Self { model, rotary, parameters, packs, workspace, .. } = self;
        let context = context::<N>(model, rotary.as_ref(), parameters, packs, batch);
        let x = &workspace.stream[model.blocks.len() % 2];
        let rows = batch.tokens.len();
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

/// Returns the context that every block of a batch shares.
fn context<'a, N: Dtype>(
    model: &'a Model,
    rotary: Option<&'a Rotary>,
    parameters: &'a [f32],
    packs: &'a N::Packs,
    batch: &'a Packed,
) -> Context<'a, N> {
    let config = &model.config;
    Context {
        sequences: Sequences { cu_seqlens: &batch.cu_seqlens, heads: AttentionShape::new(config, rotary) },
        parameters,
        packs,
        activation: Activation::of(config),
        hidden: config.hidden_size,
        inner: config.intermediate_size,
        eps: config.norm_eps as f32,
        chunk_rows: chunk_rows(batch.tokens.len()),
    }
}

/// Looks up the embeddings of the batch's tokens, and of their positions if these are learned.
fn embed(model: &Model, parameters: &[f32], batch: &Packed, x: &mut Buffer<f32>, size: usize) {
    let hidden = model.config.hidden_size;
    x.resize(size);
    let embedding = &parameters[model.embedding.clone()];
    for (row, token) in x.chunks_exact_mut(hidden).zip(&batch.tokens) {
        row.copy_from_slice(&embedding[*token as usize * hidden..][..hidden]);
    }
    let Some(positions) = &model.positions else { return };
    let positions = &parameters[positions.clone()];
    for bounds in batch.cu_seqlens.windows(2) {
        let rows = &mut x[bounds[0] * hidden..bounds[1] * hidden];
        add(&positions[..rows.len()], rows);
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
        &self.model.layout
    }

    fn clear_gradients(&mut self) {
        self.gradients.par_chunks_mut(1 << 16).for_each(|part| part.fill(0.0));
    }

    fn accumulate(&mut self, batch: &Packed, total_targets: usize) -> Result<f64, EngineError> {
        self.forward(batch, true)?;
        let Self { model, rotary, parameters, gradients, packs, workspace, settings, .. } = self;
        let context = context::<N>(model, rotary.as_ref(), parameters, packs, batch);
        let Workspace { stream, saved, backward, head, dy } = workspace;
        let layers = model.blocks.len();
        dy.resize(batch.tokens.len() * context.hidden);
        let slope = 1.0 / total_targets as f32;
        let sum = head::backward(context, model, (&stream[layers], &batch.targets), slope, head, dy, gradients);
        for (layer, block) in model.blocks.iter().enumerate().rev() {
            let kept = saved.len();
            // The last block's activations are still there.
            if settings.gradient_checkpointing && layer + 1 < layers {
                let (x, y) = pair(stream, layer, layer + 1);
                block::forward(context, block, x, y, &mut saved[layer % kept]);
            }
            block::backward(context, block, &stream[layer], &saved[layer % kept], backward, dy, gradients);
        }
        embed_backward(model, batch, dy, gradients);
        Ok(sum / total_targets as f64)
    }

    fn loss(&mut self, batch: &Packed) -> Result<f64, EngineError> {
        self.forward(batch, false)?;
        let Self { model, rotary, parameters, packs, workspace, .. } = self;
        let context = context::<N>(model, rotary.as_ref(), parameters, packs, batch);
        Ok(head::loss(context, model, &workspace.stream[model.blocks.len() % 2], &batch.targets))
    }

    fn parameters(&self) -> Cow<'_, [f32]> {
        Cow::Borrowed(&self.parameters)
    }

    fn gradients(&self) -> Cow<'_, [f32]> {
        Cow::Borrowed(&self.gradients)
    }

    fn gradient_norm(&self) -> Result<f64, EngineError> {
        norm(&self.model.layout, &self.gradients)
    }

    fn update(&mut self, step: &AdamW) {
        step.apply(&self.model.layout, &mut self.parameters, &self.gradients, &mut self.first, &mut self.second);
        self.packed = false;
    }

    fn memory(&self) -> usize {
        let Workspace { stream, saved, backward, head, dy } = &self.workspace;
        let stream: usize = stream.iter().chain([dy]).map(Buffer::bytes).sum();
        let saved: usize = saved.iter().map(Saved::bytes).sum();
        4 * size_of::<f32>() * self.parameters.len() + stream + saved + backward.bytes(&self.packs) + head.bytes()
    }

    fn export(&self) -> EngineState {
        EngineState {
            layout: self.model.layout.clone(),
            parameters: self.parameters.clone(),
            first: self.first.clone(),
            second: self.second.clone(),
        }
    }

    fn export_into(&self, state: &mut EngineState) {
        state.layout.clone_from(&self.model.layout);
        state.parameters.clone_from(&self.parameters);
        state.first.clone_from(&self.first);
        state.second.clone_from(&self.second);
    }

    fn import(&mut self, state: &EngineState) -> Result<(), EngineError> {
        state.check(&self.model.layout)?;
        self.parameters.copy_from_slice(&state.parameters);
        self.first.copy_from_slice(&state.first);
        self.second.copy_from_slice(&state.second);
        self.packed = false;
        Ok(())
    }
}
