//! Checks that cannot run here: each is reported on standard error, and fails the test where skips are forbidden.

use std::{ffi::OsStr, io::Write as _};

use codex_cluster::Target;

/// Forbids skips when it is set to anything but the empty string. `make test` sets it when it runs as CI does.
const FORBID: &str = "CODEX_TESTS_FORBID_SKIPS";

/// Reports that a check is skipped on this cluster.
///
/// A cluster other than the local one shows neither its audit log nor the files of its volumes, and no change to the
/// environment would help. On the local cluster every check can run.
///
/// # Panics
/// If `CODEX_TESTS_FORBID_SKIPS` is set and the cluster is the local one.
#[allow(clippy::panic, reason = "a check that could run and did not fails its test")]
pub fn skip(target: &Target, what: &str, why: &str) {
    let line = format!("SKIPPED: {what}: {why}");
    assert!(!fails(target, std::env::var_os(FORBID).as_deref()), "{line}; {FORBID} forbids skips");
    // The test harness hides what a passing test prints with `eprintln!`.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Returns whether a skip on `target` fails the test, given the value of the variable.
fn fails(target: &Target, forbid: Option<&OsStr>) -> bool {
    *target == Target::Local && forbid.is_some_and(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_fails_only_where_the_check_could_run_and_skips_are_forbidden() {
        let current = Target::Current { context: None, registry: "localhost:5000".to_owned() };
        let forbid = Some(OsStr::new("1"));
        assert!(fails(&Target::Local, forbid));
        assert!(!fails(&Target::Local, None));
        assert!(!fails(&Target::Local, Some(OsStr::new(""))), "an empty variable counts as absent");
        assert!(!fails(&current, forbid));
    }
}
