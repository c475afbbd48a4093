//! The metrics of an evaluation: one list, which the schema, the evaluator, the errors and the documents use. Pure.
//!
//! To add a metric, add it to the list below and its scorer to `trainer-image/src/evaluation/score.rs`, which does not
//! compile without one; then regenerate the CRDs and add its row to README.md, which a test compares with the list.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Kind, Method, text::alternatives};

/// The similarity from which an unknown name is taken for a misspelt metric.
const SIMILAR: f64 = 0.66;

macro_rules! metrics {
    ($($variant:ident { name: $name:literal, kind: $kind:ident, needs_baseline: $baseline:literal, description: $description:literal, })*) => {
        /// A metric that an evaluation measures.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Metric {
            $(#[doc = $description] $variant,)*
        }

        impl Metric {
            /// All metrics.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];
            /// The names of all metrics.
            pub const NAMES: &[&str] = &[$($name,)*];

            /// Returns the name that gates, reports and documents use.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Returns the kind of measurement that the evaluator reports for it, which decides how it is bounded.
            pub const fn kind(self) -> Kind {
                match self { $(Self::$variant => Kind::$kind,)* }
            }

            /// Returns true if it compares the model with the recorded predictions of a baseline.
            pub const fn needs_baseline(self) -> bool {
                match self { $(Self::$variant => $baseline,)* }
            }

            /// Returns what it measures, as documents describe it.
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => $description,)* }
            }
        }
    };
}

metrics! {
    ExactMatch {
        name: "exact_match",
        kind: Share,
        needs_baseline: false,
        description: "Share of problems with the right answer: the text between the last `#` and the final `$`, or what `evaluation.answer` says. Text before it does not count",
    }
    WinRate {
        name: "reasoning.win_rate",
        kind: Duel,
        needs_baseline: true,
        description: "Share of problems where the model is right and the pinned baseline is wrong; ties count half",
    }
    TraceCoverage {
        name: "trace_coverage",
        kind: Mean,
        needs_baseline: false,
        description: "Mean over problems of the share of reference steps that the output contains word for word and in order (longest common subsequence)",
    }
    LowestTraceCoverage {
        name: "lowest_trace_coverage",
        kind: Estimate,
        needs_baseline: false,
        description: "Lowest mean of `trace_coverage` in any category of the problems, so that no template of problems hides behind the others",
    }
    TokenF1 {
        name: "token_f1",
        kind: Mean,
        needs_baseline: false,
        description: "Mean over problems of the F1 of the answer's words and the right answer's, as in `SQuAD`: lower case, without ASCII punctuation and the articles a, an, the",
    }
    RougeL {
        name: "rouge_l",
        kind: Mean,
        needs_baseline: false,
        description: "Mean over problems of ROUGE-L, the F1 of the longest common subsequence of the answer's words and the right answer's, as rouge-score computes it without a stemmer",
    }
    Distinct1 {
        name: "distinct_1",
        kind: Mean,
        needs_baseline: false,
        description: "Mean over problems of the number of different words of the response by the number of all its words (distinct-1); a response without words has 0",
    }
    Distinct2 {
        name: "distinct_2",
        kind: Mean,
        needs_baseline: false,
        description: "The same for pairs of neighbouring words (distinct-2); a response of fewer than two words has 0",
    }
    TokenAccuracy {
        name: "token_accuracy",
        kind: Mean,
        needs_baseline: false,
        description: "Mean over problems of the share of the reference response's tokens that the model finds most likely after the right ones before, of those that `perplexity` counts",
    }
    PassAtK {
        name: "pass_at_k",
        kind: Mean,
        needs_baseline: false,
        description: "Mean over problems of the probability that at least one of `evaluation.k` sampled answers is right, estimated without bias from `evaluation.samples` answers",
    }
    MajAtK {
        name: "maj_at_k",
        kind: Share,
        needs_baseline: false,
        description: "Share of problems where the most frequent of all `evaluation.samples` sampled answers is right; of equally frequent ones, the one that was given first",
    }
    Bleu {
        name: "bleu",
        kind: Estimate,
        needs_baseline: false,
        description: "BLEU of all answers against the right ones, from 0 to 100, as sacrebleu computes it: corpus BLEU, 13a tokens, exponential smoothing",
    }
    Perplexity {
        name: "perplexity",
        kind: Estimate,
        needs_baseline: false,
        description: "Perplexity of the reference responses: e to the mean negative log-probability of a token that training would count, its end token included. Lower is better",
    }
    Plugin {
        name: "plugin",
        kind: Mean,
        needs_baseline: false,
        description: "Mean over problems of the number from 0 to 1 that a [plugin](docs/plugins.md), the data named `plugin-metric`, returns for the response",
    }
}

