//! The alerts, each with series that make it fire and series that keep it quiet.

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::{
    Gauge, Metric, Type, Unit,
    controller::{
        CERTIFICATE, CONDITION_OLDEST, CONDITIONS, KEY_EXPIRY, LEADER, PROGRESS_OLDEST, QUEUE_AGE, RECONCILIATIONS,
        REPORTS, REVOKED, SIGNER, UNVERIFIED,
    },
    label::{
        CONDITION, KIND, PURPOSE, REASON, RESULT, STATUS,
        target::{JOB, NAMESPACE, POD},
    },
    query::{Expr, Matcher},
    scrape::{CONTROLLER, NAMESPACE as CONTROLLERS, PODS, SERVER, TRAINER},
    server::{LATENCY, LATENCY_BUDGET, LATENCY_TARGET, WAITING},
    trainer::DAMAGED,
};

/// The page with a section for each alert.
pub const RUNBOOKS: &str = "docs/runbooks.md";

/// The series that Prometheus itself writes for each target: 1 if it could be scraped, else 0.
static UP: Metric<Gauge> = Metric::<Gauge>::of_type(Type::Gauge, "up", Unit::Boolean, &[], "");

/// How urgent an alert is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Somebody must act now.
    Critical,
    /// Somebody must act within a day.
    Warning,
}

impl Severity {
    /// Returns the value of the label `severity`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
        }
    }
}

