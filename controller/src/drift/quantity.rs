//! Quantities of resources, such as `500m`, `1Gi` or `2e3`.

/// Returns a quantity in billionths, or `None` if the text is not a quantity or exceeds the range.
pub(super) fn quantity(text: &str) -> Option<i128> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if number.is_empty() || fraction.len() > 9 {
        return None;
    }
    let billionths: i128 = format!("{whole}{fraction:0<9}").parse().ok()?;
    let small = |divisor: i128| (billionths % divisor == 0).then_some(billionths / divisor);
    let scale: i128 = match suffix {
        "n" => return small(1_000_000_000),
        "u" => return small(1_000_000),
        "m" => return small(1000),
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        exponent => 10i128.checked_pow(exponent.strip_prefix(['e', 'E'])?.parse().ok()?)?,
    };
    billionths.checked_mul(scale)
}

#[cfg(test)]
#[cfg(test)]
mod tests {
    use super::quantity;

    #[test]
    fn quantities_are_equal_in_every_form() {
        for (a, b) in [
            ("1", "1000m"),
            ("1Gi", "1024Mi"),
            ("0.5", "500m"),
            ("2e3", "2k"),
            ("1.5Gi", "1536Mi"),
            ("100000u", "100m"),
        ] {
            assert_eq!(quantity(a).unwrap(), quantity(b).unwrap(), "{a} {b}");
        }
        assert_ne!(quantity("1G"), quantity("1Gi"));
        for bad in ["", "x", "1x", "1.1.1", "--1"] {
            assert_eq!(quantity(bad), None, "{bad}");
        }
    }
}
