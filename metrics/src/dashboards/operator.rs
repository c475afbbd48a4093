//! The dashboard of the controller: whether it keeps up, and what it asks of the API server.

use crate::{
    controller::{
        API_DURATION, API_REQUESTS, CERTIFICATE, ERRORS, KEY_EXPIRY, LEADER, MALFORMED, OBJECTS, PHASE_OLDEST, QUEUE,
        QUEUE_AGE, QUEUE_WAIT, RECONCILE_DURATION, RECONCILIATIONS, REFUSED_CONNECTIONS, REPORTS, SIGNER, SPANS,
        WATCH_ERRORS, WRITES,
    },
    dashboard::{
        Dashboard, Panel,
        PanelUnit::{Number as Plain, PerSecond, Requests, Seconds, Share},
        Shape::{Bars, Lines, Number, Stack, Zero},
    },
    label::{CATEGORY, CODE, KIND, PHASE, PORT, RESULT, VERB},
    query::RATE_INTERVAL,
};

pub(super) fn operator() -> Dashboard {
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
                    Panel::new(
                        Bars,
                        Seconds,
                        "Longest in phase",
                        "How long the object that has been in its phase longest has been there, by kind and phase.",
                    )
                    .by(&PHASE_OLDEST.value(&[]).min(&[KIND, PHASE]).age(), &[KIND, PHASE])
                    .when_empty("no objects"),
                ],
            ),
        ],
    }
}
