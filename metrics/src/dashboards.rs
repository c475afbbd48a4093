//! The four dashboards: operator, runs, rings and gates, serving.

use crate::{
    activator,
    controller::{
        API_DURATION, API_REQUESTS, CERTIFICATE, CHECKPOINT_OLDEST, CONDITION_OLDEST, CONDITIONS, CYCLE_OVERRIDES,
        ERRORS, GATE_MARGIN, GATES, KEY_EXPIRY, LEADER, MALFORMED, MANUAL_OVERRIDES, OBJECTS, PROGRESS_OLDEST, QUEUE,
        QUEUE_AGE, QUEUE_WAIT, READS, RECONCILE_DURATION, RECONCILIATIONS, REDEPLOYING, REFUSED_CONNECTIONS, REPORTS,
        REVOKED, RUN_STEPS, SERVING, SIGNATURES, SIGNER, SPANS, UNVERIFIED, WATCH_ERRORS, WRITES,
    },
    dashboard::{
        Dashboard, Panel,
        PanelUnit::{Flops, Number as Plain, PerSecond, Requests, Seconds, Share},
        Shape::{Bars, Lines, Number, Stack, Zero},
    },
    gpu,
    label::{
        CATEGORY, CODE, CONDITION, GPU, KEY, KIND, METRIC, MODEL, PHASE, PORT, PROBLEMS, REASON, RESULT, RING, RULE,
        STATE, STATEMENT, STATUS, TYPE, VERB, VERDICT,
        target::{NAMESPACE, POD},
    },
    query::RATE_INTERVAL,
    server::{self, LATENCY, LATENCY_BUDGET, LATENCY_TARGET, MODEL_INFO, RESPONSES, SESSIONS},
    trainer::{
        self, ANSWER_ACCURACY, ANSWER_TOKENS, CURRICULUM_PHASE, CURRICULUM_WAITS, DAMAGED, DATA_DURATION, ENTROPY,
        EPSILON, FLOPS, GRADIENT_NOISE_SCALE, GRADIENT_NORM, LEARNING_RATE, LOSS, PEAK_FLOPS, PREFERENCE_ACCURACY,
        REWARD, REWARD_DEVIATION, REWARD_MARGIN, SOLVED_PROMPTS, SPIKES, STEP, STEP_DURATION, STEPS, TARGET, TOKENS,
        TRUNCATED_ANSWERS, VAL_LOSS,
    },
};

/// Returns the four dashboards.
pub fn all() -> [Dashboard; 4] {
    [operator(), runs(), rings(), serving()]
}

