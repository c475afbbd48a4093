//! How long to wait after a failure, per object: 5 s, doubling, 5 min at most, jittered; forgotten after a success.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    sync::{Mutex, PoisonError},
    time::Duration,
};

const FIRST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_mins(5);

/// How often each object failed in a row, by uid.
#[derive(Debug, Default)]
pub struct Backoff(Mutex<HashMap<String, u32>>);

impl Backoff {
    /// Counts a failure and says how long to wait.
    pub fn failed(&self, uid: &str) -> Duration {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(uid.to_owned()).or_default();
        let wait = FIRST.saturating_mul(1 << (*count).min(6)).min(LONGEST);
        *count = count.saturating_add(1);
        jittered(wait)
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

    #[test]
    fn waits_double_up_to_five_minutes_and_start_again_after_a_success() {
        let backoff = Backoff::default();
        for seconds in [5, 10, 20, 40, 80, 160, 300, 300, 300] {
            let wait = backoff.failed("a");
            let full = Duration::from_secs(seconds);
            assert!(wait <= full && wait >= full.mul_f64(0.8), "{wait:?} for {full:?}");
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
