//! The errors of an engine. Pure.

use super::LoraError;

/// The reasons for which an engine refuses a batch or a state.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A sequence is longer than the context.
    #[error("a sequence has {tokens} tokens, but the model's context holds {context}")]
    TooLong {
        /// Tokens of the sequence.
        tokens: usize,
        /// Tokens that fit into the context.
        context: usize,
    },
    /// A token id has no row in the embedding.
    #[error("token id {id} is outside the vocabulary of {vocabulary}")]
    Id {
        /// The token id.
        id: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// A gradient is NaN or infinite.
    #[error("the gradient of {tensor} is not finite")]
    NotFinite {
        /// The first tensor with such a gradient.
        tensor: String,
    },
    /// A state belongs to another model.
    #[error("the state has {found} {what}, but the model has {expected}")]
    State {
        /// Which vector differs.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The expected length.
        expected: usize,
    },
    /// The model cannot have the adapters.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// This program was built without CUDA.
    #[error("this program was built without CUDA: use the image with CUDA, or a CPU")]
    WithoutCuda,
    /// CUDA has no usable GPU.
    #[error("no GPU is usable")]
    Cuda(#[source] Box<candle_core::Error>),
    /// `f16` on a processor.
    #[error("fp16 needs a GPU: use bf16 or fp32")]
    Half,
    /// candle does not multiply `bf16` on a processor.
    #[error("candle multiplies no bf16 on a CPU: use fp32")]
    Precision,
    /// A candle operation failed.
    #[error("a tensor operation failed")]
    Tensor(#[from] candle_core::Error),
}
