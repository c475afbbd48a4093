//! `codex status-report`: how ready runs are for a ring, as a survey in Markdown and JSON. Reads and writes files.
//!
//! Readiness is `R = aE + bT + gD`, each from 0 to 1:
//! - `E`, evidence: the share of the gates of the ReasoningPod's Evaluations that passed. A gate without a report did not pass, and
//!   an Evaluation that the objects do not hold counts as one such gate. 0 without objects.
//! - `T`, traces: the measured `trace_coverage`, the least over the reports about the model. 0 if none measured it.
//! - `D`, deployment: the share of the checks of `codex deploy` that hold or are waived, but for that of the status report.
//!
//! A survey of several runs has the least readiness of them.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use clap::builder::PossibleValuesParser;
use codex_provenance::{ModelDigest, text::Printable};
use codex_reports::exit;
use codex_verdict::{Metric, Ring, Sample, Verdict};
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Check, SCHEMA_VERSION, State,
    chain::Chain,
    checks::{self, Checked, Inputs},
    held, named, reports_of,
};
use crate::{
    arguments::whole,
    atomic_fs,
    error::CommandError,
    overlap::{self, Named},
    run_folder::{self, Part, RunFolder},
    verify::given::Given,
};

/// Decimals of shares and readiness, as a factor.
const DECIMALS: f64 = 1e4;

/// Survey how ready runs are for a ring, as Markdown and JSON.
///
/// Readiness is R = aE + bT + gD: E is the share of gates that passed, T the measured trace coverage, D the share of the checks of
/// codex deploy that hold.
#[derive(Debug, clap::Args)]
pub struct StatusReport {
    /// Output directories of runs.
    #[arg(value_name = "RUN_DIR", required = true)]
    runs: Vec<PathBuf>,
    /// The objects, as for codex deploy: the ReasoningPod, its TrainingRun, its Evaluations, and SignOffs.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The ReasoningPod, if the file holds several.
    #[arg(long, value_name = "NAME", requires = "config")]
    pod: Option<String>,
    /// The ring to survey, if no objects say it.
    #[arg(long, conflicts_with = "config", value_parser = PossibleValuesParser::new(Ring::ALL.map(Ring::name)))]
    ring: Option<String>,
    /// An evaluation.json, beside those that lie in the folders of the runs; repeatable.
    #[arg(long, value_name = "[EVALUATION=]FILE")]
    evaluation: Vec<String>,
    /// The outcomes.json of an Evaluation that gates compare with; repeatable.
    #[arg(long, value_name = "EVALUATION=FILE", value_parser = named)]
    reference: Vec<(String, PathBuf)>,
    #[command(flatten)]
    signatures: Given,
    /// Leave the signatures to the operator, which signs at the rollout.
    #[arg(long, conflicts_with = "bundle")]
    unsigned: bool,
    /// The weights a, b and g, which sum to 1.
    #[arg(long, value_name = "A,B,G", default_value = "0.5,0.2,0.3", value_parser = weights)]
    weights: Weights,
    /// The pull request that the survey is for.
    #[arg(long, value_name = "NUMBER", value_parser = whole::<u64>(1..=u64::MAX))]
    pr: Option<u64>,
    /// The date of the survey [default: today, UTC].
    #[arg(long, value_name = "DATE", value_parser = date)]
    date: Option<Date>,
    /// The directory to write survey-RING-PR-DATE.md and .json into.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How the survey is printed.
    #[arg(long, value_name = "FORMAT", default_value = "markdown")]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Markdown for people.
    Markdown,
    /// JSON for programs.
    Json,
}

/// The weights of readiness. They are not negative and sum to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Weights {
    /// a, the weight of E.
    pub evidence: f64,
    /// b, the weight of T.
    pub traces: f64,
    /// g, the weight of D.
    pub deployment: f64,
}

/// `survey-<ring>-<PR>-<date>.json`: how ready runs are for a ring.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "survey-*.json")]
pub struct Survey {
    /// The version of the shape.
    #[schemars(extend("const" = SCHEMA_VERSION))]
    pub schema_version: u32,
    /// The ring.
    pub ring: Ring,
    /// The pull request, if there is one.
    pub pr: Option<u64>,
    /// The date, as year-month-day.
    pub date: String,
    /// The weights.
    pub weights: Weights,
    /// The least readiness of the runs, from 0 to 1, rounded down to four decimals.
    pub readiness: f64,
    /// The runs, in the order of the command line.
    pub runs: Vec<RunReadiness>,
}

