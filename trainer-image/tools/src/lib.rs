//! The `codex-tools` program as a library: what people run around runs and pods do not. Sessions, object stores, an MCP server,
//! maintenance and ingestion.
//!
//! Pods run `codex`, whose image holds none of this.

pub mod cli;
pub mod ingest;
pub mod mcp;
pub mod sessions;
pub mod size;
pub mod stores;
pub mod tasks;
