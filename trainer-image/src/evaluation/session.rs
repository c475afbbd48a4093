//! One evaluation: hash the model, read the problems, have it answer them, score the answers, write the results. Does I/O.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use codex_configs::{Device, Evaluation, Generation, OnDemand, PromptForm, REFERENCE, Resolved};
use codex_engine::{Sampler, Sampling};
use codex_provenance::{
    DataDigest, ModelDigest,
    manifest::{Manifest, ManifestError},
    sealed::Held,
};
use codex_reports::{EvaluationState, Stage};
use codex_verdict::{Gate, Metric};
use indicatif::ProgressBar;
use sha2::Digest as _;

use super::{
    EvaluateError, UnusableModel, baseline, hold,
    inputs::{Inputs, Problem},
    outputs::{Results, write},
    score::{ReferenceTokens, Samples, Scored},
    table,
};
use crate::{
    atomic_fs::{self, FileError},
    model::{Continuation, GenerateError, Generator},
    page,
    reporting::Reporter,
    run_folder::EVALUATION,
    tasks::Answers,
};

/// Rounds of full batches between two lines of the log.
const ROUNDS: usize = 4;

/// How likely a reference response is.
type Expected = Result<Continuation, GenerateError>;

/// What a model answered to a problem.
struct Predicted {
    /// Its texts, as many as are sampled.
    texts: Vec<String>,
    /// How likely the reference response is, if that is measured.
    expected: Option<Continuation>,
}

/// What an evaluation is told.
pub struct Session<'a> {
    /// The configuration.
    pub resolved: &'a Resolved<Evaluation>,
    /// The files of data that is neither synthetic nor the preset's own, by name.
    pub files: &'a [(String, PathBuf)],
    /// The model directory.
    pub model: &'a Path,
    /// What the model must hash to; none takes whatever is there.
    pub expected: Option<ModelDigest>,
    /// Where to compute.
    pub device: Device,
    /// Where the results go.
    pub output: &'a Path,
    /// Where the predictions go as another evaluation's baseline.
    pub record_baseline: Option<&'a Path>,
    /// The gates by which a page for people judges the results; without them, none is written.
    pub page: Option<&'a [Gate]>,
    /// Where progress goes.
    pub reporter: &'a Reporter<EvaluationState>,
    /// Set when the evaluation should end without results.
    pub stop: Arc<AtomicBool>,
}

/// How an evaluation ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The results are written.
    Finished(Box<Results>),
    /// Asked to stop: an evaluation begins anew.
    Interrupted,
}

