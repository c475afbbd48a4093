//! Why a state cannot be restored. Pure.

use crate::training::failure_class::FailureClass;

/// A state that cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The checkpoint lacks a part of the state, or has an unknown one.
    #[error("the checkpoint of step {step} lacks {what}: resume with the version that wrote it")]
    Parts {
        /// Step of the checkpoint.
        step: u64,
        /// The missing part.
        what: String,
    },
    /// The checkpoint has another privacy guarantee.
    #[error(
        "the checkpoint of step {step} was trained with {before}, and this run trains with {now}: use an empty output directory"
    )]
    Privacy {
        /// Step of the checkpoint.
        step: u64,
        /// Its mechanism.
        before: String,
        /// The mechanism of the run.
        now: String,
    },
    /// The key of a private run cannot be drawn.
    #[error("the system gives no random numbers for training.privacy")]
    Random,
    /// The engine rejected the state.
    #[error("the engine cannot continue")]
    Engine(#[from] codex_engine::EngineError),
}

impl StateError {
    pub(crate) fn class(&self) -> FailureClass {
        match self {
            Self::Parts { .. } | Self::Privacy { .. } => FailureClass::FOREIGN_CHECKPOINT,
            Self::Random => FailureClass::TRAINING_FAILED,
            Self::Engine(error) => FailureClass::of_engine(error),
        }
    }
}
