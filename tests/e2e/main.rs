//! The chain and its faults on a real cluster, asserted on what the API and the pods show.
//!
//! All tests share one cluster, one build of the images and one tiny model; each has a namespace of its own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what a test does not expect ends it")]

mod chain;
mod cluster;
mod conditions;
mod documents;
mod failures;
mod fields;
mod integrity;
mod killed_controller;
mod refusals;
mod reports;
mod resume;
mod rings;
mod tenants;
