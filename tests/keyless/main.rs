//! Signing without a key through the real Fulcio, Rekor (v2) and timestamp authority: run by `make test-keyless`, which builds them.
//!
//! The first test needs no cluster: tokens come from an issuer in this process. The second runs the chain on the local cluster, with the
//! token of the controller's service account.

#![allow(clippy::unwrap_used, clippy::panic, reason = "an unexpected result ends the test")]

mod chain;
mod cosign;
mod instance;
mod issuer;
mod peer;
mod signature;
