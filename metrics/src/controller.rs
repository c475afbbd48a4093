//! The metrics of `codex-controller`.

use crate::{
    label::{
        CATEGORY, CODE, CONDITION, KIND, METRIC, PHASE, PORT, PROBLEMS, PURPOSE, REASON, RESULT, RING, STATE,
        STATEMENT, STATUS, VERB, VERDICT, VERSION,
    },
    metric::metrics,
};

metrics! {
    RECONCILIATIONS = Counter("codex_controller_reconciliations_total", Count, [KIND, RESULT],
        "Reconciliations by kind and result (ok, error).");
    RECONCILE_DURATION = Histogram("codex_controller_reconcile_duration_seconds", Seconds, [KIND],
        "Duration of reconciliations.").buckets(&[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0]);
    ERRORS = Counter("codex_controller_errors_total", Count, [KIND, CATEGORY],
        "Failed reconciliations by category.").later();
    QUEUE = Gauge("codex_controller_queue_objects", Count, [KIND],
        "Objects that wait to be reconciled.");
    QUEUE_AGE = Gauge("codex_controller_queue_oldest_seconds", Seconds, [KIND],
        "How long the object that waits longest to be reconciled has waited.");
    QUEUE_WAIT = Histogram("codex_controller_queue_wait_seconds", Seconds, [KIND],
        "Time from a change to the start of the reconciliation that it caused.")
        .more("Retries and planned requeues do not wait, so they are not counted.")
        .buckets(&[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0]);
    WRITES = Counter("codex_controller_writes_total", Count, [KIND, VERB],
        "Writes to the API server by kind of object and verb.");
    API_REQUESTS = Counter("codex_controller_api_requests_total", Count, [VERB, CODE],
        "Requests to the API server by verb and status code.")
        .more("The verbs are those of Kubernetes: get, list, watch, create, update, patch, delete.");
    API_DURATION = Histogram("codex_controller_api_request_duration_seconds", Seconds, [VERB],
        "Time until the API server answered a request, without watches.")
        .buckets(&[0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0]);
    REPORTS = Counter("codex_controller_reports_total", Count, [KIND, RESULT],
        "Reports of pods by result (accepted, stale, refused, unauthenticated, invalid, unavailable).");
    REFUSED_CONNECTIONS = Counter("codex_controller_connections_refused_total", Count, [PORT],
        "Connections closed because too many were open, by port.")
        .more("At most 1,024 are open on `reports`, and 128 on `health`.");
    OBJECTS = Gauge("codex_controller_objects", Count, [KIND, PHASE, RING],
        "Existing objects by kind, phase and ring.")
        .more("TrainingRuns: Pending, Running, Suspended, Stalled, Succeeded, Failed, Unreproducible. Evaluations: the verdict (Passed, Failed, \
            Inconclusive), before it Pending, Running, Suspended or Stalled; one that ended without a verdict is Failed, too. \
            ReasoningPods: Pending, DryRun, Blocked, RollingOut, Serving, Idle. Policies and SignOffs: Present.");
    PHASE_OLDEST = Gauge("codex_controller_phase_oldest_timestamp_seconds", UnixTime, [KIND, PHASE],
        "When the first of the objects in this phase got there.")
        .more("Its age is the longest time in a phase. Phases are those of `codex_controller_objects`; a verdict is as old as the phase Judged. \
            An object whose status does not have `lastPhaseTransitionTime` is left out until its phase changes.");
    CONDITIONS = Gauge("codex_controller_conditions", Count, [KIND, CONDITION, STATUS, REASON],
        "Existing objects by condition, its status and its reason.")
        .more("The conditions of a ReasoningPod with the status False say what blocks it.");
    CONDITION_OLDEST = Gauge("codex_controller_condition_oldest_timestamp_seconds", UnixTime,
        [KIND, CONDITION, STATUS, REASON],
        "When the first of the objects with this condition, status and reason got the status.")
        .more("A change of the reason alone does not move it: of a run that waits for a pod and then \
            trains, it is when it began to wait.");
    GATES = Gauge("codex_controller_gates", Count, [METRIC, VERDICT],
        "Judged gates of existing Evaluations by metric and verdict.");
    GATE_MARGIN = Gauge("codex_controller_gate_lowest_margin", Number, [METRIC],
        "Lowest distance of a bound from the limit of its gate, over existing Evaluations; negative if a gate is missed.")
        .more("`codex_controller_gate_bound` and `codex_controller_gate_limit` are those of the same gate. Gates without a bound are left \
            out: those that McNemar's test decides, and those whose problems are too few. `betterThan` by 0 without `confidence` is \
            missed at 0, too.");
    GATE_BOUND = Gauge("codex_controller_gate_bound", Number, [METRIC],
        "The bound that was judged of the gate with the lowest margin, in the unit of the metric.")
        .more("The lower bound of the value for `min` and the upper one for `max`; for `betterThan` and `notWorseThan` the lower bound of the \
            mean difference from the other Evaluation. Without `confidence` it is the value or the mean difference itself.");
    GATE_LIMIT = Gauge("codex_controller_gate_limit", Number, [METRIC],
        "The limit of the gate with the lowest margin, in the unit of the metric.")
        .more("`min`, which the bound must not be below, or `max`, which it must not be above. Of a difference: `by` for `betterThan`, and \
            the negative of `by` for `notWorseThan`; the bound must not be below them.");
    READS = Gauge("codex_controller_problem_reads", Count, [PROBLEMS],
        "Verdicts that have read a set of problems: the highest number that an existing Evaluation records.")
        .more("The ledger in the controller's namespace counts them, and deleting Evaluations does not lower the next number.");
    RUN_STEPS = Gauge("codex_controller_run_steps", Count, [STATE],
        "Optimizer steps of existing TrainingRuns: completed, and executed with repeated ones.")
        .more("Goodput is completed over executed.");
    PROGRESS_OLDEST = Gauge("codex_controller_progress_oldest_timestamp_seconds", UnixTime, [],
        "When the running TrainingRun that has stood still longest took its latest step.")
        .more("Counted since this process leads. Absent while no TrainingRun is Running.").later();
    CHECKPOINT_OLDEST = Gauge("codex_controller_checkpoint_oldest_timestamp_seconds", UnixTime, [],
        "When the running TrainingRun with the oldest newest checkpoint wrote it.")
        .more("Counted since this process leads. Absent while no TrainingRun is Running.").later();
    SERVING = Gauge("codex_controller_serving_replicas", Count, [RING],
        "Ready server pods by ring.");
    UNVERIFIED = Gauge("codex_controller_serving_unverified_objects", Count, [],
        "ReasoningPods with ready servers and without a signed, promoted and verified model in their status, or with one that a policy denies.")
        .more("Above 0 for moments while servers are replaced or stopped, otherwise always 0.");
    REVOKED = Gauge("codex_controller_revoked_objects", Count, [],
        "ReasoningPods whose model, or what they serve, is on the deny-list of a promotion policy.")
        .more("Their servers are scaled to zero.");
    MANUAL_OVERRIDES = Counter("codex_controller_manual_overrides_total", Count, [RING],
        "Sign-offs of people that signed promotions name, by ring.")
        .more("A promotion that is signed again, for example under a changed policy, counts again.").later();
    REDEPLOYING = Gauge("codex_controller_redeploying_objects", Count, [PHASE],
        "ReasoningPods with `spec.redeploy` by the phase of their latest cycle.")
        .more("Waiting before the first one, then Training, Evaluating, Blocked, RollingOut, Serving, Failed or RolledBack.").later();
    CYCLE_OVERRIDES = Gauge("codex_controller_cycle_manual_overrides", Count, [],
        "Sign-offs of people that promoted cycles of existing ReasoningPods had.")
        .more("0 means that no person waved one through.");
    SIGNATURES = Counter("codex_controller_signatures_total", Count, [STATEMENT, RESULT],
        "Attempts to sign a statement (model, promotion, reproduction) by result (ok, error).").later();
    SPANS = Counter("codex_controller_spans_total", Count, [RESULT],
        "Spans for a collector of OpenTelemetry by result (exported, rejected, failed, dropped).")
        .more("`rejected` by the collector, `failed` to be sent, `dropped` because too many waited. Absent without a collector.").later();
    SIGNER = Gauge("codex_controller_signer_available", Boolean, [],
        "1 while the leader holds a signing key that is trusted now, 0 otherwise.")
        .more("A standby process has 0.");
    KEY_EXPIRY = Gauge("codex_controller_key_expiry_timestamp_seconds", UnixTime, [PURPOSE],
        "When the signing key expires, and the first of the other trusted keys that has not expired yet.")
        .more("Absent for keys without `notAfter`.").later();
    CERTIFICATE = Gauge("codex_controller_report_certificate_expiry_timestamp_seconds", UnixTime, [],
        "When the first certificate of the report endpoint expires: the authority or the serving certificate.");
    LEADER = Gauge("codex_controller_is_leader", Boolean, [],
        "1 while this process holds the Lease, 0 otherwise.");
    BUILD = Gauge("codex_controller_build_info", Number, [VERSION],
        "The version of the running build; always 1.");
    MALFORMED = Counter("codex_controller_malformed_objects_total", Count, [KIND],
        "Objects that could not be parsed and were ignored.").later();
    WATCH_ERRORS = Counter("codex_controller_watch_errors_total", Count, [KIND],
        "Failed watches; each is retried.").later();
}