fn operator() -> Dashboard {
    let failures = RECONCILIATIONS.rate(&[RESULT.is("error")], RATE_INTERVAL).sum(&[KIND]);
    let all = RECONCILIATIONS.rate(&[], RATE_INTERVAL).sum(&[KIND]);
    Dashboard {
        uid: "codex-operator",
        title: "Codex / Operator",
        sentence: "Whether the controller keeps up, and what it asks of the API server.",
        namespaces: None,
        rows: vec![
            (
                "Health",
                vec![
                    Panel::new(
                        Number,
                        Plain,
                        "Leaders",
                        "Controllers that hold a Lease; exactly 1 for each installation is normal.",
                    )
                    .named(&LEADER.value(&[]).sum(&[]), "leaders")
                    .when_empty("no controller"),
                    Panel::new(
                        Number,
                        Plain,
                        "Signing key",
                        "1 if the leader holds a signing key that is trusted now.",
                    )
                    .named(&SIGNER.value(&[]).max(&[]), "available")
                    .when_empty("no controller"),
                    Panel::new(Number, Seconds, "Keys", "Time until a trusted key expires.")
                        .named(&KEY_EXPIRY.value(&[]).min(&[]).left(), "left")
                        .when_empty("no key expires"),
                    Panel::new(
                        Number,
                        Seconds,
                        "Certificate",
                        "Time until a certificate of the report endpoint expires.",
                    )
                    .named(&CERTIFICATE.value(&[]).min(&[]).left(), "left")
                    .when_empty("no controller"),
                    Panel::new(Number, Plain, "Waiting", "Objects that wait to be reconciled; close to 0 is normal.")
                        .named(&QUEUE.value(&[]).sum(&[]), "objects")
                        .when_empty("no controller"),
                    Panel::new(
                        Zero,
                        Plain,
                        "Malformed objects",
                        "Objects that were ignored since the start, because they could not be parsed.",
                    )
                    .named(&MALFORMED.total(&[]).sum(&[]).or_zero(), "objects"),
                    Panel::new(
                        Zero,
                        Plain,
                        "Failed watches",
                        "Watches that failed in the last hour and were started again.",
                    )
                    .named(&WATCH_ERRORS.increase(&[], "1h").sum(&[]).or_zero(), "watches"),
                ],
            ),
            (
                "Reconciliation",
                vec![
                    Panel::new(
                        Stack,
                        PerSecond,
                        "Reconciliations",
                        "Reconciliations per second by kind; 0 while nothing changes.",
                    )
                    .by(&all, &[KIND])
                    .when_empty("no traffic"),
                    Panel::new(Lines, Share, "Failed share", "Share of reconciliations that failed; each is retried.")
                        .by(&failures.per(&all), &[KIND])
                        .when_empty("no traffic"),
                    Panel::new(Lines, PerSecond, "Failures by category", "Failed reconciliations per second by cause.")
                        .by(&ERRORS.rate(&[], RATE_INTERVAL).sum(&[KIND, CATEGORY]), &[KIND, CATEGORY])
                        .when_empty("no failures"),
                    Panel::new(Lines, Seconds, "Duration", "Time of a reconciliation that 95 of 100 do not exceed.")
                        .by(&RECONCILE_DURATION.quantile(0.95, &[], &[KIND], RATE_INTERVAL), &[KIND])
                        .when_empty("no traffic"),
                    Panel::new(
                        Lines,
                        Seconds,
                        "Wait in the queue",
                        "Time from a change to its reconciliation that 95 of 100 do not exceed.",
                    )
                    .by(&QUEUE_WAIT.quantile(0.95, &[], &[KIND], RATE_INTERVAL), &[KIND])
                    .when_empty("no traffic"),
                    Panel::new(
                        Lines,
                        Seconds,
                        "Oldest in the queue",
                        "How long the object that waits longest has waited; above a minute is an alert.",
                    )
                    .by(&QUEUE_AGE.value(&[]).max(&[KIND]), &[KIND])
                    .when_empty("no controller"),
                ],
            ),
            (
                "API server and pods",
                vec![
                    Panel::new(
                        Stack,
                        Requests,
                        "API requests",
                        "Requests to the API server per second by verb and status code.",
                    )
                    .by(&API_REQUESTS.rate(&[], RATE_INTERVAL).sum(&[VERB, CODE]), &[VERB, CODE])
                    .when_empty("no traffic"),
                    Panel::new(
                        Lines,
                        Seconds,
                        "API latency",
                        "Time of an answer that 99 of 100 requests do not exceed, by verb.",
                    )
                    .by(&API_DURATION.quantile(0.99, &[], &[VERB], RATE_INTERVAL), &[VERB])
                    .when_empty("no traffic"),
                    Panel::new(
                        Stack,
                        PerSecond,
                        "Writes",
                        "Writes per second by kind of object and verb; 0 while nothing changes.",
                    )
                    .by(&WRITES.rate(&[], RATE_INTERVAL).sum(&[KIND, VERB]), &[KIND, VERB])
                    .when_empty("no writes"),
                    Panel::new(
                        Stack,
                        PerSecond,
                        "Reports of pods",
                        "Reports per second by result; refused ones are never normal.",
                    )
                    .by(&REPORTS.rate(&[], RATE_INTERVAL).sum(&[KIND, RESULT]), &[KIND, RESULT])
                    .when_empty("no reports"),
                    Panel::new(
                        Lines,
                        PerSecond,
                        "Refused connections",
                        "Connections per second that were closed because too many were open, by port; 0 is normal.",
                    )
                    .by(&REFUSED_CONNECTIONS.rate(&[], RATE_INTERVAL).sum(&[PORT]), &[PORT])
                    .when_empty("no controller"),
                    Panel::new(
                        Lines,
                        PerSecond,
                        "Spans",
                        "Spans per second for a collector of OpenTelemetry by result; lost ones are never normal.",
                    )
                    .by(&SPANS.rate(&[], RATE_INTERVAL).sum(&[RESULT]), &[RESULT])
                    .when_empty("no collector"),
                    Panel::new(Bars, Plain, "Objects", "Existing objects by kind and phase.")
                        .by(&OBJECTS.value(&[]).sum(&[KIND, PHASE]), &[KIND, PHASE])
                        .when_empty("no objects"),
                ],
            ),
        ],
    }
}

