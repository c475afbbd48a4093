//! The client for services outside the cluster, over HTTP or HTTPS. I/O.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::time::timeout;

use crate::error::chain;

/// Sends requests over HTTP/1.1, and over TLS where the URL says https.
#[derive(Clone)]
pub(crate) struct Https(legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Https {
    /// Returns a client that trusts Mozilla's certificate authorities and those in `authorities`, which has certificates in PEM.
    /// `named` says where these come from.
    ///
    /// # Errors
    /// A sentence that says which certificate is invalid.
    pub(crate) fn new(authorities: Option<&str>, named: &str) -> Result<Self, String> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let mut added = 0;
        for certificate in CertificateDer::pem_slice_iter(authorities.unwrap_or_default().as_bytes()) {
            let certificate = certificate.map_err(|why| format!("{named} is damaged: {why}"))?;
            roots.add(certificate).map_err(|why| format!("{named} has an invalid certificate: {why}"))?;
            added += 1;
        }
        if authorities.is_some() && added == 0 {
            return Err(format!("{named} has no certificate in PEM"));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|why| why.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        // Whoever configures a URL decides whether it may be unencrypted.
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        Ok(Self(legacy::Client::builder(TokioExecutor::new()).build(connector)))
    }

    /// Sends a request and returns the answer, of whatever status.
    ///
    /// # Errors
    /// A sentence, if there is no answer of at most `limit` bytes within `patience`.
    pub(crate) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        limit: usize,
        patience: Duration,
    ) -> Result<Answer, String> {
        let answered = async {
            let answer = self.0.request(request).await.map_err(|why| chain(&why))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, limit).collect().await;
            let body = body.map_err(|why| format!("its answer cannot be read: {why}"))?.to_bytes();
            Ok(Answer { status: head.status, headers: head.headers, body })
        };
        let late = |_| Err(format!("no answer within {} seconds", patience.as_secs_f64()));
        timeout(patience, answered).await.unwrap_or_else(late)
    }
}
