//! How ready runs are for a ring, as a survey in Markdown and JSON. Pure.
//!
//! Readiness is `R = aE + bT + gD`, each from 0 to 1:
//! - `E`, evidence: the share of the gates of the ReasoningPod's Evaluations that passed. A gate without a report did not pass, and
//!   an Evaluation that the objects do not hold counts as one such gate. 0 without objects.
//! - `T`, traces: the measured `trace_coverage`, the least over the reports about the model. 0 if none measured it.
//! - `D`, deployment: the share of the checks of `codex deploy` that hold or are waived, but for that of the status report.
//!
//! A survey of several runs has the least readiness of them, and with the weights of several policies the least of theirs.

use std::{fmt, fmt::Write as _, str::FromStr};

use codex_provenance::{
    ModelDigest,
    text::{Printable, counted},
};
use codex_verdict::{Ring, policy::ReadinessWeights};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Check, Facts, Judged, SCHEMA_VERSION, State, check, held};

/// Decimals of shares and readiness, as a factor.
const DECIMALS: f64 = 1e4;

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

/// A run to survey.
#[derive(Clone, Debug)]
pub struct Surveyed<'a> {
    /// Its name.
    pub name: String,
    /// What is known about it.
    pub facts: Facts<'a>,
}

impl Default for Weights {
    fn default() -> Self {
        Self { evidence: 0.5, traces: 0.2, deployment: 0.3 }
    }
}

impl FromStr for Weights {
    type Err = String;

    /// Reads `A,B,G`.
    fn from_str(text: &str) -> Result<Self, String> {
        let right = "write three numbers from 0 to 1 that sum to 1, such as 0.5,0.2,0.3";
        let numbers: Option<Vec<f64>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
        match numbers.as_deref() {
            Some([evidence, traces, deployment])
                if [evidence, traces, deployment].iter().all(|it| (0.0..=1.0).contains(*it))
                    && (evidence + traces + deployment - 1.0).abs() <= 1e-9 =>
            {
                Ok(Self { evidence: *evidence, traces: *traces, deployment: *deployment })
            }
            _ => Err(right.to_owned()),
        }
    }
}

impl TryFrom<&ReadinessWeights> for Weights {
    type Error = String;

    fn try_from(stated: &ReadinessWeights) -> Result<Self, String> {
        let [evidence, traces, deployment] = stated.numbers()?;
        Ok(Self { evidence, traces, deployment })
    }
}

/// The weights as `--weights` takes them.
impl fmt::Display for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{}", self.evidence, self.traces, self.deployment)
    }
}

impl Weights {
    /// Chooses the weights of a survey: those of the command line, else those that policies state, which are all tried.
    ///
    /// # Errors
    /// The command line has other weights than a policy states; one sentence.
    pub fn chosen(given: Option<Self>, stated: &[(String, Self)]) -> Result<Vec<Self>, String> {
        let Some(given) = given else { return Ok(stated.iter().map(|(_, weights)| *weights).collect()) };
        match stated.iter().find(|(_, weights)| *weights != given) {
            Some((policy, weights)) => {
                Err(format!("--weights: {} states the weights {weights}: remove the flag", Printable(policy)))
            }
            None => Ok(vec![given]),
        }
    }

    /// Returns the readiness of a run with these shares, not rounded.
    fn readiness(self, shares: Shares) -> f64 {
        self.evidence * shares.evidence + self.traces * shares.traces + self.deployment * shares.deployment
    }
}

/// The parts of readiness, not rounded.
#[derive(Clone, Copy, Debug)]
struct Shares {
    evidence: f64,
    traces: f64,
    deployment: f64,
}

/// Rounds a share down, so that nothing unfinished shows as 1.
fn rounded(share: f64) -> f64 {
    (share * DECIMALS + 1e-6).floor() / DECIMALS
}

/// Surveys runs for a ring. Of several `weights`, those count with which the least ready run is least ready; without any, the default
/// ones count.
pub fn survey(ring: Ring, pr: Option<u64>, date: String, weights: &[Weights], runs: &[Surveyed<'_>]) -> Survey {
    let measured: Vec<(Shares, RunReadiness)> = runs.iter().map(measure).collect();
    let least = |weights: &Weights| measured.iter().map(|(shares, _)| weights.readiness(*shares)).fold(1.0, f64::min);
    let weights = weights.iter().min_by(|one, other| least(one).total_cmp(&least(other))).copied().unwrap_or_default();
    let runs: Vec<RunReadiness> = measured
        .into_iter()
        .map(|(shares, run)| RunReadiness { readiness: rounded(weights.readiness(shares)), ..run })
        .collect();
    let readiness = runs.iter().map(|run| run.readiness).fold(1.0, f64::min);
    Survey { schema_version: SCHEMA_VERSION, ring, pr, date, weights, readiness, runs }
}

/// Returns the parts of a run's readiness, and the run without it.
fn measure(run: &Surveyed<'_>) -> (Shares, RunReadiness) {
    let Surveyed { name, facts } = run;
    let mut checks = check(facts);
    checks.sort_by_key(|check| check.subject);
    let share = |part: usize, all: usize| if all == 0 { 0.0 } else { part as f64 / all as f64 };
    let gates: usize = facts.judged.iter().map(|one| one.asked).sum();
    let gates_passed: usize = facts.judged.iter().map(Judged::passed).sum();
    let shares = Shares {
        evidence: share(gates_passed, gates),
        traces: facts.coverage.iter().copied().min_by(f64::total_cmp).unwrap_or_default(),
        deployment: share(held(&checks), checks.len()),
    };
    let readiness = RunReadiness {
        name: name.clone(),
        run_id: facts.records.run.as_ref().map(|run| run.id.clone()),
        model: facts.digest(),
        readiness: 0.0,
        evidence: rounded(shares.evidence),
        traces: rounded(shares.traces),
        deployment: rounded(shares.deployment),
        gates_passed,
        gates,
        checks,
    };
    (shares, readiness)
}

impl Survey {
    /// Reads a survey.
    ///
    /// # Errors
    /// It is no survey of this version; one sentence.
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let survey: Self = codex_json::from_slice(bytes).map_err(|why| why.to_string())?;
        if survey.schema_version != SCHEMA_VERSION {
            return Err(format!("its schemaVersion is {}, but {SCHEMA_VERSION} is read", survey.schema_version));
        }
        Ok(survey)
    }

    /// Returns the name of its files without their extension: `survey-<ring>-<PR>-<date>`, with `local` for no pull request.
    pub fn file_name(&self) -> String {
        let pr = self.pr.map_or_else(|| "local".to_owned(), |pr| pr.to_string());
        format!("survey-{}-{pr}-{}", self.ring, self.date)
    }

    /// Returns the survey as Markdown. Text from files and objects is escaped.
    pub fn markdown(&self) -> String {
        let Weights { evidence, traces, deployment } = self.weights;
        let pr = self.pr.map_or_else(|| "no pull request".to_owned(), |pr| format!("pull request {pr}"));
        let mut text = format!("# Survey of `{}`, {pr}, {}\n\n", self.ring, escaped(&self.date));
        let runs = counted(self.runs.len(), "run");
        let _ = writeln!(text, "Readiness **{}**, the least of {runs} below.\n", self.readiness);
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
