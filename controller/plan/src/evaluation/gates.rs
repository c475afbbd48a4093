//! The gates of an Evaluation, and the verdict that they give. Pure.

use std::collections::BTreeMap;

use codex_crds::DataStatus;
use codex_provenance::{DataDigest, GatesDigest, ModelDigest, ReportDigest};
use codex_verdict::{Gate, GateResult, GateSpec, Judgement, Measurement, Verdict};

/// The metrics of a complete report, and the model that they measure.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Counted {
    pub(crate) model: ModelDigest,
    pub(crate) data: Vec<DataStatus>,
    pub(crate) metrics: BTreeMap<String, Measurement>,
    pub(crate) digest: ReportDigest,
}

/// A verdict with its evidence.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Judged {
    pub(crate) counted: Counted,
    pub(crate) verdict: Verdict,
    pub(crate) passed: String,
    pub(crate) gates: Vec<GateResult>,
    pub(crate) gates_digest: GatesDigest,
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

pub(super) fn by_name(data: &[DataStatus]) -> BTreeMap<String, DataDigest> {
    data.iter().map(|file| (file.name.clone(), file.sha256)).collect()
}

/// Judges the metrics by the gates. `expected` is the model that had to be scored; `None` if it may be any.
pub(crate) fn judged(gates: &[Gate], counted: Counted, expected: Option<ModelDigest>) -> Judged {
    let expected = expected.unwrap_or(counted.model);
    let Judgement { verdict, passed, total, gates: each } =
        codex_verdict::judge(gates, &counted.metrics, Some(counted.model), expected);
    Judged {
        counted,
        verdict,
        passed: format!("{passed}/{total}"),
        gates: each,
        gates_digest: codex_verdict::gates_digest(gates),
    }
}
