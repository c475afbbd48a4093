//! in-toto test result v0.1: the gates that a model passed. Pure.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{check_named, check_text, descriptor};
use crate::{
    digest::Sha256,
    promotion::{Comparison, Evaluation, Gate, Promotion},
};

/// Returns the predicate. All gates of a promotion have passed.
pub(super) fn predicate(promotion: &Promotion) -> Value {
    let configuration: Vec<Value> =
        configuration(promotion).into_iter().map(|(name, digest)| descriptor(&name, digest)).collect();
    json!({
        "result": "PASSED",
        "configuration": configuration,
        "passedTests": tests(promotion),
        "warnedTests": [],
        "failedTests": [],
    })
}

/// Returns what the gates were judged on: data files, gates and reports of every evaluation.
fn configuration(promotion: &Promotion) -> BTreeSet<(String, Sha256)> {
    let of = |evaluation: &Evaluation| {
        let data = evaluation.data.iter().map(|(name, digest)| (format!("data/{name}"), digest.0));
        let own = [("gates", evaluation.gates_digest.0), ("report", evaluation.report_digest.0)];
        data.chain(own.map(|(name, digest)| (name.to_owned(), digest))).collect::<Vec<_>>()
    };
    promotion.reasons.evaluations.iter().flat_map(of).collect()
}

/// Returns the names of all gates, sorted: metric, limits and the problems.
fn tests(promotion: &Promotion) -> BTreeSet<String> {
    let of = |evaluation: &Evaluation| {
        let on = match evaluation.data.get("problems") {
            Some(problems) => format!("problems {}", problems.short()),
            None => format!("report {}", evaluation.report_digest.short()),
        };
        evaluation.gates.iter().map(|gate| format!("{}, {on}", name(gate))).collect::<Vec<_>>()
    };
    promotion.reasons.evaluations.iter().flat_map(of).collect()
}

/// Returns the name of a gate: its metric and limits.
pub(super) fn name(gate: &Gate) -> String {
    let number = |limit: &Option<String>| limit.as_deref().map(shortest);
    let compared = |with: &Option<Comparison>| {
        let Comparison { evaluation, by } = with.as_ref()?;
        Some(number(by).map_or_else(|| evaluation.clone(), |by| format!("{evaluation} by {by}")))
    };
    let limits = [
        (">=", number(&gate.min)),
        ("<=", number(&gate.max)),
        ("better than", compared(&gate.better_than)),
        ("not worse than", compared(&gate.not_worse_than)),
        ("at confidence", number(&gate.confidence)),
        ("with minSamples", gate.min_samples.map(|count| count.to_string())),
    ];
    let limits = limits.into_iter().filter_map(|(sign, limit)| Some(format!(" {sign} {}", limit?)));
    format!("{}{}", gate.metric, limits.collect::<String>())
}

/// Returns a decimal without zeros at its end: gates that differ in them alone have one digest.
fn shortest(decimal: &str) -> String {
    if !decimal.contains('.') {
        return decimal.to_owned();
    }
    decimal.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Checks that a test result names exactly the gates of the promotion as passed.
pub(super) fn check(predicate: &Value, promotion: &Promotion) -> Result<(), String> {
    check_text(predicate, "/result", "PASSED")?;
    check_named(predicate, "/configuration", configuration(promotion).into_iter().collect())?;
    let list = |field: &str| -> BTreeSet<&str> {
        predicate[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    };
    if let Some(test) = ["failedTests", "warnedTests"].iter().find(|field| !list(field).is_empty()) {
        return Err(format!("its {test} is not empty, although its result is PASSED"));
    }
    let (expected, found) = (tests(promotion), list("passedTests"));
    if expected.len() == found.len() && expected.iter().all(|test| found.contains(test.as_str())) {
        return Ok(());
    }
    Err("its passedTests are not the gates of the promotion".to_owned())
}

#[cfg(test)]
mod tests {
    use super::shortest;

    #[test]
    fn equal_decimals_have_one_form() {
        for (text, short) in [("0.90", "0.9"), ("0.9", "0.9"), ("1.0", "1"), ("100", "100"), ("0", "0")] {
            assert_eq!(shortest(text), short);
        }
    }
}
