//! The manifest of a model: paths, sizes and digests of its files.
//!
//! Pure, except for the constructors that read files.

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
    files::{self, Entry, IGNORED},
    text::Printable,
    threads::in_parallel,
};

/// Version of the format of [`Manifest`].
pub const SCHEMA: u32 = 1;
/// Maximum number of files of a manifest.
pub const MAX_FILES: usize = 10_000;
/// Maximum number of files of a model that a cluster records: its status lists each of them.
pub const MAX_RECORDED_FILES: usize = 64;
/// Maximum length of a path in bytes.
pub const MAX_PATH: usize = 1024;
/// Maximum size of a model in bytes. Larger JSON numbers (RFC 8785) are not exact.
pub const MAX_SIZE: u64 = 1 << 53;

/// The manifest of a model, in the order of OpenSSF Model Signing (by path components).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// Version of the format, [`SCHEMA`].
    pub schema: u32,
    /// The files.
    pub files: Vec<File>,
}

/// A file of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct File {
    /// POSIX path, relative to the model directory.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of the contents.
    pub sha256: Sha256,
}

/// Reasons why a model directory or a manifest is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A file or directory cannot be read.
    #[error("{} cannot be read: {source}", Printable(&path.display().to_string()))]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// The error of the file system.
        #[source]
        source: io::Error,
    },
    /// The directory contains a symbolic link, whose target can change independently.
    #[error("{path:?} is a symbolic link: a model holds regular files only")]
    Symlink {
        /// The path below the model directory.
        path: String,
    },
    /// The directory contains a device, a socket or a pipe.
    #[error("{path:?} is neither a regular file nor a directory")]
    NotAFile {
        /// The path below the model directory.
        path: String,
    },
    /// A file name is not UTF-8.
    #[error("the file name {path:?} is not UTF-8")]
    NotUtf8 {
        /// The path below the model directory, with invalid bytes replaced.
        path: String,
    },
    /// A path could leave the model directory, or is not portable.
    #[error("{path:?} is not a valid path of a model file: {reason}")]
    Path {
        /// The path.
        path: String,
        /// The fault of the path.
        reason: &'static str,
    },
    /// Two paths collide on some file systems.
    #[error(
        "{first:?} and {second:?} collide: they differ only in case, are equal, or one is a directory of the other"
    )]
    Collision {
        /// The first path.
        first: String,
        /// The second path.
        second: String,
    },
    /// The files are not in the order of their path components, so the digest would be another one.
    #[error("{second:?} follows {first:?}: a manifest lists each file once, in the order of their path components")]
    Order {
        /// The path that comes first.
        first: String,
        /// The path that should come before it.
        second: String,
    },
    /// There is no file.
    #[error("it contains no files")]
    Empty,
    /// There are too many files.
    #[error("it contains {count} files; at most {MAX_FILES} are allowed")]
    TooMany {
        /// Number of files.
        count: usize,
    },
    /// The model is too large.
    #[error("with {path:?}, which has {size} bytes, the model has more than 2^53 bytes")]
    Size {
        /// The path.
        path: String,
        /// Size in bytes.
        size: u64,
    },
    /// Size and digest of a file contradict each other.
    #[error("size and digest of {path:?} contradict each other: exactly the empty file hashes to {}", Sha256::of([]))]
    EmptyDigest {
        /// The path.
        path: String,
        /// The digest.
        sha256: Sha256,
    },
    /// The format has another version.
    #[error("its schema is {0}; only {SCHEMA} is supported")]
    Schema(u32),
}

/// A difference between an expected manifest and the one at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The contents of a file differ.
    Changed {
        /// The path.
        path: String,
        /// The expected digest.
        expected: Sha256,
        /// The digest at hand.
        found: Sha256,
    },
    /// The recorded sizes of a file differ, although its digests are equal.
    Resized {
        /// The path.
        path: String,
        /// The expected size in bytes.
        expected: u64,
        /// The size at hand in bytes.
        found: u64,
    },
    /// A file is missing.
    Missing {
        /// The path.
        path: String,
    },
    /// A file is not expected.
    Added {
        /// The path.
        path: String,
    },
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = match self {
            Self::Changed { path, .. } | Self::Resized { path, .. } | Self::Missing { path } | Self::Added { path } => {
                path
            }
        };
        // Paths of a statement can hold anything.
        let path = Printable(path);
        match self {
            Self::Changed { expected, found, .. } => {
                write!(f, "{path} was changed: it hashes to {}, not {}", found.short(), expected.short())
            }
            Self::Resized { expected, found, .. } => write!(f, "{path} has {found} bytes, not {expected}"),
            Self::Missing { .. } => write!(f, "{path} is missing"),
            Self::Added { .. } => write!(f, "{path} was added"),
        }
    }
}

