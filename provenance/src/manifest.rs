//! The manifest of a model: which files it has, how large they are and what they hash to.
//!
//! Pure but for [`Manifest::of_dir`] and [`Manifest::read_dir`].

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::{
    canonical::canonical,
    digest::{ModelDigest, OmsRoot, Sha256},
    files::{self, IGNORED},
};

/// The version of [`Manifest`].
pub const SCHEMA: u32 = 1;
/// The most files that a manifest may name.
pub const MAX_FILES: usize = 10_000;
/// The most bytes that a path may have.
pub const MAX_PATH: usize = 1024;
/// The largest size that JSON numbers (RFC 8785) carry exactly.
pub const MAX_SIZE: u64 = 1 << 53;

/// The manifest of a model directory, in the order of OpenSSF Model Signing (by path components).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// The version of this shape.
    pub schema: u32,
    /// The files.
    pub files: Vec<File>,
}

/// One file of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct File {
    /// POSIX path relative to the model directory.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the contents.
    pub sha256: Sha256,
}

/// Why something is no manifest of a model.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file system refused.
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable {
        /// What was read.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// A symbolic link: what it points to can change without the model directory.
    #[error("{path:?} is a symbolic link: a model holds regular files only")]
    Symlink {
        /// The path below the model directory.
        path: String,
    },
    /// A device, a socket or a pipe.
    #[error("{path:?} is neither a regular file nor a directory")]
    NotAFile {
        /// The path below the model directory.
        path: String,
    },
    /// A name in another encoding.
    #[error("the file name {path:?} is not UTF-8")]
    NotUtf8 {
        /// The path below the model directory, with the strange bytes replaced.
        path: String,
    },
    /// A path that could leave the model directory or that not every system can hold.
    #[error("{path:?} is no path of a model file: {reason}")]
    Path {
        /// The path.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Two names that are one on some file systems.
    #[error("{first:?} and {second:?} are the same file where case does not count, or one is a directory of the other")]
    Collision {
        /// The one.
        first: String,
        /// The other.
        second: String,
    },
    /// Another order than by path components: another digest for the same files.
    #[error(
        "{second:?} stands behind {first:?}: a manifest names its files once, in the order of their path components"
    )]
    Order {
        /// The one that stands before.
        first: String,
        /// The one that belongs before it.
        second: String,
    },
    /// No file at all.
    #[error("it holds no file")]
    Empty,
    /// More files than any model has.
    #[error("it names {count} files, more than {MAX_FILES}")]
    TooMany {
        /// Files.
        count: usize,
    },
    /// Sizes that cannot be.
    #[error("the size of {path:?}, {size} bytes, brings the model over 2^53 bytes")]
    Size {
        /// The path.
        path: String,
        /// Bytes.
        size: u64,
    },
    /// A digest that contradicts the size.
    #[error("{path:?} is said to be empty, and to hash to {sha256}, which is not the digest of nothing")]
    EmptyDigest {
        /// The path.
        path: String,
        /// What it is said to hash to.
        sha256: Sha256,
    },
    /// A shape of another version.
    #[error("its schema is {0}, and {SCHEMA} is the one known here")]
    Schema(u32),
}

/// A difference between two manifests, in the words of the one who compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// A file whose contents are others.
    Changed {
        /// The path.
        path: String,
        /// What was expected.
        expected: Sha256,
        /// What is there.
        found: Sha256,
    },
    /// A file whose recorded size is another, with the same contents.
    Resized {
        /// The path.
        path: String,
        /// Bytes expected.
        expected: u64,
        /// Bytes there.
        found: u64,
    },
    /// A file that is expected and not there.
    Missing {
        /// The path.
        path: String,
    },
    /// A file that is there and not expected.
    Added {
        /// The path.
        path: String,
    },
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Changed { path, expected, found } => {
                write!(f, "{path} was changed: it hashes to {}, not {}", found.short(), expected.short())
            }
            Self::Resized { path, expected, found } => write!(f, "{path} has {found} bytes, not {expected}"),
            Self::Missing { path } => write!(f, "{path} is missing"),
            Self::Added { path } => write!(f, "{path} was added"),
        }
    }
}

