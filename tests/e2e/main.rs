//! The chain and its failures on a real cluster, checked by what the API and the pods show.
//!
//! All tests share one cluster, one build of the images and one tiny model; each has its own namespace.

#![allow(clippy::unwrap_used, clippy::panic, reason = "an unexpected result ends the test")]

mod adopted;
mod autoscaling;
mod canary;
mod chain;
mod cluster;
mod conditions;
mod dashboards;
mod deletion;
mod documents;
mod drain;
mod elsewhere;
mod evidence;
mod failover;
mod failures;
mod fields;
mod flywheel;
mod forgery;
mod gpu;
mod idle;
mod integrity;
mod killed_controller;
mod kubectl;
mod load;
mod plugin;
mod pods;
mod policies;
mod refusals;
mod reports;
mod reproduced;
mod resume;
mod rings;
mod shadow;
mod stored;
mod tenants;
mod traffic;
