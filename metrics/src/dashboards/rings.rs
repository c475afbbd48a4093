//! The dashboard of rings and gates: which models are where, and what blocks a promotion.

use crate::{
    controller::{
        CONDITION_OLDEST, CONDITIONS, CYCLE_OVERRIDES, GATE_BOUND, GATE_LIMIT, GATE_MARGIN, GATES, MANUAL_OVERRIDES,
        OBJECTS, READS, REDEPLOYING, REVOKED, SERVING, SIGNATURES, UNVERIFIED,
    },
    dashboard::{
        Dashboard, Panel,
        PanelUnit::{Number as Plain, PerSecond, Seconds},
        Shape::{Bars, Lines, Number, Zero},
    },
    label::{
        CONDITION, KIND, METRIC, PHASE, PROBLEMS, REASON, RESULT, RING, STATEMENT, STATUS, VERDICT, target::NAMESPACE,
    },
    query::RATE_INTERVAL,
};

pub(super) fn rings() -> Dashboard {
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
                    // The two numbers must be of one gate, so those of different installations are not put together.
                    Panel::new(Lines, Plain, "Bound against limit", "Bound of the gate with the lowest margin, and the limit that it must clear: from above, or from below for max.")
                        .named(&GATE_BOUND.value(&[]).max(&[NAMESPACE, METRIC]), "{{metric}} bound")
                        .named(&GATE_LIMIT.value(&[]).max(&[NAMESPACE, METRIC]), "{{metric}} limit")
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
