//! The model of a former run that a trainer may take instead of training: what the trainer is told, and what it says. No I/O.

use std::collections::BTreeMap;

use codex_provenance::{DataDigest, ModelDigest, Sha256, promotion::Object, reproduction::Computation};
use serde::{Deserialize, Serialize};

/// The variable of a trainer that holds a [`Former`] as JSON. A program that does not know it trains.
pub const FORMER_VARIABLE: &str = "CODEX_FORMER";

/// A former run with the same inputs, as its signed provenance records it. A later controller may add fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Former {
    /// Directory of the run that holds the model, in the trainer's container.
    pub directory: String,
    /// The run that computed the model.
    pub run: Object,
    /// Digest of the model.
    pub model: ModelDigest,
    /// Digests of the data that was read, by name.
    pub data: BTreeMap<String, DataDigest>,
    /// Digest of the base that the training started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<ModelDigest>,
    /// What computed the model.
    pub computation: Computation,
    /// Image that ran, as the node reported it.
    pub image_id: String,
    /// Time at which the controller recorded the model (RFC 3339), if it was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<String>,
    /// Whether what the trainer reported was attested.
    pub attested: bool,
    /// SHA-256 of the provenance.
    pub provenance: Sha256,
}

/// What a trainer did about the [`Former`] that it was told of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Adoption {
    /// Uid of the run that computed the model.
    pub run: String,
    /// Digest of the model.
    pub model: ModelDigest,
    /// Why the trainer trains instead. `None` if it took the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl Adoption {
    /// Whether the trainer took the model.
    pub fn is_done(&self) -> bool {
        self.refused.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn former() -> Former {
        Former {
            directory: "/former/44bb".to_owned(),
            run: Object { name: "cot".to_owned(), uid: "44bb".to_owned() },
            model: ModelDigest(Sha256::of("model")),
            data: BTreeMap::from([("made".to_owned(), DataDigest(Sha256::of("data")))]),
            base: None,
            computation: Computation {
                program: Sha256::of("program"),
                engine: "cpu-f32".to_owned(),
                kernels: "x86_64 avx512".to_owned(),
            },
            image_id: "codex@sha256:0123".to_owned(),
            completed_at: None,
            attested: false,
            provenance: Sha256::of("provenance"),
        }
    }

    #[test]
    fn a_trainer_reads_what_a_later_controller_tells_it() {
        let mut told = serde_json::to_value(former()).unwrap();
        told["later"] = serde_json::json!(1);
        assert_eq!(serde_json::from_value::<Former>(told.clone()).unwrap(), former());
        told.as_object_mut().unwrap().remove("model");
        assert!(serde_json::from_value::<Former>(told).is_err());
        // The kubelet would replace references to other variables.
        assert!(!serde_json::to_string(&former()).unwrap().contains("$("));
    }
}
