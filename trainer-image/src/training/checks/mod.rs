//! Checks before a machine or a volume is used for a run: `--prove-resume` trains a few steps with and without kills, and
//! `checkpoint-smoke` writes and reads checkpoints.

mod error;
mod prove_resume;
mod smoke_test;

pub use error::{ProofError, SmokeError};
pub(crate) use prove_resume::ResumeProof;
pub use smoke_test::CheckpointSmoke;
