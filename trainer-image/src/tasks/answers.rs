//! Finds the answer in a response, and compares two answers. Pure.

use std::collections::BTreeSet;

use codex_configs::{AnswerForm, Compare, ConfigError, Generation, ReferenceForm, RewardSettings};
use regex::Regex;

use super::{answer, last_number};

/// How far floats may stray through rounding, relative to the numbers.
const ROUNDING: f64 = 1e-12;

/// Finds and compares answers as the settings of an evaluation say.
#[derive(Clone, Debug)]
pub struct Answers {
    /// The key of the settings, which errors name.
    section: &'static str,
    form: AnswerForm,
    reference: ReferenceForm,
    compare: Compare,
    tolerance: f64,
    after: String,
    choices: u64,
    pattern: Option<Regex>,
}

impl Answers {
    /// Returns how `settings` find and compare answers.
    ///
    /// # Errors
    /// The regular expression is missing or malformed.
    pub fn of(settings: &Generation) -> Result<Self, ConfigError> {
        Ok(Self {
            section: "evaluation",
            form: settings.answer,
            reference: settings.reference,
            compare: settings.compare,
            tolerance: settings.tolerance,
            after: settings.after.clone().unwrap_or_default(),
            choices: settings.choices,
            pattern: settings.regex()?,
        })
    }

    /// Returns how the answers are found and compared that a run rewards.
    ///
    /// # Errors
    /// The regular expression is missing or malformed.
    pub fn of_rewards(settings: &RewardSettings) -> Result<Self, ConfigError> {
        Ok(Self {
            section: "training.grpo.reward",
            form: settings.answer,
            reference: settings.reference,
            compare: settings.compare,
            tolerance: settings.tolerance,
            after: settings.after.clone().unwrap_or_default(),
            choices: settings.choices,
            pattern: settings.regex()?,
        })
    }

    /// Whether responses have steps: only those with a marked answer.
    pub fn has_steps(&self) -> bool {
        self.form == AnswerForm::Marked
    }

    /// Returns the answer of a model's response, without surrounding white space; `None` if it has none.
    pub fn of_response(&self, response: &str) -> Option<String> {
        self.find(response)
    }

    /// Returns the right answer of a reference.
    ///
    /// # Errors
    /// What the reference needs, as a sentence continues after "the response has no answer: ".
    pub fn of_reference(&self, response: &str) -> Result<String, String> {
        let section = self.section;
        let found = match self.reference {
            ReferenceForm::Same => self.find(response),
            ReferenceForm::Whole => filled(response),
        };
        let itself = format!("if it is the answer itself, set {section}.reference to whole");
        let found = found.ok_or_else(|| match (self.reference, self.form) {
            (ReferenceForm::Whole, _) | (_, AnswerForm::Whole) => "it is empty".to_owned(),
            (_, AnswerForm::Marked) => "end it in #answer$".to_owned(),
            (_, AnswerForm::LastNumber) => format!("it needs a number, because {section}.answer is last_number"),
            (_, AnswerForm::After) => format!("it needs text after {section}.after; {itself}"),
            (_, AnswerForm::Regex) => format!("{section}.pattern does not match; {itself}"),
            (_, AnswerForm::Choice) => {
                format!("it needs one of the letters that {section}.choices allows, on its own")
            }
        })?;
        match self.compare {
            Compare::Numeric if number(&found).is_none() => {
                Err(format!("its answer needs a number, because {section}.compare is numeric"))
            }
            Compare::Set if parts(&found).is_empty() => Err("its answer has no parts between commas".to_owned()),
            Compare::Numeric | Compare::Set | Compare::Exact => Ok(found),
        }
    }

    /// Whether an answer is right.
    pub fn is_right(&self, answer: &str, expected: &str) -> bool {
        match self.compare {
            Compare::Exact => answer == expected,
            Compare::Numeric => match (number(answer), number(expected)) {
                (Some(answer), Some(expected)) => {
                    let rounding = ROUNDING * answer.abs().max(expected.abs());
                    (answer - expected).abs() <= self.tolerance + rounding
                }
                _ => false,
            },
            Compare::Set => parts(answer) == parts(expected),
        }
    }

