//! `top`: the runs with their speed. Pure.

use codex_crds::{TrainingRun, TrainingRunPhase};
use jiff::Timestamp;
use kube::ResourceExt;
use serde::Serialize;

use crate::text::{age, duration, table};

/// A run as a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) ring: String,
    pub(crate) phase: String,
    /// Completed and total steps, as completed/total.
    pub(crate) steps: Option<String>,
    pub(crate) tokens_per_second: Option<i64>,
    pub(crate) eta_seconds: Option<i64>,
    pub(crate) loss: Option<String>,
    pub(crate) val_loss: Option<String>,
    /// The step of the latest checkpoint.
    pub(crate) checkpoint: Option<i64>,
    /// When the controller received the report of the latest step.
    pub(crate) reported_at: Option<Timestamp>,
}

/// Returns the rows: running runs first, then the others by namespace and name.
pub(crate) fn rows(runs: &[TrainingRun]) -> Vec<Row> {
    let mut rows: Vec<_> = runs.iter().map(row).collect();
    rows.sort_by(|a, b| {
        let key = |row: &Row| (row.phase != "Running", row.namespace.clone(), row.name.clone());
        key(a).cmp(&key(b))
    });
    rows
}

fn row(run: &TrainingRun) -> Row {
    let status = run.status.clone().unwrap_or_default();
    // The speed of a run that stands still is a former one.
    let runs = status.phase == Some(TrainingRunPhase::Running);
    let progress = status.progress.as_ref();
    Row {
        namespace: run.namespace().unwrap_or_default(),
        name: run.name_any(),
        ring: run.spec.rollout_ring.to_string(),
        phase: status.phase.map_or_else(|| "Pending".to_owned(), |phase| format!("{phase:?}")),
        steps: progress.map(|progress| progress.steps.clone()),
        tokens_per_second: progress.filter(|_| runs).and_then(|progress| progress.tokens_per_second),
        eta_seconds: progress.filter(|_| runs).and_then(|progress| progress.eta_seconds),
        loss: progress.and_then(|progress| progress.loss.as_ref()).map(ToString::to_string),
        val_loss: progress.and_then(|progress| progress.val_loss.as_ref()).map(ToString::to_string),
        checkpoint: status.last_checkpoint.as_ref().map(|checkpoint| checkpoint.step),
        reported_at: progress.and_then(|progress| progress.reported_at.as_ref()).map(|time| time.0),
    }
}

/// Returns the table, with a column for the namespace if `everywhere`.
pub(crate) fn render(rows: &[Row], everywhere: bool, now: Timestamp) -> String {
    let number = |number: Option<i64>| number.map(|number| number.to_string()).unwrap_or_default();
    let cells = rows.iter().map(|row| {
        [
            row.name.clone(),
            row.ring.clone(),
            row.phase.clone(),
            row.steps.clone().unwrap_or_default(),
            number(row.tokens_per_second),
            row.eta_seconds.map(duration).unwrap_or_default(),
            row.loss.clone().unwrap_or_default(),
            row.val_loss.clone().unwrap_or_default(),
            number(row.checkpoint),
            row.reported_at.map(|at| age(at, now)).unwrap_or_default(),
        ]
    });
    let header = ["NAME", "RING", "PHASE", "STEPS", "TOK/S", "ETA", "LOSS", "VAL LOSS", "CHECKPOINT", "REPORTED"];
    if !everywhere {
        return table(header, &cells.collect::<Vec<_>>());
    }
    let cells: Vec<[String; 11]> = cells
        .zip(rows)
        .map(|(cells, row)| {
            let mut cells = cells.into_iter();
            std::array::from_fn(
                |index| {
                    if index == 0 { row.namespace.clone() } else { cells.next().unwrap_or_default() }
                },
            )
        })
        .collect();
    let mut names = header.into_iter();
    table(std::array::from_fn(|index| if index == 0 { "NAMESPACE" } else { names.next().unwrap_or_default() }), &cells)
}
