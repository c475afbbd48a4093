//! A map of values keyed by the uid of an object, shared between tasks.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Values keyed by uid, behind a mutex. The controller drops the entries of deleted objects with [`ByUid::retain`].
#[derive(Debug)]
pub struct ByUid<V>(Mutex<HashMap<String, V>>);

impl<V> Default for ByUid<V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<V> ByUid<V> {
    /// Locks the map. A task that panicked while it held the lock left whole entries, so the poison is ignored.
    pub fn lock(&self) -> MutexGuard<'_, HashMap<String, V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the value of an object.
    pub fn insert(&self, uid: &str, value: V) {
        self.lock().insert(uid.to_owned(), value);
    }

    /// Removes the value of an object.
    pub fn remove(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// Removes the values of all objects but these.
    pub fn retain(&self, alive: &HashSet<String>) {
        self.lock().retain(|uid, _| alive.contains(uid));
    }
}

impl<V: Clone> ByUid<V> {
    /// Returns the value of an object.
    pub fn get(&self, uid: &str) -> Option<V> {
        self.lock().get(uid).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::ByUid;

    #[test]
    fn only_the_entries_of_live_objects_are_retained() {
        let map = ByUid::default();
        map.insert("a", 1);
        map.insert("b", 2);
        map.retain(&["b".to_owned()].into());
        assert_eq!((map.get("a"), map.get("b")), (None, Some(2)));
        map.remove("b");
        assert!(map.lock().is_empty());
    }
}
