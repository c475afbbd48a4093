//! Private training (DP-SGD, Abadi et al. 2016): which records a step draws, how much noise it adds, and what that guarantees. Pure,
//! except that a key is drawn from the system.
//!
//! Every record is in a step with the same probability, independently of all others (Poisson sampling), which is what the accountant
//! assumes. A step's records and noise depend only on the key and the step.

mod accountant;
mod error;
mod mechanism;

pub(crate) use accountant::Account;
pub use error::PrivacyError;
pub(crate) use mechanism::{Mechanism, Privacy, Saved};
