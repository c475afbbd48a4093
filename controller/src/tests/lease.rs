//! Leader election.

use std::{sync::Mutex, time::Duration};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::world::Api;
use crate::lease::{Candidate, DEADLINE, DURATION, HeldLease, LeaseError, RENEW};

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

/// Returns the holder of the Lease of the installation in a namespace that watches these namespaces.
async fn installed(api: &Api, namespace: &str, watches: &[&str]) -> HeldLease {
    let watches: Vec<_> = watches.iter().map(|name| (*name).to_owned()).collect();
    let identity = format!("process in {namespace}");
    Candidate::new(api.client(), namespace, "codex-controller", identity).watching(&watches).acquire().await
}

/// Lets a holder claim its objects for this long. Returns whether it has them, and what it told.
async fn claims(held: &mut HeldLease, long: Duration) -> (bool, Vec<String>) {
    let told = Mutex::new(Vec::new());
    let claimed = timeout(long, held.claim_objects(|why| told.lock().unwrap().push(why.to_owned()))).await;
    (claimed.is_ok_and(|claimed| claimed.is_ok()), told.into_inner().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_second_installation_waits_while_the_first_reconciles_its_objects() {
    for (first_watches, second_watches, meet) in [
        (&[][..], &[][..], true),
        (&["a", "b"], &[], true),
        (&[], &["c"], true),
        (&["a", "b"], &["b", "c"], true),
        (&["a", "b"], &["c"], false),
    ] {
        let api = Api::default();
        let mut first = installed(&api, "first", first_watches).await;
        assert_eq!(claims(&mut first, Duration::from_secs(1)).await, (true, Vec::new()));
        let mut second = installed(&api, "second", second_watches).await;
        let renewing = tokio::spawn(async move {
            let _ = timeout(DURATION * 4, first.keep()).await;
            first
        });
        let (claimed, told) = claims(&mut second, DURATION * 3).await;
        assert_eq!(claimed, !meet, "{first_watches:?} {second_watches:?}: {told:?}");
        if meet {
            assert_eq!(told.len(), 1, "{told:?}");
            let words =
                "another controller owns the objects: the holder process in first of the Lease first/codex-controller";
            assert!(told[0].starts_with(words), "{told:?}");
            renewing.await.unwrap().release().await.unwrap();
            assert!(claims(&mut second, Duration::from_secs(20)).await.0, "the first has left");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_installation_that_died_is_waited_for_as_long_as_its_lease_lasts() {
    let api = Api::default();
    let mut first = installed(&api, "first", &[]).await;
    assert!(claims(&mut first, Duration::from_secs(1)).await.0);
    drop(first);
    let mut second = installed(&api, "second", &[]).await;
    let began = Instant::now();
    assert!(claims(&mut second, DURATION * 2).await.0);
    assert!(began.elapsed() >= DURATION, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn of_two_installations_that_start_together_one_reconciles() {
    for _ in 0..20 {
        let api = Api::default();
        let (mut first, mut second) = (installed(&api, "first", &[]).await, installed(&api, "second", &[]).await);
        let long = Duration::from_mins(2);
        let keep = async |held: &mut HeldLease| {
            let claimed = claims(held, long).await.0;
            let _ = timeout(long, held.keep()).await;
            claimed
        };
        let (one, other) = tokio::join!(keep(&mut first), keep(&mut second));
        assert!(one != other, "{one} {other}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_right_to_list_leases_an_installation_goes_on() {
    let api = Api::default();
    api.fail("GET /apis/coordination.k8s.io/v1/leases", Some(403));
    let mut held = installed(&api, "first", &[]).await;
    assert!(claims(&mut held, Duration::from_secs(1)).await.0);
    api.fail("GET /apis/coordination.k8s.io/v1/leases", Some(500));
    let (claimed, told) = claims(&mut held, Duration::from_secs(30)).await;
    assert!(!claimed && told.len() == 1, "a failure is not taken for an answer: {told:?}");
}
