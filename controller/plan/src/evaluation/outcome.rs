//! What an evaluator counted, checked and judged. Pure.

use std::collections::BTreeMap;

use codex_crds::{DataStatus, Gate, GateStatus, Reason, Verdict};
use codex_provenance::{DataDigest, GatesDigest, ModelDigest, ReportDigest};
use codex_reports::{EvaluationState, Measurement, Stage as PodStage};
use codex_verdict::{Judgement, WrittenGate};

use super::stage::View;
use crate::{data, job, numbers::count, refusal::Refusal};

/// The most metrics that a status holds.
const MAX_METRICS: usize = 64;
/// The longest name of a metric that a status holds.
const MAX_NAME: usize = 63;

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

/// The gates, or the sentence that says what is wrong with one.
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

/// What was counted, by the newest report that is complete.
pub(crate) fn counted(view: &View<'_>) -> Option<Result<Counted, Refusal>> {
    let complete = |state: &&EvaluationState| state.stage == PodStage::Finished && !state.metrics.is_empty();
    let state = view.states().map(|(_, state)| state).find(complete)?;
    let data = view.read(state);
    let refuse = |reason, why: String| Some(Err(Refusal::new(reason, why)));
    let Some(model) = state.model_digest else {
        return refuse(Reason::ModelMismatch, "the evaluator did not say which model it scored".to_owned());
    };
    if let Some(why) = data::unread(&view.spec().data, view.data(), &data) {
        return refuse(Reason::DataMismatch, why);
    }
    if state.metrics.len() > MAX_METRICS || state.metrics.keys().any(|name| name.is_empty() || name.len() > MAX_NAME) {
        let why =
            format!("the evaluator reported more than {MAX_METRICS} metrics, or one with a name that is too long");
        return refuse(Reason::PodFailed, why);
    }
    let metrics = state.metrics.clone();
    let digest = codex_verdict::report_digest(model, &by_name(&data), &metrics);
    Some(Ok(Counted { model, data, metrics, digest }))
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

/// What pods said that can never come right, whatever their Job goes on to do.
pub(crate) fn fault(view: &View<'_>, expected: ModelDigest) -> Option<Refusal> {
    let mounted = view.observed.job.as_ref().and_then(job::config_digest);
    for (report, state) in view.states() {
        if let Some(why) = data::mismatch(&view.spec().data, view.data(), &view.read(state)) {
            return Some(Refusal::new(Reason::DataMismatch, why));
        }
        if let (Some(mounted), Some(read)) = (mounted, report.config_digest)
            && mounted != read
        {
            let why = format!("the evaluator was given the configuration {mounted} and read {read}");
            return Some(Refusal::new(Reason::InvalidConfiguration, why));
        }
        if let Some(found) = state.model_digest.filter(|found| *found != expected) {
            let why = format!(
                "the evaluator found the model {found} on the volume, and TrainingRun {} made {expected}: somebody changed \
                 the files",
                view.spec().training_run
            );
            return Some(Refusal::new(Reason::ModelMismatch, why));
        }
    }
    view.counted.as_ref().and_then(|counted| counted.as_ref().err().cloned())
}
