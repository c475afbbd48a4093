//! The services over HTTP, with the client that the Kubernetes client brings.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use codex_signing::services::{Endpoints, Service};
use futures::{FutureExt, future::BoxFuture};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::time::timeout;

use super::{Away, Services, Settings};
use crate::error::chain;

/// How long an answer may take. A log answers once the entry is part of a signed tree.
const PATIENCE: Duration = Duration::from_secs(30);
/// Maximum size of an answer in bytes. A log of the first version repeats no statement.
const MAX_ANSWER: usize = 4 << 20;
/// Number of characters of a refusal that are told.
const TOLD: usize = 300;

/// Sends requests over HTTP.
pub struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    endpoints: Endpoints,
}

impl Http {
    /// Returns a client that trusts Mozilla's certificate authorities and those of the settings.
    ///
    /// # Errors
    /// A sentence that says which certificate is invalid.
    pub fn new(settings: &Settings) -> Result<Self, String> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let mut added = 0;
        for certificate in
            CertificateDer::pem_slice_iter(settings.authorities.as_deref().unwrap_or_default().as_bytes())
        {
            let certificate =
                certificate.map_err(|why| format!("\"ca.pem\" of the ConfigMap {} is damaged: {why}", super::NAME))?;
            roots.add(certificate).map_err(|why| {
                format!("\"ca.pem\" of the ConfigMap {} has an invalid certificate: {why}", super::NAME)
            })?;
            added += 1;
        }
        if settings.authorities.is_some() && added == 0 {
            return Err(format!("\"ca.pem\" of the ConfigMap {} has no certificate in PEM", super::NAME));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|why| why.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        // The endpoints say whether a URL may be unencrypted.
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            endpoints: settings.endpoints.clone(),
        })
    }

    async fn send(&self, service: Service, url: &str, body: Vec<u8>) -> Result<Vec<u8>, Away> {
        let silent = |why: String| Away::Silent { service, url: url.to_owned(), why };
        let (sent, wanted) = match service {
            Service::Timestamp => ("application/timestamp-query", "application/timestamp-reply"),
            Service::Fulcio | Service::Rekor => ("application/json", "application/json"),
        };
        let request = Request::post(url)
            .header(header::CONTENT_TYPE, sent)
            .header(header::ACCEPT, wanted)
            .header(header::USER_AGENT, concat!("codex-controller/", env!("CARGO_PKG_VERSION")))
            .body(Full::from(body))
            .map_err(|why| silent(why.to_string()))?;
        let answer = self.client.request(request).await.map_err(|why| silent(chain(&why)))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|why| silent(format!("its answer cannot be read: {why}")))?.to_bytes();
        if status.is_success() {
            return Ok(body.into());
        }
        let told = String::from_utf8_lossy(&body).chars().take(TOLD).collect();
        Err(Away::Refused { service, url: url.to_owned(), status: status.as_u16(), told })
    }
}

impl Services for Http {
    fn ask(&self, service: Service, body: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, Away>> {
        async move {
            let url = self.endpoints.url(service).unwrap_or_default();
            let late = |_| {
                let why = format!("no answer within {} seconds", PATIENCE.as_secs());
                Err(Away::Silent { service, url: url.to_owned(), why })
            };
            timeout(PATIENCE, self.send(service, url, body)).await.unwrap_or_else(late)
        }
        .boxed()
    }
}
