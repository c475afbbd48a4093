//! Reports of trainers. No I/O.

use codex_provenance::{DataDigest, Device, ModelDigest, OmsRoot, Sha256, manifest::Manifest};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Adoption, Failure, Stage};

/// Cumulative state of a trainer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrainingState {
    /// Stage of the work.
    pub stage: Stage,
    /// Latest numbers of the training loop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// Progress of the curriculum, if the run has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curriculum: Option<Curriculum>,
    /// Step that this attempt resumed from. `None` if it started at step 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_from: Option<u64>,
    /// Number of optimizer steps executed by all attempts together, including repeated steps.
    #[serde(default)]
    pub steps_executed: u64,
    /// Latest checkpoint on the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_checkpoint: Option<Checkpoint>,
    /// Data files, with the digests of the bytes that were read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<DataFile>,
    /// Base that the weights are loaded from. `None` until its files are hashed, and for a run that initializes its weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// What computes. `None` until it is known, and on a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub computation: Option<Computation>,
    /// Device that computes. `None` until it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
    /// Trained model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Model>,
    /// What the trainer did about the model of a former run, if it was told of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adoption: Option<Adoption>,
    /// Notices for the user, such as a damaged checkpoint that was skipped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<String>,
    /// Reason why the trainer failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// Latest numbers of a training loop.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Progress {
    /// Number of optimizer steps completed.
    pub step: u64,
    /// Number of optimizer steps in the whole run.
    pub total_steps: u64,
    /// Training loss: mean cross-entropy per target token, in nats. `None` before the first step and if it is not finite.
    pub loss: Option<f64>,
    /// Tokens trained per second, without padding.
    pub tokens_per_second: Option<f64>,
    /// Estimated seconds until the last step, at the current speed.
    pub eta_seconds: Option<u64>,
    /// Learning rate of the latest step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Euclidean norm of the latest gradient before clipping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradient_norm: Option<f64>,
    /// Floating-point operations of the model per second, in units of 10⁹.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gflops: Option<f64>,
    /// Share of the time, from 0 to 1, that the training loop waits for data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_wait: Option<f64>,
    /// Resident memory of the process, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Latest loss on the validation records. `None` before the first evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
}

/// Progress of a curriculum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Curriculum {
    /// Id of the active phase; of the last one once all are completed.
    pub phase: String,
    /// Number of this phase, counted from 1.
    pub index: u32,
    /// Number of phases.
    pub of: u32,
    /// Optimizer steps of this phase that are done.
    pub steps_done: u64,
    /// Optimizer steps that this phase has at least.
    pub steps: u64,
    /// Why the phase goes on although its steps are done: a sentence for each threshold that does not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// All phases, in their order.
    pub phases: Vec<CurriculumPhase>,
}

/// A phase of a curriculum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CurriculumPhase {
    /// Id of the phase.
    pub id: String,
    /// Where it stands.
    pub status: PhaseStatus,
    /// Optimizer steps before its first one; `None` if it has not begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_step: Option<u64>,
}

/// Where a phase stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum PhaseStatus {
    /// It has not begun.
    Pending,
    /// It is being trained, or the run ended in it.
    Active,
    /// Its steps are done and its thresholds held.
    Completed,
    /// The steps of the run were used up while it waited for its thresholds.
    Failed,
    /// The run ended before it began.
    Skipped,
}

/// A checkpoint on the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Checkpoint {
    /// Number of optimizer steps in the checkpoint.
    pub step: u64,
    /// SHA-256 of the manifest of the checkpoint.
    pub digest: Sha256,
}

/// A data file and the digest of the bytes that were read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DataFile {
    /// Name in `spec.data`.
    pub name: String,
    /// SHA-256 of the bytes that were read.
    pub sha256: DataDigest,
    /// Size in bytes.
    pub size: u64,
    /// Number of records. `None` if the file was refused before they were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<u64>,
}

/// The model whose weights a training starts from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Base {
    /// Digest that the trainer computed from the files of the base.
    pub digest: ModelDigest,
    /// Commit of the repository that the trainer downloaded the base from, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Fingerprint of the key whose signature of the base the trainer had to verify, and did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<Sha256>,
}

impl Base {
    /// Returns a base that was neither downloaded nor had to be signed.
    pub fn of(digest: ModelDigest) -> Self {
        Self { digest, commit: None, signer: None }
    }
}

/// Whether a text is the full name of a commit.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// What computes a model. Equal inputs, programs, engines and kernels give equal bits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Computation {
    /// SHA-256 of the program.
    pub program: Sha256,
    /// Code path of the engine, such as `cpu-f32`.
    pub engine: String,
    /// Architecture and instruction set of the kernels, such as `x86_64 avx512`.
    pub kernels: String,
    /// Whether the state that training resumed from was computed with another program, engine or kernels, or may have been.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mixed: bool,
}

/// A trained model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Model {
    /// Digest of `manifest`. The receiver computes it again.
    pub digest: ModelDigest,
    /// OMS root of the same files.
    pub oms_root: OmsRoot,
    /// Manifest of the files of the model.
    pub manifest: Manifest,
    /// Number of trainable parameters.
    pub parameters: u64,
    /// Digest of the adapter in `artifacts/adapter/`, the manifest digest of that directory. `None` if no adapter was trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<ModelDigest>,
}

#[cfg(test)]
mod tests {
    use super::{Base, ModelDigest, Sha256, TrainingState};

    #[test]
    fn a_base_is_optional_and_has_a_digest() {
        let state = TrainingState::default();
        assert!(!serde_json::to_string(&state).unwrap().contains("base"));
        let digest = ModelDigest(Sha256::of("base"));
        let text = format!(r#"{{"stage":"Running","base":{{"digest":"{digest}"}}}}"#);
        let state: TrainingState = serde_json::from_str(&text).unwrap();
        assert_eq!(state.base, Some(Base::of(digest)));
        assert_eq!(serde_json::to_value(&state).unwrap()["base"], serde_json::json!({ "digest": digest }));
        for malformed in [r#"{"stage":"Running","base":{}}"#, r#"{"stage":"Running","base":{"digest":"base"}}"#] {
            assert!(serde_json::from_str::<TrainingState>(malformed).is_err(), "{malformed}");
        }
        let more = text.replace("\"}}", "\",\"path\":\"x\"}}");
        assert!(serde_json::from_str::<TrainingState>(&more).is_err(), "{more}");
    }
}
