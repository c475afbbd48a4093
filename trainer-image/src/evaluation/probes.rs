//! Probes: what is looked at in the responses to problems of certain categories, beside the metrics. Pure.
//!
//! `proof_logs` is probed by `theorem_proving`, `math_word_problems` by `math_verification`, `tool_traces` by `tool_audit`. Every share is
//! over all problems of the category, whether the model attempted them or not. Probes are shown in `summary.json`; gates are on metrics.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::score::Scored;
use crate::{
    tasks::{last_number, steps},
    text::{CALL, CALL_END},
};

/// How far a number may be from the right one for `tolerance_match`.
const TOLERANCE: f64 = 1e-6;

/// The probes of an evaluation, each absent without problems of its category.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub(super) struct Probes {
    /// Of `proof_logs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    theorem_proving: Option<TheoremProving>,
    /// Of `math_word_problems`.
    #[serde(skip_serializing_if = "Option::is_none")]
    math_verification: Option<MathVerification>,
    /// Of `tool_traces`.
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_audit: Option<ToolAudit>,
}

/// Proofs by chains of implications.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
struct TheoremProving {
    /// Number of problems.
    n: usize,
    /// Mean share of the reference's steps that the response has in their order.
    coverage: f64,
    /// Share of problems with the right conclusion.
    accuracy: f64,
    /// Mean share of the response's steps that follow from what is given and the steps before; 0 for a response without steps.
    symbolic_consistency: f64,
}

/// Answers that are numbers.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
struct MathVerification {
    /// Number of problems.
    n: usize,
    /// Share of problems whose answer is the right one as a text.
    exact_match: f64,
    /// Share of problems whose answer differs from the right number by 0.000001 at most.
    tolerance_match: f64,
    /// Largest difference of an answer that is a number; null if none is.
    max_error: Option<f64>,
    /// Number of problems whose answer is a number.
    answered: usize,
}

/// Calls of tools.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
struct ToolAudit {
    /// Number of problems.
    n: usize,
    /// Share of the reference's calls at whose place the response calls the same tool.
    name_match_rate: f64,
    /// Share of the reference's calls at whose place the response calls the same tool with the same arguments.
    argument_match_rate: f64,
    /// Share of problems whose calls are exactly those of the reference.
    complete_traces: f64,
    /// Number of calls in responses that are no JSON object with a name and arguments, or are not closed.
    schema_issues: usize,
    /// Number of calls in responses beyond those of their references.
    extra_calls: usize,
}

fn share(count: usize, n: usize) -> f64 {
    count as f64 / n as f64
}

fn mean(values: impl Iterator<Item = f64>, n: usize) -> f64 {
    values.sum::<f64>() / n as f64
}

impl Probes {
    /// Looks at scored problems; `None` if none is of a category that is probed.
    pub(super) fn of(scored: &[Scored]) -> Option<Self> {
        let of = |category: &str| scored.iter().filter(|one| one.category == category).collect::<Vec<_>>();
        let probes = Self {
            theorem_proving: TheoremProving::of(&of("proof_logs")),
            math_verification: MathVerification::of(&of("math_word_problems")),
            tool_audit: ToolAudit::of(&of("tool_traces")),
        };
        (probes != Self::default()).then_some(probes)
    }
}

impl TheoremProving {
    fn of(scored: &[&Scored]) -> Option<Self> {
        let n = scored.len();
        let coverage = |one: &&Scored| if one.steps == 0 { 0.0 } else { share(one.steps_found, one.steps) };
        (n > 0).then(|| Self {
            n,
            coverage: mean(scored.iter().map(coverage), n),
            accuracy: share(scored.iter().filter(|one| one.correct).count(), n),
            symbolic_consistency: mean(scored.iter().map(|one| consistency(&one.prompt, &one.prediction)), n),
        })
    }
}

