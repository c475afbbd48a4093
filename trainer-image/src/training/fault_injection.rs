//! Fault injection for tests: a kill in the middle of a write. The thread leaves the same remains as a killed process: half a line,
//! half a file, a directory under its temporary name.

use std::{
    cell::RefCell,
    io::Write,
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Panic payload of an injected kill: the thread does and reports nothing after it.
pub(crate) struct Killed;

/// Number of writes that are left to a thread and the threads that it starts.
pub(crate) type Left = Arc<AtomicU64>;

thread_local! {
    static LEFT: RefCell<Option<Left>> = const { RefCell::new(None) };
}

/// Sets the number of writes that are left to this thread.
pub(crate) fn set(left: Option<Left>) {
    LEFT.set(left);
}

/// Returns the counter of this thread, for threads that it starts.
pub(crate) fn left() -> Option<Left> {
    LEFT.with_borrow(Clone::clone)
}

/// Counts a write. The last one writes half of `bytes` to `out` and ends the thread.
pub(crate) fn count(out: &mut impl Write, bytes: &[u8]) {
    if left().is_some_and(|left| left.fetch_sub(1, Ordering::Relaxed) == 1) {
        drop(out.write_all(&bytes[..bytes.len() / 2]));
        resume_unwind(Box::new(Killed));
    }
}
