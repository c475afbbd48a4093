//! Parsers of arguments that several commands share. Pure.

use codex_configs::MAX_SEED;

/// Parses a seed: a whole number that JSON carries exactly.
///
/// # Errors
/// The values that are allowed.
pub(crate) fn seed(text: &str) -> Result<u64, String> {
    let seed = text.parse().ok().filter(|seed| *seed <= MAX_SEED);
    seed.ok_or_else(|| format!("write a whole number from 0 to {MAX_SEED}"))
}
