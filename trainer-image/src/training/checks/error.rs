//! Failures of the checks. Pure.

use std::path::PathBuf;

/// A resume that could not be proven.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The resumed run differs from the uninterrupted one.
    #[error(
        "the resumed run differs from the uninterrupted one in {what}: resuming is not bit-exact here; both runs are kept in {kept:?}"
    )]
    NotReproduced {
        /// Steps, files and tensors that differ.
        what: String,
        /// Directory of both runs.
        kept: PathBuf,
    },
    /// A part of the proof failed.
    #[error("{0}")]
    Incomplete(String),
}

/// A volume that cannot be used for checkpoints.
#[derive(Debug, thiserror::Error)]
pub enum SmokeError {
    /// A checkpoint reads back differently.
    #[error(
        "checkpoint {step} was written with digest {written} but reads back as {found}: the volume does not keep written data"
    )]
    Differs {
        /// Step of the checkpoint.
        step: u64,
        /// Digest that was written.
        written: String,
        /// What was read.
        found: String,
    },
    /// A damaged checkpoint was accepted.
    #[error("a checkpoint with a modified byte was accepted")]
    Unseen,
    /// Two writers created the same file.
    #[error(
        "a file was created twice: the volume does not support exclusive creation (O_EXCL); use another volume, or never run two \
         pods on this one"
    )]
    Shared,
    /// A checkpoint takes longer than the grace period.
    #[error(
        "the slowest checkpoint took {slowest:.1} s, but the grace period from SIGTERM to SIGKILL is {grace} s: use a faster volume \
         or a smaller model"
    )]
    Slow {
        /// Time of the slowest checkpoint in seconds.
        slowest: f64,
        /// Grace period in seconds.
        grace: u64,
    },
}
