//! Formats an error with its causes, for messages, reports and logs. Pure.

use std::error::Error;

/// Returns an error and its causes as one line, outermost first. A cause is left out if its effect already contains it.
pub fn chain(error: &dyn Error) -> String {
    chain_until(error, |_| None)
}

/// Formats as [`chain`] does, and ends with the first cause for which `quote` returns a text, as that text.
pub fn chain_until(error: &dyn Error, quote: impl Fn(&(dyn Error + 'static)) -> Option<String>) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let quoted = quote(cause);
        source = if quoted.is_some() { None } else { cause.source() };
        let text = quoted.unwrap_or_else(|| cause.to_string());
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
    }
    line
}
