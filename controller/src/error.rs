//! How errors are shown. Pure.

use std::error::Error;

/// An error and everything that caused it, outermost first. A cause whose text its effect already carries is left out.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let answer = answer(cause);
        let said = answer.map_or_else(|| cause.to_string(), str::to_owned);
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        // Behind what the API server said there is only the same once more, with its fields.
        source = if answer.is_some() { None } else { cause.source() };
    }
    text
}

/// The API server's own sentence, where an error is one.
fn answer<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a str> {
    // `#[source] Box<kube::Error>` is a source of its own type.
    let error = error.downcast_ref().or_else(|| error.downcast_ref::<Box<kube::Error>>().map(|error| &**error));
    match error {
        Some(kube::Error::Api(status)) if !status.message.is_empty() => Some(&status.message),
        _ => None,
    }
}

/// What a client's error says: the API server's own sentence, where it is one.
pub fn said(error: &kube::Error) -> String {
    answer(error).map_or_else(|| error.to_string(), str::to_owned)
}

/// A word for what kind of failure a client's error is, for metric labels.
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

/// Whether the API server refuses what was asked of it, and will until somebody changes something. The end of a namespace
/// refuses, too, and passes by itself.
pub fn refused(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let ends = status.details.iter().flat_map(|details| &details.causes).any(|it| it.reason == "NamespaceTerminating");
    matches!(status.code, 400 | 403 | 422) && !ends
}

/// Whether the API server answered with this HTTP status.
pub fn answered(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{chain, refused};
    use crate::apply::ApplyError;

    fn answered(code: u16, causes: &Value) -> kube::Error {
        let status = json!({
            "kind": "Status", "status": "Failure", "message": "jobs \"a\" is forbidden: no", "reason": "Forbidden",
            "code": code, "details": {"causes": causes},
        });
        kube::Error::Api(Box::new(serde_json::from_value(status).unwrap()))
    }

    #[test]
    fn what_passes_by_itself_is_no_refusal() {
        for code in [400, 403, 422] {
            assert!(refused(&answered(code, &json!([]))), "{code}");
        }
        for code in [401, 404, 409, 429, 500, 503] {
            assert!(!refused(&answered(code, &json!([]))), "{code}");
        }
        assert!(!refused(&answered(403, &json!([{"reason": "NamespaceTerminating"}]))));
    }

    #[test]
    fn the_api_server_is_quoted_once_and_without_its_fields() {
        let source = Box::new(answered(403, &json!([])));
        let failed = ApplyError::Client { kind: "Job".into(), name: "a".into(), verb: "applied", source };
        assert_eq!(chain(&failed), "the Job a cannot be applied: jobs \"a\" is forbidden: no");
    }
}