/// The values that a metric can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// From 0 to 1.
    Unit,
    /// From 0 to 100.
    Hundred,
    /// From 1.
    FromOne,
}

/// The greatest bound on a metric without a greatest value.
const MOST: f64 = 1e9;

impl Scale {
    /// All scales.
    pub(crate) const ALL: [Self; 3] = [Self::Unit, Self::Hundred, Self::FromOne];

    /// Returns the least and the greatest bound.
    pub const fn bounds(self) -> (f64, f64) {
        match self {
            Self::Unit => (0.0, 1.0),
            Self::Hundred => (0.0, 100.0),
            Self::FromOne => (1.0, MOST),
        }
    }

    /// Returns what a bound must be, as a sentence lists it.
    pub(crate) const fn right(self) -> &'static str {
        match self {
            Self::Unit => "a decimal from 0 to 1",
            Self::Hundred => "a decimal from 0 to 100",
            Self::FromOne => "a decimal of at least 1 and below 1000000000",
        }
    }

    /// Returns what a difference must be, as a sentence lists it.
    pub(crate) const fn right_difference(self) -> &'static str {
        match self {
            Self::Unit => "a decimal from 0 to 1",
            Self::Hundred => "a decimal from 0 to 100",
            Self::FromOne => "a decimal of at least 0 and below 1000000000",
        }
    }

    /// Returns a bound that sentences show.
    pub(crate) const fn example(self) -> &'static str {
        match self {
            Self::Unit => "0.95",
            Self::Hundred => "30",
            Self::FromOne => "3.5",
        }
    }
}

impl Metric {
    /// Returns the values that it can have.
    pub const fn scale(self) -> Scale {
        match self {
            Self::ExactMatch
            | Self::WinRate
            | Self::TraceCoverage
            | Self::LowestTraceCoverage
            | Self::TokenF1
            | Self::RougeL
            | Self::Distinct1
            | Self::Distinct2
            | Self::TokenAccuracy
            | Self::PassAtK
            | Self::MajAtK
            | Self::Plugin => Scale::Unit,
            Self::Bleu => Scale::Hundred,
            Self::Perplexity => Scale::FromOne,
        }
    }

    /// Returns the kinds of its measurement, or of its comparison with a reference: where items count on their own, and where
    /// clusters of items do.
    pub const fn kinds(self, compares: bool) -> [Kind; 2] {
        let kind = self.kind();
        if compares { [kind.paired(), kind.clustered().paired()] } else { [kind, kind.clustered()] }
    }

    /// Returns whether a lower value is better.
    pub const fn is_lower_better(self) -> bool {
        matches!(self, Self::Perplexity)
    }

    /// Returns whether it is a number of all items together and not the mean of their values. The evaluator reports its bounds, at the
    /// confidence of the setting `evaluation.confidence`.
    pub const fn is_of_corpus(self) -> bool {
        matches!(self.kind(), Kind::Estimate)
    }

    /// Returns how the evaluator bounds it; `None` if its bounds are computed from its counts or sums.
    pub const fn method(self) -> Option<Method> {
        match self {
            Self::Bleu | Self::Perplexity => Some(Method::Bootstrap),
            Self::LowestTraceCoverage => Some(Method::Bernstein),
            Self::ExactMatch
            | Self::WinRate
            | Self::TraceCoverage
            | Self::TokenF1
            | Self::RougeL
            | Self::Distinct1
            | Self::Distinct2
            | Self::TokenAccuracy
            | Self::PassAtK
            | Self::MajAtK
            | Self::Plugin => None,
        }
    }

