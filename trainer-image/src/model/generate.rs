//! Text generation: a tokenizer and a decoder with a fixed number of slots. The numerics are in `codex-engine`. Pure, but
//! for [`Generator::load_directory`].
//!
//! ```no_run
//! # use codex::model::Generator;
//! # fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let mut generator = Generator::load_directory(std::path::Path::new("model"), 8, codex_configs::Device::Auto)?;
//! let prompt = generator.tokenizer().encode("347+86:")?;
//! generator.prefill(0, &prompt)?;
//! loop {
//!     let emitted = generator.step()?;
//!     print!("{}", generator.tokenizer().decode(&[emitted[0].token])?);
//!     if emitted[0].end.is_some() {
//!         break;
//!     }
//! }
//! # Ok(())
//! # }
//! ```

use std::{collections::BTreeMap, path::Path, sync::Arc};

use codex_configs::Device;
use codex_engine::{
    Decoder, Emitted, End, EngineError, Layout, ModelConfig, PromptError, Sampler, Settings, Step, decoder,
    load_decoder,
};
use codex_provenance::sealed::Held;

use super::{
    directory::{self, Opened},
    files::{ModelError, ModelFiles},
    stored::Stored,
    weights,
};
use crate::{
    device::backend,
    text::{Stops, TextStream, Tokenizer, TokenizerError},
};

/// A loaded model with its slots; see [`Decoder`].
pub struct Generator {
    pub(super) decoder: Box<dyn Decoder>,
    pub(super) tokenizer: Tokenizer,
    /// Prompts are encoded as they are, even if the model has a chat template.
    pub(super) plain: bool,
}

/// A response to one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The response, including its end token if there is one.
    pub text: String,
    /// Tokens of the response.
    pub tokens: Vec<u32>,
    /// Why the response ended; `None` if it reached the limit of new tokens. [`End::Stop`] also if one of the requested texts ended it,
    /// which `text` lacks.
    pub end: Option<End>,
}

/// A prompt that a slot answers.
struct Running<'a> {
    /// Its place among the prompts.
    index: usize,
    /// The tokens of the response so far.
    tokens: Vec<u32>,
    sampler: Sampler,
    /// The text of the response, if texts end it.
    text: Option<Until<'a>>,
}

/// A text that grows until one of some texts stands in it.
pub(crate) struct Until<'a> {
    stream: TextStream<'static>,
    stops: Stops<'a>,
    text: String,
}

impl<'a> Until<'a> {
    /// Begins a text that ends before the first of these texts, none of which is empty.
    pub(crate) fn new(tokenizer: &Tokenizer, stop: &'a [String]) -> Self {
        Self { stream: tokenizer.clone().into_stream(), stops: Stops::new(stop), text: String::new() }
    }

    /// Takes the next token. Returns the text before the first of the texts once that is complete.
    pub(crate) fn push(&mut self, token: u32) -> Result<Option<String>, TokenizerError> {
        self.text.push_str(&self.stops.push(&self.stream.push(token)?));
        Ok(self.stops.reached().then(|| std::mem::take(&mut self.text)))
    }
}

/// The reasons for which a prompt has no response.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GenerateError {
    /// The decoder refuses the prompt.
    #[error(transparent)]
    Prompt(Arc<PromptError>),
    /// The tokenizer refuses the text.
    #[error(transparent)]
    Tokenizer(Arc<TokenizerError>),
    /// The decoder failed.
    #[error(transparent)]
    Decoder(Arc<EngineError>),
    /// A prompt and the response that is expected are too long together.
    #[error(
        "the prompt and the response have {tokens} tokens, but the model's context holds {context}: shorten the problem"
    )]
    Response {
        /// Tokens of both.
        tokens: usize,
        /// Tokens of the context.
        context: usize,
    },
}

impl GenerateError {
    /// Makes the error of a prompt that stands in a file: errors do not quote files.
    pub(crate) fn of_file(self) -> Self {
        let at = match &self {
            Self::Tokenizer(error) => match **error {
                TokenizerError::Character { at, .. } => Some(at),
                _ => None,
            },
            _ => None,
        };
        at.map_or(self, |at| TokenizerError::CharacterOfFile { at }.into())
    }
}

impl From<PromptError> for GenerateError {
    fn from(error: PromptError) -> Self {
        Self::Prompt(Arc::new(error))
    }
}

impl From<TokenizerError> for GenerateError {
    fn from(error: TokenizerError) -> Self {
        Self::Tokenizer(Arc::new(error))
    }
}

