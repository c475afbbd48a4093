//! The statement that a model was trained again, bit for bit. Pure.
//!
//! It is an in-toto statement with a predicate type of this project. Its subject is the model digest, which both runs reported. It
//! holds no time, so that the same two runs give the same bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    digest::{ConfigDigest, DataDigest, ModelDigest, Sha256},
    promotion::Object,
    statement,
};

/// The predicate type of these statements.
pub const PREDICATE_TYPE: &str = "https://codex-ml.dev/reproduced/v1";

/// A statement that a model was reproduced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reproduction {
    /// The model.
    pub model: ModelDigest,
    /// How both runs made it.
    pub evidence: Evidence,
}

/// The predicate: what both runs have in common, and where each ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Evidence {
    /// Namespace of both TrainingRuns.
    pub namespace: String,
    /// Digest of the resolved configuration that both trainers were given.
    pub config_digest: ConfigDigest,
    /// Digests of the data files that both trainers reported, by name.
    pub data: BTreeMap<String, DataDigest>,
    /// Model that both trainings started from; absent if they started from initial weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<ModelDigest>,
    /// What computed in both, as both trainers reported it.
    pub computation: Computation,
    /// The run that was reproduced.
    pub original: Training,
    /// The run that reproduced it.
    pub again: Training,
}

/// What computed a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Computation {
    /// SHA-256 of the program.
    pub program: Sha256,
    /// Code path of the engine, such as `cpu-f32`.
    pub engine: String,
    /// Architecture and instruction set of the kernels, such as `x86_64 avx512`.
    pub kernels: String,
}

/// A run and where it ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Training {
    /// The TrainingRun.
    pub run: Object,
    /// Node of the pod that reported the model. Absent if the pod was gone before the controller observed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Image that ran, as the node reported it. Absent likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_id: Option<String>,
    /// Whether the controller's list of attested images names the image, and nothing was added to the pod.
    pub attested: bool,
}

impl Reproduction {
    /// Returns the bytes to sign.
    pub fn payload(&self) -> Vec<u8> {
        statement::write("model", self.model.0, PREDICATE_TYPE, &self.evidence)
    }

    /// Returns the SHA-256 of [`payload`](Self::payload). The name of the bundle derives from it, so it covers everything.
    pub fn digest(&self) -> Sha256 {
        Sha256::of(self.payload())
    }

    /// Reads the payload of a verified bundle.
    ///
    /// # Errors
    /// The payload is no such statement, or names one run twice.
    pub fn read(payload: &[u8]) -> Result<Self, String> {
        let (model, evidence): (_, Evidence) = statement::read(payload, PREDICATE_TYPE)?;
        if evidence.original.run.uid == evidence.again.run.uid {
            return Err("it names one TrainingRun as both, so nothing was trained again".to_owned());
        }
        Ok(Self { model: ModelDigest(model), evidence })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reproduction() -> Reproduction {
        let training = |name: &str, node: &str| Training {
            run: Object { name: name.to_owned(), uid: format!("uid of {name}") },
            node: Some(node.to_owned()),
            image_id: Some("codex@sha256:0".to_owned()),
            attested: false,
        };
        Reproduction {
            model: ModelDigest(Sha256::of("model")),
            evidence: Evidence {
                namespace: "team".to_owned(),
                config_digest: ConfigDigest(Sha256::of("config")),
                data: BTreeMap::from([("made".to_owned(), DataDigest(Sha256::of("made")))]),
                base: None,
                computation: Computation {
                    program: Sha256::of("program"),
                    engine: "cpu-f32".to_owned(),
                    kernels: "x86_64 avx512".to_owned(),
                },
                original: training("cot", "node-1"),
                again: training("again", "node-2"),
            },
        }
    }

    #[test]
    fn a_statement_is_read_as_it_was_written() {
        let written = reproduction();
        assert_eq!(Reproduction::read(&written.payload()).unwrap(), written);
        let mut moved = reproduction();
        moved.evidence.again.node = Some("node-3".to_owned());
        assert_ne!(moved.digest(), written.digest(), "the name of the bundle covers the node");
    }

    #[test]
    fn one_run_twice_and_other_statements_are_refused() {
        let mut twice = reproduction();
        twice.evidence.again.run = twice.evidence.original.run.clone();
        assert!(Reproduction::read(&twice.payload()).unwrap_err().contains("as both"));
        let text = String::from_utf8(reproduction().payload()).unwrap();
        let other = text.replace("reproduced/v1", "promotion/v2");
        assert!(Reproduction::read(other.as_bytes()).unwrap_err().contains("its predicate type is"));
        let more = text.replace("\"attested\":false", "\"attested\":false,\"verdict\":\"Passed\"");
        assert!(Reproduction::read(more.as_bytes()).unwrap_err().contains("unknown field"));
    }
}
