//! The report endpoint: pods send reports over HTTPS.
//!
//! The endpoint authenticates and authorizes the sender before it reads the report: the pod's token names the pod by
//! uid, and owner references by uid lead from the pod to the object that it works for. A rejection is a sentence for the
//! pod's log.

mod rejection;
mod sender;
mod server;
mod token;

pub use server::{Endpoint, serve};

#[cfg(test)]
pub(crate) use server::{LIMITS, router, serve_on};