impl From<EngineError> for GenerateError {
    fn from(error: EngineError) -> Self {
        Self::Decoder(Arc::new(error))
    }
}

impl Generator {
    /// Loads a model from the bytes of its files, with `slots` slots. Weights in bf16 stay in it, and so do activations.
    ///
    /// # Errors
    /// A file is missing or invalid, or the device is not usable.
    pub fn load(files: &ModelFiles, slots: usize, device: Device) -> Result<Self, ModelError> {
        let (config, tokenizer) = directory::describe_files(files)?;
        let held = weights::held(files, &Layout::of(&config))?;
        directory::fits(&tokenizer, &config)?;
        let settings = Settings { precision: held.precision(), backend: backend(device), ..Settings::default() };
        let decoder = load_decoder(&config, settings, slots, |range, to| held.read(range, to))?;
        Ok(Self { decoder, tokenizer, plain: false })
    }

    /// As [`load`](Self::load), for files of which the weights need not be in memory: they are read a few at a time, and are exactly
    /// the bytes that were hashed.
    ///
    /// # Errors
    /// As [`load`](Self::load), and a file has changed since it was hashed.
    pub fn load_held(held: Held, slots: usize, device: Device) -> Result<Self, ModelError> {
        let (config, tokenizer) = directory::describe_files(&held.files)?;
        let weights = Stored::held(held, &Layout::of(&config))?;
        directory::fits(&tokenizer, &config)?;
        let settings = Settings { precision: weights.precision(), backend: backend(device), ..Settings::default() };
        let decoder = load_decoder(&config, settings, slots, |range, to| weights.read(range, to))?;
        Ok(Self { decoder, tokenizer, plain: false })
    }

    /// Makes a generator from parameters in the order of [`Layout::of`](codex_engine::Layout::of). Copies the weights.
    ///
    /// # Errors
    /// The parameters belong to another model.
    pub(crate) fn new(
        config: &ModelConfig,
        parameters: &[f32],
        tokenizer: Tokenizer,
        slots: usize,
    ) -> Result<Self, EngineError> {
        Ok(Self { decoder: decoder(config, parameters, Settings::default(), slots)?, tokenizer, plain: false })
    }

    /// Loads a model directory, with `slots` slots. Weights are read a few at a time, so that little memory is needed beside the
    /// decoder's own. Weights in bf16 stay in it, and so do activations.
    ///
    /// # Errors
    /// A file is missing or invalid, or the device is not usable.
    pub fn load_directory(path: &Path, slots: usize, device: Device) -> Result<Self, ModelError> {
        let Opened { config, tokenizer, weights } = directory::open(path)?;
        let settings = Settings { precision: weights.precision(), backend: backend(device), ..Settings::default() };
        let decoder = load_decoder(&config, settings, slots, |range, to| weights.read(range, to))?;
        Ok(Self { decoder, tokenizer, plain: false })
    }

    /// Encodes prompts as they are from now on, even if the model has a chat template.
    pub fn use_plain_prompts(&mut self) {
        self.plain = true;
    }

    /// Returns the ids of a prompt: a user's message by the chat template if the model has one, else the text as it is.
    pub(super) fn encode_prompt(&self, prompt: &str) -> Result<Vec<u32>, TokenizerError> {
        if self.plain { self.tokenizer.encode(prompt) } else { self.tokenizer.encode_prompt(prompt) }
    }

