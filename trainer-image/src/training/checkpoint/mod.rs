//! Checkpoints on the volume: directories such as `step-00000400` with `state.safetensors`, `state.json`, `origin.json` and,
//! written last, a manifest with the digests of the first two. Does I/O.
//!
//! A checkpoint exists whole or not at all. It is read only if its bytes match its manifest and its tensors match `state.json`.
//! `origin.json` names the machine and the version that wrote it; it is not part of the state, so equal states are equal files.
//! `latest` and `index.json` are hints for users; the program itself scans the directory.

mod async_writer;
mod error;
mod format;
mod loader;
mod origin;
mod policy;
mod resume_diff;
mod retention;
mod store;

pub(crate) use async_writer::AsyncWriter;
pub use error::{CheckpointError, ResumeError};
#[cfg(test)]
pub(crate) use format::StateInfo;
pub(crate) use format::{RunIdentity, STATE, name_of, scan};
pub(crate) use loader::{ValidCheckpoint, newest, peek};
pub(crate) use origin::Origin;
pub(crate) use policy::{CheckpointPolicy, Written};
pub(crate) use resume_diff::{Effect, ResumeDiff, differing_keys};
pub(crate) use retention::Retention;
pub(crate) use store::CheckpointStore;
