//! Checks whether the status of an Evaluation proves a model: verdict, gates and digests are computed again from the metrics
//! that the status records. Pure.

use codex_crds::{ConditionType, Evaluation, EvaluationStatus, Reason};
use codex_provenance::{EvidenceStrength, GatesDigest, ModelDigest, ReportDigest};
use codex_verdict::{GateResult, Verdict};
use kube::ResourceExt;

use super::gates::{self, Judged};
use crate::conditions::{find, is_true};

/// What an evaluation that passed proves. Everything in it is computed from sealed metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proof {
    pub(crate) report: ReportDigest,
    pub(crate) gates: GatesDigest,
    /// The gates in the order of the spec, judged again.
    pub(crate) results: Vec<GateResult>,
    pub(crate) evidence: EvidenceStrength,
    /// Why the evidence is weak.
    pub(crate) weakness: Option<String>,
}

/// Why an evaluation does not prove the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unproven {
    pub(crate) reason: Reason,
    /// Whether it can still pass without a change by the user.
    pub(crate) waits: bool,
    pub(crate) sentence: String,
}

impl Unproven {
    fn stalls(reason: Reason, sentence: String) -> Self {
        Self { reason, waits: false, sentence }
    }
}

/// Returns the digests that name the promotion on this evaluation; `None` until it has reported.
pub(crate) fn digests(evaluation: &Evaluation) -> Option<(ReportDigest, GatesDigest)> {
    let gates = gates::gates(&evaluation.spec.gates).ok()?;
    Some((evaluation.status.as_ref()?.report_digest?, codex_verdict::gates_digest(&gates)))
}

/// Returns the proof that `evaluation` gives for the model of a run; `model` is `None` until the run has a model.
pub(crate) fn proof(
    evaluation: &Evaluation,
    run: &str,
    run_uid: Option<&str>,
    model: Option<ModelDigest>,
) -> Result<Proof, Unproven> {
    let name = evaluation.name_any();
    // An Evaluation of a given model counts if its digest is that of the run's model.
    if let Some(scored) = evaluation.spec.training_run.as_ref().filter(|scored| *scored != run) {
        let sentence =
            format!("Evaluation {name} evaluates TrainingRun {scored}, not {run}: name an Evaluation of {run}");
        return Err(Unproven::stalls(Reason::ForeignEvaluation, sentence));
    }
    let status = evaluation.status.clone().unwrap_or_default();
    if let (Some(pinned), Some(uid)) = (&status.training_run_uid, run_uid)
        && pinned != uid
    {
        let sentence = format!(
            "Evaluation {name} evaluates a former TrainingRun {run} (uid {pinned}, now {uid}): create another Evaluation"
        );
        return Err(Unproven::stalls(Reason::Replaced, sentence));
    }
    if status.completed_at.is_none() || status.metrics.is_empty() {
        return Err(pending(&name, &status));
    }
    let Some(model) = model else {
        let sentence = format!("Evaluation {name} has a verdict, but TrainingRun {run} has no model yet");
        return Err(Unproven { reason: Reason::WaitingForTraining, waits: true, sentence });
    };
    let judged = again(evaluation, &status, model).map_err(|why| {
        let sentence = format!("Evaluation {name} does not prove the model {}: {why}", model.short());
        Unproven::stalls(Reason::ModelMismatch, sentence)
    })?;
    let said = |word: &str| format!("Evaluation {name} {word}: {}", wrong(&judged.gates).join("; "));
    match judged.verdict {
        Verdict::Failed => return Err(Unproven::stalls(Reason::GateFailed, said("failed"))),
        Verdict::Inconclusive => return Err(Unproven::stalls(Reason::Inconclusive, said("is inconclusive"))),
        Verdict::Passed => {}
    }
    let (evidence, weakness) = match judged.evidence {
        Ok(()) => (EvidenceStrength::Strong, None),
        Err(why) => (EvidenceStrength::Weak, Some(why)),
    };
    Ok(Proof { report: judged.counted.digest, gates: judged.gates_digest, results: judged.gates, evidence, weakness })
}

fn pending(name: &str, status: &EvaluationStatus) -> Unproven {
    let stalled = find(&status.conditions, ConditionType::Stalled)
        .filter(|_| is_true(&status.conditions, ConditionType::Stalled));
    match stalled {
        Some(stalled) => {
            let sentence = format!("Evaluation {name} has no verdict and is stalled: {}", stalled.message);
            Unproven::stalls(Reason::WaitingForVerdict, sentence)
        }
        None => Unproven {
            reason: Reason::WaitingForVerdict,
            waits: true,
            sentence: format!("Evaluation {name} has no verdict yet"),
        },
    }
}

/// Judges the metrics in the status again, by the gates in the spec.
fn again(evaluation: &Evaluation, status: &EvaluationStatus, model: ModelDigest) -> Result<Judged, String> {
    let judged = status.model.as_ref().map(|judged| judged.digest);
    if judged != Some(model) {
        let judged = judged.map_or_else(|| "no model".to_owned(), |digest| format!("the model {}", digest.short()));
        return Err(format!("it evaluated {judged}"));
    }
    let bounds = gates::gates(&evaluation.spec.gates)?;
    let judged = gates::judged_again(status, &bounds);
    judged.ok_or_else(|| "its status is inconsistent: its metrics do not match reportDigest".to_owned())
}

/// Returns a sentence for each gate that did not pass.
pub(crate) fn wrong(gates: &[GateResult]) -> Vec<String> {
    gates
        .iter()
        .filter(|gate| gate.verdict != Verdict::Passed)
        .map(|gate| {
            let word = if gate.verdict == Verdict::Failed { "failed" } else { "is inconclusive" };
            format!("{} {word} ({})", gate.metric, gate.message)
        })
        .collect()
}
