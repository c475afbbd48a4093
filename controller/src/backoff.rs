//! How long to wait after a failure, per object: 5 s, doubling, 5 min at most, jittered; forgotten after a success.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_mins(5);

/// How often each object failed in a row, and until when it rests, by uid.
#[derive(Debug, Default)]
pub struct Backoff(Mutex<HashMap<String, Failures>>);

#[derive(Debug)]
struct Failures {
    count: u32,
    until: Instant,
}

impl Backoff {
    /// Counts a failure and says how long to wait. One that comes before its time, because something changed meanwhile, is
    /// not counted.
    pub fn failed(&self, uid: &str) -> Duration {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let failures = all.entry(uid.to_owned()).or_insert(Failures { count: 0, until: now });
        if failures.until <= now {
            let wait = FIRST.saturating_mul(1 << failures.count.min(6)).min(LONGEST);
            *failures = Failures { count: failures.count.saturating_add(1), until: now + jittered(wait) };
        }
        failures.until - now
    }

    /// Whether an object that failed rests still.
    pub fn rests(&self, uid: &str) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(uid).is_some_and(|failures| Instant::now() < failures.until)
    }

    /// Forgets all but these objects.
    pub fn retain(&self, alive: &HashSet<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| alive.contains(uid));
    }

    /// Forgets an object: it succeeded.
    pub fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

/// `wait`, shortened by up to a fifth, so that what failed together does not come back together.
pub fn jittered(wait: Duration) -> Duration {
    // A fresh hasher is seeded by the system: random enough to spread load, and no dependency.
    let random = RandomState::new().hash_one(wait) % 1000;
    wait.mul_f64(0.8 + 0.2 * random as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Backoff, jittered};

    #[tokio::test(start_paused = true)]
    async fn waits_double_up_to_five_minutes_and_start_again_after_a_success() {
        let backoff = Backoff::default();
        for seconds in [5, 10, 20, 40, 80, 160, 300, 300, 300] {
            let wait = backoff.failed("a");
            let full = Duration::from_secs(seconds);
            assert!(wait <= full && wait >= full.mul_f64(0.8), "{wait:?} for {full:?}");
            tokio::time::advance(wait / 2).await;
            assert!(
                backoff.rests("a") && backoff.failed("a") <= wait / 2,
                "what fails before its time waits for the rest"
            );
            tokio::time::advance(wait).await;
            assert!(!backoff.rests("a"));
        }
        assert!(backoff.failed("b") <= Duration::from_secs(5));
        backoff.forget("a");
        assert!(backoff.failed("a") <= Duration::from_secs(5));
    }

    #[test]
    fn jitter_spreads() {
        let waits: std::collections::BTreeSet<_> = (0..50).map(|_| jittered(Duration::from_mins(1))).collect();
        assert!(waits.len() > 10);
    }
}
