//! Signs and verifies what [`codex_provenance`] describes: keys, DSSE envelopes, Sigstore bundles, and the checks that
//! a server makes before it serves a model.
//!
//! Signing: a statement's payload → [`key::Signer::sign`] → a bundle, or, without a key, [`services::Ephemeral`] and the answers of
//! three services. Verifying: [`verify::verify_model`] over a manifest of exactly the bytes that are about to be used. Nothing here
//! reads a file or opens a connection.

pub mod bundle;
mod dsse;
pub mod key;
pub mod keyless;
pub mod log;
pub mod services;
mod stamp;
pub mod token;
pub mod trust;
pub mod verify;
