//! The objects that wait to be reconciled, and since when: what the metrics say about the queues.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Kind, namespace and name.
type Key = (String, String, String);

/// What an object waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Since when it waits.
    since: Instant,
    /// Whether nothing but the object itself has changed.
    pub own: bool,
}

impl Wait {
    /// Returns how long the object has waited.
    pub fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }
}

/// The waiting objects of all kinds.
#[derive(Clone, Debug, Default)]
pub struct Waiting(Arc<Mutex<HashMap<Key, Wait>>>);

impl Waiting {
    /// Locks the map. A task that panicked while it held the lock left whole entries, so the poison is ignored.
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Wait>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that an object waits, because it has changed itself (`own`) or something else has. One that waits already has waited
    /// since then.
    pub(super) fn added(&self, kind: &str, namespace: &str, name: &str, own: bool) {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        let mut waiting = self.lock();
        let wait = waiting.entry(key).or_insert_with(|| Wait { since: Instant::now(), own });
        wait.own &= own;
    }

    /// Records that an object no longer waits. Returns what it waited for, if a change had queued it.
    pub fn ended(&self, kind: &str, namespace: &str, name: &str) -> Option<Wait> {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        self.lock().remove(&key)
    }

    /// Returns by kind how many objects wait, and how long the one that waits longest has waited.
    pub fn by_kind(&self) -> BTreeMap<String, (i64, Duration)> {
        let mut kinds = BTreeMap::<_, (i64, Duration)>::new();
        for ((kind, ..), wait) in &*self.lock() {
            let (objects, oldest) = kinds.entry(kind.clone()).or_default();
            *objects += 1;
            *oldest = wait.elapsed().max(*oldest);
        }
        kinds
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::Waiting;

    #[tokio::test(start_paused = true)]
    async fn an_object_waits_from_its_first_change() {
        let waiting = Waiting::default();
        waiting.added("A", "team", "x", true);
        advance(Duration::from_secs(3)).await;
        waiting.added("A", "team", "x", false);
        waiting.added("A", "team", "y", true);
        waiting.added("B", "team", "x", false);
        assert_eq!(waiting.by_kind()["A"], (2, Duration::from_secs(3)));
        assert_eq!(waiting.by_kind()["B"], (1, Duration::ZERO));
        let ended = waiting.ended("A", "team", "x").unwrap();
        assert_eq!((ended.elapsed(), ended.own), (Duration::from_secs(3), false));
        assert_eq!(waiting.ended("A", "team", "x"), None);
        assert!(waiting.ended("A", "team", "y").unwrap().own);
        waiting.added("A", "team", "y", false);
        assert_eq!(waiting.by_kind()["A"], (1, Duration::ZERO));
    }
}
