//! CEL rules of the CRDs. Each message names the field, the value found and the values allowed. Pure.

use codex_verdict::cel;
use kube::core::{Message, Rule};

/// Returns a rule on a string `field`; `form` describes the values that it allows.
pub(crate) fn text(field: &str, rule: &str, form: &str) -> Rule {
    refuses(field, "self", rule, form)
}

/// Returns the rule on the name of a custom resource.
pub(crate) fn name() -> Rule {
    refuses(
        "metadata.name",
        "self.metadata.name",
        "self.metadata.name.size() <= 52 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "at most 52 characters, lower-case letters, digits and inner dashes, with a letter first, because Jobs and Services \
         are named after it",
    )
}

/// Returns the rule on a `field` that names another object. It accepts what [`crate::is_subdomain`] accepts; `example` is
/// such a name.
pub(crate) fn subdomain(field: &str, example: &str) -> Rule {
    text(
        field,
        "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')",
        &format!("lower-case letters, digits, inner dashes and inner dots, such as {example}"),
    )
}

/// Returns the rule on a `digest` of a model.
pub(crate) fn digest() -> Rule {
    text(
        "digest",
        "self.matches('^[0-9a-f]{64}$')",
        "64 lower-case hexadecimal digits, as status.base.digest and status.model.digest have them",
    )
}

/// Returns the rule that a TrainingRun is not its own base. The name of an object is known only at its root.
pub(crate) fn own_base() -> Rule {
    Rule::new(
        "!has(self.spec.base) || !has(self.spec.base.trainingRun) || self.spec.base.trainingRun.name != self.metadata.name",
    )
    .message("spec.base.trainingRun.name is the TrainingRun itself: name another TrainingRun")
}

/// Returns the rule on changes of `spec.rolloutRing`.
pub(crate) fn ring() -> Rule {
    of_kube(cel::ring())
}

fn refuses(field: &str, value: &str, rule: &str, form: &str) -> Rule {
    of_kube(cel::Rule::new(field, value, rule, form))
}

fn of_kube(rule: cel::Rule) -> Rule {
    Rule::new(rule.rule).message(Message::Expression(rule.message_expression))
}
