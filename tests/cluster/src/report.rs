//! The output while the cluster starts: one line per step, with its seconds.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use crate::Result;

/// The interval of progress lines when the output is not a terminal.
const QUIET: Duration = Duration::from_secs(15);

/// Prints one line.
pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}

/// Runs a step, and prints its name and seconds when it is done.
///
/// # Errors
/// If the step fails.
pub(crate) fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    let done = work()?;
    eprintln!("  {name:<28} {:>6.1} s", began.elapsed().as_secs_f64());
    Ok(done)
}

/// A line that is rewritten on a terminal, and repeated at intervals elsewhere.
pub(crate) struct Progress {
    name: String,
    began: Instant,
    shown: Option<Instant>,
    terminal: bool,
}

impl Progress {
    /// Starts the clock of a long step.
    pub(crate) fn start(name: &str) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { name: name.to_owned(), began: Instant::now(), shown: None, terminal }
    }

    /// Shows the progress of the step.
    pub(crate) fn update(&mut self, state: &str) {
        let pause = if self.terminal { Duration::from_millis(200) } else { QUIET };
        if self.shown.is_some_and(|shown| shown.elapsed() < pause) {
            return;
        }
        self.shown = Some(Instant::now());
        let seconds = self.began.elapsed().as_secs();
        if self.terminal {
            eprint!("\r\x1b[K  {:<28} {seconds:>4} s  {state}", self.name);
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("  {:<28} {seconds:>4} s  {state}", self.name);
        }
    }

    /// Ends the line.
    pub(crate) fn finish(self, state: &str) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        eprintln!("{clear}  {:<28} {:>6.1} s  {state}", self.name, self.began.elapsed().as_secs_f64());
    }
}
