//! Training: from a configuration to a model directory, restartable, with the same bits for the same input.
//!
//! The directory of a run holds `model/` (written last, as a whole), `checkpoints/step-00000400/`, `artifacts/` and `writers/`
//! (one file per attempt). `codex train` on the same directory resumes from the newest valid checkpoint; a finished run reports
//! its model again. To train a model within seconds, for example in a test, use `cot-starter` on 20,000 records of `arithmetic`
//! with these overrides. After about eight seconds on one core its `trace_coverage` on held-out arithmetic is about 0.6; that
//! of the initial model (`training.stop_after=0`) is 0:
//!
//! ```text
//! model.hidden_size=32 model.intermediate_size=96 model.num_attention_heads=2 training.max_steps=500
//! training.warmup_steps=20 training.batch_size=32 training.learning_rate=0.01 training.checkpoint_every=100
//! ```

mod arguments;
mod attempts;
mod base;
mod checkpoint;
mod checks;
mod command;
mod data;
mod error;
mod failure_class;
#[cfg(test)]
pub(crate) mod fault_injection;
mod forensics;
mod listing;
mod objective;
mod privacy;
mod records;
mod required;
mod resources;
mod run;
mod schedule;
mod state;
#[cfg(test)]
mod test_support;
#[cfg(test)]
mod tests;

pub(crate) use arguments::default_data;
pub use attempts::LockError;
pub use base::{Base, BaseError, Origin};
pub use checkpoint::{CheckpointError, ResumeError};
pub use checks::{CheckpointSmoke, ProofError, SmokeError};
pub use command::Train;
pub use data::DataError;
pub(crate) use data::{Example, Input, each_record};
#[cfg(test)]
pub(crate) use data::{data_settings, read_records};
pub use error::TrainError;
pub use forensics::{Bisect, ReplayStep};
pub use privacy::PrivacyError;
pub use records::RecordsError;
pub use required::Required;
pub use resources::MemoryError;
pub(crate) use resources::memory_limit;
pub(crate) use run::CONFIG;
pub use run::{BlockedError, NumericsError, Outcome, Session, TrainerMetrics};
pub use schedule::GroupError;
pub use state::StateError;
