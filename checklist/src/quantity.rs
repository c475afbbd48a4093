//! Quantities of Kubernetes, such as `500m`, `1.5Gi` or `2e3`, compared exactly. Pure.

use std::fmt;

use serde_json::Value;

/// Billionths in a unit: the finest that Kubernetes keeps.
const UNIT: i128 = 1_000_000_000;
/// The most digits of a number that are read.
const MAX_DIGITS: usize = 24;
/// The largest exponent that is read.
const MAX_EXPONENT: u32 = 18;
/// Suffixes of memory and storage with their factors, the larger first.
const BINARY: [(&str, i128); 4] = [("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];

/// A quantity in its unit, cores or bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity(i128);

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// Returns the quantity of a whole number.
    pub fn whole(number: u64) -> Self {
        Self(i128::from(number) * UNIT)
    }

    /// Returns the quantity that a value of an object has; `None` if the value is not a valid quantity.
    pub fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Self::parse(text),
            Value::Number(number) => Self::parse(&number.to_string()),
            _ => None,
        }
    }

    /// Returns the quantity of a text; `None` if it is invalid or out of range. Fractions finer than a billionth are rounded up, as
    /// Kubernetes rounds them.
    pub fn parse(text: &str) -> Option<Self> {
        let end = text.find(|letter: char| !(letter.is_ascii_digit() || matches!(letter, '.' | '+' | '-')));
        let (number, suffix) = text.split_at(end.unwrap_or(text.len()));
        let (sign, digits) = match number.strip_prefix('-') {
            Some(digits) => (-1, digits),
            None => (1, number.strip_prefix('+').unwrap_or(number)),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let all = format!("{whole}{fraction}");
        if all.is_empty() || all.len() > MAX_DIGITS || !all.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let (times, by) = factor(suffix)?;
        let number: i128 = all.parse().ok()?;
        let dividend = number.checked_mul(UNIT)?.checked_mul(times)?;
        let divisor = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?.checked_mul(by)?;
        let rounded = dividend / divisor + i128::from(dividend % divisor != 0);
        Some(Self(sign * rounded))
    }

    /// Returns the quantity that many times.
    #[must_use]
    pub fn times(self, count: i64) -> Self {
        Self(self.0.saturating_mul(i128::from(count)))
    }

    /// Returns the sum.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Returns the difference, and nothing if the other one is larger.
    #[must_use]
    pub fn less(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0).max(0))
    }

    /// Whether a limit is at most `ratio` times a request, without division. `None` without a request.
    pub fn is_within(limit: Self, request: Self, ratio: Self) -> Option<bool> {
        if request.0 <= 0 {
            return None;
        }
        Some(limit.0.checked_mul(UNIT)? <= request.0.checked_mul(ratio.0)?)
    }

    /// Returns the quantity as a resource of this name is written: memory and storage with a binary suffix where one fits.
    pub fn shown(self, name: &str) -> String {
        let binary = ["memory", "storage"].iter().any(|part| name.contains(part));
        let fits = |factor: &i128| self.0 != 0 && self.0 % (factor * UNIT) == 0;
        match BINARY.iter().find(|(_, factor)| binary && fits(factor)) {
            Some((suffix, factor)) => format!("{}{suffix}", self.0 / (factor * UNIT)),
            None => self.to_string(),
        }
    }
}

/// Returns the factor of a suffix, as a numerator and a denominator.
fn factor(suffix: &str) -> Option<(i128, i128)> {
    Some(match suffix {
        "n" => (1, UNIT),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "" => (1, 1),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (UNIT, 1),
        "T" => (1_000 * UNIT, 1),
        "P" => (1_000_000 * UNIT, 1),
        "E" => (UNIT * UNIT, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let exponent: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = Some(exponent.unsigned_abs()).filter(|power| *power <= MAX_EXPONENT);
            let power = 10_i128.checked_pow(power?)?;
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    })
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let (whole, fraction) = (self.0.abs() / UNIT, self.0.abs() % UNIT);
        if fraction == 0 {
            return write!(f, "{sign}{whole}");
        }
        write!(f, "{sign}{whole}.{}", format!("{fraction:09}").trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::Quantity;

    #[test]
    fn quantities_are_equal_in_every_form() {
        for (one, other) in [
            ("1", "1000m"),
            ("1Gi", "1024Mi"),
            ("0.5", "500m"),
            ("2e3", "2k"),
            ("1.5Gi", "1536Mi"),
            ("100000u", "100m"),
            ("1E", "1e18"),
            ("1Ei", "1024Pi"),
            ("25e-2", "250m"),
            ("+1", "1."),
            (".5", "500m"),
            ("0.1n", "1n"),
            ("0.5m", "500u"),
        ] {
            assert_eq!(Quantity::parse(one).unwrap(), Quantity::parse(other).unwrap(), "{one} {other}");
        }
        assert_ne!(Quantity::parse("1G"), Quantity::parse("1Gi"));
        // As floats they would be equal.
        assert!(Quantity::parse("9007199254740993") > Quantity::parse("9007199254740992"));
        assert_eq!(Quantity::of(&json!(2)), Quantity::of(&json!("2")));
        for wrong in [json!("1GB"), json!("half"), json!("inf"), json!(""), json!(null), json!("2 Gi"), json!("--1")] {
            assert_eq!(Quantity::of(&wrong), None, "{wrong}");
        }
        for wrong in ["1.1.1", ".", "-", "1e", "1e99", "e3", "1-2", "9999999999999999999999999"] {
            assert_eq!(Quantity::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn quantities_are_shown_as_they_are_written() {
        let shown = |text: &str, name: &str| Quantity::parse(text).unwrap().shown(name);
        assert_eq!(shown("1536Mi", "requests.memory"), "1536Mi");
        assert_eq!(shown("2048Mi", "limits.memory"), "2Gi");
        assert_eq!(shown("1000", "memory"), "1000");
        assert_eq!(shown("1500m", "cpu"), "1.5");
        assert_eq!(shown("0", "memory"), "0");
        assert_eq!(shown("-250m", "cpu"), "-0.25");
    }

    #[test]
    fn ratios_are_compared_without_division() {
        let of = |text: &str| Quantity::parse(text).unwrap();
        assert_eq!(Quantity::is_within(of("3"), of("1"), of("3")), Some(true));
        assert_eq!(Quantity::is_within(of("3001m"), of("1"), of("3")), Some(false));
        assert_eq!(Quantity::is_within(of("3"), Quantity::ZERO, of("3")), None);
    }

    proptest! {
        #[test]
        fn texts_are_read_back(billionths in 0_i64..i64::MAX) {
            let text = format!("{billionths}n");
            let quantity = Quantity::parse(&text).unwrap();
            prop_assert_eq!(Quantity::parse(&quantity.to_string()), Some(quantity));
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = Quantity::parse(&text);
        }
    }
}
