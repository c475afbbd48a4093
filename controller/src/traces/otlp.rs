//! The JSON of OTLP, <https://github.com/open-telemetry/opentelemetry-proto/blob/main/opentelemetry/proto/trace/v1/trace.proto>. Pure.
//!
//! Identifiers are hexadecimal and 64-bit numbers are strings, as OTLP's JSON has them.

use codex_plan::trace::{Attribute, Span};
use jiff::Timestamp;
use serde_json::{Value, json};

/// `SPAN_KIND_INTERNAL`.
const INTERNAL: u8 = 1;
/// `STATUS_CODE_ERROR`.
const ERROR: u8 = 2;

/// Returns an `ExportTraceServiceRequest`.
pub(super) fn request(resource: &[(String, String)], spans: &[Span]) -> Value {
    let resource: Vec<_> =
        resource.iter().map(|(name, value)| attribute(name, &json!({ "stringValue": value }))).collect();
    let spans: Vec<_> = spans.iter().map(span).collect();
    json!({ "resourceSpans": [{
        "resource": { "attributes": resource },
        "scopeSpans": [{ "scope": { "name": "codex-controller", "version": crate::BUILD }, "spans": spans }],
    }] })
}

fn span(span: &Span) -> Value {
    let attributes: Vec<_> = span.attributes.iter().map(|(name, value)| attribute(name, &of(value))).collect();
    let mut json = json!({
        "traceId": span.trace,
        "spanId": span.id,
        "name": span.name,
        "kind": INTERNAL,
        "startTimeUnixNano": nanos(span.start),
        "endTimeUnixNano": nanos(span.end),
        "attributes": attributes,
    });
    if let Some(parent) = span.parent {
        json["parentSpanId"] = json!(parent);
    }
    if let Some((trace, id)) = span.link {
        json["links"] = json!([{ "traceId": trace, "spanId": id }]);
    }
    if let Some(failure) = &span.failure {
        json["status"] = json!({ "code": ERROR, "message": failure });
    }
    json
}

fn attribute(name: &str, value: &Value) -> Value {
    json!({ "key": name, "value": value })
}

fn of(value: &Attribute) -> Value {
    match value {
        Attribute::Text(text) => json!({ "stringValue": text }),
        Attribute::Number(number) => json!({ "intValue": number.to_string() }),
    }
}

fn nanos(at: Timestamp) -> String {
    at.as_nanosecond().max(0).to_string()
}

/// Returns how many spans the collector rejected, and what it says, from the body of an answer.
pub(super) fn partial_success(body: &[u8]) -> (usize, Option<String>) {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let partial = &answer["partialSuccess"];
    // A 64-bit number, so a string; some collectors write a number.
    let rejected = &partial["rejectedSpans"];
    let rejected = rejected.as_str().and_then(|text| text.parse().ok()).or(rejected.as_u64()).unwrap_or(0);
    let told = partial["errorMessage"].as_str().filter(|told| !told.is_empty());
    (usize::try_from(rejected).unwrap_or(usize::MAX), told.map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use codex_plan::trace::{Attribute, Span, SpanId, TraceId};
    use jiff::Timestamp;
    use serde_json::json;

    use super::{partial_success, request};

    #[test]
    fn a_span_has_the_fields_of_the_protocol() {
        let span = Span {
            trace: TraceId([0xab; 16]),
            id: SpanId([1; 8]),
            parent: Some(SpanId([2; 8])),
            name: "Evaluation",
            start: Timestamp::from_second(1).unwrap(),
            end: "1970-01-01T00:00:02.5Z".parse().unwrap(),
            attributes: vec![
                ("codex.verdict", Attribute::Text("Passed".to_owned())),
                ("codex.attempts", Attribute::Number(2)),
            ],
            link: Some((TraceId([3; 16]), SpanId([4; 8]))),
            failure: Some("no space".to_owned()),
        };
        let sent = request(&[("service.name".to_owned(), "codex".to_owned())], &[span]);
        let resource = &sent["resourceSpans"][0];
        assert_eq!(
            resource["resource"],
            json!({ "attributes": [{ "key": "service.name", "value": { "stringValue": "codex" } }] })
        );
        assert_eq!(
            resource["scopeSpans"][0]["spans"][0],
            json!({
                "traceId": "abababababababababababababababab",
                "spanId": "0101010101010101",
                "parentSpanId": "0202020202020202",
                "name": "Evaluation",
                "kind": 1,
                "startTimeUnixNano": "1000000000",
                "endTimeUnixNano": "2500000000",
                "attributes": [
                    { "key": "codex.verdict", "value": { "stringValue": "Passed" } },
                    { "key": "codex.attempts", "value": { "intValue": "2" } },
                ],
                "links": [{ "traceId": "03030303030303030303030303030303", "spanId": "0404040404040404" }],
                "status": { "code": 2, "message": "no space" },
            })
        );
    }

    #[test]
    fn an_answer_says_what_was_rejected() {
        assert_eq!(partial_success(b""), (0, None));
        assert_eq!(partial_success(b"{}"), (0, None));
        let told = br#"{"partialSuccess":{"rejectedSpans":3,"errorMessage":"too old"}}"#;
        assert_eq!(partial_success(told), (3, Some("too old".to_owned())));
    }
}
