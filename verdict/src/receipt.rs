//! Which measurements of a report are accepted. Pure.

use std::collections::BTreeMap;

use codex_provenance::text::Printable;

use crate::{Impossible, Kind, MAX_METRIC_NAME, MAX_METRICS, Measurement, Method, Metric, Sample, paired::SEPARATOR};

/// Why the measurements of a report are refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Unacceptable {
    /// More metrics than a status holds.
    #[error("it has {0} metrics, more than {MAX_METRICS}")]
    TooMany(usize),
    /// A name of a metric that a status cannot hold.
    #[error("it has a metric whose name is empty or longer than {MAX_METRIC_NAME} characters")]
    Name,
    /// A measurement of another kind than the metric's.
    #[error("its {} is a measurement of kind {}, but {} is of kind {}", Printable(name), reported.name(), Printable(name), expected.name())]
    Kind {
        /// Name of the measurement.
        name: String,
        /// The kind of the measurement.
        reported: Kind,
        /// The kind that it must have.
        expected: Kind,
    },
    /// An estimate whose bounds were computed by another method than the metric's.
    #[error("its {} has bounds by the method {}, but those of {} are by {}", Printable(name), reported.name(), Printable(name), expected.name())]
    Method {
        /// Name of the measurement.
        name: String,
        /// The method of the measurement.
        reported: Method,
        /// The method that it must have.
        expected: Method,
    },
    /// An estimate of a metric that this version does not know.
    #[error("its {0:?} carries its own bounds, which only a known metric may, and this metric is unknown")]
    UnknownEstimate(String),
    /// An estimate whose numbers are impossible.
    #[error("its {} is impossible: {why}", Printable(name))]
    Impossible {
        /// Name of the measurement.
        name: String,
        /// Why.
        #[source]
        why: Impossible,
    },
}

/// Checks the measurements of a report before they are recorded and judged.
///
/// A metric that is unknown is recorded and judges nothing. Counts that are impossible are recorded, too, and leave their
/// gate inconclusive. The bounds of an estimate cannot be computed again, so an estimate is accepted only for a metric of
/// that kind, and only if its numbers are possible and its method is the metric's.
///
/// # Errors
/// [`Unacceptable`] says what is wrong with which metric; a sentence about "the report" can start with it.
pub fn accept(metrics: &BTreeMap<String, Measurement>) -> Result<(), Unacceptable> {
    if metrics.len() > MAX_METRICS {
        return Err(Unacceptable::TooMany(metrics.len()));
    }
    for (name, measurement) in metrics {
        if name.is_empty() || name.len() > MAX_METRIC_NAME {
            return Err(Unacceptable::Name);
        }
        match metric_of(name) {
            Some((metric, compares)) => of_metric(name, metric, compares, measurement)?,
            None if measurement.kind().is_estimate() => return Err(Unacceptable::UnknownEstimate(name.clone())),
            None => {}
        }
    }
    Ok(())
}

/// Returns the metric of the measurement called `name`, and whether it is compared with a reference. `None` if no metric is called so.
fn metric_of(name: &str) -> Option<(Metric, bool)> {
    match name.split_once(SEPARATOR) {
        None => Some((name.parse().ok()?, false)),
        Some((metric, _)) => Some((metric.parse().ok()?, true)),
    }
}

/// Checks the measurement called `name` of a metric, which must be of the metric's kind, for items or for clusters.
fn of_metric(name: &str, metric: Metric, compares: bool, measurement: &Measurement) -> Result<(), Unacceptable> {
    let (kinds, reported) = (metric.kinds(compares), measurement.kind());
    if !kinds.contains(&reported) {
        return Err(Unacceptable::Kind { name: name.to_owned(), reported, expected: kinds[0] });
    }
    if let Some(expected) = metric.method() {
        let sample = Sample::of(measurement).map_err(|why| Unacceptable::Impossible { name: name.to_owned(), why })?;
        if let Sample::Estimate { method: reported, .. } = sample
            && reported != expected
        {
            return Err(Unacceptable::Method { name: name.to_owned(), reported, expected });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(value: f64, method: Method) -> Measurement {
        let [lower, upper, confidence] = [0.4, 0.6, 0.95].map(Some);
        Measurement::Estimate { value: Some(value), lower, upper, n: 200, confidence, method }
    }

    fn of(name: &str, measurement: Measurement) -> Result<(), String> {
        accept(&BTreeMap::from([(name.to_owned(), measurement)])).map_err(|why| why.to_string())
    }

    #[test]
    fn measurements_of_the_metrics_kind_are_accepted() {
        of("exact_match", Measurement::Share { successes: 1, n: 2 }).expect("a share");
        of("reasoning.win_rate", Measurement::Duel { wins: 1, ties: 0, losses: 0 }).expect("a duel");
        of("trace_coverage", Measurement::Mean { n: 1, sum: None, sum_of_squares: None }).expect("a mean");
        of("unknown", Measurement::Share { successes: 1, n: 2 }).expect("recorded, never judged");
        of("exact_match@before", Measurement::Duel { wins: 1, ties: 0, losses: 0 }).expect("a paired share");
        let difference = Measurement::Difference { n: 1, sum: None, sum_of_squares: None };
        of("trace_coverage@before", difference).expect("a paired mean");
        assert_eq!(
            of("exact_match@before", Measurement::Share { successes: 1, n: 2 }).expect_err("another kind"),
            "its exact_match@before is a measurement of kind share, but exact_match@before is of kind duel"
        );
        let said = of("exact_match", Measurement::Mean { n: 1, sum: None, sum_of_squares: None });
        assert_eq!(
            said.expect_err("another kind"),
            "its exact_match is a measurement of kind mean, but exact_match is of kind share"
        );
    }

    #[test]
    fn only_corpus_metrics_may_carry_their_own_bounds() {
        for metric in Metric::ALL {
            if let Some(method) = metric.method() {
                of(metric.name(), estimate(0.5, method)).expect("an estimate");
                of(&format!("{metric}@before"), estimate(0.5, method)).expect("a compared estimate");
                continue;
            }
            assert_eq!(
                of(metric.name(), estimate(0.5, Method::Bootstrap)).expect_err("no estimate"),
                format!(
                    "its {metric} is a measurement of kind estimate, but {metric} is of kind {}",
                    metric.kind().name()
                )
            );
        }
        assert_eq!(
            of("corpus_f1", estimate(0.5, Method::Bootstrap)).expect_err("unknown"),
            "its \"corpus_f1\" carries its own bounds, which only a known metric may, and this metric is unknown"
        );
        assert_eq!(
            of("bleu", estimate(0.7, Method::Bootstrap)).expect_err("outside"),
            "its bleu is impossible: its value 0.7 is not between its bounds 0.4 and 0.6"
        );
        assert_eq!(
            of("bleu", estimate(0.5, Method::Bernstein)).expect_err("another method"),
            "its bleu has bounds by the method bernstein, but those of bleu are by bootstrap"
        );
    }

    #[test]
    fn names_and_their_number_are_limited() {
        let share = Measurement::Share { successes: 1, n: 2 };
        for name in [String::new(), "x".repeat(MAX_METRIC_NAME + 1)] {
            of(&name, share).expect_err("a name that a status cannot hold");
        }
        let many = |count: usize| (0..count).map(|index| (format!("m{index}"), share)).collect();
        accept(&many(MAX_METRICS)).expect("as many as a status holds");
        accept(&many(MAX_METRICS + 1)).expect_err("one more");
    }
}
