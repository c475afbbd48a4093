//! Errors in the shape of OpenAI's API. Pure.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::serving::{batcher::RequestError, filter::Refusal};

/// The response to a request that gets no completion.
#[derive(Debug)]
pub(in crate::serving) struct ApiError {
    pub(in crate::serving) status: StatusCode,
    pub(in crate::serving) message: String,
    /// The field at fault.
    pub(in crate::serving) param: Option<String>,
    pub(in crate::serving) code: Option<&'static str>,
    /// Seconds after which another attempt may succeed.
    pub(in crate::serving) retry_after: Option<u64>,
}

impl ApiError {
    /// Makes the error of a request that is invalid.
    pub(in crate::serving) fn invalid(param: impl Into<Option<String>>, message: impl Into<String>) -> Self {
        Self { param: param.into(), ..Self::other(StatusCode::BAD_REQUEST, message) }
    }

    /// Makes the error of an invalid field.
    pub(in crate::serving) fn field(param: &str, message: impl std::fmt::Display) -> Self {
        Self::invalid(param.to_owned(), format!("{param}: {message}"))
    }

    /// Makes the error of a model that is not served here.
    pub(in crate::serving) fn model(asked: &str, served: &str) -> Self {
        let message = format!("the model {asked:?} is not served here: use {served:?}");
        let param = Some("model".to_owned());
        Self { param, code: Some("model_not_found"), ..Self::other(StatusCode::NOT_FOUND, message) }
    }

    /// Makes an error with a status that is not the client's fault, or not in the body.
    pub(in crate::serving) fn other(status: StatusCode, message: impl Into<String>) -> Self {
        let again = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        Self { status, message: message.into(), param: None, code: None, retry_after: again.then_some(1) }
    }

    /// Returns the body.
    pub(in crate::serving) fn body(&self) -> Value {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({ "error": { "message": self.message, "type": kind, "param": self.param, "code": self.code } })
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Blocked(_) => {
                Self { code: Some("content_filter"), ..Self::invalid(None, format!("the prompt is {refusal}")) }
            }
            Refusal::Unchecked(_) => Self::other(StatusCode::SERVICE_UNAVAILABLE, refusal.to_string()),
        }
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Overloaded { .. } => Self::other(StatusCode::TOO_MANY_REQUESTS, error.to_string()),
            RequestError::Generate(error) => Self::invalid(None, error.to_string()),
            RequestError::Late { .. } => {
                Self { code: Some("request_timeout"), ..Self::other(StatusCode::GATEWAY_TIMEOUT, error.to_string()) }
            }
            RequestError::Ended | RequestError::Stalled { .. } => {
                Self::other(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
