//! Compares two responses to one prompt, and counts the comparisons. Pure.

use codex_engine::LogProbabilities;
use codex_provenance::ModelDigest;
use codex_reports::{Comparison, Difference, MAX_COMPARISONS, latency_buckets};

use crate::{
    serving::{openai, phase::ServedModel},
    tasks,
};

/// How a copy compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The tokens are the same.
    Identical,
    /// The tokens differ, and the final answers are the same.
    Agreed(Difference),
    /// The final answers differ.
    Diverged(Difference),
}

impl Outcome {
    /// Returns the value of the label `result`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Identical => "identical",
            Self::Agreed(_) => "agreed",
            Self::Diverged(_) => "diverged",
        }
    }
}

/// Compares the tokens of the shadow, with their log-probabilities, with the other ones. `answer` returns the final answer of a
/// response.
pub(super) fn compare(
    own: &[u32],
    scores: &[Option<LogProbabilities>],
    other: &[u32],
    answer: impl Fn(&[u32]) -> Option<String>,
) -> Outcome {
    let Some(at) = first_difference(own, other) else { return Outcome::Identical };
    let gap = scores.get(at).and_then(Option::as_ref).zip(other.get(at)).and_then(|(scores, other)| {
        let (_, theirs) = scores.top.iter().find(|(id, _)| id == other)?;
        // Log-probabilities are finite, so the product fits.
        Some((f64::from((scores.chosen - theirs).abs()) * 1_000.0).round() as u64)
    });
    let difference = Difference { token: at as u64, gap_thousandths: gap };
    let same = answer(own).zip(answer(other)).is_some_and(|(own, other)| own == other);
    if same { Outcome::Agreed(difference) } else { Outcome::Diverged(difference) }
}

/// Returns the number of the first token that differs, or that only one response has.
fn first_difference(own: &[u32], other: &[u32]) -> Option<usize> {
    let common = own.iter().zip(other).take_while(|(own, other)| own == other).count();
    (common < own.len().max(other.len())).then_some(common)
}

/// Returns the final answer of a response: what is marked as such, else what follows the reasoning. `None` if the tokens are no text.
pub(super) fn answer(model: &ServedModel, tokens: &[u32]) -> Option<String> {
    let after = tokens.iter().rposition(|id| model.specials.closes_reasoning(*id)).map_or(0, |at| at + 1);
    let text = model.tokenizer.decode(&tokens[after..]).ok()?;
    Some(final_answer(&text).to_owned())
}

fn final_answer(text: &str) -> &str {
    tasks::answer(text).unwrap_or_else(|| openai::after_reasoning(text).trim())
}

/// The comparisons of a shadow with the models that it met last.
#[derive(Debug, Default)]
pub(super) struct Comparisons(Vec<Comparison>);

impl Comparisons {
    /// Counts a comparison: how it ended, and how long both servers took in seconds.
    pub(super) fn count(&mut self, model: ModelDigest, outcome: Outcome, own: f64, other: f64) {
        let comparison = self.of(model);
        comparison.compared += 1;
        comparison.identical += u64::from(outcome == Outcome::Identical);
        comparison.agreed += u64::from(!matches!(outcome, Outcome::Diverged(_)));
        latency_buckets(&mut comparison.latency, own);
        latency_buckets(&mut comparison.other_latency, other);
        if let Outcome::Agreed(difference) | Outcome::Diverged(difference) = outcome {
            let earliest = comparison.first_difference.map_or(difference, |known| known.min(difference));
            comparison.first_difference = Some(earliest);
        }
    }

    /// Counts a copy that was not compared.
    pub(super) fn skip(&mut self, model: ModelDigest) {
        self.of(model).skipped += 1;
    }

    /// Returns all of them.
    pub(super) fn all(&self) -> &[Comparison] {
        &self.0
    }

    /// Returns the comparison with a model. The one that was met first makes room for a new one.
    fn of(&mut self, model: ModelDigest) -> &mut Comparison {
        let at = self.0.iter().position(|known| known.model == model).unwrap_or_else(|| {
            if self.0.len() >= MAX_COMPARISONS {
                self.0.remove(0);
            }
            self.0.push(Comparison::of(model));
            self.0.len() - 1
        });
        &mut self.0[at]
    }
}

#[cfg(test)]
mod tests {
    use codex_engine::LogProbabilities;
    use codex_provenance::{ModelDigest, Sha256};
    use codex_reports::Difference;

    use super::{Comparisons, Outcome, compare, final_answer};

    #[test]
    fn responses_agree_by_tokens_or_by_answers() {
        let scores = |top: &[(u32, f32)]| vec![None, Some(LogProbabilities { chosen: -0.25, top: top.to_vec() })];
        // The last token is the answer.
        let answer = |tokens: &[u32]| tokens.last().map(u32::to_string);
        let near = scores(&[(2, -0.25), (7, -1.75)]);
        assert_eq!(compare(&[1, 2, 3], &near, &[1, 2, 3], answer), Outcome::Identical);
        let difference = Difference { token: 1, gap_thousandths: Some(1_500) };
        assert_eq!(compare(&[1, 2, 3], &near, &[1, 7, 3], answer), Outcome::Agreed(difference));
        assert_eq!(compare(&[1, 2, 3], &near, &[1, 7, 4], answer), Outcome::Diverged(difference));
        let unknown = Difference { token: 1, gap_thousandths: None };
        assert_eq!(compare(&[1, 2, 3], &scores(&[]), &[1, 7, 4], answer), Outcome::Diverged(unknown));
        let longer = Difference { token: 2, gap_thousandths: None };
        assert_eq!(compare(&[1, 2], &near, &[1, 2, 3], answer), Outcome::Diverged(longer));
        assert_eq!(compare(&[1, 2], &near, &[1, 7], |_| None), Outcome::Diverged(difference), "no answer agrees");
    }

    #[test]
    fn the_answer_is_marked_or_follows_the_reasoning() {
        for (text, answer) in
            [("3+4=7 #7$", "7"), ("<think>1</think> 42 \n", "42"), ("a</think>b</think> c", "c"), (" plain ", "plain")]
        {
            assert_eq!(final_answer(text), answer, "{text}");
        }
    }

    #[test]
    fn comparisons_are_counted_by_model_and_only_the_last_models_are_kept() {
        let model = |name: &str| ModelDigest(Sha256::of(name));
        let at = |token: u64| Difference { token, gap_thousandths: None };
        let mut all = Comparisons::default();
        all.skip(model("gone"));
        all.count(model("a"), Outcome::Identical, 0.6, 0.02);
        all.count(model("a"), Outcome::Agreed(at(9)), 0.8, 0.02);
        all.count(model("a"), Outcome::Diverged(at(4)), 0.8, 0.02);
        all.skip(model("b"));
        let [a, b] = all.all() else { panic!("{all:?}") };
        assert_eq!((a.compared, a.agreed, a.identical, a.skipped), (3, 2, 1, 0));
        assert_eq!((a.latency[7], a.latency[8], a.other_latency[2]), (1, 3, 3));
        assert_eq!((a.first_difference, b.skipped), (Some(at(4)), 1));
    }
}
