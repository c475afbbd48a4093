//! Seals: how the controller knows its own Jobs and Deployments again. Talks to the API server once, at start.
//!
//! Who may create Jobs in a namespace can write any owner reference, any label and any field manager. So the controller
//! marks each pod template that it made with a MAC over the object it is for, the template and its digests. The key is in
//! a Secret of the controller's namespace. A copied seal is good for the same template and the same object only.

use codex_provenance::Sha256;
use hmac::{Hmac, Mac};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use serde::Serialize;
use serde_json::Value;
use tracing::info;

use crate::{
    MANAGER,
    error::{answered, client_category},
    semantic::canonical,
};

/// The annotation that carries a seal.
pub const ANNOTATION: &str = "codex-ml.dev/seal";
/// The Secret that holds the key.
pub const SECRET: &str = "codex-seal";
const KEY: &str = "seal.key";
const BYTES: usize = 32;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The API server.
    #[error("the Secret {SECRET} cannot be read or created: {0}")]
    Client(#[source] kube::Error),
    /// Somebody changed the Secret.
    #[error(
        "the Secret {SECRET} holds no {BYTES} bytes under {KEY:?}: delete the Secret and start the controller again; Jobs that are at work then count as foreign"
    )]
    Secret,
    /// The system gives no randomness.
    #[error("no randomness for the Secret {SECRET}")]
    Random,
    /// A child that cannot be written as JSON.
    #[error("a child cannot be written as JSON: {0}")]
    Json(#[source] serde_json::Error),
}

impl SealError {
    /// A word for metric labels.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Client(source) => client_category(source),
            Self::Secret => "secret",
            Self::Random => "random",
            Self::Json(_) => "encoding",
        }
    }
}

/// The key of seals.
#[derive(Clone)]
pub struct Seal([u8; BYTES]);

impl Seal {
    /// Loads the key, or makes it on the first start.
    ///
    /// # Errors
    /// See [`SealError`].
    pub async fn load(client: Client, namespace: &str) -> Result<Self, SealError> {
        let api: Api<Secret> = Api::namespaced(client, namespace);
        let secret = if let Some(secret) = api.get_opt(SECRET).await.map_err(SealError::Client)? {
            secret
        } else {
            let post = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
            match api.create(&post, &new_secret()?).await {
                Ok(secret) => {
                    info!(secret = SECRET, "made the key of seals");
                    secret
                }
                // Another process was faster: its key is the one.
                Err(failure) if answered(&failure, 409) => api.get(SECRET).await.map_err(SealError::Client)?,
                Err(failure) => return Err(SealError::Client(failure)),
            }
        };
        let bytes = secret.data.as_ref().and_then(|data| data.get(KEY)).ok_or(SealError::Secret)?;
        Ok(Self(bytes.0.as_slice().try_into().map_err(|_| SealError::Secret)?))
    }

    /// The seal of a child with a pod template, for the object with the uid `owner`. Scale, suspension and whatever else
    /// lies outside the template is not sealed; our annotations are.
    ///
    /// # Errors
    /// When the child cannot be written as JSON.
    pub fn of<K: Serialize>(&self, owner: &str, child: &K) -> Result<String, SealError> {
        let child = serde_json::to_value(child).map_err(SealError::Json)?;
        let template = child.pointer("/spec/template/spec").map(canonical);
        let annotations = child.pointer("/metadata/annotations").and_then(Value::as_object).map(|all| {
            all.iter().filter(|(key, _)| key.starts_with("codex-ml.dev/") && *key != ANNOTATION).collect::<Vec<_>>()
        });
        let sealed =
            (owner, child.get("kind"), child.pointer("/metadata/namespace"), annotations.unwrap_or_default(), template);
        // Maps of serde_json are in the order of their keys: equal templates give equal bytes.
        let bytes = serde_json::to_vec(&sealed).map_err(SealError::Json)?;
        Ok(self.mac(&bytes))
    }

