//! The `codex` program as a library: trains, evaluates, serves and verifies small reasoning models.
//!
//! It runs in pods and on laptops alike, and has no Kubernetes client.

mod append;
pub mod arguments;
pub mod artifacts;
pub mod atomic_fs;
pub mod checklist;
pub mod cli;
pub mod client;
mod composing;
pub mod configuration;
pub mod contamination;
mod device;
pub mod error;
pub mod evaluation;
pub mod exposition;
#[cfg(test)]
mod fuzz;
pub mod gating;
pub mod generation;
pub mod gpu;
pub mod harness;
pub mod hub;
pub mod import;
pub mod knobs;
pub mod log_watch;
pub mod merge;
pub mod metrics;
pub mod model;
mod overlap;
pub mod page;
pub mod plugins;
pub mod quantize;
pub mod register;
pub mod reporting;
pub mod run_folder;
pub mod safety;
pub mod serving;
pub mod sign;
pub mod signals;
pub mod tasks;
mod terminal;
pub mod text;
mod threads;
pub mod tokenizing;
mod tracking;
pub mod training;
pub mod validate;
pub mod verify;
