//! The pure core of the controller: it turns an observation into a plan, without client, runtime, clock or environment.
//!
//! Each kind is reconciled by `observe → plan → apply → report`; this crate is the second step. A plan is total (every
//! observation has one) and a function (equal observations and times give equal plans, byte for byte). Work that cannot be
//! done yet is a stage, never an error. A spec that cannot work gives a plan with `Stalled` and a sentence that says what to
//! change. An obstruction that apply meets is an observation too, so every status comes from a plan. Objects that are being
//! deleted need no plan: the garbage collector deletes their children.

mod admission;
pub mod conditions;
mod data;
mod device;
pub mod evaluation;
mod events;
pub mod http_route;
mod metadata;
pub mod network_policy;
mod numbers;
mod obstruction;
mod plan;
mod pod_template;
mod pods;
pub mod reasoning_pod;
mod run_as;
mod seal;
mod settings;
pub mod text;
mod throttle;
mod times;
pub mod trace;
pub mod training_run;
mod work;

pub use admission::Admission;
pub use obstruction::Obstruction;
pub use plan::{Desired, Effect, Event, EventType, Expired, Kept, KeptKind, Plan, Read};
pub use pod_template::CONFIG_FILE;
pub use pods::{ClusterWarning, Received, References, RefusedPod, SECOND_WRITER, unexplained};
pub use run_as::RunAs;
pub use seal::{Sealable, StatusSeal};
pub use settings::{ImagePattern, Settings};
