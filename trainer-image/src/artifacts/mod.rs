//! Types of the files that a run writes beside its model. Writers and readers share them, and the JSON Schemas in
//! `trainer-image/schemas` are generated from them.

pub mod data_report;
pub mod environment;
pub mod errors;
pub mod ledger;
pub mod metadata;
pub mod reasoning;
pub mod schemas;
pub mod segments;
