//! Decimals as text: how gates are written and numbers are shown. Pure.
//!
//! The API has no floats: its decimals are strings, so that no reader rounds them. The schema bounds only their length.
//! Each field has a CEL rule for the format, because the API server reports a failed CEL rule with its message, but a
//! failed pattern with a regular expression.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// The most digits on each side of the point that are read.
pub(crate) const MAX_DIGITS: usize = 18;
/// The longest decimal: a minus, digits, the point, digits.
const MAX_LENGTH: usize = 1 + MAX_DIGITS + 1 + MAX_DIGITS;
/// The most decimals that are shown.
const DECIMALS: usize = 6;
const UNIT: f64 = 1e6;

/// A decimal number as text, such as `0.95`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Decimal(pub String);

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl JsonSchema for Decimal {
    fn schema_name() -> Cow<'static, str> {
        "Decimal".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": MAX_LENGTH })
    }
}

/// The direction in which a number is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To a number that is not greater.
    Down,
    /// To a number that is not less.
    Up,
}

impl Rounding {
    /// Returns the number with at most six decimals and without trailing zeros.
    pub fn show(self, number: f64) -> String {
        // Use the nearest decimal if it is the number itself: 0.95 · 10⁶ is not an integer as a float.
        let nearest = (number * UNIT).round() / UNIT;
        let rounded = match self {
            _ if nearest.to_bits() == number.to_bits() => nearest,
            Self::Down => (number * UNIT).floor() / UNIT,
            Self::Up => (number * UNIT).ceil() / UNIT,
        };
        let text = format!("{rounded:.DECIMALS$}");
        let text = text.trim_end_matches('0').trim_end_matches('.');
        if text == "-0" { "0".to_owned() } else { text.to_owned() }
    }
}

/// Reads a plain decimal such as `0.95`, without an exponent or a plus sign; words such as `NaN` are refused.
pub(crate) fn parse(text: &str) -> Option<f64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let plain = |part: &str| (1..=MAX_DIGITS).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
    if plain(whole) && plain(fraction) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_shown_plainly() {
        for (number, down, up) in [
            (0.95, "0.95", "0.95"),
            (1.0, "1", "1"),
            (0.0, "0", "0"),
            (-0.0, "0", "0"),
            (2.0 / 3.0, "0.666666", "0.666667"),
            (0.949_999_999, "0.949999", "0.95"),
            (1e-9, "0", "0.000001"),
        ] {
            assert_eq!((Rounding::Down.show(number).as_str(), Rounding::Up.show(number).as_str()), (down, up));
        }
    }

    #[test]
    fn only_plain_decimals_are_read() {
        for text in
            ["NaN", "nan", "inf", "1e-3", "+0.5", ".5", "5.", "", "-", "0,95", "95%", " 0.5", "0x1", "1_000", "٣"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse("0.95"), Some(0.95));
        assert_eq!(parse("-1"), Some(-1.0));
    }

    proptest! {
        #[test]
        fn bounds_are_rounded_outwards(number in 0.0_f64..=1.0) {
            let down: f64 = Rounding::Down.show(number).parse().expect("a decimal");
            let up: f64 = Rounding::Up.show(number).parse().expect("a decimal");
            prop_assert!(down <= number && number <= up && up - down < 1.1e-6);
            prop_assert!(parse(&Rounding::Down.show(number)).is_some());
        }
    }
}
