//! Composed configurations. Composing parses YAML, which costs more than the rest of a plan. Equal inputs give equal configurations,
//! so the latest ones are remembered: a memory changes no plan.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
};

use codex_configs::{Resolved, Spec};
use codex_provenance::Sha256;
use lru::LruCache;
use serde::Serialize;

/// How many configurations of a kind are remembered, each some kilobytes.
const REMEMBERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(255);

/// A composed configuration with the file that pods mount.
#[derive(Debug)]
pub(crate) struct Composed<T> {
    pub(crate) resolved: Resolved<T>,
    /// The resolved file, or why YAML cannot represent a value.
    pub(crate) file: Result<String, String>,
}

impl<T: Spec> From<Resolved<T>> for Composed<T> {
    fn from(resolved: Resolved<T>) -> Self {
        Self { file: resolved.to_yaml().map_err(|why| why.to_string()), resolved }
    }
}

/// A configuration, or one sentence that says what to change.
pub(crate) type Outcome<T> = Result<Arc<Composed<T>>, String>;

/// The latest configurations of a kind, by the digest of the inputs.
pub(crate) struct Memory<T>(Mutex<LruCache<Sha256, Outcome<T>>>);

impl<T: Spec> Memory<T> {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(LruCache::new(REMEMBERED)))
    }

    /// Returns what `compose` makes of the `inputs`, which are all that it depends on.
    ///
    /// # Errors
    /// Those of `compose`.
    pub(crate) fn of(
        &self,
        inputs: &impl Serialize,
        compose: impl FnOnce() -> Result<Resolved<T>, String>,
    ) -> Outcome<T> {
        let composed = || compose().map(|resolved| Arc::new(resolved.into()));
        // What JSON cannot represent is composed each time.
        let Ok(inputs) = serde_json::to_vec(inputs) else { return composed() };
        let key = Sha256::of(inputs);
        // A thread that panicked while it held the lock left whole entries, so the poison is ignored.
        let remembered = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = remembered().get(&key) {
            return known.clone();
        }
        let new = composed();
        remembered().put(key, new.clone());
        new
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use codex_configs::{Data, Synthetic, Training, compose_training};

    use super::{Memory, REMEMBERED};

    #[test]
    fn equal_inputs_are_composed_once_and_old_ones_are_forgotten() {
        let memory = Memory::<Training>::new();
        let composed = Cell::new(0);
        let of = |seed: u64| {
            memory.of(&("cot-starter", seed), || {
                composed.set(composed.get() + 1);
                let task = Synthetic { task: "arithmetic".to_owned(), seed: 1, count: 1_000 };
                let data = vec![Data { name: "train".to_owned(), sha256: None, synthetic: Some(task) }];
                compose_training("cot-starter", &[], None, seed, data).map_err(|why| why.to_string())
            })
        };
        let (first, again, other) = (of(1).unwrap(), of(1).unwrap(), of(2).unwrap());
        assert_eq!(composed.get(), 2);
        assert_eq!(first.resolved, again.resolved);
        assert_ne!(first.resolved.digest(), other.resolved.digest());
        let refused = || memory.of(&"refused", || Err("why".to_owned()));
        assert_eq!((refused().unwrap_err(), refused().unwrap_err()), ("why".to_owned(), "why".to_owned()));
        for seed in 10..10 + REMEMBERED.get() as u64 {
            of(seed).unwrap();
        }
        let before = composed.get();
        of(1).unwrap();
        assert_eq!(composed.get(), before + 1, "the oldest was forgotten");
    }
}