fn runs() -> Dashboard {
    const HERE: [crate::Label; 2] = [NAMESPACE, POD];
    const EACH_GPU: [crate::Label; 3] = [NAMESPACE, POD, GPU];
    let chosen = [NAMESPACE.chosen()];
    let completed = RUN_STEPS.value(&[STATE.is("completed")]).sum(&[]);
    let executed = RUN_STEPS.value(&[STATE.is("executed")]).sum(&[]);
    let step_time = STEP_DURATION.sum_rate(&chosen, RATE_INTERVAL).sum(&HERE);
    Dashboard {
        uid: "codex-runs",
        title: "Codex / Runs",
        sentence: "Whether TrainingRuns move, learn, and lose no work.",
        namespaces: Some(STEPS.total(&[])),
        rows: vec![
            (
                "All runs",
                vec![
                    Panel::new(Bars, Plain, "Runs", "Existing TrainingRuns by phase.")
                        .by(&OBJECTS.value(&[KIND.is("TrainingRun")]).sum(&[PHASE]), &[PHASE])
                        .when_empty("no runs"),
                    Panel::new(Number, Seconds, "Oldest progress", "Time since the running TrainingRun that stands still longest took a step; above 15 minutes is an alert.")
                        .named(&PROGRESS_OLDEST.value(&[]).min(&[]).age(), "age")
                        .when_empty("no running run"),
                    Panel::new(Number, Seconds, "Oldest checkpoint", "Time since the newest checkpoint of the running TrainingRun that has the oldest one: the work that a lost node costs at most.")
                        .named(&CHECKPOINT_OLDEST.value(&[]).min(&[]).age(), "age")
                        .when_empty("no running run"),
                    Panel::new(Number, Share, "Goodput", "Completed steps over executed ones of all existing TrainingRuns; repeated steps lower it.")
                        .named(&completed.per(&executed), "completed / executed")
                        .when_empty("no steps"),
                    Panel::new(Zero, Plain, "Damaged checkpoints", "Damaged checkpoints that running trainers found.")
                        .named(&DAMAGED.total(&chosen).sum(&[]).or_zero(), "checkpoints"),
                    Panel::new(Zero, Plain, "Tracking failures", "Failed writes of running trainers to experiment trackers, such as TensorBoard or MLflow.")
                        .named(&trainer::TRACKING_FAILURES.total(&chosen).sum(&[]).or_zero(), "failures"),
                    Panel::new(Zero, Plain, "Refused connections", "Connections that running trainers closed because too many read their metrics.")
                        .named(&trainer::REFUSED_CONNECTIONS.total(&chosen).sum(&[]).or_zero(), "connections"),
                ],
            ),
            (
                "Learning",
                vec![
                    Panel::new(Lines, Plain, "Loss", "Mean cross-entropy per target token of the latest step, in nats.")
                        .by(&LOSS.value(&chosen), &HERE)
                        .when_empty("no trainer"),
                    Panel::new(Lines, Plain, "Validation loss", "The same on held-out records, of the latest evaluation.")
                        .by(&VAL_LOSS.value(&chosen).known(), &HERE)
                        .when_empty("no evaluation yet"),
                    Panel::new(Lines, Share, "Progress", "Steps taken over the steps of the whole run.")
                        .by(&STEP.value(&chosen).per(&TARGET.value(&chosen)), &HERE)
                        .when_empty("no trainer"),
                    Panel::new(Lines, Plain, "Blocked records", "Records of the training data that safety rules leave out.")
                        .by(&trainer::BLOCKED_RECORDS.value(&chosen), &HERE)
                        .when_empty("no trainer"),
                    Panel::new(Lines, Plain, "Redacted records", "Records of the training data of which safety rules replace something.")
                        .by(&trainer::REDACTED_RECORDS.value(&chosen), &HERE)
                        .when_empty("no trainer"),
                    Panel::new(Lines, Plain, "Curriculum", "Number of the active phase; 0 without a curriculum.")
                        .by(&CURRICULUM_PHASE.value(&chosen), &HERE)
                        .when_empty("no trainer"),
                    Panel::new(Lines, Plain, "Waiting phases", "1 while the steps of the active phase are done and a threshold does not hold.")
                        .by(&CURRICULUM_WAITS.value(&chosen), &HERE)
                        .when_empty("no trainer"),
                    Panel::new(Lines, Plain, "Gradient norm", "Norm of the latest gradient before clipping.")
                        .by(&GRADIENT_NORM.value(&chosen), &HERE)
                        .when_empty("no trainer"),
                    Panel::new(Lines, Plain, "Learning rate", "Learning rate of the latest step.")
                        .by(&LEARNING_RATE.value(&chosen), &HERE)
                        .when_empty("no trainer"),
                    Panel::new(Lines, Plain, "Gradient noise scale", "About how many examples a batch needs before its gradient is no longer mostly noise.")
                        .by(&GRADIENT_NOISE_SCALE.value(&chosen).known(), &HERE)
                        .when_empty("not measured"),
                    Panel::new(Lines, Plain, "Epsilon", "With training.privacy: the epsilon that the run has spent.")
                        .by(&EPSILON.value(&chosen).known(), &HERE)
                        .when_empty("not private"),
                    Panel::new(Lines, Plain, "Reward margin", "With DPO: by how much more the model prefers the chosen response than the reference model does.")
                        .by(&REWARD_MARGIN.value(&chosen).known(), &HERE)
                        .when_empty("no DPO"),
                    Panel::new(Lines, Share, "Preference accuracy", "With DPO: share of the pairs whose reward margin is positive.")
                        .by(&PREFERENCE_ACCURACY.value(&chosen).known(), &HERE)
                        .when_empty("no DPO"),
                    Panel::new(Lines, PerSecond, "Spikes", "Steps per second with a spike of the loss or gradient norm.")
                        .by(&SPIKES.rate(&chosen, RATE_INTERVAL), &HERE)
                        .when_empty("no trainer"),
                ],
            ),
            (
                "Rewards",
                vec![
                    Panel::new(Lines, Plain, "Reward", "With GRPO: mean reward of the answers that the latest step sampled.")
                        .by(&REWARD.value(&chosen).known(), &HERE)
                        .when_empty("no GRPO"),
                    Panel::new(Lines, Plain, "Reward deviation", "With GRPO: standard deviation of the rewards of answers to the same prompt. At 0 nothing is learned.")
                        .by(&REWARD_DEVIATION.value(&chosen).known(), &HERE)
                        .when_empty("no GRPO"),
                    Panel::new(Lines, Share, "Right answers", "With GRPO: share of the sampled answers that are right.")
                        .by(&ANSWER_ACCURACY.value(&chosen).known(), &HERE)
                        .when_empty("no GRPO"),
                    Panel::new(Lines, Share, "Solved prompts", "With GRPO: share of the prompts with a right answer among those sampled.")
                        .by(&SOLVED_PROMPTS.value(&chosen).known(), &HERE)
                        .when_empty("no GRPO"),
                    Panel::new(Lines, Plain, "Entropy", "With GRPO: estimated entropy per sampled token, in nats. It falls as the answers become alike.")
                        .by(&ENTROPY.value(&chosen).known(), &HERE)
                        .when_empty("no GRPO"),
                    Panel::new(Lines, Plain, "Answer length", "With GRPO: mean number of tokens of a sampled answer.")
                        .by(&ANSWER_TOKENS.value(&chosen).known(), &HERE)
                        .when_empty("no GRPO"),
                    Panel::new(Lines, Share, "Truncated answers", "With GRPO: share of the sampled answers that were cut off, of which nothing is learned.")
                        .by(&TRUNCATED_ANSWERS.value(&chosen).known(), &HERE)
                        .when_empty("no GRPO"),
                ],
            ),
            (
                "Speed",
                vec![
                    Panel::new(Lines, PerSecond, "Tokens", "Tokens trained on per second, without padding.")
                        .by(&TOKENS.rate(&chosen, RATE_INTERVAL), &HERE)
                        .when_empty("no trainer"),
                    Panel::new(Lines, PerSecond, "Steps", "Optimizer steps per second.")
                        .by(&STEPS.rate(&chosen, RATE_INTERVAL), &HERE)
                        .when_empty("no trainer"),
                    Panel::new(Lines, Seconds, "Step duration", "Time of a step that 95 of 100 do not exceed.")
                        .by(&STEP_DURATION.quantile(0.95, &chosen, &HERE, RATE_INTERVAL), &HERE)
                        .when_empty("no steps"),
                    Panel::new(Lines, Share, "Data wait", "Share of the time of steps that they wait for data; close to 0 is normal.")
                        .by(&DATA_DURATION.sum_rate(&chosen, RATE_INTERVAL).sum(&HERE).per(&step_time), &HERE)
                        .when_empty("no steps"),
                    Panel::new(Lines, Flops, "Floating-point operations", "Operations of the model per second.")
                        .by(&FLOPS.rate(&chosen, RATE_INTERVAL), &HERE)
                        .when_empty("no trainer"),
                    Panel::new(Lines, Share, "Model FLOP utilization", "Operations of the model per second over those of a large product on the same device.")
                        .by(&FLOPS.rate(&chosen, RATE_INTERVAL).sum(&HERE).per(&PEAK_FLOPS.value(&chosen).sum(&HERE)), &HERE)
                        .when_empty("no trainer"),
                ],
            ),
            (
                "GPUs",
                vec![
                    Panel::new(Lines, Share, "Utilization", "Share of the time in which a kernel ran on the GPU.")
                        .by(&gpu::UTILIZATION.value(&chosen), &EACH_GPU)
                        .when_empty("no GPU"),
                    Panel::new(Lines, Share, "Memory", "Memory in use over all memory of the GPU.")
                        .by(&gpu::MEMORY_USED.value(&chosen).per(&gpu::MEMORY_SIZE.value(&chosen)), &EACH_GPU)
                        .when_empty("no GPU"),
                    Panel::new(Lines, Plain, "Temperature", "Temperature of the GPU in degrees Celsius.")
                        .by(&gpu::TEMPERATURE.value(&chosen), &EACH_GPU)
                        .when_empty("no GPU"),
                    Panel::new(Lines, Plain, "Power", "Power that the GPU draws, in watts.")
                        .by(&gpu::POWER.value(&chosen), &EACH_GPU)
                        .when_empty("no GPU"),
                ],
            ),
        ],
    }
}

