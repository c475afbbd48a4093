//! The `codex` binary as a library: train, evaluate, serve and verify small reasoning models.
//!
//! It runs in pods and on a laptop alike and knows no Kubernetes client.

pub mod artifacts;
pub mod cli;
pub mod durable;
pub mod evaluation;
pub mod exposition;
pub mod metrics;
pub mod model;
pub mod reporting;
pub mod serving;
pub mod tasks;
pub mod tokenizer;
pub mod training;
pub mod verify;
