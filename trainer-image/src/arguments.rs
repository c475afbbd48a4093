//! Parsers of arguments that several commands share; their errors name the allowed values. Pure.

use std::{net::SocketAddr, ops::RangeInclusive};

use codex_configs::MAX_SEED;

/// Parses a seed: a whole number that JSON carries exactly.
///
/// # Errors
/// The allowed values.
pub(crate) fn seed(text: &str) -> Result<u64, String> {
    whole(0..=MAX_SEED)(text)
}

/// Returns a parser of whole numbers in a range.
pub(crate) fn whole<T: TryFrom<u64>>(range: RangeInclusive<u64>) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| match range.clone().into_inner() {
            (least, u64::MAX) => format!("write a whole number, at least {least}"),
            (least, most) => format!("write a whole number from {least} to {most}"),
        })
    }
}

/// Parses an address to listen on.
///
/// # Errors
/// The expected form.
pub(crate) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write an IP address and a port, such as 127.0.0.1:9464".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_the_allowed_values() {
        assert_eq!(whole::<u16>(1..=10)("10"), Ok(10));
        for text in ["1e3", "", "-1", "11", "18446744073709551616"] {
            assert_eq!(whole::<u16>(1..=10)(text).unwrap_err(), "write a whole number from 1 to 10");
        }
        assert_eq!(whole::<u64>(1..=u64::MAX)("0").unwrap_err(), "write a whole number, at least 1");
        assert!(socket_address("[::1]:0").is_ok());
        assert!(socket_address("localhost:0").unwrap_err().contains("such as 127.0.0.1:9464"));
    }
}
