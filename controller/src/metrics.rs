//! The metrics of the controller, for Prometheus. Their contract is in `codex-metrics`. Labels hold no object names.

use std::{sync::Arc, time::Duration};

use codex_metrics::controller as contract;
use jiff::Timestamp;
use prometheus::{Encoder, GaugeVec, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder};

use crate::{census::Census, signer::Expiries};

/// The content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// A port of the controller.
#[derive(Clone, Copy, Debug)]
pub enum Port {
    /// The report endpoint.
    Reports,
    /// Probes and metrics.
    Health,
}

impl Port {
    /// Returns the value of the label `port`.
    fn name(self) -> &'static str {
        match self {
            Self::Reports => "reports",
            Self::Health => "health",
        }
    }
}

/// The metrics. Clones are the same.
#[derive(Clone)]
pub struct Metrics(Arc<Families>);

struct Families {
    registry: Registry,
    reconciliations: IntCounterVec,
    durations: HistogramVec,
    errors: IntCounterVec,
    queue: IntGaugeVec,
    queue_age: GaugeVec,
    queue_wait: HistogramVec,
    reports: IntCounterVec,
    writes: IntCounterVec,
    api_requests: IntCounterVec,
    api_durations: HistogramVec,
    malformed: IntCounterVec,
    watch_errors: IntCounterVec,
    signatures: IntCounterVec,
    spans: IntCounterVec,
    manual_overrides: IntCounterVec,
    refused_connections: IntCounterVec,
    objects: IntGaugeVec,
    phase_oldest: GaugeVec,
    conditions: IntGaugeVec,
    condition_oldest: GaugeVec,
    gates: IntGaugeVec,
    gate_margin: GaugeVec,
    gate_bound: GaugeVec,
    gate_limit: GaugeVec,
    reads: IntGaugeVec,
    run_steps: IntGaugeVec,
    progress_oldest: GaugeVec,
    checkpoint_oldest: GaugeVec,
    serving: IntGaugeVec,
    unverified: IntGauge,
    revoked: IntGauge,
    redeploying: IntGaugeVec,
    cycle_overrides: IntGauge,
    signer: IntGauge,
    key_expiry: IntGaugeVec,
    certificate: IntGauge,
    leader: IntGauge,
}

