//! Spans of the chain for distributed tracing: what a run, its evaluations and its servers took, from the times that statuses and
//! pods record. Pure.
//!
//! One trace holds a TrainingRun, the Evaluations that score it and the ReasoningPods that serve it. Its identifiers follow from the
//! uids of these objects, so every process that exports a span gives it the same ones. A span exists once it has ended, and a plan
//! gives it with the status that ends it, so it is exported once: not at all if the process dies in between.
//!
//! Identifiers are those of W3C Trace Context, <https://www.w3.org/TR/trace-context/>; names of attributes are those of OpenTelemetry's
//! semantic conventions for Kubernetes where there are any.

mod chain;
mod pods;

pub use chain::{evaluation, reasoning_pod, training_run};

use std::fmt::Write as _;

use codex_crds::{TrainingRun, annotation};
use codex_provenance::Sha256;
use jiff::Timestamp;
use kube::{Resource, ResourceExt};
use serde::Serialize;

/// The identifier of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct TraceId(#[serde(serialize_with = "hexadecimal")] pub [u8; 16]);

/// The identifier of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct SpanId(#[serde(serialize_with = "hexadecimal")] pub [u8; 8]);

fn hexadecimal<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

/// A span that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Span {
    /// The trace that it is part of.
    pub trace: TraceId,
    /// Its own identifier.
    pub id: SpanId,
    /// The span that it is part of; `None` for the first one of a trace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<SpanId>,
    /// Its name, one of few: objects are named by attributes.
    pub name: &'static str,
    /// When it began.
    pub start: Timestamp,
    /// When it ended, not before it began.
    pub end: Timestamp,
    /// What else is known about it.
    pub attributes: Vec<(&'static str, Attribute)>,
    /// A span of another trace that it builds on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<(TraceId, SpanId)>,
    /// Why it failed, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Attribute {
    /// A text.
    Text(String),
    /// A whole number.
    Number(i64),
}

/// The spans of one object: where they belong, and those that were found.
struct Trace {
    id: TraceId,
    root: SpanId,
    /// The span above the root.
    parent: Option<SpanId>,
    spans: Vec<Span>,
}

impl Trace {
    /// Returns the trace of a run and of all that follows from it. The annotation `codex-ml.dev/traceparent` makes it part of the
    /// trace of whoever applied the run.
    fn of_run(run: &TrainingRun) -> Self {
        let uid = run.uid().unwrap_or_default();
        let given = run.annotations().get(annotation::TRACE_PARENT).and_then(|text| trace_parent(text));
        let (id, parent) = given.map_or_else(|| (trace_id(&uid), None), |(trace, span)| (trace, Some(span)));
        Self { id, root: span_id(&uid, ""), parent, spans: Vec::new() }
    }

    /// Returns the trace of an object that follows from `run`, or one of its own without a run.
    fn of(object: &impl Resource, run: Option<&TrainingRun>) -> Self {
        let uid = object.meta().uid.clone().unwrap_or_default();
        match run.map(Self::of_run) {
            Some(above) => Self { parent: Some(above.root), root: span_id(&uid, ""), ..above },
            None => Self { id: trace_id(&uid), root: span_id(&uid, ""), parent: None, spans: Vec::new() },
        }
    }

    /// Adds a span that ended, below `parent`. Clocks of nodes differ, so it ends when it began if it would end before.
    fn add(
        &mut self,
        id: SpanId,
        parent: Option<SpanId>,
        name: &'static str,
        start: Timestamp,
        end: Timestamp,
    ) -> &mut Span {
        let (trace, end) = (self.id, end.max(start));
        self.spans.push(Span {
            trace,
            id,
            parent,
            name,
            start,
            end,
            attributes: Vec::new(),
            link: None,
            failure: None,
        });
        let last = self.spans.len() - 1;
        &mut self.spans[last]
    }
}

impl Span {
    fn text(&mut self, name: &'static str, value: impl Into<String>) -> &mut Self {
        let value = value.into();
        if !value.is_empty() {
            self.attributes.push((name, Attribute::Text(value)));
        }
        self
    }

    fn number(&mut self, name: &'static str, value: Option<i64>) -> &mut Self {
        self.attributes.extend(value.map(|value| (name, Attribute::Number(value))));
        self
    }
}

fn trace_id(uid: &str) -> TraceId {
    let mut id = [0; 16];
    id.copy_from_slice(&Sha256::of(format!("codex trace {uid}")).bytes()[..16]);
    TraceId(id)
}

fn span_id(uid: &str, what: &str) -> SpanId {
    let mut id = [0; 8];
    id.copy_from_slice(&Sha256::of(format!("codex span {uid} {what}")).bytes()[..8]);
    SpanId(id)
}

/// Reads a header `traceparent` of version 00: version, trace, parent and flags, in hexadecimal. `None` if it is anything else.
fn trace_parent(text: &str) -> Option<(TraceId, SpanId)> {
    let mut parts = text.trim().split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if version != "00" || flags.len() != 2 || parts.next().is_some() {
        return None;
    }
    let (trace, span) = (bytes::<16>(trace)?, bytes::<8>(span)?);
    (trace != [0; 16] && span != [0; 8]).then_some((TraceId(trace), SpanId(span)))
}

fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != 2 * N || !text.bytes().all(lower) {
        return None;
    }
    let mut bytes = [0; N];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::{SpanId, TraceId, trace_parent};

    #[test]
    fn a_trace_parent_is_read_or_ignored() {
        let given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let (trace, span) = trace_parent(given).unwrap();
        assert_eq!(serde_json::to_value(trace).unwrap(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(serde_json::to_value(span).unwrap(), "b7ad6b7169203331");
        assert_eq!((trace.0[0], span.0[7]), (0x0a, 0x31));
        assert_eq!(trace_parent(&format!(" {given}\n")), Some((TraceId(trace.0), SpanId(span.0))));
        for wrong in [
            "",
            "00",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-0af7651916cd43dd8448eb211c8031é-b7ad6b7169203331-01",
        ] {
            assert_eq!(trace_parent(wrong), None, "{wrong}");
        }
    }
}
