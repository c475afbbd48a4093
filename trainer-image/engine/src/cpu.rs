//! The engine on processors: forwards and backwards written out by hand over flat vectors. Pure.

use std::{borrow::Cow, sync::Arc};

use super::{
    AdamW, Engine, EngineError, EngineState, Layout, ModelConfig, Packed,
    adamw::norm,
    attention::{Rotary, Sequences},
    block::{self, BlockShape},
    head::Head,
    layout::Places,
};

/// The engine on processors, in single precision.
#[derive(Debug)]
pub struct CpuEngine {
    config: ModelConfig,
    layout: Arc<Layout>,
    places: Places,
    rotary: Rotary,
    parameters: Vec<f32>,
    gradients: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl CpuEngine {
    /// An engine that goes on from `state`.
    ///
    /// # Errors
    /// When the state is of another model.
    pub fn new(config: ModelConfig, state: EngineState) -> Result<Self, EngineError> {
        let layout = Arc::new(Layout::of(&config));
        state.check(&layout)?;
        let EngineState { parameters, first, second, .. } = state;
        Ok(Self {
            places: Places::of(&config),
            rotary: Rotary::new(config.max_position_embeddings, config.head_dim, config.rope_theta),
            gradients: vec![0.0; parameters.len()],
            config,
            layout,
            parameters,
            first,
            second,
        })
    }

    fn shape<'a>(&'a self, batch: &'a Packed) -> BlockShape<'a> {
        let (heads, width) = (self.config.num_attention_heads, self.config.head_dim);
        BlockShape {
            sequences: Sequences { offsets: &batch.offsets, heads, width, rotary: &self.rotary },
            hidden: self.config.hidden_size,
            inner: self.config.intermediate_size,
            eps: self.config.rms_norm_eps as f32,
        }
    }

    fn head(&self) -> Head<'_> {
        Head {
            norm: &self.parameters[self.places.norm.clone()],
            embedding: &self.parameters[self.places.embedding.clone()],
            eps: self.config.rms_norm_eps as f32,
        }
    }

    /// The residual stream before each block and after the last, and what the way back needs.
    fn forward(&self, batch: &Packed) -> (Vec<Vec<f32>>, Vec<block::Saved>) {
        let hidden = self.config.hidden_size;
        let embedding = &self.parameters[self.places.embedding.clone()];
        let mut x = Vec::with_capacity(batch.tokens.len() * hidden);
        for token in &batch.tokens {
            x.extend_from_slice(&embedding[*token as usize * hidden..][..hidden]);
        }
        let (mut stream, mut saved) = (vec![x], Vec::new());
        for place in &self.places.blocks {
            let x = &stream[stream.len() - 1];
            let mut y = vec![0.0; x.len()];
            saved.push(block::forward(self.shape(batch), &self.parameters[place.clone()], x, &mut y));
            stream.push(y);
        }
        (stream, saved)
    }
}

fn add(sum: &mut [f32], part: &[f32]) {
    sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
}

impl Engine for CpuEngine {
    fn path(&self) -> &'static str {
        "cpu-f32"
    }

    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    fn clear_gradients(&mut self) {
        self.gradients.fill(0.0);
    }

    fn accumulate(&mut self, batch: &Packed, total_targets: usize) -> Result<f64, EngineError> {
        batch.check(&self.config)?;
        let (stream, saved) = self.forward(batch);
        let x = &stream[saved.len()];
        let loss = self.head().loss(x, &batch.targets) / total_targets as f64;
        let mut dy = vec![0.0; x.len()];
        let (dnorm, dembedding) = self.head().backward(x, &batch.targets, 1.0 / total_targets as f32, &mut dy);
        add(&mut self.gradients[self.places.norm.clone()], &dnorm);
        add(&mut self.gradients[self.places.embedding.clone()], &dembedding);
        let mut dx = vec![0.0; x.len()];
        for (layer, saved) in saved.iter().enumerate().rev() {
            let place = self.places.blocks[layer].clone();
            let weights = &self.parameters[place.clone()];
            let gradient = block::backward(self.shape(batch), weights, &stream[layer], saved, &dy, &mut dx);
            add(&mut self.gradients[place], &gradient);
            std::mem::swap(&mut dx, &mut dy);
        }
        let hidden = self.config.hidden_size;
        let embedding = &mut self.gradients[self.places.embedding.clone()];
        for (token, dx) in batch.tokens.iter().zip(dy.chunks_exact(hidden)) {
            add(&mut embedding[*token as usize * hidden..][..hidden], dx);
        }
        Ok(loss)
    }

    fn loss(&mut self, batch: &Packed) -> Result<f64, EngineError> {
        batch.check(&self.config)?;
        let (stream, saved) = self.forward(batch);
        Ok(self.head().loss(&stream[saved.len()], &batch.targets))
    }

    fn gradients(&self) -> Cow<'_, [f32]> {
        Cow::Borrowed(&self.gradients)
    }

    fn gradient_norm(&self) -> Result<f64, EngineError> {
        norm(&self.layout, &self.gradients)
    }

    fn update(&mut self, step: &AdamW) {
        step.apply(&self.layout, &mut self.parameters, &self.gradients, &mut self.first, &mut self.second);
    }

    fn export(&self) -> EngineState {
        EngineState {
            layout: self.layout.clone(),
            parameters: self.parameters.clone(),
            first: self.first.clone(),
            second: self.second.clone(),
        }
    }

    fn import(&mut self, state: &EngineState) -> Result<(), EngineError> {
        state.check(&self.layout)?;
        self.parameters.copy_from_slice(&state.parameters);
        self.first.copy_from_slice(&state.first);
        self.second.copy_from_slice(&state.second);
        Ok(())
    }
}
