//! Gates: bounds on metrics, as a spec states them and as they are judged. A bound is a number, or the value that another
//! Evaluation of the same problems reached. Pure.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Decimal, MAX_BOOTSTRAP_CONFIDENCE, MAX_METRIC_NAME, Method, Metric, UnknownMetric, cel, decimal, paired_name,
    text::alternatives,
};

/// The most items that `minSamples` may require.
const MAX_SAMPLES: i64 = 1_000_000_000;

/// What `confidence` must be.
pub(crate) const RIGHT_CONFIDENCE: &str = "a decimal above 0.5 and below 1";
/// A bound that sentences show.
pub(crate) const EXAMPLE_BOUND: &str = "0.95";
/// The longest name of an Evaluation.
const MAX_REFERENCE_NAME: usize = 52;
/// What the name of an Evaluation must be.
pub(crate) const RIGHT_REFERENCE: &str =
    "the name of an Evaluation: at most 52 lower-case letters, digits and inner dashes, with a letter first";
/// A confidence that sentences show.
pub(crate) const EXAMPLE_CONFIDENCE: &str = "0.95";

/// A bound on a metric.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline, extend("x-kubernetes-validations" = cel::gate()))]
pub struct GateSpec {
    /// Metric that the gate checks.
    #[schemars(
        description = format!("Metric that the gate checks: {}.", alternatives(Metric::NAMES)),
        length(min = 1, max = MAX_METRIC_NAME),
        extend("x-kubernetes-validations" = cel::metric())
    )]
    pub metric: String,
    /// Lowest value that passes, as a decimal in quotes, such as "0.95": from 0 to 1, for bleu to 100, for perplexity from 1.
    /// Exactly one of min, max, betterThan and notWorseThan is required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<Decimal>,
    /// Highest value that passes, as a decimal in quotes, such as "0.05": from 0 to 1, for bleu to 100, for perplexity from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Decimal>,
    /// Evaluation of the same problems with the same settings than which the model must be better, on the mean over the items
    /// of both. It must be judged first, with any verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub better_than: Option<ComparisonSpec>,
    /// Evaluation of the same problems with the same settings than which the model must not be worse, on the mean over the
    /// items of both. It must be judged first, with any verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_worse_than: Option<ComparisonSpec>,
    /// Minimum number of scored items. With fewer, the gate is inconclusive. Without it, there is no minimum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_SAMPLES))]
    pub min_samples: Option<i64>,
    /// Confidence level of the one-sided bound that the gate checks, as a decimal in quotes, such as "0.95". Without it, the
    /// gate checks the value itself. At most 0.999 for bleu, perplexity and the lowest trace coverage, whose bounds the evaluator
    /// computes at the confidence of the setting evaluation.confidence, which must be the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = cel::confidence()))]
    pub confidence: Option<Decimal>,
    /// Distance from the limit at which a result shall be decided, as a decimal in quotes, such as "0.02". If minSamples, or the
    /// number of problems, is too small for that, a notice says so before anything runs. It changes no verdict. Needs confidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<Decimal>,
}

/// The Evaluation that a gate compares with, and by how much.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct ComparisonSpec {
    /// Name of the Evaluation in this namespace.
    #[schemars(length(min = 1, max = MAX_REFERENCE_NAME), extend("x-kubernetes-validations" = cel::reference()))]
    pub evaluation: String,
    /// Least difference for betterThan, most for notWorseThan, as a decimal in quotes, such as "0.02": from 0 to 1, for bleu to
    /// 100, for perplexity any. Defaults to "0".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Decimal>,
}

/// A valid gate, as it is judged. Its canonical JSON is what a gates digest covers.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gate {
    /// The metric.
    pub metric: Metric,
    /// The bound on its value.
    #[serde(flatten)]
    pub bound: Bound,
    /// The smallest number of items that can decide.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_samples: Option<u64>,
    /// The one-sided confidence with which the bound must clear the gate; without it the value decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    /// How far from the limit a result shall be decided. It decides nothing, so that the digest does not cover it.
    #[serde(skip)]
    pub margin: Option<f64>,
}

