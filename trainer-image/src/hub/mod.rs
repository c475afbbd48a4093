//! Models from a hub: the API of Hugging Face, and its mirrors. Does blocking I/O.
//!
//! A download takes the configuration, the tokenizer, the chat template and the weights as safetensors, and no file that could
//! run code. It goes on after a kill or a cut connection, and each file is compared with the size and the hash that the hub
//! says. A directory appears under its name once it is complete.

mod client;
mod command;
mod download;
mod error;
#[cfg(test)]
pub(crate) mod server;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

pub(crate) use client::bearer;
pub use client::{Hub, agent, is_loopback};
pub use command::Fetch;
pub use error::HubError;

use codex_provenance::oms::SIGNATURE;
use codex_reports::is_commit;

use crate::{atomic_fs, model::INDEX, signals::Stop};

/// The revision of a repository without one.
const DEFAULT_REVISION: &str = "main";
/// Longest name of an owner or a repository, as Hugging Face allows it.
const MAX_PART: usize = 96;
/// Longest revision.
const MAX_REVISION: usize = 255;

/// A repository of a hub at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// Owner and name, such as `HuggingFaceTB/SmolLM2-135M-Instruct`.
    pub name: String,
    /// Branch, tag or commit.
    pub revision: String,
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.revision)
    }
}

impl FromStr for Repository {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, revision) = text.split_once('@').unwrap_or((text, DEFAULT_REVISION));
        let word = |part: &str, more: &str| {
            let allowed =
                |letter: char| letter.is_ascii_alphanumeric() || "-._".contains(letter) || more.contains(letter);
            let first = part.chars().next().is_some_and(|letter| letter.is_ascii_alphanumeric() || letter == '_');
            first && part.chars().all(allowed) && !part.contains("..") && !part.ends_with(['.', '/'])
        };
        let parts: Vec<&str> = name.split('/').collect();
        if parts.len() != 2 || !parts.iter().all(|part| part.len() <= MAX_PART && word(part, "")) {
            return Err(
                "write OWNER/NAME or OWNER/NAME@REVISION, such as HuggingFaceTB/SmolLM2-135M-Instruct".to_owned()
            );
        }
        if revision.len() > MAX_REVISION || !word(revision, "/+") || revision.contains("//") {
            return Err("write a branch, a tag or a commit after @, such as main".to_owned());
        }
        Ok(Self { name: name.to_owned(), revision: revision.to_owned() })
    }
}

/// A downloaded model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fetched {
    /// Its directory.
    pub(crate) path: PathBuf,
    /// The commit that it is from.
    pub(crate) commit: String,
}

/// Returns the model of a repository in a cache, after downloading what is missing. The cache has the layout of Hugging Face's:
/// `models--OWNER--NAME/snapshots/COMMIT`, with the commit of a branch or tag in `refs/`. A revision that the cache knows keeps
/// its commit, and a complete snapshot needs no hub.
///
/// # Errors
/// The hub refuses the request, a file is not what the hub says, the cache cannot be written, or the process is asked to end.
pub(crate) fn cached(hub: &Hub, repository: &Repository, cache: &Path, stop: Stop) -> Result<Fetched, HubError> {
    let place = cache.join(format!("models--{}", repository.name.replace('/', "--")));
    let reference = place.join("refs").join(&repository.revision);
    let known = if is_commit(&repository.revision) {
        Some(repository.revision.clone())
    } else {
        std::fs::read_to_string(&reference).ok().map(|text| text.trim().to_owned()).filter(|text| is_commit(text))
    };
    let snapshot = |commit: &str| place.join("snapshots").join(commit);
    if let Some(commit) = known.clone()
        && snapshot(&commit).is_dir()
    {
        return Ok(Fetched { path: snapshot(&commit), commit });
    }
    let revision = known.as_deref().unwrap_or(&repository.revision);
    let listing = hub.retry(stop, || 0, || hub.list(repository, revision))?;
    if let Some(expected) = known.filter(|commit| *commit != listing.sha) {
        return Err(HubError::Commit { repository: repository.clone(), found: listing.sha, expected });
    }
    if !is_commit(&repository.revision) {
        atomic_fs::make_parents(&reference)?;
        atomic_fs::write(&reference, format!("{}\n", listing.sha).as_bytes())?;
    }
    let path = snapshot(&listing.sha);
    download::snapshot(hub, repository, &listing, &path, stop)?;
    Ok(Fetched { path, commit: listing.sha })
}

/// Whether a download takes a file of this name.
pub(crate) fn is_taken(name: &str) -> bool {
    download::DESCRIPTION.contains(&name) || name == SIGNATURE || name == INDEX || is_weights(name)
}

/// Whether a file at the top of a repository has weights that can be loaded.
fn is_weights(name: &str) -> bool {
    !name.contains('/') && name.ends_with(".safetensors")
}
