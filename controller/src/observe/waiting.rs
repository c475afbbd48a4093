//! The objects that wait to be reconciled, and since when: what the metrics say about the queues.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Kind, namespace and name.
type Key = (String, String, String);

/// The waiting objects of all kinds.
#[derive(Clone, Debug, Default)]
pub struct Waiting(Arc<Mutex<HashMap<Key, Instant>>>);

impl Waiting {
    /// Locks the map. A task that panicked while it held the lock left whole entries, so the poison is ignored.
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that an object waits. One that waits already has waited since then.
    pub(super) fn added(&self, kind: &str, namespace: &str, name: &str) {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        self.lock().entry(key).or_insert_with(Instant::now);
    }

    /// Records that an object no longer waits. Returns how long it waited, if a change had queued it.
    pub fn ended(&self, kind: &str, namespace: &str, name: &str) -> Option<Duration> {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        let since = self.lock().remove(&key)?;
        Some(since.elapsed())
    }

    /// Returns by kind how many objects wait, and how long the one that waits longest has waited.
    pub fn by_kind(&self) -> BTreeMap<String, (i64, Duration)> {
        let mut kinds = BTreeMap::<_, (i64, Duration)>::new();
        for ((kind, ..), since) in &*self.lock() {
            let (objects, oldest) = kinds.entry(kind.clone()).or_default();
            *objects += 1;
            *oldest = since.elapsed().max(*oldest);
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
        waiting.added("A", "team", "x");
        advance(Duration::from_secs(3)).await;
        waiting.added("A", "team", "x");
        waiting.added("A", "team", "y");
        waiting.added("B", "team", "x");
        assert_eq!(waiting.by_kind()["A"], (2, Duration::from_secs(3)));
        assert_eq!(waiting.by_kind()["B"], (1, Duration::ZERO));
        assert_eq!(waiting.ended("A", "team", "x"), Some(Duration::from_secs(3)));
        assert_eq!(waiting.ended("A", "team", "x"), None);
        assert_eq!(waiting.by_kind()["A"], (1, Duration::ZERO));
    }
}
