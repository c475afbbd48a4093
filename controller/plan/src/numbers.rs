//! Conversion of reported numbers to the numbers of the API. Pure.

/// Returns a count as an integer of the API.
pub(crate) fn count(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Returns a decimal with that many places; `None` if the number is not finite or too large for a status.
pub(crate) fn decimal(number: f64, places: usize) -> Option<String> {
    (number.is_finite() && number.abs() < 1e15).then(|| format!("{number:.places$}"))
}

#[cfg(test)]
mod tests {
    use super::{count, decimal};

    #[test]
    fn numbers_fit() {
        assert_eq!(count(u64::MAX), i64::MAX);
        assert_eq!(decimal(1.312_68, 4).as_deref(), Some("1.3127"));
        assert_eq!([f64::NAN, f64::INFINITY, 1e300].map(|number| decimal(number, 4)), [None, None, None]);
    }
}
