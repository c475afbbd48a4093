//! Known forms of secrets, personal data and dangerous texts. Pure.

use std::ops::Range;

use regex::Regex;

/// A group of known forms. The configuration of training lists their names, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Group {
    /// Keys and tokens.
    Secrets,
    /// Personal data.
    Pii,
    /// Phrases that ask a model to leave its instructions.
    Jailbreak,
    /// Shell commands that destroy.
    Shell,
    /// SQL that destroys or injects.
    Sql,
}

/// A known form.
pub(super) struct Form {
    pub(super) group: Group,
    pub(super) id: &'static str,
    pub(super) pattern: &'static str,
    /// Tells real ones from texts that only look alike.
    pub(super) is_real: fn(&str) -> bool,
}

fn any(_: &str) -> bool {
    true
}

const fn form(group: Group, id: &'static str, pattern: &'static str) -> Form {
    Form { group, id, pattern, is_real: any }
}

/// All known forms.
pub(super) const FORMS: [Form; 17] = [
    form(Group::Secrets, "secrets.aws_access_key", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    form(
        Group::Secrets,
        "secrets.github_token",
        r"\bgh[pousr]_[A-Za-z0-9]{36,255}\b|\bgithub_pat_[A-Za-z0-9_]{22,255}\b",
    ),
    form(Group::Secrets, "secrets.slack_token", r"\bxox[abeoprs]-[A-Za-z0-9-]{10,250}\b"),
    form(Group::Secrets, "secrets.api_key", r"\bsk-[A-Za-z0-9_-]{16,250}\b"),
    form(Group::Secrets, "secrets.jwt", r"\beyJ[A-Za-z0-9_-]{8,4000}\.eyJ[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{8,1000}"),
    form(
        Group::Secrets,
        "secrets.private_key",
        r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\z)",
    ),
    Form { group: Group::Pii, id: "pii.card", pattern: r"\b[0-9](?:[ -]?[0-9]){12,18}\b", is_real: is_card },
    Form { group: Group::Pii, id: "pii.ssn", pattern: r"\b[0-9]{3}-[0-9]{2}-[0-9]{4}\b", is_real: is_ssn },
    form(
        Group::Pii,
        "pii.email",
        r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.[A-Za-z]{2,24}\b",
    ),
    form(
        Group::Jailbreak,
        "jailbreak.ignore_instructions",
        r"(?i)\b(?:ignore|disregard|forget)\s+(?:all\s+|any\s+)?(?:of\s+)?(?:the\s+|your\s+|my\s+)?(?:previous|prior|above|earlier)\s+(?:instructions|prompts|rules|messages)\b",
    ),
    form(
        Group::Jailbreak,
        "jailbreak.no_rules",
        r"(?i)\b(?:you are now|act as|pretend to be)\s+(?:dan\b|an? (?:unrestricted|unfiltered|jailbroken)\b)",
    ),
    form(
        Group::Jailbreak,
        "jailbreak.reveal_prompt",
        r"(?i)\b(?:reveal|print|show|repeat)\s+(?:me\s+)?(?:your|the)\s+(?:system|hidden|initial)\s+prompt\b",
    ),
    form(Group::Shell, "shell.remove_root", r"\brm\s+(?:-[A-Za-z]+\s+){1,3}(?:--no-preserve-root\s+)?/(?:\*|\s|$)"),
    form(Group::Shell, "shell.fork_bomb", r":\(\)\s*\{\s*:\s*\|\s*:\s*&\s*\}\s*;\s*:"),
    form(Group::Shell, "shell.pipe_to_shell", r"\b(?:curl|wget)\b[^\n|]{1,300}\|\s*(?:sudo\s+)?(?:ba|z|da)?sh\b"),
    form(Group::Sql, "sql.drop", r"(?i)\bdrop\s+(?:table|database|schema)\s+(?:if\s+exists\s+)?[\w.`\x22\[]+"),
    form(
        Group::Sql,
        "sql.injection",
        r"(?i)'\s*or\s+'?1'?\s*=\s*'?1|\bunion\s+(?:all\s+)?select\b[^\n]{0,200}\bfrom\s+information_schema\b",
    ),
];

/// Returns whether digits are a card's number: of a length that its network uses, with the right check digit by Luhn's rule, not all
/// alike.
fn is_card(text: &str) -> bool {
    let digits: Vec<u32> = text.chars().filter_map(|character| character.to_digit(10)).collect();
    let lengths: &[usize] = match digits.as_slice() {
        [4, ..] => &[13, 16, 19],
        [3, 4 | 7, ..] => &[15],
        [3, 0 | 6 | 8 | 9, ..] => &[14, 15, 16, 17, 18, 19],
        [2, ..] | [5, 1..=5, ..] => &[16],
        [3, 5, ..] => &[16, 17, 18, 19],
        [5 | 6, ..] => &[13, 14, 15, 16, 17, 18, 19],
        _ => &[],
    };
    let doubled = digits.iter().rev().enumerate().map(|(at, digit)| match (at % 2, digit * 2) {
        (0, _) => *digit,
        (_, double) => double / 10 + double % 10,
    });
    let alike = digits.windows(2).all(|pair| pair[0] == pair[1]);
    lengths.contains(&digits.len()) && doubled.sum::<u32>() % 10 == 0 && !alike
}

/// Returns whether a number may be a social security number of the United States: no part is one that is never issued.
fn is_ssn(text: &str) -> bool {
    let mut parts = text.split('-');
    let area = parts.next().unwrap_or_default();
    area != "000"
        && area != "666"
        && !area.starts_with('9')
        && parts.next() != Some("00")
        && parts.next() != Some("0000")
}

/// Yields the places in a text where a pattern matches and the match is real.
pub(super) fn matches<'a>(
    pattern: &'a Regex,
    is_real: fn(&str) -> bool,
    text: &'a str,
) -> impl Iterator<Item = Range<usize>> + 'a {
    pattern.find_iter(text).filter(move |found| is_real(found.as_str())).map(|found| found.range())
}
