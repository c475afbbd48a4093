//! The trait that a generation backend implements, and the bookkeeping of its slots. Pure.

use super::{EngineError, LogProbabilities, ModelConfig};

/// A generation backend: a model with a fixed number of slots, each of which holds one sequence and its key-value cache.
///
/// [`prefill`](Self::prefill) puts a prompt into a slot, every [`step`](Self::step) yields one token for each slot in use, and
/// [`release`](Self::release) empties one. Prompts may be added between any two steps. With the kernels, the tokens of a slot depend
/// on its prompt alone, bit for bit: not on other slots, the number of threads, when the prompt was added, or the chunks in which
/// steps with a budget process it. The products of candle may add in another order for another number of rows.
pub trait Decoder: Send {
    /// Returns the name of the code path, such as `cpu-f32`, for the records of a run.
    fn path(&self) -> &'static str;

    /// Returns the configuration of the model. A prompt and its response share a context of `max_position_embeddings`.
    fn config(&self) -> &ModelConfig;

    /// Returns the bookkeeping of the slots.
    fn slots(&self) -> &Slots;

    /// Puts a prompt into a free slot. The next [`step`](Self::step) processes it and yields the response's first token.
    ///
    /// # Errors
    /// The prompt is empty, too long or has an unknown token id, or the slot is not free.
    fn prefill(&mut self, slot: usize, tokens: &[u32]) -> Result<(), PromptError>;

    /// As [`prefill`](Self::prefill), and asks for the log-probability of each token of the prompt but the first, with those of the
    /// `count` most likely ones in its place. [`Logits::scored`] has them in the steps that process the prompt. The prompt is computed
    /// whole: it takes over nothing that slots hold.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    fn prefill_scored(&mut self, slot: usize, tokens: &[u32], count: usize) -> Result<(), PromptError>;

    /// Processes all pending tokens and returns the logits that follow them, for each slot in use in ascending order. Call
    /// [`push`](Self::push) for each of these slots before the next call.
    ///
    /// # Errors
    /// A tensor operation fails.
    fn logits(&mut self) -> Result<Logits, EngineError> {
        self.logits_within(usize::MAX)
    }

    /// As [`logits`](Self::logits), but processes at most `budget` tokens: one of each slot that has begun its response, then chunks
    /// of prompts in the order in which they came. A slot whose prompt is not complete has no logits yet. Responses always go on,
    /// and one token of a prompt, whatever the budget.
    ///
    /// # Errors
    /// A tensor operation fails.
    fn logits_within(&mut self, budget: usize) -> Result<Logits, EngineError>;

    /// Returns hidden states beside the logits from now on, as [`Logits::states`]. No logit changes.
    fn return_states(&mut self);

    /// Appends the chosen token to a slot. Returns why the sequence ends with it, in which case the slot is free again.
    fn push(&mut self, slot: usize, token: u32) -> Option<End>;

    /// Empties a slot. Its memory is kept for the next prompt.
    fn release(&mut self, slot: usize);

    /// Returns the tokens whose keys and values a slot holds, also after it was released. A prompt that begins with them takes
    /// them over. A backend without such a cache holds none.
    fn held(&self, slot: usize) -> &[u32] {
        let _ = slot;
        &[]
    }

    /// Returns how many tokens of the latest prompt of a slot were taken over instead of computed. Known after the prompt's first
    /// [`logits`](Self::logits).
    fn reused(&self, slot: usize) -> usize {
        let _ = slot;
        0
    }

    /// Drops what a free slot holds, and its memory.
    fn forget(&mut self, slot: usize) {
        let _ = slot;
    }

    /// Returns the bytes held: weights and caches.
    fn memory(&self) -> usize;

    /// Yields the most likely token for every slot in use, in ascending order of slots.
    ///
    /// # Errors
    /// A tensor operation fails.
    fn step(&mut self) -> Result<Vec<Emitted>, EngineError> {
        self.step_by(&mut |_, logits| most_likely(logits))
    }

    /// Yields the token that `choose` returns for a slot and its logits, for every slot in use, in ascending order of slots.
    ///
    /// # Errors
    /// A tensor operation fails.
    fn step_by(&mut self, choose: &mut dyn FnMut(usize, &[f32]) -> u32) -> Result<Vec<Emitted>, EngineError> {
        Ok(self.step_within(usize::MAX, choose)?.emitted)
    }

    /// As [`step_by`](Self::step_by), within the budget of [`logits_within`](Self::logits_within), with the log-probabilities of prompts
    /// that are scored. Slots whose prompts are not complete yield no token.
    ///
    /// # Errors
    /// A tensor operation fails.
    fn step_within(
        &mut self,
        budget: usize,
        choose: &mut dyn FnMut(usize, &[f32]) -> u32,
    ) -> Result<Step, EngineError> {
        let Logits { slots, rows, vocabulary, scored, states } = self.logits_within(budget)?;
        let chosen = slots.into_iter().zip(rows.chunks_exact(vocabulary.max(1)));
        let emitted = chosen.map(|(slot, logits)| {
            let token = choose(slot, logits);
            Emitted { slot, token, end: self.push(slot, token) }
        });
        Ok(Step { emitted: emitted.collect(), scored, states })
    }
}

