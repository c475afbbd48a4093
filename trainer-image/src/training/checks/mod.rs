//! Checks before a machine or a volume is used for a run: `--check` refuses what cannot be combined, `--prove-resume` trains a few steps
//! with and without kills, and `checkpoint-smoke` writes and reads checkpoints.

mod combinations;
mod error;
mod prove_resume;
mod smoke_test;

pub(crate) use combinations::Combination;
pub use error::{ProofError, SmokeError};
pub(crate) use prove_resume::ResumeProof;
pub use smoke_test::CheckpointSmoke;
