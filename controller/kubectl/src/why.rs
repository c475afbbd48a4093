//! `why`: one paragraph that says what blocks an object and what to do. Pure.

use codex_crds::ConditionType;
use codex_provenance::text::Printable;
use serde::Serialize;

use crate::{events::Told, subject::Kind, view::View};

/// What blocks an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Why {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    /// Whether something needs attention or has to be waited for.
    pub(crate) blocked: bool,
    pub(crate) sentences: Vec<String>,
}

/// Explains an object. `causes` are the objects that it depends on, `events` its Events, the newest last.
pub(crate) fn why(object: &View, causes: &[View], events: &[Told]) -> Why {
    let mut sentences = state(object);
    let ready = object.is(ConditionType::Ready);
    let exceptional = object.conditions.iter().filter(|state| {
        let named = [ConditionType::Stalled, ConditionType::Reconciling].map(ConditionType::name);
        state.is_exceptional() && state.status == "True" && !named.contains(&state.kind.as_str())
    });
    // Whether policies apply and hold, who has signed, and whether the model was reproduced.
    let guarded = [ConditionType::PolicyMet, ConditionType::SignedOff, ConditionType::Reproduced]
        .into_iter()
        .filter_map(|kind| object.condition(kind));
    for state in exceptional.chain(guarded) {
        add(&mut sentences, &format!("{}: {}", state.kind, state.message), &state.message);
    }
    if !ready {
        for sentence in &object.blocked_by {
            add(&mut sentences, sentence, sentence);
        }
        for cause in causes.iter().filter(|cause| !cause.is(ConditionType::Ready)) {
            for sentence in state(cause) {
                add(&mut sentences, &sentence, sentence.split_once(": ").map_or(sentence.as_str(), |(_, said)| said));
            }
        }
        if let Some(warning) = events.iter().rev().find(|event| event.kind == "Warning") {
            let sentence = format!("The newest warning ({}) says: {}", warning.reason, warning.message);
            add(&mut sentences, &sentence, &warning.message);
        }
        sentences.extend(advice(object));
    }
    Why { kind: object.kind, name: object.name.clone(), blocked: !ready, sentences }
}

/// Adds a sentence unless an earlier one contains what it says.
fn add(sentences: &mut Vec<String>, sentence: &str, said: &str) {
    if !sentences.iter().any(|known| known.contains(said)) {
        sentences.push(sentence.to_owned());
    }
}

/// Returns what the conditions say about the state of an object.
fn state(object: &View) -> Vec<String> {
    let what = format!("{} {}", object.kind.name(), object.name);
    if object.current.is_none() {
        return vec![format!(
            "{what} has no status: the controller has not seen it. Check that the controller runs and watches the namespace {}",
            object.namespace
        )];
    }
    let mut sentences = Vec::new();
    if object.current == Some(false) {
        sentences.push(format!(
            "The controller has not seen the latest change of {what}, and what follows describes the former spec"
        ));
    }
    let (ready, stalled) = (object.condition(ConditionType::Ready), object.condition(ConditionType::Stalled));
    sentences.push(match (ready, stalled.filter(|stalled| stalled.status == "True")) {
        (Some(ready), _) if ready.status == "True" => {
            format!("Nothing blocks {what}, which is {}: {}", object.phase, ready.message)
        }
        (_, Some(stalled)) => {
            format!("{what} is {} and cannot proceed ({}): {}", object.phase, stalled.reason, stalled.message)
        }
        (Some(ready), None) => format!("{what} is {} ({}): {}", object.phase, ready.reason, ready.message),
        (None, None) => format!("{what} is {}, and its status has no condition Ready", object.phase),
    });
    sentences
}

/// Returns the command that shows more.
fn advice(object: &View) -> Option<String> {
    let reason = object.condition(ConditionType::Ready)?.reason.as_str();
    let subject = format!("{}/{}", object.kind.name().to_lowercase(), object.name);
    let command = match reason {
        "PodFailed"
        | "RetriesExhausted"
        | "BadInput"
        | "OOMKilled"
        | "ProgressDeadlineExceeded"
        | "VerificationFailed"
        | "GoldenTokensDiffer"
        | "Running" => "logs",
        "WaitingForPod" | "Refused" | "DeadlineExceeded" => "events",
        "Blocked" | "WaitingForVerdict" | "WaitingForTraining" | "GateFailed" | "Inconclusive" | "NotFound" => "tree",
        _ => return None,
    };
    Some(format!("For more, run: kubectl codex {command} {subject}"))
}

/// Returns the paragraph.
pub(crate) fn render(why: &Why) -> String {
    let sentences = why.sentences.iter().map(|sentence| {
        let text = Printable(sentence.trim()).to_string();
        let ended = text.ends_with(['.', '!', '?']) || text.contains("run: kubectl");
        let mut letters = text.chars();
        let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
        format!("{first}{}{}", letters.as_str(), if ended { "" } else { "." })
    });
    format!("{}\n", sentences.collect::<Vec<_>>().join(" "))
}