    fn find(&self, text: &str) -> Option<String> {
        match self.form {
            AnswerForm::Marked => filled(answer(text)?),
            AnswerForm::LastNumber => last_number(text),
            AnswerForm::After => {
                let (_, rest) = text.rsplit_once(&self.after)?;
                filled(rest.lines().next()?)
            }
            AnswerForm::Regex => {
                let found = self.pattern.as_ref()?.captures_iter(text).last()?;
                filled(found.iter().skip(1).flatten().next().or_else(|| found.get(0))?.as_str())
            }
            AnswerForm::Choice => choice(text, self.choices).map(String::from),
            AnswerForm::Whole => filled(text),
        }
    }
}

fn filled(text: &str) -> Option<String> {
    Some(text.trim()).filter(|text| !text.is_empty()).map(str::to_owned)
}

fn number(text: &str) -> Option<f64> {
    last_number(text)?.parse().ok()
}

/// Returns the parts of an answer between commas, semicolons and line feeds, without brackets around all of them.
fn parts(answer: &str) -> BTreeSet<&str> {
    let inner = answer.trim().trim_matches(|c| matches!(c, '[' | ']' | '{' | '}' | '(' | ')'));
    inner.split([',', ';', '\n']).map(str::trim).filter(|part| !part.is_empty()).collect()
}

/// Returns the last letter among the first `choices` of the alphabet that stands alone; one after "answer is" or "answer:" comes
/// before all others, because A is also an article.
fn choice(text: &str, choices: u64) -> Option<char> {
    let letters: Vec<char> = ('A'..='Z').take(usize::try_from(choices).unwrap_or(usize::MAX)).collect();
    let characters: Vec<char> = text.chars().collect();
    let plain = |at: Option<usize>| at.and_then(|at| characters.get(at)).is_none_or(|c| !c.is_alphanumeric());
    let alone = |at: &usize| letters.contains(&characters[*at]) && plain(at.checked_sub(1)) && plain(Some(at + 1));
    let lower: String = text.chars().map(|c| c.to_ascii_lowercase()).collect();
    let named = ["answer is", "answer:"].into_iter().filter_map(|words| {
        let from = lower[..lower.rfind(words)?].chars().count() + words.len();
        let skipped = characters.get(from..)?.iter().take_while(|c| !c.is_alphanumeric()).count();
        Some(from + skipped).filter(|at| *at < characters.len() && alone(at))
    });
    named.max().or_else(|| (0..characters.len()).rev().find(alone)).map(|at| characters[at])
}

#[cfg(test)]
mod tests {
    use codex_configs::compose_evaluation;
    use proptest::prelude::*;

    use super::*;

    fn answers(overrides: &[&str]) -> Answers {
        let overrides: Vec<String> = overrides.iter().map(|text| format!("evaluation.{text}")).collect();
        let resolved = compose_evaluation("cot-lite", &overrides, 1, Vec::new()).unwrap();
        Answers::of(&resolved.spec().settings.evaluation).unwrap()
    }

    fn found(overrides: &[&str], text: &str) -> Option<String> {
        answers(overrides).of_response(text)
    }

    #[test]
    fn answers_are_found_where_the_settings_say() {
        let gsm = ["answer=after", "after=####"];
        let pattern = ["answer=regex", "pattern=answer is (-?[0-9]+)"];
        for (settings, text, expected) in [
            (&gsm[..], "6 * 7 = 42\n#### 42 \nmore", Some("42")),
            (&gsm, "#### 1 #### 2", Some("2")),
            (&gsm, "42", None),
            (&gsm, "#### \n42", None),
            (&pattern, "the answer is 3; no, the answer is -4.", Some("-4")),
            (&pattern, "it is 4", None),
            (&["answer=regex", "pattern=[0-9]+"], "7 and 8", Some("8")),
            (&["answer=choice"], "A dog; so the answer is (B) because A is wrong.", Some("B")),
            (&["answer=choice"], "(C)", Some("C")),
            (&["answer=choice"], "C or D", Some("D")),
            (&["answer=choice"], "E", None),
            (&["answer=choice", "choices=5"], "Answer: E", Some("E")),
            (&["answer=choice"], "Bad Answer", None),
            (&["answer=choice"], "é answer: A", Some("A")),
            (&["answer=whole"], " red fox\n", Some("red fox")),
            (&["answer=whole"], " \n", None),
            (&["answer=marked"], "1+1=2 # 2 $", Some("2")),
            (&["answer=last_number"], "so 1,234.50 apples", Some("1234.5")),
        ] {
            assert_eq!(found(settings, text).as_deref(), expected, "{settings:?} {text:?}");
        }
    }

