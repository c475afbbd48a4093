//! Generates the JSON Schemas of a run's files from the types that write them. Pure.
//!
//! They are committed in `trainer-image/schemas`; `UPDATE=1 cargo test --release --locked --workspace schemas` writes them, and a
//! test compares.

use schemars::{JsonSchema, Schema, generate::SchemaSettings};

use super::{
    data_report::DataReport,
    environment::Environment,
    errors::{ErrorRow, ServerErrorRow},
    ledger::Row,
    metadata, reasoning,
};
use crate::{
    checklist::{Checklist, Survey},
    evaluation::{Outcomes, Results, Scored, Summary},
    register::Record,
    verify::Verification,
};

/// Returns every schema with its file name. The schema of an `.ndjson` file describes each line.
pub fn all() -> [(&'static str, Schema); 18] {
    [
        ("checklist.schema.json", of::<Checklist>()),
        ("data_report.schema.json", of::<DataReport>()),
        ("dataset_checksums.schema.json", of::<metadata::Checksums>()),
        ("environment.schema.json", of::<Environment>()),
        ("errors.schema.json", of::<ErrorRow>()),
        ("evaluation.schema.json", of::<Results>()),
        ("metrics.schema.json", of::<Row>()),
        ("outcomes.schema.json", of::<Outcomes>()),
        ("reasoning.schema.json", of::<reasoning::Reasoning>()),
        ("reasoning_traces.schema.json", of::<reasoning::TraceRow>()),
        ("records.schema.json", of::<Scored>()),
        ("registry_record.schema.json", of::<Record>()),
        ("run_metadata.schema.json", of::<metadata::RunMetadata>()),
        ("served_traces.schema.json", of::<reasoning::ServedTrace>()),
        ("server_errors.schema.json", of::<ServerErrorRow>()),
        ("summary.schema.json", of::<Summary>()),
        ("survey.schema.json", of::<Survey>()),
        ("verification.schema.json", of::<Verification>()),
    ]
}

/// Returns the schema of a type in its serialized form.
fn of<T: JsonSchema>() -> Schema {
    let mut schema = SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<T>();
    if let Some(fields) = schema.as_object_mut() {
        fields.values_mut().for_each(serde_json::Value::sort_all_objects);
        fields.sort_keys();
    }
    schema
}
