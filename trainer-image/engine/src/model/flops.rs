//! FLOPs of a training step. Pure.

use super::{Layout, ModelConfig};
use crate::Packed;

/// Returns the floating-point operations of one forward and backward pass over `batch`. A multiply-add counts as two.
///
/// The forward pass takes 2 per weight and token, the backward pass twice that: **6 · weights · tokens**. The weights of the
/// blocks count for all tokens, those of the output projection (`vocabulary × width`) for tokens with a target only; an
/// embedding lookup takes none. Attention takes **12 · layers · heads · head width** for each pair of a query and a key that
/// it sees (4 · heads · head width in the forward pass, for scores and values). A sequence of `t` tokens has `t (t + 1) / 2`
/// such pairs, because attention is causal and stays inside a sequence. Norms, activations and the optimizer are left out,
/// as is usual (Kaplan et al. 2020, appendix of Chowdhery et al. 2022), although those count the full square of attention.
pub fn flops(config: &ModelConfig, layout: &Layout, batch: &Packed) -> f64 {
    let (products, attention) = forward(config, layout, batch);
    3.0 * (products + attention)
}

/// Returns the floating-point operations of one forward and backward pass that trains the adapters of `trained` beside a
/// frozen model of `layout`: as [`flops`], but frozen weights have no gradient, so that their backward pass takes only as much
/// as the forward pass.
pub(crate) fn adapter_flops(config: &ModelConfig, layout: &Layout, trained: &Layout, batch: &Packed) -> f64 {
    let (products, attention) = forward(config, layout, batch);
    2.0 * products + 3.0 * attention + 6.0 * trained.size() as f64 * batch.tokens.len() as f64
}

/// Returns the operations of the products and of the attention of a forward pass.
fn forward(config: &ModelConfig, layout: &Layout, batch: &Packed) -> (f64, f64) {
    let looked_up = |name: &str| ["embed_tokens", "wte", "wpe", "lm_head"].iter().any(|part| name.contains(part));
    let blocks = layout.tensors().iter().filter(|tensor| tensor.shape.len() > 1 && !looked_up(&tensor.name));
    let blocks: usize = blocks.map(crate::Tensor::count).sum();
    let head = config.vocab_size * config.hidden_size;
    let pairs: f64 = batch
        .cu_seqlens
        .windows(2)
        .map(|bounds| {
            let tokens = (bounds[1] - bounds[0]) as f64;
            tokens * (tokens + 1.0) / 2.0
        })
        .sum();
    let attention = 4.0 * (config.num_hidden_layers * config.num_attention_heads * config.head_dim) as f64 * pairs;
    (2.0 * (blocks as f64 * batch.tokens.len() as f64 + head as f64 * batch.targets.len() as f64), attention)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Shape, Vocabulary};

    #[test]
    fn a_small_model_counted_by_hand() {
        let shape = Shape {
            hidden_size: 32,
            intermediate_size: 96,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            max_position_embeddings: 64,
            rope_theta: 10_000.0,
        };
        let config = ModelConfig::new(shape, Vocabulary { size: 50, end: 1, pad: 0 }).unwrap();
        let ids: Vec<u32> = vec![3; 6];
        // Sequences of 5 and 3 inputs, with 3 and 3 targets.
        let batch = Packed::new([(&ids[..], 3), (&ids[..4], 1)]);
        assert_eq!((batch.tokens.len(), batch.targets.len()), (8, 6));
        let weights = 2 * (4 * 32 * 32 + 3 * 32 * 96);
        let expected = 6 * weights * 8 + 6 * 50 * 32 * 6 + 12 * 2 * 32 * (15 + 6);
        assert!((flops(&config, &Layout::of(&config), &batch) - f64::from(expected)).abs() < 0.5);
    }
}
