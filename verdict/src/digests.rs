//! Digests of measurements and of the gates that judge them. Pure.

use std::collections::BTreeMap;

use codex_provenance::{DataDigest, GatesDigest, ModelDigest, ReportDigest, Sha256, golden::Golden};
use serde::Serialize;

use crate::{Gate, Measurement};

/// The fields that a report digest covers.
#[derive(Serialize)]
struct Reported<'a> {
    data: &'a BTreeMap<String, DataDigest>,
    #[serde(rename = "goldenTokens", skip_serializing_if = "Option::is_none")]
    golden: Option<&'a Golden>,
    metrics: BTreeMap<&'a str, Measurement>,
    model: ModelDigest,
}

/// Returns the digest of gates: SHA-256 of their canonical JSON (RFC 8785), sorted, because their order decides nothing.
pub fn gates_digest(gates: &[Gate]) -> GatesDigest {
    let mut each: Vec<Vec<u8>> = gates.iter().map(canonical).collect();
    each.sort_unstable();
    GatesDigest(Sha256::of([b"[".as_slice(), &each.join(&b","[..]), b"]"].concat()))
}

/// Returns the digest of a report: SHA-256 of the canonical JSON (RFC 8785) of the model, the data by name, the numbers and the
/// golden tokens, if there are any.
pub fn report_digest(
    model: ModelDigest,
    data: &BTreeMap<String, DataDigest>,
    metrics: &BTreeMap<String, Measurement>,
    golden: Option<&Golden>,
) -> ReportDigest {
    let metrics =
        metrics.iter().map(|(name, measurement)| (name.as_str(), with_finite_numbers(*measurement))).collect();
    ReportDigest(Sha256::of(canonical(&Reported { data, golden, metrics, model })))
}

/// Removes numbers that are not finite: JSON has no NaN and no infinity, so they travel as null and are hashed as null.
fn with_finite_numbers(mut measurement: Measurement) -> Measurement {
    for number in measurement.numbers_mut() {
        *number = number.filter(|number| number.is_finite());
    }
    measurement
}

#[expect(clippy::expect_used, reason = "fails only for floats that are not finite and keys that are not strings")]
pub(crate) fn canonical(value: &impl Serialize) -> Vec<u8> {
    serde_json_canonicalizer::to_vec(value)
        .expect("the numbers of gates are finite, and those of measurements are made so")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gates(texts: &[&str]) -> Vec<Gate> {
        texts.iter().map(|text| text.parse().expect("a gate")).collect()
    }

    #[test]
    fn gates_are_hashed_as_canonical_json() {
        let text = r#"[{"confidence":0.95,"metric":"exact_match","min":0.9},{"max":0.5,"metric":"trace_coverage"}]"#;
        let one = gates(&["exact_match>=0.90@0.95", "trace_coverage<=0.5"]);
        let other = gates(&["trace_coverage<=0.5", "exact_match>=0.9@0.95"]);
        assert_eq!(gates_digest(&one).0, Sha256::of(text));
        assert_eq!(gates_digest(&one), gates_digest(&other));
        assert_ne!(gates_digest(&one), gates_digest(&gates(&["exact_match>=0.91@0.95", "trace_coverage<=0.5"])));
        assert_ne!(gates_digest(&one), gates_digest(&gates(&["exact_match>=0.9@0.95"])));
    }

    #[test]
    fn reports_are_hashed_as_canonical_json() {
        let model = ModelDigest(Sha256::of("model"));
        let data = BTreeMap::from([("problems".to_owned(), DataDigest(Sha256::of("data")))]);
        let metrics = |sum| {
            BTreeMap::from([
                ("exact_match".to_owned(), Measurement::Share { successes: 9, n: 10 }),
                ("trace_coverage".to_owned(), Measurement::Mean { n: 10, sum, sum_of_squares: Some(0.5) }),
            ])
        };
        let text = format!(
            r#"{{"data":{{"problems":"{}"}},"metrics":{{"exact_match":{{"kind":"share","n":10,"successes":9}},"trace_coverage":{{"kind":"mean","n":10,"sum":2,"sum_of_squares":0.5}}}},"model":"{model}"}}"#,
            Sha256::of("data")
        );
        let digest = |sum, golden: Option<&Golden>| report_digest(model, &data, &metrics(sum), golden);
        assert_eq!(digest(Some(2.0), None).0, Sha256::of(text));
        assert_eq!(digest(Some(f64::NAN), None), digest(None, None));
        assert_ne!(digest(Some(2.0), None), digest(None, None));
        let golden = |path: &str| Golden {
            path: path.to_owned(),
            instruction_set: "avx2".to_owned(),
            kernels: 1,
            tolerance: "0.1".to_owned(),
            prompts: Vec::new(),
        };
        let (one, other) = (golden("cpu-f32"), golden("cpu-bf16"));
        assert_ne!(digest(None, Some(&one)), digest(None, None));
        assert_ne!(digest(None, Some(&one)), digest(None, Some(&other)));
    }
}