/// Returns the index of the largest logit, the first of equal ones.
pub(crate) fn most_likely(logits: &[f32]) -> u32 {
    let mut token = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[token] {
            token = id;
        }
    }
    token as u32
}

/// The logits of the next token for each slot in use.
#[derive(Clone, Debug, Default)]
pub struct Logits {
    /// The slots in ascending order.
    pub slots: Vec<usize>,
    /// Logits [slots, vocabulary].
    pub rows: Vec<f32>,
    /// Size of the vocabulary.
    pub vocabulary: usize,
    /// The log-probabilities of the next tokens of prompts that are scored, with their slots. Those of a slot are in the order of its
    /// prompt, over as many steps as process it.
    pub scored: Vec<(usize, LogProbabilities)>,
    /// The hidden states after the final norm that the logits are computed from [slots, hidden size], in single precision; empty unless
    /// [`Decoder::return_states`] asked for them.
    pub states: Vec<f32>,
}

/// What a step yielded.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// The tokens, in ascending order of slots.
    pub emitted: Vec<Emitted>,
    /// As [`Logits::scored`]. Those of a prompt are complete with the first token that its slot yields.
    pub scored: Vec<(usize, LogProbabilities)>,
    /// As [`Logits::states`]: a row for each of the tokens.
    pub states: Vec<f32>,
}

/// A token that a slot yielded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emitted {
    /// The slot.
    pub slot: usize,
    /// The token. The end token is yielded, too.
    pub token: u32,
    /// The reason why the sequence ends with this token. The slot is then free again.
    pub end: Option<End>,
}

/// The reasons for which a sequence ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The model yielded an end token.
    Stop,
    /// The context is full.
    Context,
}

/// The reasons for which a prompt is refused.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The prompt leaves no room for a response.
    #[error(
        "the prompt has {tokens} tokens, but the model's context holds {context} with at least one of the response"
    )]
    TooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens that fit into the context.
        context: usize,
    },
    /// The prompt has no tokens.
    #[error("the prompt is empty: write at least one character")]
    Empty,
    /// A token id has no row in the embedding.
    #[error("token id {id} is outside the vocabulary of {vocabulary}")]
    Id {
        /// The token id.
        id: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// The slot does not exist or is in use.
    #[error("slot {slot} {state}: there are {slots}, and each takes one prompt at a time")]
    Slot {
        /// The slot.
        slot: usize,
        /// Why it takes no prompt.
        state: &'static str,
        /// Number of slots.
        slots: usize,
    },
}

/// The bookkeeping of a decoder's slots: the tokens that the model has not processed yet, and the positions in the cache.
#[derive(Debug)]
pub struct Slots {
    all: Vec<Slot>,
    /// Number of prompts so far.
    clock: u64,
    computed: usize,
}

/// One sequence.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slot {
    /// Tokens that the model has not processed; empty when the slot is free.
    pub(crate) pending: Vec<u32>,
    /// Tokens that the cache holds.
    pub(crate) cached: usize,
    /// The number of its prompt.
    came: u64,
    /// How many of the most likely tokens are scored beside each token of the prompt, if those are scored.
    scores: Option<usize>,
}

impl Slot {
    /// Whether the next step yields a token of it in any case: a response goes on, or one token of a prompt is left.
    fn goes_on(&self) -> bool {
        self.cached > 0 && self.pending.len() == 1
    }
}

/// What a step computes of a slot.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    /// The slot.
    pub(crate) slot: usize,
    /// Tokens of it that the cache holds.
    pub(crate) cached: usize,
    /// The tokens to compute.
    pub(crate) tokens: Vec<u32>,
    /// Whether no token is left after them, so that their logits are wanted.
    pub(crate) last: bool,
    /// What is scored after them.
    pub(crate) targets: Targets,
}

/// The tokens of a prompt that are scored in a step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Targets {
    /// The token after each of the first tokens of a turn; none if the prompt is not scored.
    pub(crate) next: Vec<u32>,
    /// How many of the most likely tokens are scored beside each.
    pub(crate) count: usize,
}

impl Slots {
    /// Makes `count` free slots, at least one.
    pub(crate) fn new(count: usize) -> Self {
        Self { all: vec![Slot::default(); count.max(1)], clock: 0, computed: 0 }
    }

    /// Returns the number of slots.
    #[allow(clippy::len_without_is_empty, reason = "there is at least one")]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Returns whether a slot is free.
    pub fn is_free(&self, slot: usize) -> bool {
        self.all.get(slot).is_some_and(|slot| slot.pending.is_empty())
    }

    /// Returns the lowest free slot.
    pub fn free(&self) -> Option<usize> {
        self.all.iter().position(|slot| slot.pending.is_empty())
    }

    /// Yields the slots in use with their indices.
    pub(crate) fn used(&self) -> impl Iterator<Item = (usize, &Slot)> {
        self.all.iter().enumerate().filter(|(_, slot)| !slot.pending.is_empty())
    }

    /// Returns the number of tokens that the latest step computed.
    pub fn computed(&self) -> usize {
        self.computed
    }

