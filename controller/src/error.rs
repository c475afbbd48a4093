//! Formatting and classification of errors.

use std::error::Error;

/// Returns an error and its causes as one line, outermost first. What follows the API server's message only repeats it.
pub fn chain(error: &dyn Error) -> String {
    codex_reports::chain_until(error, |cause| answer(cause).map(str::to_owned))
}

/// Returns the message of the API server if the error is a response from it.
fn answer<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a str> {
    // The source of a boxed error is the box, not its content.
    let error = error.downcast_ref().or_else(|| error.downcast_ref::<Box<kube::Error>>().map(|error| &**error));
    match error {
        Some(kube::Error::Api(status)) if !status.message.is_empty() => Some(&status.message),
        _ => None,
    }
}

/// Returns the message of a client error: that of the API server if the error is a response from it.
pub fn said(error: &kube::Error) -> String {
    answer(error).map_or_else(|| error.to_string(), str::to_owned)
}

/// Returns what to do about a missing right, to be added to a message; nothing for other errors.
pub fn remedy(error: &kube::Error) -> &'static str {
    if answered(error, 403) {
        "; apply manifests/controller/rbac.yaml, or the chart, of this release: the ClusterRole and the Role codex-controller \
         grant the controller its rights"
    } else {
        ""
    }
}

/// Returns the category of a client error for metrics and logs.
pub fn client_category(error: &kube::Error) -> &'static str {
    match error {
        kube::Error::Api(status) => match status.code {
            403 => "forbidden",
            404 => "not_found",
            409 => "conflict",
            422 => "invalid",
            429 => "throttled",
            500..=599 => "server",
            _ => "api",
        },
        kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => "decoding",
        kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_) => "connection",
        _ => "client",
    }
}

/// Parts of answers with status 500 to a value that the API server cannot convert.
const UNCONVERTIBLE: [&str; 3] =
    ["quantities must match", "unable to parse quantity", "failed to create typed patch object"];

/// Returns whether the API server rejects the request until an object or a permission changes. The rejection of writes in
/// a terminating namespace does not count, because it resolves by itself.
pub fn refused(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let ends = status.details.iter().flat_map(|details| &details.causes).any(|it| it.reason == "NamespaceTerminating");
    // Server-side apply answers 500 to a value that it cannot convert, such as a malformed quantity.
    let unconvertible = status.code == 500 && UNCONVERTIBLE.iter().any(|text| status.message.contains(text));
    (matches!(status.code, 400 | 403 | 422) || unconvertible) && !ends
}

/// Returns whether the API server answered with this HTTP status.
pub fn answered(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{chain, refused, remedy, said};

    fn answered(code: u16, causes: &Value) -> kube::Error {
        let status = json!({
            "kind": "Status", "status": "Failure", "message": "jobs \"a\" is forbidden: no", "reason": "Forbidden",
            "code": code, "details": {"causes": causes},
        });
        kube::Error::Api(Box::new(serde_json::from_value(status).unwrap()))
    }

    #[test]
    fn failures_that_resolve_by_themselves_are_not_refusals() {
        for code in [400, 403, 422] {
            assert!(refused(&answered(code, &json!([]))), "{code}");
        }
        for code in [401, 404, 409, 429, 500, 503] {
            assert!(!refused(&answered(code, &json!([]))), "{code}");
        }
        assert!(!refused(&answered(403, &json!([{"reason": "NamespaceTerminating"}]))));
    }

    #[test]
    fn a_value_that_cannot_be_converted_is_a_refusal() {
        let mut error = answered(500, &json!([]));
        assert!(!refused(&error));
        if let kube::Error::Api(status) = &mut error {
            status.message = "quantities must match the regular expression '^([+-]?[0-9.]+)$'".to_owned();
        }
        assert!(refused(&error));
    }

    #[test]
    fn a_missing_right_has_a_remedy() {
        assert!(remedy(&answered(403, &json!([]))).contains("apply manifests/controller/rbac.yaml"));
        assert_eq!(remedy(&answered(409, &json!([]))), "");
    }

    #[test]
    fn the_message_of_the_api_server_is_included_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("the Job a cannot be applied: {}", said(.0))]
        struct Failed(#[source] Box<kube::Error>);
        let failed = Failed(Box::new(answered(403, &json!([]))));
        assert_eq!(chain(&failed), "the Job a cannot be applied: jobs \"a\" is forbidden: no");
    }
}
