//! How far a server is, and what it holds once it serves. Pure.

use std::sync::Arc;

use codex_signing::verify::Verified;

use super::engine::Engine;
use crate::tokenizer::Tokenizer;

/// How far a server is.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// Reading the model and checking what was read.
    Verifying,
    /// Verified; loading and trying it.
    Loading,
    /// Answers.
    Ready(Arc<Model>),
    /// Answers what still comes, and is about to end.
    Draining(Arc<Model>),
    /// Does not serve, and is about to end; why.
    Refused(Arc<str>),
}

/// A verified, loaded model.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) verified: Verified,
    pub(super) tokenizer: Tokenizer,
    /// Tokens that a prompt and its response may have together.
    pub(super) context: usize,
    pub(super) engine: Engine,
}

impl Phase {
    /// The model, where there is one to answer with.
    pub(super) fn model(&self) -> Option<&Arc<Model>> {
        match self {
            Self::Ready(model) | Self::Draining(model) => Some(model),
            Self::Verifying | Self::Loading | Self::Refused(_) => None,
        }
    }

    /// Requests under way or waiting.
    pub(super) fn active(&self) -> usize {
        self.model().map_or(0, |model| model.engine.active())
    }

    /// The word for it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Verifying => "verifying",
            Self::Loading => "loading",
            Self::Ready(_) => "ready",
            Self::Draining(_) => "draining",
            Self::Refused(_) => "refused",
        }
    }
}
