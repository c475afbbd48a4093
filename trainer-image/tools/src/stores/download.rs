//! Fetching a directory: which files, each of them with resumption and checks, and the directory at the end. Uses the network,
//! writes files.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use codex::{
    atomic_fs::{self, FileError},
    signals::Stop,
};
use codex_provenance::{
    ModelDigest, Sha256,
    manifest::{Manifest, check_paths},
    oms::SIGNATURE,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore as _, ObjectStoreExt as _, path::Path as Key};

use super::{MANIFEST, MAX_MANIFEST, error::StoreError, open::Remote};

/// Attempts without a byte in between.
const ATTEMPTS: u32 = 6;
/// The longest wait between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The end of the name of a file that is not complete.
const PARTIAL: &str = "partial";

/// A directory that was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Its digest, which `codex verify` prints.
    pub digest: ModelDigest,
    /// The number of its files.
    pub files: usize,
    /// Their size in bytes.
    pub bytes: u64,
    /// Whether the store has a manifest, with which the files were compared.
    pub has_manifest: bool,
}

/// A file that is fetched.
struct Wanted {
    /// Its path in the directory.
    name: String,
    /// The object.
    key: Key,
    size: u64,
    /// What it hashes to, if a manifest says so.
    sha256: Option<Sha256>,
    /// The entity tag of the object, so that an object that changes in between is noticed.
    tag: Option<String>,
}

/// Fetches a directory, or one object, into `directory`, which does not exist yet. Files are collected in `directory.partial`, from
/// which a later call goes on.
///
/// # Errors
/// The store fails, a file is not what the manifest says, the digest is another one, or the process is asked to end. What was fetched
/// is kept.
pub async fn fetch(
    remote: &Remote,
    directory: &Path,
    digest: Option<ModelDigest>,
    parallel: usize,
    stop: Stop<'_>,
) -> Result<Fetched, StoreError> {
    if fs::symlink_metadata(directory).is_ok() {
        return Err(StoreError::Exists(directory.to_owned()));
    }
    let manifest = manifest(remote).await?;
    let wrong = |found: ModelDigest| {
        let expected = digest.filter(|expected| *expected != found)?;
        Some(StoreError::Digest { location: remote.location.to_string(), found, expected })
    };
    // Before anything is transferred.
    if let Some(error) = manifest.as_ref().and_then(|manifest| wrong(manifest.digest())) {
        return Err(error);
    }
    let wanted = wanted(remote, manifest.as_ref()).await?;
    let partial = directory.with_added_extension(PARTIAL);
    atomic_fs::make_directory(&partial)?;
    let lock = File::open(&partial).map_err(FileError::of("opening", &partial))?;
    // Not every volume has locks. Each file is checked under its final name, so that two processes end well without one, too.
    if let Err(fs::TryLockError::WouldBlock) = lock.try_lock() {
        return Err(StoreError::Busy(partial));
    }
    remove_others(&partial, &wanted)?;
    let transfers = wanted.iter().map(|file| one(remote, file, &partial, stop));
    stream::iter(transfers).buffer_unordered(parallel).try_collect::<()>().await?;
    for file in wanted.iter().filter(|file| file.sha256.is_none()) {
        let (from, to) = (partial.join(file.partial()), partial.join(&file.name));
        fs::rename(&from, &to).map_err(FileError::of("renaming to", &to))?;
    }
    let found = if let Some(manifest) = &manifest {
        // Each file was compared with it.
        manifest.digest()
    } else {
        let except = BTreeSet::from([SIGNATURE.to_owned()]);
        let of = Manifest::of_dir_except(&partial, &except);
        of.map_err(|why| StoreError::Source { path: partial.clone(), why })?.digest()
    };
    if let Some(error) = wrong(found) {
        return Err(error);
    }
    sync(&partial)?;
    // An empty directory would be replaced.
    if fs::symlink_metadata(directory).is_ok() {
        return Err(StoreError::Exists(directory.to_owned()));
    }
    fs::rename(&partial, directory).map_err(FileError::of("renaming to", directory))?;
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
    atomic_fs::sync_directory(parent.unwrap_or(Path::new(".")))?;
    let bytes = wanted.iter().map(|file| file.size).sum();
    Ok(Fetched { digest: found, files: wanted.len(), bytes, has_manifest: manifest.is_some() })
}

