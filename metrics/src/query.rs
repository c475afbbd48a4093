//! Writes `PromQL`. Queries name metrics and labels of the contract, so that a renamed one no longer compiles.

use std::fmt;

use crate::{Counter, Gauge, Histogram, Label, Metric, label::target::NAMESPACE, metric::Contract};

/// The range of rates in dashboards. Grafana replaces it with at least four scrape intervals.
pub const RATE_INTERVAL: &str = "$__rate_interval";

/// A condition on a label.
#[derive(Clone, Debug)]
pub struct Matcher(String);

impl Label {
    /// Selects series whose label has this value.
    pub fn is(self, value: &str) -> Matcher {
        Matcher(format!("{}={value:?}", self.name))
    }

    /// Selects series whose label has another value.
    pub fn is_not(self, value: &str) -> Matcher {
        Matcher(format!("{}!={value:?}", self.name))
    }

    /// Selects series whose whole label matches this regular expression.
    pub fn matches(self, pattern: &str) -> Matcher {
        Matcher(format!("{}=~{pattern:?}", self.name))
    }

    /// Selects series by the variable of the dashboard that has the name of the label.
    pub fn chosen(self) -> Matcher {
        Matcher(format!("{0}=~\"${0}\"", self.name))
    }
}

/// A query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expr(String);

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Expr {
    /// Returns the query with the variables of a dashboard replaced, as Grafana does before it asks Prometheus: rates are over
    /// `range`, such as `1m`, and the chosen namespaces match the regular expression `namespaces`.
    pub fn with_variables(&self, range: &str, namespaces: &str) -> String {
        self.0.replace(RATE_INTERVAL, range).replace(&format!("${}", NAMESPACE.name), namespaces)
    }
}

/// Returns the selector of the series `suffix` of a metric.
fn series(contract: &Contract, suffix: &str, matchers: &[Matcher]) -> String {
    let matchers: Vec<_> = matchers.iter().map(|matcher| &*matcher.0).collect();
    let selected = if matchers.is_empty() { String::new() } else { format!("{{{}}}", matchers.join(", ")) };
    format!("{}{suffix}{selected}", contract.name)
}

fn names(labels: &[Label]) -> String {
    labels.iter().map(|label| label.name).collect::<Vec<_>>().join(", ")
}

impl Metric<Counter> {
    /// Returns the series as they are.
    pub fn total(&self, matchers: &[Matcher]) -> Expr {
        Expr(series(self, "", matchers))
    }

    /// Returns the growth per second.
    pub fn rate(&self, matchers: &[Matcher], range: &str) -> Expr {
        Expr(format!("rate({}[{range}])", series(self, "", matchers)))
    }

    /// Returns the growth over a range.
    pub fn increase(&self, matchers: &[Matcher], range: &str) -> Expr {
        Expr(format!("increase({}[{range}])", series(self, "", matchers)))
    }
}

impl Metric<Gauge> {
    /// Returns the series as they are.
    pub fn value(&self, matchers: &[Matcher]) -> Expr {
        Expr(series(self, "", matchers))
    }
}

impl Metric<Histogram> {
    /// Returns a quantile over a range, for each combination of `by`. Without observations there is no result.
    pub fn quantile(&self, quantile: f64, matchers: &[Matcher], by: &[Label], range: &str) -> Expr {
        let buckets = Expr(format!("rate({}[{range}])", series(self, "_bucket", matchers)));
        let by: Vec<_> = [crate::label::target::LE].into_iter().chain(by.iter().copied()).collect();
        Expr(format!("histogram_quantile({quantile}, {})", buckets.sum(&by))).known()
    }

    /// Returns the number of observations per second.
    pub fn rate(&self, matchers: &[Matcher], range: &str) -> Expr {
        Expr(format!("rate({}[{range}])", series(self, "_count", matchers)))
    }

    /// Returns the growth of the sum of observations per second.
    pub fn sum_rate(&self, matchers: &[Matcher], range: &str) -> Expr {
        Expr(format!("rate({}[{range}])", series(self, "_sum", matchers)))
    }

    /// Returns the number of observations per second that were at most `edge`, the upper end of a bucket.
    pub fn rate_within(&self, edge: f64, matchers: &[Matcher], range: &str) -> Expr {
        let matchers: Vec<_> =
            [crate::label::target::LE.is(&edge.to_string())].into_iter().chain(matchers.iter().cloned()).collect();
        Expr(format!("rate({}[{range}])", series(self, "_bucket", &matchers)))
    }

    /// Returns the share of observations above `edge`, for each combination of `by`.
    pub fn share_above(&self, edge: f64, matchers: &[Matcher], by: &[Label], range: &str) -> Expr {
        let within = self.rate_within(edge, matchers, range).sum(by).per(&self.rate(matchers, range).sum(by));
        Expr(format!("1 - ({within})"))
    }

    /// Returns the name of the series with a bucket, for the test of a rule.
    pub fn bucket(&self, edge: &str, matchers: &[Matcher]) -> String {
        let matchers: Vec<_> =
            [crate::label::target::LE.is(edge)].into_iter().chain(matchers.iter().cloned()).collect();
        series(self, "_bucket", &matchers)
    }

