//! How much the engine does and keeps at once. Pure.

use serde::Serialize;

use crate::model::Generator;

/// Tokens of a step on a processor: few, because its time grows with each, and enough to read the weights for many rows at once.
const BATCHED: usize = 256;
/// Tokens of a step on a GPU, which computes few of them no faster.
const BATCHED_ON_GPU: usize = 2048;

/// How much a batcher does and keeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Requests that are generated at the same time, at most.
    pub(super) running: usize,
    /// Requests that wait, at most.
    pub(super) queue: usize,
    /// Tokens whose keys and values running requests have together, at most: at least a whole context. `None` is a whole context for each,
    /// so that none is pre-empted.
    pub(super) cache: Option<usize>,
    /// Tokens whose keys and values are kept for later prompts, at most.
    pub(super) prefixes: usize,
    /// Tokens that a step computes, at most, those of prompts included; `None` for what suits the device. Each running request has
    /// one in any case.
    pub(super) batched: Option<usize>,
}

/// The settings of the engine that are in force, as `/status` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct EngineStatus {
    /// The code path of the device.
    device: &'static str,
    max_num_seqs: usize,
    max_queued_requests: usize,
    max_num_batched_tokens: usize,
    kv_cache_tokens: usize,
    prefix_cache_tokens: usize,
}

impl Room {
    /// Returns the most tokens of a step of a decoder with this code path.
    pub(super) fn budget(self, path: &str) -> usize {
        let suited = if path.contains("cuda") { BATCHED_ON_GPU } else { BATCHED };
        self.batched.unwrap_or(suited).max(self.running)
    }

    /// Returns the most tokens of running requests of a model with this context.
    pub(super) fn bound(self, context: usize) -> usize {
        self.cache.unwrap_or(usize::MAX).clamp(context, self.running.max(1).saturating_mul(context))
    }

    /// Returns the settings that are in force with a generator.
    pub(super) fn in_force(self, generator: &Generator) -> EngineStatus {
        let (device, context) = (generator.path(), generator.config().max_position_embeddings);
        EngineStatus {
            device,
            max_num_seqs: self.running,
            max_queued_requests: self.queue,
            max_num_batched_tokens: self.budget(device),
            kv_cache_tokens: self.bound(context),
            prefix_cache_tokens: self.prefixes,
        }
    }
}
