//! What a run leaves beside its model, as types: who writes a file and who reads it again mean the same, and the JSON Schemas
//! in `trainer-image/schemas` are made from them.

pub mod environment;
pub mod errors;
pub mod ledger;
pub mod metadata;
pub mod schemas;