    /// Returns the name of the series with the number of observations, for the test of a rule.
    pub fn count(&self, matchers: &[Matcher]) -> String {
        series(self, "_count", matchers)
    }
}

impl Expr {
    /// Adds up all series with equal `by`.
    #[must_use]
    pub fn sum(&self, by: &[Label]) -> Self {
        self.aggregated("sum", by)
    }

    /// Returns the highest of all series with equal `by`.
    #[must_use]
    pub fn max(&self, by: &[Label]) -> Self {
        self.aggregated("max", by)
    }

    /// Returns the lowest of all series with equal `by`.
    #[must_use]
    pub fn min(&self, by: &[Label]) -> Self {
        self.aggregated("min", by)
    }

    fn aggregated(&self, operator: &str, by: &[Label]) -> Self {
        let by = if by.is_empty() { String::new() } else { format!(" by ({}) ", names(by)) };
        Self(format!("{operator}{by}({self})"))
    }

    /// Divides by `other`. Where that is 0 there is no result, instead of NaN.
    #[must_use]
    pub fn per(&self, other: &Self) -> Self {
        Self(format!("({self} / ({other} > 0))"))
    }

    /// Divides by a number.
    #[must_use]
    pub fn divided_by(&self, number: f64) -> Self {
        Self(format!("({self}) / {number}"))
    }

    /// Drops NaN and negative numbers, so that a panel without data says so.
    #[must_use]
    pub fn known(&self) -> Self {
        Self(format!("({self}) >= 0"))
    }

    /// Replaces no series by the number 0.
    #[must_use]
    pub fn or_zero(&self) -> Self {
        // No operator binds less tightly than `or`, so it stands in parentheses: a quotient would take only the 0.
        Self(format!("({self} or vector(0))"))
    }

    /// Returns the seconds since a Unix time.
    #[must_use]
    pub fn age(&self) -> Self {
        Self(format!("time() - {self}"))
    }

    /// Returns the seconds until a Unix time.
    #[must_use]
    pub fn left(&self) -> Self {
        Self(format!("{self} - time()"))
    }

    /// Keeps series above a number.
    #[must_use]
    pub fn above(&self, number: f64) -> Self {
        Self(format!("{self} > {number}"))
    }

    /// Keeps series below a number.
    #[must_use]
    pub fn below(&self, number: f64) -> Self {
        Self(format!("{self} < {number}"))
    }

    /// Keeps series with this value.
    #[must_use]
    pub fn equal(&self, number: f64) -> Self {
        Self(format!("{self} == {number}"))
    }

    /// Keeps series that also exist in `other`.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self(format!("({self}) and ({other})"))
    }

    /// Returns 1 if there is no series.
    #[must_use]
    pub fn absent(&self) -> Self {
        Self(format!("absent({self})"))
    }
}

#[cfg(test)]
mod tests {
    use super::RATE_INTERVAL;
    use crate::{
        controller::{OBJECTS, RECONCILIATIONS},
        label::{ENDPOINT, KIND, PHASE, RESULT, target::NAMESPACE},
        server::{LATENCY, LATENCY_TARGET},
    };

    #[test]
    fn queries_are_written_as_promql() {
        let failed = RECONCILIATIONS.rate(&[RESULT.is("error")], "10m").sum(&[KIND]);
        let all = RECONCILIATIONS.rate(&[], "10m").sum(&[KIND]);
        assert_eq!(
            failed.per(&all).above(0.5).to_string(),
            "(sum by (kind) (rate(codex_controller_reconciliations_total{result=\"error\"}[10m])) / \
             (sum by (kind) (rate(codex_controller_reconciliations_total[10m])) > 0)) > 0.5"
        );
        assert_eq!(
            OBJECTS.value(&[PHASE.is_not("Serving"), KIND.matches("A|B")]).sum(&[]).or_zero().to_string(),
            "(sum(codex_controller_objects{phase!=\"Serving\", kind=~\"A|B\"}) or vector(0))"
        );
        let objects = OBJECTS.value(&[]).sum(&[]);
        assert_eq!(
            objects.or_zero().per(&objects).to_string(),
            "((sum(codex_controller_objects) or vector(0)) / (sum(codex_controller_objects) > 0))"
        );
        assert_eq!(
            LATENCY.quantile(0.95, &[NAMESPACE.chosen()], &[ENDPOINT], RATE_INTERVAL).to_string(),
            "(histogram_quantile(0.95, sum by (le, endpoint) \
             (rate(codex_ml_inference_latency_seconds_bucket{namespace=~\"$namespace\"}[$__rate_interval])))) >= 0"
        );
        assert_eq!(
            LATENCY.share_above(LATENCY_TARGET, &[], &[], "5m").to_string(),
            "1 - ((sum(rate(codex_ml_inference_latency_seconds_bucket{le=\"0.7\"}[5m])) / \
             (sum(rate(codex_ml_inference_latency_seconds_count[5m])) > 0)))"
        );
        assert_eq!(
            LATENCY.rate(&[NAMESPACE.chosen()], RATE_INTERVAL).with_variables("4s", "team|other"),
            "rate(codex_ml_inference_latency_seconds_count{namespace=~\"team|other\"}[4s])"
        );
    }
}
