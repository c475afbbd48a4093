//! Errors in the shape of OpenAI's API. Pure.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::serving::batcher::RequestError;

/// The response to a request that gets no completion.
#[derive(Debug)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) message: String,
    /// The field at fault.
    pub(super) param: Option<String>,
    pub(super) code: Option<&'static str>,
}

impl ApiError {
    /// Makes the error of a request that is invalid.
    pub(super) fn invalid(param: impl Into<Option<String>>, message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into(), param: param.into(), code: None }
    }

    /// Makes the error of an invalid field.
    pub(super) fn field(param: &str, message: impl std::fmt::Display) -> Self {
        Self::invalid(param.to_owned(), format!("{param}: {message}"))
    }

    /// Makes the error of a model that is not served here.
    pub(super) fn model(asked: &str, served: &str) -> Self {
        let message = format!("the model {asked:?} is not served here: use {served:?}");
        let param = Some("model".to_owned());
        Self { status: StatusCode::NOT_FOUND, message, param, code: Some("model_not_found") }
    }

    /// Makes an error with a status that is not the client's fault, or not in the body.
    pub(super) fn other(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
    }

    /// Returns the body.
    pub(super) fn body(&self) -> Value {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({ "error": { "message": self.message, "type": kind, "param": self.param, "code": self.code } })
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Overloaded { .. } => Self::other(StatusCode::TOO_MANY_REQUESTS, error.to_string()),
            RequestError::Generate(error) => Self::invalid(None, error.to_string()),
            RequestError::Ended => Self::other(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let again = matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        let mut response = (self.status, Json(self.body())).into_response();
        if again {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
