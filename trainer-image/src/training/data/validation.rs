//! Evaluation during training: the loss on validation records, always the same ones in the same order, and completions of some
//! of their prompts for the log. Reads files; everything else is pure.
//!
//! Validation records are those of the data named `validation`, which is never trained on, or those that `data.validation` holds
//! out of the training data, or else the held-out problems of each synthetic task. Synthetic data of that name consists of held-out
//! problems, too.

use std::{
    collections::BTreeSet,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use codex_configs::{DpoSettings, Synthetic, Training, VALIDATION};
use codex_engine::{Emitted, Engine, EngineError, ModelConfig, Packed};
use codex_provenance::{DataDigest, Sha256};
use codex_reports::DataFile;

use super::{
    DataError, HeldOutLengths, Stop,
    dataset::Dataset,
    encoder::{Encoded, Encoder, Question, pack},
    input::Input,
    languages::Languages,
    records::{Limits, tokenize},
    source::Source,
};
use crate::{
    error::chain,
    model::{GenerateError, Generator},
    tasks::{self, Split, TaskError, materialise},
    text::Tokenizer,
    training::objective::{Measured, Pair, Tally, measure_pairs},
};

/// Validation records of a run.
#[derive(Debug)]
pub(crate) struct ValidationSet {
    /// Digest of the data named `validation`, if the records are from there.
    file: Option<DataDigest>,
    lengths: HeldOutLengths,
    batches: Vec<Packed>,
    /// Digests of the records of each batch, under which their log-probabilities are kept; none unless preferences are trained.
    keys: Vec<Vec<Sha256>>,
    /// Log-probabilities of the records of each batch under the reference.
    reference: Vec<Vec<Pair>>,
    targets: usize,
    samples: Vec<Question>,
    max_new_tokens: usize,
}

/// Result of one evaluation.
#[derive(Debug)]
pub(crate) struct Evaluated {
    /// The objective on the validation records.
    pub(crate) measured: Measured,
    /// Completions of the first prompts.
    pub(crate) samples: Vec<Sample>,
}

/// A prompt and its completion by the model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    /// Prompt of the record.
    pub(crate) prompt: String,
    /// Completion, or the error that prevented it.
    pub(crate) written: Result<String, String>,
    /// Response of the record.
    pub(crate) response: String,
    /// Whether the answers are equal; `None` if the record has no answer.
    pub(crate) correct: Option<bool>,
}

impl std::fmt::Display for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mark = match self.correct {
            Some(true) => "right",
            Some(false) => "wrong",
            None => "-",
        };
        match &self.written {
            Ok(text) => write!(f, "{mark:<5}  {}  {text}", self.prompt),
            Err(error) => write!(f, "{mark:<5}  {}  ({error})", self.prompt),
        }
    }
}

impl ValidationSet {
    /// Reads the validation records of a run that trains on `dataset`; `None` if the run does not evaluate. `seen` is called for a
    /// file as soon as it is hashed.
    ///
    /// # Errors
    /// When a file cannot be read, has another digest, or holds a record that cannot be trained on, and
    /// [`DataError::Interrupted`] soon after `stop` returns true.
    pub(crate) fn read(
        training: &Training,
        files: &[(String, PathBuf)],
        dataset: &Dataset,
        encoder: Encoder,
        stop: Stop,
        mut seen: impl FnMut(DataFile),
    ) -> Result<Option<Self>, DataError> {
        let settings = &training.settings.training;
        if settings.eval_every.is_none() {
            return Ok(None);
        }
        let (mut batches, mut keys, mut samples) = (Vec::new(), Vec::new(), Vec::new());
        let mut file = None;
        let held_out = if training.settings.data.validation.share > 0.0 {
            let sources = dataset.sources.iter();
            sources
                .map(|source| of_source(source, settings.eval_samples, encoder))
                .collect::<Result<Vec<_>, DataError>>()?
        } else {
            held_out(training, files, &dataset.scratch, encoder, stop, |read| {
                file = Some(read.sha256);
                seen(read);
            })?
        };
        let mut lengths = Vec::new();
        for HeldOut { records, questions } in held_out {
            lengths.push(records.iter().map(Encoded::rows).collect());
            for batch in records.chunks(settings.batch_size) {
                if encoder.preferences {
                    keys.push(batch.iter().map(Encoded::key).collect());
                }
                batches.push(pack(batch));
            }
            samples.push(questions.into_iter());
        }
        Ok(Some(Self {
            file,
            lengths: HeldOutLengths(lengths),
            targets: batches.iter().map(|batch| batch.targets.len()).sum(),
            batches,
            keys,
            reference: Vec::new(),
            samples: interleave(samples, settings.eval_samples),
            max_new_tokens: settings.eval_max_new_tokens,
        }))
    }

    /// Checks that the data named `validation` is not also training data.
    ///
    /// # Errors
    /// [`DataError::TrainedOn`] when a file of `dataset` has the same bytes.
    pub(crate) fn check_apart_from(&self, dataset: &Dataset) -> Result<(), DataError> {
        match dataset.files().find(|file| Some(file.sha256) == self.file) {
            Some(file) => Err(DataError::TrainedOn { name: file.name.clone() }),
            None => Ok(()),
        }
    }

