//! `events`: the Events of an object, its Job or Deployment and its pods. Pure.

use std::borrow::Cow;

use jiff::Timestamp;
use k8s_openapi::api::events::v1::Event;
use serde::Serialize;

use crate::{
    subject::Kind,
    text::{age, table},
};

/// An Event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Told {
    /// When it last occurred.
    pub(crate) at: Option<Timestamp>,
    /// How often it occurred.
    pub(crate) count: i32,
    /// `Normal` or `Warning`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) reason: String,
    /// Kind and name of the object that it is about.
    pub(crate) object: String,
    pub(crate) message: String,
}

/// Returns the Events about the object `name` with this uid, its child of the same name as a Job or Deployment, and what that
/// created, oldest first.
pub(crate) fn about(events: &[Event], kind: Kind, name: &str, uid: &str) -> Vec<Told> {
    let child = kind.child(name);
    let prefix = format!("{child}-");
    // The names of pods end in random letters, so that the pods of `a` and of `a-b` differ only in their count of parts.
    let parts = |name: &str| name.strip_prefix(&prefix).map(|rest| rest.split('-').count());
    let most = if kind == Kind::ReasoningPod { 2 } else { 1 };
    let mut told: Vec<_> = events
        .iter()
        .filter(|event| {
            let Some(about) = &event.regarding else { return false };
            let named = about.name.as_deref().unwrap_or_default();
            let named = &*without_run(kind, named);
            match about.kind.as_deref().unwrap_or_default() {
                found if found == kind.name() => named == name && about.uid.as_deref().is_none_or(|found| found == uid),
                "Job" | "Deployment" => named == child,
                "ReplicaSet" => parts(named) == Some(1),
                "Pod" => parts(named).is_some_and(|parts| parts == most),
                _ => false,
            }
        })
        .map(told)
        .collect();
    told.sort_by(|a, b| (a.at, &a.reason, &a.object).cmp(&(b.at, &b.reason, &b.object)));
    told
}

/// Returns the name of a child without the number of the run of a repeated Evaluation.
fn without_run(kind: Kind, name: &str) -> Cow<'_, str> {
    let run = name.strip_prefix("codex-e-").filter(|_| kind == Kind::Evaluation).and_then(|rest| rest.split_once('-'));
    match run {
        Some((number, rest)) if number.bytes().all(|byte| byte.is_ascii_digit()) => Cow::Owned(kind.child(rest)),
        _ => Cow::Borrowed(name),
    }
}

fn told(event: &Event) -> Told {
    let about = event.regarding.clone().unwrap_or_default();
    let series = event.series.as_ref();
    let times = [
        series.map(|series| series.last_observed_time.0),
        event.deprecated_last_timestamp.as_ref().map(|time| time.0),
        event.event_time.as_ref().map(|time| time.0),
        event.metadata.creation_timestamp.as_ref().map(|time| time.0),
    ];
    Told {
        at: times.into_iter().flatten().max(),
        count: series.map(|series| series.count).or(event.deprecated_count).unwrap_or(1).max(1),
        kind: event.type_.clone().unwrap_or_default(),
        reason: event.reason.clone().unwrap_or_default(),
        object: format!("{}/{}", about.kind.unwrap_or_default().to_lowercase(), about.name.unwrap_or_default()),
        message: event.note.clone().unwrap_or_default(),
    }
}

/// Returns the table.
pub(crate) fn render(events: &[Told], now: Timestamp) -> String {
    let rows: Vec<_> = events
        .iter()
        .map(|event| {
            let last = event.at.map(|at| age(at, now)).unwrap_or_default();
            let seen = if event.count > 1 { format!("{last} (x{})", event.count) } else { last };
            [seen, event.kind.clone(), event.reason.clone(), event.object.clone(), event.message.clone()]
        })
        .collect();
    table(["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"], &rows)
}
