//! One writer for each run of a pod's container: the first process that reports pins its key.
//!
//! A request carries the writer's public key, and a signature over its body and a challenge of this endpoint. A challenge is
//! bound to the pod's uid, node and image, and expires. A program that knows nothing of keys may report until a key is pinned.
//! All this is defence in depth: the token and the admission policies decide who can report for a pod.

use std::collections::HashMap;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use axum::http::HeaderMap;
use codex_plan::SECOND_WRITER;
use codex_reports::{CHALLENGE_HEADER, KEY_HEADER, Kind, SIGNATURE_HEADER, signed_message};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;

use super::rejection::Rejection;
use crate::{by_uid::ByUid, seal::Seal};

/// How long a challenge can be signed.
const LIFETIME: SignedDuration = SignedDuration::from_mins(10);
/// The most writers of an object that are remembered. Those of the pods that reported longest ago are forgotten first.
const WRITERS: usize = 256;

/// The writers of the pods of each object, by the uids of object and pod.
pub type Writers = ByUid<HashMap<String, Writer>>;

/// A pinned writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// Its public key.
    key: Vec<u8>,
    /// How often the pod's containers had restarted when it was pinned.
    restarts: i32,
    /// When its newest report came.
    at: Timestamp,
}

/// Returns a challenge for this pod.
pub(super) fn challenge(seal: &Seal, pod: &Pod, now: Timestamp) -> String {
    signed_until(seal, pod, now.saturating_add(LIFETIME).unwrap_or(now).as_second())
}

fn signed_until(seal: &Seal, pod: &Pod, until: i64) -> String {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let images: Vec<&str> = statuses(pod).map(|status| status.image_id.as_str()).collect();
    format!("{until}.{}", seal.of_challenge(&(pod.uid(), node, images, until)))
}

fn is_current(seal: &Seal, pod: &Pod, challenge: &str, now: Timestamp) -> bool {
    let until = challenge.split_once('.').and_then(|(until, _)| until.parse::<i64>().ok());
    until.is_some_and(|until| until >= now.as_second() && Seal::is_equal(challenge, &signed_until(seal, pod, until)))
}

fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    pod.status.as_ref().and_then(|status| status.container_statuses.as_ref()).into_iter().flatten()
}

