//! Writes values with their units, as Grafana does.

use codex_metrics::dashboard::PanelUnit;

/// Returns a value of a panel as text.
pub(super) fn shown(unit: PanelUnit, value: f64) -> String {
    match unit {
        PanelUnit::Number => scaled(value, &["", "K", "M", "G", "T"]),
        PanelUnit::Seconds => seconds(value),
        PanelUnit::Share => format!("{}%", digits(value * 100.0)),
        PanelUnit::PerSecond => format!("{} ops/s", scaled(value, &["", "K", "M", "G", "T"])),
        PanelUnit::Requests => format!("{} req/s", scaled(value, &["", "K", "M", "G", "T"])),
        PanelUnit::Flops => scaled(value, &[" FLOP/s", " kFLOP/s", " MFLOP/s", " GFLOP/s", " TFLOP/s"]),
        PanelUnit::Celsius => format!("{} °C", digits(value)),
        PanelUnit::Watts => scaled(value, &[" W", " kW", " MW"]),
    }
}

/// Returns a stretch of time as minutes and seconds.
pub(super) fn span(seconds: f64) -> String {
    format!("{} min {} s", (seconds / 60.0) as u64, (seconds % 60.0).round() as u64)
}

/// Returns a time since the start of the picture, such as `1:30`.
pub(super) fn clock(seconds: f64) -> String {
    format!("{}:{:02}", (seconds / 60.0) as u64, (seconds % 60.0) as u64)
}

/// Returns a number divided by the largest power of 1,000 that leaves at least 1, with the suffix of that power.
fn scaled(value: f64, suffixes: &[&str]) -> String {
    let mut scaled = value;
    let mut suffixes = suffixes.iter().peekable();
    loop {
        let suffix = suffixes.next().copied().unwrap_or_default();
        // 999.6 is 1,000 with three digits.
        if scaled.abs() < 999.5 || suffixes.peek().is_none() {
            return format!("{}{suffix}", digits(scaled));
        }
        scaled /= 1000.0;
    }
}

/// Returns seconds in the unit that leaves at least 1.
fn seconds(value: f64) -> String {
    const UNITS: [(f64, &str); 7] = [
        (31_536_000.0, "years"),
        (604_800.0, "weeks"),
        (86_400.0, "days"),
        (3600.0, "hours"),
        (60.0, "min"),
        (1.0, "s"),
        (1e-3, "ms"),
    ];
    let found = UNITS.into_iter().find(|(size, _)| value.abs() >= *size);
    match found {
        Some((size, unit)) => format!("{} {unit}", digits(value / size)),
        None if value == 0.0 => "0 s".to_owned(),
        None => format!("{} µs", digits(value * 1e6)),
    }
}

/// Returns a number with three digits, without trailing zeros.
fn digits(value: f64) -> String {
    let before = if value == 0.0 { 1 } else { value.abs().log10().floor() as i32 + 1 };
    // Below a thousandth, a number has a power of ten.
    if before < -3 {
        return format!("{value:.1e}");
    }
    let text = format!("{:.*}", (3 - before).clamp(0, 6) as usize, value);
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_three_digits_and_a_unit() {
        for (unit, value, text) in [
            (PanelUnit::Number, 0.0, "0"),
            (PanelUnit::Number, 3.0, "3"),
            (PanelUnit::Number, 2000.0, "2K"),
            (PanelUnit::Number, 43_210.0, "43.2K"),
            (PanelUnit::Number, -0.25, "-0.25"),
            (PanelUnit::Number, 0.000_012_3, "1.2e-5"),
            (PanelUnit::Number, 0.6 + 1e-16, "0.6"),
            (PanelUnit::Share, 0.9625, "96.2%"),
            (PanelUnit::Share, 1.0, "100%"),
            (PanelUnit::Seconds, 0.0125, "12.5 ms"),
            (PanelUnit::Seconds, 0.0, "0 s"),
            (PanelUnit::Seconds, 2e-5, "20 µs"),
            (PanelUnit::Seconds, 90.0, "1.5 min"),
            (PanelUnit::Seconds, 3.0 * 31_536_000.0, "3 years"),
            (PanelUnit::PerSecond, 1234.0, "1.23K ops/s"),
            (PanelUnit::Requests, 4.5, "4.5 req/s"),
            (PanelUnit::Flops, 3.2e9, "3.2 GFLOP/s"),
            (PanelUnit::Celsius, 61.0, "61 °C"),
            (PanelUnit::Watts, 412.5, "412 W"),
            (PanelUnit::Watts, 1250.0, "1.25 kW"),
        ] {
            assert_eq!(shown(unit, value), text);
        }
        assert_eq!((span(92.4), clock(90.0)), ("1 min 32 s".to_owned(), "1:30".to_owned()));
    }
}
