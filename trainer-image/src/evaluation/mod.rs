//! `codex evaluate`: has a model answer held-out problems, scores the answers, and writes what a verdict is made of.
//!
//! In a pod it reads the resolved configuration, and demands the digest of the model unless any model is to be scored; the
//! verdict is the controller's.
//! On a laptop it composes a preset, and judges by `--gate` with the controller's own code. With `--task` it is that of `harness/`.

pub(crate) mod again;
mod baseline;
pub(crate) mod bleu;
mod compare;
mod distinct;
mod error;
mod given;
mod held;
mod inputs;
pub(crate) mod items;
pub(crate) mod outcomes;
mod outputs;
mod probes;
mod rouge;
mod score;
mod session;
mod table;
mod token_f1;

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use codex_configs::{Device, Environment, Evaluation, PRESETS, Resolved, Sources, choose, explain_evaluation};
use codex_provenance::ModelDigest;
use codex_reports::{EvaluationState, Failure, Stage, exit};
use codex_verdict::{Gate, Judgement, Verdict, judge};
use jiff::Timestamp;

pub(crate) use self::{
    given::{Given, Scorer, Scores},
    outputs::{RECORDS, SUMMARY},
};
pub use baseline::{Baseline, BaselineError, Prediction};
pub use error::EvaluateError;
pub use held::UnusableModel;
pub(crate) use held::hold;
pub use outcomes::Outcomes;
pub use outputs::{JudgedModel, Results, Shown, Summary};
pub use score::Scored;
pub use session::{Outcome, Session};

use self::compare::{Compare, Comparisons};
use crate::{
    artifacts::{
        environment,
        errors::{self, ErrorRow, causes},
    },
    atomic_fs,
    composing::variable,
    error::{CommandError, chain},
    harness::Asked,
    overlap::{self, Named},
    page::{self, PageGates},
    reporting::Reporter,
    signals::stop_flag,
};

/// Have a model answer held-out problems and score its answers.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["config", "preset", "set", "changes", "task"])))]
pub struct Evaluate {
    /// A resolved configuration, as the controller mounts it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["preset", "set", "changes", "seed"])]
    config: Option<PathBuf>,
    /// A preset to compose a configuration from, such as cot-lite.
    #[arg(long)]
    preset: Option<String>,
    /// Change a key of the preset, such as `evaluation.limit=100`.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// More overrides, after those of --set; preset=NAME chooses the preset.
    #[arg(value_name = "KEY=VALUE")]
    changes: Vec<String>,
    /// Seed of the bootstrap of bleu and perplexity; greedy generation draws nothing from it [default: 1].
    #[arg(long, allow_negative_numbers = true, value_parser = crate::arguments::seed)]
    seed: Option<u64>,
    /// `problems` or `baseline` (JSON lines) in place of the preset's; `plugin-metric` (WebAssembly) measures the metric `plugin`.
    #[arg(long, value_name = "NAME=FILE", value_parser = named_file)]
    data: Vec<(String, PathBuf)>,
    /// A task in the form of lm-evaluation-harness: a YAML file, or the included `toy_copy_task` or `tiny_wikitext`. Results and
    /// samples have that program's shape, too.
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "config", "preset", "set", "changes", "data", "gate", "record_baseline", "better_than", "not_worse_than",
    ])]
    task: Option<String>,
    /// Samples of an earlier evaluation of --task, whose responses are scored again in place of a model's. The same task gives the
    /// same bytes.
    #[arg(long, value_name = "SAMPLES", requires = "task", conflicts_with_all = ["model", "model_digest"])]
    rescore: Option<PathBuf>,
    /// The model directory.
    #[arg(long, value_name = "DIRECTORY", required_unless_present = "rescore")]
    model: Option<PathBuf>,
    /// What the model must hash to; another one is refused.
    #[arg(long, value_name = "HEX")]
    model_digest: Option<ModelDigest>,
    /// Where to compute; auto takes a GPU if this program was built with CUDA and finds one, else the processor.
    #[arg(long, default_value = "auto", value_parser = crate::device::parser())]
    device: Device,
    /// Where evaluation.json, summary.json, outcomes.json and records.ndjson go.
    #[arg(long, value_name = "DIRECTORY")]
    output: PathBuf,
    /// A gate METRIC>=BOUND[@CONFIDENCE], such as `exact_match>=0.95@0.95` (at least 0.95 with confidence 0.95); <= bounds
    /// from above. The exit code is 1 if one does not pass; a failure of any other kind is 2 or 3.
    #[arg(long, value_name = "GATE")]
    gate: Vec<Gate>,
    #[command(flatten)]
    compare: Compare,
    /// Also write report.html: a page for people about the results, judged by these gates, a JSON list as in spec.gates of an
    /// Evaluation.
    #[arg(long, value_name = "GATES", conflicts_with = "task")]
    page: Option<PageGates>,
    /// Also write the predictions as a baseline that others are compared with.
    #[arg(long, value_name = "FILE")]
    record_baseline: Option<PathBuf>,
}

