//! The controller against a mocked API: which requests it makes, in which order, under which field manager.

mod adopted;
mod apply;
mod drift;
mod endpoint;
mod evaluation;
mod lease;
mod ledger;
mod pods;
mod policies;
mod reasoning_pod;
mod reproduced;
mod shadow;
mod signer;
mod simulation;
mod startup;
mod stored;
mod training_run;
pub(crate) mod world;