/// Series for the test of an alert: each with its values, one a minute, in the notation of promtool.
pub type Series = Vec<(String, &'static str)>;

/// An alert.
#[derive(Clone, Debug)]
pub struct Alert {
    /// Its name, which is also the heading of its section in [`RUNBOOKS`].
    pub name: &'static str,
    /// How urgent it is.
    pub severity: Severity,
    /// What it fires on.
    pub query: Expr,
    /// How long that must last.
    pub lasting: &'static str,
    /// What a user notices, in one sentence.
    pub summary: &'static str,
    /// When it is evaluated in its test.
    pub at: &'static str,
    /// Sets of series, each of which makes it fire.
    pub fires: Vec<Series>,
    /// The labels with which it then fires, apart from its severity.
    pub labels: &'static [(&'static str, &'static str)],
    /// Series that keep it quiet.
    pub quiet: Series,
}

impl Alert {
    /// Returns the address of its section, relative to the repository.
    pub fn runbook(&self) -> String {
        format!("{RUNBOOKS}#{}", self.name.to_lowercase())
    }

    fn annotations(&self) -> Value {
        json!({ "summary": self.summary, "runbook_url": self.runbook() })
    }

    /// Returns the rule in the form of Prometheus.
    pub fn rule(&self) -> Value {
        json!({
            "alert": self.name,
            "expr": self.query.to_string(),
            "for": self.lasting,
            "labels": { "severity": self.severity.name() },
            "annotations": self.annotations(),
        })
    }

    /// Returns the tests of the alert in the form of promtool: those in which it fires, then the one in which it does not.
    pub fn tests(&self) -> Vec<Value> {
        let mut labels: serde_json::Map<_, _> =
            self.labels.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        labels.insert("severity".to_owned(), json!(self.severity.name()));
        let firing = json!([{ "exp_labels": labels, "exp_annotations": self.annotations() }]);
        let test = |series: &Series, expected: &Value| {
            let input: Vec<_> =
                series.iter().map(|(series, values)| json!({ "series": series, "values": values })).collect();
            json!({
                "interval": "1m",
                "input_series": input,
                "alert_rule_test": [{ "alertname": self.name, "eval_time": self.at, "exp_alerts": expected }],
            })
        };
        let fires = self.fires.iter().map(|series| test(series, &firing));
        fires.chain([test(&self.quiet, &json!([]))]).collect()
    }
}

/// The alerts.
pub static ALL: LazyLock<Vec<Alert>> = LazyLock::new(|| {
    [availability(), leadership(), reconciliation(), training(), promotion(), keys(), serving()].concat()
});

/// Returns the group of rules that Prometheus loads.
pub fn groups() -> Value {
    let rules: Vec<_> = ALL.iter().map(Alert::rule).collect();
    json!([{ "name": "codex", "rules": rules }])
}

/// Returns the input of `promtool test rules`, for the rule file `rules` beside it.
pub fn tests(rules: &str) -> Value {
    let tests: Vec<_> = ALL.iter().flat_map(Alert::tests).collect();
    json!({ "rule_files": [rules], "evaluation_interval": "1m", "tests": tests })
}

fn availability() -> Vec<Alert> {
    let up = |job: &str, namespace: &str, pod: &str| {
        UP.value(&[JOB.is(job), NAMESPACE.is(namespace), POD.is(pod)]).to_string()
    };
    let controller = |pod: &str| up(CONTROLLER, CONTROLLERS, pod);
    let server = |pod: &str| up(SERVER, "team", pod);
    let jobs = PODS.map(|(_, _, job)| job).join("|");
    vec![
        Alert {
            name: "CodexControllerMissing",
            severity: Severity::Critical,
            query: UP.value(&[JOB.is(CONTROLLER)]).equal(1.0).absent(),
            lasting: "5m",
            summary: "No controller can be scraped: nothing is reconciled, as far as Prometheus knows.",
            at: "10m",
            // It cannot be scraped, its pod was deleted, or there never was one.
            fires: vec![vec![(controller("a"), "0x20")], vec![(controller("a"), "1x3 stale")], vec![]],
            labels: &[],
            quiet: vec![(controller("a"), "1x20"), (controller("b"), "0x20")],
        },
        Alert {
            name: "CodexTargetDown",
            severity: Severity::Warning,
            query: UP.value(&[JOB.matches(&jobs)]).max(&[JOB, NAMESPACE, POD]).equal(0.0),
            lasting: "10m",
            summary: "A trainer, server or activator runs and cannot be scraped: its numbers are missing on dashboards and in other alerts.",
            at: "20m",
            fires: vec![vec![(server("a"), "0x30"), (server("b"), "1x30")], vec![(server("a"), "1x5 0x30")]],
            labels: &[("job", SERVER), ("namespace", "team"), ("pod", "a")],
            quiet: vec![
                (server("a"), "1x30"),
                // A pod that starts, one that has ended and is no target any more, and those that others watch.
                (server("b"), "0x8 1x30"),
                (up(TRAINER, "team", "c"), "1x3 0x8 stale"),
                (controller("d"), "0x30"),
                (up("node-exporter", "team", "e"), "0x30"),
            ],
        },
    ]
}

fn leadership() -> Vec<Alert> {
    // An installation has a namespace of its own, where its controllers share a Lease. Every scrape configuration sets the label.
    let of = |namespace: &str, pod: &str| LEADER.value(&[NAMESPACE.is(namespace), POD.is(pod)]).to_string();
    let ours = |pod: &str| of(CONTROLLERS, pod);
    vec![
        Alert {
            name: "CodexNoLeader",
            severity: Severity::Critical,
            query: LEADER.value(&[]).max(&[NAMESPACE]).equal(0.0),
            lasting: "5m",
            summary: "Controllers run, but none holds the Lease: nothing is reconciled.",
            at: "10m",
            // The leader of another installation does not help.
            fires: vec![vec![(ours("a"), "0x20"), (ours("b"), "0x20"), (of("other", "c"), "1x20")]],
            labels: &[("namespace", CONTROLLERS)],
            quiet: vec![(ours("a"), "0x20"), (ours("b"), "1x20")],
        },
        Alert {
            name: "CodexTwoLeaders",
            severity: Severity::Critical,
            query: LEADER.value(&[]).sum(&[NAMESPACE]).above(1.0),
            lasting: "2m",
            summary: "More than one controller of an installation believes that it holds the Lease.",
            at: "10m",
            fires: vec![vec![(ours("a"), "1x20"), (ours("b"), "1x20")]],
            labels: &[("namespace", CONTROLLERS)],
            // One minute in which the old leader was not scraped again is no alert, nor is another installation with its own Lease.
            quiet: vec![(ours("a"), "1 1 1 1 1 1 0x20"), (ours("b"), "0 0 0 0 0 1x20"), (of("other", "c"), "1x20")],
        },
    ]
}

fn reconciliation() -> Vec<Alert> {
    const KINDS: [&str; 1] = ["TrainingRun"];
    let results = |ok: &'static str, error: &'static str| -> Series {
        let of = |result: &str| RECONCILIATIONS.total(&[KIND.is(KINDS[0]), RESULT.is(result)]).to_string();
        vec![(of("ok"), ok), (of("error"), error)]
    };
    let failed = RECONCILIATIONS.rate(&[RESULT.is("error")], "10m").sum(&[KIND]);
    let waiting = QUEUE_AGE.value(&[KIND.is(KINDS[0])]).to_string();
    let rejected = "refused|unauthenticated|invalid";
    let report = |result: &str| REPORTS.total(&[KIND.is("Evaluation"), RESULT.is(result)]).to_string();
    vec![
        Alert {
            name: "CodexReconcileErrors",
            severity: Severity::Warning,
            query: failed.per(&RECONCILIATIONS.rate(&[], "10m").sum(&[KIND])).above(0.2),
            lasting: "15m",
            summary: "More than a fifth of the reconciliations of a kind fail.",
            at: "30m",
            fires: vec![results("0+6x40", "0+6x40")],
            labels: &[("kind", KINDS[0])],
            quiet: results("0+60x40", "0+1x40"),
        },
        Alert {
            name: "CodexQueueOld",
            severity: Severity::Warning,
            query: QUEUE_AGE.value(&[]).max(&[KIND]).above(60.0),
            lasting: "5m",
            summary: "An object has waited for its reconciliation for more than a minute.",
            at: "15m",
            fires: vec![vec![(waiting.clone(), "0+60x20")]],
            labels: &[("kind", KINDS[0])],
            quiet: vec![(waiting, "0 20 200 0 1 0x20")],
        },
        Alert {
            name: "CodexReportsRefused",
            severity: Severity::Warning,
            query: REPORTS.increase(&[RESULT.matches(rejected)], "15m").sum(&[KIND, RESULT]).above(5.0),
            lasting: "5m",
            summary: "The controller refuses reports of pods, so their progress and results do not reach a status.",
            at: "30m",
            fires: vec![vec![(report("refused"), "0+2x40")]],
            labels: &[("kind", "Evaluation"), ("result", "refused")],
            quiet: vec![(report("accepted"), "0+20x40"), (report("refused"), "0x10 1x30")],
        },
    ]
}

fn training() -> Vec<Alert> {
    let damaged = DAMAGED.total(&[NAMESPACE.is("team"), POD.is("codex-t-run-x")]).to_string();
    vec![
        Alert {
            name: "CodexProgressStale",
            severity: Severity::Warning,
            query: PROGRESS_OLDEST.value(&[]).min(&[]).age().above(900.0),
            lasting: "5m",
            summary: "A running TrainingRun has taken no step for more than 15 minutes.",
            at: "30m",
            fires: vec![vec![(PROGRESS_OLDEST.value(&[]).to_string(), "0x40")]],
            labels: &[],
            quiet: vec![(PROGRESS_OLDEST.value(&[]).to_string(), "0+60x40")],
        },
        Alert {
            name: "CodexCheckpointDamaged",
            severity: Severity::Warning,
            // A trainer counts them when it starts, before the first scrape, so an increase would miss them.
            query: DAMAGED.total(&[]).max(&[NAMESPACE, POD]).above(0.0),
            lasting: "1m",
            summary: "A trainer found a damaged checkpoint on its volume and resumed from an older one.",
            at: "10m",
            fires: vec![vec![(damaged.clone(), "1x20")]],
            labels: &[("namespace", "team"), ("pod", "codex-t-run-x")],
            quiet: vec![(damaged, "0x20")],
        },
    ]
}

fn promotion() -> Vec<Alert> {
    // Tests begin at the Unix time 0; a day has 86,400 s.
    let since = |matchers: &[Matcher]| CONDITION_OLDEST.value(matchers).to_string();
    let inconclusive = [KIND.is("Evaluation"), CONDITION.is("GatesPassed"), REASON.is("Inconclusive")];
    let stalled = [KIND.is("ReasoningPod"), CONDITION.is("Stalled"), STATUS.is("True")];
    let rolled_back = [&stalled[..], &[REASON.is("RolledBack")]].concat();
    let canaries = CONDITIONS.value(&rolled_back);
    let shadows = [KIND.is("ReasoningPod"), CONDITION.is("ParityHolding")];
    let redeploys = [KIND.is("ReasoningPod"), CONDITION.is("RedeploysOnTime")];
    let late = CONDITIONS.value(&[&redeploys[..], &[STATUS.is("False")]].concat());
    let parity = CONDITIONS.value(&[&shadows[..], &[STATUS.is("False")]].concat());
    vec![
        Alert {
            name: "CodexGateInconclusive",
            severity: Severity::Warning,
            query: CONDITION_OLDEST.value(&inconclusive).min(&[]).age().above(86_400.0),
            lasting: "10m",
            summary: "An Evaluation has been inconclusive for more than a day: its data cannot decide a gate.",
            at: "20m",
            fires: vec![vec![(since(&inconclusive), "-90000x30")]],
            labels: &[],
            quiet: vec![(since(&inconclusive), "-80000x30")],
        },
        Alert {
            name: "CodexPromotionBlocked",
            severity: Severity::Warning,
            query: CONDITION_OLDEST.value(&stalled).min(&[REASON]).age().above(86_400.0),
            lasting: "10m",
            summary: "A ReasoningPod has been blocked for more than a day.",
            at: "20m",
            fires: vec![vec![(since(&[&stalled[..], &[REASON.is("GateFailed")]].concat()), "-90000x30")]],
            labels: &[("reason", "GateFailed")],
            quiet: vec![(since(&[&stalled[..], &[REASON.is("GateFailed")]].concat()), "-80000x30")],
        },
        Alert {
            name: "CodexCanaryRolledBack",
            severity: Severity::Warning,
            query: canaries.max(&[]).above(0.0),
            lasting: "1m",
            summary: "A canary has failed and was stopped; the servers before it answer.",
            at: "10m",
            fires: vec![vec![(canaries.to_string(), "0x3 1x20")]],
            labels: &[],
            quiet: vec![(canaries.to_string(), "0x20")],
        },
        Alert {
            name: "CodexParityLost",
            severity: Severity::Warning,
            query: parity.max(&[]).above(0.0),
            lasting: "1m",
            summary: "A shadow certainly answers more requests differently than its spec allows.",
            at: "10m",
            fires: vec![vec![(parity.to_string(), "0x3 1x20")]],
            labels: &[],
            // Too few requests are no loss.
            quiet: vec![
                (parity.to_string(), "0x20"),
                (CONDITIONS.value(&[&shadows[..], &[STATUS.is("Unknown")]].concat()).to_string(), "1x20"),
            ],
        },
        Alert {
            name: "CodexRedeployLate",
            severity: Severity::Warning,
            query: late.max(&[REASON]).above(0.0),
            lasting: "5m",
            summary: "A cycle of spec.redeploy did not start in time or was not promoted: an older model is served.",
            at: "15m",
            fires: vec![vec![(
                CONDITIONS
                    .value(&[&redeploys[..], &[STATUS.is("False"), REASON.is("CyclesMissed")]].concat())
                    .to_string(),
                "0x3 1x20",
            )]],
            labels: &[("reason", "CyclesMissed")],
            // Before the first cycle has ended, and while cycles are promoted, nothing is late.
            quiet: vec![
                (
                    CONDITIONS
                        .value(&[&redeploys[..], &[STATUS.is("False"), REASON.is("CyclesMissed")]].concat())
                        .to_string(),
                    "0x20",
                ),
                (CONDITIONS.value(&[&redeploys[..], &[STATUS.is("True")]].concat()).to_string(), "1x20"),
                (CONDITIONS.value(&[&redeploys[..], &[STATUS.is("Unknown")]].concat()).to_string(), "1x20"),
            ],
        },
        Alert {
            name: "CodexServingUnverified",
            severity: Severity::Critical,
            query: UNVERIFIED.value(&[]).max(&[]).above(0.0),
            lasting: "10m",
            summary: "A ReasoningPod has ready servers, but its status proves no signed and verified model, or a policy denies it.",
            at: "20m",
            fires: vec![vec![(UNVERIFIED.value(&[]).to_string(), "1x30")]],
            labels: &[],
            // Servers of a model that was just denied need up to a minute to stop, and the model stays denied.
            quiet: vec![
                (UNVERIFIED.value(&[]).to_string(), "0x5 1x3 0x30"),
                (REVOKED.value(&[]).to_string(), "0x5 1x40"),
            ],
        },
    ]
}

fn keys() -> Vec<Alert> {
    let of = |pod: &str, metric: &Metric<Gauge>| metric.value(&[POD.is(pod)]).to_string();
    let leads = LEADER.value(&[]).equal(1.0);
    vec![
        Alert {
            name: "CodexSigningKeyUnavailable",
            severity: Severity::Critical,
            query: SIGNER.value(&[]).equal(0.0).and(&leads),
            lasting: "5m",
            summary: "The leader holds no signing key that is trusted now: no model can be promoted.",
            at: "10m",
            fires: vec![vec![(of("a", &SIGNER), "0x20"), (of("a", &LEADER), "1x20")]],
            labels: &[("pod", "a")],
            // A standby process holds no key, and needs none.
            quiet: vec![
                (of("a", &SIGNER), "1x20"),
                (of("a", &LEADER), "1x20"),
                (of("b", &SIGNER), "0x20"),
                (of("b", &LEADER), "0x20"),
            ],
        },
        Alert {
            name: "CodexKeyExpires",
            severity: Severity::Warning,
            query: KEY_EXPIRY.value(&[]).min(&[PURPOSE]).left().below(30.0 * 86_400.0),
            lasting: "10m",
            summary: "A trusted key expires within 30 days: then nothing is signed with it, and what it signed is signed again.",
            at: "20m",
            fires: vec![vec![(KEY_EXPIRY.value(&[PURPOSE.is("signing")]).to_string(), "1000000x30")]],
            labels: &[("purpose", "signing")],
            quiet: vec![(KEY_EXPIRY.value(&[PURPOSE.is("signing")]).to_string(), "600000000x30")],
        },
        Alert {
            name: "CodexCertificateExpires",
            severity: Severity::Warning,
            query: CERTIFICATE.value(&[]).min(&[]).left().below(30.0 * 86_400.0),
            lasting: "10m",
            summary: "A certificate of the report endpoint expires within 30 days; then no pod can report.",
            at: "20m",
            fires: vec![vec![(CERTIFICATE.value(&[]).to_string(), "1000000x30")]],
            labels: &[],
            quiet: vec![(CERTIFICATE.value(&[]).to_string(), "600000000x30")],
        },
    ]
}

fn serving() -> Vec<Alert> {
    // A share of slow requests that uses up the budget `factor` times as fast as it may be used, over both windows: the
    // long one proves that it matters, and the short one ends the alert soon after the cause.
    let burns = |factor: f64, long: &str, short: &str| {
        let over = |range| LATENCY.share_above(LATENCY_TARGET, &[], &[NAMESPACE], range).above_share(factor);
        over(long).and(&over(short))
    };
    let waiting = |pod: &str| WAITING.value(&[NAMESPACE.is("team"), POD.is(pod)]).to_string();
    let requests = |within: &'static str, all: &'static str| -> Series {
        let team = [NAMESPACE.is("team")];
        vec![(LATENCY.bucket(&LATENCY_TARGET.to_string(), &team), within), (LATENCY.count(&team), all)]
    };
    vec![
        Alert {
            name: "CodexLatencyBudgetFast",
            severity: Severity::Critical,
            query: burns(6.0, "1h", "5m"),
            lasting: "2m",
            summary: "Over an hour, more than 30 of 100 requests took longer than 0.7 s; at most 5 may.",
            at: "90m",
            fires: vec![requests("0+50x100", "0+100x100")],
            labels: &[("namespace", "team")],
            quiet: requests("0+98x100", "0+100x100"),
        },
        Alert {
            name: "CodexLatencyBudgetSlow",
            severity: Severity::Warning,
            query: burns(2.0, "6h", "30m"),
            lasting: "15m",
            summary: "Over six hours, more than 10 of 100 requests took longer than 0.7 s; at most 5 may.",
            at: "1h",
            fires: vec![requests("0+85x60", "0+100x60")],
            labels: &[("namespace", "team")],
            quiet: requests("0+92x60", "0+100x60"),
        },
        Alert {
            name: "CodexPromptsWait",
            severity: Severity::Warning,
            query: WAITING.value(&[]).sum(&[NAMESPACE]).above(0.0),
            lasting: "15m",
            summary: "For 15 minutes prompts have waited for a slot: the servers of the namespace are at capacity.",
            at: "20m",
            fires: vec![vec![(waiting("a"), "0x30"), (waiting("b"), "3x30")]],
            labels: &[("namespace", "team")],
            quiet: vec![(waiting("a"), "0x30"), (waiting("b"), "3x10 0x20")],
        },
    ]
}

impl Expr {
    /// Keeps shares above `factor` times the latency budget.
    fn above_share(&self, factor: f64) -> Self {
        // Rounded, because the product of two decimals is written with all its digits.
        self.above((factor * LATENCY_BUDGET * 1e6).round() / 1e6)
    }
}
