//! The thread that writes traces to their file. Does I/O.

use std::sync::mpsc::Receiver;

use super::{FAILED, WRITTEN};
use crate::{
    artifacts::reasoning::ServedTrace,
    error::chain,
    serving::{bounded_file::BoundedFile, metrics::Metrics},
};

/// Writes traces until nothing can send any.
pub(super) fn write(mut store: BoundedFile, traces: &Receiver<ServedTrace>, metrics: &Metrics) {
    let mut is_failing = false;
    for trace in traces {
        let mut line = serde_json::to_vec(&trace).unwrap_or_default();
        line.push(b'\n');
        match store.append(&line) {
            Ok(()) => {
                metrics.traced(WRITTEN);
                is_failing = false;
            }
            Err(error) => {
                metrics.traced(FAILED);
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(error = chain(&error), "traces cannot be written; requests are answered as before");
                }
            }
        }
    }
}
