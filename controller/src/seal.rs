//! Seals: how the controller recognizes the Jobs and Deployments that it created, and the statuses that it wrote.
//!
//! Anyone who may create Jobs in a namespace can forge owner references, labels and field managers. The controller
//! therefore adds a MAC to each pod template that it creates. The MAC covers the owner's uid, the template and the
//! controller's annotations; its key is in a Secret of the controller's namespace. A copied seal is valid only for the
//! same template and the same owner. The seal of a status covers the object's uid and the parts that later steps depend on.

use codex_crds::annotation;
use codex_plan::{Sealable, StatusSeal};
use codex_provenance::Sha256;
use hmac::{Hmac, Mac};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use serde::Serialize;
use serde_json::Value;

use crate::{
    drift::canonical,
    error::{client_category, remedy},
    secrets::{get_or_create, secret, value},
};

/// The annotation that carries a seal.
pub const ANNOTATION: &str = "codex-ml.dev/seal";
/// The name of the Secret with the key.
pub const SECRET: &str = "codex-seal";
const KEY: &str = "seal.key";
const BYTES: usize = 32;

/// Why the seal key cannot be loaded or a child cannot be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// A request to the API server failed.
    #[error("the Secret {SECRET} cannot be read or created: {0}{remedy}", remedy = remedy(.0))]
    Client(#[source] kube::Error),
    /// The Secret does not hold a key of the right length.
    #[error(
        "the Secret {SECRET} must hold exactly {BYTES} bytes under {KEY:?}, and nothing is reconciled without them: restore it from a \
         backup, or delete it; the controller then creates another key, treats existing Jobs as foreign and discards recorded results"
    )]
    Secret,
    /// The system's random number generator failed.
    #[error("the system has no random bytes for the Secret {SECRET}")]
    Random,
    /// A child cannot be serialized.
    #[error("a child cannot be serialized to JSON: {0}")]
    Json(#[source] serde_json::Error),
}

impl SealError {
    /// Returns the category for metrics and logs.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Client(source) => client_category(source),
            Self::Secret => "secret",
            Self::Random => "random",
            Self::Json(_) => "encoding",
        }
    }
}

/// Returns the JSON text of a value with the names of all objects sorted, so that equal values give equal bytes.
fn bytes(value: &impl Serialize) -> Result<Vec<u8>, SealError> {
    let mut value = serde_json::to_value(value).map_err(SealError::Json)?;
    value.sort_all_objects();
    serde_json::to_vec(&value).map_err(SealError::Json)
}

/// Seals children with the key from the Secret.
#[derive(Clone)]
pub struct Seal([u8; BYTES]);

impl Seal {
    /// Loads the key. Generates it on the first start. A damaged key is never replaced: what it sealed could no longer be told from a
    /// forgery.
    ///
    /// # Errors
    /// See [`SealError`].
    pub async fn load(client: Client, namespace: &str) -> Result<Self, SealError> {
        let api: Api<Secret> = Api::namespaced(client, namespace);
        let secret = get_or_create(&api, SECRET, generate, SealError::Client).await?;
        let key = value(&secret, KEY).ok_or(SealError::Secret)?;
        Ok(Self(key.try_into().map_err(|_| SealError::Secret)?))
    }

    /// Returns the seal of a child for the owner with this uid. It covers the pod template and the controller's
    /// annotations, and nothing else of the child, such as its scale or suspension.
    ///
    /// # Errors
    /// When the child cannot be serialized to JSON.
    pub fn of<K: Serialize>(&self, owner: &str, child: &K) -> Result<String, SealError> {
        let child = serde_json::to_value(child).map_err(SealError::Json)?;
        let template = child.pointer("/spec/template/spec").map(canonical);
        let annotations = child.pointer("/metadata/annotations").and_then(Value::as_object).map(|all| {
            let own = |key: &str| {
                key.starts_with(annotation::PREFIX) && ![ANNOTATION, annotation::TRACE_PARENT].contains(&key)
            };
            all.iter().filter(|(key, _)| own(key)).collect::<Vec<_>>()
        });
        let sealed =
            (owner, child.get("kind"), child.pointer("/metadata/namespace"), annotations.unwrap_or_default(), template);
        Ok(self.mac(&bytes(&sealed)?))
    }

    /// Returns the seal of a status: the uid of its object, and a MAC over that uid and the sealed parts. `None` if the status
    /// has no such parts.
    ///
    /// # Errors
    /// When the parts cannot be serialized to JSON.
    pub fn of_status<S: Sealable>(&self, kind: &str, uid: &str, status: &S) -> Result<Option<String>, SealError> {
        let sealed = status.sealed();
        if sealed == S::default().sealed() {
            return Ok(None);
        }
        // The first element separates these texts from those of children, which begin with a uid.
        let bytes = bytes(&("codex-ml.dev/status", kind, uid, sealed))?;
        Ok(Some(format!("{uid}:{}", self.mac(&bytes))))
    }

