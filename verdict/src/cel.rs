//! Rules in the Common Expression Language (CEL), which the API server checks, generated from the vocabulary. Pure.

use serde::Serialize;
use serde_json::Value;

use crate::{
    Metric, Ring, Scale,
    decimal::MAX_DIGITS,
    gate::{EXAMPLE_BOUND, EXAMPLE_CONFIDENCE, RIGHT_CONFIDENCE, RIGHT_REFERENCE},
    policy::{FORM, MAX_PARITY_REQUESTS, PATTERN},
    text::alternatives,
};

/// A rule with the sentence that the API server answers when it is broken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// The condition that must hold.
    pub rule: String,
    /// The expression that gives the sentence.
    pub message_expression: String,
}

impl Rule {
    /// Returns a rule on a `field`. `value` is an expression for what was found, and `form` describes what is allowed.
    pub fn new(field: &str, value: &str, rule: &str, form: &str) -> Self {
        let form = form.replace('\\', "\\\\").replace('\'', "\\'");
        let message_expression = format!("'{field} \"' + {value} + '\" is invalid: use {form}'");
        Self { rule: rule.to_owned(), message_expression }
    }
}

/// Returns the rule on changes of `spec.rolloutRing`: forward by one at most.
pub fn ring() -> Rule {
    let order: Vec<String> = Ring::ALL.iter().enumerate().map(|(place, ring)| format!("'{ring}': {place}")).collect();
    let order = format!("{{{}}}", order.join(", "));
    Rule {
        rule: format!("{order}[self] <= {order}[oldSelf] + 1"),
        message_expression: format!(
            "'spec.rolloutRing moves forward one ring at a time ({}; back is allowed): it cannot go from ' + oldSelf + ' to ' \
             + self",
            Ring::ALL.map(Ring::name).join(", ")
        ),
    }
}

/// Returns the rule on a gate's metric, as `x-kubernetes-validations`.
pub(crate) fn metric() -> Value {
    let names: Vec<String> = Metric::NAMES.iter().map(|name| format!("'{name}'")).collect();
    field("metric", &format!("self in [{}]", names.join(", ")), &alternatives(Metric::NAMES))
}

/// Returns the rule on the name of the Evaluation that a gate compares with, as `x-kubernetes-validations`.
pub(crate) fn reference() -> Value {
    field("evaluation", "self.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')", RIGHT_REFERENCE)
}

/// Returns the pattern of a bound on a metric of this scale, or of a difference of two values if `from_zero`.
pub(crate) fn pattern(scale: Scale, from_zero: bool) -> String {
    let zeros = format!("([.]0{{1,{MAX_DIGITS}}})?");
    let fraction = format!("([.][0-9]{{1,{MAX_DIGITS}}})?");
    match (scale, from_zero) {
        (Scale::Unit, _) => format!("^(0{fraction}|1{zeros})$"),
        (Scale::Hundred, _) => format!("^([0-9]{{1,2}}{fraction}|100{zeros})$"),
        (Scale::FromOne, true) => format!("^(0|[1-9][0-9]{{0,8}}){fraction}$"),
        (Scale::FromOne, false) => format!("^[1-9][0-9]{{0,8}}{fraction}$"),
    }
}

/// Returns whether a field of a gate is a difference of two values.
pub(crate) fn is_difference(field: &str) -> bool {
    matches!(field, "by" | "margin")
}