    #[test]
    fn references_are_found_alike_or_are_the_answer() {
        let of = |settings: &[&str], text: &str| answers(settings).of_reference(text);
        assert_eq!(of(&["answer=choice", "reference=whole"], " B "), Ok("B".to_owned()));
        assert_eq!(of(&["answer=after", "after=####"], "#### 3"), Ok("3".to_owned()));
        assert!(of(&["answer=after", "after=####"], "3").unwrap_err().contains("evaluation.reference to whole"));
        assert!(
            of(&["answer=whole", "compare=numeric"], "three").unwrap_err().contains("evaluation.compare is numeric")
        );
        assert_eq!(of(&["answer=whole"], " "), Err("it is empty".to_owned()));
        assert!(of(&["answer=whole", "compare=set"], ",").is_err());
    }

    #[test]
    fn answers_are_compared_as_the_settings_say() {
        let right = |settings: &[&str], one: &str, other: &str| answers(settings).is_right(one, other);
        assert!(right(&["answer=whole"], "a", "a") && !right(&["answer=whole"], "a", "A"));
        let near = ["answer=whole", "compare=numeric", "tolerance=0.01"];
        assert!(right(&near, "about 1.01 m", "1.00") && right(&near, "$1,000", "1000"));
        assert!(!right(&near, "1.02", "1.00") && !right(&near, "none", "1.00"));
        let same = ["answer=whole", "compare=numeric"];
        assert!(right(&same, "0.30", "0.3") && !right(&same, "0.31", "0.3"));
        let set = ["answer=whole", "compare=set"];
        assert!(right(&set, "[b, a]", "a;b") && right(&set, "a, a, b", "b, a"));
        assert!(!right(&set, "a", "a, b") && !right(&set, "", "a"));
    }

    #[test]
    fn settings_that_do_not_go_together_are_refused() {
        let said = |overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(|text| format!("evaluation.{text}")).collect();
            compose_evaluation("cot-lite", &overrides, 1, Vec::new()).unwrap_err().to_string()
        };
        assert_eq!(
            said(&["answer=after"]),
            "evaluation.after is null: write the text before an answer, because evaluation.answer is after"
        );
        assert!(said(&["answer=regex"]).starts_with("evaluation.pattern is null: write a regular expression"));
        assert!(said(&["answer=regex", "pattern=(a"]).starts_with("evaluation.pattern is \"(a\": write a regular"));
        assert!(said(&["answer=regex", "pattern=(?=a)b"]).contains("without look-around"));
        assert!(said(&["answer=first"]).contains("one of marked, last_number, after, regex, choice, whole"));
        assert!(said(&["choices=1"]).contains("a whole number from 2 to 26"));
    }

    proptest! {
        #[test]
        fn any_text_is_searched(text in ".*", form in prop::sample::select(vec!["choice", "whole", "last_number", "marked"])) {
            let of = answers(&[&format!("answer={form}")]);
            if let Some(answer) = of.of_response(&text) {
                prop_assert!(!answer.trim().is_empty() && of.is_right(&answer, &answer));
            }
        }

        #[test]
        fn a_marked_choice_is_found(before in "[ -~]*", at in 0_usize..4) {
            let letter = ["A", "B", "C", "D"][at];
            let text = format!("{before}\nThe answer is ({letter}).");
            prop_assert_eq!(answers(&["answer=choice"]).of_response(&text).unwrap(), letter);
        }
    }
}