/// Reads the manifest of a directory in a store.
pub(super) async fn manifest(remote: &Remote) -> Result<Option<Manifest>, StoreError> {
    if let Some(artifact) = &remote.artifact {
        return artifact.manifest().await.map(Some);
    }
    let key = remote.path(MANIFEST)?;
    let Some(bytes) = remote.read(&key, MAX_MANIFEST).await? else { return Ok(None) };
    let wrong = |why: String| StoreError::Manifest { location: remote.shown(&key), why };
    let manifest: Manifest = codex_json::from_slice(&bytes).map_err(|why| wrong(why.to_string()))?;
    manifest.validate().map_err(|why| wrong(why.to_string()))?;
    Ok(Some(manifest))
}

/// Lists the objects below the prefix.
pub(super) async fn list(remote: &Remote) -> Result<Vec<(String, ObjectMeta)>, StoreError> {
    let prefix = &remote.location.prefix;
    let listed = remote.store.list(Some(prefix)).try_collect::<Vec<_>>().await;
    let listed = listed.map_err(|error| StoreError::of("listing", &remote.location.to_string(), &error))?;
    let mut found: Vec<(String, ObjectMeta)> = listed
        .into_iter()
        .filter_map(|meta| {
            let parts: Option<Vec<String>> =
                meta.location.prefix_match(prefix).map(|parts| parts.map(|part| part.as_ref().to_owned()).collect());
            let name = parts?.join("/");
            // Some tools mark a folder by an empty object with its name.
            (!name.is_empty() && name != MANIFEST).then_some((name, meta))
        })
        .collect();
    found.sort_by(|a, b| a.0.split('/').cmp(b.0.split('/')));
    Ok(found)
}

/// Returns the files to fetch.
async fn wanted(remote: &Remote, manifest: Option<&Manifest>) -> Result<Vec<Wanted>, StoreError> {
    let listed = list(remote).await?;
    let file = |name: &str, meta: &ObjectMeta, sha256| Wanted {
        name: name.to_owned(),
        key: meta.location.clone(),
        size: meta.size,
        sha256,
        tag: meta.e_tag.clone(),
    };
    let Some(manifest) = manifest else {
        if listed.is_empty() {
            let prefix = &remote.location.prefix;
            let meta = remote.store.head(prefix).await;
            let shown = remote.location.to_string();
            let meta = meta.map_err(|error| StoreError::of("reading", &shown, &error))?;
            let name = prefix.filename().unwrap_or_default().to_owned();
            check_names(remote, [name.as_str()].into_iter())?;
            return Ok(vec![file(&name, &meta, None)]);
        }
        check_names(remote, listed.iter().map(|(name, _)| name.as_str()))?;
        return Ok(listed.iter().map(|(name, meta)| file(name, meta, None)).collect());
    };
    let mut wanted = Vec::new();
    for one in &manifest.files {
        let Some((name, meta)) = listed.iter().find(|(name, _)| *name == one.path) else {
            return Err(StoreError::NotFound(remote.shown(&remote.path(&one.path)?)));
        };
        if meta.size != one.size {
            let [found, expected] = [meta.size, one.size].map(|size| format!("{size} bytes"));
            return Err(StoreError::Changed { location: remote.shown(&meta.location), found, expected });
        }
        wanted.push(file(name, meta, Some(one.sha256)));
    }
    let signature = listed.iter().find(|(name, _)| name == SIGNATURE);
    // In a registry, the tag of a file is its digest.
    let tagged = |meta: &ObjectMeta| meta.e_tag.as_ref()?.strip_prefix("sha256:")?.parse().ok();
    let digest = |meta: &ObjectMeta| remote.artifact.as_ref().and_then(|_| tagged(meta));
    wanted.extend(signature.map(|(name, meta)| file(name, meta, digest(meta))));
    Ok(wanted)
}