impl Manifest {
    /// Hashes every file below `directory` (see [`files::walk`]), a buffer at a time.
    ///
    /// # Errors
    /// As [`files::walk`], and whatever the file system refuses.
    pub fn of_dir(directory: &Path) -> Result<Self, ManifestError> {
        Self::of_dir_except(directory, &BTreeSet::new())
    }

    /// As [`Manifest::of_dir`], without the files at the relative paths in `except`.
    ///
    /// # Errors
    /// As [`Manifest::of_dir`].
    pub fn of_dir_except(directory: &Path, except: &BTreeSet<String>) -> Result<Self, ManifestError> {
        let files = files::walk(directory, except)?
            .into_iter()
            .map(|entry| {
                let (size, sha256) = files::open(&entry.location)
                    .and_then(files::hash_reader)
                    .map_err(|source| ManifestError::Unreadable { path: entry.location, source })?;
                Ok(File { path: entry.path, size, sha256 })
            })
            .collect::<Result<_, ManifestError>>()?;
        Self { schema: SCHEMA, files }.validated()
    }

    /// Reads every file below `directory` into memory, once, and hashes exactly what it read: what is loaded from these
    /// bytes is what was hashed, whatever happens to the directory meanwhile.
    ///
    /// # Errors
    /// As [`Manifest::of_dir`].
    pub fn read_dir(directory: &Path) -> Result<(Self, BTreeMap<String, Vec<u8>>), ManifestError> {
        let mut contents = BTreeMap::new();
        let mut files = Vec::new();
        for entry in files::walk(directory, &BTreeSet::new())? {
            let (bytes, sha256) = files::read_hashed(&entry.location)
                .map_err(|source| ManifestError::Unreadable { path: entry.location, source })?;
            files.push(File { path: entry.path.clone(), size: bytes.len() as u64, sha256 });
            contents.insert(entry.path, bytes);
        }
        let manifest = Self { schema: SCHEMA, files }.validated()?;
        Ok((manifest, contents))
    }

    /// The manifest of files that lie in memory, by path.
    ///
    /// # Errors
    /// As [`Manifest::validate`].
    pub fn of_files(files: &BTreeMap<String, impl AsRef<[u8]>>) -> Result<Self, ManifestError> {
        let hashed = files.iter().map(|(path, bytes)| File {
            path: path.clone(),
            size: bytes.as_ref().len() as u64,
            sha256: Sha256::of(bytes),
        });
        Self::of_hashed(hashed)
    }

    /// The manifest of files that were hashed before, in any order.
    ///
    /// # Errors
    /// As [`Manifest::validate`].
    pub fn of_hashed(files: impl IntoIterator<Item = File>) -> Result<Self, ManifestError> {
        let mut files: Vec<File> = files.into_iter().collect();
        files.sort_by(|a, b| a.path.split('/').cmp(b.path.split('/')));
        Self { schema: SCHEMA, files }.validated()
    }

    fn validated(self) -> Result<Self, ManifestError> {
        self.validate()?;
        Ok(self)
    }

    /// Checks a manifest that came from elsewhere: every constructor's refusals, the order, sizes that can be.
    ///
    /// # Errors
    /// The first thing that no model directory could have led to.
    pub fn validate(&self) -> Result<(), ManifestError> {
        if self.schema != SCHEMA {
            return Err(ManifestError::Schema(self.schema));
        }
        check_paths(self.files.iter().map(|file| file.path.as_str()))?;
        let mut total = 0_u64;
        for File { path, size, sha256 } in &self.files {
            total = total.saturating_add(*size);
            if total > MAX_SIZE {
                return Err(ManifestError::Size { path: path.clone(), size: *size });
            }
            if (*size == 0) != (*sha256 == Sha256::of([])) {
                return Err(ManifestError::EmptyDigest { path: path.clone(), sha256: *sha256 });
            }
        }
        Ok(())
    }