/// The bound on a metric's value.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Bound {
    /// At least this.
    Min(f64),
    /// At most this.
    Max(f64),
    /// Better than another Evaluation.
    BetterThan(Comparison),
    /// Not worse than another Evaluation.
    NotWorseThan(Comparison),
}

/// The Evaluation that a gate compares with, and by how much.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// Name of the Evaluation.
    pub evaluation: String,
    /// How much better the model must be, or how much worse it may be.
    pub by: f64,
}

/// The number that a measured value must reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Limit {
    /// At least this.
    Least(f64),
    /// At most this.
    Most(f64),
}

impl Bound {
    /// Returns the Evaluation that it compares with.
    pub fn comparison(&self) -> Option<&Comparison> {
        match self {
            Self::Min(_) | Self::Max(_) => None,
            Self::BetterThan(comparison) | Self::NotWorseThan(comparison) => Some(comparison),
        }
    }

    /// Returns the limit of the value, or of the mean difference if it compares.
    pub(crate) fn limit(&self) -> Limit {
        match self {
            Self::Min(least) => Limit::Least(*least),
            Self::Max(most) => Limit::Most(*most),
            Self::BetterThan(comparison) => Limit::Least(comparison.by),
            // Adding 0 turns -0 into 0.
            Self::NotWorseThan(comparison) => Limit::Least(-comparison.by + 0.0),
        }
    }
}

impl Gate {
    /// Returns the name of the measurement that it judges: the metric, or the comparison of the metric with an Evaluation.
    pub fn measurement(&self) -> String {
        self.bound
            .comparison()
            .map_or_else(|| self.metric.to_string(), |with| paired_name(self.metric, &with.evaluation))
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Min(least) => write!(f, "at least {least}"),
            Self::Max(most) => write!(f, "at most {most}"),
            Self::BetterThan(Comparison { evaluation, by }) if *by > 0.0 => {
                write!(f, "an improvement over Evaluation {evaluation} of at least {by}")
            }
            Self::BetterThan(Comparison { evaluation, .. }) => write!(f, "an improvement over Evaluation {evaluation}"),
            Self::NotWorseThan(Comparison { evaluation, by }) if *by > 0.0 => {
                write!(f, "at most {by} less than Evaluation {evaluation}")
            }
            Self::NotWorseThan(Comparison { evaluation, .. }) => write!(f, "no less than Evaluation {evaluation}"),
        }
    }
}

/// Why a gate is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// The metric is unknown.
    #[error(transparent)]
    Metric(#[from] UnknownMetric),
    /// No bound is set.
    #[error(
        "the gate on {0} has none of min, max, betterThan and notWorseThan: write one of them, such as min: \"{EXAMPLE_BOUND}\""
    )]
    NoBound(Metric),
    /// There is a margin without a confidence.
    #[error(
        "the gate on {0} has a margin and no confidence: without confidence the value decides, so add it, such as confidence: \"{EXAMPLE_CONFIDENCE}\""
    )]
    Margin(Metric),
    /// Several bounds are set.
    #[error("the gate on {metric} has both {one} and {other}: write two gates")]
    TwoBounds {
        /// The metric.
        metric: Metric,
        /// A bound.
        one: &'static str,
        /// Another bound.
        other: &'static str,
    },
    /// A field is not a number, or is out of range.
    #[error("the gate on {metric} has {field} {value:?}: write {right}")]
    Field {
        /// The metric.
        metric: Metric,
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What to write instead.
        right: String,
    },
    /// The text of a gate on the command line cannot be read.
    #[error(
        "the gate {0:?} cannot be read: write METRIC>=BOUND[@CONFIDENCE] or METRIC<=BOUND[@CONFIDENCE], such as exact_match>=0.95@0.95"
    )]
    Text(String),
}

impl TryFrom<&GateSpec> for Gate {
    type Error = GateError;

