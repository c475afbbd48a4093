//! The report endpoint: pods send reports over HTTPS.
//!
//! The endpoint authenticates and authorizes the sender before it reads the report: the pod's token names the pod by
//! uid, and owner references by uid lead from the pod to the object that it works for. The first process that reports for a
//! pod pins its key, and later reports are signed with it. A rejection is a sentence for the pod's log.

mod rejection;
mod sender;
mod server;
mod token;
mod writer;

pub use server::{Endpoint, serve};
pub use writer::Writers;

#[cfg(test)]
pub(crate) use server::{LIMITS, router, serve_on};