/// How ready a run is. Shares are from 0 to 1, rounded down to four decimals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunReadiness {
    /// Name of the run's directory.
    pub name: String,
    /// The run's id, if `run_metadata.json` has it.
    pub run_id: Option<String>,
    /// The digest of the model, if its files could be hashed.
    pub model: Option<ModelDigest>,
    /// R.
    pub readiness: f64,
    /// E, the share of gates that passed.
    pub evidence: f64,
    /// T, the measured trace coverage.
    pub traces: f64,
    /// D, the share of checks that hold or are waived.
    pub deployment: f64,
    /// Number of gates that passed.
    pub gates_passed: usize,
    /// Number of gates.
    pub gates: usize,
    /// The checks that D counts.
    pub checks: Vec<Check>,
}

fn weights(text: &str) -> Result<Weights, String> {
    let right = "write three numbers from 0 to 1 that sum to 1, such as 0.5,0.2,0.3";
    let numbers: Option<Vec<f64>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
    match numbers.as_deref() {
        Some([evidence, traces, deployment])
            if [evidence, traces, deployment].iter().all(|it| (0.0..=1.0).contains(*it))
                && (evidence + traces + deployment - 1.0).abs() <= 1e-9 =>
        {
            Ok(Weights { evidence: *evidence, traces: *traces, deployment: *deployment })
        }
        _ => Err(right.to_owned()),
    }
}

fn date(text: &str) -> Result<Date, String> {
    text.parse().map_err(|_| "write a date, such as 2026-11-28".to_owned())
}

/// Rounds a share down, so that nothing unfinished shows as 1.
fn rounded(share: f64) -> f64 {
    (share * DECIMALS + 1e-6).floor() / DECIMALS
}

impl StatusReport {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let survey = self.survey()?;
        let json = serde_json::to_string_pretty(&survey).map_err(CommandError::failed)?;
        let markdown = survey.markdown();
        if let Some(out) = &self.out {
            let written = self.write(out, &survey, &markdown)?;
            tracing::info!("wrote {} and the same as JSON", written.display());
        }
        atomic_fs::say(match self.format {
            Format::Markdown => markdown.trim_end(),
            Format::Json => &json,
        })?;
        Ok(exit::FINISHED)
    }

    /// Surveys the runs.
    ///
    /// # Errors
    /// Exit code 2: a file of the command line cannot be read or used, or nothing says the ring.
    pub(super) fn survey(&self) -> Result<Survey, CommandError> {
        let reports = reports_of(&self.evaluation)?;
        let chain = self.config.as_deref().map(|path| Chain::read(path, self.pod.as_deref())).transpose()?;
        let ring = match (&chain, &self.ring) {
            (Some(chain), _) => chain.ring,
            (None, Some(ring)) => ring.parse().map_err(CommandError::bad_input)?,
            (None, None) => {
                return Err(CommandError::bad_input("nothing says the ring: give --config FILE or --ring RING"));
            }
        };
        let today = || Timestamp::now().to_zoned(TimeZone::UTC).date();
        let mut runs = Vec::new();
        for path in &self.runs {
            let inputs = Inputs {
                chain: chain.as_ref(),
                ring,
                folder: RunFolder::locate("RUN_DIR", path).map_err(CommandError::bad_input)?,
                reports: &reports,
                references: &self.reference,
                signatures: &self.signatures,
                unsigned: self.unsigned,
                survey: None,
            };
            runs.push(self.readiness(&inputs, checks::check(&inputs)?));
        }
        Ok(Survey {
            schema_version: SCHEMA_VERSION,
            ring,
            pr: self.pr,
            date: self.date.unwrap_or_else(today).to_string(),
            weights: self.weights,
            readiness: runs.iter().map(|run| run.readiness).fold(1.0, f64::min),
            runs,
        })
    }

    fn readiness(&self, inputs: &Inputs<'_>, checked: Checked) -> RunReadiness {
        let Checked { model, mut checks, judged, reports } = checked;
        checks.sort_by_key(|check| check.subject);
        let share = |part: usize, all: usize| if all == 0 { 0.0 } else { part as f64 / all as f64 };
        let gates: usize = judged.iter().map(|one| one.asked).sum();
        let results = judged.iter().flat_map(|one| &one.gates);
        let gates_passed = results.filter(|(_, result)| result.verdict == Verdict::Passed).count();
        let name = Metric::TraceCoverage.name();
        let covered = reports.iter().filter(|report| Some(report.model()) == model).filter_map(|report| {
            let sample = Sample::named(name, report.metrics().get(name)?).ok()?;
            Some(sample.value())
        });
        let evidence = share(gates_passed, gates);
        let traces = covered.min_by(f64::total_cmp).unwrap_or_default();
        let deployment = share(held(&checks), checks.len());
        let Weights { evidence: a, traces: b, deployment: g } = self.weights;
        RunReadiness {
            name: inputs.folder.name(),
            run_id: inputs.folder.metadata().found().map(|metadata| metadata.metadata.run_id.clone()),
            model,
            readiness: rounded(a * evidence + b * traces + g * deployment),
            evidence: rounded(evidence),
            traces: rounded(traces),
            deployment: rounded(deployment),
            gates_passed,
            gates,
            checks,
        }
    }

    /// Writes both files into `out`, and returns the path of the Markdown.
    fn write(&self, out: &Path, survey: &Survey, markdown: &str) -> Result<PathBuf, CommandError> {
        let models = self.runs.iter().filter_map(|run| RunFolder::locate("RUN_DIR", run).ok());
        let models: Vec<Named> = models.map(|folder| Named::new("a model of RUN_DIR", folder.model)).collect();
        overlap::check(&[Named::new("--out", out)], &models).map_err(CommandError::bad_input)?;
        let name = survey.file_name();
        let path = out.join(format!("{name}.md"));
        atomic_fs::make_directory(out)?;
        atomic_fs::write(&path, markdown.as_bytes())?;
        atomic_fs::write_json(&out.join(format!("{name}.json")), survey)?;
        Ok(path)
    }
}

