//! The metrics of the controller, for Prometheus. Labels hold no object names.

use std::time::Duration;

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// The content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// The metrics.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    reconciliations: IntCounterVec,
    durations: HistogramVec,
    errors: IntCounterVec,
    reports: IntCounterVec,
    writes: IntCounterVec,
    malformed: IntCounterVec,
    watch_errors: IntCounterVec,
    objects: IntGaugeVec,
    leader: IntGauge,
}

impl Metrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When two metrics have the same name, which is a bug.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new_custom(Some("codex_controller".to_owned()), None)?;
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let made = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(made.clone()))?;
            Ok::<_, prometheus::Error>(made)
        };
        let reconciliations =
            counter("reconciliations_total", "Reconciliations by kind and result (ok, error).", &["kind", "result"])?;
        let errors = counter("errors_total", "Failed reconciliations by category.", &["kind", "category"])?;
        let reports = counter(
            "reports_total",
            "Reports of pods by result (accepted, stale, refused, unauthenticated, invalid, unavailable).",
            &["kind", "result"],
        )?;
        let writes =
            counter("writes_total", "Writes to the API server by kind of object and verb.", &["kind", "verb"])?;
        let malformed =
            counter("malformed_objects_total", "Objects that could not be parsed and were ignored.", &["kind"])?;
        let watch_errors = counter("watch_errors_total", "Failed watches; each is retried.", &["kind"])?;
        let durations = HistogramVec::new(
            HistogramOpts::new("reconcile_duration_seconds", "Duration of reconciliations.")
                .buckets(vec![0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0]),
            &["kind"],
        )?;
        registry.register(Box::new(durations.clone()))?;
        let objects = IntGaugeVec::new(Opts::new("objects", "Objects by kind and phase."), &["kind", "phase"])?;
        registry.register(Box::new(objects.clone()))?;
        let leader = IntGauge::new("is_leader", "1 while this process holds the Lease, 0 otherwise.")?;
        registry.register(Box::new(leader.clone()))?;
        let build =
            IntGaugeVec::new(Opts::new("build_info", "The version of the running build; always 1."), &["version"])?;
        registry.register(Box::new(build.clone()))?;
        build.with_label_values(&[crate::BUILD]).set(1);
        Ok(Self {
            registry,
            reconciliations,
            durations,
            errors,
            reports,
            writes,
            malformed,
            watch_errors,
            objects,
            leader,
        })
    }

    /// Counts a reconciliation and, if it failed, the category of the failure.
    pub fn reconciled(&self, kind: &str, took: Duration, failure: Option<&'static str>) {
        self.durations.with_label_values(&[kind]).observe(took.as_secs_f64());
        let result = if failure.is_some() { "error" } else { "ok" };
        self.reconciliations.with_label_values(&[kind, result]).inc();
        if let Some(category) = failure {
            self.errors.with_label_values(&[kind, category]).inc();
        }
    }

    /// Counts a report. `kind` is `None` if the report was rejected before it was parsed.
    pub fn report(&self, kind: Option<&str>, result: &'static str) {
        self.reports.with_label_values(&[kind.unwrap_or("unknown"), result]).inc();
    }

    /// Counts a write to the API server.
    pub fn wrote(&self, kind: &str, verb: &'static str) {
        self.writes.with_label_values(&[kind, verb]).inc();
    }

    /// Counts an object that could not be parsed.
    pub fn malformed(&self, kind: &str) {
        self.malformed.with_label_values(&[kind]).inc();
    }

    /// Counts a failed watch.
    pub fn watch_failed(&self, kind: &str) {
        self.watch_errors.with_label_values(&[kind]).inc();
    }

    /// Sets whether this process holds the Lease.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// Sets the number of objects from the kind and phase of each.
    pub fn count<'a>(&self, phases: impl IntoIterator<Item = (&'a str, &'a str)>) {
        self.objects.reset();
        for (kind, phase) in phases {
            self.objects.with_label_values(&[kind, phase]).inc();
        }
    }

    /// Returns all metrics in the text format.
    ///
    /// # Errors
    /// When a metric cannot be encoded.
    pub fn text(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Metrics;

    #[test]
    fn names_and_labels_are_as_documented() {
        let metrics = Metrics::new().unwrap();
        metrics.reconciled("TrainingRun", Duration::from_millis(3), Some("conflict"));
        metrics.report(Some("Evaluation"), "accepted");
        metrics.report(None, "unauthenticated");
        metrics.wrote("Job", "apply");
        metrics.count([("TrainingRun", "Running"), ("TrainingRun", "Running")]);
        metrics.leads(true);
        let text = String::from_utf8(metrics.text().unwrap()).unwrap();
        for line in [
            "codex_controller_reconciliations_total{kind=\"TrainingRun\",result=\"error\"} 1",
            "codex_controller_errors_total{category=\"conflict\",kind=\"TrainingRun\"} 1",
            "codex_controller_reconcile_duration_seconds_count{kind=\"TrainingRun\"} 1",
            "codex_controller_reports_total{kind=\"Evaluation\",result=\"accepted\"} 1",
            "codex_controller_reports_total{kind=\"unknown\",result=\"unauthenticated\"} 1",
            "codex_controller_writes_total{kind=\"Job\",verb=\"apply\"} 1",
            "codex_controller_objects{kind=\"TrainingRun\",phase=\"Running\"} 2",
            "codex_controller_is_leader 1",
            "codex_controller_build_info{version=",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
    }
}