    /// Returns the prompt of a slot if the model has not begun to process it and it may take over what slots hold.
    pub(crate) fn new_prompt(&self, slot: usize) -> Option<&[u32]> {
        let is_new = |slot: &&Slot| slot.cached == 0 && !slot.pending.is_empty() && slot.scores.is_none();
        let slot = self.all.get(slot).filter(is_new)?;
        Some(&slot.pending)
    }

    /// Shares a budget out: returns slots, in the order in which they take part in a step, and how many of their pending tokens it
    /// computes. `known` returns how many tokens of a prompt that has not begun need not be computed.
    pub(crate) fn share_out(&self, budget: usize, known: impl Fn(&[u32]) -> usize) -> Vec<(usize, usize)> {
        let mut shares: Vec<(usize, usize)> =
            self.used().filter(|(_, slot)| slot.goes_on()).map(|(index, _)| (index, 1)).collect();
        let mut prompts: Vec<(usize, &Slot)> = self.used().filter(|(_, slot)| !slot.goes_on()).collect();
        prompts.sort_by_key(|(_, slot)| slot.came);
        // A prompt is never kept waiting by responses alone.
        let mut left = budget.saturating_sub(shares.len()).max(1);
        for (index, slot) in prompts {
            let known = if slot.cached == 0 && slot.scores.is_none() { known(&slot.pending) } else { 0 };
            let count = left.min(slot.pending.len() - known);
            if count == 0 {
                break;
            }
            shares.push((index, count));
            left -= count;
        }
        shares
    }

    /// Takes the shares of slots in a step, which then counts as done but for [`push`](Self::push). Returns them in ascending order
    /// of slots. `before` is the number of tokens that the step has computed already.
    pub(crate) fn take(&mut self, mut shares: Vec<(usize, usize)>, before: usize) -> Vec<Turn> {
        shares.sort_unstable();
        self.computed = before + shares.iter().map(|(_, count)| count).sum::<usize>();
        let turn = |(slot, count): (usize, usize)| {
            let Slot { pending, cached, scores, .. } = self.all.get_mut(slot)?;
            let (last, cached_before) = (count >= pending.len(), *cached);
            let targets = scores
                .map(|beside| Targets { next: pending.iter().skip(1).take(count).copied().collect(), count: beside });
            // The tokens before logits stay pending until a token is pushed.
            let tokens = if last { pending.clone() } else { pending.drain(..count).collect() };
            if !last {
                *cached += count;
            }
            Some(Turn { slot, cached: cached_before, tokens, last, targets: targets.unwrap_or_default() })
        };
        shares.into_iter().filter_map(turn).collect()
    }

    /// Records that the cache of a slot holds the first `count` of its pending tokens.
    pub(crate) fn skip(&mut self, slot: usize, count: usize) {
        if let Some(slot) = self.all.get_mut(slot) {
            slot.pending.drain(..count);
            slot.cached += count;
        }
    }

    /// See [`Decoder::prefill`].
    pub(crate) fn prefill(&mut self, config: &ModelConfig, slot: usize, tokens: &[u32]) -> Result<(), PromptError> {
        let (context, vocabulary) = (config.max_position_embeddings, config.vocab_size);
        if tokens.is_empty() {
            return Err(PromptError::Empty);
        }
        if tokens.len() >= context {
            return Err(PromptError::TooLong { tokens: tokens.len(), context });
        }
        if let Some(id) = tokens.iter().find(|id| **id as usize >= vocabulary) {
            return Err(PromptError::Id { id: *id, vocabulary });
        }
        let slots = self.all.len();
        let came = self.clock + 1;
        match self.all.get_mut(slot) {
            None => Err(PromptError::Slot { slot, state: "does not exist", slots }),
            Some(used) if !used.pending.is_empty() => Err(PromptError::Slot { slot, state: "is in use", slots }),
            Some(free) => {
                *free = Slot { pending: tokens.to_vec(), cached: 0, came, scores: None };
                self.clock = came;
                Ok(())
            }
        }
    }

    /// Scores the prompt that a slot was just given; see [`Decoder::prefill_scored`].
    pub(crate) fn score(&mut self, slot: usize, count: usize) {
        if let Some(slot) = self.all.get_mut(slot) {
            slot.scores = Some(count);
        }
    }

    /// See [`Decoder::push`].
    pub(crate) fn push(&mut self, config: &ModelConfig, slot: usize, token: u32) -> Option<End> {
        let used = self.all.get_mut(slot)?;
        used.cached += used.pending.len();
        used.pending.clear();
        used.scores = None;
        let end = if config.eos_token_ids.contains(&token) {
            Some(End::Stop)
        } else if used.cached + 1 >= config.max_position_embeddings {
            Some(End::Context)
        } else {
            None
        };
        match end {
            Some(_) => *used = Slot::default(),
            None => used.pending.push(token),
        }
        end
    }

    /// See [`Decoder::release`].
    pub(crate) fn release(&mut self, slot: usize) {
        if let Some(slot) = self.all.get_mut(slot) {
            *slot = Slot::default();
        }
    }
}
