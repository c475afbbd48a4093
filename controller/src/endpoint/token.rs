//! Tokens: which pod speaks. Asks the API server by TokenReview and remembers the answer for a short while.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use codex_provenance::Sha256;
use codex_reports::AUDIENCE;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::{Api, Client, api::PostParams};
use tokio::time::Instant;

use super::Refusal;

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
/// How long an answer is believed. The pod itself is looked at again at every report.
const BELIEVED: Duration = Duration::from_mins(1);
/// How many answers are remembered.
const REMEMBERED: usize = 4096;
/// Tokens of Kubernetes are shorter.
const LONGEST: usize = 16 * 1024;

/// The pod that a token was issued to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodIdentity {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// Reviews tokens.
pub struct Tokens {
    client: Client,
    /// By the token's digest: a token is not kept.
    known: Mutex<HashMap<Sha256, (Instant, PodIdentity)>>,
}

impl Tokens {
    /// Asks through `client`.
    pub fn new(client: Client) -> Self {
        Self { client, known: Mutex::default() }
    }

    /// The pod that a token was issued to, for this endpoint.
    ///
    /// # Errors
    /// When the token is not valid, is for another audience, or belongs to no pod.
    pub async fn review(&self, token: &str) -> Result<PodIdentity, Refusal> {
        if token.len() > LONGEST {
            return Err(Refusal::Unauthenticated("the token is no token of a Kubernetes service account".to_owned()));
        }
        let digest = Sha256::of(token);
        if let Some(pod) = self.remembered(&digest) {
            return Ok(pod);
        }
        let review = TokenReview {
            spec: TokenReviewSpec { audiences: Some(vec![AUDIENCE.to_owned()]), token: Some(token.to_owned()) },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let reviewed = api.create(&PostParams::default(), &review).await.map_err(|source| Refusal::Client {
            what: "the token cannot be reviewed now".to_owned(),
            source: Box::new(source),
        })?;
        let pod = judge(reviewed)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.retain(|_, (at, _)| at.elapsed() < BELIEVED);
        }
        if known.len() < REMEMBERED {
            known.insert(digest, (Instant::now(), pod.clone()));
        }
        Ok(pod)
    }

    fn remembered(&self, digest: &Sha256) -> Option<PodIdentity> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(digest).filter(|(at, _)| at.elapsed() < BELIEVED).map(|(_, pod)| pod.clone())
    }
}

fn judge(review: TokenReview) -> Result<PodIdentity, Refusal> {
    let refuse = |why: String| Err(Refusal::Unauthenticated(why));
    let status = review.status.unwrap_or_default();
    if status.authenticated != Some(true) {
        let why = status.error.filter(|error| !error.is_empty()).unwrap_or_else(|| "it is not valid".to_owned());
        return refuse(format!("the token is refused: {why}"));
    }
    // An API server that knows no audiences says none: then the token could be for anybody.
    if !status.audiences.unwrap_or_default().iter().any(|audience| audience == AUDIENCE) {
        return refuse(format!("the token is not for this endpoint: project one with the audience {AUDIENCE:?}"));
    }
    let user = status.user.unwrap_or_default();
    let username = user.username.unwrap_or_default();
    let namespace =
        username.strip_prefix(SERVICE_ACCOUNT).and_then(|rest| rest.split_once(':')).map(|(first, _)| first);
    let extra = user.extra.unwrap_or_default();
    let one = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Some(value.clone()),
        _ => None,
    };
    match (namespace, one(POD_NAME), one(POD_UID)) {
        (Some(namespace), Some(name), Some(uid)) => Ok(PodIdentity { namespace: namespace.to_owned(), name, uid }),
        _ => refuse("the token belongs to no pod: only pods report here, with a projected token".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{PodIdentity, judge};
    use crate::endpoint::Refusal;

    /// A change of a review, and what the refusal says.
    type Case = (fn(&mut Value), &'static str);

    fn good() -> Value {
        json!({
            "authenticated": true,
            "audiences": ["codex-ml.dev/reports"],
            "user": {
                "username": "system:serviceaccount:team:default",
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["a-train-x"],
                    "authentication.kubernetes.io/pod-uid": ["uid"],
                },
            },
        })
    }

    fn judged(status: &Value) -> Result<PodIdentity, Refusal> {
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {}, "status": status});
        judge(serde_json::from_value(review).unwrap())
    }

    #[test]
    fn a_pods_token_for_this_audience_names_the_pod() {
        let pod = judged(&good()).unwrap();
        assert_eq!(pod, PodIdentity { namespace: "team".into(), name: "a-train-x".into(), uid: "uid".into() });
    }

    #[test]
    fn every_other_token_is_refused_with_a_reason() {
        let cases: [Case; 5] = [
            (|status| status["authenticated"] = json!(false), "is refused"),
            (|status| status["audiences"] = json!(["https://kubernetes.default.svc"]), "not for this endpoint"),
            (|status| status["audiences"] = Value::Null, "not for this endpoint"),
            (|status| status["user"]["username"] = json!("jane"), "belongs to no pod"),
            (|status| status["user"]["extra"] = json!({}), "belongs to no pod"),
        ];
        for (change, says) in cases {
            let mut status = good();
            change(&mut status);
            let refusal = judged(&status).unwrap_err();
            assert!(matches!(refusal, Refusal::Unauthenticated(_)) && refusal.to_string().contains(says), "{refusal}");
        }
    }
}
