//! The metrics of `codex serve`.

use crate::{
    label::{ACTION, CODE, DIRECTION, ENDPOINT, KEY, MODEL, RESULT, RING, RULE, TYPE},
    metric::metrics,
};

/// The latency in seconds that 95 of 100 requests must not exceed. It is an edge of a bucket.
pub const LATENCY_TARGET: f64 = 0.7;
/// The share of requests that may exceed [`LATENCY_TARGET`].
pub const LATENCY_BUDGET: f64 = 0.05;

metrics! {
    REQUESTS = Counter("codex_ml_inference_requests_total", Count, [ENDPOINT],
        "Inference requests, including refused ones.");
    RESPONSES = Counter("codex_ml_inference_responses_total", Count, [ENDPOINT, CODE],
        "Answered inference requests by status code.");
    LATENCY = Histogram("codex_ml_inference_latency_seconds", Seconds, [ENDPOINT],
        "Seconds from a request to its completion, without refused requests.")
        .more("One bucket ends at 0.7 s.")
        .buckets(&[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, LATENCY_TARGET, 1.0, 2.5, 5.0, 10.0, 30.0]);
    TOKENS = Counter("codex_ml_inference_tokens_total", Count, [TYPE],
        "Tokens of completed requests: of prompts and of completions.");
    CACHED_TOKENS = Counter("codex_ml_inference_prompt_tokens_cached_total", Count, [],
        "Prompt tokens of completed requests that came from the prefix cache.")
        .more("Divided by the prompt tokens it is the hit rate.");
    CACHED_LENGTH = Histogram("codex_ml_inference_prompt_cached_length_tokens", Count, [],
        "Tokens of a prompt that came from the prefix cache.")
        .more("Of each choice of a request, once its prompt is computed. The bucket that ends at 0 counts prompts that were computed whole.")
        .buckets(&[0.0, 16.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0]);
    REASONING_TOKENS = Counter("codex_ml_inference_reasoning_tokens_total", Count, [],
        "Tokens of completed responses before their answers.");
    QUEUE_TIME = Histogram("codex_ml_inference_queue_seconds", Seconds, [],
        "Seconds that a prompt waited for a slot.")
        .buckets(&[0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, LATENCY_TARGET, 1.0, 2.5, 5.0, 10.0, 30.0]);
    FIRST_TOKEN = Histogram("codex_ml_inference_first_token_seconds", Seconds, [],
        "Seconds from the queue to the first token of a response, waiting included.")
        .more("Of each choice of a request. One bucket ends at 0.7 s.")
        .buckets(&[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, LATENCY_TARGET, 1.0, 2.5, 5.0, 10.0, 30.0]);
    INTER_TOKEN = Histogram("codex_ml_inference_inter_token_seconds", Seconds, [],
        "Seconds between two tokens of a response.")
        .buckets(&[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, LATENCY_TARGET, 1.0, 2.5]);
    BATCHED_TOKENS = Histogram("codex_ml_inference_batched_tokens", Count, [],
        "Tokens that one step of the engine computed: one for each response, and chunks of prompts.")
        .more("At most `--max-num-batched-tokens`.")
        .buckets(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0]);
    REASONING_LENGTH = Histogram("codex_ml_inference_reasoning_length_tokens", Count, [],
        "Tokens of a completed request before its answers.")
        .more("The bucket that ends at 0 counts requests without reasoning.")
        .buckets(&[0.0, 16.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0]);
    REASONING_CLOSED = Counter("codex_ml_inference_reasoning_closed_total", Count, [RESULT],
        "Responses whose reasoning the server closed, by what was used up (budget, reserve).")
        .more("Budget: the tokens that the request or the server grants to reasoning. Reserve: all but those kept for the answer.");
    GRAMMAR_TIME = Histogram("codex_ml_inference_grammar_seconds", Seconds, [],
        "Seconds that the choice of one token took because a grammar binds it.")
        .more("All running requests wait for it.")
        .buckets(&[0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5]);
    RUNNING = Gauge("codex_ml_inference_requests_running", Count, [],
        "Prompts whose responses are being generated.");
    WAITING = Gauge("codex_ml_inference_requests_waiting", Count, [],
        "Prompts that wait for a slot.");
    CACHE_USAGE = Gauge("codex_ml_inference_kv_cache_usage_ratio", Ratio, [],
        "Tokens with keys and values of running requests, over --kv-cache.");
    PREEMPTIONS = Counter("codex_ml_inference_preemptions_total", Count, [],
        "Running requests whose keys and values were dropped, because --kv-cache was full, and computed again later.");
    SESSIONS = Gauge("codex_ml_active_sessions", Count, [],
        "Running and waiting requests.");
    REFUSED_CONNECTIONS = Counter("codex_ml_inference_connections_refused_total", Count, [],
        "Connections closed because too many were open.")
        .more("At most 1,024 are open.");
    KEY_REQUESTS = Counter("codex_ml_inference_key_requests_total", Count, [KEY, RESULT],
        "Inference requests by the name of their API key: whether it was admitted, forbidden or over a limit.")
        .more("A server has at most 64 keys. Absent without keys, and until a key is used.").later();
    KEY_TOKENS = Counter("codex_ml_inference_key_tokens_total", Count, [KEY],
        "Tokens of prompts and responses by the name of the API key.")
        .more("Tokens of abandoned responses count, too.").later();
    SAFETY_HITS = Counter("codex_ml_inference_safety_hits_total", Count, [RULE, ACTION, DIRECTION, RESULT],
        "Texts that a safety rule hits, by whether the text was refused or passed.")
        .more("A rule that blocks does not refuse a text that another one allows. Absent until a rule hits.").later();
    GOLDEN_RECORDS = Counter("codex_ml_inference_golden_records_total", Count, [RESULT],
        "Evaluations whose golden tokens the server generated again before it was ready, by result (equal, near, different).")
        .more("Equal: the same tokens and log-probabilities. Near: log-probabilities within the promoted tolerance, on another code \
            path or instruction set. Different: the server reports GoldenTokensDiffer and exits.");
    COPIES = Counter("codex_ml_inference_copies_total", Count, [RESULT],
        "Copies of answered requests for shadows and canaries by result (sent, dropped, busy, refused, failed).")
        .more("Dropped: too many waited to be sent. Busy: the receiver had no room. Refused: it did not accept the copy. Failed: it \
            did not answer.");
    TRACES = Counter("codex_ml_inference_traces_total", Count, [RESULT],
        "Sampled requests by what became of their traces (written, unlikely, capped, dropped, failed).")
        .more("Unlikely: below `--trace-threshold`. Capped: the minute had its traces. Dropped: too many waited to be written. \
            Failed: the file could not be written. All are zero without `--trace-store`.");
    COMPARED = Counter("codex_ml_shadow_requests_total", Count, [RESULT],
        "Copied requests by how a shadow or a canary compared them (identical, agreed, diverged, skipped).")
        .more("Identical: the same tokens. Agreed: other tokens and the same final answer. Skipped: not compared.");
    MODEL_INFO = Gauge("codex_ml_model_info", Number, [RING, MODEL],
        "The model that this server verified and serves, and its ring; 1 while it serves.")
        .more("Absent until the model is verified and loaded.").later();
}
