//! Why a report is rejected.

use axum::http::StatusCode;
use codex_reports::{CHALLENGE_HEADER, MAX_BYTES};

/// Why a report is rejected.
#[derive(Debug, thiserror::Error)]
pub(super) enum Rejection {
    /// The sender may not send this report.
    #[error("{0}")]
    Forbidden(String),
    /// The pod belongs to the object, but it or its configuration was changed.
    #[error("{0}")]
    Changed(String),
    /// The report has to be signed over the challenge in the header of the response.
    #[error("sign the report over the challenge in the header {CHALLENGE_HEADER}, and send it again")]
    Challenge,
    /// The token is missing or not valid for this endpoint.
    #[error("{0}")]
    Unauthenticated(String),
    /// The body is not a valid report.
    #[error("{0}")]
    Invalid(String),
    /// The body is too large.
    #[error("a report must not exceed {MAX_BYTES} bytes")]
    TooLarge,
    /// The controller cannot accept the report now.
    #[error("{0}; retry later")]
    Unavailable(String),
    /// A request to the API server failed.
    #[error("{what}; retry later")]
    Client {
        /// What failed.
        what: String,
        /// The client's error.
        #[source]
        source: Box<kube::Error>,
    },
}

impl Rejection {
    /// Returns the status code of the response.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Forbidden(_) | Self::Changed(_) => StatusCode::FORBIDDEN,
            Self::Challenge => StatusCode::PRECONDITION_REQUIRED,
            Self::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unavailable(_) | Self::Client { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Returns the value of the metric label `result`.
    pub(super) fn result(&self) -> &'static str {
        match self {
            Self::Forbidden(_) | Self::Changed(_) => "refused",
            Self::Challenge | Self::Unauthenticated(_) => "unauthenticated",
            Self::Invalid(_) | Self::TooLarge => "invalid",
            Self::Unavailable(_) | Self::Client { .. } => "unavailable",
        }
    }
}
