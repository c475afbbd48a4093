//! The phases of a server, and the model that it serves. Pure.

use std::sync::Arc;

use codex_provenance::ModelDigest;
use codex_reports::Reproduction;
use codex_signing::verify::Verified;

use super::{batcher::Batcher, grammar::Grammars, openai::Specials, thinking::Granted};
use crate::text::Tokenizer;

/// The phase of a server.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// It reads the model and verifies its bytes.
    Verifying,
    /// The model is verified; the server loads it, runs the self-check and generates the golden tokens of the promotion again.
    Loading,
    /// It answers requests.
    Ready(Arc<ServedModel>),
    /// It was asked to stop, and still answers requests.
    Draining(Arc<ServedModel>),
    /// It does not serve, for this reason, and is about to exit.
    Refused(Arc<str>),
}

/// The ring of a model that nobody promoted.
pub(super) const UNSIGNED: &str = "unsigned";

/// A loaded model.
#[derive(Debug)]
pub(super) struct ServedModel {
    /// The digest of the bytes that are served.
    pub(super) digest: ModelDigest,
    /// What its bundles say; `None` for a model that is served unsigned.
    pub(super) verified: Option<Verified>,
    /// How it reproduced the golden tokens of its promotion; `None` for a model that is served unsigned.
    pub(super) golden: Option<Reproduction>,
    /// What computes.
    pub(super) device: codex_reports::Device,
    pub(super) tokenizer: Tokenizer,
    /// The tokens that are not the text that decoding returns.
    pub(super) specials: Arc<Specials>,
    /// The most tokens of a prompt and its response together.
    pub(super) context: usize,
    /// What the reasoning of chats and responses is granted.
    pub(super) granted: Granted,
    /// Compiles what binds responses.
    pub(super) grammars: Grammars,
    pub(super) batcher: Batcher,
}

impl ServedModel {
    /// Returns the ring that the model is promoted into, or [`UNSIGNED`].
    pub(super) fn ring(&self) -> &str {
        self.verified.as_ref().map_or(UNSIGNED, |verified| &verified.promoted.promotion.reasons.ring)
    }

    /// Returns what names the bytes and the ring in responses, such as `9f2c41d0a7b3@0D_base_`.
    pub(super) fn fingerprint(&self) -> String {
        format!("{}@{}", self.digest.short(), self.ring())
    }
}

impl Phase {
    /// Returns the model, if the phase has one.
    pub(super) fn model(&self) -> Option<&Arc<ServedModel>> {
        match self {
            Self::Ready(model) | Self::Draining(model) => Some(model),
            Self::Verifying | Self::Loading | Self::Refused(_) => None,
        }
    }

    /// Returns the number of running and waiting requests.
    pub(super) fn active(&self) -> usize {
        self.model().map_or(0, |model| model.batcher.active())
    }

    /// Returns the name of the phase in `/status`.
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