/// Checks that names can be files of one directory, as those of a manifest.
fn check_names<'a>(remote: &Remote, names: impl ExactSizeIterator<Item = &'a str> + Clone) -> Result<(), StoreError> {
    let first = names.clone().next().unwrap_or_default().to_owned();
    check_paths(names).map_err(|why| StoreError::Name {
        location: remote.location.to_string(),
        name: first,
        why: why.to_string(),
    })
}

impl Wanted {
    /// Returns the name of the file while it is not complete. Without a manifest it names the version of the object, so that a later
    /// attempt never goes on with another one.
    fn partial(&self) -> String {
        match (&self.sha256, &self.tag) {
            (None, Some(tag)) => format!("{}.{}.{PARTIAL}", self.name, Sha256::of(tag).short()),
            _ => format!("{}.{PARTIAL}", self.name),
        }
    }

    /// Compares a complete file.
    fn check(&self, path: &Path, shown: &str) -> Result<(), StoreError> {
        let size = fs::metadata(path).map_err(FileError::of("reading", path))?.len();
        let changed =
            |found: String, expected: String| StoreError::Changed { location: shown.to_owned(), found, expected };
        if size != self.size {
            return Err(changed(format!("{size} bytes"), format!("{} bytes", self.size)));
        }
        let Some(expected) = self.sha256 else { return Ok(()) };
        let found = atomic_fs::digest(path).map_err(FileError::of("reading", path))?;
        if found == expected { Ok(()) } else { Err(changed(found.to_string(), expected.to_string())) }
    }
}