    /// Whether a live child carries its seal.
    pub fn holds<K: Serialize + kube::Resource>(&self, owner: &str, child: &K) -> bool {
        let carried = child.meta().annotations.as_ref().and_then(|all| all.get(ANNOTATION));
        carried.is_some_and(|carried| self.of(owner, child).is_ok_and(|seal| equal(carried, &seal)))
    }

    fn mac(&self, bytes: &[u8]) -> String {
        // The block of SHA-256 is longer than the key, so that every key is taken.
        let mut block = [0; 64];
        block[..BYTES].copy_from_slice(&self.0);
        let mut mac = <Hmac<sha2::Sha256> as Mac>::new(&block.into());
        mac.update(bytes);
        hex::encode(mac.finalize().into_bytes())
    }
}

/// Compares without telling by time where two texts differ: their digests do not reveal what comes next.
fn equal(carried: &str, seal: &str) -> bool {
    Sha256::of(carried) == Sha256::of(seal)
}

fn new_secret() -> Result<Secret, SealError> {
    let mut key = [0; BYTES];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.secure_random.fill(&mut key).map_err(|_| SealError::Random)?;
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.to_owned()),
            labels: Some(crate::labels("seal")),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        data: Some([(KEY.to_owned(), ByteString(key.to_vec()))].into()),
        ..Secret::default()
    })
}

#[cfg(test)]
impl Seal {
    /// A key that tests know.
    pub(crate) fn for_tests() -> Self {
        Self([7; BYTES])
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::batch::v1::Job;
    use serde_json::{Value, json};

    use super::{ANNOTATION, Seal};

    fn job() -> Value {
        json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"name": "a-train", "namespace": "ns", "annotations": {"codex-ml.dev/config-digest": "abc", "other": "x"}},
            "spec": {"suspend": false, "template": {"spec": {"containers": [{"name": "trainer", "image": "codex:1"}]}}},
        })
    }

    fn sealed(seal: &Seal, owner: &str) -> Value {
        let mut job = job();
        let typed: Job = serde_json::from_value(job.clone()).unwrap();
        job["metadata"]["annotations"][ANNOTATION] = json!(seal.of(owner, &typed).unwrap());
        job
    }

    fn holds(seal: &Seal, owner: &str, job: Value) -> bool {
        seal.holds(owner, &serde_json::from_value::<Job>(job).unwrap())
    }

    #[test]
    fn a_seal_holds_for_what_the_api_server_makes_of_the_template() {
        let seal = Seal::for_tests();
        let mut live = sealed(&seal, "uid");
        live["spec"]["suspend"] = json!(true);
        live["spec"]["template"]["spec"]["dnsPolicy"] = json!("ClusterFirst");
        live["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = json!("IfNotPresent");
        live["metadata"]["annotations"]["other"] = json!("y");
        assert!(holds(&seal, "uid", live));
    }

    #[test]
    fn a_seal_does_not_hold_for_anything_else() {
        let seal = Seal::for_tests();
        let live = sealed(&seal, "uid");
        assert!(holds(&seal, "uid", live.clone()));
        assert!(!holds(&seal, "another", live.clone()), "copied to another object");
        assert!(!holds(&Seal([8; 32]), "uid", live.clone()), "another key");
        assert!(!holds(&seal, "uid", job()), "no seal");
        let changes: &[fn(&mut Value)] = &[
            |job| job["spec"]["template"]["spec"]["containers"][0]["image"] = json!("evil:1"),
            |job| job["spec"]["template"]["spec"]["containers"][0]["env"] = json!([{"name": "A", "value": "b"}]),
            |job| job["spec"]["template"]["spec"]["hostNetwork"] = json!(true),
            |job| job["metadata"]["annotations"]["codex-ml.dev/config-digest"] = json!("def"),
            |job| job["metadata"]["annotations"]["codex-ml.dev/model-digest"] = json!("def"),
            |job| job["metadata"]["namespace"] = json!("elsewhere"),
            |job| job["metadata"]["annotations"][ANNOTATION] = json!(""),
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut changed = live.clone();
            change(&mut changed);
            assert!(!holds(&seal, "uid", changed), "change {index} passed");
        }
    }
}
