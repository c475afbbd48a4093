//! The metrics of `codex activate`, which holds requests while no server runs.

use crate::{label::RESULT, metric::metrics};

metrics! {
    REQUESTS = Counter("codex_ml_activator_requests_total", Count, [RESULT],
        "Requests to the activator by what became of them (forwarded, full, late, invalid, failed).")
        .more("Full: too many requests were held. Late: no server was ready in time. Invalid: the body was too large or did not \
            arrive. Failed: the server ended before it answered. Requests whose clients gave up are left out.");
    HELD = Gauge("codex_ml_activator_requests_held", Count, [],
        "Requests that wait for a server.")
        .more("At most 64.");
    HOLD_TIME = Histogram("codex_ml_activator_hold_seconds", Seconds, [],
        "Seconds that a request waited for a server before it was forwarded.")
        .more("Requests that were forwarded at once are left out.")
        .buckets(&[0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0]);
    ACTIVATIONS = Counter("codex_ml_activator_activations_total", Count, [],
        "Times that a request came while no server was ready, and asked the controller for one.");
}
