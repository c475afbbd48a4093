//! One attempt at a run: claim the directory, read the data, restore the newest checkpoint, take steps until done or interrupted,
//! write the model, and report progress on the way. Does I/O.

mod adopt;
mod attempt;
mod error;
mod gradients;
mod inputs;
mod observe;
mod preferences;
mod progress;
mod resume;
mod rollouts;
mod session;
mod sparkline;
mod step_numbers;
mod steps;
mod system_metrics;
mod trainer_metrics;

pub(crate) use adopt::told_former;
pub use error::{BlockedError, NumericsError};
pub(crate) use gradients::{StepBatches, accumulate, record_loss, scaled};
pub(crate) use inputs::{check_names, data_digests, model_config};
pub(crate) use preferences::Keep;
pub(crate) use rollouts::{MAX_SLOTS, Rollouts, StepRollouts, accumulate_rollouts};
pub(crate) use session::CONFIG;
pub use session::{Outcome, Session};
pub(crate) use step_numbers::StepNumbers;
pub(crate) use steps::{Evaluation, StepData, StepResult};
pub use trainer_metrics::TrainerMetrics;
