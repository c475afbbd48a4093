//! Signatures that are not finished, or not recorded yet, by the digest of what they sign. In memory: after a restart they are made anew.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use codex_provenance::Sha256;
use codex_signing::services::Draft;
use tokio::time::Instant;

/// Maximum number of statements that are remembered. More only means that one is signed again.
const MOST: usize = 256;

/// How far the signature of a statement is.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) draft: Option<Draft>,
    /// When the trusted root refused the finished bundle.
    pub(super) refused: Option<Instant>,
    pub(super) finished: Option<Vec<u8>>,
}

/// The signatures of all statements that are being signed.
#[derive(Default)]
pub struct Unfinished(Mutex<BTreeMap<Sha256, Arc<tokio::sync::Mutex<Slot>>>>);

impl Unfinished {
    /// Returns the slot of a statement.
    pub(super) fn of(&self, statement: Sha256) -> Arc<tokio::sync::Mutex<Slot>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST && !all.contains_key(&statement) {
            // Those that nobody waits for.
            all.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        Arc::clone(all.entry(statement).or_default())
    }

    /// Forgets a statement. Those who hold its slot keep the bundle.
    pub(super) fn forget(&self, statement: Sha256) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&statement);
    }
}
