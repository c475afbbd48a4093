//! The gates of an Evaluation, and the verdict that they give. Pure.

use std::collections::BTreeMap;

use codex_crds::{DataStatus, Gate, GateStatus, Verdict};
use codex_provenance::{DataDigest, GatesDigest, ModelDigest, ReportDigest};
use codex_reports::Measurement;
use codex_verdict::{Judgement, WrittenGate};

use crate::numbers::count;

/// What was counted, and about which model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Counted {
    pub(crate) model: ModelDigest,
    pub(crate) data: Vec<DataStatus>,
    pub(crate) metrics: BTreeMap<String, Measurement>,
    pub(crate) digest: ReportDigest,
}

/// A verdict with everything that it rests on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Judged {
    pub(crate) counted: Counted,
    pub(crate) verdict: Verdict,
    pub(crate) passed: String,
    pub(crate) gates: Vec<GateStatus>,
    pub(crate) gates_digest: GatesDigest,
}

/// Returns the gates of a spec.
///
/// # Errors
/// One sentence that names the invalid gate.
pub(crate) fn gates(gates: &[Gate]) -> Result<Vec<codex_verdict::Gate>, String> {
    let read = |gate: &Gate| {
        let written = WrittenGate {
            metric: &gate.metric,
            min: gate.min.as_ref().map(|bound| bound.0.as_str()),
            max: gate.max.as_ref().map(|bound| bound.0.as_str()),
            min_samples: gate.min_samples,
            confidence: gate.confidence.as_ref().map(|share| share.0.as_str()),
        };
        codex_verdict::Gate::try_from(written)
    };
    gates
        .iter()
        .enumerate()
        .map(|(index, gate)| read(gate).map_err(|why| format!("spec.gates[{index}]: {why}")))
        .collect()
}

pub(super) fn by_name(data: &[DataStatus]) -> BTreeMap<String, DataDigest> {
    data.iter().map(|file| (file.name.clone(), file.sha256)).collect()
}

/// Judges what was counted as a verdict about the run's model.
pub(crate) fn judged(gates: &[codex_verdict::Gate], counted: Counted, expected: ModelDigest) -> Judged {
    let Judgement { verdict, passed, total, gates: each } =
        codex_verdict::judge(gates, &counted.metrics, Some(counted.model), expected);
    let decimal = |text: Option<String>| text.map(codex_crds::Decimal);
    let each = each.into_iter().map(|gate| GateStatus {
        metric: gate.metric,
        value: decimal(gate.value),
        n: gate.n.map(count),
        lower: decimal(gate.lower),
        upper: decimal(gate.upper),
        verdict: translated(gate.verdict),
        message: gate.message.chars().take(1024).collect(),
    });
    Judged {
        counted,
        verdict: translated(verdict),
        passed: format!("{passed}/{total}"),
        gates: each.collect(),
        gates_digest: codex_verdict::gates_digest(gates),
    }
}

pub(super) fn translated(verdict: codex_verdict::Verdict) -> Verdict {
    match verdict {
        codex_verdict::Verdict::Passed => Verdict::Passed,
        codex_verdict::Verdict::Failed => Verdict::Failed,
        codex_verdict::Verdict::Inconclusive => Verdict::Inconclusive,
    }
}
