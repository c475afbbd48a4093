//! `codex-tools sessions`: the events of sessions, in SQLite and as lines of JSON. Reads and writes files.
//!
//! A session is a sequence of messages with a role: what a user, a model or a tool said, and notes of programs. The table is
//! `session_events(ts REAL, session_id TEXT, role TEXT, message TEXT)`, the file `sessions/<id>.ndjson`. Many processes may write
//! at once.

mod command;
mod database;
mod event;
mod filesystem;
mod filter;
#[cfg(test)]
mod fuzz;
mod lines;
mod pool;
mod rotate;
mod show;
#[cfg(test)]
mod tests;

pub use self::{
    command::Sessions,
    database::{Database, DatabaseError, Journal},
    event::{Event, EventError, Role, SessionId},
    filter::Filter,
    pool::Pool,
    rotate::{Limits, RotateError, Rotated, rotate},
};
