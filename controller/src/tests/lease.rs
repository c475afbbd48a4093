//! Leader election.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::{Instant, advance, sleep, timeout};

use super::world::Api;
use crate::lease::{Candidate, HeldLease, LeaseError, Timing};

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/codex-system/leases/codex-controller";
/// The duration of the Lease with high availability, in seconds. The overlay and the chart set it.
pub(super) const AVAILABLE: u16 = 7;

/// Both durations: that of one controller, and that of two.
fn timings() -> [Timing; 2] {
    [Timing::default(), Timing::lasting(AVAILABLE)]
}

fn candidate(api: &Api, identity: &str, timing: Timing) -> Candidate {
    Candidate::new(api.client(), "codex-system", "codex-controller", identity.to_owned()).timed(timing)
}

fn holder(api: &Api) -> Value {
    api.object(PATH).unwrap()["spec"]["holderIdentity"].clone()
}

#[test]
fn the_times_of_a_lease_follow_from_its_duration() {
    let times = |seconds| {
        let timing = Timing::lasting(seconds);
        [timing.duration(), timing.renew(), timing.deadline(), timing.retry()].map(|time| time.as_millis())
    };
    assert_eq!(times(Timing::DEFAULT), [30_000, 10_000, 20_000, 2_000]);
    assert_eq!(times(AVAILABLE), [7_000, 2_333, 4_666, 466]);
    assert_eq!(times(0), times(Timing::SHORTEST));
    assert_eq!(times(u16::MAX), times(Timing::LONGEST));
}

/// The overlay and the chart, whose values a test with Helm compares, set the duration of these tests.
#[test]
fn the_overlay_for_high_availability_sets_the_duration_of_these_tests() {
    let manifests = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
    let read = |path: &str| std::fs::read_to_string(manifests.join(path)).unwrap();
    let words = format!("name: CODEX_LEASE_DURATION, value: \"{AVAILABLE}\" }}\n");
    assert!(read("overlays/high-availability/kustomization.yaml").contains(&words), "{words}");
    let words = format!("name: CODEX_LEASE_DURATION\n              value: \"{AVAILABLE}\"\n");
    assert!(read("helm/codex-operator/templates/deployment.yaml").contains(&words), "{words}");
}