    /// Returns what the seal of a recorded status says.
    pub fn check_status<S: Sealable>(&self, kind: &str, uid: &str, status: Option<&S>) -> StatusSeal {
        let Some(status) = status else { return StatusSeal::Valid };
        if let Some((former, _)) = status.seal().and_then(|seal| seal.rsplit_once(':'))
            && former != uid
        {
            return StatusSeal::Restored(former.to_owned());
        }
        match self.of_status(kind, uid, status) {
            Ok(None) => StatusSeal::Valid,
            Ok(Some(seal)) if status.seal().is_some_and(|carried| equal(carried, &seal)) => StatusSeal::Valid,
            Ok(Some(_)) | Err(_) => StatusSeal::Broken,
        }
    }

    /// Returns the proof that this controller issued a challenge for these facts.
    pub fn of_challenge(&self, facts: &impl Serialize) -> String {
        // The first element separates these texts from others that are sealed.
        self.mac(&serde_json::to_vec(&("codex-ml.dev/challenge", facts)).unwrap_or_default())
    }

    /// Returns the seal of the text of a ledger of reads.
    pub fn of_reads(&self, text: &str) -> String {
        self.mac(&serde_json::to_vec(&("codex-ml.dev/reads", text)).unwrap_or_default())
    }

    /// Compares two texts, so that the time taken does not reveal where they differ.
    pub fn is_equal(one: &str, other: &str) -> bool {
        equal(one, other)
    }

    /// Returns whether a live child carries the valid seal for this owner.
    pub fn holds<K: Serialize + kube::Resource>(&self, owner: &str, child: &K) -> bool {
        let carried = child.meta().annotations.as_ref().and_then(|all| all.get(ANNOTATION));
        carried.is_some_and(|carried| self.of(owner, child).is_ok_and(|seal| equal(carried, &seal)))
    }

    fn mac(&self, bytes: &[u8]) -> String {
        // HMAC pads a key that is shorter than SHA-256's 64-byte block with zeros.
        let mut block = [0; 64];
        block[..BYTES].copy_from_slice(&self.0);
        let mut mac = <Hmac<sha2::Sha256> as Mac>::new(&block.into());
        mac.update(bytes);
        hex::encode(mac.finalize().into_bytes())
    }
}

/// Compares the digests of two texts, so that the time taken does not reveal where the texts differ.
fn equal(carried: &str, seal: &str) -> bool {
    Sha256::of(carried) == Sha256::of(seal)
}

fn generate() -> Result<Secret, SealError> {
    let mut key = [0; BYTES];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.secure_random.fill(&mut key).map_err(|_| SealError::Random)?;
    Ok(secret(SECRET, "seal", [(KEY, key.as_slice())]))
}

#[cfg(test)]
impl Seal {
    /// Returns a seal with a fixed key.
    pub(crate) fn for_tests() -> Self {
        Self([7; BYTES])
    }
}

#[cfg(test)]
mod tests {
    use codex_crds::{EvaluationStatus, annotation};
    use codex_plan::StatusSeal;
    use jiff::Timestamp;
    use k8s_openapi::{api::batch::v1::Job, apimachinery::pkg::apis::meta::v1::Time};
    use serde_json::{Value, json};

    use super::{ANNOTATION, Seal};

    fn job() -> Value {
        json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"name": "codex-t-a", "namespace": "ns", "annotations": {"codex-ml.dev/config-digest": "abc", "other": "x"}},
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
        live["metadata"]["annotations"][annotation::TRACE_PARENT] = json!("00-0af7");
        assert!(holds(&seal, "uid", live));
    }

    #[test]
    fn the_seal_of_a_status_holds_for_its_object_and_its_sealed_parts() {
        let seal = Seal::for_tests();
        let mut status: EvaluationStatus = serde_json::from_value(json!({
            "verdict": "Passed", "reportDigest": "0".repeat(64),
            "metrics": [{"name": "exact_match", "kind": "share", "n": 10, "successes": 9}],
        }))
        .unwrap();
        let check =
            |seal: &Seal, uid: &str, status: &EvaluationStatus| seal.check_status("Evaluation", uid, Some(status));
        assert_eq!(check(&seal, "a", &status), StatusSeal::Broken, "no seal");
        status.seal = seal.of_status("Evaluation", "a", &status).unwrap();
        assert_eq!(check(&seal, "a", &status), StatusSeal::Valid);
        assert_eq!(check(&seal, "b", &status), StatusSeal::Restored("a".to_owned()));
        assert_eq!(check(&Seal([8; 32]), "a", &status), StatusSeal::Broken, "another key");
        assert_eq!(seal.check_status("TrainingRun", "a", Some(&status)), StatusSeal::Broken, "another kind");
        let verdict = EvaluationStatus { verdict: None, ..status.clone() };
        assert_eq!(check(&seal, "a", &verdict), StatusSeal::Valid, "the verdict is computed again");
        let mut metrics = status.clone();
        metrics.metrics[0].successes = Some(10);
        assert_eq!(check(&seal, "a", &metrics), StatusSeal::Broken);
        let mut completed = status;
        completed.completed_at = Some(Time(Timestamp::UNIX_EPOCH));
        assert_eq!(check(&seal, "a", &completed), StatusSeal::Broken);
        assert_eq!(check(&seal, "a", &EvaluationStatus::default()), StatusSeal::Valid, "nothing to believe");
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
