//! Plans, tested without a cluster: stories (snapshots), properties, convergence.
#![allow(clippy::unwrap_used, clippy::panic, clippy::struct_excessive_bools, reason = "these are tests")]

mod convergence;
mod explained;
mod make;
mod properties;
mod stories;
mod world;