/// Checks that a request comes from the writer of its pod. Pins the writer if it is the first of this run of the containers.
///
/// # Errors
/// [`Rejection::Challenge`] if the request has to be signed, or another one if it comes from another writer.
pub(super) fn check(
    (writers, seal): (&Writers, &Seal),
    (object, kind, pod): (&str, Kind, &Pod),
    (headers, body): (&HeaderMap, &[u8]),
    now: Timestamp,
) -> Result<(), Rejection> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let uid = pod.uid().unwrap_or_default();
    let restarts = statuses(pod).map(|status| status.restart_count).sum();
    let mut all = writers.lock();
    let pods = all.entry(object.to_owned()).or_default();
    let pinned = pods.get(&uid).cloned();
    let second = || match kind {
        // The process has restarted, and the pod's status does not show it yet.
        Kind::ReasoningPod => Rejection::Unavailable(SECOND_WRITER.to_owned()),
        Kind::TrainingRun | Kind::Evaluation => Rejection::Changed(SECOND_WRITER.to_owned()),
    };
    let Some(key) = header(KEY_HEADER) else {
        // A program from before there were keys.
        return if pinned.is_some_and(|writer| writer.restarts >= restarts) { Err(second()) } else { Ok(()) };
    };
    let key = hex::decode(key).map_err(|_| {
        Rejection::Invalid(format!(
            "the header {KEY_HEADER} is not a key: write an Ed25519 public key in hexadecimal digits"
        ))
    })?;
    let (Some(challenge), Some(signature)) = (header(CHALLENGE_HEADER), header(SIGNATURE_HEADER)) else {
        return Err(Rejection::Challenge);
    };
    if !is_current(seal, pod, challenge, now) {
        return Err(Rejection::Challenge);
    }
    let signature = hex::decode(signature).unwrap_or_default();
    let message = signed_message(challenge, body);
    if UnparsedPublicKey::new(&ED25519, &key).verify(&message, &signature).is_err() {
        let why =
            format!("the header {SIGNATURE_HEADER} is not the signature of this report by the key in {KEY_HEADER}");
        return Err(Rejection::Unauthenticated(why));
    }
    if pinned.is_some_and(|writer| writer.key != key && writer.restarts >= restarts) {
        return Err(second());
    }
    if pods.len() >= WRITERS
        && !pods.contains_key(&uid)
        && let Some(oldest) = pods.iter().min_by_key(|(_, writer)| writer.at).map(|(uid, _)| uid.clone())
    {
        pods.remove(&oldest);
    }
    pods.insert(uid, Writer { key, restarts, at: now });
    Ok(())
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
    use axum::http::HeaderValue;
    use serde_json::json;

    use super::*;

    const BODY: &[u8] = b"{}";

    fn pod(uid: &str, node: &str, restarts: i32) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "uid": uid},
            "spec": {"nodeName": node, "containers": []},
            "status": {"containerStatuses": [
                {"name": "c", "image": "i", "imageID": "i@sha256:0", "ready": true, "restartCount": restarts},
            ]},
        }))
        .unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    struct Scene {
        writers: Writers,
        seal: Seal,
    }

    impl Scene {
        fn new() -> Self {
            Self { writers: Writers::default(), seal: Seal::for_tests() }
        }

        fn check(&self, kind: Kind, pod: &Pod, headers: &HeaderMap) -> Result<(), Rejection> {
            check((&self.writers, &self.seal), ("object", kind, pod), (headers, BODY), at(0))
        }

        /// Signs the body over a challenge that was issued for `pod` at a time.
        fn signed(&self, key: &Ed25519KeyPair, pod: &Pod, issued: i64) -> HeaderMap {
            let challenge = challenge(&self.seal, pod, at(issued));
            let signature = key.sign(&signed_message(&challenge, BODY));
            let mut headers = key_only(key);
            headers.insert(CHALLENGE_HEADER, HeaderValue::from_str(&challenge).unwrap());
            headers.insert(SIGNATURE_HEADER, HeaderValue::from_str(&hex::encode(signature)).unwrap());
            headers
        }
    }

    fn key_only(key: &Ed25519KeyPair) -> HeaderMap {
        let text = hex::encode(key.public_key().as_ref());
        HeaderMap::from_iter([(KEY_HEADER.parse().unwrap(), HeaderValue::from_str(&text).unwrap())])
    }

    fn keys() -> [Ed25519KeyPair; 2] {
        [(); 2].map(|()| Ed25519KeyPair::generate().unwrap())
    }

    #[test]
    fn a_challenge_is_for_one_pod_on_one_node_with_one_image_and_expires() {
        let (scene, pod_a) = (Scene::new(), pod("a", "node", 0));
        let [key, _] = keys();
        let challenged = |headers: &HeaderMap| {
            assert!(matches!(scene.check(Kind::Evaluation, &pod_a, headers), Err(Rejection::Challenge)), "{headers:?}");
        };
        challenged(&key_only(&key));
        for other in [pod("b", "node", 0), pod("a", "other", 0)] {
            challenged(&scene.signed(&key, &other, 0));
        }
        let mut image = pod("a", "node", 0);
        image.status.as_mut().unwrap().container_statuses.as_mut().unwrap()[0].image_id = "other".to_owned();
        challenged(&scene.signed(&key, &image, 0));
        challenged(&scene.signed(&key, &pod_a, -601));
        let mut later = scene.signed(&key, &pod_a, 0);
        let challenge = later[CHALLENGE_HEADER].to_str().unwrap().replacen("1800", "1900", 1);
        later.insert(CHALLENGE_HEADER, HeaderValue::from_str(&challenge).unwrap());
        challenged(&later);
        scene.check(Kind::Evaluation, &pod_a, &scene.signed(&key, &pod_a, -599)).unwrap();
    }

    #[test]
    fn the_first_key_pins_the_rest_of_a_run() {
        let (scene, pod) = (Scene::new(), pod("a", "node", 0));
        let [first, second] = keys();
        let unsigned = HeaderMap::new();
        scene.check(Kind::Evaluation, &pod, &unsigned).unwrap();
        scene.check(Kind::Evaluation, &pod, &scene.signed(&first, &pod, 0)).unwrap();
        for headers in [&scene.signed(&second, &pod, 0), &unsigned] {
            let told = scene.check(Kind::Evaluation, &pod, headers).unwrap_err();
            assert!(matches!(&told, Rejection::Changed(why) if why == SECOND_WRITER), "{told}");
        }
        scene.check(Kind::Evaluation, &pod, &scene.signed(&first, &pod, 0)).unwrap();
        let mut forged = scene.signed(&second, &pod, 0);
        forged.extend(key_only(&first).into_iter().map(|(name, value)| (name.unwrap(), value)));
        forged.insert(KEY_HEADER, key_only(&first)[KEY_HEADER].clone());
        let told = scene.check(Kind::Evaluation, &pod, &forged).unwrap_err();
        assert!(matches!(told, Rejection::Unauthenticated(_)), "{told}");
    }

    #[test]
    fn a_server_that_restarted_has_another_key_once_its_pod_shows_the_restart() {
        let scene = Scene::new();
        let [first, second] = keys();
        let (before, after) = (pod("a", "node", 0), pod("a", "node", 1));
        scene.check(Kind::ReasoningPod, &before, &scene.signed(&first, &before, 0)).unwrap();
        let told = scene.check(Kind::ReasoningPod, &before, &scene.signed(&second, &before, 0)).unwrap_err();
        assert!(matches!(told, Rejection::Unavailable(_)), "{told}");
        scene.check(Kind::ReasoningPod, &after, &scene.signed(&second, &after, 0)).unwrap();
        assert!(scene.check(Kind::ReasoningPod, &after, &scene.signed(&first, &after, 0)).is_err());
    }
}