impl Survey {
    /// Returns the name of its files without their extension: `survey-<ring>-<PR>-<date>`, with `local` for no pull request.
    pub fn file_name(&self) -> String {
        let pr = self.pr.map_or_else(|| "local".to_owned(), |pr| pr.to_string());
        format!("survey-{}-{pr}-{}", self.ring, self.date)
    }

    /// Returns the survey as Markdown. Text from files is escaped.
    pub fn markdown(&self) -> String {
        let Weights { evidence, traces, deployment } = self.weights;
        let pr = self.pr.map_or_else(|| "no pull request".to_owned(), |pr| format!("pull request {pr}"));
        let mut text = format!("# Survey of `{}`, {pr}, {}\n\n", self.ring, escaped(&self.date));
        let _ = writeln!(text, "Readiness **{}**, the least of {} below.\n", self.readiness, counted(self.runs.len()));
        let _ = writeln!(
            text,
            "R = {evidence} E + {traces} T + {deployment} D. E: share of gates that passed. T: measured trace coverage. D: share of \
             the checks of `codex deploy` that hold or are waived.\n"
        );
        text.push_str("| Run | Model | E | T | D | R |\n|---|---|---|---|---|---|\n");
        for run in &self.runs {
            let model = run.model.map_or_else(|| "not here".to_owned(), |model| format!("`{}`", model.short()));
            let _ = writeln!(
                text,
                "| {} | {model} | {} ({} of {} gates) | {} | {} ({} of {} checks) | {} |",
                escaped(&run.name),
                run.evidence,
                run.gates_passed,
                run.gates,
                run.traces,
                run.deployment,
                held(&run.checks),
                run.checks.len(),
                run.readiness
            );
        }
        for run in &self.runs {
            let _ = writeln!(text, "\n## {}\n", escaped(&run.name));
            for check in &run.checks {
                let (mark, note) = match check.state {
                    State::Holds => ("x", ""),
                    State::Waived => ("x", " (waived)"),
                    State::Blocked => (" ", ""),
                };
                let sentences = if check.state == State::Blocked { &check.reasons } else { &check.found };
                let sentences: Vec<String> = sentences.iter().map(|sentence| escaped(sentence)).collect();
                let _ = writeln!(text, "- [{mark}] {}{note}: {}", check.subject.name(), sentences.join("; "));
            }
        }
        text
    }
}

fn counted(runs: usize) -> String {
    crate::wording::counted(runs, "run")
}

/// Escapes text for Markdown: no line breaks, no markup, no HTML.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for letter in Printable(text).to_string().chars() {
        match letter {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '\\' | '|' | '`' | '*' | '_' | '[' | ']' | '#' | '~' | '!' => {
                escaped.push('\\');
                escaped.push(letter);
            }
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// Reads a survey.
pub(super) fn read(path: &Path) -> Part<Survey> {
    match run_folder::json::<Survey>(path) {
        Part::Found(survey) if survey.schema_version != SCHEMA_VERSION => Part::Invalid(
            path.to_owned(),
            format!("its schemaVersion is {}, but {SCHEMA_VERSION} is read", survey.schema_version),
        ),
        read => read,
    }
}

/// Reads the surveys in a folder, the oldest first. Files that are no surveys are left out.
pub(super) fn in_folder(folder: &Path) -> Vec<(PathBuf, Survey)> {
    let is_survey = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("survey-") && path.extension().is_some_and(|extension| extension == "json")
    };
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut surveys: Vec<(PathBuf, Survey)> = entries
        .filter(is_survey)
        .filter_map(|path| {
            let survey = read(&path).found()?.clone();
            Some((path, survey))
        })
        .collect();
    surveys.sort_by(|(one, first), (other, second)| (&first.date, one).cmp(&(&second.date, other)));
    surveys
}