    fn try_from(spec: &GateSpec) -> Result<Self, GateError> {
        let metric: Metric = spec.metric.parse()?;
        let refuse =
            |field, value: &str, right: String| GateError::Field { metric, field, value: value.to_owned(), right };
        let scale = metric.scale();
        let (least, most) = scale.bounds();
        let number = |field, Decimal(text): &Decimal| {
            let (least, right) =
                if cel::is_difference(field) { (0.0, scale.right_difference()) } else { (least, scale.right()) };
            decimal::parse(text)
                .filter(|bound| (least..=most).contains(bound))
                .ok_or_else(|| refuse(field, text, in_quotes(right, scale.example())))
        };
        let comparison = |field: &'static str, spec: &ComparisonSpec| {
            let ComparisonSpec { evaluation, by } = spec;
            if !is_reference(evaluation) {
                return Err(refuse(field, evaluation, RIGHT_REFERENCE.to_owned()));
            }
            let by = by.as_ref().map(|by| number("by", by)).transpose()?.unwrap_or_default();
            Ok(Comparison { evaluation: evaluation.clone(), by })
        };
        let set = [
            ("min", spec.min.is_some()),
            ("max", spec.max.is_some()),
            ("betterThan", spec.better_than.is_some()),
            ("notWorseThan", spec.not_worse_than.is_some()),
        ];
        let set: Vec<&'static str> = set.into_iter().filter_map(|(name, is_set)| is_set.then_some(name)).collect();
        if let [one, other, ..] = set[..] {
            return Err(GateError::TwoBounds { metric, one, other });
        }
        let bound = match (&spec.min, &spec.max, &spec.better_than, &spec.not_worse_than) {
            (Some(min), ..) => Bound::Min(number("min", min)?),
            (_, Some(max), ..) => Bound::Max(number("max", max)?),
            (_, _, Some(spec), _) => Bound::BetterThan(comparison("betterThan.evaluation", spec)?),
            (_, _, _, Some(spec)) => Bound::NotWorseThan(comparison("notWorseThan.evaluation", spec)?),
            (None, None, None, None) => return Err(GateError::NoBound(metric)),
        };
        let min_samples = spec
            .min_samples
            .map(|count| {
                u64::try_from(count).ok().filter(|_| (1..=MAX_SAMPLES).contains(&count)).ok_or_else(|| {
                    let right = format!("a whole number from 1 to {MAX_SAMPLES}");
                    refuse("minSamples", &count.to_string(), right)
                })
            })
            .transpose()?;
        let confidence = spec
            .confidence
            .as_ref()
            .map(|Decimal(text)| {
                let share = decimal::parse(text)
                    .filter(|share| *share > 0.5 && *share < 1.0)
                    .ok_or_else(|| refuse("confidence", text, in_quotes(RIGHT_CONFIDENCE, EXAMPLE_CONFIDENCE)))?;
                if metric.is_of_corpus() && share > MAX_BOOTSTRAP_CONFIDENCE {
                    let why = if metric.method() == Some(Method::Bootstrap) {
                        "its bounds are bootstrapped"
                    } else {
                        "its bounds have that of the setting evaluation.confidence"
                    };
                    let right = format!("at most {MAX_BOOTSTRAP_CONFIDENCE}, because {why}");
                    return Err(refuse("confidence", text, right));
                }
                Ok(share)
            })
            .transpose()?;
        let margin = spec.margin.as_ref().map(|margin| number("margin", margin)).transpose()?;
        if margin.is_some() && confidence.is_none() {
            return Err(GateError::Margin(metric));
        }
        Ok(Self { metric, bound, min_samples, confidence, margin })
    }
}

/// Whether a text is the name of an Evaluation.
fn is_reference(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= MAX_REFERENCE_NAME
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|byte| plain(byte) || byte == b'-')
        && name.bytes().last().is_some_and(plain)
}

/// The sentence for a field of a spec: YAML needs quotes around a decimal.
fn in_quotes(right: &str, example: &str) -> String {
    format!("{right} in quotes, such as \"{example}\"")
}

impl FromStr for Gate {
    type Err = GateError;

