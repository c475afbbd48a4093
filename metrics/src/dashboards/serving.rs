//! The dashboard of served models: traffic, errors, latency, and which model answers.

use crate::{
    activator,
    dashboard::{
        Dashboard, Panel,
        PanelUnit::{Number as Plain, PerSecond, Requests, Seconds, Share},
        Shape::{Lines, Number, Stack},
    },
    label::{
        CODE, KEY, MODEL, RESULT, RING, RULE, TYPE,
        target::{NAMESPACE, POD},
    },
    query::RATE_INTERVAL,
    server::{self, LATENCY, LATENCY_BUDGET, LATENCY_TARGET, MODEL_INFO, RESPONSES, SESSIONS},
};

pub(super) fn serving() -> Dashboard {
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