/// Fetches a file, unless it is there already. One without a digest keeps the name of its version until all are there.
async fn one(remote: &Remote, file: &Wanted, directory: &Path, stop: Stop<'_>) -> Result<(), StoreError> {
    let shown = remote.shown(&file.key);
    let path = directory.join(&file.name);
    if path.exists() {
        // Without a digest, only the name of the incomplete file says which version it is.
        if file.sha256.is_some() && file.check(&path, &shown).is_ok() {
            return Ok(());
        }
        fs::remove_file(&path).map_err(FileError::of("removing", &path))?;
    }
    let partial = directory.join(file.partial());
    if let Some(parent) = partial.parent() {
        atomic_fs::make_directory(parent)?;
    }
    let (mut failures, mut pause, mut begun_anew) = (0, remote.pause, false);
    loop {
        let before = length(&partial);
        let why = match attempt(remote, file, &partial, stop).await {
            Ok(()) => match file.check(&partial, &shown) {
                Ok(()) => break,
                // Bytes of an earlier attempt may have been of another version.
                Err(error) => {
                    fs::remove_file(&partial).map_err(FileError::of("removing", &partial))?;
                    if std::mem::replace(&mut begun_anew, true) || before == 0 {
                        return Err(error);
                    }
                    continue;
                }
            },
            Err(Attempt::Final(error)) => return Err(error),
            Err(Attempt::Cut(why)) => why,
        };
        if length(&partial) > before {
            (failures, pause) = (0, remote.pause);
        }
        failures += 1;
        if failures == ATTEMPTS {
            return Err(StoreError::Cut { location: shown, times: failures, why });
        }
        tracing::warn!(object = shown, why, seconds = pause.as_secs_f64(), "the transfer goes on after a pause");
        wait(pause, stop).await?;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    if file.sha256.is_some() {
        fs::rename(&partial, &path).map_err(FileError::of("renaming to", &path))?;
    }
    Ok(())
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// How an attempt ended without the whole file.
enum Attempt {
    /// Another one may succeed.
    Cut(String),
    /// None will.
    Final(StoreError),
}

impl From<FileError> for Attempt {
    fn from(error: FileError) -> Self {
        Self::Final(error.into())
    }
}

/// Asks for the bytes that are missing, and appends them.
async fn attempt(remote: &Remote, file: &Wanted, partial: &Path, stop: Stop<'_>) -> Result<(), Attempt> {
    let mut output =
        OpenOptions::new().create(true).append(true).open(partial).map_err(FileError::of("creating", partial))?;
    let mut there = output.metadata().map_err(FileError::of("reading", partial))?.len();
    if there > file.size {
        output.set_len(0).map_err(FileError::of("truncating", partial))?;
        there = 0;
    }
    if there < file.size {
        let range = (there > 0).then_some(GetRange::Offset(there));
        let options = GetOptions { range, if_match: file.tag.clone(), ..GetOptions::default() };
        let found = remote.store.get_opts(&file.key, options).await;
        let shown = remote.shown(&file.key);
        let failed = |error: object_store::Error| match StoreError::of("reading", &shown, &error) {
            // The store's client has tried again already; what is left is worth another pause.
            StoreError::Store { is_refused: false, why, .. }
                if !matches!(error, object_store::Error::Precondition { .. }) =>
            {
                Attempt::Cut(why)
            }
            error => Attempt::Final(error),
        };
        let found = found.map_err(failed)?;
        if found.range.start != there {
            let why = format!("the store answers from byte {}, not {there}", found.range.start);
            output.set_len(0).map_err(FileError::of("truncating", partial))?;
            return Err(Attempt::Cut(why));
        }
        let mut pieces = found.into_stream();
        while let Some(piece) = pieces.next().await {
            if stop() {
                return Err(Attempt::Final(StoreError::Interrupted));
            }
            let piece = piece.map_err(failed)?;
            output.write_all(&piece).map_err(FileError::of("writing", partial))?;
            there += piece.len() as u64;
            if there > file.size {
                break;
            }
        }
        if there < file.size {
            return Err(Attempt::Cut(format!("{there} of {} bytes arrived", file.size)));
        }
    }
    Ok(output.sync_all().map_err(FileError::of("writing", partial))?)
}

/// Waits, unless the process is asked to end.
pub(super) async fn wait(pause: Duration, stop: Stop<'_>) -> Result<(), StoreError> {
    let step = Duration::from_millis(100);
    let mut left = pause;
    while !left.is_zero() {
        if stop() {
            return Err(StoreError::Interrupted);
        }
        let now = left.min(step);
        tokio::time::sleep(now).await;
        left -= now;
    }
    Ok(())
}

/// Removes what an attempt at something else left in a directory.
fn remove_others(directory: &Path, wanted: &[Wanted]) -> Result<(), FileError> {
    let kept: BTreeSet<PathBuf> =
        wanted.iter().flat_map(|file| [directory.join(&file.name), directory.join(file.partial())]).collect();
    for path in walk(directory)? {
        if !kept.contains(&path) {
            fs::remove_file(&path).map_err(FileError::of("removing", &path))?;
        }
    }
    Ok(())
}

/// Returns the files of a directory and those below it.
fn walk(directory: &Path) -> Result<Vec<PathBuf>, FileError> {
    let mut found = Vec::new();
    let entries = fs::read_dir(directory).map_err(FileError::of("listing", directory))?;
    for entry in entries {
        let entry = entry.map_err(FileError::of("listing", directory))?;
        let kind = entry.file_type().map_err(FileError::of("reading", directory))?;
        if kind.is_dir() { found.extend(walk(&entry.path())?) } else { found.push(entry.path()) }
    }
    Ok(found)
}

/// Makes the names of a directory, and of those below it, durable.
fn sync(directory: &Path) -> Result<(), FileError> {
    let entries: io::Result<Vec<_>> = fs::read_dir(directory).and_then(Iterator::collect);
    for entry in entries.map_err(FileError::of("listing", directory))? {
        if entry.path().is_dir() {
            sync(&entry.path())?;
        }
    }
    atomic_fs::sync_directory(directory)
}
