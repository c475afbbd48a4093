//! A gate: one bound on one metric. Pure.

use std::{fmt, str::FromStr};

use serde::Serialize;

use crate::decimal;

/// One bound on one metric. Its canonical JSON is what a gates digest covers.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gate {
    /// The metric's name.
    pub metric: String,
    /// What its value must keep.
    #[serde(flatten)]
    pub bound: Bound,
    /// With fewer items than this the gate is inconclusive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_samples: Option<u64>,
    /// The confidence in (0.5, 1) with which the one-sided bound must clear the gate; without it the value decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
}

/// What a metric's value must keep.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Bound {
    /// At least this.
    Min(f64),
    /// At most this.
    Max(f64),
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Min(least) => write!(f, "at least {least}"),
            Self::Max(most) => write!(f, "at most {most}"),
        }
    }
}

/// A gate as it is written in the API: decimals are text.
#[derive(Clone, Copy, Debug, Default)]
pub struct WrittenGate<'a> {
    /// The metric's name.
    pub metric: &'a str,
    /// The least value that passes.
    pub min: Option<&'a str>,
    /// The greatest value that passes.
    pub max: Option<&'a str>,
    /// The fewest items that decide.
    pub min_samples: Option<i64>,
    /// The one-sided confidence.
    pub confidence: Option<&'a str>,
}

/// Why a gate is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// No bound.
    #[error("the gate on {0} has neither min nor max: write one of them, such as min: \"0.95\"")]
    NoBound(String),
    /// Two bounds.
    #[error("the gate on {0} has both min and max: write two gates")]
    TwoBounds(String),
    /// No name.
    #[error("a gate's metric is {0:?}: write the name of a metric, such as exact_match")]
    Metric(String),
    /// A field that is no number, or one out of range.
    #[error("the gate on {metric} has {field} {value:?}: write {right}")]
    Field {
        /// The metric's name.
        metric: String,
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        right: &'static str,
    },
    /// Text that is no gate.
    #[error(
        "the gate {0:?} cannot be read: write METRIC>=BOUND[@CONFIDENCE] or METRIC<=BOUND[@CONFIDENCE], such as exact_match>=0.95@0.95"
    )]
    Text(String),
}

impl TryFrom<WrittenGate<'_>> for Gate {
    type Error = GateError;

    fn try_from(written: WrittenGate<'_>) -> Result<Self, GateError> {
        let WrittenGate { metric, min, max, min_samples, confidence } = written;
        if metric.is_empty() || metric.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(GateError::Metric(metric.to_owned()));
        }
        let refuse = |field, value: &str, right| GateError::Field {
            metric: metric.to_owned(),
            field,
            value: value.to_owned(),
            right,
        };
        let number = |field, text: &str| {
            decimal::parse(text)
                .filter(|bound| (0.0..=1.0).contains(bound))
                .ok_or_else(|| refuse(field, text, "a plain decimal from 0 to 1 in quotes, such as \"0.95\""))
        };
        let bound = match (min, max) {
            (Some(min), None) => Bound::Min(number("min", min)?),
            (None, Some(max)) => Bound::Max(number("max", max)?),
            (None, None) => return Err(GateError::NoBound(metric.to_owned())),
            (Some(_), Some(_)) => return Err(GateError::TwoBounds(metric.to_owned())),
        };
        let min_samples = min_samples
            .map(|count| {
                let right = "a whole number of at least 1";
                u64::try_from(count)
                    .ok()
                    .filter(|count| *count >= 1)
                    .ok_or_else(|| refuse("minSamples", &count.to_string(), right))
            })
            .transpose()?;
        let confidence = confidence
            .map(|text| {
                let right = "a plain decimal above 0.5 and below 1 in quotes, such as \"0.95\"";
                decimal::parse(text)
                    .filter(|share| *share > 0.5 && *share < 1.0)
                    .ok_or_else(|| refuse("confidence", text, right))
            })
            .transpose()?;
        Ok(Self { metric: metric.to_owned(), bound, min_samples, confidence })
    }
}

impl FromStr for Gate {
    type Err = GateError;