    /// The model digest: SHA-256 of the canonical JSON (RFC 8785) of this manifest.
    pub fn digest(&self) -> ModelDigest {
        ModelDigest(Sha256::of(canonical(self)))
    }

    /// The root of OpenSSF Model Signing: SHA-256 of the files' raw digests in order. It binds no names.
    pub fn oms_root(&self) -> OmsRoot {
        let mut hasher = sha2::Sha256::new();
        for file in &self.files {
            hasher.update(file.sha256.bytes());
        }
        OmsRoot(Sha256::finish(hasher))
    }

    /// Bytes of all files.
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).fold(0, u64::saturating_add)
    }

    /// What `found` has otherwise than this manifest, by path; empty if and only if they are equal.
    pub fn diff(&self, found: &Self) -> Vec<Difference> {
        let by_path = |manifest: &Self| -> BTreeMap<String, (u64, Sha256)> {
            manifest.files.iter().map(|file| (file.path.clone(), (file.size, file.sha256))).collect()
        };
        let (expected, mut there) = (by_path(self), by_path(found));
        let mut differences = Vec::new();
        for (path, (size, sha256)) in expected {
            differences.extend(match there.remove(&path) {
                None => Some(Difference::Missing { path }),
                Some((_, other)) if other != sha256 => {
                    Some(Difference::Changed { path, expected: sha256, found: other })
                }
                Some((other, _)) if other != size => Some(Difference::Resized { path, expected: size, found: other }),
                Some(_) => None,
            });
        }
        differences.extend(there.into_keys().map(|path| Difference::Added { path }));
        differences
    }
}

/// Checks that paths can stand in a manifest, in this order: relative, without `.`, `..`, back-slashes and control
/// characters, none twice (case does not count), none both a file and a directory, at least one.
///
/// # Errors
/// The first path that cannot.
pub fn check_paths<'a>(paths: impl ExactSizeIterator<Item = &'a str>) -> Result<(), ManifestError> {
    match paths.len() {
        0 => return Err(ManifestError::Empty),
        count if count > MAX_FILES => return Err(ManifestError::TooMany { count }),
        _ => {}
    }
    let mut folded: BTreeMap<String, &str> = BTreeMap::new();
    let mut before: Option<&str> = None;
    for path in paths {
        if let Some(reason) = refusal(path) {
            return Err(ManifestError::Path { path: path.to_owned(), reason });
        }
        if let Some(first) = folded.insert(path.to_lowercase(), path) {
            return Err(ManifestError::Collision { first: first.to_owned(), second: path.to_owned() });
        }
        if let Some(first) = before
            && first.split('/').ge(path.split('/'))
        {
            return Err(ManifestError::Order { first: first.to_owned(), second: path.to_owned() });
        }
        before = Some(path);
    }
    for (path, original) in &folded {
        let mut directories = path.match_indices('/').map(|(end, _)| &path[..end]);
        if let Some(first) = directories.find_map(|directory| folded.get(directory)) {
            return Err(ManifestError::Collision { first: (*first).to_owned(), second: (*original).to_owned() });
        }
    }
    Ok(())
}

fn refusal(path: &str) -> Option<&'static str> {
    if path.len() > MAX_PATH {
        return Some("it is longer than 1024 bytes");
    }
    if path.starts_with('/') {
        return Some("it must be relative to the model directory");
    }
    if path.chars().any(|letter| letter.is_control() || letter == '\\') {
        return Some("it must have neither control characters nor back-slashes");
    }
    let mut components = path.split('/');
    if components.any(|part| part.is_empty() || part == "." || part == "..") {
        return Some("no part of it may be empty, \".\" or \"..\"");
    }
    let top = path.split('/').next().unwrap_or_default();
    IGNORED.contains(&top).then_some("model signing leaves out what git keeps at the top of a directory")
}