    /// Returns the bound that a gate with a confidence uses.
    pub const fn bound(self) -> &'static str {
        match self.method() {
            Some(Method::Bootstrap) => "bootstrap (BCa), approximate, from 30 items",
            Some(Method::Bernstein) => "lowest empirical Bernstein bound of any category",
            None if matches!(self.kind(), Kind::Share) => "Clopper–Pearson",
            None => "empirical Bernstein",
        }
    }

    /// Returns whether it needs several sampled answers to each problem.
    pub const fn needs_samples(self) -> bool {
        matches!(self, Self::PassAtK | Self::MajAtK)
    }

    /// Returns whether it is measured only where a gate or the configuration asks for it.
    pub const fn is_on_demand(self) -> bool {
        matches!(
            self,
            Self::LowestTraceCoverage
                | Self::TokenF1
                | Self::RougeL
                | Self::Distinct1
                | Self::Distinct2
                | Self::TokenAccuracy
                | Self::Bleu
                | Self::Perplexity
        )
    }

    /// Returns whether it is measured by feeding the reference responses to the model, and so depends on the tokens into which the model
    /// splits them.
    pub const fn feeds_references(self) -> bool {
        matches!(self, Self::TokenAccuracy | Self::Perplexity)
    }
}

/// A name that no metric has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("metric {name:?} is unknown{}: use {}", suggestion(*nearest), alternatives(Metric::NAMES))]
pub struct UnknownMetric {
    /// The name.
    pub name: String,
    /// The metric whose name resembles it.
    pub nearest: Option<Metric>,
}

fn suggestion(nearest: Option<Metric>) -> String {
    nearest.map(|metric| format!(" (did you mean {metric}?)")).unwrap_or_default()
}

fn nearest(name: &str) -> Option<Metric> {
    Metric::ALL
        .iter()
        .map(|metric| (strsim::normalized_damerau_levenshtein(name, metric.name()), *metric))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(similarity, _)| *similarity >= SIMILAR)
        .map(|(_, metric)| metric)
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Metric {
    type Err = UnknownMetric;

    fn from_str(name: &str) -> Result<Self, UnknownMetric> {
        Self::ALL
            .iter()
            .copied()
            .find(|metric| metric.name() == name)
            .ok_or_else(|| UnknownMetric { name: name.to_owned(), nearest: nearest(name) })
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Metric {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{MAX_METRIC_NAME, MAX_METRICS, MAX_REFERENCES};

    #[test]
    fn names_are_distinct_and_are_read_back() {
        let names: BTreeSet<&str> = Metric::NAMES.iter().copied().collect();
        assert_eq!(names.len(), Metric::ALL.len());
        for metric in Metric::ALL {
            assert_eq!(metric.name().parse(), Ok(*metric));
            assert!((1..=MAX_METRIC_NAME).contains(&metric.name().len()));
            assert!(!metric.description().is_empty());
            assert_eq!(metric.method().is_some(), metric.is_of_corpus(), "{metric}");
        }
        let most = Metric::ALL.len() * (1 + MAX_REFERENCES);
        assert!(most <= MAX_METRICS, "an evaluation that measures and compares everything has {most} metrics");
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let said = |name: &str| name.parse::<Metric>().expect_err("unknown").to_string();
        let known = "use exact_match, reasoning.win_rate, trace_coverage, lowest_trace_coverage, token_f1, rouge_l, distinct_1, distinct_2, \
                     token_accuracy, pass_at_k, maj_at_k, bleu, perplexity or plugin";
        assert_eq!(
            said("exact_mach"),
            format!("metric \"exact_mach\" is unknown (did you mean exact_match?): {known}")
        );
        assert_eq!(said("meteor"), format!("metric \"meteor\" is unknown: {known}"));
        assert_eq!(said(""), format!("metric \"\" is unknown: {known}"));
    }

    #[test]
    fn the_readme_has_a_row_for_every_metric() {
        let readme = include_str!("../../README.md");
        let rows: Vec<String> = Metric::ALL
            .iter()
            .map(|metric| format!("| `{metric}` | {} | {} |", metric.description(), metric.bound()))
            .collect();
        let header = "| Metric | Meaning | Bound |\n|---|---|---|\n";
        let table = format!("\n{header}{}\n\n", rows.join("\n"));
        assert!(readme.contains(&table), "README.md must contain this table:\n{table}");
    }
}
