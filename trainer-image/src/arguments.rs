//! Arguments that several commands share, and their parsers, whose errors name the allowed values. Pure.

use std::{fmt, net::SocketAddr, ops::RangeInclusive, path::PathBuf};

use codex_configs::MAX_SEED;
use jiff::{SignedDuration, Timestamp};

/// How a command prints its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines for people.
    Text,
    /// JSON for programs.
    Json,
}

/// Parses a seed: a whole number that JSON carries exactly.
///
/// # Errors
/// The allowed values.
pub fn seed(text: &str) -> Result<u64, String> {
    whole(0..=MAX_SEED)(text)
}

/// Returns a parser of whole numbers in a range.
pub fn whole<T: TryFrom<u64>>(range: RangeInclusive<u64>) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| match range.clone().into_inner() {
            (least, u64::MAX) => format!("write a whole number, at least {least}"),
            (least, most) => format!("write a whole number from {least} to {most}"),
        })
    }
}

/// Returns a parser of finite numbers; `right` names the allowed ones, which the caller checks.
pub fn number(right: &'static str) -> impl Fn(&str) -> Result<f64, String> + Clone {
    move |text| text.parse().ok().filter(|number: &f64| number.is_finite()).ok_or_else(|| right.to_owned())
}

/// Parses an address to listen on.
///
/// # Errors
/// The expected form.
pub fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write an IP address and a port, such as 127.0.0.1:9464".to_owned())
}

/// Parses `NAME=FILE`.
///
/// # Errors
/// The expected form.
pub fn named_file(text: &str) -> Result<(String, PathBuf), String> {
    name_and_file(text).ok_or_else(|| "write NAME=FILE".to_owned())
}

/// Returns a parser of the name and the file of results that gates compare with, as `{name}=FILE`.
pub fn reference(name: &'static str) -> impl Fn(&str) -> Result<(String, PathBuf), String> + Clone {
    move |text| name_and_file(text).ok_or_else(|| format!("write {name}=FILE, such as before=out/before/outcomes.json"))
}

fn name_and_file(text: &str) -> Option<(String, PathBuf)> {
    let (name, path) = text.split_once('=').filter(|(name, path)| !name.is_empty() && !path.is_empty())?;
    Some((name.to_owned(), path.into()))
}

/// A duration, shown as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duration(pub SignedDuration);

/// Units of a duration with their seconds, the largest first.
const UNITS: [(char, i64); 4] = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (unit, length) = UNITS.into_iter().find(|(_, length)| seconds % length == 0).unwrap_or(('s', 1));
        write!(f, "{}{unit}", seconds / length)
    }
}

/// Parses a duration, such as `30d`.
///
/// # Errors
/// The expected form.
pub fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.strip_suffix(UNITS.map(|(unit, _)| unit)).and_then(|number| {
        let (_, length) = UNITS.into_iter().find(|(unit, _)| text.ends_with(*unit))?;
        let number: u32 = number.parse().ok()?;
        Some(Duration(SignedDuration::from_secs(i64::from(number) * length)))
    });
    parsed.ok_or_else(|| "write a whole number and a unit (d, h, m or s), such as 30d or 12h".to_owned())
}

/// Parses a time.
///
/// # Errors
/// The expected form.
pub fn timestamp(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| "write a time as RFC 3339, such as 2026-11-28T09:00:00Z".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_shown() {
        for text in ["30d", "12h", "45m", "59s", "0d"] {
            assert_eq!(duration(text).unwrap().to_string(), text);
        }
        assert_eq!(duration("48h").unwrap().to_string(), "2d");
        assert_eq!(duration("4294967295d").unwrap().0.as_secs(), 4_294_967_295 * 86_400);
        for text in ["", "d", "1", "1y", "-1d", "1.5h", "4294967296d", "é"] {
            assert!(duration(text).unwrap_err().contains("such as 30d"), "{text}");
        }
        assert!(timestamp("2026-11-28T09:00:00Z").is_ok() && timestamp("yesterday").is_err());
    }

    #[test]
    fn a_named_file_has_both_parts() {
        assert_eq!(named_file("mine=a=b").unwrap(), ("mine".to_owned(), "a=b".into()));
        for text in ["mine", "=a", "mine="] {
            assert_eq!(named_file(text).unwrap_err(), "write NAME=FILE", "{text}");
            let told = reference("EVALUATION")(text).unwrap_err();
            assert_eq!(told, "write EVALUATION=FILE, such as before=out/before/outcomes.json", "{text}");
        }
        assert!(reference("EVALUATION")("a=b").is_ok());
    }

    #[test]
    fn refusals_name_the_allowed_values() {
        assert_eq!(whole::<u16>(1..=10)("10"), Ok(10));
        for text in ["1e3", "", "-1", "11", "18446744073709551616"] {
            assert_eq!(whole::<u16>(1..=10)(text).unwrap_err(), "write a whole number from 1 to 10");
        }
        assert_eq!(whole::<u64>(1..=u64::MAX)("0").unwrap_err(), "write a whole number, at least 1");
        assert_eq!(number("write a share")("1e-3"), Ok(0.001));
        for text in ["", "hot", "nan", "inf", "1,5"] {
            assert_eq!(number("write a share")(text).unwrap_err(), "write a share");
        }
        assert!(socket_address("[::1]:0").is_ok());
        assert!(socket_address("localhost:0").unwrap_err().contains("such as 127.0.0.1:9464"));
    }
}
