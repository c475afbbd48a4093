//! The answers to unknown paths and methods. Pure.

use axum::{
    Json, Router,
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde_json::json;

/// Answers unknown paths with 404 and unknown methods with 405, both as `{"error": …}`. Call it after all routes are added.
pub fn with_fallbacks(router: Router) -> Router {
    with_fallbacks_as(router, error)
}

/// As [`with_fallbacks`], with the response that `answer` makes of the status, the path and a sentence.
pub fn with_fallbacks_as(router: Router, answer: fn(StatusCode, &Uri, &str) -> Response) -> Router {
    let not_found = move |uri: Uri| async move {
        answer(StatusCode::NOT_FOUND, &uri, &format!("the path {:?} does not exist", uri.path()))
    };
    let not_allowed = move |method: Method, uri: Uri| async move {
        let told = format!("the method {method} is not allowed on {}", uri.path());
        answer(StatusCode::METHOD_NOT_ALLOWED, &uri, &told)
    };
    router.fallback(not_found).method_not_allowed_fallback(not_allowed)
}

fn error(status: StatusCode, _: &Uri, error: &str) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}
