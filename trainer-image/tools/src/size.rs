//! Sizes on the command line, such as `500M`. Pure.

use std::fmt;

/// A number of bytes, shown as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// Units with their bytes, the largest first.
const UNITS: [(char, u64); 4] = [('T', 1 << 40), ('G', 1 << 30), ('M', 1 << 20), ('K', 1 << 10)];

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.into_iter().find(|(_, size)| self.0 >= *size && self.0.is_multiple_of(*size)) {
            Some((unit, size)) => write!(f, "{}{unit}", self.0 / size),
            None => write!(f, "{}", self.0),
        }
    }
}

/// Parses a size: bytes, or a number with K, M, G or T (1024 each), as in `500M`; `500Mi` is the same.
///
/// # Errors
/// The expected form.
pub fn size(text: &str) -> Result<Size, String> {
    let written = text.strip_suffix('i').filter(|text| text.ends_with(UNITS.map(|(unit, _)| unit))).unwrap_or(text);
    let unit = UNITS.into_iter().find(|(unit, _)| written.ends_with(*unit));
    let (digits, factor) =
        unit.map_or((written, 1), |(unit, factor)| (written.strip_suffix(unit).unwrap_or(written), factor));
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.parse::<u64>().ok().filter(|_| plain).and_then(|number| number.checked_mul(factor));
    number.map(Size).ok_or_else(|| "write a whole number of bytes, or one with K, M, G or T, such as 500M".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, size) in [("0", 0), ("17", 17), ("500M", 500 << 20), ("1Gi", 1 << 30), ("2K", 2048), ("3T", 3 << 40)]
        {
            assert_eq!(super::size(text), Ok(Size(size)), "{text}");
        }
        assert_eq!(
            [Size(2048), Size(1 << 30), Size(17), Size(0)].map(|size| size.to_string()),
            ["2K", "1G", "17", "0"]
        );
        for text in ["", "M", "i", "-1", "1.5G", "1MM", "99999999999T", "1e3", "+1"] {
            assert!(size(text).unwrap_err().contains("such as 500M"), "{text}");
        }
    }
}
