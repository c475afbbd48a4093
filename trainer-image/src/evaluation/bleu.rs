//! What an answer adds to BLEU, with the tokens that the machine translation evaluations of NIST compare (mteval-v13a), as
//! sacrebleu counts them. The score is computed in `verdict/`. Pure.

use std::collections::HashMap;

use codex_verdict::BleuCounts;

/// Entities that are text again, in this order.
const ENTITIES: [(&str, &str); 4] = [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")];

/// Returns the counts of one answer against one reference.
pub(crate) fn counts(answer: &str, reference: &str) -> BleuCounts {
    let (answer, reference) = (tokens(answer), tokens(reference));
    let (answer, reference) = (words(&answer), words(&reference));
    let mut counts =
        BleuCounts { answer: length(answer.len()), reference: length(reference.len()), ..BleuCounts::default() };
    for order in 1..=counts.totals.len() {
        let mut left: HashMap<&[&str], u32> = HashMap::new();
        for gram in reference.windows(order) {
            *left.entry(gram).or_default() += 1;
        }
        for gram in answer.windows(order) {
            counts.totals[order - 1] += 1;
            if let Some(count) = left.get_mut(gram).filter(|count| **count > 0) {
                *count -= 1;
                counts.matches[order - 1] += 1;
            }
        }
    }
    counts
}

fn length(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn words(tokens: &str) -> Vec<&str> {
    tokens.split(is_space).filter(|word| !word.is_empty()).collect()
}

/// White space as Python splits at it.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Returns the tokens of a text between white space: symbols on their own; periods and commas, too, except inside a number; and a
/// dash after a digit.
fn tokens(text: &str) -> String {
    let mut text = text.trim_end_matches(is_space).replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    if text.contains('&') {
        for (entity, character) in ENTITIES {
            text = text.replace(entity, character);
        }
    }
    let mut spaced = String::from(" ");
    for c in text.chars() {
        if is_symbol(c) {
            spaced.extend([' ', c, ' ']);
        } else {
            spaced.push(c);
        }
    }
    spaced.push(' ');
    let is_point = |c: char| c == '.' || c == ',';
    let after = pairs(&spaced, |c, next| !c.is_ascii_digit() && is_point(next), |c, next| [c, ' ', next, ' ']);
    let before = pairs(&after, |c, next| is_point(c) && !next.is_ascii_digit(), |c, next| [' ', c, ' ', next]);
    pairs(&before, |c, next| c.is_ascii_digit() && next == '-', |c, next| [c, ' ', next, ' '])
}

/// ASCII punctuation except the apostrophe, the comma, the dash and the period; also the space.
fn is_symbol(c: char) -> bool {
    matches!(c, '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/')
}

/// Replaces two characters that match, from the left, and goes on behind them.
fn pairs(text: &str, matches: impl Fn(char, char) -> bool, replaced: impl Fn(char, char) -> [char; 4]) -> String {
    let mut result = String::with_capacity(text.len() * 2);
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match characters.next_if(|next| matches(c, *next)) {
            Some(next) => result.extend(replaced(c, next)),
            None => result.push(c),
        }
    }
    result
}

#[cfg(test)]
pub(super) mod tests {
    use codex_verdict::{CorpusItem as _, Measurement, Resampling, corpus};
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    /// Answer, reference, matches and totals of each order, and both lengths.
    type Counted = (String, String, [u32; 4], [u32; 4], u32, u32);

    /// What `fixtures/texts.py` computed.
    #[derive(Deserialize)]
    pub(in super::super) struct Golden {
        tokens: Vec<(String, String)>,
        counts: Vec<Counted>,
        /// First and last item of a corpus, and its score.
        corpora: Vec<(usize, usize, f64)>,
        /// Answer, reference, F1.
        pub(in super::super) f1: Vec<(String, String, f64)>,
    }

    pub(in super::super) fn golden() -> Golden {
        serde_json::from_str(include_str!("fixtures/texts.json")).unwrap()
    }

    #[test]
    fn tokens_are_those_of_sacrebleu() {
        let cases = golden().tokens;
        assert!(cases.len() > 20);
        for (text, expected) in cases {
            assert_eq!(words(&tokens(&text)).join(" "), expected, "{text:?}");
        }
    }

    #[test]
    fn counts_and_scores_are_those_of_sacrebleu() {
        let golden = golden();
        for (text, reference, matches, totals, answer, length) in &golden.counts {
            let expected = BleuCounts { matches: *matches, totals: *totals, answer: *answer, reference: *length };
            assert_eq!(counts(text, reference), expected, "{text:?} {reference:?}");
            assert_eq!(expected.impossible(), None);
        }
        assert!(golden.corpora.len() > 5);
        for (from, to, score) in golden.corpora {
            let items: Vec<BleuCounts> = golden.counts[from..to].iter().map(|it| counts(&it.0, &it.1)).collect();
            match corpus(&items, None, Resampling { seed: 1, confidence: 0.95 }) {
                Some(Measurement::Estimate { value: Some(found), .. }) => {
                    assert!((found - score).abs() < 1e-9, "{from}..{to}: {found} is not {score}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_counted(answer in ".{0,60}", reference in ".{0,60}") {
            let found = counts(&answer, &reference);
            prop_assert_eq!(found.impossible(), None);
            let same = counts(&reference, &reference);
            prop_assert_eq!(same.matches, same.totals);
        }
    }
}
