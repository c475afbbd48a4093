//! Evaluation during training: the loss on validation records, always the same ones in the same order, and completions of some
//! of their prompts for the log. Reads files; everything else is pure.
//!
//! Validation records are those of the data named `validation`, which is never trained on, or those that `data.validation` holds
//! out of the training data, or else the held-out problems of each synthetic task. Synthetic data of that name consists of held-out
//! problems, too.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use codex_configs::{Data, DpoSettings, Phase, Synthetic, Training, VALIDATION};
use codex_engine::{Emitted, Engine, EngineError, ModelConfig, Packed};
use codex_provenance::{DataDigest, Sha256};
use codex_reports::DataFile;

use super::{
    DataError, HeldOutLengths,
    dataset::Dataset,
    encoder::{Encoded, Encoder, Question, pack},
    input::Input,
    languages::Languages,
    phases::{Labels, each_label},
    records::{Counts, Limits, Treatment, tokenize},
    safety::Screen,
    source::Source,
};
use crate::{
    error::chain,
    model::{GenerateError, Generator},
    signals::Stop,
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
    /// The phases that the records of each batch are of.
    of_phases: Vec<PhaseSet>,
    /// Digests of the records of each batch, under which their log-probabilities are kept; none unless preferences are trained.
    keys: Vec<Vec<Sha256>>,
    /// Log-probabilities of the records of each batch under the reference.
    reference: Vec<Vec<Pair>>,
    /// The prompts that are completed, for each phase; one list without a curriculum.
    samples: Vec<Vec<Question>>,
    max_new_tokens: usize,
}

/// A set of phases, with a bit for each.
type PhaseSet = u64;

/// Mean cross-entropy per target token, in nats, on the validation records of each phase that has begun; `None` if there are none.
pub(crate) type PhaseLosses = Vec<Option<f64>>;

/// Result of one evaluation.
#[derive(Debug)]
pub(crate) struct Evaluated {
    /// The objective on the validation records.
    pub(crate) measured: Measured,
    /// The losses of phases.
    pub(crate) phases: PhaseLosses,
    /// Completions of the first prompts.
    pub(crate) samples: Vec<Sample>,
}

/// What is measured on completions of held-out prompts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SampleMetrics {
    /// Share of right answers among prompts whose response has an answer; `None` if none has.
    pub(crate) exact_match: Option<f64>,
    /// Mean share of the steps of a response that its completion has, in their order; `None` if no response has steps.
    pub(crate) trace_coverage: Option<f64>,
    /// Mean number of the steps of a response that its completion has, in their order; `None` if no response has steps.
    pub(crate) explanation_depth: Option<f64>,
}