fn named_file(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if inputs::is_name(name) && !path.is_empty() => Ok((name.to_owned(), path.into())),
        _ => Err("write problems=FILE, baseline=FILE or plugin-metric=FILE".to_owned()),
    }
}

impl Evaluate {
    pub(crate) fn run(mut self) -> Result<i32, CommandError> {
        if let Some(task) = &self.task {
            return self.run_task(task);
        }
        let Comparisons { files, gates } = self.compare.comparisons()?;
        self.data.extend(files);
        self.gate.extend(gates);
        let stop = stop_flag().map_err(EvaluateError::System)?;
        let reporter = Reporter::<EvaluationState>::from_env().map_err(EvaluateError::from)?;
        let prepared = self.prepare(&reporter);
        let is_prepared = prepared.is_ok();
        match prepared.and_then(|resolved| self.evaluate(&resolved, &reporter, stop)) {
            Ok(Outcome::Finished(results)) => {
                reporter.finish(exit::FINISHED);
                let judgement = (!self.gate.is_empty()).then(|| self.judge(&results));
                self.tell(&results, judgement.as_ref())?;
                let held = judgement.is_none_or(|judgement| judgement.verdict == Verdict::Passed);
                Ok(if held { exit::FINISHED } else { exit::FAILED })
            }
            Ok(Outcome::Interrupted) => {
                reporter.finish(exit::INTERRUPTED);
                Ok(exit::INTERRUPTED)
            }
            Err(error) => {
                // Wrong arguments leave nothing behind, least of all in an output that is an input.
                if is_prepared {
                    self.record_failure(&error);
                }
                reporter.fail(error.failure());
                reporter.finish(error.exit());
                Err(error.into())
            }
        }
    }

    /// Evaluates a task in the form of lm-evaluation-harness.
    fn run_task(&self, task: &str) -> Result<i32, CommandError> {
        let stop = stop_flag().map_err(EvaluateError::System)?;
        let asked = Asked {
            task,
            rescore: self.rescore.as_deref(),
            model: self.model.as_deref(),
            expected: self.model_digest,
            device: self.device,
            seed: self.seed.unwrap_or(1),
            output: &self.output,
            stop: &stop,
        };
        asked.run()
    }

    /// Returns the model directory, which the command line requires here.
    fn model(&self) -> &Path {
        self.model.as_deref().unwrap_or(Path::new(""))
    }

    /// Checks the arguments and composes the configuration.
    fn prepare(&self, reporter: &Reporter<EvaluationState>) -> Result<Resolved<Evaluation>, EvaluateError> {
        reporter.update(|state| state.stage = Stage::Starting);
        self.check_output()?;
        let resolved = self.resolve()?;
        reporter.set_config_digest(resolved.digest());
        if let Some((_, why)) = self.gate.iter().find_map(|gate| resolved.spec().undecidable(gate)) {
            return Err(EvaluateError::Arguments(format!("--gate: {why}")));
        }
        let most = resolved.spec().most_problems();
        for why in self.gate.iter().filter_map(|gate| codex_verdict::powerless(gate, most)) {
            tracing::warn!("{}", why.message());
        }
        Ok(resolved)
    }

