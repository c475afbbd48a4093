//! Decimals in the API are strings, so that no reader rounds them. Pure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A decimal number as text, such as `0.95`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Decimal(pub String);

impl Decimal {
    /// What the schema accepts.
    pub const PATTERN: &str = "^-?(0|[1-9][0-9]{0,17})(\\.[0-9]{1,18})?$";
}

impl From<f64> for Decimal {
    fn from(value: f64) -> Self {
        Self(value.to_string())
    }
}

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
        schemars::json_schema!({ "type": "string", "pattern": Self::PATTERN, "maxLength": 38 })
    }
}
