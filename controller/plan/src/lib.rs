//! The pure core of the controller: what is observed goes in, a plan comes out. No client, no tokio, no clock, no
//! environment.
//!
//! For each kind: `observe → plan → apply → report`, of which this crate is the second. A plan is total (it exists for
//! every observation) and a function (equal observations and times give equal plans, byte for byte). What cannot be
//! done yet is a stage of the plan, never an error; a spec that cannot work is a plan with `Stalled` and the sentence
//! that says what to change. Objects that are being deleted need no plan: their children have owners.

pub mod conditions;
mod data;
pub mod evaluation;
mod events;
mod metadata;
mod numbers;
mod obstruction;
mod plan;
mod pod_template;
mod pods;
pub mod reasoning_pod;
mod settings;
pub mod text;
mod throttle;
pub mod training_run;
mod work;

pub use obstruction::Obstruction;
pub use plan::{Desired, Effect, Event, EventType, Kept, KeptKind, Plan};
pub use pods::{Received, References};
pub use settings::Settings;
