//! Diversity of one text: distinct-n of Li and others 2016 (arXiv 1510.03055), section 5.2. Pure.

use std::collections::HashSet;

use super::bleu::is_space;

/// Returns the number of different runs of `n` words by the number of all of them, from 0 to 1. Words are what white space separates. A
/// text of fewer words has 0.
pub(super) fn distinct(text: &str, n: usize) -> f64 {
    let words: Vec<&str> = text.split(is_space).filter(|word| !word.is_empty()).collect();
    let all = words.windows(n);
    let count = all.len();
    let different = all.collect::<HashSet<_>>().len();
    if count == 0 { 0.0 } else { different as f64 / count as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_those_of_the_definition() {
        for (text, one, two) in [
            // a and b, of four words; a b and b a, of three pairs.
            ("a b a b", 2.0 / 4.0, 2.0 / 3.0),
            ("all words are different", 1.0, 1.0),
            ("so  so\tso\nso", 1.0 / 4.0, 1.0 / 3.0),
            ("Word word", 1.0, 1.0),
            ("alone", 1.0, 0.0),
            (" ", 0.0, 0.0),
        ] {
            let found = [1, 2].map(|n| distinct(text, n));
            assert!((found[0] - one).abs() < 1e-12 && (found[1] - two).abs() < 1e-12, "{text:?}: {found:?}");
        }
    }
}
