//! The services over HTTP, with the client that the Kubernetes client brings.

use std::time::Duration;

use bytes::Bytes;
use codex_signing::services::{Endpoints, Service};
use futures::{FutureExt, future::BoxFuture};
use http_body_util::Full;
use hyper::{Request, header};

use super::{Away, Services, Settings};
use crate::https::Https;

/// How long an answer may take. A log answers once the entry is part of a signed tree.
const PATIENCE: Duration = Duration::from_secs(30);
/// Maximum size of an answer in bytes. A log of the first version repeats no statement.
const MAX_ANSWER: usize = 4 << 20;
/// Number of characters of a refusal that are told.
const TOLD: usize = 300;

/// Sends requests over HTTP.
pub struct Http {
    client: Https,
    endpoints: Endpoints,
}

impl Http {
    /// Returns a client that trusts Mozilla's certificate authorities and those of the settings.
    ///
    /// # Errors
    /// A sentence that says which certificate is invalid.
    pub fn new(settings: &Settings) -> Result<Self, String> {
        let named = format!("\"ca.pem\" of the ConfigMap {}", super::NAME);
        Ok(Self { client: Https::new(settings.authorities.as_deref(), &named)?, endpoints: settings.endpoints.clone() })
    }
}

impl Services for Http {
    fn ask(&self, service: Service, body: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, Away>> {
        async move {
            let url = self.endpoints.url(service).unwrap_or_default();
            let silent = |why: String| Away::Silent { service, url: url.to_owned(), why };
            let (sent, wanted) = match service {
                Service::Timestamp => ("application/timestamp-query", "application/timestamp-reply"),
                Service::Fulcio | Service::Rekor => ("application/json", "application/json"),
            };
            let request = Request::post(url)
                .header(header::CONTENT_TYPE, sent)
                .header(header::ACCEPT, wanted)
                .header(header::USER_AGENT, concat!("codex-controller/", env!("CARGO_PKG_VERSION")))
                .body(Full::<Bytes>::from(body))
                .map_err(|why| silent(why.to_string()))?;
            let answer = self.client.send(request, MAX_ANSWER, PATIENCE).await.map_err(silent)?;
            if answer.status.is_success() {
                return Ok(answer.body.into());
            }
            let told = String::from_utf8_lossy(&answer.body).chars().take(TOLD).collect();
            Err(Away::Refused { service, url: url.to_owned(), status: answer.status.as_u16(), told })
        }
        .boxed()
    }
}
