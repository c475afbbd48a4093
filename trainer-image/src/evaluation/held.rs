//! The model of an evaluation, hashed and held in memory before it is loaded. Reads files.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use codex_provenance::{
    files,
    manifest::{Manifest, ManifestError},
    oms::SIGNATURE,
    sealed::Held,
};

use crate::{
    model::{ModelError, TooLarge, check_size, is_kept},
    training::memory_limit,
};

/// Why a model cannot be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum UnusableModel {
    /// A directory that is no model.
    #[error("the model in {} cannot be hashed", path.display())]
    Manifest {
        /// The model directory.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// A model that does not fit into memory.
    #[error("the model in {} is not read", path.display())]
    TooLarge {
        /// The model directory.
        path: PathBuf,
        /// How large it is.
        #[source]
        source: TooLarge,
    },
    /// A model that cannot be loaded.
    #[error("the model in {} cannot be loaded", path.display())]
    Model {
        /// The model directory.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ModelError,
    },
}

/// Checks names and sizes, then hashes the model; what is hashed here is what answers.
///
/// # Errors
/// The directory is no model, or does not fit into memory.
pub(crate) fn hold(directory: &Path) -> Result<(Manifest, Held), UnusableModel> {
    let path = || directory.to_owned();
    let refused = |source| UnusableModel::Manifest { path: path(), source };
    // As for a base: a signature is not a file of the model.
    let entries = files::walk(directory, &BTreeSet::from([SIGNATURE.to_owned()])).map_err(refused)?;
    if let Some(limit) = memory_limit(Path::new("/")) {
        check_size(&entries, limit.bytes, &limit.source)
            .map_err(|source| UnusableModel::TooLarge { path: path(), source })?;
    }
    Manifest::hold(&entries, is_kept).map_err(refused)
}
