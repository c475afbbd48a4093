//! Facts about versions of objects. Two objects with the same uid and resource version are equal, so what was once found out about
//! one need not be computed again: most reconciliations find every child as it was. A version that changed a status only has the
//! content of the one before.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
};

use kube::Resource;
use lru::LruCache;

/// The most facts that are remembered, each some dozen bytes.
const FACTS: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 15) - 1);

/// The facts that were used last, by a keyed hash that nobody outside can aim at.
#[derive(Debug)]
pub struct Known {
    facts: Mutex<LruCache<u64, ()>>,
    hasher: RandomState,
}

impl Default for Known {
    fn default() -> Self {
        Self { facts: Mutex::new(LruCache::new(FACTS)), hasher: RandomState::new() }
    }
}

impl Known {
    /// Returns whether a fact about the present content of `object` holds: from memory, or else by `check`. `fact` tells it from
    /// all other facts about that version. Only facts that hold are remembered.
    pub fn holds<K: Resource>(&self, object: &K, fact: impl Hash, check: impl FnOnce() -> bool) -> bool {
        let meta = object.meta();
        let (Some(uid), Some(version)) = (&meta.uid, content(object).or(meta.resource_version.as_ref())) else {
            return check();
        };
        let key = self.hasher.hash_one((uid, version, fact));
        // A thread that panicked while it held the lock left whole entries, so the poison is ignored.
        let facts = || self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        if facts().get(&key).is_some() {
            return true;
        }
        let holds = check();
        if holds {
            facts().put(key, ());
        }
        holds
    }
}

/// Returns the version in which the present content of a cached object came: everything but its status. `None` for an object that does
/// not come from a cache.
pub fn content<K: Resource>(object: &K) -> Option<&String> {
    object.meta().self_link.as_ref()
}

/// Sets the version in which the present content of an object came. Only caches do, for each object that they store. The mark travels
/// with the object through plans and packing in `metadata.selfLink`, which API servers no longer fill and nothing else reads; a wrapper
/// around every cached object would be needed to have it elsewhere.
pub fn set_content<K: Resource>(object: &mut K, version: Option<String>) {
    object.meta_mut().self_link = version;
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::batch::v1::Job;
    use serde_json::json;

    use super::Known;

    #[test]
    fn a_fact_is_remembered_for_one_version_and_only_if_it_holds() {
        let known = Known::default();
        let job = |version: Option<&str>| -> Job {
            serde_json::from_value(json!({"metadata": {"uid": "a", "resourceVersion": version}})).unwrap()
        };
        let (first, second, unversioned) = (job(Some("1")), job(Some("2")), job(None));
        assert!(!known.holds(&first, "x", || false), "a fact that does not hold is not remembered");
        assert!(known.holds(&first, "x", || true));
        assert!(known.holds(&first, "x", || panic!("it is remembered")));
        assert!(!known.holds(&first, "y", || false), "another fact");
        assert!(!known.holds(&second, "x", || false), "another version");
        assert!(known.holds(&unversioned, "x", || true) && !known.holds(&unversioned, "x", || false));
    }
}
