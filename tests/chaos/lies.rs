//! A pod that lies: false reports to the endpoint, with the tokens of pods that a compromised node would know.

use std::time::Duration;

use codex_reports::{KEY_HEADER, MAX_BYTES, PATH};
use codex_tests::{Error, Result};
use http::{Request, header::AUTHORIZATION};
use kube::{Client, Config, client::Body};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use tokio::time::timeout;

/// The time limit of one report.
const PATIENCE: Duration = Duration::from_secs(40);
/// The size of the largest report.
const HUGE: usize = 100_000_000;

/// A false report.
pub(crate) struct Lie {
    /// What is false.
    pub(crate) what: &'static str,
    token: Option<String>,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

/// Returns the lies about the object of a genuine report, which `own` may send. `foreign` is the token of another pod, whose uid is
/// `stranger`, and `other` the uid of another object, whose name is `beside`.
pub(crate) fn lies(truth: &Value, own: &str, (foreign, stranger): (&str, &str), beside: &str) -> Vec<Lie> {
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut report = truth.clone();
        change(&mut report);
        report.to_string().into_bytes()
    };
    let lie = |what, token: Option<&str>, body| Lie { what, token: token.map(str::to_owned), headers: vec![], body };
    let progress = |field: &'static str, wrong: Value| {
        changed(&|report| report["state"]["training"]["progress"][field] = wrong.clone())
    };
    let loss = truth["state"]["training"]["progress"]["loss"].to_string();
    let mut all = vec![
        lie("a report without a token", None, changed(&|_| ())),
        lie("a report with a made-up token", Some("a.b.c"), changed(&|_| ())),
        lie("a report with the token of another pod", Some(foreign), changed(&|_| ())),
        lie(
            "a report of a pod that does not work for the run",
            Some(foreign),
            changed(&|report| report["podUid"] = json!(stranger)),
        ),
        lie(
            "a report with another configuration digest",
            Some(own),
            changed(&|report| report["configDigest"] = json!("0".repeat(64))),
        ),
        lie("a report about another run", Some(own), changed(&|report| report["name"] = json!(beside))),
        lie("a report about another object", Some(own), changed(&|report| report["objectUid"] = json!(stranger))),
        lie("a report about another namespace", Some(own), changed(&|report| report["namespace"] = json!("default"))),
        lie("a report of negative steps", Some(own), progress("step", json!(-5))),
        lie("a report with an unknown field", Some(own), progress("surprise", json!(1))),
        lie(
            "a report with a loss of NaN",
            Some(own),
            truth.to_string().replace(&format!("\"loss\":{loss}"), "\"loss\":NaN").into_bytes(),
        ),
        lie("a report of another version", Some(own), changed(&|report| report["schemaVersion"] = json!(2))),
        lie("a report that is a byte too long", Some(own), vec![b' '; MAX_BYTES + 1]),
        lie("a report of 100 MB", Some(own), vec![b' '; HUGE]),
    ];
    // A replay: its challenge is old, and its signature is of another report.
    let replayed = [
        (KEY_HEADER, "ab".repeat(32)),
        (codex_reports::CHALLENGE_HEADER, format!("1.{}", "0".repeat(64))),
        (codex_reports::SIGNATURE_HEADER, "cd".repeat(64)),
    ];
    all.push(Lie { headers: replayed.to_vec(), ..lie("a replayed report", Some(own), changed(&|_| ())) });
    all
}

/// Sends reports to the endpoint.
#[derive(Clone)]
pub(crate) struct Sender(Client);

impl Sender {
    /// Prepares to send reports to an address. `authority` is the certificate in PEM of the endpoint's authority.
    ///
    /// # Errors
    /// If the certificate is invalid.
    pub(crate) fn new(endpoint: &str, authority: &str) -> Result<Self> {
        let invalid = |why: String| Error::Impossible {
            what: "reports are sent".to_owned(),
            why,
            state: "the Secret codex-reports-tls has the certificate of the endpoint's authority".to_owned(),
        };
        let authority = CertificateDer::from_pem_slice(authority.as_bytes()).map_err(|it| invalid(it.to_string()))?;
        let uri = endpoint.parse().map_err(|error: http::uri::InvalidUri| invalid(error.to_string()))?;
        let mut config = Config::new(uri);
        config.root_cert = Some(vec![authority.to_vec()]);
        config.default_retry = false;
        Ok(Self(Client::try_from(config)?))
    }

    /// Sends a lie and returns the status of the answer; `None` if the connection was closed instead.
    pub(crate) async fn tell(&self, lie: Lie) -> Option<u16> {
        self.post(lie.token.as_deref(), &lie.headers, lie.body).await
    }

    /// Posts a body and returns the status of the answer; `None` if the connection was closed instead.
    pub(crate) async fn post(
        &self,
        token: Option<&str>,
        headers: &[(&'static str, String)],
        body: Vec<u8>,
    ) -> Option<u16> {
        let mut request = Request::post(PATH);
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request.body(Body::from(body)).ok()?;
        let answer = timeout(PATIENCE, self.0.send(request)).await.ok()?.ok()?;
        Some(answer.status().as_u16())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_lie_differs_from_the_truth_or_has_another_sender() {
        let truth = json!({
            "schemaVersion": 1, "namespace": "n", "name": "a", "objectUid": "o", "podUid": "p", "configDigest": "d",
            "state": { "training": { "progress": { "step": 1, "loss": 1.5 } } },
        });
        let lies = lies(&truth, "own", ("foreign", "q"), "b");
        for lie in &lies {
            let same = lie.body == truth.to_string().into_bytes();
            let genuine = lie.token.as_deref() == Some("own") && lie.headers.is_empty();
            assert!(!(same && genuine), "{} is no lie", lie.what);
        }
        let names: BTreeSet<_> = lies.iter().map(|lie| lie.what).collect();
        assert_eq!(names.len(), lies.len());
        let nan = lies.iter().find(|lie| lie.what.contains("NaN")).unwrap();
        assert!(String::from_utf8_lossy(&nan.body).contains("\"loss\":NaN"));
    }
}
