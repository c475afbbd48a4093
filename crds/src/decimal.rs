//! Decimals of the API. They are strings, so that no reader rounds them. Pure.
//!
//! The schema bounds only their length. Each field has a CEL rule for the format, because the API server reports a failed
//! CEL rule with its message, but a failed pattern with a regular expression.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A decimal number as text, such as `0.95`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Decimal(pub String);

impl std::fmt::Display for Decimal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl JsonSchema for Decimal {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Decimal".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "maxLength": 38 })
    }
}