    /// Digest of the data named `validation`, if the records are from there.
    pub(crate) fn file(&self) -> Option<DataDigest> {
        self.file
    }

    /// Lengths of the records.
    pub(crate) fn lengths(&self) -> HeldOutLengths {
        self.lengths.clone()
    }

    /// Yields each batch of preferences with the digests of its records.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&Vec<Sha256>, &Packed)> {
        self.keys.iter().zip(&self.batches)
    }

    /// Sets the log-probabilities under the reference.
    pub(crate) fn set_reference(&mut self, known: impl Fn(&Sha256) -> Option<Pair>) {
        let of = |keys: &Vec<Sha256>| keys.iter().map(|key| known(key).unwrap_or([f64::NAN; 2])).collect();
        self.reference = self.keys.iter().map(of).collect();
    }

    /// Computes the objective: the mean cross-entropy per target token in nats, or the mean loss per pair; `None` if `stop` returns
    /// true before a batch.
    ///
    /// # Errors
    /// When the engine rejects a batch.
    pub(crate) fn measure(
        &self,
        engine: &mut dyn Engine,
        preferences: Option<DpoSettings>,
        stop: Stop,
    ) -> Result<Option<Measured>, EngineError> {
        if let Some(settings) = preferences {
            let mut tally = Tally::default();
            for (batch, reference) in self.batches.iter().zip(&self.reference) {
                if stop() {
                    return Ok(None);
                }
                measure_pairs(engine, &settings, batch, reference, &mut tally)?;
            }
            return Ok(Some(tally.finish()));
        }
        let mut sum = 0.0;
        for batch in &self.batches {
            if stop() {
                return Ok(None);
            }
            sum += engine.loss(batch)?;
        }
        Ok(Some(Measured { loss: sum / self.targets.max(1) as f64, preferences: None, sampled: None }))
    }

    /// Whether prompts are completed.
    pub(crate) fn has_samples(&self) -> bool {
        !self.samples.is_empty()
    }

    /// Completes the first prompts with these parameters of the model; `None` if `stop` returns true before a token.
    ///
    /// # Errors
    /// When the engine rejects the parameters.
    pub(crate) fn samples(
        &self,
        config: &ModelConfig,
        parameters: &[f32],
        tokenizer: &Tokenizer,
        stop: Stop,
    ) -> Result<Option<Vec<Sample>>, EngineError> {
        if self.samples.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let slots = self.samples.len();
        let mut generator = Generator::new(config, parameters, tokenizer.clone(), slots)?;
        let Some(written) = self.complete(&mut generator, stop) else { return Ok(None) };
        let samples = self.samples.iter().zip(written).map(|(record, written)| {
            let written = written.map_err(|error| chain(&error));
            let found = written.as_deref().ok().and_then(final_answer);
            Sample {
                correct: final_answer(&record.response).map(|expected| found == Some(expected)),
                prompt: record.prompt.clone(),
                response: record.response.clone(),
                written,
            }
        });
        Ok(Some(samples.collect()))
    }

    /// Completes the prompt of each sample. [`Generator::complete`] cannot be interrupted.
    fn complete(&self, generator: &mut Generator, stop: Stop) -> Option<Vec<Result<String, GenerateError>>> {
        let prompts = self.samples.iter().enumerate();
        let taken: Vec<Result<(), GenerateError>> =
            prompts.map(|(slot, question)| generator.prefill(slot, &question.ids)).collect();
        let mut tokens = vec![Vec::new(); taken.len()];
        loop {
            if stop() {
                return None;
            }
            let emitted = match generator.step() {
                Ok(emitted) => emitted,
                Err(error) => return Some(taken.iter().map(|_| Err(error.clone())).collect()),
            };
            if emitted.is_empty() {
                break;
            }
            for Emitted { slot, token, end } in emitted {
                tokens[slot].push(token);
                if end.is_none() && tokens[slot].len() >= self.max_new_tokens {
                    generator.release(slot);
                }
            }
        }
        let written = taken.into_iter().zip(&tokens).map(|(taken, tokens)| {
            taken?;
            Ok(generator.tokenizer().decode(tokens)?)
        });
        Some(written.collect())
    }
}

/// Returns the text after the last `#`, without the mark that ends the responses of synthetic tasks; `None` without a `#`.
fn final_answer(response: &str) -> Option<&str> {
    let answer = response.rsplit_once('#')?.1.trim();
    Some(answer.strip_suffix(tasks::END).unwrap_or(answer))
}

/// The validation records of a source, and the questions among the first of them.
#[derive(Debug, Default)]
struct HeldOut {
    records: Vec<Encoded>,
    questions: Vec<Question>,
}

