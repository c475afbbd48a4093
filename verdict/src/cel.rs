//! Rules in the Common Expression Language (CEL), which the API server checks, generated from the vocabulary. Pure.

use serde::Serialize;
use serde_json::Value;

use crate::{
    Metric, Ring,
    decimal::MAX_DIGITS,
    gate::{EXAMPLE_BOUND, EXAMPLE_CONFIDENCE, RIGHT_BOUND, RIGHT_CONFIDENCE, RIGHT_REFERENCE},
    policy::{FORM, PATTERN},
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

/// Returns the rule on a gate's `min`, `max` or `by`, as `x-kubernetes-validations`; `example` is a valid one.
pub(crate) fn share(name: &str, example: &str) -> Value {
    let rule = format!("self.matches('^(0([.][0-9]{{1,{MAX_DIGITS}}})?|1([.]0{{1,{MAX_DIGITS}}})?)$')");
    field(name, &rule, &format!("{RIGHT_BOUND}, in quotes, such as {name}: \"{example}\""))
}

/// Returns the rule on a gate's `confidence`, as `x-kubernetes-validations`.
pub(crate) fn confidence() -> Value {
    let rule = format!("self.matches('^0[.]([6-9][0-9]{{0,{}}}|5[0-9]*[1-9][0-9]*)$')", MAX_DIGITS - 1);
    let form = format!("{RIGHT_CONFIDENCE}, in quotes, such as confidence: \"{EXAMPLE_CONFIDENCE}\"");
    field("confidence", &rule, &form)
}

/// Returns the rule on a gate as a whole, as `x-kubernetes-validations`.
pub(crate) fn one_bound() -> Value {
    serde_json::json!([{
        "rule": "[has(self.min), has(self.max), has(self.betterThan), has(self.notWorseThan)].exists_one(is, is)",
        "message": format!(
            "gates[] must have exactly one of min, max, betterThan and notWorseThan, such as min: \"{EXAMPLE_BOUND}\""
        ),
    }])
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
            "rule": "has(self.requires) || has(self.signOffs) || (has(self.requiredEvaluations) && size(self.requiredEvaluations) > 0)",
            "message": "rules[] must demand something: requiredEvaluations, requires or signOffs",
        },
    ])
}

/// Returns the rule that templates of evaluations have different names, as `x-kubernetes-validations`.
pub(crate) fn unique_templates() -> Value {
    serde_json::json!([{
        "rule": "self.all(a, self.exists_one(b, b.name == a.name))",
        "message": "requiredEvaluations[].name must be unique within the rule: rename one of the templates",
    }])
}

/// Returns the rule on a period, as `x-kubernetes-validations`.
pub(crate) fn period(name: &str) -> Value {
    field(name, &format!("self.matches('{PATTERN}')"), FORM)
}

fn field(name: &str, rule: &str, form: &str) -> Value {
    serde_json::json!([Rule::new(name, "self", rule, form)])
}