/// Returns the share of steps `a,a>b=b` that follow: their rule is given, and their premise is given or was derived before.
fn consistency(prompt: &str, response: &str) -> f64 {
    let is_part = |c: char| c.is_alphanumeric() || c == '>';
    let words = prompt.split(|c: char| !is_part(c)).filter(|word| !word.is_empty());
    let (rules, words): (BTreeSet<&str>, Vec<&str>) =
        (words.clone().filter(|word| word.contains('>')).collect(), words.collect());
    // What is given stands before the rules; what is to be proved, after them.
    let first_rule = words.iter().position(|word| word.contains('>')).unwrap_or(words.len());
    let mut known: BTreeSet<&str> = words[..first_rule].iter().copied().filter(|word| word.len() == 1).collect();
    let written = steps(response);
    let mut valid = 0;
    for step in &written {
        let Some((premises, conclusion)) = step.split_once('=') else { continue };
        let Some((premise, rule)) = premises.split_once(',') else { continue };
        if rules.contains(rule) && known.contains(premise) && rule.split_once('>') == Some((premise, conclusion)) {
            known.insert(conclusion);
            valid += 1;
        }
    }
    if written.is_empty() { 0.0 } else { share(valid, written.len()) }
}

impl MathVerification {
    fn of(scored: &[&Scored]) -> Option<Self> {
        let n = scored.len();
        let number = |text: &Option<String>| last_number(text.as_deref()?)?.parse::<f64>().ok();
        let errors: Vec<f64> = scored
            .iter()
            .filter_map(|one| Some((number(&one.answer)? - number(&one.expected)?).abs()))
            .filter(|error| error.is_finite())
            .collect();
        (n > 0).then(|| Self {
            n,
            exact_match: share(
                scored.iter().filter(|one| one.answer.is_some() && one.answer == one.expected).count(),
                n,
            ),
            tolerance_match: share(errors.iter().filter(|error| **error <= TOLERANCE).count(), n),
            max_error: errors.iter().copied().reduce(f64::max),
            answered: errors.len(),
        })
    }
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq)]
struct Call {
    name: String,
    arguments: Map<String, Value>,
}

/// Returns the calls of a text, `None` for each that is malformed.
fn calls(text: &str) -> Vec<Option<Call>> {
    let mut found = Vec::new();
    for part in text.split(CALL).skip(1) {
        let call = part.split_once(CALL_END).and_then(|(inner, _)| {
            let Value::Object(mut call) = serde_json::from_str(inner.trim()).ok()? else { return None };
            match (call.remove("name")?, call.remove("arguments")?, call.is_empty()) {
                (Value::String(name), Value::Object(arguments), true) => Some(Call { name, arguments }),
                _ => None,
            }
        });
        found.push(call);
    }
    found
}

impl ToolAudit {
    fn of(scored: &[&Scored]) -> Option<Self> {
        let n = scored.len();
        let (mut wanted, mut names, mut arguments, mut complete, mut issues, mut extra) = (0, 0, 0, 0, 0, 0);
        for one in scored {
            let (reference, written) = (calls(&one.reference), calls(&one.prediction));
            wanted += reference.len();
            // By their places: a malformed call holds its place, and is equal to no other.
            let pairs =
                || reference.iter().zip(&written).filter_map(|(right, found)| right.as_ref().zip(found.as_ref()));
            names += pairs().filter(|(right, found)| right.name == found.name).count();
            arguments += pairs().filter(|(right, found)| right == found).count();
            complete += usize::from(reference == written && reference.iter().all(Option::is_some));
            issues += written.iter().filter(|call| call.is_none()).count();
            extra += written.len().saturating_sub(reference.len());
        }
        (n > 0).then(|| Self {
            n,
            name_match_rate: share(names, wanted.max(1)),
            argument_match_rate: share(arguments, wanted.max(1)),
            complete_traces: share(complete, n),
            schema_issues: issues,
            extra_calls: extra,
        })
    }
}

#[cfg(test)]
mod tests {
    use codex_configs::{benchmark, compose_evaluation};

    use super::*;
    use crate::tasks::{Answers, Difficulty, Record, parse_records};

    fn answers() -> Answers {
        let resolved = compose_evaluation("base", &[], 1, Vec::new()).unwrap();
        Answers::of(&resolved.spec().settings.evaluation).unwrap()
    }

    fn scored(category: &str, prompt: &str, response: &str, prediction: &str) -> Scored {
        let record = Record {
            prompt: prompt.to_owned(),
            response: response.to_owned(),
            difficulty: Difficulty::Easy,
            category: category.to_owned(),
            cluster: None,
        };
        Scored::of(1, &record, prediction.to_owned(), None, &answers())
    }