    /// Reads `METRIC>=BOUND` or `METRIC<=BOUND`, with or without a trailing `@CONFIDENCE`.
    fn from_str(text: &str) -> Result<Self, GateError> {
        let (metric, bound, is_min) = if let Some((metric, bound)) = text.split_once(">=") {
            (metric, bound, true)
        } else if let Some((metric, bound)) = text.split_once("<=") {
            (metric, bound, false)
        } else {
            return Err(GateError::Text(text.to_owned()));
        };
        let (bound, confidence) = match bound.split_once('@') {
            Some((bound, confidence)) => (bound, Some(confidence)),
            None => (bound, None),
        };
        let decimal = |text: &str| Decimal(text.trim().to_owned());
        let (min, max) = if is_min { (Some(decimal(bound)), None) } else { (None, Some(decimal(bound))) };
        let metric = metric.trim().to_owned();
        let spec = GateSpec { metric, min, max, confidence: confidence.map(decimal), ..GateSpec::default() };
        // Only YAML needs quotes, and the command line has one bound.
        Self::try_from(&spec).map_err(|why| match why {
            GateError::Field { metric, field: "confidence", value, right } if !right.contains(" in quotes") => {
                GateError::Field { metric, field: "confidence", value, right }
            }
            GateError::Field { metric, field: "confidence", value, .. } => {
                let right = format!("{RIGHT_CONFIDENCE}, such as {EXAMPLE_CONFIDENCE}");
                GateError::Field { metric, field: "confidence", value, right }
            }
            GateError::Field { metric, value, .. } => {
                let right = format!("{}, such as {}", metric.scale().right(), metric.scale().example());
                GateError::Field { metric, field: "bound", value, right }
            }
            other => other,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn exact_match() -> GateSpec {
        GateSpec { metric: "exact_match".to_owned(), ..GateSpec::default() }
    }

    fn decimal(text: &str) -> Decimal {
        Decimal(text.to_owned())
    }

    fn refused(gate: &GateSpec) -> String {
        Gate::try_from(gate).expect_err("invalid").to_string()
    }

    #[test]
    fn invalid_gates_are_refused_with_a_sentence() {
        let gate = exact_match();
        assert_eq!(
            refused(&gate),
            "the gate on exact_match has none of min, max, betterThan and notWorseThan: write one of them, such as min: \"0.95\""
        );
        assert_eq!(
            refused(&GateSpec { min: Some(decimal("0.1")), max: Some(decimal("0.9")), ..gate.clone() }),
            "the gate on exact_match has both min and max: write two gates"
        );
        for value in ["NaN", "inf", "high", "", "95", "-0.1", "1.01", "1e-3"] {
            let right = "write a decimal from 0 to 1 in quotes, such as \"0.95\"";
            assert_eq!(
                refused(&GateSpec { min: Some(decimal(value)), ..gate.clone() }),
                format!("the gate on exact_match has min {value:?}: {right}")
            );
            assert_eq!(
                refused(&GateSpec { max: Some(decimal(value)), ..gate.clone() }),
                format!("the gate on exact_match has max {value:?}: {right}")
            );
        }
        let gate = GateSpec { min: Some(decimal("0.95")), ..gate };
        for value in ["NaN", "0.5", "1", "95", "sure"] {
            assert_eq!(
                refused(&GateSpec { confidence: Some(decimal(value)), ..gate.clone() }),
                format!(
                    "the gate on exact_match has confidence {value:?}: write a decimal above 0.5 and below 1 in quotes, such as \"0.95\""
                )
            );
        }
        for count in [-1, 0, MAX_SAMPLES + 1] {
            assert_eq!(
                refused(&GateSpec { min_samples: Some(count), ..gate.clone() }),
                format!(
                    "the gate on exact_match has minSamples \"{count}\": write a whole number from 1 to 1000000000"
                )
            );
        }
        assert!(refused(&GateSpec { metric: String::new(), ..gate }).starts_with("metric \"\" is unknown: use exact"));
    }

    #[test]
    fn a_margin_needs_a_confidence_and_decides_nothing() {
        let with = |confidence: Option<&str>, margin: &str| GateSpec {
            min: Some(decimal("0.95")),
            confidence: confidence.map(decimal),
            margin: Some(decimal(margin)),
            ..exact_match()
        };
        let gate = Gate::try_from(&with(Some("0.95"), "0.02")).expect("a gate");
        assert_eq!(gate.margin, Some(0.02));
        let without = Gate { margin: None, ..gate.clone() };
        assert_eq!(crate::gates_digest(&[gate]), crate::gates_digest(&[without]));
        assert_eq!(
            refused(&with(None, "0.02")),
            "the gate on exact_match has a margin and no confidence: without confidence the value decides, so add it, such as \
             confidence: \"0.95\""
        );
        let told = refused(&with(Some("0.95"), "-0.02"));
        assert!(
            told.starts_with("the gate on exact_match has margin \"-0.02\": write a decimal from 0 to 1"),
            "{told}"
        );
    }

    #[test]
    fn gates_on_the_command_line() {
        let gate: Gate = "reasoning.win_rate >= 0.55 @ 0.95".parse().expect("a gate");
        let spec = GateSpec {
            metric: "reasoning.win_rate".to_owned(),
            min: Some(decimal("0.55")),
            confidence: Some(decimal("0.95")),
            ..exact_match()
        };
        assert_eq!(gate, Gate::try_from(&spec).expect("the same gate"));
        let gate: Gate = "trace_coverage<=0.1".parse().expect("a gate");
        assert_eq!((gate.metric, gate.bound, gate.confidence), (Metric::TraceCoverage, Bound::Max(0.1), None));
        assert!("exact_match=0.9".parse::<Gate>().is_err());
        assert!("exact_match>=0.9@".parse::<Gate>().is_err());
        let said = |text: &str| text.parse::<Gate>().expect_err("invalid").to_string();
        let right = "write a decimal from 0 to 1, such as 0.95";
        assert_eq!(said("exact_match>=2"), format!("the gate on exact_match has bound \"2\": {right}"));
        let right = "write a decimal above 0.5 and below 1, such as 0.95";
        assert_eq!(said("exact_match<=0@1"), format!("the gate on exact_match has confidence \"1\": {right}"));
        assert!(said("exact_match=1").contains("METRIC<=BOUND[@CONFIDENCE]"));
        assert!(said("exact_mach>=0.9").contains("did you mean exact_match?"));
    }

    #[test]
    fn bounds_follow_the_scale_of_the_metric() {
        let said = |text: &str| text.parse::<Gate>().expect_err("invalid").to_string();
        let gate: Gate = "bleu>=31.5@0.95".parse().expect("a gate");
        assert_eq!((gate.metric, gate.bound), (Metric::Bleu, Bound::Min(31.5)));
        let gate: Gate = "perplexity<=12".parse().expect("a gate");
        assert_eq!((gate.metric, gate.bound), (Metric::Perplexity, Bound::Max(12.0)));
        assert_eq!(said("bleu>=101"), "the gate on bleu has bound \"101\": write a decimal from 0 to 100, such as 30");
        let right = "write a decimal of at least 1 and below 1000000000, such as 3.5";
        assert_eq!(said("perplexity<=0.5"), format!("the gate on perplexity has bound \"0.5\": {right}"));
        let right = "write at most 0.999, because its bounds are bootstrapped";
        assert_eq!(said("bleu>=30@0.9999"), format!("the gate on bleu has confidence \"0.9999\": {right}"));
        assert_eq!(
            said("lowest_trace_coverage>=0.9@0.9999"),
            "the gate on lowest_trace_coverage has confidence \"0.9999\": write at most 0.999, because its bounds have that of \
             the setting evaluation.confidence"
        );
        let gate = GateSpec { metric: "bleu".to_owned(), confidence: Some(decimal("0.9999")), ..exact_match() };
        let told = refused(&GateSpec { min: Some(decimal("30")), ..gate });
        assert_eq!(told, format!("the gate on bleu has confidence \"0.9999\": {right}"));
    }

    #[test]
    fn comparisons_are_read_and_refused_with_a_sentence() {
        let with = |evaluation: &str, by: Option<&str>| ComparisonSpec {
            evaluation: evaluation.to_owned(),
            by: by.map(decimal),
        };
        let better = GateSpec { better_than: Some(with("before", Some("0.05"))), ..exact_match() };
        let gate = Gate::try_from(&better).expect("a gate");
        assert_eq!(gate.bound, Bound::BetterThan(Comparison { evaluation: "before".to_owned(), by: 0.05 }));
        assert_eq!(gate.measurement(), "exact_match@before");
        assert_eq!(gate.bound.limit(), Limit::Least(0.05));
        let worse = GateSpec { not_worse_than: Some(with("before", None)), ..exact_match() };
        let gate = Gate::try_from(&worse).expect("a gate");
        assert_eq!(gate.bound.to_string(), "no less than Evaluation before");
        assert_eq!(
            refused(&GateSpec { min: Some(decimal("0.5")), ..better.clone() }),
            "the gate on exact_match has both min and betterThan: write two gates"
        );
        assert_eq!(
            refused(&GateSpec { not_worse_than: worse.not_worse_than, ..better }),
            "the gate on exact_match has both betterThan and notWorseThan: write two gates"
        );
        for name in ["", "Before", "before-", "1st", "a/b", "a@b", &"a".repeat(53)] {
            let told = refused(&GateSpec { better_than: Some(with(name, None)), ..exact_match() });
            assert!(
                told.starts_with(&format!(
                    "the gate on exact_match has betterThan.evaluation {name:?}: write the name"
                )),
                "{told}"
            );
        }
        let told = refused(&GateSpec { not_worse_than: Some(with("before", Some("-0.1"))), ..exact_match() });
        assert!(told.starts_with("the gate on exact_match has by \"-0.1\": write a decimal from 0 to 1"), "{told}");
    }

    /// A pattern without its anchors.
    fn inner(pattern: &str) -> String {
        pattern.trim_start_matches('^').trim_end_matches('$').to_owned()
    }

    /// The pattern of a CEL rule on a decimal.
    fn pattern(rules: &serde_json::Value) -> String {
        let rule = rules[0]["rule"].as_str().expect("a rule");
        inner(rule.trim_start_matches("self.matches('").trim_end_matches("')"))
    }

    /// A metric of each scale, with what matches the pattern of its bounds, or of its differences.
    fn matching(from_zero: bool) -> impl Strategy<Value = (Metric, String)> {
        prop::sample::select(vec![Metric::ExactMatch, Metric::Bleu, Metric::Perplexity]).prop_flat_map(move |metric| {
            let pattern = inner(&cel::pattern(metric.scale(), from_zero));
            (Just(metric), prop::string::string_regex(&pattern).expect("a pattern"))
        })
    }

    proptest! {
        /// What the API server accepts, the controller accepts, too.
        #[test]
        fn every_bound_that_matches_its_rule_is_valid((metric, text) in matching(false), (of, by) in matching(true)) {
            let gate = Gate::try_from(&GateSpec { metric: metric.to_string(), min: Some(decimal(&text)), ..exact_match() });
            prop_assert!(gate.is_ok(), "{text}: {gate:?}");
            let better_than = Some(ComparisonSpec { evaluation: "before".to_owned(), by: Some(decimal(&by)) });
            let gate = Gate::try_from(&GateSpec { metric: of.to_string(), better_than, ..exact_match() });
            prop_assert!(gate.is_ok(), "{by}: {gate:?}");
            let [min, margin, confidence] = [of.scale().example(), &by, "0.95"].map(|text| Some(decimal(text)));
            let gate = Gate::try_from(&GateSpec { metric: of.to_string(), min, margin, confidence, ..exact_match() });
            prop_assert!(gate.is_ok(), "{by}: {gate:?}");
        }

        /// Above 0.5 by less than a float can hold is 0.5, and 18 digits are read: longer texts are refused with a sentence.
        #[test]
        fn every_confidence_that_matches_its_rule_and_is_short_is_valid(
            text in prop::string::string_regex(&pattern(&cel::confidence())).expect("a pattern"),
        ) {
            let text: String = text.chars().take(12).collect();
            prop_assume!(text != "0.5000000000");
            let gate = Gate::try_from(&GateSpec { min: Some(decimal("1")), confidence: Some(decimal(&text)), ..exact_match() });
            prop_assert!(gate.is_ok(), "{text}: {gate:?}");
        }
    }
}
