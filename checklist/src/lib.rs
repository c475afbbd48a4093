//! What a promotion needs as a [`Checklist`], how ready a run is as a [`Survey`], and the [`Setting`]s that control a chain.
//!
//! `codex` gathers [`Facts`] from files, and `kubectl codex` from a cluster. The checks, the numbers and the wording are those of this
//! crate, so both programs say the same about the same run. Pure, except for [`surveys`], which reads files.

mod allowance;
mod chain;
mod checks;
mod facts;
mod map;
mod quantity;
mod survey;
pub mod surveys;

#[cfg(test)]
mod tests;

use std::fmt;

use codex_provenance::{ModelDigest, text::Printable};
use codex_verdict::Ring;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use allowance::{Allowances, Usage};
pub use chain::{Chain, SignOff};
pub use checks::{check, status_report};
pub use facts::{Facts, Judged, Model, Record, Records, Signatures};
pub use map::{SECTIONS, Setting, as_json, settings, told};
pub use quantity::Quantity;
pub use survey::{RunReadiness, Survey, Surveyed, Weights, survey};

/// The version of the shapes of a checklist and a survey.
pub const SCHEMA_VERSION: u32 = 1;

/// What a check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Subject {
    /// The ring of the run is declared, and is that of the ReasoningPod.
    Ring,
    /// `run_metadata.json`, `config.yaml` and `dataset_checksums.json` are there and agree.
    Artifacts,
    /// The files of the model have the digest that every evaluation and statement names.
    Manifest,
    /// Every Evaluation of the ReasoningPod passed, or a person signed it off.
    Evaluations,
    /// The bundles are valid, by the pinned key.
    Signatures,
    /// A survey of `codex status-report` is about this model in this ring.
    StatusReport,
    /// The resources of the servers are stated and can hold the model.
    Resources,
}

impl Subject {
    /// Returns the name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Artifacts => "artifacts",
            Self::Manifest => "manifest",
            Self::Evaluations => "evaluations",
            Self::Signatures => "signatures",
            Self::StatusReport => "status report",
            Self::Resources => "resources",
        }
    }
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// It holds.
    Holds,
    /// A person waived it: by a SignOff, or by `--unsigned`.
    Waived,
    /// It does not hold.
    Blocked,
}

/// One check of a promotion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Check {
    /// What it is about.
    pub subject: Subject,
    /// Its result.
    pub state: State,
    /// What was found, in sentences.
    pub found: Vec<String>,
    /// Why it does not hold, in sentences that say what to change. Empty if it holds.
    pub reasons: Vec<String>,
}

/// The checklist of a promotion: what `codex deploy --format json` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "codex deploy --format json")]
pub struct Checklist {
    /// The version of the shape.
    #[schemars(extend("const" = SCHEMA_VERSION))]
    pub schema_version: u32,
    /// Name of the ReasoningPod.
    pub pod: String,
    /// Ring of the ReasoningPod.
    pub ring: Ring,
    /// The digest of the model, if its files could be hashed.
    pub model: Option<ModelDigest>,
    /// Whether a check does not hold.
    pub blocked: bool,
    /// Every check, in a fixed order.
    pub checks: Vec<Check>,
}

/// Sentences of a check, while it is made.
#[derive(Debug, Default)]
struct Findings {
    found: Vec<String>,
    reasons: Vec<String>,
    is_waived: bool,
}

impl Findings {
    /// Starts with a reason.
    fn lacking(reason: impl Into<String>) -> Self {
        Self { reasons: vec![reason.into()], ..Self::default() }
    }

    fn finish(self, subject: Subject) -> Check {
        let state = match (self.reasons.is_empty(), self.is_waived) {
            (false, _) => State::Blocked,
            (true, true) => State::Waived,
            (true, false) => State::Holds,
        };
        Check { subject, state, found: self.found, reasons: self.reasons }
    }
}

impl Checklist {
    /// Returns the checklist of a promotion. `surveys` are the status reports at hand, the oldest first, and `place` is where they
    /// were looked for.
    pub fn of(chain: &Chain, facts: &Facts<'_>, surveys: &[(String, Survey)], place: &str) -> Self {
        let model = facts.digest();
        let mut checks = check(facts);
        checks.push(status_report(facts.ring, model, surveys, place));
        checks.sort_by_key(|check| check.subject);
        Self {
            schema_version: SCHEMA_VERSION,
            pod: chain.name.clone(),
            ring: facts.ring,
            model,
            blocked: checks.iter().any(|check| check.state == State::Blocked),
            checks,
        }
    }

    /// Returns the number of checks that hold or are waived.
    pub fn held(&self) -> usize {
        held(&self.checks)
    }
}

/// Returns the number of checks that hold or are waived.
fn held(checks: &[Check]) -> usize {
    checks.iter().filter(|check| check.state != State::Blocked).count()
}

/// A checklist for people. Text from files and objects is escaped.
impl fmt::Display for Checklist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pod, ring, model, checks, .. } = self;
        if self.blocked {
            let reasons: Vec<_> = checks
                .iter()
                .flat_map(|check| check.reasons.iter().map(move |reason| (check.subject.name(), reason)))
                .collect();
            let (failed, all) = (checks.len() - self.held(), checks.len());
            writeln!(f, "DEPLOYMENT BLOCKED: {} into {ring}: {failed} of {all} checks do not hold", Printable(pod))?;
            for (name, reason) in reasons {
                writeln!(f, "  {name}: {}", Printable(reason))?;
            }
            return write!(f, "nothing was created");
        }
        writeln!(f, "ReasoningPod {} may roll out into {ring}", Printable(pod))?;
        if let Some(model) = model {
            writeln!(f, "model {model}")?;
        }
        for check in checks {
            let mark = if check.state == State::Waived { "waived" } else { "ok" };
            for sentence in &check.found {
                writeln!(f, "  {mark:<6}  {}: {}", check.subject.name(), Printable(sentence))?;
            }
        }
        write!(f, "nothing was created: apply the objects with kubectl or Argo CD")
    }
}
