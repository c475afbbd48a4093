//! Spans: one trace from the TrainingRun to the servers, each span once.

use std::collections::BTreeSet;

use codex_plan::trace::{Span, SpanId};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::{convergence::finish_within, make, world::World};

/// The annotation of a run that was applied in the trace of a pipeline.
const PIPELINE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Returns a world whose chain has finished.
fn finished(traceparent: Option<&str>) -> World {
    let mut world = World::new();
    for metadata in [&mut world.run.metadata, &mut world.evaluation.metadata, &mut world.pod.metadata] {
        metadata.creation_timestamp = Some(Time(make::at(0)));
    }
    if let Some(parent) = traceparent {
        let annotation = ("codex-ml.dev/traceparent".to_owned(), parent.to_owned());
        world.run.metadata.annotations = Some([annotation].into());
    }
    finish_within(&mut world, 10);
    world
}

/// Returns one line for each span, below the span that it is part of.
fn tree(spans: &[Span], parent: Option<SpanId>, indent: usize) -> String {
    let mut of_parent: Vec<_> = spans.iter().filter(|span| span.parent == parent).collect();
    of_parent.sort_by_key(|span| (span.start, span.end));
    let line = |span: &Span| {
        let named = |name: &str| serde_json::to_value(&span.attributes.iter().find(|it| it.0 == name)?.1).ok();
        let more: String = ["codex.verdict", "codex.attempts", "codex.exit_code", "codex.ring"]
            .iter()
            .filter_map(|name| Some(format!(" {name}={}", named(name)?)))
            .collect();
        let (since, took) =
            (span.start.duration_since(make::at(0)).as_secs(), span.end.duration_since(span.start).as_secs());
        format!("{:indent$}{} at {since} for {took}{more}\n{}", "", span.name, tree(spans, Some(span.id), indent + 2))
    };
    of_parent.into_iter().map(line).collect()
}

#[test]
fn a_chain_is_one_trace() {
    let world = finished(None);
    let traces: BTreeSet<_> = world.spans.iter().map(|span| span.trace.0).collect();
    assert_eq!(traces.len(), 1);
    let ids: BTreeSet<_> = world.spans.iter().map(|span| span.id.0).collect();
    assert_eq!(ids.len(), world.spans.len(), "a span ends once");
    assert!(world.spans.iter().all(|span| span.failure.is_none() && span.end >= span.start));
    insta::assert_snapshot!(tree(&world.spans, None, 0));
}

#[test]
fn a_chain_is_part_of_the_trace_of_its_pipeline() {
    let world = finished(Some(PIPELINE));
    assert!(world.spans.iter().all(|span| serde_json::json!(span.trace) == "0af7651916cd43dd8448eb211c80319c"));
    let root = world.spans.iter().find(|span| span.name == "TrainingRun").unwrap();
    assert_eq!(serde_json::json!(root.parent), "b7ad6b7169203331");
    // A parent that cannot be read is as good as none.
    assert_eq!(finished(Some("today")).spans, finished(None).spans);
}
