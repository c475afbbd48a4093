//! Measurements as promotion statements have them, with texts instead of numbers. Pure.

use std::{collections::BTreeMap, convert::Infallible};

use codex_provenance::promotion::Measured;

use crate::{Measurement, Method};

/// A number is no float, or a method is not known.
struct Malformed;

/// Defines a function that restates a measurement of one type as one of the same kind of the other type.
macro_rules! restate {
    ($name:ident, $from:ident => $to:ident, $error:ty, $number:ident, $method:ident) => {
        fn $name(measurement: $from) -> Result<$to, $error> {
            Ok(match measurement {
                $from::Share { successes, n } => $to::Share { successes, n },
                $from::Duel { wins, ties, losses } => $to::Duel { wins, ties, losses },
                $from::Mean { n, sum, sum_of_squares } => {
                    $to::Mean { n, sum: $number(sum)?, sum_of_squares: $number(sum_of_squares)? }
                }
                $from::Difference { n, sum, sum_of_squares } => {
                    $to::Difference { n, sum: $number(sum)?, sum_of_squares: $number(sum_of_squares)? }
                }
                $from::Estimate { value, lower, upper, n, confidence, method } => $to::Estimate {
                    value: $number(value)?,
                    lower: $number(lower)?,
                    upper: $number(upper)?,
                    n,
                    confidence: $number(confidence)?,
                    method: $method(method)?,
                },
                $from::ClusterMean { n, items, sum, sum_of_squares } => {
                    $to::ClusterMean { n, items, sum: $number(sum)?, sum_of_squares: $number(sum_of_squares)? }
                }
                $from::ClusterDifference { n, items, sum, sum_of_squares } => {
                    $to::ClusterDifference { n, items, sum: $number(sum)?, sum_of_squares: $number(sum_of_squares)? }
                }
                $from::ClusterEstimate { value, lower, upper, n, items, confidence, method } => $to::ClusterEstimate {
                    value: $number(value)?,
                    lower: $number(lower)?,
                    upper: $number(upper)?,
                    n,
                    items,
                    confidence: $number(confidence)?,
                    method: $method(method)?,
                },
            })
        }
    };
}

restate!(stated, Measurement => Measured, Infallible, text, name);
restate!(found, Measured => Measurement, Malformed, float, method);

/// Returns a number as a text that parses to the same float; `None` if it is not finite.
#[allow(clippy::unnecessary_wraps, reason = "the other direction can fail")]
fn text(number: Option<f64>) -> Result<Option<String>, Infallible> {
    Ok(number.filter(|number| number.is_finite()).map(|number| format!("{number:e}")))
}

#[allow(clippy::unnecessary_wraps, reason = "the other direction can fail")]
fn name(method: Method) -> Result<String, Infallible> {
    Ok(method.name().to_owned())
}

fn float(text: Option<String>) -> Result<Option<f64>, Malformed> {
    text.map(|text| text.parse().map_err(|_| Malformed)).transpose()
}

#[allow(clippy::needless_pass_by_value, reason = "the other direction takes a value")]
fn method(name: String) -> Result<Method, Malformed> {
    Method::ALL.into_iter().find(|known| known.name() == name).ok_or(Malformed)
}

/// Returns measurements as a statement has them.
pub fn stated_metrics(metrics: &BTreeMap<String, Measurement>) -> BTreeMap<String, Measured> {
    let written = |measurement: &Measurement| {
        let Ok(measured) = stated(*measurement);
        measured
    };
    metrics.iter().map(|(name, measurement)| (name.clone(), written(measurement))).collect()
}

/// Returns the measurement of a statement; `None` if a number or the method is malformed.
pub(crate) fn read(measured: &Measured) -> Option<Measurement> {
    found(measured.clone()).ok()
}
