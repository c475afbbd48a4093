//! Drift: where a live object differs from its plan, and a pod from its template. Pure.
//!
//! The API server fills in defaults, normalizes quantities and omits zero values, and admission adds a few fields to
//! pods. So a child matches its plan if every planned field is present. Two pod specs match if their canonical forms
//! are equal; these leave out defaults and the fields that only decide where a pod runs and with which resources. The
//! comparison of pods is strict because a pod that differs from its template could report anything in its name.

mod child;
mod compare;
mod correction;
mod ids;
mod pod_spec;

pub use child::{Role, difference, pod_difference};
pub use compare::Difference;
pub use correction::correction;
pub use pod_spec::canonical;