    fn evaluate(
        &self,
        resolved: &Resolved<Evaluation>,
        reporter: &Reporter<EvaluationState>,
        stop: Arc<AtomicBool>,
    ) -> Result<Outcome, EvaluateError> {
        let session = Session {
            resolved,
            files: &self.data,
            model: self.model(),
            expected: self.model_digest,
            device: self.device,
            output: &self.output,
            record_baseline: self.record_baseline.as_deref(),
            page: self.page.as_ref().map(|gates| gates.0.as_slice()),
            reporter,
            stop,
        };
        session.run()
    }

    /// Appends an error to `errors.ndjson` in the output.
    fn record_failure(&self, error: &EvaluateError) {
        let name = || self.output.file_name().map(|name| name.to_string_lossy().into_owned());
        let Failure { is_final, reason, .. } = error.failure();
        let row = ErrorRow {
            schema: errors::SCHEMA.to_owned(),
            timestamp: Timestamp::now(),
            run_id: environment::variable("CODEX_OBJECT_UID").or_else(name).unwrap_or_default(),
            step: None,
            exit_code: error.exit(),
            is_final,
            reason,
            chain: causes(error),
        };
        let made = atomic_fs::make_directory(&self.output);
        if let Err(why) = made.and_then(|()| errors::append(&self.output, &row)) {
            tracing::warn!(error = chain(&why), "errors.ndjson cannot be written");
        }
    }

    /// Checks that the output can be written, and that nothing in it changes the model or another input.
    fn check_output(&self) -> Result<(), EvaluateError> {
        atomic_fs::check_output(&self.output)?;
        let names = outputs::FILES.iter().chain([&errors::FILE]);
        let mut outputs: Vec<Named> = names.map(|name| Named::new("--output", self.output.join(name))).collect();
        outputs.extend(self.page.iter().map(|_| Named::new("--output", self.output.join(page::FILE))));
        if let Some(path) = &self.record_baseline {
            atomic_fs::check_output_file("--record-baseline", path)?;
            outputs.push(Named::new("--record-baseline", path));
        }
        let mut inputs: Vec<Named> = Named::data(&self.data).collect();
        inputs.push(Named::new("--model", self.model()));
        inputs.extend(self.config.iter().map(|path| Named::new("--config", path)));
        Ok(overlap::check(&outputs, &inputs)?)
    }

    /// The resolved configuration: read, or composed here.
    fn resolve(&self) -> Result<Resolved<Evaluation>, EvaluateError> {
        if let Some(path) = &self.config {
            return Ok(Resolved::from_yaml(&atomic_fs::read_named::<EvaluateError>("--config", path)?)?);
        }
        let (chosen, set) = choose("preset", &[self.set.clone(), self.changes.clone()].concat());
        let Some(preset) = chosen.as_deref().or(self.preset.as_deref()) else {
            let why = format!("--preset: name one of {}, or write preset=NAME", PRESETS.join(", "));
            return Err(EvaluateError::Arguments(why));
        };
        let environment = Environment::of(&variable);
        let sources = Sources { group: Some(preset), overrides: &set, environment, ..Sources::default() };
        explain_evaluation(&sources, self.seed.unwrap_or(1), inputs::pin(&self.data)?)
            .map_err(|why| *why.error)
            .and_then(|explained| explained.resolved.measuring(self.gate.iter().map(|gate| gate.metric)))
            .map_err(|why| why.on_command_line(&set).into())
    }

    fn judge(&self, results: &Results) -> Judgement {
        let judged = results.model.digest;
        judge(&self.gate, &results.metrics, Some(judged), self.model_digest.unwrap_or(judged))
    }

    fn tell(&self, results: &Results, judgement: Option<&Judgement>) -> Result<(), CommandError> {
        let text = if std::io::stdout().is_terminal() {
            let verdict = judgement.map(|judgement| format!("\n{}", table::verdict(judgement))).unwrap_or_default();
            format!(
                "{}{verdict}\n\nEvery problem: {}",
                table::numbers(results),
                self.output.join("records.ndjson").display()
            )
        } else {
            let line = serde_json::json!({
                "evaluation": self.output.join("evaluation.json"),
                "model": results.model.digest,
                "metrics": results.metrics,
                "baseline": results.baseline,
                "judgement": judgement,
            });
            line.to_string()
        };
        atomic_fs::say(&text).map_err(|error| EvaluateError::from(error).into())
    }
}

#[cfg(test)]
mod tests;
