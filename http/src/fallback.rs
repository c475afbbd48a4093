//! The answers to unknown paths and methods. Pure.

use axum::{
    Json, Router,
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde_json::json;

/// Answers unknown paths with 404 and unknown methods with 405, both as `{"error": …}`. Call it after all routes are added.
pub fn with_fallbacks(router: Router) -> Router {
    router.fallback(not_found).method_not_allowed_fallback(not_allowed)
}

async fn not_found(uri: Uri) -> Response {
    error(StatusCode::NOT_FOUND, &format!("the path {:?} does not exist", uri.path()))
}

async fn not_allowed(method: Method, uri: Uri) -> Response {
    error(StatusCode::METHOD_NOT_ALLOWED, &format!("the method {method} is not allowed on {}", uri.path()))
}

fn error(status: StatusCode, error: &str) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}
