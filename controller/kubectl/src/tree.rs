//! `tree`: the chain of an object, from the base of its run to what serves the model. Pure.

use codex_crds::{CyclePhase, Evaluation, ReasoningPod, TrainingRun};
use codex_verdict::Verdict;
use kube::ResourceExt;
use serde::Serialize;

use crate::{
    text::{Painter, Tone},
    view::{Gate, State, View},
};

/// The most cycles that a tree shows.
const MAX_CYCLES: usize = 5;

/// The objects of a chain: a run, the runs that it is based on, and what uses its model.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    /// The run that a name belongs to, then its base, and so on.
    pub(crate) runs: Vec<TrainingRun>,
    /// The name of the run, also if it does not exist.
    pub(crate) run: Option<String>,
    /// The Evaluations of the run.
    pub(crate) evaluations: Vec<Evaluation>,
    /// The ReasoningPods of the run.
    pub(crate) pods: Vec<ReasoningPod>,
    /// The runs that reproduce the run.
    pub(crate) reproductions: Vec<TrainingRun>,
}

/// An object with those that depend on it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Node {
    /// `None` for a run that does not exist.
    pub(crate) object: Option<View>,
    /// The name of a run that does not exist.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) missing: Option<String>,
    /// A cycle of a ReasoningPod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cycle: Option<Cycle>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) children: Vec<Self>,
}

/// A cycle of `spec.redeploy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Cycle {
    pub(crate) scheduled: String,
    pub(crate) phase: CyclePhase,
    pub(crate) training_run: String,
    pub(crate) reason: String,
}

impl Node {
    fn of(object: View) -> Self {
        Self { object: Some(object), missing: None, cycle: None, children: Vec::new() }
    }

    fn missing(what: String) -> Self {
        Self { object: None, missing: Some(what), cycle: None, children: Vec::new() }
    }

    fn cycle(cycle: Cycle) -> Self {
        Self { object: None, missing: None, cycle: Some(cycle), children: Vec::new() }
    }
}

/// Returns the cycles of a ReasoningPod, the latest first.
fn cycles(pod: &ReasoningPod) -> Vec<Cycle> {
    let Some(redeploy) = pod.status.as_ref().and_then(|status| status.redeploy.as_ref()) else { return Vec::new() };
    let active = redeploy.cycle.iter().map(|cycle| Cycle {
        scheduled: cycle.scheduled.0.to_string(),
        phase: cycle.phase,
        training_run: cycle.training_run.clone(),
        reason: cycle.reason.clone(),
    });
    let ended = redeploy.history.iter().map(|record| Cycle {
        scheduled: record.scheduled.0.to_string(),
        phase: record.result,
        training_run: record.training_run.clone(),
        reason: record.reason.clone(),
    });
    active.chain(ended).take(MAX_CYCLES).collect()
}

/// Returns the roots of the tree. A ReasoningPod hangs below the run, beside the Evaluations that it requires; those that do not
/// exist are named below it.
pub(crate) fn roots(chain: &Chain) -> Vec<Node> {
    let mut below: Vec<_> = sorted(chain.evaluations.iter().map(View::of_evaluation)).map(Node::of).collect();
    let pods = chain.pods.iter().map(|pod| {
        let known = |name: &&String| !chain.evaluations.iter().any(|evaluation| evaluation.name_any() == **name);
        let current = pod.status.as_ref().and_then(|status| status.current.as_ref());
        let required = current.map_or(&pod.spec.evaluations, |current| &current.evaluations);
        let missing = required.iter().filter(known).map(|name| Node::missing(format!("Evaluation {name}")));
        let children = cycles(pod).into_iter().map(Node::cycle).chain(missing).collect();
        Node { children, ..Node::of(View::of_pod(pod)) }
    });
    let mut pods: Vec<_> = pods.collect();
    pods.sort_by_key(|node| node.object.as_ref().map(|object| object.name.clone()));
    below.extend(pods);
    below.extend(sorted(chain.reproductions.iter().map(View::of_run)).map(Node::of));
    let Some((first, bases)) = chain.runs.split_first() else {
        let Some(name) = &chain.run else { return below };
        return vec![Node { children: below, ..Node::missing(format!("TrainingRun {name}")) }];
    };
    let node = Node { children: below, ..Node::of(View::of_run(first)) };
    // A base stands above the run that starts from it.
    let root = bases.iter().fold(node, |node, base| Node { children: vec![node], ..Node::of(View::of_run(base)) });
    vec![root]
}

fn sorted(views: impl Iterator<Item = View>) -> impl Iterator<Item = View> {
    let mut views: Vec<_> = views.collect();
    views.sort_by(|a, b| a.name.cmp(&b.name));
    views.into_iter()
}

/// Returns the tree as text.
pub(crate) fn render(roots: &[Node], painter: Painter) -> String {
    let mut text = String::new();
    for root in roots {
        node(root, "", "", painter, &mut text);
    }
    text
}