impl Metrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When two metrics have the same name, which is a bug.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        contract::BUILD.labelled(&registry)?.with_label_values(&[crate::BUILD]).set(1);
        let refused_connections = contract::REFUSED_CONNECTIONS.labelled(&registry)?;
        for port in [Port::Reports, Port::Health] {
            refused_connections.with_label_values(&[port.name()]).reset();
        }
        Ok(Self(Arc::new(Families {
            reconciliations: contract::RECONCILIATIONS.labelled(&registry)?,
            durations: contract::RECONCILE_DURATION.labelled(&registry)?,
            errors: contract::ERRORS.labelled(&registry)?,
            queue: contract::QUEUE.labelled(&registry)?,
            queue_age: contract::QUEUE_AGE.labelled_float(&registry)?,
            queue_wait: contract::QUEUE_WAIT.labelled(&registry)?,
            reports: contract::REPORTS.labelled(&registry)?,
            writes: contract::WRITES.labelled(&registry)?,
            api_requests: contract::API_REQUESTS.labelled(&registry)?,
            api_durations: contract::API_DURATION.labelled(&registry)?,
            malformed: contract::MALFORMED.labelled(&registry)?,
            watch_errors: contract::WATCH_ERRORS.labelled(&registry)?,
            signatures: contract::SIGNATURES.labelled(&registry)?,
            spans: contract::SPANS.labelled(&registry)?,
            manual_overrides: contract::MANUAL_OVERRIDES.labelled(&registry)?,
            revoked: contract::REVOKED.single(&registry)?,
            redeploying: contract::REDEPLOYING.labelled(&registry)?,
            cycle_overrides: contract::CYCLE_OVERRIDES.single(&registry)?,
            refused_connections,
            objects: contract::OBJECTS.labelled(&registry)?,
            phase_oldest: contract::PHASE_OLDEST.labelled_float(&registry)?,
            conditions: contract::CONDITIONS.labelled(&registry)?,
            condition_oldest: contract::CONDITION_OLDEST.labelled_float(&registry)?,
            gates: contract::GATES.labelled(&registry)?,
            gate_margin: contract::GATE_MARGIN.labelled_float(&registry)?,
            gate_bound: contract::GATE_BOUND.labelled_float(&registry)?,
            gate_limit: contract::GATE_LIMIT.labelled_float(&registry)?,
            reads: contract::READS.labelled(&registry)?,
            run_steps: contract::RUN_STEPS.labelled(&registry)?,
            progress_oldest: contract::PROGRESS_OLDEST.labelled_float(&registry)?,
            checkpoint_oldest: contract::CHECKPOINT_OLDEST.labelled_float(&registry)?,
            serving: contract::SERVING.labelled(&registry)?,
            unverified: contract::UNVERIFIED.single(&registry)?,
            signer: contract::SIGNER.single(&registry)?,
            key_expiry: contract::KEY_EXPIRY.labelled(&registry)?,
            certificate: contract::CERTIFICATE.single(&registry)?,
            leader: contract::LEADER.single(&registry)?,
            registry,
        })))
    }

    /// Counts a reconciliation and, if it failed, the category of the failure.
    pub fn reconciled(&self, kind: &str, took: Duration, failure: Option<&'static str>) {
        self.0.durations.with_label_values(&[kind]).observe(took.as_secs_f64());
        // Both series of a kind exist from its first reconciliation on, so that the share of failures is 0 and not unknown.
        for (result, counts) in [("ok", failure.is_none()), ("error", failure.is_some())] {
            self.0.reconciliations.with_label_values(&[kind, result]).inc_by(u64::from(counts));
        }
        if let Some(category) = failure {
            self.0.errors.with_label_values(&[kind, category]).inc();
        }
    }

    /// Records how long a change waited for its reconciliation.
    pub fn waited(&self, kind: &str, waited: Duration) {
        self.0.queue_wait.with_label_values(&[kind]).observe(waited.as_secs_f64());
    }

    /// Counts a report. `kind` is `None` if the report was rejected before it was parsed.
    pub fn report(&self, kind: Option<&str>, result: &'static str) {
        self.0.reports.with_label_values(&[kind.unwrap_or("unknown"), result]).inc();
    }

    /// Counts a write to the API server.
    pub fn wrote(&self, kind: &str, verb: &'static str) {
        self.0.writes.with_label_values(&[kind, verb]).inc();
    }

    /// Counts a request to the API server. `code` is `None` if there was no answer. The duration of a watch is unknown.
    pub fn requested(&self, verb: &'static str, code: Option<u16>, took: Option<Duration>) {
        let code = code.map_or_else(|| "error".to_owned(), |code| code.to_string());
        self.0.api_requests.with_label_values(&[verb, &code]).inc();
        if let Some(took) = took {
            self.0.api_durations.with_label_values(&[verb]).observe(took.as_secs_f64());
        }
    }

    /// Counts an attempt to sign a statement.
    pub fn signed(&self, statement: &'static str, succeeded: bool) {
        self.0.signatures.with_label_values(&[statement, if succeeded { "ok" } else { "error" }]).inc();
    }

    /// Counts spans that were sent to a collector, or were not.
    pub fn spans(&self, result: &'static str, spans: usize) {
        if spans > 0 {
            self.0.spans.with_label_values(&[result]).inc_by(spans as u64);
        }
    }

    /// Counts the sign-offs in a promotion that was signed.
    pub fn overridden(&self, ring: &str, sign_offs: usize) {
        if sign_offs > 0 {
            self.0.manual_overrides.with_label_values(&[ring]).inc_by(sign_offs as u64);
        }
    }

    /// Counts an object that could not be parsed.
    pub fn malformed(&self, kind: &str) {
        self.0.malformed.with_label_values(&[kind]).inc();
    }

    /// Counts a failed watch.
    pub fn watch_failed(&self, kind: &str) {
        self.0.watch_errors.with_label_values(&[kind]).inc();
    }

    /// Counts a connection that was closed because too many were open.
    pub fn refused_connection(&self, port: Port) {
        self.0.refused_connections.with_label_values(&[port.name()]).inc();
    }

    /// Sets whether this process holds the Lease.
    pub fn leads(&self, leads: bool) {
        self.0.leader.set(i64::from(leads));
    }

    /// Sets whether this process leads and can sign.
    pub fn signs(&self, available: bool) {
        self.0.signer.set(i64::from(available));
    }

    /// Sets when keys expire. A key without an end has no series.
    pub fn keys_expire(&self, expiries: &Expiries) {
        self.0.key_expiry.reset();
        for (purpose, end) in [("signing", expiries.signing), ("verifying", expiries.others)] {
            if let Some(end) = end {
                self.0.key_expiry.with_label_values(&[purpose]).set(end.as_second());
            }
        }
    }

    /// Sets when the first certificate of the report endpoint expires.
    pub fn certificate_expires(&self, at: Timestamp) {
        self.0.certificate.set(at.as_second());
    }

    /// Replaces everything that is counted over the existing objects.
    pub fn count(&self, census: &Census) {
        for vector in [
            &self.0.queue,
            &self.0.objects,
            &self.0.conditions,
            &self.0.gates,
            &self.0.reads,
            &self.0.run_steps,
            &self.0.serving,
            &self.0.redeploying,
        ] {
            vector.reset();
        }
        for vector in [
            &self.0.queue_age,
            &self.0.phase_oldest,
            &self.0.condition_oldest,
            &self.0.gate_margin,
            &self.0.gate_bound,
            &self.0.gate_limit,
            &self.0.progress_oldest,
            &self.0.checkpoint_oldest,
        ] {
            vector.reset();
        }
        for (kind, (objects, oldest)) in &census.waiting {
            self.0.queue.with_label_values(&[kind]).set(*objects);
            self.0.queue_age.with_label_values(&[kind]).set(oldest.as_secs_f64());
        }
        for ([kind, phase, ring], objects) in &census.objects {
            self.0.objects.with_label_values(&[kind, phase, ring]).set(*objects);
        }
        for ([kind, phase], since) in &census.phases {
            self.0.phase_oldest.with_label_values(&[kind, phase]).set(since.as_second() as f64);
        }
        for ([kind, condition, status, reason], (objects, since)) in &census.conditions {
            let labels = [kind, condition, status, reason].map(String::as_str);
            self.0.conditions.with_label_values(&labels).set(*objects);
            self.0.condition_oldest.with_label_values(&labels).set(since.as_second() as f64);
        }
        for ([metric, verdict], gates) in &census.gates {
            self.0.gates.with_label_values(&[metric, verdict]).set(*gates);
        }
        for (metric, gate) in &census.tightest {
            self.0.gate_margin.with_label_values(&[metric]).set(gate.margin);
            self.0.gate_bound.with_label_values(&[metric]).set(gate.bound);
            self.0.gate_limit.with_label_values(&[metric]).set(gate.limit);
        }
        for (problems, reads) in &census.reads {
            self.0.reads.with_label_values(&[problems]).set(*reads);
        }
        self.0.run_steps.with_label_values(&["completed"]).set(census.completed_steps);
        self.0.run_steps.with_label_values(&["executed"]).set(census.executed_steps);
        for (gauge, oldest) in
            [(&self.0.progress_oldest, census.progress_oldest), (&self.0.checkpoint_oldest, census.checkpoint_oldest)]
        {
            if let Some(oldest) = oldest {
                gauge.with_label_values::<&str>(&[]).set(oldest.as_second() as f64);
            }
        }
        for (ring, servers) in &census.serving {
            self.0.serving.with_label_values(&[ring]).set(*servers);
        }
        self.0.unverified.set(census.unverified);
        self.0.revoked.set(census.revoked);
        for (phase, objects) in &census.redeploying {
            self.0.redeploying.with_label_values(&[phase]).set(*objects);
        }
        self.0.cycle_overrides.set(census.cycle_overrides);
    }

    /// Returns all metrics in the text format.
    ///
    /// # Errors
    /// When a metric cannot be encoded.
    pub fn text(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.0.registry.gather(), &mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use jiff::Timestamp;

    use super::{Metrics, Port, contract};
    use crate::{
        census::{Census, Tightest},
        signer::Expiries,
    };

    impl Metrics {
        /// Returns all metrics as text.
        pub(crate) fn shown(&self) -> String {
            String::from_utf8(self.text().unwrap()).unwrap()
        }
    }

    /// Returns metrics of which each has a series.
    fn full() -> Metrics {
        let metrics = Metrics::new().unwrap();
        metrics.reconciled("TrainingRun", Duration::from_millis(3), Some("conflict"));
        metrics.waited("TrainingRun", Duration::from_millis(30));
        metrics.report(Some("Evaluation"), "accepted");
        metrics.report(None, "unauthenticated");
        metrics.wrote("Job", "apply");
        metrics.requested("patch", Some(409), Some(Duration::from_millis(7)));
        metrics.requested("watch", None, None);
        metrics.signed("model", true);
        metrics.spans("exported", 3);
        metrics.overridden("main", 2);
        metrics.overridden("0D_base_", 0);
        metrics.refused_connection(Port::Reports);
        metrics.malformed("Evaluation");
        metrics.watch_failed("Pod");
        metrics.leads(true);
        metrics.signs(true);
        let then = Timestamp::from_second(1000).unwrap();
        metrics.certificate_expires(then);
        metrics.keys_expire(&Expiries { signing: Some(then), others: Some(then) });
        let text = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        metrics.count(&Census {
            waiting: BTreeMap::from([("TrainingRun".to_owned(), (3, Duration::from_millis(2500)))]),
            objects: BTreeMap::from([(text(&["TrainingRun", "Running", "main"]).try_into().unwrap(), 2)]),
            phases: BTreeMap::from([(text(&["TrainingRun", "Running"]).try_into().unwrap(), then)]),
            conditions: BTreeMap::from([(
                text(&["ReasoningPod", "GatesPassed", "False", "GateFailed"]).try_into().unwrap(),
                (4, then),
            )]),
            gates: BTreeMap::from([(text(&["exact_match", "Failed"]).try_into().unwrap(), 5)]),
            tightest: BTreeMap::from([("exact_match".to_owned(), Tightest { margin: -0.25, bound: 0.5, limit: 0.75 })]),
            reads: BTreeMap::from([("10066056b19a".to_owned(), 7)]),
            completed_steps: 90,
            executed_steps: 100,
            progress_oldest: Some(then),
            checkpoint_oldest: Some(then),
            serving: BTreeMap::from([("main".to_owned(), 6)]),
            unverified: 1,
            revoked: 3,
            redeploying: BTreeMap::from([("Training".to_owned(), 8)]),
            cycle_overrides: 9,
        });
        metrics
    }

    #[test]
    fn the_exposition_is_that_of_the_contract() {
        let metrics = full();
        let families = metrics.0.registry.gather();
        let found: BTreeMap<_, _> = families.iter().map(|family| (family.name(), family)).collect();
        assert!(
            found.keys().copied().eq(contract::ALL.iter().map(|it| it.name).collect::<std::collections::BTreeSet<_>>())
        );
        for promised in contract::ALL {
            let family = found[promised.name];
            assert_eq!(family.help(), promised.help);
            assert_eq!(
                format!("{:?}", family.get_field_type()).to_lowercase(),
                promised.kind.name(),
                "{}",
                promised.name
            );
            let mut labels: Vec<_> = promised.labels.iter().map(|label| label.name).collect();
            labels.sort_unstable();
            let exposed: Vec<_> =
                family.get_metric()[0].get_label().iter().map(|label| label.name().to_owned()).collect();
            assert_eq!(exposed, labels, "{}", promised.name);
        }
    }

    #[test]
    fn numbers_are_those_that_were_counted() {
        let metrics = full();
        let text = metrics.shown();
        for line in [
            "codex_controller_reconciliations_total{kind=\"TrainingRun\",result=\"error\"} 1",
            "codex_controller_reconciliations_total{kind=\"TrainingRun\",result=\"ok\"} 0",
            "codex_controller_errors_total{category=\"conflict\",kind=\"TrainingRun\"} 1",
            "codex_controller_reconcile_duration_seconds_count{kind=\"TrainingRun\"} 1",
            "codex_controller_queue_objects{kind=\"TrainingRun\"} 3",
            "codex_controller_queue_oldest_seconds{kind=\"TrainingRun\"} 2.5",
            "codex_controller_queue_wait_seconds_count{kind=\"TrainingRun\"} 1",
            "codex_controller_reports_total{kind=\"Evaluation\",result=\"accepted\"} 1",
            "codex_controller_reports_total{kind=\"unknown\",result=\"unauthenticated\"} 1",
            "codex_controller_writes_total{kind=\"Job\",verb=\"apply\"} 1",
            "codex_controller_api_requests_total{code=\"409\",verb=\"patch\"} 1",
            "codex_controller_api_requests_total{code=\"error\",verb=\"watch\"} 1",
            "codex_controller_api_request_duration_seconds_count{verb=\"patch\"} 1",
            "codex_controller_signatures_total{result=\"ok\",statement=\"model\"} 1",
            "codex_controller_objects{kind=\"TrainingRun\",phase=\"Running\",ring=\"main\"} 2",
            "codex_controller_phase_oldest_timestamp_seconds{kind=\"TrainingRun\",phase=\"Running\"} 1000",
            "codex_controller_conditions{condition=\"GatesPassed\",kind=\"ReasoningPod\",reason=\"GateFailed\",status=\"False\"} 4",
            "codex_controller_condition_oldest_timestamp_seconds{condition=\"GatesPassed\",kind=\"ReasoningPod\",reason=\"GateFailed\",status=\"False\"} 1000",
            "codex_controller_gates{metric=\"exact_match\",verdict=\"Failed\"} 5",
            "codex_controller_gate_lowest_margin{metric=\"exact_match\"} -0.25",
            "codex_controller_gate_bound{metric=\"exact_match\"} 0.5",
            "codex_controller_gate_limit{metric=\"exact_match\"} 0.75",
            "codex_controller_problem_reads{problems=\"10066056b19a\"} 7",
            "codex_controller_run_steps{state=\"completed\"} 90",
            "codex_controller_run_steps{state=\"executed\"} 100",
            "codex_controller_progress_oldest_timestamp_seconds 1000",
            "codex_controller_checkpoint_oldest_timestamp_seconds 1000",
            "codex_controller_serving_replicas{ring=\"main\"} 6",
            "codex_controller_serving_unverified_objects 1",
            "codex_controller_manual_overrides_total{ring=\"main\"} 2",
            "codex_controller_revoked_objects 3",
            "codex_controller_redeploying_objects{phase=\"Training\"} 8",
            "codex_controller_cycle_manual_overrides 9",
            "codex_controller_signer_available 1",
            "codex_controller_report_certificate_expiry_timestamp_seconds 1000",
            "codex_controller_is_leader 1",
            "codex_controller_connections_refused_total{port=\"reports\"} 1",
            "codex_controller_connections_refused_total{port=\"health\"} 0",
            "codex_controller_build_info{version=",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
        // The next count forgets objects that are gone.
        metrics.count(&Census::default());
        let text = metrics.shown();
        for gone in
            ["_objects{", "_phase_oldest", "_conditions{", "_gates{", "_gate_", "progress_oldest", "serving_replicas{"]
        {
            assert!(!text.contains(gone), "{gone} is still in:\n{text}");
        }
    }
}
