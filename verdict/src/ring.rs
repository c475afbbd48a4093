//! Rollout rings: their order and their names in fields, labels and objects. Pure.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::text::alternatives;

/// A rollout ring. The order of the variants is the order in which a model moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ring {
    /// Experiments.
    Base0A,
    /// Development.
    Base0B,
    /// Integration.
    Base0C,
    /// Release candidates.
    Base0D,
    /// General availability.
    Main,
}

/// A text that is not the name of a ring.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a rollout ring: write {known}", known = alternatives(&Ring::ALL.map(Ring::name)))]
pub struct UnknownRing(pub String);

impl Ring {
    /// All rings, first to last.
    pub const ALL: [Self; 5] = [Self::Base0A, Self::Base0B, Self::Base0C, Self::Base0D, Self::Main];

    /// Returns the name that fields, reports and signed statements carry.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Base0A => "0A_base_",
            Self::Base0B => "0B_base_",
            Self::Base0C => "0C_base_",
            Self::Base0D => "0D_base_",
            Self::Main => "main",
        }
    }

    /// Returns the ring before this one; `None` for the first.
    pub fn before(self) -> Option<Self> {
        let place = Self::ALL.iter().position(|ring| *ring == self)?;
        Self::ALL.get(place.checked_sub(1)?).copied()
    }

    /// Returns the form for label values, which may not end in `_`.
    pub fn label(self) -> &'static str {
        self.name().trim_end_matches('_')
    }

    /// Returns the form for object names: lower case, with dashes for underscores.
    pub fn object_name(self) -> String {
        self.label().to_ascii_lowercase().replace('_', "-")
    }
}

impl fmt::Display for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Ring {
    type Err = UnknownRing;

    fn from_str(text: &str) -> Result<Self, UnknownRing> {
        Self::ALL.into_iter().find(|ring| ring.name() == text).ok_or_else(|| UnknownRing(text.to_owned()))
    }
}

impl Serialize for Ring {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Ring {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Ring {
    fn schema_name() -> Cow<'static, str> {
        "Ring".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names = Self::ALL.map(Self::name);
        json_schema!({ "type": "string", "enum": names, "maxLength": names.map(str::len).iter().max() })
    }
}

#[cfg(test)]
mod tests {
    use super::Ring;

    #[test]
    fn each_ring_has_three_forms_of_its_name() {
        let forms = Ring::ALL.map(|ring| (ring.name(), ring.label(), ring.object_name()));
        assert_eq!(
            forms.map(|(name, label, object)| format!("{name} {label} {object}")),
            [
                "0A_base_ 0A_base 0a-base",
                "0B_base_ 0B_base 0b-base",
                "0C_base_ 0C_base 0c-base",
                "0D_base_ 0D_base 0d-base",
                "main main main"
            ]
        );
        for ring in Ring::ALL {
            assert_eq!(ring.name().parse(), Ok(ring));
            let json = serde_json::to_string(&ring).expect("JSON");
            assert_eq!(json, format!("{:?}", ring.name()));
            assert_eq!(serde_json::from_str::<Ring>(&json).expect("a ring"), ring);
        }
        assert!(Ring::ALL.is_sorted());
        assert_eq!((Ring::Base0A.before(), Ring::Main.before()), (None, Some(Ring::Base0D)));
        assert_eq!(
            "0E_base_".parse::<Ring>().expect_err("unknown").to_string(),
            "\"0E_base_\" is not a rollout ring: write 0A_base_, 0B_base_, 0C_base_, 0D_base_ or main"
        );
    }
}