/// Returns the rule on a decimal of a gate. `path` is the field below the gate, `parents` are those that may be absent, and
/// `example` is a valid value for a metric from 0 to 1. What is right depends on the metric.
fn decimal(path: &str, parents: &[&str], example: Option<&str>) -> Value {
    let name = path.rsplit('.').next().unwrap_or_default();
    let from_zero = is_difference(name);
    let names = |scale: Scale| -> Vec<String> {
        Metric::ALL.iter().filter(|it| it.scale() == scale).map(|it| format!("'{it}'")).collect()
    };
    // The others are the last alternative.
    let chosen = |of: &dyn Fn(Scale) -> String| {
        let others = Scale::ALL.into_iter().filter(|scale| *scale != Scale::Unit);
        let cases: Vec<String> =
            others.map(|it| format!("self.metric in [{}] ? {} : ", names(it).join(", "), of(it))).collect();
        format!("({}{})", cases.concat(), of(Scale::Unit))
    };
    let absent: Vec<String> = parents.iter().chain(&[path]).map(|field| format!("!has(self.{field}) || ")).collect();
    let absent = absent.concat();
    let matches = chosen(&|scale| format!("self.{path}.matches('{}')", pattern(scale, from_zero)));
    let form = chosen(&|scale| {
        let right = if from_zero { scale.right_difference() } else { scale.right() };
        let example = example.filter(|_| scale == Scale::Unit).unwrap_or(scale.example());
        format!("'{right}, in quotes, such as {name}: \"{example}\"'")
    });
    serde_json::json!({
        "rule": format!("{absent}{matches}"),
        "messageExpression": format!("'{name} \"' + self.{path} + '\" is invalid: use ' + {form}"),
        "fieldPath": format!(".{path}"),
    })
}

/// Returns the rule on a gate's `confidence`, as `x-kubernetes-validations`.
pub(crate) fn confidence() -> Value {
    let rule = format!("self.matches('^0[.]([6-9][0-9]{{0,{}}}|5[0-9]*[1-9][0-9]*)$')", MAX_DIGITS - 1);
    let form = format!("{RIGHT_CONFIDENCE}, in quotes, such as confidence: \"{EXAMPLE_CONFIDENCE}\"");
    field("confidence", &rule, &form)
}

/// Returns the rules on a gate as a whole, as `x-kubernetes-validations`.
pub(crate) fn gate() -> Value {
    let one_bound = serde_json::json!({
        "rule": "[has(self.min), has(self.max), has(self.betterThan), has(self.notWorseThan)].exists_one(is, is)",
        "message": format!(
            "gates[] must have exactly one of min, max, betterThan and notWorseThan, such as min: \"{EXAMPLE_BOUND}\""
        ),
    });
    let margin_needs_confidence = serde_json::json!({
        "rule": "!has(self.margin) || has(self.confidence)",
        "message": format!(
            "gates[].margin needs gates[].confidence, such as confidence: \"{EXAMPLE_CONFIDENCE}\": without it the value decides"
        ),
    });
    let by = Some("0.02");
    Value::from(vec![
        one_bound,
        margin_needs_confidence,
        decimal("margin", &[], by),
        decimal("min", &[], None),
        decimal("max", &[], Some("0.05")),
        decimal("betterThan.by", &["betterThan"], by),
        decimal("notWorseThan.by", &["notWorseThan"], by),
    ])
}

/// Returns the rules on a policy's rule for a ring, as `x-kubernetes-validations`.
pub(crate) fn ring_rule() -> Value {
    let order: Vec<String> = Ring::ALL.iter().enumerate().map(|(place, ring)| format!("'{ring}': {place}")).collect();
    let order = format!("{{{}}}", order.join(", "));
    serde_json::json!([
        {
            "rule": format!("!has(self.requires) || {order}[self.requires.ring] < {order}[self.ring]"),
            "message": format!(
                "rules[].requires.ring must come before rules[].ring: {}",
                Ring::ALL.map(Ring::name).join(", ")
            ),
        },
        {
            "rule": "!has(self.minimumTimeInRing) || has(self.requires)",
            "message": "rules[].minimumTimeInRing needs rules[].requires: name the ring in which the time counts",
        },
        {
            "rule": "has(self.requires) || has(self.signOffs) || has(self.signers) || has(self.parity) || (has(self.requiredEvaluations) && size(self.requiredEvaluations) > 0) || (has(self.attestations) && size(self.attestations) > 0)",
            "message": "rules[] must demand something: requiredEvaluations, requires, signOffs, signers, parity or attestations",
        },
        {
            "rule": format!("!has(self.parity) || self.ring != '{}'", Ring::ALL[0]),
            "message": format!(
                "rules[].parity cannot hold in {}, where a shadow needs a promotion itself: demand it in a later ring",
                Ring::ALL[0]
            ),
        },
    ])
}

