//! Checks whether the status of an Evaluation proves a model: everything is computed again from its metrics. Pure.

use codex_crds::{ConditionType, Evaluation, EvaluationStatus, Reason};
use codex_provenance::{GatesDigest, ModelDigest, ReportDigest};
use codex_verdict::{GateResult, Verdict};
use kube::ResourceExt;

use super::{gates, metrics::measured};
use crate::conditions::{find, is_true};

/// The digests of an evaluation that passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Proof {
    pub(crate) report: ReportDigest,
    pub(crate) gates: GatesDigest,
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
    let (Some(verdict), Some(_)) = (status.verdict, &status.completed_at) else {
        return Err(pending(&name, &status));
    };
    let Some(model) = model else {
        let sentence = format!("Evaluation {name} has a verdict, but TrainingRun {run} has no model yet");
        return Err(Unproven { reason: Reason::WaitingForTraining, waits: true, sentence });
    };
    let proof = again(evaluation, &status, model).map_err(|why| {
        let sentence = format!("Evaluation {name} does not prove the model {}: {why}", model.short());
        Unproven::stalls(Reason::ModelMismatch, sentence)
    })?;
    let said = |word: &str| format!("Evaluation {name} {word}: {}", wrong(&status.gates).join("; "));
    match verdict {
        Verdict::Passed => Ok(proof),
        Verdict::Failed => Err(Unproven::stalls(Reason::GateFailed, said("failed"))),
        Verdict::Inconclusive => Err(Unproven::stalls(Reason::Inconclusive, said("is inconclusive"))),
    }
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

/// Computes digests and verdict again from the metrics and the model in the status, and the gates in the spec.
fn again(evaluation: &Evaluation, status: &EvaluationStatus, model: ModelDigest) -> Result<Proof, String> {
    let judged = status.model.as_ref().map(|judged| judged.digest);
    if judged != Some(model) {
        let judged = judged.map_or_else(|| "no model".to_owned(), |digest| format!("the model {}", digest.short()));
        return Err(format!("it evaluated {judged}"));
    }
    let contradicts = |what: &str| format!("its status is inconsistent: {what}");
    let bounds = gates::gates(&evaluation.spec.gates)?;
    let metrics = measured(&status.metrics).ok_or_else(|| contradicts("its metrics are malformed"))?;
    let report = codex_verdict::report_digest(model, &gates::by_name(&status.data_digests), &metrics);
    if status.report_digest != Some(report) {
        return Err(contradicts("its metrics do not match reportDigest"));
    }
    let digest = codex_verdict::gates_digest(&bounds);
    if status.gates_digest != Some(digest) {
        return Err(contradicts("its gates do not match gatesDigest"));
    }
    let judgement = codex_verdict::judge(&bounds, &metrics, judged, model);
    if Some(judgement.verdict) != status.verdict {
        return Err(contradicts("its metrics do not yield its verdict"));
    }
    Ok(Proof { report, gates: digest })
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