/// Returns the first `wanted` validation records of an input, and the number of all. All of them are checked.
fn of_input(
    input: &Input,
    wanted: usize,
    samples: usize,
    encoder: Encoder,
    stop: Stop,
) -> Result<(HeldOut, u64), DataError> {
    let mut held_out = HeldOut::default();
    let counts = tokenize(input, encoder, &Languages::default(), Limits::default(), stop, |record| {
        if held_out.records.len() < wanted {
            if held_out.questions.len() < samples {
                held_out.questions.extend(encoder.question(&record.example));
            }
            held_out.records.push(record.encoded);
        }
        Ok(())
    })?;
    Ok((held_out, counts.seen))
}

/// Returns the records that are held out of a source of training data. The questions are those that come first in the input, so
/// that not all of it is read again.
fn of_source(source: &Source, samples: usize, encoder: Encoder) -> Result<HeldOut, DataError> {
    let entries = source.selection.held_out.iter().map(|index| source.store.entry(u64::from(*index)));
    let entries = entries.collect::<Result<Vec<_>, _>>()?;
    let records = entries.iter().map(|entry| source.store.record(*entry)).collect::<Result<Vec<_>, _>>()?;
    let mut waiting: BTreeSet<u32> = entries.iter().map(|entry| entry.number).collect();
    let (mut questions, mut number) = (Vec::new(), 0);
    if samples > 0 {
        encoder.each_record(&source.input, |example| {
            if waiting.remove(&number) {
                questions.extend(encoder.question(&example));
            }
            number += 1;
            let done = waiting.is_empty() || questions.len() >= samples;
            Ok(if done { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
    }
    Ok(HeldOut { records, questions })
}

/// Returns the validation records of the data of that name, or else those of each synthetic task.
fn held_out(
    training: &Training,
    files: &[(String, PathBuf)],
    scratch: &Path,
    encoder: Encoder,
    stop: Stop,
    mut seen: impl FnMut(DataFile),
) -> Result<Vec<HeldOut>, DataError> {
    let settings = &training.settings.training;
    let (wanted, samples) = (settings.eval_records, settings.eval_samples);
    if let Some(data) = training.data.iter().find(|data| data.name == VALIDATION) {
        let input = Input::open(data, Split::HeldOut, files, stop, &mut seen)?.with_scratch(scratch);
        let (held_out, records) = of_input(&input, wanted, samples, encoder, stop)?;
        seen(DataFile { records: Some(records), ..input.file });
        return Ok(vec![held_out]);
    }
    let synthetic: Vec<_> = training.data.iter().filter_map(|data| Some((data, data.synthetic.as_ref()?))).collect();
    let sources = synthetic.len();
    let each = wanted.div_ceil(sources.max(1));
    let made = synthetic.into_iter().map(|(data, Synthetic { task, seed, .. })| {
        let bytes = materialise(task.parse()?, Split::HeldOut, *seed, each).map_err(|error| match error {
            TaskError::TooMany { task, found, .. } => {
                DataError::TooFewHeldOut { wanted, each, task: task.to_string(), found, most: found * sources }
            }
            error => error.into(),
        })?;
        let input = Input::of_bytes(&data.name, &format!("held-out {}", data.name), bytes);
        Ok(of_input(&input, each, samples, encoder, stop)?.0)
    });
    made.collect()
}

/// Takes the first record of each source, then the second of each, and so on, up to `count` records.
fn interleave<T>(mut sources: Vec<impl Iterator<Item = T>>, count: usize) -> Vec<T> {
    let mut records = Vec::new();
    while records.len() < count {
        let before = records.len();
        records.extend(sources.iter_mut().filter_map(Iterator::next));
        if records.len() == before {
            break;
        }
    }
    records.truncate(count);
    records
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::test_support::{both, dataset, encoder, resolved};

    #[test]
    fn samples_are_the_first_of_each_source_in_turn_with_their_marks() {
        let run = resolved(&["training.eval_every=1", "training.eval_samples=4", "training.eval_records=9"], both());
        let tokenizer = Tokenizer::characters().unwrap();
        let dataset = dataset(&run, &tokenizer);
        let read = || {
            let encoder = encoder(&run, &tokenizer);
            ValidationSet::read(run.spec(), &[], &dataset, encoder, &|| false, |_| ()).unwrap().unwrap()
        };
        let validation = read();
        assert_eq!(validation.samples, read().samples);
        assert_eq!(validation.batches.iter().map(|batch| batch.cu_seqlens.len() - 1).sum::<usize>(), 10);
        let config = crate::training::run::model_config(run.spec(), &tokenizer).unwrap();
        let state = crate::training::state::State::new(config, 1, codex_engine::Settings::default()).unwrap();
        let samples = validation
            .samples(state.engine.config(), &state.engine.parameters().unwrap(), &tokenizer, &|| false)
            .unwrap()
            .unwrap();
        assert_eq!(samples.len(), 4);
        assert!(samples[0].prompt.ends_with(':') && samples[1].prompt.contains(' '), "{samples:?}");
        for sample in &samples {
            assert_eq!(sample.correct, Some(false));
            assert!(sample.to_string().starts_with(&format!("wrong  {}", sample.prompt)), "{sample}");
        }
    }
}
