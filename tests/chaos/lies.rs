//! A pod that lies: false reports to the endpoint, with the tokens of pods that a compromised node would know.

use std::{fmt, time::Duration};

use codex_reports::{KEY_HEADER, MAX_BYTES, PATH};
use codex_tests::{Error, Result};
use http::{Request, header::AUTHORIZATION};
use kube::{Client, Config, client::Body};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

/// The time limit of one report.
const PATIENCE: Duration = Duration::from_secs(40);
/// The size of the largest report.
const HUGE: usize = 100_000_000;

/// How often a report is sent that the endpoint does not answer itself, and the pause between two attempts.
const ATTEMPTS: usize = 4;
const PAUSE: Duration = Duration::from_secs(3);

/// How a healthy endpoint answers a false report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// With this status.
    Status(u16),
    /// With 413, or by closing the connection: it does not read to the end what is far too long.
    TooLong,
}

/// What an answer to a false report says of the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// It refused the report for the right reason.
    Refused,
    /// It did not judge the report: it was overloaded, did not lead, or did not answer.
    Unanswered,
    /// It accepted the report.
    Accepted,
    /// It refused the report for another reason.
    Mistaken,
}

impl Refusal {
    /// Judges the answer to a false report; `None` if the connection was closed instead.
    pub(crate) fn judge(self, answer: Option<u16>) -> Judgement {
        match (self, answer) {
            (Self::TooLong, None | Some(413)) => Judgement::Refused,
            (Self::Status(expected), Some(status)) if status == expected => Judgement::Refused,
            (_, None | Some(429 | 503)) => Judgement::Unanswered,
            (_, Some(200..300)) => Judgement::Accepted,
            (_, Some(_)) => Judgement::Mistaken,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{status}"),
            Self::TooLong => f.write_str("413"),
        }
    }
}

/// The answer to a false report.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    /// What is false.
    pub(crate) what: &'static str,
    /// How a healthy endpoint answers it.
    pub(crate) expected: Refusal,
    /// The status; `None` if the connection was closed instead.
    pub(crate) status: Option<u16>,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "{status}"),
            None => f.write_str("closed"),
        }
    }
}

/// A false report.
pub(crate) struct Lie {
    /// What is false.
    pub(crate) what: &'static str,
    /// How a healthy endpoint answers it.
    pub(crate) expected: Refusal,
    token: Option<String>,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

/// Returns the lies about the object of a genuine report, which `own` may send. `foreign` is the token of another pod, whose uid is
/// `stranger`, and `beside` the name of another run.
pub(crate) fn lies(truth: &Value, own: &str, (foreign, stranger): (&str, &str), beside: &str) -> Vec<Lie> {
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut report = truth.clone();
        change(&mut report);
        report.to_string().into_bytes()
    };
    let lie = |expected, what, token: Option<&str>, body| Lie {
        what,
        expected,
        token: token.map(str::to_owned),
        headers: vec![],
        body,
    };
    // As `controller/src/endpoint/rejection.rs` has them.
    let [invalid, unauthenticated, forbidden, challenge, too_large] = [400, 401, 403, 428, 413].map(Refusal::Status);
    let progress = |field: &'static str, wrong: Value| {
        changed(&|report| report["state"]["training"]["progress"][field] = wrong.clone())
    };
    let loss = truth["state"]["training"]["progress"]["loss"].to_string();
    let mut all = vec![
        lie(unauthenticated, "a report without a token", None, changed(&|_| ())),
        lie(unauthenticated, "a report with a made-up token", Some("a.b.c"), changed(&|_| ())),
        lie(forbidden, "a report with the token of another pod", Some(foreign), changed(&|_| ())),
        lie(
            forbidden,
            "a report of a pod that does not work for the run",
            Some(foreign),
            changed(&|report| report["podUid"] = json!(stranger)),
        ),
        lie(
            forbidden,
            "a report with another configuration digest",
            Some(own),
            changed(&|report| report["configDigest"] = json!("0".repeat(64))),
        ),
        lie(forbidden, "a report about another run", Some(own), changed(&|report| report["name"] = json!(beside))),
        lie(
            forbidden,
            "a report about another object",
            Some(own),
            changed(&|report| report["objectUid"] = json!(stranger)),
        ),
        lie(
            forbidden,
            "a report about another namespace",
            Some(own),
            changed(&|report| report["namespace"] = json!("default")),
        ),
        lie(invalid, "a report of negative steps", Some(own), progress("step", json!(-5))),
        lie(invalid, "a report with an unknown field", Some(own), progress("surprise", json!(1))),
        lie(
            invalid,
            "a report with a loss of NaN",
            Some(own),
            truth.to_string().replace(&format!("\"loss\":{loss}"), "\"loss\":NaN").into_bytes(),
        ),
        lie(invalid, "a report of another version", Some(own), changed(&|report| report["schemaVersion"] = json!(2))),
        lie(too_large, "a report that is a byte too long", Some(own), vec![b' '; MAX_BYTES + 1]),
        lie(Refusal::TooLong, "a report of 100 MB", Some(own), vec![b' '; HUGE]),
    ];
    // A replay: its challenge is old, and its signature is of another report.
    let replayed = [
        (KEY_HEADER, "ab".repeat(32)),
        (codex_reports::CHALLENGE_HEADER, format!("1.{}", "0".repeat(64))),
        (codex_reports::SIGNATURE_HEADER, "cd".repeat(64)),
    ];
    all.push(Lie { headers: replayed.to_vec(), ..lie(challenge, "a replayed report", Some(own), changed(&|_| ())) });
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

    /// Sends a lie, again while the endpoint does not judge it, and returns the answer.
    pub(crate) async fn tell(&self, lie: &Lie) -> Answer {
        let mut attempt = 1;
        loop {
            let status = self.post(lie.token.as_deref(), &lie.headers, lie.body.clone()).await;
            if attempt == ATTEMPTS || lie.expected.judge(status) != Judgement::Unanswered {
                return Answer { what: lie.what, expected: lie.expected, status };
            }
            attempt += 1;
            sleep(PAUSE).await;
        }
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
        let closed: Vec<_> = lies.iter().filter(|lie| lie.expected.judge(None) == Judgement::Refused).collect();
        assert!(closed.len() == 1 && closed[0].body.len() == HUGE, "only what is far too long may be cut off");
        let nan = lies.iter().find(|lie| lie.what.contains("NaN")).unwrap();
        assert!(String::from_utf8_lossy(&nan.body).contains("\"loss\":NaN"));
    }
}
