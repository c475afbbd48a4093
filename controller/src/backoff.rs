//! The backoff of each object after failed reconciliations: 5 s, doubling up to 5 min, with jitter; a success resets it.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use tokio::time::Instant;

use crate::by_uid::ByUid;

const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_mins(5);

/// The consecutive failures of each object and the end of its backoff.
#[derive(Debug, Default)]
pub struct Backoff(ByUid<Failures>);

#[derive(Debug)]
struct Failures {
    count: u32,
    until: Instant,
}

impl Backoff {
    /// Counts a failure and returns how long to wait. A failure during the backoff, of a reconciliation that a change
    /// triggered, is not counted.
    pub fn failed(&self, uid: &str) -> Duration {
        let mut all = self.0.lock();
        let now = Instant::now();
        let failures = all.entry(uid.to_owned()).or_insert(Failures { count: 0, until: now });
        if failures.until <= now {
            let wait = FIRST.saturating_mul(1 << failures.count.min(6)).min(LONGEST);
            *failures = Failures { count: failures.count.saturating_add(1), until: now + jittered(wait) };
        }
        failures.until - now
    }

    /// Returns whether the backoff of an object has not passed yet.
    pub fn rests(&self, uid: &str) -> bool {
        self.0.lock().get(uid).is_some_and(|failures| Instant::now() < failures.until)
    }

    /// Drops the failures of all objects but these.
    pub fn retain(&self, alive: &HashSet<String>) {
        self.0.retain(alive);
    }

    /// Resets an object after a success.
    pub fn forget(&self, uid: &str) {
        self.0.remove(uid);
    }
}

/// The waits between attempts at one thing: 1 s, doubling up to 30 s, with jitter.
#[derive(Debug, Default)]
pub struct Waits(u32);

impl Waits {
    /// Returns how long to wait after another failure.
    pub fn after_failure(&mut self) -> Duration {
        let wait = Duration::from_secs(1 << self.0.min(5)).min(Duration::from_secs(30));
        self.0 = self.0.saturating_add(1);
        jittered(wait)
    }
}

/// Returns `wait`, shortened by up to a fifth, so that objects that failed together are not retried together.
pub fn jittered(wait: Duration) -> Duration {
    // A new hasher has a random seed: good enough to spread load without another dependency.
    let random = RandomState::new().hash_one(wait) % 1000;
    wait.mul_f64(0.8 + 0.2 * random as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Backoff, Waits, jittered};

    #[tokio::test(start_paused = true)]
    async fn backoff_doubles_up_to_five_minutes_and_is_reset_by_a_success() {
        let backoff = Backoff::default();
        for seconds in [5, 10, 20, 40, 80, 160, 300, 300, 300] {
            let wait = backoff.failed("a");
            let full = Duration::from_secs(seconds);
            assert!(wait <= full && wait >= full.mul_f64(0.8), "{wait:?} for {full:?}");
            tokio::time::advance(wait / 2).await;
            assert!(
                backoff.rests("a") && backoff.failed("a") <= wait / 2,
                "a failure during the backoff only waits for its end"
            );
            tokio::time::advance(wait).await;
            assert!(!backoff.rests("a"));
        }
        assert!(backoff.failed("b") <= Duration::from_secs(5));
        backoff.forget("a");
        assert!(backoff.failed("a") <= Duration::from_secs(5));
    }

    #[test]
    fn waits_double_up_to_half_a_minute() {
        let mut waits = Waits::default();
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            let (wait, full) = (waits.after_failure(), Duration::from_secs(seconds));
            assert!(wait <= full && wait >= full.mul_f64(0.8), "{wait:?} for {full:?}");
        }
    }

    #[test]
    fn jitter_spreads() {
        let waits: std::collections::BTreeSet<_> = (0..50).map(|_| jittered(Duration::from_mins(1))).collect();
        assert!(waits.len() > 10);
    }
}
