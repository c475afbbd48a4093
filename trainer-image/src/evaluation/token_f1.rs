//! F1 of the words of two texts, as the `SQuAD` evaluation defines it: Rajpurkar and others 2016. Pure.

use std::collections::BTreeMap;

use super::bleu::is_space;

/// Words that do not count.
const ARTICLES: [&str; 3] = ["a", "an", "the"];

/// Returns the F1 of the words that two texts have in common, from 0 to 1. Words are compared in lower case, without ASCII punctuation
/// and articles; texts without any word are equal to each other only.
pub(super) fn token_f1(answer: &str, expected: &str) -> f64 {
    let (answer, expected) = (words(answer), words(expected));
    if answer.is_empty() || expected.is_empty() {
        return if answer == expected { 1.0 } else { 0.0 };
    }
    let mut left: BTreeMap<&str, usize> = BTreeMap::new();
    for word in &expected {
        *left.entry(word).or_default() += 1;
    }
    let mut common = 0;
    for word in &answer {
        if let Some(count) = left.get_mut(word.as_str()).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    2.0 * f64::from(common) / (answer.len() + expected.len()) as f64
}

fn words(text: &str) -> Vec<String> {
    let plain: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    // An article also counts as a word beside punctuation that is not ASCII, such as “the”.
    let mut without = String::with_capacity(plain.len());
    let mut run = String::new();
    for c in plain.chars().chain([' ']) {
        if c.is_alphanumeric() {
            run.push(c);
            continue;
        }
        without.push_str(if ARTICLES.contains(&run.as_str()) { " " } else { &run });
        run.clear();
        without.push(c);
    }
    without.split(is_space).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::super::bleu::tests::golden;
    use super::*;

    #[test]
    fn scores_are_those_of_the_definition() {
        let cases = golden().f1;
        assert!(cases.len() > 15);
        for (answer, expected, score) in cases {
            let found = token_f1(&answer, &expected);
            assert!((found - score).abs() < 1e-12, "{answer:?} {expected:?}: {found} is not {score}");
        }
    }
}
