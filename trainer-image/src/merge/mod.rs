//! `codex merge`: writes a base with a LoRA adapter merged into its weights. Reads and writes files.
//!
//! The adapter is a directory as PEFT saves it. The merge is the one at the end of a training run: the same files, the same tensors
//! in the same types, of which the adapted ones are `W + s · B A`, rounded once.

mod adapter;
mod config;
mod error;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use codex_engine::Layout;
use codex_provenance::manifest::Manifest;

pub use error::MergeError;

use crate::{
    artifacts::metadata::RunMetadata,
    atomic_fs,
    error::CommandError,
    model::{check_weights, rewrite},
    overlap::{self, Named},
};
use adapter::Adapter;

/// Merge a LoRA adapter into the weights of its base.
#[derive(Debug, clap::Args)]
pub struct Merge {
    /// The model that the adapter was trained beside, as a Hugging Face directory.
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    /// The adapter as PEFT saves it: `adapter_config.json` and `adapter_model.safetensors`.
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// The directory to write, which must not exist yet.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

impl Merge {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let merged = merge(&self.base, &self.adapter, &self.output)?;
        let (tensors, digest) = (merged.tensors, merged.manifest.digest());
        atomic_fs::say(&format!("{}: {tensors} weights changed, digest {digest}", self.output.display()))?;
        Ok(codex_reports::exit::FINISHED)
    }
}

/// A merged model.
#[derive(Debug)]
pub struct Merged {
    /// Number of tensors that the adapter changed.
    pub tensors: usize,
    /// The manifest of the written directory.
    pub manifest: Manifest,
}

/// Merges the adapter in one directory into the base in another, and writes the model to a new directory.
///
/// # Errors
/// The base or the adapter cannot be read or is not supported, they do not belong together, or the output exists or cannot be
/// written. Nothing is left in its place then.
pub fn merge(base: &Path, adapter: &Path, output: &Path) -> Result<Merged, MergeError> {
    if std::fs::symlink_metadata(output).is_ok() {
        return Err(MergeError::Exists(output.to_owned()));
    }
    overlap::check(&[Named::new("--output", output)], &[Named::new("--base", base), Named::new("--adapter", adapter)])?;
    let unreadable = |role, path: &Path| {
        let path = path.to_owned();
        move |source| MergeError::Directory { role, path, source }
    };
    let (recorded, files) = Manifest::read_dir(adapter).map_err(unreadable("--adapter", adapter))?;
    let of_base = |source| MergeError::Base { path: base.to_owned(), source };
    let layout = Layout::of(&check_weights(base).map_err(of_base)?);
    let adapter_of = |source| MergeError::Adapter { path: adapter.to_owned(), source };
    let parts = Adapter::read(&files, &layout).map_err(adapter_of)?;
    let (manifest, mut files) = Manifest::read_dir(base).map_err(unreadable("--base", base))?;
    // A run keeps its adapter beside its metadata, which names the base. Adapters of PEFT name none that can be checked.
    if let Some(expected) = base_of_run(adapter, &recorded)
        && expected != manifest.digest()
    {
        return Err(MergeError::OtherBase { path: base.to_owned(), found: manifest.digest(), expected });
    }
    let mut tensors = 0;
    rewrite(&mut files, |name, weight| {
        let merged = parts.merge(name, weight);
        tensors += usize::from(merged);
        merged
    })
    .map_err(of_base)?;
    let manifest = Manifest::of_files(&files).map_err(unreadable("--base", base))?;
    atomic_fs::create_directory(output, |partial| {
        files.iter().try_for_each(|(name, bytes)| {
            atomic_fs::make_parents(&partial.join(name))?;
            atomic_fs::write(&partial.join(name), bytes).map(drop)
        })
    })?;
    Ok(Merged { tensors, manifest })
}

/// Returns the digest of the base of the run that wrote the adapter; `None` if no run of ours did.
fn base_of_run(adapter: &Path, manifest: &Manifest) -> Option<codex_provenance::ModelDigest> {
    let metadata = atomic_fs::read(&adapter.join("../run_metadata.json")).ok()?;
    let metadata: RunMetadata = codex_json::from_slice(&metadata).ok()?;
    metadata.base.filter(|_| metadata.adapter == Some(manifest.digest())).map(|base| base.digest)
}
