//! The Evaluations that gates compare with: what is waited for, and what is recorded of them. Pure.
//!
//! A comparison is honest because each step checks a digest: the evaluator of the reference reported the digest of its file of
//! outcomes, and the sealed status of the reference records it; it is part of the configuration of the evaluator that compares,
//! which refuses another file and reports what it read; and the difference that it reports must be the difference of both
//! sealed measurements.

use codex_configs::{Data, PROBLEMS, compose_evaluation};
use codex_crds::{DataStatus, Evaluation, EvaluationStatus, MetricStatus, Reason, ReferenceStatus};
use codex_provenance::EvidenceStrength;
use codex_verdict::{Gate, Metric, reference_file};
use kube::ResourceExt;

use super::{
    gates::{by_name, recorded},
    metrics::measured,
    observed::ObservedEvaluation,
};
use crate::{
    pod_template::{Access, Mounts},
    work::WorkFailure,
};

/// The name of the file of outcomes.
pub(crate) const OUTCOMES: &str = "outcomes.json";
/// The folder in which evaluators find the results of references.
const MOUNT: &str = "/references";

/// Why an Evaluation cannot be compared with another one now.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NoReference {
    pub(crate) reason: Reason,
    /// Whether nothing happens until a user acts.
    pub(crate) stalled: bool,
    pub(crate) message: String,
}

/// Returns the names of the Evaluations that gates compare with, each once.
pub(crate) fn names(gates: &[Gate]) -> Vec<&str> {
    let mut names = Vec::new();
    for with in gates.iter().filter_map(|gate| gate.bound.comparison()) {
        if !names.contains(&with.evaluation.as_str()) {
            names.push(with.evaluation.as_str());
        }
    }
    names
}

/// Returns the references of an Evaluation. Once its Job exists, those that `status` records: the Job was created with them.
///
/// # Errors
/// What is waited for, or what to change.
pub(crate) fn references(
    observed: &ObservedEvaluation,
    status: &EvaluationStatus,
    gates: &[Gate],
) -> Result<Vec<ReferenceStatus>, NoReference> {
    let names = names(gates);
    let known = |name: &&str| status.references.iter().any(|reference| reference.evaluation == **name);
    if (observed.job.is_some() || status.completed_at.is_some()) && names.iter().all(known) {
        return Ok(status.references.clone());
    }
    names.into_iter().map(|name| reference(observed, name, gates)).collect()
}

fn reference(observed: &ObservedEvaluation, name: &str, gates: &[Gate]) -> Result<ReferenceStatus, NoReference> {
    let waits = |reason, message| NoReference { reason, stalled: false, message };
    let refuses = |message| NoReference { reason: Reason::InvalidConfiguration, stalled: true, message };
    if name == observed.object.name_any() {
        return Err(refuses("spec.gates[] compares the Evaluation with itself: name another Evaluation".to_owned()));
    }
    let Some(other) = observed.compared.get(name) else {
        let message =
            format!("spec.gates[] names Evaluation {name:?}, which does not exist in this namespace: create it");
        return Err(waits(Reason::NotFound, message));
    };
    if other.metadata.deletion_timestamp.is_some() {
        return Err(waits(Reason::NotFound, format!("Evaluation {name} is being deleted")));
    }
    let waiting = || waits(Reason::WaitingForReference, format!("Evaluation {name} has no result yet"));
    let status = other.status.as_ref().filter(|status| status.completed_at.is_some()).ok_or_else(waiting)?;
    let Some(counted) = recorded(status) else {
        let why = WorkFailure::recorded(&status.conditions).message;
        return Err(refuses(format!("Evaluation {name} failed, so nothing can be compared with it: {why}")));
    };
    let Some(outcomes) = &counted.outcomes else {
        return Err(refuses(format!(
            "Evaluation {name} recorded no outcomes, because another version of the controller judged it: create it again \
             under another name and compare with that"
        )));
    };
    if let Some(why) = differs(&observed.object, other, &counted.data) {
        return Err(refuses(format!("Evaluation {name} cannot be compared with: {why}")));
    }
    let measured = |metric: Metric| status.metrics.iter().any(|it| it.name == metric.name());
    let compared = gates.iter().filter(|gate| gate.bound.comparison().is_some_and(|with| with.evaluation == name));
    if let Some(gate) = compared.into_iter().find(|gate| gate.metric.is_on_demand() && !measured(gate.metric)) {
        let metric = gate.metric;
        return Err(refuses(format!(
            "Evaluation {name} did not measure {metric}: create it again under another name with the override \
             evaluation.metrics=[{metric}] and compare with that"
        )));
    }
    let own = |metric: &&MetricStatus| !metric.name.contains('@');
    Ok(ReferenceStatus {
        evaluation: name.to_owned(),
        uid: other.uid().unwrap_or_default(),
        model: counted.model,
        outcomes: outcomes.sha256,
        evidence: status.evidence.unwrap_or(EvidenceStrength::Weak),
        metrics: status.metrics.iter().filter(own).cloned().collect(),
    })
}

