//! The errors of a merge. Pure.

use std::path::PathBuf;

use codex_provenance::{ModelDigest, manifest::ManifestError};

use crate::{atomic_fs::FileError, error::CommandError, model::ModelError, overlap::Overlap};

/// An adapter cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// The output exists.
    #[error("--output {0:?} exists: name a directory that does not exist yet")]
    Exists(PathBuf),
    /// The output would change an input.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// A directory cannot be read.
    #[error("{role} {path:?} cannot be read")]
    Directory {
        /// The argument.
        role: &'static str,
        /// The directory.
        path: PathBuf,
        /// Why.
        source: ManifestError,
    },
    /// The base is not a supported model.
    #[error("--base {path:?}")]
    Base {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: ModelError,
    },
    /// The adapter was trained beside another base.
    #[error(
        "--base {path:?} has digest {found}, but the adapter was trained beside {expected}: use the base with that digest"
    )]
    OtherBase {
        /// The directory.
        path: PathBuf,
        /// Its digest.
        found: ModelDigest,
        /// The digest that the run of the adapter recorded.
        expected: ModelDigest,
    },
    /// The adapter is not supported, or not one of this base.
    #[error("--adapter {path:?}")]
    Adapter {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: AdapterError,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
}

/// An adapter is not supported, or not one of the base.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A file is missing.
    #[error("{0} is missing: name the directory that PEFT's save_pretrained wrote, with safetensors")]
    Missing(&'static str),
    /// The configuration is not JSON.
    #[error("adapter_config.json cannot be read")]
    Json(#[source] serde_json::Error),
    /// A key of the configuration has a value that is not supported.
    #[error("adapter_config.json: {key} is {value}, which is not supported: {right}")]
    Key {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What is supported.
        right: &'static str,
    },
    /// The pattern of the targets is no regular expression.
    #[error(
        "adapter_config.json: target_modules is no regular expression that is supported: name the modules in a list"
    )]
    Pattern(#[source] Box<regex::Error>),
    /// No module of the base is a target.
    #[error(
        "adapter_config.json: target_modules is {targets}, but the base has {known}: the adapter belongs to another model"
    )]
    NoTarget {
        /// The targets.
        targets: String,
        /// The names of the base's modules.
        known: String,
    },
    /// The output projection is a target, but it shares its weight with the embedding.
    #[error("lm_head is a target, but the base shares its weight with the embedding: merging would change both")]
    TiedHead,
    /// The weights are no safetensors file.
    #[error("adapter_model.safetensors cannot be read: {0}")]
    Weights(String),
    /// A tensor is missing.
    #[error("adapter_model.safetensors: {0} is missing, but target_modules names its module")]
    TensorMissing(String),
    /// A tensor belongs to no target.
    #[error(
        "adapter_model.safetensors: {0} belongs to no target module of the base: the adapter belongs to another model"
    )]
    TensorUnused(String),
    /// A tensor has another shape or type.
    #[error("adapter_model.safetensors: {name} is {found}, but rank and base ask for F32, F16 or BF16 {expected:?}")]
    Tensor {
        /// The tensor.
        name: String,
        /// Its type and shape.
        found: String,
        /// The expected shape.
        expected: [usize; 2],
    },
    /// A value of a tensor is infinite or NaN.
    #[error("adapter_model.safetensors: {name} is not finite: value {at} is {value}")]
    NotFinite {
        /// The tensor.
        name: String,
        /// Index of the first such value.
        at: usize,
        /// The value.
        value: f32,
    },
}

impl From<MergeError> for CommandError {
    fn from(error: MergeError) -> Self {
        match error {
            MergeError::File(error) | MergeError::Base { source: ModelError::File(error), .. } => error.into(),
            error => Self::bad_input(error),
        }
    }
}
