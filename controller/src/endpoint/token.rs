//! Authentication of senders by TokenReview. Results are cached for a short time.

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

use super::rejection::Rejection;

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
/// How long a result is cached. The pod itself is checked again at every report.
const TTL: Duration = Duration::from_mins(1);
/// The maximum number of cached results.
const MAX_CACHED: usize = 4096;
/// The maximum length of a token. Service account tokens of Kubernetes are shorter.
const MAX_TOKEN: usize = 16 * 1024;

/// The pod that a token was issued to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodIdentity {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// Reviews tokens and caches the results.
pub(super) struct TokenReviewer {
    client: Client,
    /// The results by the digest of the token, so that no token is kept.
    cache: Mutex<HashMap<Sha256, (Instant, PodIdentity)>>,
}

impl TokenReviewer {
    /// Creates a reviewer that sends requests through `client`.
    pub(super) fn new(client: Client) -> Self {
        Self { client, cache: Mutex::default() }
    }

    /// Returns the pod that a token was issued to.
    ///
    /// # Errors
    /// When the token is invalid, is for another audience, or is not bound to a pod.
    pub(super) async fn review(&self, token: &str) -> Result<PodIdentity, Rejection> {
        if token.len() > MAX_TOKEN {
            return Err(Rejection::Unauthenticated(
                "the token is too long for a Kubernetes service account token".to_owned(),
            ));
        }
        let digest = Sha256::of(token);
        if let Some(pod) = self.cached(&digest) {
            return Ok(pod);
        }
        let review = TokenReview {
            spec: TokenReviewSpec { audiences: Some(vec![AUDIENCE.to_owned()]), token: Some(token.to_owned()) },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let reviewed = api.create(&PostParams::default(), &review).await.map_err(|source| Rejection::Client {
            what: "the TokenReview failed".to_owned(),
            source: Box::new(source),
        })?;
        let pod = judge(reviewed)?;
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= MAX_CACHED {
            cache.retain(|_, (at, _)| at.elapsed() < TTL);
        }
        if cache.len() < MAX_CACHED {
            cache.insert(digest, (Instant::now(), pod.clone()));
        }
        Ok(pod)
    }

    fn cached(&self, digest: &Sha256) -> Option<PodIdentity> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.get(digest).filter(|(at, _)| at.elapsed() < TTL).map(|(_, pod)| pod.clone())
    }
}

fn judge(review: TokenReview) -> Result<PodIdentity, Rejection> {
    let reject = |why: String| Err(Rejection::Unauthenticated(why));
    let status = review.status.unwrap_or_default();
    if status.authenticated != Some(true) {
        let why = status.error.filter(|error| !error.is_empty()).unwrap_or_else(|| "it is invalid".to_owned());
        return reject(format!("the API server rejects the token: {why}"));
    }
    // An API server that does not check audiences returns none; such a token could be for any recipient.
    if !status.audiences.unwrap_or_default().iter().any(|audience| audience == AUDIENCE) {
        return reject(format!("the token is not for this endpoint: project a token with the audience {AUDIENCE:?}"));
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
        _ => reject("the token is not bound to a pod: send the projected token of a pod".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{PodIdentity, judge};
    use crate::endpoint::rejection::Rejection;

    /// A change of the review, and a part of the expected message.
    type Case = (fn(&mut Value), &'static str);

    fn good() -> Value {
        json!({
            "authenticated": true,
            "audiences": ["codex-ml.dev/reports"],
            "user": {
                "username": "system:serviceaccount:team:default",
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["codex-t-a-x"],
                    "authentication.kubernetes.io/pod-uid": ["uid"],
                },
            },
        })
    }

    fn judged(status: &Value) -> Result<PodIdentity, Rejection> {
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {}, "status": status});
        judge(serde_json::from_value(review).unwrap())
    }

    #[test]
    fn a_pod_token_for_this_audience_identifies_the_pod() {
        let pod = judged(&good()).unwrap();
        assert_eq!(pod, PodIdentity { namespace: "team".into(), name: "codex-t-a-x".into(), uid: "uid".into() });
    }

    #[test]
    fn every_other_token_is_rejected_with_a_reason() {
        let cases: [Case; 5] = [
            (|status| status["authenticated"] = json!(false), "rejects the token"),
            (|status| status["audiences"] = json!(["https://kubernetes.default.svc"]), "not for this endpoint"),
            (|status| status["audiences"] = Value::Null, "not for this endpoint"),
            (|status| status["user"]["username"] = json!("jane"), "is not bound to a pod"),
            (|status| status["user"]["extra"] = json!({}), "is not bound to a pod"),
        ];
        for (change, says) in cases {
            let mut status = good();
            change(&mut status);
            let rejection = judged(&status).unwrap_err();
            assert!(
                matches!(rejection, Rejection::Unauthenticated(_)) && rejection.to_string().contains(says),
                "{rejection}"
            );
        }
    }
}