/// Returns why two Evaluations do not ask the same problems in the same way, as far as the specs tell it. The evaluator compares
/// the digests of the problems and the settings that were used. `read` is the data of the `other` one.
fn differs(object: &Evaluation, other: &Evaluation, read: &[DataStatus]) -> Option<String> {
    let composed = |it: &Evaluation| {
        let data = crate::data::configured(&it.spec.data).ok()?;
        compose_evaluation(&it.spec.preset, &it.spec.overrides, it.spec.seed, data).ok()
    };
    let (own, theirs) = (composed(object)?, composed(other)?);
    if own.spec().settings.evaluation.deciding() != theirs.spec().settings.evaluation.deciding() {
        return Some(
            "its settings are not those of this Evaluation: use the same spec.preset and spec.overrides".to_owned(),
        );
    }
    let demanded = own.spec().data.iter().find(|file| file.name == PROBLEMS)?.sha256?;
    let found = *by_name(read).get(PROBLEMS)?;
    (found != demanded)
        .then(|| format!("it asked other problems (SHA-256 {found}, here {demanded}): use the same problems"))
}

/// Returns the outcomes of the references as data files of the configuration.
pub(crate) fn files(references: &[ReferenceStatus]) -> Vec<Data> {
    let file = |reference: &ReferenceStatus| Data {
        name: reference_file(&reference.evaluation),
        sha256: Some(reference.outcomes),
        synthetic: None,
    };
    references.iter().map(file).collect()
}

/// Returns the claims that hold the outcomes, each with the field that names it.
pub(crate) fn claims<'a>(observed: &'a ObservedEvaluation, references: &[ReferenceStatus]) -> Vec<(String, &'a str)> {
    let claim = |reference: &ReferenceStatus| {
        let outcomes = observed.compared.get(&reference.evaluation)?.status.as_ref()?.outcomes.as_ref()?;
        Some((
            format!("status.outcomes.claimName of Evaluation {}", reference.evaluation),
            outcomes.claim_name.as_str(),
        ))
    };
    references.iter().filter_map(claim).collect()
}

/// Mounts the results of each reference read-only, and adds the arguments that name the files of outcomes. `None` if a reference
/// is gone.
pub(crate) fn mount(
    observed: &ObservedEvaluation,
    references: &[ReferenceStatus],
    mounts: &mut Mounts,
    args: &mut Vec<String>,
) -> Option<()> {
    for ReferenceStatus { evaluation, .. } in references {
        let outcomes = observed.compared.get(evaluation)?.status.as_ref()?.outcomes.as_ref()?;
        let folder = format!("{MOUNT}/{evaluation}");
        mounts.claim(&outcomes.claim_name, &outcomes.path, &folder, Access::ReadOnly);
        args.extend(["--data".to_owned(), format!("{}={folder}/{OUTCOMES}", reference_file(evaluation))]);
    }
    Some(())
}

/// Checks what an evaluator reported about comparisons: it was given the outcomes of the references, and each difference is that
/// of both measurements.
///
/// # Errors
/// One sentence about the first contradiction.
pub(crate) fn check(
    gates: &[Gate],
    references: &[ReferenceStatus],
    data: &[DataStatus],
    metrics: &std::collections::BTreeMap<String, codex_verdict::Measurement>,
) -> Result<(), (Reason, String)> {
    let read = by_name(data);
    for gate in gates {
        let Some(with) = gate.bound.comparison() else { continue };
        let name = &with.evaluation;
        let Some(reference) = references.iter().find(|reference| reference.evaluation == *name) else {
            return Err((Reason::InvalidConfiguration, format!("what Evaluation {name} had measured is not recorded")));
        };
        if read.get(&reference_file(name)) != Some(&reference.outcomes) {
            return Err((
                Reason::DataMismatch,
                format!("the evaluator did not read the outcomes {} of Evaluation {name}", reference.outcomes),
            ));
        }
        let others = measured(&reference.metrics).unwrap_or_default();
        codex_verdict::check_comparison(gate, metrics, &others).map_err(|(name, why)| {
            (Reason::Contradiction, format!("the evaluator's report is refused: its {name} is contradicted: {why}"))
        })?;
    }
    Ok(())
}

/// Returns why comparisons weaken the evidence: that of a reference is weak.
pub(crate) fn weakness(references: &[ReferenceStatus]) -> Option<String> {
    let weak = references.iter().find(|reference| reference.evidence == EvidenceStrength::Weak)?;
    Some(format!("the evidence of Evaluation {}, which a gate compares with, is weak", weak.evaluation))
}
