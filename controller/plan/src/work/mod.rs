//! What a TrainingRun and an Evaluation share: one Job, its pods, its configuration and its data. Pure.
//!
//! Files build on each other in this order: `job_status` → `failure` → `ending` → `worker` → `composed` → `config` → `job` → `view` → `stage`.
//! `finished_model` needs only `failure`, and `pod_settings` nothing.

mod composed;
mod config;
mod ending;
mod failure;
mod finished_model;
mod job;
mod job_status;
pub(crate) mod pod_settings;
mod stage;
mod view;
mod worker;

pub(crate) use composed::{Memory, Outcome};
pub(crate) use config::Config;
pub(crate) use ending::Ending;
pub(crate) use failure::WorkFailure;
pub(crate) use finished_model::{WaitingForModel, finished_model};
pub(crate) use job::DesiredJob;
pub(crate) use job_status::Limits;
pub(crate) use stage::{Active, Progress, stale_condition};
pub(crate) use view::{Moved, WorkView};
pub(crate) use worker::Worker;
