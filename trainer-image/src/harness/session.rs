//! Asks a model about the documents of a task. Reads the model.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use codex_configs::Device;
use codex_engine::{End, Sampler};
use codex_provenance::ModelDigest;
use sha2::Digest as _;

use super::{HarnessError, metric::OutputType, task::Task};
use crate::{
    evaluation::{UnusableModel, hold},
    model::{Completion, GenerateError, Generator},
    tasks::END,
};

/// Number of sequences that are decoded at once.
const SLOTS: usize = 16;

/// What a model said about a document.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Response {
    /// What it wrote, as often as the task repeats.
    Texts(Vec<String>),
    /// The log-probability of each text, and whether it would write it.
    Likelihoods(Vec<(f64, bool)>),
}

/// A model, and how it is asked.
pub(super) struct Session<'a> {
    pub(super) model: &'a Path,
    pub(super) expected: Option<ModelDigest>,
    pub(super) device: Device,
    pub(super) seed: u64,
    pub(super) stop: &'a AtomicBool,
}

impl Session<'_> {
    /// Returns the digest of the model and what it says about each document, or `None` if it was stopped.
    ///
    /// # Errors
    /// The model cannot be loaded, or cannot be asked about a document.
    pub(super) fn ask(&self, task: &Task) -> Result<Option<(ModelDigest, Vec<Response>)>, HarnessError> {
        let questions = task.questions()?;
        let (digest, mut generator) = self.load()?;
        generator.use_plain_prompts();
        let failed = |document: usize, source: GenerateError| HarnessError::Prompt {
            file: task.name.clone(),
            document,
            source: source.of_file(),
        };
        if task.output == OutputType::GenerateUntil {
            for (document, question) in questions.iter().enumerate() {
                generator.check(&question.prompt).map_err(|source| failed(document, source))?;
            }
            let repeats = task.repeats;
            let repeated = questions.iter().flat_map(|question| std::iter::repeat_n(question.prompt.as_str(), repeats));
            let prompts: Vec<&str> = repeated.collect();
            let base = Sampler::new(task.generation.sampling).unwrap_or_else(|_| Sampler::greedy());
            let sampler = |index: usize| base.with_seed(self.seed_of(index / repeats, index % repeats));
            let said = generator.sample_while(&prompts, task.generation.tokens, sampler, |_| !self.is_stopped());
            let Some(said) = said else { return Ok(None) };
            let characters = generator.tokenizer().is_characters();
            let mut texts = Vec::with_capacity(said.len());
            for (index, completion) in said.into_iter().enumerate() {
                let completion = completion.map_err(|source| failed(index / repeats, source))?;
                texts.push(stopped(completion, characters, &task.generation.until));
            }
            let all = texts.chunks(repeats).map(|texts| Response::Texts(texts.to_vec())).collect();
            return Ok(Some((digest, all)));
        }
        let pairs: Vec<(&str, &str)> = questions
            .iter()
            .flat_map(|question| question.continuations.iter().map(|more| (question.prompt.as_str(), more.as_str())))
            .collect();
        let Some(scored) = generator.continuations_while(&pairs, || !self.is_stopped()) else { return Ok(None) };
        let mut scored = scored.into_iter();
        let mut all = Vec::with_capacity(questions.len());
        for (document, question) in questions.iter().enumerate() {
            let own = scored.by_ref().take(question.continuations.len());
            let own = own.map(|one| one.map(|one| (one.likelihood.log_probability, one.is_greedy())));
            all.push(Response::Likelihoods(own.collect::<Result<_, _>>().map_err(|source| failed(document, source))?));
        }
        Ok(Some((digest, all)))
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Returns the seed of a response: a hash, so that it depends on no other document.
    fn seed_of(&self, document: usize, repeat: usize) -> u64 {
        let mut hasher = sha2::Sha256::new();
        hasher.update(b"codex task 1\0");
        for number in [self.seed, document as u64, repeat as u64] {
            hasher.update(number.to_le_bytes());
        }
        hasher.finalize().iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
    }

    /// Hashes and loads the model; what is hashed here is what answers.
    fn load(&self) -> Result<(ModelDigest, Generator), HarnessError> {
        let path = || self.model.to_owned();
        let (manifest, held) = hold(self.model)?;
        let found = manifest.digest();
        if let Some(expected) = self.expected.filter(|expected| *expected != found) {
            return Err(HarnessError::ModelMismatch { path: path(), found, expected });
        }
        let generator = Generator::load_held(held, SLOTS, self.device);
        Ok((found, generator.map_err(|source| UnusableModel::Model { path: path(), source })?))
    }
}

/// Returns what a model wrote up to the first of the texts at which it stops, without its end token.
fn stopped(completion: Completion, characters: bool, until: &[String]) -> String {
    let Completion { mut text, end, .. } = completion;
    // Other tokenizers leave the end token out.
    if characters && end == Some(End::Stop) && text.ends_with(END) {
        text.pop();
    }
    let first = until.iter().filter_map(|stop| text.find(stop.as_str())).min();
    text.truncate(first.unwrap_or(text.len()));
    text
}
