//! Models in OCI registries, as artefacts of the CNCF's `ModelPack` specification. Uses the network, reads and writes files.
//!
//! Each file is a layer without an archive, under the SHA-256 of its bytes, with its path in an annotation. So the manifest of the
//! artefact says what the manifest of the model says, and both digests follow from it. [`Artifact`] shows an artefact as an object
//! store, from which [`fetch`](super::fetch) takes files as from any other.
//!
//! Signatures are layers, too, because verifiers expect them beside the files. In addition they refer to the artefact, as bundles of
//! Sigstore, so that programs find them by its digest.

mod artifact;
mod client;
mod credentials;
#[cfg(test)]
mod fuzz;
mod pack;
mod referrers;
#[cfg(test)]
mod server;
#[cfg(test)]
mod tests;
mod upload;

pub(super) use self::{
    artifact::Artifact, client::Client, credentials::Credentials, referrers::fetch as fetch_bundles, upload::push,
};

/// What the version of an artefact is named by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    /// A tag, which may be moved.
    Tag(String),
    /// The digest of its manifest.
    Digest(codex_provenance::Sha256),
}

impl Version {
    /// Reads what follows a repository, `:TAG` or `@sha256:DIGEST`.
    ///
    /// # Errors
    /// It is neither.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        const RIGHT: &str = "end the address with :TAG or @sha256:DIGEST";
        if let Some(digest) = text.strip_prefix("@sha256:") {
            return digest.parse().map(Self::Digest).map_err(|_| RIGHT.to_owned());
        }
        let tag = text.strip_prefix(':').ok_or(RIGHT)?;
        let first = tag.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let rest = tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if first && rest && tag.len() <= 128 { Ok(Self::Tag(tag.to_owned())) } else { Err(RIGHT.to_owned()) }
    }

    /// Returns the version as requests name it.
    pub(super) fn reference(&self) -> String {
        match self {
            Self::Tag(tag) => tag.clone(),
            Self::Digest(digest) => format!("sha256:{digest}"),
        }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tag(tag) => write!(f, ":{tag}"),
            Self::Digest(digest) => write!(f, "@sha256:{digest}"),
        }
    }
}
