//! The files that a run appends to and leaves beside its model: the ledger of steps, the chain of state digests, the metrics
//! ledger, reasoning traces, and the description of the run. Does I/O.

mod append_log;
mod artifacts;
mod error;
mod model_card;
mod rows;
mod trace_store;

pub(crate) use append_log::AppendLog;
pub(crate) use artifacts::{Artifacts, MetricsLedger, VALIDATION_SPLIT};
pub use error::RecordsError;
pub(crate) use model_card::{MODEL_CARD, ModelCard};
pub(crate) use rows::{LEDGER, LedgerRow, Row, STATES, StateRow, read_rows, read_states};
pub(crate) use trace_store::TraceStore;
