//! CEL rules of the CRDs. Each message names the field, the value found and the values allowed. Pure.

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

/// Returns the rule on changes of `spec.rolloutRing`.
pub(crate) fn ring() -> Rule {
    const RINGS: &str = "{'0A_base_': 0, '0B_base_': 1, '0C_base_': 2, '0D_base_': 3, 'main': 4}";
    let sentence = "'spec.rolloutRing moves forward one ring at a time (0A_base_, 0B_base_, 0C_base_, 0D_base_, main; back \
                    is allowed): it cannot go from ' + oldSelf + ' to ' + self";
    Rule::new(format!("{RINGS}[self] <= {RINGS}[oldSelf] + 1")).message(Message::Expression(sentence.to_owned()))
}

/// Returns the rule on a share, a decimal from 0 to 1 in quotes, such as `example`.
pub(crate) fn share(field: &str, example: &str) -> Rule {
    text(
        field,
        "self.matches('^(0([.][0-9]{1,18})?|1([.]0{1,18})?)$')",
        &format!("a decimal from 0 to 1, in quotes, such as {field}: \"{example}\""),
    )
}

fn refuses(field: &str, value: &str, rule: &str, form: &str) -> Rule {
    let form = form.replace('\\', "\\\\").replace('\'', "\\'");
    Rule::new(rule).message(Message::Expression(format!("'{field} \"' + {value} + '\" is invalid: use {form}'")))
}
