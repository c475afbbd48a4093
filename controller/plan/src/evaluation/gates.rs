//! The gates of an Evaluation, and the verdict that they give. Pure.

use std::collections::BTreeMap;

use codex_crds::{DataStatus, EvaluationStatus, OutcomesStatus, PageStatus, ReadStatus, ReferenceStatus};
use codex_provenance::{DataDigest, EvidenceStrength, GatesDigest, ModelDigest, ReportDigest, golden::Golden};
use codex_verdict::{Gate, GateResult, GateSpec, Judgement, Measurement, Verdict};

use super::{metrics::measured, reference};

/// The metrics of a complete report, and the model that they measure.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Counted {
    pub(crate) model: ModelDigest,
    pub(crate) data: Vec<DataStatus>,
    pub(crate) metrics: BTreeMap<String, Measurement>,
    pub(crate) digest: ReportDigest,
    /// The file of the outcome of each problem.
    pub(crate) outcomes: Option<OutcomesStatus>,
    /// The page for people.
    pub(crate) page: Option<PageStatus>,
    /// What the model generated for a few of the problems.
    pub(crate) golden: Option<Golden>,
    /// The Evaluations that gates compare with.
    pub(crate) references: Vec<ReferenceStatus>,
}

/// A verdict with its evidence.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Judged {
    /// Whether admission policies protected the evaluation, or why that is not shown.
    pub(crate) evidence: Result<(), String>,
    pub(crate) counted: Counted,
    pub(crate) verdict: Verdict,
    pub(crate) passed: String,
    pub(crate) gates: Vec<GateResult>,
    pub(crate) gates_digest: GatesDigest,
    /// Which read of its problems the verdict is. Absent if they were not counted.
    pub(crate) read: Option<ReadStatus>,
}

/// Returns the gates of a spec.
///
/// # Errors
/// One sentence that names the invalid gate.
pub(crate) fn gates(gates: &[GateSpec]) -> Result<Vec<Gate>, String> {
    gates
        .iter()
        .enumerate()
        .map(|(index, gate)| Gate::try_from(gate).map_err(|why| format!("spec.gates[{index}]: {why}")))
        .collect()
}

/// Returns the numbers that a status records; `None` if it records none, or they do not have its report digest.
pub(crate) fn recorded(status: &EvaluationStatus) -> Option<Counted> {
    let (model, digest) = (status.model.as_ref()?.digest, status.report_digest?);
    let (data, metrics) = (status.data_digests.clone(), measured(&status.metrics)?);
    let golden = status.golden_tokens.clone();
    (codex_verdict::report_digest(model, &by_name(&data), &metrics, golden.as_ref()) == digest).then_some(Counted {
        model,
        data,
        metrics,
        digest,
        outcomes: status.outcomes.clone(),
        page: status.page.clone(),
        golden,
        references: status.references.clone(),
    })
}

/// Returns the evidence that a status records.
pub(crate) fn recorded_evidence(status: &EvaluationStatus) -> Result<(), String> {
    match status.evidence {
        Some(EvidenceStrength::Strong) => Ok(()),
        Some(EvidenceStrength::Weak) | None => {
            let unsaid = || "the status does not record why the evidence is weak".to_owned();
            Err(status.evidence_reason.clone().unwrap_or_else(unsaid))
        }
    }
}

/// Judges again what a status records as the result of an evaluation. `None` if it records no result, or none that these gates can
/// judge.
pub(crate) fn judged_again(status: &EvaluationStatus, gates: &[Gate]) -> Option<Judged> {
    status.completed_at.as_ref()?;
    let counted = recorded(status)?;
    reference::check(gates, &counted.references, &counted.data, &counted.metrics).ok()?;
    Some(Judged { read: status.reads, ..judged(gates, counted, None, recorded_evidence(status)) })
}

pub(crate) fn by_name(data: &[DataStatus]) -> BTreeMap<String, DataDigest> {
    data.iter().map(|file| (file.name.clone(), file.sha256)).collect()
}

/// Judges the metrics by the gates. `expected` is the model that had to be scored; `None` if it may be any.
pub(crate) fn judged(
    gates: &[Gate],
    counted: Counted,
    expected: Option<ModelDigest>,
    evidence: Result<(), String>,
) -> Judged {
    let expected = expected.unwrap_or(counted.model);
    let Judgement { verdict, passed, total, gates: each } =
        codex_verdict::judge(gates, &counted.metrics, Some(counted.model), expected);
    Judged {
        evidence,
        counted,
        verdict,
        passed: format!("{passed}/{total}"),
        gates: each,
        gates_digest: codex_verdict::gates_digest(gates),
        read: None,
    }
}
