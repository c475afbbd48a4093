//! `codex-tools fetch` and `push`: directories in object stores, S3, Google Cloud Storage, Azure and folders, and models in
//! registries of OCI. Uses the network, reads and writes files.
//!
//! A directory that was pushed has a manifest beside its files, written last: `{path, size, sha256}` of each, whose digest is the
//! model digest that `codex verify` prints. What is fetched is compared with it, goes on after a kill or a cut connection, and
//! appears under its name once it is complete.
//!
//! Credentials are taken from the environment, as the tools of each cloud name them. No error and no line of the log holds them.

mod command;
mod download;
mod error;
mod http;
mod location;
mod open;
mod registry;
#[cfg(test)]
mod server;
#[cfg(test)]
mod test_http;
#[cfg(test)]
mod tests;
mod upload;

pub use self::{
    command::{Fetch, Push},
    download::{Fetched, fetch},
    error::StoreError,
    location::Location,
    open::Remote,
    registry::Version,
    upload::{Pushed, push},
};

/// The object with the manifest of a directory.
pub const MANIFEST: &str = "codex-manifest.json";
/// The most bytes of a manifest.
const MAX_MANIFEST: u64 = 16 << 20;
/// Bytes that are read at once.
const BUFFER: usize = 1 << 20;
