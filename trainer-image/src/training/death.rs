//! For tests: kills that fall into the middle of a write. A thread that dies leaves what a killed process would: half a line, half
//! a file, a directory under its temporary name.

use std::{
    cell::RefCell,
    io::Write,
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// A kill, as far as a thread can have one: nothing after it is done, nothing is said.
pub(super) struct Killed;

/// Writes that a thread, and those that it starts, will live to see.
pub(super) type Left = Arc<AtomicU64>;

thread_local! {
    static LEFT: RefCell<Option<Left>> = const { RefCell::new(None) };
}

/// Says how many writes are left to this thread.
pub(super) fn set(left: Option<Left>) {
    LEFT.set(left);
}

/// What was said, for a thread that this one starts.
pub(super) fn left() -> Option<Left> {
    LEFT.with_borrow(Clone::clone)
}

/// Counts a write. The last one writes half of `bytes` to `out`, and is the end of the thread.
pub(super) fn count(out: &mut impl Write, bytes: &[u8]) {
    if left().is_some_and(|left| left.fetch_sub(1, Ordering::Relaxed) == 1) {
        drop(out.write_all(&bytes[..bytes.len() / 2]));
        resume_unwind(Box::new(Killed));
    }
}
