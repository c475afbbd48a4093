//! The observation of an Evaluation, in the form that its plan needs. Pure.

use codex_configs::{Evaluation as Configured, Resolved, compose_evaluation};
use codex_crds::{EvaluationSpec, EvaluationStatus};
use codex_reports::{EvaluationState, Report, State};
use jiff::Timestamp;

use super::{
    gates::gates,
    observed::ObservedEvaluation,
    subject::{Model, Subject},
};
use crate::{
    data,
    metadata::{Component, Owner},
    obstruction::Obstruction,
    work::{Config, Limits, WorkView, Worker},
};

/// The observation of an Evaluation.
pub(crate) struct View<'a> {
    pub(crate) observed: &'a ObservedEvaluation,
    pub(crate) obstruction: Option<&'a Obstruction>,
    /// The status as it is recorded.
    pub(crate) status: EvaluationStatus,
    pub(crate) work: WorkView<'a>,
    /// What is scored, or the sentence that says what is wrong with it.
    pub(crate) subject: Result<Subject<'a>, String>,
    /// The gates, or the sentence that names the invalid one.
    pub(crate) gates: Result<Vec<codex_verdict::Gate>, String>,
}

impl<'a> View<'a> {
    pub(crate) fn of(observed: &'a ObservedEvaluation, now: Timestamp) -> Self {
        let (object, spec, job) = (&observed.object, &observed.object.spec, observed.job.as_ref());
        let status = object.status.clone().unwrap_or_default();
        let owner = Owner::evaluation(object);
        let worker = Worker::of(owner, job, &observed.pods, &observed.reports, status.work.clone(), now);
        let work = WorkView {
            component: Component::Evaluator,
            settings: &observed.settings,
            job,
            config: Config::of(compose(spec), job, None, |evaluation| &evaluation.data),
            worker,
            limits: Limits { retries: spec.retries, deadline: spec.active_deadline_seconds },
            suspend: spec.suspend,
            data: &spec.data,
            preset_data: codex_configs::benchmark(&spec.preset).iter().map(|file| file.name).collect(),
            references: &observed.references,
            conditions: object.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default(),
        };
        let obstruction = Obstruction::current(observed.obstruction.as_ref(), object.metadata.generation);
        Self { observed, obstruction, status, work, subject: Subject::of(object), gates: gates(&spec.gates) }
    }

    pub(crate) fn spec(&self) -> &'a EvaluationSpec {
        &self.observed.object.spec
    }

    /// Returns the evaluators' reports, the newest first.
    pub(crate) fn states(&self) -> impl Iterator<Item = (&Report, &EvaluationState)> {
        self.work.worker.reports.iter().rev().filter_map(|report| match &report.state {
            State::Evaluation(state) => Some((report, state)),
            State::Training(_) | State::Serving(_) => None,
        })
    }

    /// Returns the model that is scored, if its files exist as far as the controller knows.
    pub(crate) fn model(&self) -> Option<Model<'a>> {
        self.subject.as_ref().ok()?.model(self.observed)
    }
}

fn compose(spec: &EvaluationSpec) -> Result<Resolved<Configured>, String> {
    let data = data::configured(&spec.data)?;
    let resolved = compose_evaluation(&spec.preset, &spec.overrides, spec.seed, data).map_err(|why| why.to_string())?;
    // A gate on a metric that the evaluation does not measure is refused before a pod starts.
    let mut gates = spec.gates.iter().enumerate();
    match gates.find_map(|(index, gate)| Some((index, resolved.spec().unmeasurable(gate.metric.parse().ok()?)?))) {
        Some((index, why)) => Err(format!("spec.gates[{index}].metric: {why}")),
        None => Ok(resolved),
    }
}