/// Returns the rule that a budget of reads has an error to divide, as `x-kubernetes-validations`.
pub(crate) fn budget() -> Value {
    serde_json::json!([{
        "rule": "!has(self.reads) || self.gates.all(gate, has(gate.confidence))",
        "message": "requiredEvaluations[].reads.budget divides the error of each gate: set confidence in every gate of the template, such as confidence: \"0.95\"",
    }])
}

/// Returns the rule on the least number of requests of parity, as `x-kubernetes-validations`.
pub(crate) fn parity_requests() -> Value {
    serde_json::json!([{
        "rule": format!("self >= 1 && self <= {MAX_PARITY_REQUESTS}"),
        "message": format!("parity.minRequests must be from 1 to {MAX_PARITY_REQUESTS}: write minRequests: 500"),
    }])
}

/// Returns the rule on the greatest divergence of parity, as `x-kubernetes-validations`.
pub(crate) fn parity_divergence() -> Value {
    let rule = "self.matches('^(0([.][0-9]{1,6})?|1([.]0{1,6})?)$') && self.matches('[1-9]')";
    field("parity.maxDivergence", rule, "a decimal above 0 and up to 1 with at most six decimals, such as \"0.01\"")
}

/// What the weights of readiness must be.
pub(crate) const RIGHT_WEIGHTS: &str = "write evidence, traces and deployment as decimals from 0 to 1 with at most six decimals, in quotes, that sum to 1, such as \"0.5\", \"0.2\" and \"0.3\"";
/// How far the sum of weights with six decimals may be from 1: floats round.
pub(crate) const WEIGHTS_TOLERANCE: f64 = 1e-7;

/// Returns the rule on the weights of readiness, as `x-kubernetes-validations`.
pub(crate) fn readiness() -> Value {
    let sum = "double(self.evidence) + double(self.traces) + double(self.deployment)";
    serde_json::json!([{
        "rule": format!(
            "[self.evidence, self.traces, self.deployment].all(weight, weight.matches('^(0([.][0-9]{{1,6}})?|1([.]0{{1,6}})?)$')) && \
             {sum} > 0.9999999 && {sum} < 1.0000001"
        ),
        "message": format!("readiness is invalid: {RIGHT_WEIGHTS}"),
    }])
}

/// Returns the rule that templates of evaluations have different names, as `x-kubernetes-validations`.
pub(crate) fn unique_templates() -> Value {
    serde_json::json!([{
        "rule": "self.all(a, self.exists_one(b, b.name == a.name))",
        "message": "requiredEvaluations[].name must be unique within the rule: rename one of the templates",
    }])
}

/// Returns the rule on signers, as `x-kubernetes-validations`.
pub(crate) fn some_signer() -> Value {
    serde_json::json!([{
        "rule": "(has(self.keys) && size(self.keys) > 0) || (has(self.identities) && size(self.identities) > 0)",
        "message": "signers names nobody, so nobody may sign: list a key or an identity, or leave signers out",
    }])
}

/// Returns the rule on the issuer of an identity, as `x-kubernetes-validations`.
pub(crate) fn exact_issuer() -> Value {
    serde_json::json!([{
        "rule": "!self.contains('*')",
        "message": "issuer holds *: name it exactly, as in the tokens that it issues",
    }])
}

/// Returns the rule on a period, as `x-kubernetes-validations`.
pub(crate) fn period(name: &str) -> Value {
    field(name, &format!("self.matches('{PATTERN}')"), FORM)
}

fn field(name: &str, rule: &str, form: &str) -> Value {
    serde_json::json!([Rule::new(name, "self", rule, form)])
}
