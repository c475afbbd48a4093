//! The signals that ask a command to end. Registers signal handlers.

use std::{
    io,
    sync::{Arc, atomic::AtomicBool},
};

use codex_reports::exit;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

/// Returns whether the work should end; checked between any two pieces of work that may take long.
pub type Stop<'a> = &'a (dyn Fn() -> bool + Sync);

/// Returns a flag that SIGTERM and SIGINT set.
///
/// # Errors
/// A handler cannot be registered.
pub fn stop_flag() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    set_on_signals(&stop)?;
    Ok(stop)
}

/// As [`stop_flag`]. A second Ctrl-C ends the process at once, as a failure.
///
/// # Errors
/// As [`stop_flag`].
pub fn stop_flag_or_exit() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    // Handlers run in the order of their registration: the first Ctrl-C does not find the flag set yet.
    flag::register_conditional_shutdown(SIGINT, exit::FAILED, Arc::clone(&stop))?;
    set_on_signals(&stop)?;
    Ok(stop)
}

fn set_on_signals(stop: &Arc<AtomicBool>) -> io::Result<()> {
    for signal in [SIGTERM, SIGINT] {
        flag::register(signal, Arc::clone(stop))?;
    }
    Ok(())
}
