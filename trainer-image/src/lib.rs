//! The `codex` binary as a library: train, evaluate, serve and verify small reasoning models.
//!
//! It runs in pods and on a laptop alike and knows no Kubernetes client.

mod arguments;
pub mod artifacts;
pub mod atomic_fs;
pub mod cli;
pub mod error;
pub mod evaluation;
pub mod exposition;
pub mod metrics;
pub mod model;
pub mod reporting;
pub mod serving;
pub mod tasks;
mod threads;
pub mod tokenizer;
pub mod training;
pub mod verify;
mod wording;
