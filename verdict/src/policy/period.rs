//! Periods in policies, such as `72h` or `7d12h`. Pure.

/// The longest text of a period.
pub const MAX_PERIOD: usize = 24;
/// The form of a period as a regular expression.
pub(crate) const PATTERN: &str = "^([0-9]{1,4}d)?([0-9]{1,4}h)?([0-9]{1,4}m)?([0-9]{1,4}s)?$";
/// What a period must be.
pub(crate) const FORM: &str = "days, hours, minutes and seconds in this order, such as 7d, 72h or 1h30m";

/// Reads a period as seconds.
///
/// # Errors
/// A sentence that says what a period must be.
pub fn period(text: &str) -> Result<i64, String> {
    let refuse = || format!("{text:?} is not a period: use {FORM}");
    let mut rest = text;
    let mut seconds = 0;
    for (unit, each) in [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)] {
        let Some((number, after)) = rest.split_once(unit) else { continue };
        if number.is_empty() || number.len() > 4 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(refuse());
        }
        seconds += each * number.parse::<i64>().map_err(|_| refuse())?;
        rest = after;
    }
    if text.is_empty() || !rest.is_empty() { Err(refuse()) } else { Ok(seconds) }
}

#[cfg(test)]
mod tests {
    use super::period;

    #[test]
    fn periods_are_read_and_others_refused() {
        for (text, seconds) in [("72h", 259_200), ("7d", 604_800), ("1h30m", 5_400), ("1d1s", 86_401), ("0s", 0)] {
            assert_eq!(period(text), Ok(seconds), "{text}");
        }
        for text in ["", "72", "h", "1.5h", "-1h", "30m1h", "1h 30m", "12345h", "1w", "+1h"] {
            let said = period(text).unwrap_err();
            assert!(said.contains("such as 7d, 72h or 1h30m"), "{text}: {said}");
        }
    }
}
