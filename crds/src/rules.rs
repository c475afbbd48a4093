//! Rules that the API server checks (CEL), each with a sentence that names the value it refuses. Pure.

use kube::core::{Message, Rule};

/// A rule on a text: `right` says what it must be.
pub(crate) fn text(rule: &str, right: &str) -> Rule {
    refuses("self", rule, right)
}

/// The rule on the name of an object of ours.
pub(crate) fn name() -> Rule {
    refuses(
        "self.metadata.name",
        "self.metadata.name.size() <= 52 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "metadata.name must have at most 52 characters, which are lower-case letters, digits and inner dashes, a letter \
         first, because Jobs and Services are named after it",
    )
}

/// The rule on the name of something else in the namespace, which stands in `field`: `example` is one. It is
/// [`crate::is_subdomain`] once more.
pub(crate) fn subdomain(field: &str, example: &str) -> Rule {
    text(
        "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')",
        &format!("{field} must have lower-case letters, digits, inner dashes and inner dots only, such as {example}"),
    )
}

/// The rule on the ring of an object of ours.
pub(crate) fn ring() -> Rule {
    const RINGS: &str = "{'0A_base_': 0, '0B_base_': 1, '0C_base_': 2, '0D_base_': 3, 'main': 4}";
    let sentence = "'spec.rolloutRing moves forward one ring at a time (0A_base_, 0B_base_, 0C_base_, 0D_base_, main; back \
                    is allowed): it cannot go from ' + oldSelf + ' to ' + self";
    Rule::new(format!("{RINGS}[self] <= {RINGS}[oldSelf] + 1")).message(Message::Expression(sentence.to_owned()))
}

/// The rule on a share in quotes: `example` is one.
pub(crate) fn share(field: &str, example: &str) -> Rule {
    text(
        "self.matches('^(0([.][0-9]{1,18})?|1([.]0{1,18})?)$')",
        &format!("{field} must be a decimal from 0 to 1, in quotes, such as {field}: \"{example}\""),
    )
}

fn refuses(value: &str, rule: &str, right: &str) -> Rule {
    let right = right.replace('\\', "\\\\").replace('\'', "\\'");
    Rule::new(rule).message(Message::Expression(format!("'{right}: it is \"' + {value} + '\"'")))
}
