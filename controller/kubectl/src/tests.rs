//! What the commands show of recorded objects, as snapshots.

#![allow(clippy::unwrap_used, reason = "an unexpected result ends the test")]

use codex_crds::{Evaluation, ReasoningPod, TrainingRun};
use jiff::Timestamp;
use k8s_openapi::api::events::v1::Event;
use kube::{Resource, ResourceExt};
use serde::{Deserialize, de::DeserializeOwned};
use serde_yaml::Value;

use crate::{
    events,
    subject::Kind,
    text::{Painter, age},
    top,
    tree::{Chain, Node, render, roots},
    view::View,
    why::{self, why},
};

mod promotion;

const OBJECTS: &str = include_str!("tests/objects.yaml");

fn now() -> Timestamp {
    "2027-01-15T09:00:00Z".parse().unwrap()
}

/// Returns the recorded objects of a kind.
fn all<K: Resource<DynamicType = ()> + DeserializeOwned>() -> Vec<K> {
    let objects = serde_yaml::Deserializer::from_str(OBJECTS).map(|object| Value::deserialize(object).unwrap());
    objects
        .filter(|object| object["kind"] == *K::kind(&()))
        .map(|object| serde_yaml::from_value(object).unwrap())
        .collect()
}

/// Returns the chain of the run `name`.
fn chain(name: &str) -> Chain {
    let mut chain = Chain { run: Some(name.to_owned()), ..Chain::default() };
    let mut next = Some(name.to_owned());
    while let Some(run) = next.and_then(|name| all::<TrainingRun>().into_iter().find(|run| run.name_any() == name)) {
        next = run.spec.base.as_ref().and_then(|base| base.training_run.as_ref()).map(|base| base.name.clone());
        chain.runs.push(run);
    }
    chain.evaluations = all();
    chain.evaluations.retain(|evaluation: &Evaluation| evaluation.spec.training_run.as_deref() == Some(name));
    chain.pods = all();
    chain.pods.retain(|pod: &ReasoningPod| pod.spec.training_run == name);
    chain.reproductions = all();
    chain.reproductions.retain(|run: &TrainingRun| run.spec.reproduces.as_ref().is_some_and(|run| run.name == name));
    chain
}

fn shown(name: &str, colour: bool) -> String {
    render(&roots(&chain(name)), Painter::new(colour))
}

fn view(kind: Kind, name: &str) -> View {
    let views: Vec<View> = match kind {
        Kind::TrainingRun => all().iter().map(View::of_run).collect(),
        Kind::Evaluation => all().iter().map(View::of_evaluation).collect(),
        Kind::ReasoningPod => all().iter().map(View::of_pod).collect(),
    };
    views.into_iter().find(|view| view.name == name).unwrap()
}

#[test]
fn a_tree_shows_the_chain() {
    insta::assert_snapshot!("tree_served", shown("tuned", false));
    insta::assert_snapshot!("tree_blocked", shown("weak", false));
    insta::assert_snapshot!("tree_without_the_run", shown("gone", false));
}

#[test]
fn a_tree_in_colour_has_the_same_text() {
    let coloured = shown("tuned", true);
    assert!(coloured.contains("\u{1b}[32mServing\u{1b}[0m"));
    let mut plain = String::new();
    let mut rest = coloured.as_str();
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain.push_str(before);
        rest = after.split_once('m').unwrap().1;
    }
    assert_eq!(plain + rest, shown("tuned", false));
}

#[test]
fn text_of_the_cluster_directs_no_terminal() {
    // The message of a condition of the run `weak` holds an escape sequence and a line feed.
    let text = shown("weak", false);
    assert!(text.contains("\\u{1b}[2J") && !text.contains('\u{1b}'), "{text}");
    let why = why(&view(Kind::TrainingRun, "weak"), &[], &[]);
    let said = why::render(&why);
    assert!(said.contains("\\u{1b}[2J") && said.matches('\n').count() == 1, "{said}");
}

#[test]
fn json_names_every_object_of_the_tree() {
    fn names(node: &Node) -> Vec<String> {
        let own = node.object.as_ref().map(|object| object.name.clone()).or(node.missing.clone());
        own.into_iter().chain(node.children.iter().flat_map(names)).collect()
    }
    let roots = roots(&chain("tuned"));
    assert_eq!(
        roots.iter().flat_map(names).collect::<Vec<_>>(),
        ["first", "tuned", "late", "lite", "rc", "Evaluation absent", "tuned-again"]
    );
    let json = serde_json::to_value(&roots).unwrap();
    assert_eq!(json[0]["children"][0]["object"]["kind"], "TrainingRun");
}

#[test]
fn why_says_what_blocks_and_what_to_do() {
    let mut all_of_it = String::new();
    let events: Vec<Event> = all();
    let run = view(Kind::TrainingRun, "weak");
    for (kind, name, causes) in [
        (Kind::TrainingRun, "tuned", vec![]),
        (Kind::TrainingRun, "tuned-again", vec![]),
        (Kind::TrainingRun, "weak", vec![]),
        (Kind::TrainingRun, "new", vec![]),
        (Kind::Evaluation, "weak-lite", vec![run.clone()]),
        (Kind::ReasoningPod, "weak-rc", vec![run, view(Kind::Evaluation, "weak-lite")]),
        (Kind::ReasoningPod, "rc", vec![]),
        (Kind::ReasoningPod, "guarded", vec![]),
    ] {
        let events = events::about(&events, kind, name, &format!("{name}-uid"));
        all_of_it += &why::render(&why(&view(kind, name), &causes, &events));
    }
    insta::assert_snapshot!("why", all_of_it);
}

#[test]
fn top_shows_running_runs_first() {
    let rows = top::rows(&all());
    insta::assert_snapshot!("top", top::render(&rows, false, now()));
    assert_eq!(rows[0].phase, "Running");
    let everywhere = top::render(&rows, true, now());
    assert!(everywhere.starts_with("NAMESPACE   NAME"), "{everywhere}");
}

#[test]
fn events_are_those_of_the_object_and_its_children() {
    let events: Vec<Event> = all();
    let about = events::about(&events, Kind::TrainingRun, "weak", "weak-uid");
    insta::assert_snapshot!("events", events::render(&about, now()));
    assert_eq!(age(now(), now()), "0s");
    let objects: Vec<_> = about.iter().map(|event| event.object.as_str()).collect();
    assert_eq!(objects, ["job/codex-t-weak", "pod/codex-t-weak-x1y2z", "trainingrun/weak"]);
}
