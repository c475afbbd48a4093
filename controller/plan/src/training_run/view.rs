//! The observation of a TrainingRun, in the form that its plan needs. Pure.

use codex_configs::{Resolved, Training, compose_training};
use codex_crds::{TrainingRunSpec, TrainingRunStatus};
use codex_reports::{Report, State, TrainingState};
use jiff::Timestamp;

use super::observed::ObservedTrainingRun;
use crate::{
    data,
    metadata::{Component, Owner},
    obstruction::Obstruction,
    work::{Config, Limits, WorkView, Worker},
};

/// The observation of a TrainingRun.
pub(crate) struct View<'a> {
    pub(crate) observed: &'a ObservedTrainingRun,
    pub(crate) obstruction: Option<&'a Obstruction>,
    /// The status as it is recorded.
    pub(crate) status: TrainingRunStatus,
    pub(crate) work: WorkView<'a>,
}

impl<'a> View<'a> {
    pub(crate) fn of(observed: &'a ObservedTrainingRun, now: Timestamp) -> Self {
        let (object, spec, job) = (&observed.object, &observed.object.spec, observed.job.as_ref());
        let status = object.status.clone().unwrap_or_default();
        let owner = Owner::run(object);
        let worker = Worker::of(owner, job, &observed.pods, &observed.reports, status.work.clone(), now);
        let started_with = status.config_digest.filter(|_| worker.has_started());
        let work = WorkView {
            component: Component::Trainer,
            settings: &observed.settings,
            job,
            config: Config::of(compose(spec), job, started_with, |training| &training.data),
            worker,
            limits: Limits { retries: spec.retries, deadline: spec.active_deadline_seconds },
            suspend: spec.suspend,
            data: &spec.data,
            preset_data: Vec::new(),
            references: &observed.references,
            conditions: object.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default(),
        };
        let obstruction = Obstruction::current(observed.obstruction.as_ref(), object.metadata.generation);
        Self { observed, obstruction, status, work }
    }

    pub(crate) fn spec(&self) -> &'a TrainingRunSpec {
        &self.observed.object.spec
    }

    /// Returns the trainers' reports, the newest first.
    pub(crate) fn states(&self) -> impl Iterator<Item = (&Report, &TrainingState)> {
        self.work.worker.reports.iter().rev().filter_map(|report| match &report.state {
            State::Training(state) => Some((report, state)),
            State::Evaluation(_) | State::Serving(_) => None,
        })
    }
}

fn compose(spec: &TrainingRunSpec) -> Result<Resolved<Training>, String> {
    let data = data::configured(&spec.data)?;
    compose_training(&spec.template, &spec.overrides, spec.config.as_deref(), spec.seed, data)
        .map_err(|why| why.to_string())
}