/// Writes a node. `first` begins its first line, `rest` all others.
fn node(shown: &Node, first: &str, rest: &str, painter: Painter, text: &mut String) {
    let below = if shown.children.is_empty() { "  " } else { "│ " };
    let indent = format!("{rest}{below}");
    if let Some(object) = &shown.object {
        line(text, first, &heading(object, painter));
        for detail in details(object, painter) {
            line(text, &indent, &detail);
        }
    } else if let Some(cycle) = &shown.cycle {
        line(text, first, &cycle_line(cycle, painter));
        if !cycle.reason.is_empty() {
            line(text, &indent, &painter.paint(Tone::Plain, &cycle.reason));
        }
    } else {
        let what = painter.paint(Tone::Strong, shown.missing.as_deref().unwrap_or_default());
        line(text, first, &format!("{what} {}", painter.paint(Tone::Bad, "does not exist")));
    }
    let last = shown.children.len().saturating_sub(1);
    for (index, child) in shown.children.iter().enumerate() {
        let (branch, trunk) = if index == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        node(child, &format!("{rest}{branch}"), &format!("{rest}{trunk}"), painter, text);
    }
}

fn cycle_line(cycle: &Cycle, painter: Painter) -> String {
    let tone = match cycle.phase {
        CyclePhase::Serving => Tone::Good,
        CyclePhase::Failed | CyclePhase::RolledBack | CyclePhase::Blocked => Tone::Bad,
        CyclePhase::Training | CyclePhase::Evaluating | CyclePhase::Shadowing | CyclePhase::RollingOut => Tone::Waiting,
    };
    format!(
        "{} {}  {}  {}",
        painter.paint(Tone::Plain, "cycle"),
        painter.paint(Tone::Strong, &cycle.scheduled),
        painter.paint(tone, &format!("{:?}", cycle.phase)),
        painter.paint(Tone::Faint, &cycle.training_run),
    )
}

fn line(text: &mut String, indent: &str, content: &str) {
    text.push_str(indent);
    text.push_str(content);
    text.push('\n');
}

fn heading(object: &View, painter: Painter) -> String {
    let ring = object.ring.as_deref().map(|ring| format!("  {}", painter.paint(Tone::Plain, ring))).unwrap_or_default();
    format!(
        "{} {}{ring}  {}",
        painter.paint(Tone::Plain, object.kind.name()),
        painter.paint(Tone::Strong, &object.name),
        painter.paint(object.tone(), &object.phase),
    )
}

fn details(object: &View, painter: Painter) -> Vec<String> {
    let mut lines = Vec::new();
    if !object.facts.is_empty() {
        let facts = object.facts.iter().map(|fact| {
            format!("{} {}", painter.paint(Tone::Faint, fact.name), painter.paint(Tone::Plain, &fact.value))
        });
        lines.push(facts.collect::<Vec<_>>().join("  "));
    }
    lines.extend(object.gates.iter().map(|gate| gate_line(gate, painter)));
    if !object.conditions.is_empty() {
        let states = object.conditions.iter().map(|state| mark(state, painter));
        lines.push(states.collect::<Vec<_>>().join("  "));
    }
    // Sentences once: conditions repeat each other, and those of blockedBy.
    let mut said: Vec<&str> = Vec::new();
    let sentences = object.blocked_by.iter().map(|sentence| ("blocked by", sentence.as_str()));
    let troubles = object.conditions.iter().filter(|state| state.tone() != Tone::Good);
    let troubles = troubles.map(|state| (state.kind.as_str(), state.message.as_str()));
    for (what, sentence) in sentences.chain(troubles) {
        let covered =
            !object.blocked_by.is_empty() && object.blocked_by.iter().all(|known| sentence.contains(known.as_str()));
        if said.contains(&sentence) || (what != "blocked by" && covered) {
            continue;
        }
        said.push(sentence);
        lines.push(format!("{}: {}", painter.paint(Tone::Faint, what), painter.paint(Tone::Plain, sentence)));
    }
    match object.current {
        None => lines.push(painter.paint(Tone::Waiting, "the controller has not written a status")),
        Some(false) => {
            lines.push(painter.paint(Tone::Waiting, "the controller has not seen the latest change of the spec"));
        }
        Some(true) => {}
    }
    lines
}

fn gate_line(gate: &Gate, painter: Painter) -> String {
    let (tone, verdict) = match gate.verdict {
        Some(Verdict::Passed) => (Tone::Good, "Passed"),
        Some(Verdict::Failed) => (Tone::Bad, "Failed"),
        Some(Verdict::Inconclusive) => (Tone::Bad, "Inconclusive"),
        None => (Tone::Waiting, "not judged"),
    };
    format!("gate {}: {}", painter.paint(tone, verdict), painter.paint(Tone::Plain, &gate.text))
}

fn mark(state: &State, painter: Painter) -> String {
    let tone = state.tone();
    let sign = match tone {
        Tone::Good => "✓",
        Tone::Bad => "✗",
        _ => "…",
    };
    let reason = if tone == Tone::Good { String::new() } else { format!(" ({})", state.reason) };
    painter.paint(tone, &format!("{sign} {}{reason}", state.kind))
}
