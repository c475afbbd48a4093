//! Attempts at a run: the lock that lets only the newest attempt write to the run's directory, and the note that each attempt
//! leaves in `writers/` about its progress and its end.

mod error;
mod note;
mod run_lock;

pub use error::LockError;
pub(crate) use note::{AttemptNote, Phase};
pub(crate) use run_lock::{LockHandle, RunLock, newest_note};
