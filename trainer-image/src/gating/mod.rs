//! `codex gate`: judges recorded results by gates, with the controller's own code, wherever a program runs. Reads files.
//!
//! The results are those of `codex evaluate`, or the samples that lm-evaluation-harness logs. Exit codes: 0 every gate passed, 1 a
//! gate failed, 2 bad input, 3 a gate is inconclusive and none failed.

mod format;
mod gates;
mod input;
mod lm_eval;
mod report;

use std::path::PathBuf;

use codex_provenance::ModelDigest;
use codex_reports::exit;
use codex_verdict::{Gate, GateResult, Verdict};

use self::{format::Format, input::Recorded};
pub use self::{gates::read as read_gates, report::Report};
use crate::{arguments::reference, atomic_fs, error::CommandError};
#[cfg(test)]
pub(crate) use lm_eval::count as samples_of;

/// The exit code of gates that are inconclusive.
const INCONCLUSIVE: i32 = 3;

/// Judge recorded results by gates, with the code of the controller.
///
/// Exit codes: 0 every gate passed, 1 a gate failed, 2 bad input, 3 a gate is inconclusive and none failed.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("results").required(true).args(["report", "lm_eval"])))]
pub struct GateCommand {
    /// The evaluation.json of `codex evaluate`. With the outcomes.json beside it, every measurement is computed again.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// The outcomes.json of the report, if it is not beside it.
    #[arg(long, value_name = "FILE", requires = "report")]
    outcomes: Option<PathBuf>,
    /// The model that must have been evaluated.
    #[arg(long, value_name = "HEX", requires = "report")]
    model_digest: Option<ModelDigest>,
    /// A samples_*.jsonl of lm-evaluation-harness (--`log_samples`).
    #[arg(long, value_name = "FILE", requires = "metric")]
    lm_eval: Option<PathBuf>,
    /// A metric to read from the samples, and the field that holds it if it has another name, such as `exact_match` or
    /// `exact_match=acc`; repeatable.
    #[arg(long, value_name = "METRIC[=FIELD]", requires = "lm_eval", value_parser = lm_eval::asked)]
    metric: Vec<lm_eval::Asked>,
    /// The filter whose samples count, if the file holds those of several.
    #[arg(long, value_name = "NAME", requires = "lm_eval")]
    filter: Option<String>,
    /// Results of another model on the same problems, of the same kind (outcomes.json, or samples), under the name by which gates
    /// compare with them; repeatable.
    #[arg(long, value_name = "NAME=FILE", value_parser = reference("NAME"))]
    reference: Vec<(String, PathBuf)>,
    /// A YAML file with the gates: a list as in spec.gates of an Evaluation, a mapping with gates, or a whole Evaluation.
    #[arg(long, value_name = "FILE")]
    gates: PathBuf,
    /// Seed of the bootstrap of corpus metrics of --lm-eval.
    #[arg(long, value_name = "SEED", default_value = "1", requires = "lm_eval", value_parser = crate::arguments::seed)]
    seed: u64,
    /// How the verdict is printed.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

/// Why results cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum GatingError {
    /// A file cannot be read.
    #[error("{argument}: {} cannot be read", path.display())]
    Unreadable {
        /// The argument that names it.
        argument: &'static str,
        /// The file.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: std::io::Error,
    },
    /// A file that cannot be used.
    #[error("{argument}: {}: {why}", path.display())]
    Invalid {
        /// The argument that names it.
        argument: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A gate compares with results that are not given.
    #[error(
        "gates[{index}] compares with {name:?}, which the report does not: give its results, such as --reference {name}=FILE"
    )]
    NoReference {
        /// The position of the gate.
        index: usize,
        /// The evaluation that it compares with.
        name: String,
    },
    /// A result that no gate compares with.
    #[error("--reference {0}: no gate compares with it: remove it, or correct the name")]
    Unused(String),
    /// Another model was evaluated.
    #[error("the report is about the model {found}, but --model-digest is {expected}")]
    Model {
        /// The model of the report.
        found: ModelDigest,
        /// The model that is required.
        expected: ModelDigest,
    },
}

impl From<GatingError> for CommandError {
    fn from(error: GatingError) -> Self {
        Self::bad_input(error)
    }
}

/// A verdict over gates, with the file that holds them.
struct Judged {
    gates: Vec<(Gate, GateResult)>,
    verdict: Verdict,
    /// What was judged, for people.
    subject: String,
    /// The file of gates.
    file: PathBuf,
}

impl GateCommand {
    /// Judges and prints the verdict.
    ///
    /// # Errors
    /// A file cannot be read or used; exit code 2.
    pub fn run(self) -> Result<i32, CommandError> {
        let judged = self.judge()?;
        atomic_fs::say(self.format.show(&judged).trim_end()).map_err(CommandError::bad_input)?;
        Ok(match judged.verdict {
            Verdict::Passed => exit::FINISHED,
            Verdict::Failed => exit::FAILED,
            Verdict::Inconclusive => INCONCLUSIVE,
        })
    }

    fn judge(&self) -> Result<Judged, GatingError> {
        let gates = gates::read(&self.gates)?;
        let compared =
            |name: &str| gates.iter().any(|it| it.bound.comparison().is_some_and(|with| with.evaluation == name));
        if let Some((name, _)) = self.reference.iter().find(|(name, _)| !compared(name)) {
            return Err(GatingError::Unused(name.clone()));
        }
        let recorded: Box<dyn Recorded> = if let Some(path) = &self.report {
            let outcomes = self.outcomes.as_deref();
            Box::new(Report::read("--report", path, outcomes, &self.reference, self.model_digest)?)
        } else {
            // clap demands one of both.
            let (path, filter) = (self.lm_eval.clone().unwrap_or_default(), self.filter.as_deref());
            Box::new(lm_eval::Samples::read(&path, &self.metric, filter, &self.reference, self.seed)?)
        };
        let results = judge_gates(&*recorded, gates)?;
        let verdict = results.iter().map(|(_, result)| result.verdict).min().unwrap_or(Verdict::Inconclusive);
        Ok(Judged { gates: results, verdict, subject: recorded.subject(), file: self.gates.clone() })
    }
}

/// Judges recorded results by gates, in the order of the gates.
///
/// # Errors
/// A gate compares with results that are not given.
fn judge_gates(recorded: &dyn Recorded, gates: Vec<Gate>) -> Result<Vec<(Gate, GateResult)>, GatingError> {
    let mut results = Vec::with_capacity(gates.len());
    for (index, gate) in gates.into_iter().enumerate() {
        let measured = recorded.measure(gate.confidence.filter(|_| gate.metric.is_of_corpus()));
        if let Some(with) = gate.bound.comparison()
            && !measured.keys().any(|name| name.ends_with(&format!("@{}", with.evaluation)))
        {
            return Err(GatingError::NoReference { index, name: with.evaluation.clone() });
        }
        let result = codex_verdict::judge_one(&gate, &measured);
        results.push((gate, result));
    }
    Ok(results)
}

#[cfg(test)]
pub(crate) mod tests;
