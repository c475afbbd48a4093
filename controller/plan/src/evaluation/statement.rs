//! What a promotion statement says about an evaluation. Pure.

use codex_crds::{Evaluation, ReadStatus, ReferenceStatus};
use codex_provenance::promotion;
use codex_verdict::{Stated, Verdict};
use kube::ResourceExt;

use super::{gates::by_name, metrics::measured, proof::Proof};

/// Returns what the statement says about an evaluation that passed. Gates, digests and evidence are those of its proof, which
/// were computed from the sealed metrics. `None` if the status is incomplete.
pub(crate) fn statement(evaluation: &Evaluation, proof: &Proof) -> Option<promotion::Evaluation> {
    let status = evaluation.status.as_ref()?;
    let stated = Stated::judged(
        Verdict::Passed,
        (proof.report, proof.gates),
        &measured(&status.metrics)?,
        &evaluation.spec.gates,
        &proof.results,
    );
    Some(promotion::Evaluation {
        name: evaluation.name_any(),
        uid: evaluation.uid()?,
        preset: evaluation.spec.preset.clone(),
        config_digest: status.config_digest,
        report_digest: stated.report_digest,
        gates_digest: stated.gates_digest,
        data: by_name(&status.data_digests),
        image_id: status.work.image_id.clone().unwrap_or_default(),
        completed_at: status.completed_at.as_ref()?.0.to_string(),
        evidence: Some(proof.evidence),
        outcomes: status.outcomes.as_ref().map(|outcomes| outcomes.sha256),
        golden_tokens: status.golden_tokens.clone(),
        metrics: stated.metrics,
        gates: stated.gates,
        references: status.references.iter().map(reference).collect::<Option<_>>()?,
        reads: status.reads.as_ref().and_then(read),
    })
}

/// Returns what the statement says about an evaluation that gates compare with. `None` if its measurements are malformed.
fn reference(reference: &ReferenceStatus) -> Option<promotion::Reference> {
    Some(promotion::Reference {
        name: reference.evaluation.clone(),
        uid: reference.uid.clone(),
        model: reference.model,
        outcomes: reference.outcomes,
        metrics: codex_verdict::stated_metrics(&measured(&reference.metrics)?),
    })
}

fn read(read: &ReadStatus) -> Option<promotion::Read> {
    let number = u64::try_from(read.number).ok()?;
    Some(promotion::Read { problems: read.data_digest, number, divided: Vec::new() })
}