#[tokio::test(start_paused = true)]
async fn a_holder_writes_three_times_in_the_duration_and_reads_nothing() {
    for timing in timings() {
        let api = Api::default();
        let mut held = candidate(&api, "a", timing).acquire().await;
        assert_eq!(holder(&api), json!("a"));
        assert_eq!(
            api.object(PATH).unwrap()["spec"]["leaseDurationSeconds"],
            json!(timing.duration().as_secs()),
            "candidates measure what the Lease states"
        );
        let collection = PATH.rsplit_once('/').unwrap().0;
        assert_eq!(api.requests(), [format!("GET {PATH}"), format!("POST {collection} as codex-controller")]);
        assert!(timeout(timing.renew() * 10, held.keep()).await.is_err(), "still held");
        let requests = api.requests();
        assert!(requests.iter().all(|line| line == &format!("PUT {PATH} as codex-controller")), "{requests:?}");
        assert!((9..=13).contains(&requests.len()), "{}", requests.len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_candidate_waits_until_the_lease_has_expired_or_is_released() {
    for timing in timings() {
        let api = Api::default();
        let mut first = candidate(&api, "a", timing).acquire().await;
        let second = tokio::spawn(candidate(&api, "b", timing).acquire());
        assert!(timeout(timing.duration() * 3, first.keep()).await.is_err());
        assert!(!second.is_finished());
        // The first holder stops renewing.
        let stopped = Instant::now();
        let second = second.await.unwrap();
        assert!(stopped.elapsed() + timing.renew() >= timing.duration(), "{:?}", stopped.elapsed());
        assert_eq!(holder(&api), json!("b"));
        assert_eq!(api.object(PATH).unwrap()["spec"]["leaseTransitions"], json!(1));
        // The first holder tries to renew again: it has lost the Lease and does not change it.
        assert!(matches!(first.keep().await, LeaseError::Taken { .. } | LeaseError::Expired { .. }));
        assert_eq!(holder(&api), json!("b"));
        second.release().await.unwrap();
        let released = Instant::now();
        candidate(&api, "c", timing).acquire().await;
        assert!(released.elapsed() < Duration::from_secs(1));
    }
}

/// Lets a holder lead for a while and then end without a word, right after its last renewal at the worst. Returns how long it takes
/// until another process reconciles.
async fn failover(timing: Timing, led_for: Duration) -> Duration {
    let api = Api::default();
    let mut first = candidate(&api, "a", timing).acquire().await;
    first.claim_objects(|_| {}).await.unwrap();
    let next = tokio::spawn({
        let second = candidate(&api, "b", timing);
        async move {
            let mut held = second.acquire().await;
            held.claim_objects(|_| {}).await.unwrap();
            held
        }
    });
    assert!(timeout(led_for, first.keep()).await.is_err(), "still held");
    let fence = first.fence();
    drop(first);
    let died = Instant::now();
    let next = next.await.unwrap();
    assert!(next.fence().is_open() && !fence.is_open(), "of two processes at most one writes");
    died.elapsed()
}

#[tokio::test(start_paused = true)]
async fn with_high_availability_another_process_leads_in_less_than_ten_seconds() {
    let mut longest = Duration::ZERO;
    for milliseconds in (0..6_000).step_by(37) {
        let took = failover(Timing::lasting(AVAILABLE), Duration::from_millis(milliseconds)).await;
        longest = longest.max(took);
    }
    assert!(longest < Duration::from_secs(8), "two seconds remain to fill the caches, and it took {longest:?}");
    assert!(longest > Timing::lasting(AVAILABLE).duration(), "the worst moment is among those that were tried");
    let default = failover(Timing::default(), Duration::from_secs(5)).await;
    assert!(default > Duration::from_secs(20), "{default:?}");
}

#[tokio::test(start_paused = true)]
async fn nobody_takes_the_lease_while_its_holder_may_write() {
    for timing in timings() {
        let api = Api::default();
        let mut first = candidate(&api, "a", timing).acquire().await;
        let fence = first.fence();
        let second = tokio::spawn(candidate(&api, "b", timing).acquire());
        assert!(timeout(timing.duration(), first.keep()).await.is_err());
        // The process stands still: nothing renews the Lease and nothing closes the fence.
        let closed = loop {
            assert!(!second.is_finished() || !fence.is_open());
            if !fence.is_open() {
                break Instant::now();
            }
            sleep(Duration::from_millis(10)).await;
        };
        second.await.unwrap();
        let between = closed.elapsed();
        let margin = timing.duration().abs_diff(timing.deadline());
        assert!(
            between + Duration::from_millis(20) >= margin,
            "{between:?}, although requests need {margin:?} to arrive"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn durations_may_differ_because_the_lease_states_its_own() {
    for (first, second) in [(0, 1), (1, 0)] {
        let (api, timings) = (Api::default(), timings());
        drop(candidate(&api, "a", timings[first]).acquire().await);
        let began = Instant::now();
        candidate(&api, "b", timings[second]).acquire().await;
        let took = began.elapsed();
        let stated = timings[first].duration();
        assert!(took >= stated && took < stated + Duration::from_secs(3), "{took:?} for {stated:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_candidate_gives_up_a_request_that_is_never_answered() {
    let stuck = std::sync::Arc::new(AtomicBool::new(true));
    let api = Api::default();
    let client = {
        let (inner, stuck) = (api.client(), stuck.clone());
        let send = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (inner, hangs) = (inner.clone(), stuck.load(Ordering::Relaxed));
            async move {
                if hangs {
                    std::future::pending::<()>().await;
                }
                inner.send(request).await
            }
        });
        kube::Client::new(send, "codex-system")
    };
    let timing = Timing::lasting(AVAILABLE);
    let candidate = Candidate::new(client, "codex-system", "codex-controller", "a".to_owned()).timed(timing);
    let told = std::sync::Arc::new(Mutex::new(Vec::new()));
    let acquired = tokio::spawn({
        let told = told.clone();
        candidate.acquire_and_tell(move |why| told.lock().unwrap().push(why.to_string()))
    });
    advance(Duration::from_millis(1)).await;
    sleep(timing.deadline() + timing.retry()).await;
    stuck.store(false, Ordering::Relaxed);
    let freed = Instant::now();
    acquired.await.unwrap();
    assert!(freed.elapsed() <= timing.deadline() + timing.retry(), "{:?}", freed.elapsed());
    let told = told.lock().unwrap();
    assert!(told[0].starts_with("the API server gave no answer about the Lease codex-controller for 4.6"), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_missing_right_to_the_lease_is_named() {
    let api = Api::default();
    api.fail(&format!("GET {PATH}"), Some(403));
    let told = Mutex::new(Vec::new());
    let tell = |why: &LeaseError| told.lock().unwrap().push(why.to_string());
    let waits = timeout(Duration::from_mins(1), candidate(&api, "a", Timing::default()).acquire_and_tell(tell)).await;
    assert!(waits.is_err());
    let told = told.into_inner().unwrap();
    assert!(told.len() == 1 && told[0].contains("apply manifests/controller/rbac.yaml"), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_restarts_with_the_same_identity_does_not_wait() {
    let api = Api::default();
    drop(candidate(&api, "a", Timing::default()).acquire().await);
    let again = Instant::now();
    candidate(&api, "a", Timing::default()).acquire().await;
    assert!(again.elapsed() < Duration::from_secs(1));
    assert_eq!(api.object(PATH).unwrap()["spec"]["leaseTransitions"], json!(0));
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_cannot_renew_stops_before_the_lease_expires() {
    for timing in timings() {
        let api = Api::default();
        let mut held = candidate(&api, "a", timing).acquire().await;
        let renewed = Instant::now();
        api.fail(&format!("PUT {PATH}"), Some(500));
        assert!(matches!(held.keep().await, LeaseError::Expired { .. }));
        assert!(
            renewed.elapsed() <= timing.deadline() && timing.deadline() < timing.duration(),
            "{:?}",
            renewed.elapsed()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_failure_and_a_foreign_change_do_not_lose_the_lease() {
    for timing in timings() {
        let api = Api::default();
        let mut held = candidate(&api, "a", timing).acquire().await;
        api.fail(&format!("PUT {PATH}"), Some(500));
        let healing = api.clone();
        tokio::spawn(async move {
            sleep(timing.renew() + timing.retry() * 3 / 2).await;
            // Another client annotates the Lease, so the version that the holder knows is outdated.
            let mut lease = healing.object(PATH).unwrap();
            lease["metadata"]["annotations"] = json!({"a": "b"});
            healing.put(PATH, lease);
            healing.fail(&format!("PUT {PATH}"), None);
        });
        assert!(timeout(timing.renew() * 4, held.keep()).await.is_err(), "still held");
        assert_eq!(holder(&api), json!("a"));
    }
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
            // Not much longer than the second tries: a holder that stands still past its deadline has lost its Lease.
            let _ = timeout(Timing::default().duration() * 3 + Duration::from_secs(5), first.keep()).await;
            first
        });
        let (claimed, told) = claims(&mut second, Timing::default().duration() * 3).await;
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
    assert!(claims(&mut second, Timing::default().duration() * 2).await.0);
    assert!(began.elapsed() >= Timing::default().duration(), "{:?}", began.elapsed());
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
