//! Whether standard error is a terminal that shows colours and progress bars. Reads the environment.

use std::io::IsTerminal as _;

/// Returns whether standard error is a terminal that can move its cursor. `TERM=dumb`, and a terminal without `TERM`, cannot:
/// they get plain lines, as a file does.
pub(crate) fn is_interactive() -> bool {
    std::io::stderr().is_terminal() && moves_cursor(std::env::var_os("TERM").as_deref())
}

fn moves_cursor(term: Option<&std::ffi::OsStr>) -> bool {
    term.is_some_and(|term| !term.is_empty() && term != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dumb_terminals_get_plain_lines() {
        let of = |term: Option<&str>| moves_cursor(term.map(AsRef::as_ref));
        assert!(of(Some("xterm-256color")));
        assert!(!of(Some("dumb")) && !of(Some("")) && !of(None));
    }
}