    /// Returns the name of the code path, such as `cpu-f32`.
    pub fn path(&self) -> &'static str {
        self.decoder.path()
    }

    /// Returns the model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Returns the model's configuration. A prompt and its response share a context of `max_position_embeddings` tokens.
    pub fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    /// Returns the number of slots.
    pub fn slots(&self) -> usize {
        self.decoder.slots().len()
    }

    /// Returns whether a slot is free.
    pub fn is_free(&self, slot: usize) -> bool {
        self.decoder.slots().is_free(slot)
    }

    /// Returns the tokens whose keys and values a slot holds; see [`Decoder::held`].
    pub fn held(&self, slot: usize) -> &[u32] {
        self.decoder.held(slot)
    }

    /// Returns how many tokens of a slot's latest prompt were taken over; see [`Decoder::reused`].
    pub fn reused(&self, slot: usize) -> usize {
        self.decoder.reused(slot)
    }

    /// Drops what a free slot holds, and its memory.
    pub fn forget(&mut self, slot: usize) {
        self.decoder.forget(slot);
    }

    /// Returns the lowest free slot.
    pub fn free_slot(&self) -> Option<usize> {
        self.decoder.slots().free()
    }

    /// Puts a prompt into a free slot; see [`Decoder::prefill`].
    ///
    /// # Errors
    /// The prompt is empty, too long or has an unknown token id, or the slot is not free.
    pub fn prefill(&mut self, slot: usize, tokens: &[u32]) -> Result<(), GenerateError> {
        Ok(self.decoder.prefill(slot, tokens)?)
    }

    /// Puts a prompt into a free slot whose tokens are scored, with the `count` most likely ones beside each; see
    /// [`Decoder::prefill_scored`].
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    pub fn prefill_scored(&mut self, slot: usize, tokens: &[u32], count: usize) -> Result<(), GenerateError> {
        Ok(self.decoder.prefill_scored(slot, tokens, count)?)
    }

    /// Yields the most likely token for every slot in use, in ascending order of slots.
    ///
    /// # Errors
    /// The decoder fails.
    pub fn step(&mut self) -> Result<Vec<Emitted>, GenerateError> {
        Ok(self.decoder.step()?)
    }

    /// Yields the token that `choose` returns for a slot and its logits, for every slot in use, in ascending order of slots.
    ///
    /// # Errors
    /// The decoder fails.
    pub fn step_by(&mut self, mut choose: impl FnMut(usize, &[f32]) -> u32) -> Result<Vec<Emitted>, GenerateError> {
        Ok(self.decoder.step_by(&mut choose)?)
    }

    /// As [`step_by`](Self::step_by), but computes at most `budget` tokens: prompts are processed in chunks, and those that are not
    /// complete yield no token; see [`Decoder::step_within`].
    ///
    /// # Errors
    /// The decoder fails.
    pub fn step_within(
        &mut self,
        budget: usize,
        mut choose: impl FnMut(usize, &[f32]) -> u32,
    ) -> Result<Step, GenerateError> {
        Ok(self.decoder.step_within(budget, &mut choose)?)
    }

    /// Returns hidden states beside tokens from now on; see [`Step::states`].
    pub fn return_states(&mut self) {
        self.decoder.return_states();
    }

    /// Returns the number of tokens that the latest step computed.
    pub fn computed(&self) -> usize {
        self.decoder.slots().computed()
    }

    /// Empties a slot. Its memory is kept for the next prompt.
    pub fn release(&mut self, slot: usize) {
        self.decoder.release(slot);
    }

    /// Checks that a prompt can be answered, without answering it. A slot must be free.
    ///
    /// # Errors
    /// The prompt is empty, too long, or has a character outside the vocabulary.
    pub fn check(&mut self, prompt: &str) -> Result<(), GenerateError> {
        let ids = self.encode_prompt(prompt)?;
        let slot = self.free_slot().unwrap_or_default();
        self.prefill(slot, &ids)?;
        self.release(slot);
        Ok(())
    }

    /// Answers many prompts, as many at once as there are slots, each with at most `limit` new tokens. A prompt without a
    /// response has an error in its place. All slots must be free, and are free afterwards. `progress` receives the number of
    /// prompts that are done.
    pub fn complete(
        &mut self,
        prompts: &[&str],
        limit: usize,
        mut progress: impl FnMut(usize),
    ) -> Vec<Result<Completion, GenerateError>> {
        let always = |done| {
            progress(done);
            true
        };
        self.complete_while(prompts, limit, always).unwrap_or_default()
    }

    /// Answers many prompts like [`complete`](Self::complete), and gives up with `None` as soon as `progress` returns false. It
    /// is called after every step of the decoder.
    pub fn complete_while(
        &mut self,
        prompts: &[&str],
        limit: usize,
        progress: impl FnMut(usize) -> bool,
    ) -> Option<Vec<Result<Completion, GenerateError>>> {
        self.sample_while(prompts, limit, |_| Sampler::greedy(), progress)
    }

    /// As [`complete_while`](Self::complete_while), with a sampler for each prompt, by its index.
    pub fn sample_while(
        &mut self,
        prompts: &[&str],
        limit: usize,
        sampler: impl Fn(usize) -> Sampler,
        progress: impl FnMut(usize) -> bool,
    ) -> Option<Vec<Result<Completion, GenerateError>>> {
        self.sample_until(prompts, (limit, &[]), sampler, progress)
    }

    /// As [`sample_while`](Self::sample_while), but a response also ends before the first of the texts `stop`, none of which is empty.
    pub fn sample_until(
        &mut self,
        prompts: &[&str],
        (limit, stop): (usize, &[String]),
        sampler: impl Fn(usize) -> Sampler,
        mut progress: impl FnMut(usize) -> bool,
    ) -> Option<Vec<Result<Completion, GenerateError>>> {
        let mut results: Vec<Option<Result<Completion, GenerateError>>> = prompts.iter().map(|_| None).collect();
        let mut waiting = prompts.iter().enumerate();
        let mut running: BTreeMap<usize, Running<'_>> = BTreeMap::new();
        let mut done = 0;
        loop {
            while let Some(slot) = self.free_slot() {
                let Some((index, prompt)) = waiting.next() else { break };
                let ids = self.encode_prompt(prompt).map_err(GenerateError::from);
                match ids.and_then(|ids| self.prefill(slot, &ids)) {
                    Ok(()) => {
                        let text = (!stop.is_empty()).then(|| Until::new(&self.tokenizer, stop));
                        running.insert(slot, Running { index, tokens: Vec::new(), sampler: sampler(index), text });
                    }
                    Err(error) => {
                        results[index] = Some(Err(error));
                        done += 1;
                    }
                }
            }
            let choose = |slot, logits: &[f32]| match running.get_mut(&slot) {
                Some(running) => running.sampler.choose(logits),
                None => 0,
            };
            let emitted = match self.step_by(choose) {
                Ok(emitted) => emitted,
                Err(error) => {
                    self.release_all(running.keys());
                    return Some(
                        results.into_iter().map(|result| result.unwrap_or_else(|| Err(error.clone()))).collect(),
                    );
                }
            };
            if emitted.is_empty() {
                break;
            }
            for Emitted { slot, token, end } in emitted {
                let Some(Running { index, tokens, text, .. }) = running.get_mut(&slot) else { continue };
                tokens.push(token);
                let stopped = match text {
                    // The token that ends a response is no text.
                    Some(text) if end != Some(End::Stop) => text.push(token),
                    _ => Ok(None),
                };
                if matches!(stopped, Ok(None)) && end.is_none() && tokens.len() < limit {
                    continue;
                }
                let completion = match stopped {
                    Ok(Some(text)) => Ok((text, Some(End::Stop))),
                    Ok(None) => self.tokenizer.decode(tokens).map(|text| (text, end)),
                    Err(error) => Err(error),
                };
                let tokens = std::mem::take(tokens);
                let completion = completion.map(|(text, end)| Completion { text, tokens, end });
                results[*index] = Some(completion.map_err(GenerateError::from));
                running.remove(&slot);
                self.release(slot);
                done += 1;
            }
            if !progress(done) {
                self.release_all(running.keys());
                return None;
            }
        }
        progress(done);
        Some(results.into_iter().map(|result| result.unwrap_or_else(|| Err(PromptError::Empty.into()))).collect())
    }

    pub(super) fn release_all<'a>(&mut self, slots: impl Iterator<Item = &'a usize>) {
        for slot in slots {
            self.decoder.release(*slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::describe;
    use codex_engine::{Engine, EngineState, Layout, Packed, Settings, Shape, engine, initial};

    fn files() -> (Box<dyn Engine>, ModelFiles) {
        let shape = Shape {
            hidden_size: 32,
            intermediate_size: 48,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            max_position_embeddings: 48,
            rope_theta: 10_000.0,
        };
        let tokenizer = Tokenizer::characters().unwrap();
        let config = ModelConfig::new(shape, tokenizer.for_model().unwrap()).unwrap();
        let layout = Arc::new(Layout::of(&config));
        let parameters = initial(&config, &layout, 11);
        let files = describe(&config, &parameters, &tokenizer).unwrap();
        (engine(config, EngineState::new(layout, parameters), Settings::default()).unwrap(), files)
    }

    const PROMPTS: [&str; 5] = ["347+86:", "1-2:", "Jon has 3 eggs. Bob has 64 more.", "9", "208-9:"];

    #[test]
    fn the_same_tokens_alone_or_in_a_batch() {
        let (_, files) = files();
        let complete = |prompts: &[&str], slots, threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut generator = Generator::load(&files, slots, codex_configs::Device::Cpu).unwrap();
                let all = generator.complete(prompts, 30, |_| ());
                all.into_iter().map(|one| one.unwrap()).collect::<Vec<_>>()
            })
        };
        let together = complete(&PROMPTS, 5, 2);
        assert_eq!(together, complete(&PROMPTS, 2, 1));
        for (prompt, expected) in PROMPTS.iter().zip(&together) {
            assert_eq!(&complete(&[prompt], 1, 1)[0], expected);
            assert!(!expected.tokens.is_empty());
        }
    }

    #[test]
    fn tokens_are_those_of_training() {
        let (mut engine, files) = files();
        let mut generator = Generator::load(&files, 3, codex_configs::Device::Cpu).unwrap();
        for (prompt, completion) in PROMPTS.iter().zip(generator.complete(&PROMPTS, 12, |_| ())) {
            let mut ids = generator.tokenizer().encode(prompt).unwrap();
            for token in completion.unwrap().tokens {
                // The greedy choice is the token with the smallest loss.
                let mut loss = |candidate: u32| {
                    let sequence = [ids.as_slice(), &[candidate]].concat();
                    engine.loss(&Packed::new([(sequence.as_slice(), ids.len())])).unwrap()
                };
                let losses: Vec<f64> = (0..98).map(&mut loss).collect();
                let best = (0..98).min_by(|a, b| losses[*a as usize].total_cmp(&losses[*b as usize])).unwrap();
                assert_eq!(best, token);
                ids.push(token);
            }
        }
    }

    #[test]
    fn a_check_refuses_what_completion_refuses_and_leaves_the_slot_free() {
        let (_, files) = files();
        let mut generator = Generator::load(&files, 1, codex_configs::Device::Cpu).unwrap();
        let long = "9".repeat(48);
        for prompt in ["", "caf\u{e9}", &long, &long[1..], "1+1:"] {
            let checked = generator.check(prompt).map_err(|error| error.to_string());
            let completed = generator.complete(&[prompt], 2, |_| ()).remove(0);
            assert_eq!(checked, completed.map(drop).map_err(|error| error.to_string()), "{prompt}");
            assert_eq!(generator.free_slot(), Some(0), "{prompt}");
        }
        assert!(generator.check("").is_err() && generator.check(&long).is_err() && generator.check("1+1:").is_ok());
    }

    #[test]
    fn completion_stops_when_it_is_told_to() {
        let (_, files) = files();
        let mut generator = Generator::load(&files, 2, codex_configs::Device::Cpu).unwrap();
        let mut steps = 0;
        let stopped = generator.complete_while(&PROMPTS, 12, |_| {
            steps += 1;
            steps < 3
        });
        assert!(stopped.is_none() && steps == 3);
        assert_eq!(generator.free_slot(), Some(0));
        assert_eq!(generator.complete(&PROMPTS, 12, |_| ()).len(), PROMPTS.len(), "all slots are free again");
    }

    #[test]
    fn a_response_ends_before_a_text_that_stops_it() {
        let (_, files) = files();
        let mut generator = Generator::load(&files, 2, codex_configs::Device::Cpu).unwrap();
        let whole: Vec<Completion> = generator.complete(&PROMPTS, 30, |_| ()).into_iter().map(Result::unwrap).collect();
        // A text of three characters that the first response has.
        let characters: Vec<char> = whole[0].text.chars().collect();
        let stop = [characters[4..7].iter().collect::<String>()];
        let stopped = generator.sample_until(&PROMPTS, (30, &stop), |_| Sampler::greedy(), |_| true).unwrap();
        for (stopped, whole) in stopped.into_iter().map(Result::unwrap).zip(&whole) {
            let expected = whole.text.find(&stop[0]).map_or(whole.text.as_str(), |at| &whole.text[..at]);
            assert_eq!(stopped.text, expected);
            assert!(whole.tokens.starts_with(&stopped.tokens));
        }
        let first = generator.sample_until(&PROMPTS[..1], (30, &stop), |_| Sampler::greedy(), |_| true).unwrap();
        let first = first.into_iter().next().unwrap().unwrap();
        assert!(first.tokens.len() <= 7 && first.end == Some(End::Stop), "{first:?}");
        assert_eq!(generator.free_slot(), Some(0));
    }

    #[test]
    fn a_wrong_weight_is_named() {
        let (_, mut files) = files();
        let text = String::from_utf8(files["config.json"].clone()).unwrap();
        files.insert("config.json".to_owned(), text.replace("\"vocab_size\": 98", "\"vocab_size\": 97").into_bytes());
        let said = Generator::load(&files, 1, codex_configs::Device::Cpu).err().unwrap().to_string();
        assert!(said.contains("model.embed_tokens.weight") && said.contains("[98, 32]"), "{said}");
    }
}
