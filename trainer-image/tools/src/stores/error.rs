//! Errors of object stores. Pure. None of them holds a credential, or the query of an address, which may be a signature.

use std::path::PathBuf;

use codex::{atomic_fs::FileError, error::CommandError};
use codex_provenance::{ModelDigest, Sha256, manifest::ManifestError};

/// A directory cannot be fetched or pushed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be set up from the environment.
    #[error("{location} cannot be opened: {why}")]
    Open {
        /// The address.
        location: String,
        /// What is wrong.
        why: String,
    },
    /// The store refuses a request, or does not answer.
    #[error("{action} {location} failed: {why}")]
    Store {
        /// What was done.
        action: &'static str,
        /// The object.
        location: String,
        /// What the store said.
        why: String,
        /// Whether the credentials are missing or wrong.
        is_refused: bool,
    },
    /// There is nothing at the address.
    #[error("{0} does not exist: correct the address, or push something there first")]
    NotFound(String),
    /// The directory exists.
    #[error("{0:?} exists: name a directory that does not exist yet")]
    Exists(PathBuf),
    /// Another process fetches into the directory.
    #[error("another process fetches into {0:?}: wait for it")]
    Busy(PathBuf),
    /// The manifest of the store is invalid.
    #[error("{location} is no manifest: {why}; push the directory again with --replace")]
    Manifest {
        /// The object.
        location: String,
        /// What is wrong.
        why: String,
    },
    /// What is in a registry is no model.
    #[error("{location} cannot be used: {why}")]
    Artifact {
        /// The address.
        location: String,
        /// What is wrong.
        why: String,
    },
    /// An option is for registries.
    #[error("{option} is for models in registries, and {location} is not in one: leave the option out")]
    NotRegistry {
        /// The option.
        option: &'static str,
        /// The address.
        location: String,
    },
    /// A file is no bundle of Sigstore.
    #[error("{path:?} is no bundle: {why}")]
    Bundle {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A name cannot be a file.
    #[error("{location} has the object {name:?}, which cannot be a file here: {why}")]
    Name {
        /// The address.
        location: String,
        /// The object.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// The digest is another one.
    #[error("{location} has the digest {found}, but --digest is {expected}")]
    Digest {
        /// The address, or the directory.
        location: String,
        /// The digest that was found.
        found: ModelDigest,
        /// The required digest.
        expected: ModelDigest,
    },
    /// A file is not what the manifest says.
    #[error(
        "{location} is not what its manifest says ({found}, not {expected}): it was changed after it was pushed, or damaged"
    )]
    Changed {
        /// The object.
        location: String,
        /// Its SHA-256 or size.
        found: String,
        /// What the manifest says.
        expected: String,
    },
    /// A file changed while it was pushed.
    #[error("{path:?} changed while it was pushed ({found}, not {expected}): push again when nothing writes to it")]
    Moving {
        /// The file.
        path: PathBuf,
        /// The SHA-256 that was sent.
        found: Sha256,
        /// The SHA-256 at the beginning.
        expected: Sha256,
    },
    /// Something else is at the address.
    #[error("{location} holds another model, {found}: use another address, or --replace")]
    Taken {
        /// The address.
        location: String,
        /// The digest of what is there.
        found: ModelDigest,
    },
    /// The directory cannot be pushed.
    #[error("{path:?} cannot be pushed")]
    Source {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        #[source]
        why: ManifestError,
    },
    /// A body ended too early, again and again.
    #[error(
        "{location}: the connection was cut {times} times in a row without a byte in between: {why}; run the command again to go on"
    )]
    Cut {
        /// The object.
        location: String,
        /// Attempts without progress.
        times: u32,
        /// The last reason.
        why: String,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The process was asked to end. What was transferred is kept.
    #[error("interrupted")]
    Interrupted,
}

impl StoreError {
    /// Makes the error of a request.
    pub(super) fn of(action: &'static str, location: &str, error: &object_store::Error) -> Self {
        use object_store::Error;
        if matches!(error, Error::NotFound { .. }) {
            return Self::NotFound(location.to_owned());
        }
        let is_refused = matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. });
        Self::Store { action, location: location.to_owned(), why: scrubbed(&codex::error::chain(error)), is_refused }
    }

    fn is_final(&self) -> bool {
        !matches!(
            self,
            Self::Store { is_refused: false, .. }
                | Self::Busy(_)
                | Self::Moving { .. }
                | Self::Cut { .. }
                | Self::Changed { .. }
        )
    }
}

impl From<StoreError> for CommandError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::File(error) => error.into(),
            error if error.is_final() => Self::bad_input(error),
            error => Self::failed(error),
        }
    }
}

/// What S3 quotes of a request that it refuses: the name of the key, and headers with tokens.
const QUOTED: [&str; 3] = ["<AWSAccessKeyId", "<StringToSign", "<CanonicalRequest"];

/// Returns a text without the queries of addresses in it, which may be signatures, and without users before hosts, which may have
/// passwords.
pub(super) fn scrubbed(text: &str) -> String {
    let end = QUOTED.iter().filter_map(|tag| text.find(tag)).min().unwrap_or(text.len());
    let text = &text[..end];
    let mut clean = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let is_end = |letter: char| letter.is_whitespace() || "\"'<>()".contains(letter);
        let (word, after) = rest.split_at(rest.find(is_end).unwrap_or(rest.len()));
        let (plain, query) = word.split_once(['?', '#']).unwrap_or((word, ""));
        let plain = if query.is_empty() { word } else { plain };
        match plain.split_once("://") {
            Some((scheme, address)) => {
                let (host, path) = address.split_at(address.find('/').unwrap_or(address.len()));
                clean.extend([scheme, "://", host.rsplit('@').next().unwrap_or_default(), path]);
            }
            None => clean.push_str(plain),
        }
        let end = after.chars().next().map_or(0, char::len_utf8);
        clean.push_str(&after[..end]);
        rest = &after[end..];
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_and_users_of_addresses_are_left_out() {
        let told = scrubbed("GET \"https://a.example/b/c?sig=secret&x=1\": 403 (http://me:pw@h:1/p#f), see s3://a/b");
        assert_eq!(told, "GET \"https://a.example/b/c\": 403 (http://h:1/p), see s3://a/b");
        assert_eq!(scrubbed("<Message>PUT /box/a?sig=secret</Message>"), "<Message>PUT /box/a</Message>");
        assert_eq!(scrubbed("nothing? here, größer\n"), "nothing? here, größer\n");
    }
}