fn rings() -> Dashboard {
    // A server that runs is not idle, which blocks nothing.
    let others = [CONDITION.is_not("Ready"), CONDITION.is_not("Idle")];
    let blocks = CONDITIONS.value(&[&[KIND.is("ReasoningPod"), STATUS.is("False")], &others[..]].concat());
    let stalled = [KIND.is("ReasoningPod"), CONDITION.is("Stalled"), STATUS.is("True")];
    let inconclusive = [KIND.is("Evaluation"), CONDITION.is("GatesPassed"), REASON.is("Inconclusive")];
    Dashboard {
        uid: "codex-rings",
        title: "Codex / Rings and gates",
        sentence: "Which models are in which ring, how close gates are, and what blocks a promotion.",
        namespaces: None,
        rows: vec![
            (
                "Safety",
                vec![
                    Panel::new(Zero, Plain, "Serving unverified", "ReasoningPods that serve without a signed, promoted and verified model, or a denied one; always 0.")
                        .named(&UNVERIFIED.value(&[]).max(&[]), "objects")
                        .when_empty("no controller"),
                    Panel::new(Number, Plain, "Revoked", "ReasoningPods whose model, or what they serve, is on a deny-list.")
                        .named(&REVOKED.value(&[]).max(&[]), "objects")
                        .when_empty("no controller"),
                    Panel::new(Number, Plain, "Serving", "Ready server pods.")
                        .named(&SERVING.value(&[]).sum(&[]), "servers")
                        .when_empty("no servers"),
                    Panel::new(Number, Seconds, "Longest blocked", "How long the ReasoningPod that has been blocked longest has been blocked; above a day is an alert.")
                        .named(&CONDITION_OLDEST.value(&stalled).min(&[]).age(), "age")
                        .when_empty("nothing is blocked"),
                    Panel::new(Number, Seconds, "Longest inconclusive", "How long the Evaluation that has been inconclusive longest has been so; above a day is an alert.")
                        .named(&CONDITION_OLDEST.value(&inconclusive).min(&[]).age(), "age")
                        .when_empty("none is inconclusive"),
                    Panel::new(Number, Plain, "Signatures today", "Statements that were signed in the last 24 hours.")
                        .named(&SIGNATURES.increase(&[RESULT.is("ok")], "24h").sum(&[]).or_zero(), "statements"),
                    Panel::new(Number, Plain, "Manual overrides this week", "Sign-offs of people that promotions signed in the last 7 days name.")
                        .named(&MANUAL_OVERRIDES.increase(&[], "7d").sum(&[]).or_zero(), "sign-offs"),
                    Panel::new(Zero, Plain, "Cycles waved through", "Sign-offs that promoted cycles had; 0 if no person waved one through.")
                        .named(&CYCLE_OVERRIDES.value(&[]).max(&[]), "sign-offs")
                        .when_empty("no controller"),
                ],
            ),
            (
                "Rings",
                vec![
                    Panel::new(Bars, Plain, "Runs by ring", "Existing TrainingRuns by ring and phase.")
                        .by(&OBJECTS.value(&[KIND.is("TrainingRun")]).sum(&[RING, PHASE]), &[RING, PHASE])
                        .when_empty("no runs"),
                    Panel::new(Bars, Plain, "ReasoningPods by ring", "Existing ReasoningPods by ring and phase.")
                        .by(&OBJECTS.value(&[KIND.is("ReasoningPod")]).sum(&[RING, PHASE]), &[RING, PHASE])
                        .when_empty("no ReasoningPods"),
                    Panel::new(Lines, Plain, "Servers by ring", "Ready server pods by ring.")
                        .by(&SERVING.value(&[]).sum(&[RING]), &[RING])
                        .when_empty("no servers"),
                ],
            ),
            (
                "Gates",
                vec![
                    Panel::new(Bars, Plain, "Gates", "Judged gates of existing Evaluations by metric and verdict.")
                        .by(&GATES.value(&[]).sum(&[METRIC, VERDICT]), &[METRIC, VERDICT])
                        .when_empty("no verdicts"),
                    Panel::new(Lines, Plain, "Lowest margin", "Lowest distance of a bound from the limit of its gate; below 0 a gate is missed.")
                        .by(&GATE_MARGIN.value(&[]).min(&[METRIC]), &[METRIC])
                        .when_empty("no verdicts"),
                    Panel::new(Bars, Plain, "Evaluations", "Existing Evaluations by verdict, or by phase before it.")
                        .by(&OBJECTS.value(&[KIND.is("Evaluation")]).sum(&[PHASE]), &[PHASE])
                        .when_empty("no Evaluations"),
                    Panel::new(Bars, Plain, "Reads of held-out sets", "Verdicts that have read each set of problems; promotion policies may limit them.")
                        .by(&READS.value(&[]).max(&[PROBLEMS]), &[PROBLEMS])
                        .when_empty("no verdicts"),
                ],
            ),
            (
                "Promotion",
                vec![
                    Panel::new(Bars, Plain, "What blocks", "Conditions of ReasoningPods that do not hold, with the reason.")
                        .by(&blocks.sum(&[CONDITION, REASON]), &[CONDITION, REASON])
                        .when_empty("nothing is blocked"),
                    Panel::new(Lines, Plain, "What blocks, over time", "The same numbers over time.")
                        .by(&blocks.sum(&[CONDITION, REASON]), &[CONDITION, REASON])
                        .when_empty("nothing is blocked"),
                    Panel::new(Lines, PerSecond, "Signatures", "Statements signed per second, by statement and result.")
                        .by(&SIGNATURES.rate(&[], RATE_INTERVAL).sum(&[STATEMENT, RESULT]), &[STATEMENT, RESULT])
                        .when_empty("no signatures"),
                    Panel::new(Bars, Plain, "Redeployments", "ReasoningPods with spec.redeploy by the phase of their latest cycle.")
                        .by(&REDEPLOYING.value(&[]).sum(&[PHASE]), &[PHASE])
                        .when_empty("nothing is redeployed"),
                ],
            ),
        ],
    }
}