    /// Reads `METRIC>=BOUND` or `METRIC<=BOUND`, with `@CONFIDENCE` behind it or without.
    fn from_str(text: &str) -> Result<Self, GateError> {
        let (metric, bound, is_min) = if let Some((metric, bound)) = text.split_once(">=") {
            (metric, bound, true)
        } else if let Some((metric, bound)) = text.split_once("<=") {
            (metric, bound, false)
        } else {
            return Err(GateError::Text(text.to_owned()));
        };
        let (bound, confidence) = match bound.split_once('@') {
            Some((bound, confidence)) => (bound.trim(), Some(confidence.trim())),
            None => (bound.trim(), None),
        };
        let (min, max) = if is_min { (Some(bound), None) } else { (None, Some(bound)) };
        let written = WrittenGate { metric: metric.trim(), min, max, min_samples: None, confidence };
        // Decimals stand in quotes in YAML alone.
        Self::try_from(written).map_err(|why| match why {
            GateError::Field { metric, field: "confidence", value, .. } => {
                let right = "a plain decimal above 0.5 and below 1, such as 0.95";
                GateError::Field { metric, field: "confidence", value, right }
            }
            GateError::Field { metric, value, .. } => {
                let right = "a plain decimal from 0 to 1, such as 0.95";
                GateError::Field { metric, field: "bound", value, right }
            }
            other => other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(gate: WrittenGate<'_>) -> String {
        Gate::try_from(gate).expect_err("no gate").to_string()
    }

    #[test]
    fn gates_that_are_none() {
        let gate = WrittenGate { metric: "exact_match", ..WrittenGate::default() };
        assert_eq!(
            refused(gate),
            "the gate on exact_match has neither min nor max: write one of them, such as min: \"0.95\""
        );
        assert_eq!(
            refused(WrittenGate { min: Some("0.1"), max: Some("0.9"), ..gate }),
            "the gate on exact_match has both min and max: write two gates"
        );
        for value in ["NaN", "inf", "high", "", "95", "-0.1", "1.01", "1e-3"] {
            let right = "write a plain decimal from 0 to 1 in quotes, such as \"0.95\"";
            assert_eq!(
                refused(WrittenGate { min: Some(value), ..gate }),
                format!("the gate on exact_match has min {value:?}: {right}")
            );
            assert_eq!(
                refused(WrittenGate { max: Some(value), ..gate }),
                format!("the gate on exact_match has max {value:?}: {right}")
            );
        }
        let gate = WrittenGate { min: Some("0.95"), ..gate };
        for value in ["NaN", "0.5", "1", "95", "sure"] {
            assert_eq!(
                refused(WrittenGate { confidence: Some(value), ..gate }),
                format!(
                    "the gate on exact_match has confidence {value:?}: write a plain decimal above 0.5 and below 1 in quotes, such as \"0.95\""
                )
            );
        }
        assert_eq!(
            refused(WrittenGate { min_samples: Some(0), ..gate }),
            "the gate on exact_match has minSamples \"0\": write a whole number of at least 1"
        );
        assert!(refused(WrittenGate { metric: "", ..gate }).starts_with("a gate's metric is \"\""));
    }

    #[test]
    fn gates_on_the_command_line() {
        let gate: Gate = "reasoning.win_rate >= 0.55 @ 0.95".parse().expect("a gate");
        let written = WrittenGate {
            metric: "reasoning.win_rate",
            min: Some("0.55"),
            confidence: Some("0.95"),
            ..WrittenGate::default()
        };
        assert_eq!(gate, Gate::try_from(written).expect("the same gate"));
        let gate: Gate = "error_rate<=0.1".parse().expect("a gate");
        assert_eq!((gate.bound, gate.confidence), (Bound::Max(0.1), None));
        assert!("exact_match=0.9".parse::<Gate>().is_err());
        assert!("exact_match>=0.9@".parse::<Gate>().is_err());
        let said = |text: &str| text.parse::<Gate>().expect_err("no gate").to_string();
        let right = "write a plain decimal from 0 to 1, such as 0.95";
        assert_eq!(said("a>=2"), format!("the gate on a has bound \"2\": {right}"));
        let right = "write a plain decimal above 0.5 and below 1, such as 0.95";
        assert_eq!(said("a<=0@1"), format!("the gate on a has confidence \"1\": {right}"));
        assert!(said("a=1").contains("METRIC<=BOUND[@CONFIDENCE]"));
    }
}