impl Session<'_> {
    /// Runs the evaluation.
    ///
    /// # Errors
    /// When the model or the data are not what they should be, or the file system refuses.
    pub fn run(&self) -> Result<Outcome, EvaluateError> {
        let finished = self.evaluate()?;
        if finished.is_none() {
            self.reporter.update(|state| state.stage = Stage::Interrupted);
        }
        Ok(finished.map_or(Outcome::Interrupted, |results| Outcome::Finished(Box::new(results))))
    }

    /// Returns the results, or `None` if it was stopped. Looks between any two stages, and after every token.
    fn evaluate(&self) -> Result<Option<Results>, EvaluateError> {
        tracing::info!(path = %self.model.display(), "reading the model");
        let (manifest, held) = self.hold()?;
        if self.is_stopped() {
            return Ok(None);
        }
        tracing::info!("reading the problems");
        let evaluation = self.resolved.spec();
        let settings = &evaluation.settings.evaluation;
        let answers = Answers::of(settings)?;
        let inputs = Inputs::read(evaluation, self.files, &answers, |file| {
            self.reporter.update(|state| {
                state.data.retain(|known| known.name != file.name);
                state.data.push(file);
            });
        })?;
        if self.is_stopped() {
            return Ok(None);
        }
        tracing::info!("loading the model");
        let slots = settings.batch_size.min(inputs.problems.len() * settings.samples);
        let mut generator = Generator::load_held(held, slots, self.device)
            .map_err(|source| UnusableModel::Model { path: self.model.to_owned(), source })?;
        let device = crate::device::announce(self.device, generator.path());
        self.reporter.update(|state| state.device = Some(device));
        match settings.prompt {
            PromptForm::Auto => {}
            PromptForm::Plain => generator.use_plain_prompts(),
            PromptForm::Chat if generator.tokenizer().has_template() => {}
            PromptForm::Chat => return Err(EvaluateError::NoTemplate { path: self.model.to_owned() }),
        }
        for Problem { line, record } in &inputs.problems {
            if let Err(source) = generator.check(&record.prompt) {
                return Err(EvaluateError::Prompt { file: inputs.file, line: *line, source: source.of_file() });
            }
            if let Some(metric) = evaluation.feeding_references()
                && let Err(source) = generator.expect(&record.prompt, &record.response)
            {
                return Err(EvaluateError::Expected {
                    metric,
                    file: inputs.file,
                    line: *line,
                    source: source.of_file(),
                });
            }
        }
        self.reporter.update(|state| {
            state.stage = Stage::Running;
            state.total = inputs.problems.len() as u64;
        });
        let Some(predictions) = self.answer(&mut generator, &inputs, settings)? else {
            return Ok(None);
        };
        let mut scored = Vec::with_capacity(predictions.len());
        let asked: Vec<OnDemand> = OnDemand::ALL.into_iter().filter(|it| evaluation.measures(it.metric())).collect();
        for (problem, Predicted { mut texts, expected }) in inputs.problems.iter().zip(predictions) {
            let samples = (texts.len() > 1).then(|| Samples::of(&texts, &problem.record, &answers, settings.k()));
            let prediction = texts.swap_remove(0);
            // Every problem has a prediction: that was checked when the baseline was read.
            let baseline = inputs.baseline.as_ref().and_then(|baseline| baseline.prediction(&problem.record.prompt));
            let one = Scored::of(problem.line, &problem.record, prediction, baseline, &answers);
            let plugin = inputs.plugin.as_ref().map(|plugin| {
                let unscored =
                    |source| EvaluateError::Unscored { file: inputs.file.clone(), line: problem.line, source };
                plugin.metric(&one.prompt, &one.prediction, &one.reference).map_err(unscored)
            });
            let of = |metric: Metric| expected.filter(|_| evaluation.measures(metric));
            let likelihood = of(Metric::Perplexity).map(|it| it.likelihood);
            let reference_tokens = of(Metric::TokenAccuracy)
                .map(|it| ReferenceTokens { tokens: it.likelihood.tokens, most_likely: it.most_likely });
            let plugin = plugin.transpose()?;
            scored.push(Scored { samples, reference_tokens, likelihood, plugin, ..one.with_asked(&asked) });
        }
        if self.is_stopped() {
            return Ok(None);
        }
        let asked = inputs.problems.iter().map(|problem| problem.record.prompt.as_str());
        let golden = generator.golden(asked).map_err(EvaluateError::Golden)?;
        if golden.is_none() {
            tracing::warn!(
                "no golden tokens are recorded: the model gives numbers that are not finite, or takes no prompt"
            );
        }
        let data = self.reporter.state().data;
        let results = Results::new(self.resolved, &manifest, data, scored, &inputs.references, golden);
        let outcomes = write(self.output, &results)?;
        self.record(&results.scored)?;
        let page = self.write_page(&manifest)?;
        self.reporter.update(|state| {
            state.metrics.clone_from(&results.metrics);
            state.outcomes = Some(outcomes);
            state.page = page;
            state.golden_tokens.clone_from(&results.golden_tokens);
            state.stage = Stage::Finished;
        });
        Ok(Some(results))
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Hashes the model, and compares its digest with the expected one.
    fn hold(&self) -> Result<(Manifest, Held), EvaluateError> {
        let (manifest, held) = match (hold(self.model), self.expected) {
            // The kubelet creates the folder of a model on a volume that lacks it.
            (Err(UnusableModel::Manifest { source: ManifestError::Empty, .. }), Some(expected)) => {
                return Err(EvaluateError::Gone { path: self.model.to_owned(), expected });
            }
            (held, _) => held?,
        };
        let found = manifest.digest();
        self.reporter.update(|state| state.model_digest = Some(found));
        match self.expected {
            Some(expected) if expected != found => {
                Err(EvaluateError::ModelMismatch { path: self.model.to_owned(), found, expected })
            }
            _ => Ok((manifest, held)),
        }
    }

    /// What the model writes to each problem, with the likelihood of the reference if that is measured, or `None` when it was
    /// stopped.
    fn answer(
        &self,
        generator: &mut Generator,
        inputs: &Inputs,
        settings: &Generation,
    ) -> Result<Option<Vec<Predicted>>, EvaluateError> {
        let total = inputs.problems.len();
        let Generation { temperature, top_p, top_k, .. } = *settings;
        let base = Sampler::new(Sampling { temperature, top_p, top_k: top_k.unwrap_or(0), seed: 0 })
            .map_err(|error| EvaluateError::Arguments(format!("evaluation.{error}")))?;
        let bar = table::progress_bar(total as u64);
        let mut predictions = Vec::with_capacity(total);
        for problems in inputs.problems.chunks((generator.slots() * ROUNDS).max(1)) {
            let before = predictions.len();
            let prompts: Vec<&str> = problems
                .iter()
                .flat_map(|problem| std::iter::repeat_n(problem.record.prompt.as_str(), settings.samples))
                .collect();
            let sampler = |index: usize| {
                let (problem, member) = (index / settings.samples, index % settings.samples);
                base.with_seed(self.seed_of(problems[problem].line, member))
            };
            let limits = (settings.max_new_tokens, settings.stop.as_slice());
            let completions = generator.sample_until(&prompts, limits, sampler, |done| {
                self.tell(bar.as_ref(), before + done / settings.samples);
                !self.is_stopped()
            });
            let Some(completions) = completions else { return Ok(None) };
            let Some(expected) = self.likelihoods(generator, problems) else { return Ok(None) };
            let mut completions = completions.into_iter();
            for (problem, expected) in problems.iter().zip(expected) {
                let failed =
                    |source| EvaluateError::Generation { file: inputs.file.clone(), line: problem.line, source };
                // Without its response a problem would count as wrong.
                let own =
                    completions.by_ref().take(settings.samples).map(|completion| Ok(completion.map_err(failed)?.text));
                let texts = own.collect::<Result<Vec<String>, EvaluateError>>()?;
                predictions.push(Predicted { texts, expected: expected.transpose().map_err(failed)? });
            }
            // A line would break the bar.
            if bar.is_none() {
                tracing::info!(done = predictions.len(), total, "evaluating");
            }
        }
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        Ok(Some(predictions))
    }

    /// Returns the seed of an answer: a hash, so that the answers to a problem depend on no other problem.
    fn seed_of(&self, line: usize, member: usize) -> u64 {
        let mut hasher = sha2::Sha256::new();
        hasher.update(b"codex sample 1\0");
        for number in [self.resolved.spec().seed, line as u64, member as u64] {
            hasher.update(number.to_le_bytes());
        }
        hasher.finalize().iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
    }

    /// Returns the likelihood of the reference response of each problem, each `None` if no metric needs it, or `None` when it was
    /// stopped.
    fn likelihoods(&self, generator: &mut Generator, problems: &[Problem]) -> Option<Vec<Option<Expected>>> {
        if self.resolved.spec().feeding_references().is_none() {
            return Some(problems.iter().map(|_| None).collect());
        }
        let records = problems.iter().map(|problem| &problem.record);
        let pairs: Vec<(&str, &str)> = records.map(|it| (it.prompt.as_str(), it.response.as_str())).collect();
        let likelihoods = generator.likelihoods_while(&pairs, || !self.is_stopped())?;
        Some(likelihoods.into_iter().map(Some).collect())
    }

    fn tell(&self, bar: Option<&ProgressBar>, done: usize) {
        if let Some(bar) = bar {
            bar.set_position(done as u64);
        }
        self.reporter.update(|state| state.done = done as u64);
    }

    /// Writes the page for people, if one is asked for, and returns its digest.
    fn write_page(&self, manifest: &Manifest) -> Result<Option<DataDigest>, EvaluateError> {
        let Some(gates) = self.page else { return Ok(None) };
        let references: Vec<(String, PathBuf)> = self
            .files
            .iter()
            .filter_map(|(name, path)| Some((name.strip_prefix(REFERENCE)?.to_owned(), path.clone())))
            .collect();
        let path = self.output.join(page::FILE);
        let html = page::of_evaluation(self.model, manifest, &self.output.join(EVALUATION), gates, &references)
            .map_err(io::Error::other)
            .map_err(FileError::of("making", &path))?;
        Ok(Some(DataDigest(atomic_fs::write(&path, html.as_bytes())?)))
    }

    fn record(&self, scored: &[Scored]) -> Result<(), EvaluateError> {
        let Some(path) = self.record_baseline else { return Ok(()) };
        let pairs = scored.iter().map(|one| (one.prompt.as_str(), one.prediction.as_str()));
        let bytes = baseline::write(pairs).map_err(io::Error::other).map_err(FileError::of("encoding", path))?;
        atomic_fs::make_parents(path)?;
        atomic_fs::write(path, &bytes)?;
        Ok(())
    }
}