fn serving() -> Dashboard {
    let chosen = [NAMESPACE.chosen()];
    let slow = LATENCY.share_above(LATENCY_TARGET, &chosen, &[NAMESPACE], RATE_INTERVAL);
    let answers = RESPONSES.rate(&chosen, RATE_INTERVAL).sum(&[]);
    let errors = RESPONSES.rate(&[&chosen[..], &[CODE.matches("5..")]].concat(), RATE_INTERVAL).sum(&[]);
    let latency = |quantile: f64| LATENCY.quantile(quantile, &chosen, &[], RATE_INTERVAL);
    let first = |quantile: f64| server::FIRST_TOKEN.quantile(quantile, &chosen, &[], RATE_INTERVAL);
    let between = |quantile: f64| server::INTER_TOKEN.quantile(quantile, &chosen, &[], RATE_INTERVAL);
    let queued = |quantile: f64| server::QUEUE_TIME.quantile(quantile, &chosen, &[], RATE_INTERVAL);
    let batched = |quantile: f64| server::BATCHED_TOKENS.quantile(quantile, &chosen, &[], RATE_INTERVAL);
    let cached = |quantile: f64| server::CACHED_LENGTH.quantile(quantile, &chosen, &[], RATE_INTERVAL);
    let reasoned = |quantile: f64| server::REASONING_LENGTH.quantile(quantile, &chosen, &[], RATE_INTERVAL);
    let held = |quantile: f64| activator::HOLD_TIME.quantile(quantile, &chosen, &[], RATE_INTERVAL);
    let bound = server::GRAMMAR_TIME.quantile(0.95, &chosen, &[], RATE_INTERVAL);
    Dashboard {
        uid: "codex-serving",
        title: "Codex / Serving",
        sentence: "What users of served models see: traffic, errors, latency, and which model answers.",
        namespaces: Some(server::REQUESTS.total(&[])),
        rows: vec![
            (
                "Now",
                vec![
                    Panel::new(Number, Requests, "Requests", "Requests per second, refused ones included.")
                        .named(&server::REQUESTS.rate(&chosen, RATE_INTERVAL).sum(&[]), "requests")
                        .when_empty("no traffic"),
                    Panel::new(Number, Share, "Server errors", "Share of answers with a status code of 500 or above.")
                        .named(&errors.or_zero().per(&answers), "share")
                        .when_empty("no traffic"),
                    Panel::new(
                        Number,
                        Seconds,
                        "Latency",
                        "Time of a completion that 95 of 100 do not exceed; at most 0.7 s is the target.",
                    )
                    .named(&latency(0.95), "p95")
                    .when_empty("no traffic"),
                    Panel::new(
                        Number,
                        Plain,
                        "Budget burn",
                        "Share of completions above 0.7 s over the share that may be; above 1 the target is missed.",
                    )
                    .named(&slow.divided_by(LATENCY_BUDGET), "burn")
                    .when_empty("no traffic"),
                    Panel::new(Number, Plain, "Sessions", "Requests that run or wait.")
                        .named(&SESSIONS.value(&chosen).sum(&[]), "sessions")
                        .when_empty("no servers"),
                    Panel::new(Number, Plain, "Servers", "Servers that hold a verified model.")
                        .named(&MODEL_INFO.value(&chosen).sum(&[]), "servers")
                        .when_empty("no servers"),
                ],
            ),
            (
                "Speed",
                vec![
                    Panel::new(
                        Lines,
                        Seconds,
                        "First token",
                        "Time from the queue to the first token of a response: median and p95; at most 0.7 s is the target.",
                    )
                    .named(&first(0.5), "p50")
                    .named(&first(0.95), "p95")
                    .when_empty("no traffic"),
                    Panel::new(Lines, Seconds, "Between tokens", "Time between two tokens of a response: median and p95.")
                        .named(&between(0.5), "p50")
                        .named(&between(0.95), "p95")
                        .when_empty("no traffic"),
                    Panel::new(Lines, Seconds, "Wait for a slot", "Time that a prompt waits before it is computed: median and p95.")
                        .named(&queued(0.5), "p50")
                        .named(&queued(0.95), "p95")
                        .when_empty("no traffic"),
                    Panel::new(
                        Lines,
                        Plain,
                        "Tokens per step",
                        "Tokens that one step of the engine computed, those of prompts included: median and p95.",
                    )
                    .named(&batched(0.5), "p50")
                    .named(&batched(0.95), "p95")
                    .when_empty("no traffic"),
                    Panel::new(
                        Lines,
                        Plain,
                        "Reasoning per request",
                        "Tokens of a request before its answers: median and p95.",
                    )
                    .named(&reasoned(0.5), "p50")
                    .named(&reasoned(0.95), "p95")
                    .when_empty("no traffic"),
                    Panel::new(
                        Lines,
                        Requests,
                        "Closed reasoning",
                        "Responses per second whose reasoning the server closed, by what was used up: the budget, or all but the reserve of \
                         the answer.",
                    )
                    .by(&server::REASONING_CLOSED.rate(&chosen, RATE_INTERVAL).sum(&[RESULT]), &[RESULT])
                    .when_empty("no servers"),
                    Panel::new(
                        Lines,
                        Seconds,
                        "Grammars",
                        "Time that the choice of a token takes because a grammar binds it, which all running requests wait for: p95.",
                    )
                    .named(&bound, "p95")
                    .when_empty("no structured output"),
                ],
            ),
            (
                "Traffic",
                vec![
                    Panel::new(Stack, Requests, "Answers by status code", "Answers per second by status code.")
                        .by(&RESPONSES.rate(&chosen, RATE_INTERVAL).sum(&[CODE]), &[CODE])
                        .when_empty("no traffic"),
                    Panel::new(Lines, Seconds, "Latency", "Time of completions: median, p95 and p99.")
                        .named(&latency(0.5), "p50")
                        .named(&latency(0.95), "p95")
                        .named(&latency(0.99), "p99")
                        .when_empty("no traffic"),
                    Panel::new(
                        Lines,
                        Share,
                        "Above 0.7 s",
                        "Share of completions that took longer than 0.7 s; at most 5 % is the target.",
                    )
                    .by(&slow, &[NAMESPACE])
                    .when_empty("no traffic"),
                    Panel::new(Stack, PerSecond, "Tokens", "Tokens of prompts and completions per second.")
                        .by(&server::TOKENS.rate(&chosen, RATE_INTERVAL).sum(&[TYPE]), &[TYPE])
                        .when_empty("no traffic"),
                    Panel::new(Lines, Plain, "Sessions by server", "Requests that run or wait, by server.")
                        .by(&SESSIONS.value(&chosen), &[NAMESPACE, POD])
                        .when_empty("no servers"),
                    Panel::new(Lines, Plain, "Waiting prompts", "Prompts that wait for a slot, by server; 0 is normal.")
                        .by(&server::WAITING.value(&chosen), &[NAMESPACE, POD])
                        .when_empty("no servers"),
                    Panel::new(Lines, Plain, "Running prompts", "Prompts whose responses are being generated, by server.")
                        .by(&server::RUNNING.value(&chosen), &[NAMESPACE, POD])
                        .when_empty("no servers"),
                    Panel::new(
                        Lines,
                        Share,
                        "Cache in use",
                        "Tokens with keys and values of running requests, as a share of --kv-cache, by server.",
                    )
                    .by(&server::CACHE_USAGE.value(&chosen), &[NAMESPACE, POD])
                    .when_empty("no servers"),
                    Panel::new(
                        Lines,
                        PerSecond,
                        "Pre-empted requests",
                        "Running requests per second that a full cache made a server compute again; above 0, --kv-cache is small.",
                    )
                    .by(&server::PREEMPTIONS.rate(&chosen, RATE_INTERVAL), &[NAMESPACE, POD])
                    .when_empty("no servers"),
                    Panel::new(
                        Lines,
                        PerSecond,
                        "Refused connections",
                        "Connections per second that a server closed because too many were open; 0 is normal.",
                    )
                    .by(&server::REFUSED_CONNECTIONS.rate(&chosen, RATE_INTERVAL), &[NAMESPACE, POD])
                    .when_empty("no servers"),
                    Panel::new(
                        Lines,
                        PerSecond,
                        "Cached prompt tokens",
                        "Prompt tokens per second that came from the prefix cache, by server.",
                    )
                    .by(&server::CACHED_TOKENS.rate(&chosen, RATE_INTERVAL), &[NAMESPACE, POD])
                    .when_empty("no servers"),
                    Panel::new(
                        Lines,
                        Plain,
                        "Cached tokens per prompt",
                        "Tokens of a prompt that came from the prefix cache: median and p95.",
                    )
                    .named(&cached(0.5), "p50")
                    .named(&cached(0.95), "p95")
                    .when_empty("no traffic"),
                    Panel::new(
                        Lines,
                        PerSecond,
                        "Reasoning tokens",
                        "Tokens of responses before their answers per second, by server.",
                    )
                    .by(&server::REASONING_TOKENS.rate(&chosen, RATE_INTERVAL), &[NAMESPACE, POD])
                    .when_empty("no servers"),
                    Panel::new(
                        Stack,
                        Requests,
                        "Requests by API key",
                        "Requests per second by API key and by whether they were admitted.",
                    )
                    .by(&server::KEY_REQUESTS.rate(&chosen, RATE_INTERVAL).sum(&[KEY, RESULT]), &[KEY, RESULT])
                    .when_empty("no API keys"),
                    Panel::new(
                        Stack,
                        PerSecond,
                        "Tokens by API key",
                        "Tokens of prompts and responses per second by API key.",
                    )
                    .by(&server::KEY_TOKENS.rate(&chosen, RATE_INTERVAL).sum(&[KEY]), &[KEY])
                    .when_empty("no API keys"),
                    Panel::new(
                        Stack,
                        PerSecond,
                        "Copies for shadows",
                        "Copies of answered requests per second by what became of them.",
                    )
                    .by(&server::COPIES.rate(&chosen, RATE_INTERVAL).sum(&[RESULT]), &[RESULT])
                    .when_empty("no servers"),
                    Panel::new(
                        Stack,
                        PerSecond,
                        "Compared requests",
                        "Copied requests per second by how shadows compared them.",
                    )
                    .by(&server::COMPARED.rate(&chosen, RATE_INTERVAL).sum(&[RESULT]), &[RESULT])
                    .when_empty("no servers"),
                    Panel::new(
                        Stack,
                        PerSecond,
                        "Traces",
                        "Traces of sampled requests per second by what became of them.",
                    )
                    .by(&server::TRACES.rate(&chosen, RATE_INTERVAL).sum(&[RESULT]), &[RESULT])
                    .when_empty("no servers"),
                    Panel::new(
                        Lines,
                        Requests,
                        "Safety rules",
                        "Texts per second that a safety rule hits, by rule and by whether the text was refused or passed.",
                    )
                    .by(&server::SAFETY_HITS.rate(&chosen, RATE_INTERVAL).sum(&[RULE, RESULT]), &[RULE, RESULT])
                    .when_empty("no hits"),
                    Panel::new(
                        Lines,
                        Plain,
                        "Golden tokens",
                        "Evaluations whose golden tokens servers generated again when they started, by result.",
                    )
                    .by(&server::GOLDEN_RECORDS.total(&chosen).sum(&[RESULT]), &[RESULT])
                    .when_empty("no servers"),
                    Panel::new(
                        Lines,
                        Plain,
                        "Models",
                        "Servers by ring and by the first digits of the digest of the model that they verified.",
                    )
                    .by(&MODEL_INFO.value(&chosen).sum(&[RING, MODEL]), &[RING, MODEL])
                    .when_empty("no servers"),
                ],
            ),
            (
                "Scale to zero",
                vec![
                    Panel::new(Lines, Plain, "Held requests", "Requests that wait for a server, by activator.")
                        .by(&activator::HELD.value(&chosen), &[NAMESPACE, POD])
                        .when_empty("no activators"),
                    Panel::new(Lines, Seconds, "Time held", "Time that requests waited for a server: median and p95.")
                        .named(&held(0.5), "p50")
                        .named(&held(0.95), "p95")
                        .when_empty("nothing was held"),
                    Panel::new(
                        Lines,
                        PerSecond,
                        "Activations",
                        "Times per second that a request came while no server was ready, by activator.",
                    )
                    .by(&activator::ACTIVATIONS.rate(&chosen, RATE_INTERVAL), &[NAMESPACE, POD])
                    .when_empty("no activators"),
                    Panel::new(
                        Stack,
                        Requests,
                        "Requests to activators",
                        "Requests per second by what became of them.",
                    )
                    .by(&activator::REQUESTS.rate(&chosen, RATE_INTERVAL).sum(&[RESULT]), &[RESULT])
                    .when_empty("no activators"),
                ],
            ),
        ],
    }
}
