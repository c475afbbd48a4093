//! ROUGE-L of two texts, as the package `rouge-score` computes it without a stemmer: Lin 2004, ROUGE: A Package for Automatic Evaluation
//! of Summaries, section 3.1, with β = 1. Pure.

use crate::tasks::common_in_order;

/// Returns the F1 of the longest common subsequence of the words of two texts, from 0 to 1. Words are runs of ASCII letters and digits
/// in lower case. Texts without any word have nothing in common.
pub(super) fn rouge_l(answer: &str, expected: &str) -> f64 {
    let (answer, expected) = (answer.to_lowercase(), expected.to_lowercase());
    let (answer, expected) = (words(&answer), words(&expected));
    match common_in_order(&expected, &answer) {
        0 => 0.0,
        common => 2.0 * common as f64 / (answer.len() + expected.len()) as f64,
    }
}

fn words(text: &str) -> Vec<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_those_of_the_definition() {
        for (answer, expected, score) in [
            // Lin 2004, section 3.1: S2 and S3 against S1.
            ("police kill the gunman", "police killed the gunman", 0.75),
            ("the gunman kill police", "police killed the gunman", 0.5),
            // Five words in order, of six and six.
            ("the cat sat on the mat", "the cat is on the mat", 10.0 / 12.0),
            // One of three words and one.
            ("It is Paris.", "paris", 0.5),
            ("7+6=13", "7 6 13", 1.0),
            ("", "Paris", 0.0),
            ("?", "!", 0.0),
        ] {
            let found = rouge_l(answer, expected);
            assert!((found - score).abs() < 1e-12, "{answer:?} {expected:?}: {found} is not {score}");
        }
    }
}