impl Manifest {
    /// Returns the manifest of the files below `directory` (see [`files::walk`]). Each file is hashed in pieces.
    ///
    /// # Errors
    /// As [`files::walk`]; fails if a file cannot be read.
    pub fn of_dir(directory: &Path) -> Result<Self, ManifestError> {
        Self::of_dir_except(directory, &BTreeSet::new())
    }

    /// As [`Manifest::of_dir`], without the files at the relative paths in `except`.
    ///
    /// # Errors
    /// As [`Manifest::of_dir`].
    pub fn of_dir_except(directory: &Path, except: &BTreeSet<String>) -> Result<Self, ManifestError> {
        Self::hash(&files::walk(directory, except)?)
    }

    /// Returns the manifest of a model that is a single file: its name, its size and its digest.
    ///
    /// # Errors
    /// As [`files::single`]; fails if the file cannot be read.
    pub fn of_file(file: &Path) -> Result<Self, ManifestError> {
        Self::hash(&[files::single(file)?])
    }

    fn hash(entries: &[Entry]) -> Result<Self, ManifestError> {
        let files = in_parallel(entries, |entry| {
            let (size, sha256) = files::open(&entry.location)
                .and_then(files::hash_reader)
                .map_err(|source| ManifestError::Unreadable { path: entry.location.clone(), source })?;
            Ok(File { path: entry.path.clone(), size, sha256 })
        })?;
        Self { schema: SCHEMA, files }.validated()
    }

    /// Reads the files below `directory` into memory, as [`Manifest::read`] does.
    ///
    /// # Errors
    /// As [`files::walk`] and [`Manifest::read`].
    pub fn read_dir(directory: &Path) -> Result<(Self, BTreeMap<String, Vec<u8>>), ManifestError> {
        Self::read(files::walk(directory, &BTreeSet::new())?)
    }

    /// Reads files into memory, each once and at most as far as the listing said, and hashes exactly the bytes that it
    /// returns. A later change of the directory does not affect them.
    ///
    /// # Errors
    /// Fails if a file cannot be read or has grown since it was listed.
    pub fn read(entries: Vec<Entry>) -> Result<(Self, BTreeMap<String, Vec<u8>>), ManifestError> {
        let mut contents = BTreeMap::new();
        let mut files = Vec::new();
        for entry in entries {
            let (bytes, sha256) = files::read_hashed(&entry.location, entry.size)
                .map_err(|source| ManifestError::Unreadable { path: entry.location, source })?;
            files.push(File { path: entry.path.clone(), size: bytes.len() as u64, sha256 });
            contents.insert(entry.path, bytes);
        }
        let manifest = Self { schema: SCHEMA, files }.validated()?;
        Ok((manifest, contents))
    }

    /// Returns the manifest of files in memory, by path.
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

    /// Returns the manifest of files that are hashed already, in any order.
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

    /// Checks a manifest from another program: version, paths, order and sizes.
    ///
    /// # Errors
    /// The first fault. No model directory has such a manifest.
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

    /// Returns the model digest: SHA-256 of the canonical JSON (RFC 8785) of this manifest.
    pub fn digest(&self) -> ModelDigest {
        ModelDigest(Sha256::of(canonical(self)))
    }

    /// Returns the root of OpenSSF Model Signing: SHA-256 of the raw digests of the files in order. It does not cover names.
    pub fn oms_root(&self) -> OmsRoot {
        let mut hasher = sha2::Sha256::new();
        for file in &self.files {
            hasher.update(file.sha256.bytes());
        }
        OmsRoot(Sha256::finish(hasher))
    }

    /// Returns the total size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).fold(0, u64::saturating_add)
    }

    /// Returns the differences between this expected manifest and `found`, by path. Equal manifests have none.
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

/// Checks the paths of a manifest. They must be relative, without `.`, `..`, backslashes and control characters, in order,
/// and distinct regardless of case; a path must not be a directory of another. At least one is required.
///
/// # Errors
/// The first path that is refused.
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
        // Lower case alone keeps apart what has one upper case, such as σ and ς.
        if let Some(first) = folded.insert(path.to_uppercase().to_lowercase(), path) {
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
        return Some("it must have neither control characters nor backslashes");
    }
    let mut components = path.split('/');
    if components.any(|part| part.is_empty() || part == "." || part == "..") {
        return Some("no part of it may be empty, \".\" or \"..\"");
    }
    let top = path.split('/').next().unwrap_or_default();
    IGNORED.contains(&top).then_some("OpenSSF Model Signing leaves out the files of git at the top of a directory")
}
