//! Plans, tested without a cluster: stories (snapshots), properties, convergence.
#![allow(clippy::unwrap_used, clippy::panic, clippy::struct_excessive_bools, reason = "these are tests")]

mod adopted;
mod attempts;
mod attested;
mod bases;
mod canaries;
mod compared;
mod convergence;
mod curricula;
mod engines;
mod explained;
mod golden;
mod idle;
mod leaving;
mod make;
mod own_templates;
mod policies;
mod properties;
mod queued;
mod redeployed;
mod reproduced;
mod rotation;
mod run_as;
mod samples;
mod scheduled;
mod servers;
mod shadows;
mod stories;
mod traced;
mod workers;
mod world;
