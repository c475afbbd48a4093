//! Leader election.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::world::Api;
use crate::lease::{Candidate, DEADLINE, DURATION, LeaseError, RENEW};

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/codex-system/leases/codex-controller";

fn candidate(api: &Api, identity: &str) -> Candidate {
    Candidate::new(api.client(), "codex-system", "codex-controller", identity.to_owned())
}

fn holder(api: &Api) -> Value {
    api.object(PATH).unwrap()["spec"]["holderIdentity"].clone()
}

#[tokio::test(start_paused = true)]
async fn a_holder_writes_once_every_ten_seconds_and_reads_nothing() {
    let api = Api::default();
    let mut held = candidate(&api, "a").acquire().await;
    assert_eq!(holder(&api), json!("a"));
    let collection = PATH.rsplit_once('/').unwrap().0;
    assert_eq!(api.requests(), [format!("GET {PATH}"), format!("POST {collection} as codex-controller")]);
    assert!(timeout(RENEW * 10, held.keep()).await.is_err(), "still held");
    let requests = api.requests();
    assert!(requests.iter().all(|line| line == &format!("PUT {PATH} as codex-controller")), "{requests:?}");
    assert!((9..=13).contains(&requests.len()), "{}", requests.len());
}

#[tokio::test(start_paused = true)]
async fn a_second_candidate_waits_until_the_lease_has_expired_or_is_released() {
    let api = Api::default();
    let mut first = candidate(&api, "a").acquire().await;
    let second = tokio::spawn(candidate(&api, "b").acquire());
    assert!(timeout(DURATION * 3, first.keep()).await.is_err());
    assert!(!second.is_finished());
    // The first holder stops renewing.
    let stopped = Instant::now();
    let second = second.await.unwrap();
    assert!(stopped.elapsed() + RENEW >= DURATION, "{:?}", stopped.elapsed());
    assert_eq!(holder(&api), json!("b"));
    assert_eq!(api.object(PATH).unwrap()["spec"]["leaseTransitions"], json!(1));
    // The first holder tries to renew again: it has lost the Lease and does not change it.
    assert!(matches!(first.keep().await, LeaseError::Taken { .. } | LeaseError::Expired { .. }));
    assert_eq!(holder(&api), json!("b"));
    second.release().await.unwrap();
    let released = Instant::now();
    candidate(&api, "c").acquire().await;
    assert!(released.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_restarts_with_the_same_identity_does_not_wait() {
    let api = Api::default();
    drop(candidate(&api, "a").acquire().await);
    let again = Instant::now();
    candidate(&api, "a").acquire().await;
    assert!(again.elapsed() < Duration::from_secs(1));
    assert_eq!(api.object(PATH).unwrap()["spec"]["leaseTransitions"], json!(0));
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_cannot_renew_stops_before_the_lease_expires() {
    let api = Api::default();
    let mut held = candidate(&api, "a").acquire().await;
    let renewed = Instant::now();
    api.fail(&format!("PUT {PATH}"), Some(500));
    assert!(matches!(held.keep().await, LeaseError::Expired { .. }));
    assert!(renewed.elapsed() <= DEADLINE && DEADLINE < DURATION, "{:?}", renewed.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_short_failure_and_a_foreign_change_do_not_lose_the_lease() {
    let api = Api::default();
    let mut held = candidate(&api, "a").acquire().await;
    api.fail(&format!("PUT {PATH}"), Some(500));
    let healing = api.clone();
    tokio::spawn(async move {
        sleep(RENEW + Duration::from_secs(3)).await;
        // Another client annotates the Lease, so the version that the holder knows is outdated.
        let mut lease = healing.object(PATH).unwrap();
        lease["metadata"]["annotations"] = json!({"a": "b"});
        healing.put(PATH, lease);
        healing.fail(&format!("PUT {PATH}"), None);
    });
    assert!(timeout(RENEW * 4, held.keep()).await.is_err(), "still held");
    assert_eq!(holder(&api), json!("a"));
}
