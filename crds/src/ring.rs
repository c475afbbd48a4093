//! Rollout rings: their order and their names in fields, labels and objects. Pure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A rollout ring. The order is the order in which a model moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline, extend("maxLength" = 8))]
pub enum Ring {
    /// First steps.
    #[serde(rename = "0A_base_")]
    Base0A,
    /// Development.
    #[serde(rename = "0B_base_")]
    Base0B,
    /// Integration.
    #[serde(rename = "0C_base_")]
    Base0C,
    /// Release candidate.
    #[serde(rename = "0D_base_")]
    Base0D,
    /// What everybody uses.
    #[serde(rename = "main")]
    Main,
}

/// A text that names no ring.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no rollout ring: write 0A_base_, 0B_base_, 0C_base_, 0D_base_ or main")]
pub struct UnknownRing(pub String);

impl Ring {
    /// All rings, first to last.
    pub const ALL: [Self; 5] = [Self::Base0A, Self::Base0B, Self::Base0C, Self::Base0D, Self::Main];

    /// The real name, as fields carry it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Base0A => "0A_base_",
            Self::Base0B => "0B_base_",
            Self::Base0C => "0C_base_",
            Self::Base0D => "0D_base_",
            Self::Main => "main",
        }
    }

    /// The form for label values, which may not end in `_`.
    pub fn label(self) -> &'static str {
        self.name().trim_end_matches('_')
    }

    /// The form for object names: lower case, dashes for underscores.
    pub fn object_name(self) -> String {
        self.label().to_ascii_lowercase().replace('_', "-")
    }
}

impl std::fmt::Display for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Ring {
    type Err = UnknownRing;

    fn from_str(text: &str) -> Result<Self, UnknownRing> {
        Self::ALL.into_iter().find(|ring| ring.name() == text).ok_or_else(|| UnknownRing(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::Ring;

    #[test]
    fn three_forms_of_each_name() {
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
        assert_eq!(Ring::ALL.map(Ring::name), codex_provenance::promotion::RINGS);
        for ring in Ring::ALL {
            assert_eq!(ring.name().parse(), Ok(ring));
            assert_eq!(serde_json::to_value(ring).unwrap(), ring.name());
        }
        assert!("0E_base_".parse::<Ring>().unwrap_err().to_string().contains("0D_base_"));
    }
}
