//! `kubectl codex`, a kubectl plugin: the chain of an object as a tree, what blocks it, its logs, runs as a table, Events, the
//! manifest that reproduces a run, the checklist and the survey of a promotion, and completion in shells.
//!
//! `cluster`, `promotion` and `logs` talk to the API server; everything that is shown is made by pure functions from what they return.
//! It only reads the cluster. Text from the cluster is printed with its control characters escaped.

mod cli;
mod cluster;
mod completion;
mod error;
mod events;
mod logs;
mod promotion;
mod reproduce;
mod subject;
mod text;
mod top;
mod tree;
mod view;
mod why;

#[cfg(test)]
mod tests;

pub use cli::main;