impl SampleMetrics {
    /// Measures completions.
    pub(crate) fn of(samples: &[Sample]) -> Self {
        let mean = |values: Vec<f64>| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
        // The steps of a response that a completion has, and all of them.
        let steps = |sample: &Sample| {
            let reference = tasks::steps(&sample.response);
            let written = sample.written.as_deref().map(tasks::written_steps).unwrap_or_default();
            let found = tasks::common_in_order(&reference, &written);
            (!reference.is_empty()).then_some((found as f64, reference.len() as f64))
        };
        let steps: Vec<(f64, f64)> = samples.iter().filter_map(steps).collect();
        Self {
            exact_match: mean(samples.iter().filter_map(|it| it.correct).map(f64::from).collect()),
            trace_coverage: mean(steps.iter().map(|(found, all)| found / all).collect()),
            explanation_depth: mean(steps.iter().map(|(found, _)| *found).collect()),
        }
    }
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
        let phases = training.settings.curriculum.phases.as_slice();
        let (mut batches, mut keys, mut of_phases) = (Vec::new(), Vec::new(), Vec::new());
        let mut samples: Vec<Vec<_>> = phases.iter().map(|_| Vec::new()).collect();
        if phases.is_empty() {
            samples.push(Vec::new());
        }
        let mut file = None;
        let held_out = if training.settings.data.validation.share > 0.0 {
            let sources = dataset.sources.iter();
            sources
                .map(|source| {
                    of_source((source, dataset.safety.as_ref()), Wanted::of(training, Some(source.name())), encoder)
                })
                .collect::<Result<Vec<_>, DataError>>()?
        } else {
            held_out(training, files, &dataset.scratch, encoder, stop, |read| {
                file = Some(read.sha256);
                seen(read);
            })?
        };
        let mut lengths = Vec::new();
        for HeldOut { records, questions } in held_out {
            lengths.push(records.iter().map(|(record, _)| record.rows()).collect());
            // The records of a batch are of the same phases.
            for same in records.chunk_by(|(_, one), (_, other)| one == other) {
                for batch in same.chunks(settings.batch_size) {
                    let records: Vec<Encoded> = batch.iter().map(|(record, _)| record.clone()).collect();
                    if encoder.preferences {
                        keys.push(records.iter().map(Encoded::key).collect());
                    }
                    batches.push(pack(&records));
                    of_phases.push(batch[0].1);
                }
            }
            for (phase, samples) in samples.iter_mut().enumerate() {
                let own = questions.iter().filter(|(_, of)| phases.is_empty() || of >> phase & 1 == 1);
                samples.push(own.map(|(question, _)| question.clone()).collect::<Vec<_>>().into_iter());
            }
        }
        for (number, phase) in phases.iter().enumerate().filter(|(_, phase)| phase.is_evaluated()) {
            if !of_phases.iter().any(|of| of >> number & 1 == 1) {
                return Err(DataError::UnmeasuredPhase { phase: phase.id.clone(), metrics: phase.metrics.join(", ") });
            }
        }
        Ok(Some(Self {
            file,
            lengths: HeldOutLengths(lengths),
            batches,
            keys,
            reference: Vec::new(),
            of_phases,
            samples: samples.into_iter().map(|lists| interleave(lists, settings.eval_samples)).collect(),
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
    /// true before a batch. With it comes the cross-entropy on the records of each of the first `phases` phases.
    ///
    /// # Errors
    /// When the engine rejects a batch.
    pub(crate) fn measure(
        &self,
        engine: &mut dyn Engine,
        preferences: Option<DpoSettings>,
        phases: usize,
        stop: Stop,
    ) -> Result<Option<(Measured, PhaseLosses)>, EngineError> {
        if let Some(settings) = preferences {
            let mut tally = Tally::default();
            for (batch, reference) in self.batches.iter().zip(&self.reference) {
                if stop() {
                    return Ok(None);
                }
                measure_pairs(engine, &settings, batch, reference, &mut tally)?;
            }
            return Ok(Some((tally.finish(), Vec::new())));
        }
        let mut losses = Vec::with_capacity(self.batches.len());
        for batch in &self.batches {
            if stop() {
                return Ok(None);
            }
            losses.push(engine.loss(batch)?);
        }
        let mean = |chosen: &dyn Fn(PhaseSet) -> bool| {
            let batches = losses.iter().zip(&self.batches).zip(&self.of_phases).filter(|(_, of)| chosen(**of));
            let (mut sum, mut targets) = (0.0, 0);
            for ((loss, batch), _) in batches {
                sum += loss;
                targets += batch.targets.len();
            }
            (targets > 0).then(|| sum / targets as f64)
        };
        let of_phase = |phase: usize| mean(&|of| of >> phase & 1 == 1);
        let loss = mean(&|_| true).unwrap_or(0.0);
        let measured = Measured { loss, preferences: None, sampled: None };
        Ok(Some((measured, (0..phases).map(of_phase).collect())))
    }

    /// Returns the prompts that are completed in a phase, or without a curriculum.
    fn questions(&self, phase: Option<usize>) -> &[Question] {
        self.samples.get(phase.unwrap_or(0)).map_or(&[], Vec::as_slice)
    }

    /// Whether prompts are completed in a phase, or without a curriculum.
    pub(crate) fn has_samples(&self, phase: Option<usize>) -> bool {
        !self.questions(phase).is_empty()
    }

    /// Completes the first prompts of a phase, or without a curriculum, with these parameters of the model; `None` if `stop` returns
    /// true before a token.
    ///
    /// # Errors
    /// When the engine rejects the parameters.
    pub(crate) fn samples(
        &self,
        (config, parameters): (&ModelConfig, &[f32]),
        tokenizer: &Tokenizer,
        phase: Option<usize>,
        stop: Stop,
    ) -> Result<Option<Vec<Sample>>, EngineError> {
        let questions = self.questions(phase);
        if questions.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let mut generator = Generator::new(config, parameters, tokenizer.clone(), questions.len())?;
        let Some(written) = self.complete(questions, &mut generator, stop) else { return Ok(None) };
        let samples = questions.iter().zip(written).map(|(record, written)| {
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

    /// Completes the prompt of each question. [`Generator::complete`] cannot be interrupted.
    fn complete(
        &self,
        questions: &[Question],
        generator: &mut Generator,
        stop: Stop,
    ) -> Option<Vec<Result<String, GenerateError>>> {
        let prompts = questions.iter().enumerate();
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

/// The validation records of a source, and the questions among the first of them, each with the phases that it is of.
#[derive(Debug, Default)]
struct HeldOut {
    records: Vec<(Encoded, PhaseSet)>,
    questions: Vec<(Question, PhaseSet)>,
}

/// What is read of the validation records of a source.
#[derive(Clone, Copy, Debug)]
struct Wanted<'a> {
    /// Number of records.
    records: usize,
    /// Number of questions of each phase, or without a curriculum.
    questions: usize,
    phases: &'a [Phase],
    /// The data that the records are held out of; `None` for the data named `validation`, which may have records of every phase.
    source: Option<&'a Data>,
}

impl<'a> Wanted<'a> {
    /// Returns what is read of the records that are held out of the data of a name, or of the data named `validation`.
    fn of(training: &'a Training, source: Option<&str>) -> Self {
        let settings = &training.settings;
        Self {
            records: settings.training.eval_records,
            questions: settings.training.eval_samples,
            phases: &settings.curriculum.phases,
            source: source.and_then(|name| training.data.iter().find(|data| data.name == name)),
        }
    }

    /// Returns the phases that a record with these labels is of.
    fn phases_of(&self, labels: &Labels) -> PhaseSet {
        let is_of = |phase: &Phase| self.source.is_none_or(|data| phase.dataset.takes(data)) && labels.are_of(phase);
        let bits = self.phases.iter().enumerate().filter(|(_, phase)| is_of(phase));
        bits.fold(0, |set, (number, _)| set | 1 << number)
    }

    /// Returns the phases of each record of an input whose number `is_wanted` names, until it has found this many.
    fn sets(
        &self,
        input: &Input,
        encoder: Encoder,
        count: usize,
        is_wanted: impl Fn(u32) -> bool,
    ) -> Result<BTreeMap<u32, PhaseSet>, DataError> {
        let mut sets = BTreeMap::new();
        if self.phases.is_empty() || count == 0 {
            return Ok(sets);
        }
        each_label(input, encoder.data, |number, labels| {
            if is_wanted(number) {
                sets.insert(number, self.phases_of(&labels));
            }
            let done = sets.len() >= count;
            Ok(if done { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(sets)
    }

    /// Whether another question of these phases is wanted.
    fn lacks(&self, questions: &[(Question, PhaseSet)], set: PhaseSet) -> bool {
        if self.phases.is_empty() {
            return questions.len() < self.questions;
        }
        let count = |phase: usize| questions.iter().filter(|(_, of)| of >> phase & 1 == 1).count();
        (0..self.phases.len()).any(|phase| set >> phase & 1 == 1 && count(phase) < self.questions)
    }
}

/// Returns the first validation records of an input, and the number of all. All of them are checked.
fn of_input(input: &Input, wanted: Wanted, encoder: Encoder, stop: Stop) -> Result<(HeldOut, u64), DataError> {
    let sets = wanted.sets(input, encoder, wanted.records, |_| true)?;
    let mut held_out = HeldOut::default();
    let counts =
        tokenize(input, encoder, (&Languages::default(), Treatment::default()), Limits::default(), stop, |record| {
            if held_out.records.len() < wanted.records {
                let set = sets.get(&record.number).copied().unwrap_or(0);
                if wanted.lacks(&held_out.questions, set) {
                    held_out.questions.extend(encoder.question(&record.example).map(|question| (question, set)));
                }
                held_out.records.push((record.encoded, set));
            }
            Ok(())
        })?;
    Ok((held_out, counts.seen))
}

/// Returns the records that are held out of a source of training data. The questions are those that come first in the input, so
/// that not all of it is read again; they are as the safety rules leave them.
fn of_source(
    (source, safety): (&Source, Option<&Screen>),
    wanted: Wanted,
    encoder: Encoder,
) -> Result<HeldOut, DataError> {
    let entries = source.selection.held_out.iter().map(|index| source.store.entry(u64::from(*index)));
    let entries = entries.collect::<Result<Vec<_>, _>>()?;
    let mut waiting: BTreeSet<u32> = entries.iter().map(|entry| entry.number).collect();
    let sets = wanted.sets(&source.input, encoder, waiting.len(), |number| waiting.contains(&number))?;
    let set = |number: u32| sets.get(&number).copied().unwrap_or(0);
    let records = entries.iter().map(|entry| Ok((source.store.record(*entry)?, set(entry.number))));
    let records = records.collect::<Result<Vec<_>, DataError>>()?;
    let (mut questions, mut number) = (Vec::new(), 0);
    if wanted.questions > 0 {
        encoder.each_record(&source.input, |example| {
            if waiting.remove(&number) && wanted.lacks(&questions, set(number)) {
                let checked = match safety {
                    Some(safety) => safety.check(example, &mut Counts::default()),
                    None => Some(example),
                };
                let question = checked.and_then(|example| encoder.question(&example));
                questions.extend(question.map(|question| (question, set(number))));
            }
            number += 1;
            let done = waiting.is_empty() || (wanted.phases.is_empty() && questions.len() >= wanted.questions);
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
    let wanted = settings.eval_records;
    if let Some(data) = training.data.iter().find(|data| data.name == VALIDATION) {
        let input = Input::open(data, Split::HeldOut, files, stop, &mut seen)?.with_scratch(scratch);
        let (held_out, records) = of_input(&input, Wanted::of(training, None), encoder, stop)?;
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
        Ok(of_input(&input, Wanted { records: each, ..Wanted::of(training, Some(&data.name)) }, encoder, stop)?.0)
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
            .samples((state.engine.config(), &state.engine.parameters().unwrap()), &tokenizer, None, &|| false)
            .unwrap()
            .unwrap();
        assert_eq!(samples.len(), 4);
        assert!(samples[0].prompt.ends_with(':') && samples[1].prompt.contains(' '), "{samples:?}");
        for sample in &samples {
            assert_eq!(sample.correct, Some(false));
            assert!(sample.to_string().starts_with(&format!("wrong  {}", sample.prompt)), "{sample}");
        }
    }

    /// Only steps that are right count: a long answer is not a deep one.
    #[test]
    fn answers_are_measured_by_their_right_steps() {
        let sample = |written: Result<&str, &str>, response: &str, correct| Sample {
            prompt: "347+86:".to_owned(),
            written: written.map(str::to_owned).map_err(str::to_owned),
            response: response.to_owned(),
            correct,
        };
        let long = "7+6+0=13 4+8+1=13 3+0+1=04 #433$";
        let samples = [
            sample(Ok(long), long, Some(true)),
            sample(Ok("7+6+0=13 4+8+0=12 4+8+0=12 4+8+0=12 3+0+1=04 #423$"), long, Some(false)),
            sample(Err("too long"), "1+1+0=02 #2$", Some(false)),
            // Neither an answer nor steps.
            sample(Ok("1+1+0=02 #2$"), "a text", None),
        ];
        let SampleMetrics { exact_match, trace_coverage, explanation_depth } = SampleMetrics::of(&samples);
        let near = |found: Option<f64>, wanted: f64| found.is_some_and(|found| (found - wanted).abs() < 1e-12);
        assert!(near(exact_match, 1.0 / 3.0) && near(trace_coverage, (1.0 + 2.0 / 3.0) / 3.0), "{trace_coverage:?}");
        assert!(near(explanation_depth, 5.0 / 3.0), "{explanation_depth:?}");
        let none = SampleMetrics { exact_match: None, trace_coverage: None, explanation_depth: None };
        assert_eq!(SampleMetrics::of(&samples[3..]), none);
    }
}
