//! Quantities of Kubernetes as numbers. Pure.

use serde_json::Value;

/// Suffixes with their factors, the longer first.
const SUFFIXES: [(&str, f64); 15] = [
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("Ei", 1_152_921_504_606_846_976.0),
    ("n", 1e-9),
    ("u", 1e-6),
    ("m", 1e-3),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
];

/// Returns a quantity in its unit, cores or bytes; `None` if it is no finite number with a known suffix.
pub(super) fn parse(quantity: &Value) -> Option<f64> {
    let text = match quantity {
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let (number, factor) = SUFFIXES
        .into_iter()
        .find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, factor)))
        .unwrap_or((text.as_str(), 1.0));
    // Texts such as `inf` and `nan` are numbers of Rust alone.
    let plain = number.starts_with(|first: char| first.is_ascii_digit() || ['.', '+', '-'].contains(&first));
    number.parse::<f64>().ok().filter(|number| plain && number.is_finite()).map(|number| number * factor)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quantities_mean_what_they_mean_to_kubernetes() {
        let close = |quantity: Value, expected: f64| {
            let found = parse(&quantity).unwrap();
            assert!((found - expected).abs() <= 1e-9 * expected.abs(), "{quantity}: {found}");
        };
        close(json!("500m"), 0.5);
        close(json!("2"), 2.0);
        close(json!(2), 2.0);
        close(json!("1.5Gi"), 1_610_612_736.0);
        close(json!("1G"), 1e9);
        close(json!("2e3"), 2000.0);
        close(json!("1E"), 1e18);
        for wrong in [json!("1GB"), json!("half"), json!("inf"), json!(""), json!(null), json!("2 Gi")] {
            assert_eq!(parse(&wrong), None, "{wrong}");
        }
    }
}