    #[test]
    fn references_of_the_presets_pass_their_probes() {
        for (preset, [proofs, stories, tools]) in [("base", [50, 50, 50]), ("math", [50, 50, 0]), ("tools", [0, 0, 50])]
        {
            let records = parse_records(preset, benchmark(preset)[0].contents()).unwrap();
            let all: Vec<Scored> =
                records.iter().map(|record| Scored::of(1, record, record.response.clone(), None, &answers())).collect();
            let Probes { theorem_proving, math_verification, tool_audit } = Probes::of(&all).unwrap();
            let whole = TheoremProving { n: proofs, coverage: 1.0, accuracy: 1.0, symbolic_consistency: 1.0 };
            assert_eq!(theorem_proving, (proofs > 0).then_some(whole), "{preset}");
            let whole = MathVerification {
                n: stories,
                exact_match: 1.0,
                tolerance_match: 1.0,
                max_error: Some(0.0),
                answered: stories,
            };
            assert_eq!(math_verification, (stories > 0).then_some(whole), "{preset}");
            let whole = ToolAudit {
                n: tools,
                name_match_rate: 1.0,
                argument_match_rate: 1.0,
                complete_traces: 1.0,
                schema_issues: 0,
                extra_calls: 0,
            };
            assert_eq!(tool_audit, (tools > 0).then_some(whole), "{preset}");
        }
        assert_eq!(Probes::of(&[scored("addition", "1+1:", "#2$", "#2$")]), None);
    }

    #[test]
    fn a_step_follows_only_from_what_is_known() {
        let prompt = "Given a, b>c, a>b, c>d. Prove d:";
        for (response, expected) in [
            ("a,a>b=b b,b>c=c c,c>d=d #d$", 1.0),
            ("b,b>c=c a,a>b=b #d$", 0.5),
            ("a,a>c=c #d$", 0.0),
            ("d,d>d=d #d$", 0.0),
            ("a,a>b=c #d$", 0.0),
            ("so a,a>b=b #d$", 0.5),
            ("#d$", 0.0),
            ("", 0.0),
        ] {
            assert!((consistency(prompt, response) - expected).abs() < 1e-12, "{response}");
        }
    }

    #[test]
    fn shares_count_every_problem_attempted_or_not() {
        let story = |prediction: &str| scored("math_word_problems", "How many?", "1+1=2 #2.5$", prediction);
        let all = [story("#2.5$"), story("#2.50000001$"), story("#4$"), story("none"), story("")];
        let found = Probes::of(&all).unwrap().math_verification.unwrap();
        assert_eq!((found.n, found.answered), (5, 3));
        assert!((found.exact_match - 0.2).abs() < 1e-12 && (found.tolerance_match - 0.4).abs() < 1e-12);
        assert!((found.max_error.unwrap() - 1.5).abs() < 1e-12);
        let silent = Probes::of(&[story("")]).unwrap().math_verification.unwrap();
        assert_eq!((silent.max_error, silent.answered), (None, 0));

        let call =
            |name: &str, x: u32| format!("<tool_call>{{\"name\":\"{name}\",\"arguments\":{{\"x\":{x}}}}}</tool_call>");
        let reference = format!("{} {} #1$", call("a", 1), call("b", 2));
        let tool = |prediction: &str| scored("tool_traces", "Call:", &reference, prediction);
        let all = [
            tool(&reference),
            tool(&format!("{} {} #1$", call("a", 9), call("b", 2))),
            tool(&format!("{}{}{} #1$", call("a", 1), call("b", 2), call("c", 3))),
            tool("<tool_call>{\"name\":\"a\"}</tool_call> <tool_call>{"),
            tool(""),
        ];
        let found = Probes::of(&all).unwrap().tool_audit.unwrap();
        assert!((found.name_match_rate - 0.6).abs() < 1e-12, "{found:?}");
        assert!((found.argument_match_rate - 0.5).abs() < 1e-12, "{found:?}");
        assert!((found.complete_traces - 0.2).abs() < 1e-12, "{found:?}");
        assert_eq!((found.schema_issues, found.extra_calls), (2, 1));

        let proof = |prediction: &str| scored("proof_logs", "Given a, a>b. Prove b:", "a,a>b=b #b$", prediction);
        let found = Probes::of(&[proof("a,a>b=b #b$"), proof("#b$"), proof("")]).unwrap().theorem_proving.unwrap();
        assert!((found.accuracy - 2.0 / 3.0).abs() < 1e-12 && (found.coverage - 1.0 / 3.0).abs() < 1e-12);
        assert!((found.symbolic_consistency - 1.0 / 3.0).abs() < 1e-12);
    }
}
