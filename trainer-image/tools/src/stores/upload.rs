//! Pushing a directory: the files that are missing, in parts, and the manifest last. Uses the network, reads files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use codex::{atomic_fs::FileError, signals::Stop};
use codex_provenance::{
    ModelDigest, Sha256,
    manifest::{File as Listed, Manifest},
    oms::SIGNATURE,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{
    Attribute, Attributes, GetOptions, MultipartUpload, ObjectMeta, ObjectStore as _, ObjectStoreExt as _,
    PutMultipartOptions, PutOptions, path::Path as Key,
};
use sha2::Digest as _;

use super::{BUFFER, MANIFEST, download, error::StoreError, open::Remote};

/// Bytes of a part. Stores refuse parts of less than 5 MiB but the last.
pub(super) const PART: u64 = if cfg!(test) { 64 << 10 } else { 16 << 20 };
/// The most parts of an object.
const PARTS: u64 = 10_000;
/// The name under which a store keeps the SHA-256 of an object.
const SHA256: &str = "sha256";

/// A directory that was pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Its digest, which `codex verify` prints.
    pub digest: ModelDigest,
    /// The number of files that were sent.
    pub sent: usize,
    /// The number of files that were there already.
    pub there: usize,
    /// Size of all files in bytes.
    pub bytes: u64,
    /// The digest of the artefact in a registry.
    pub artifact: Option<Sha256>,
}

/// Pushes a directory, or a single file. Files that the store has already are not sent again. The manifest is written last, so that
/// nobody takes a part for the whole.
///
/// # Errors
/// The store fails, holds another model, the digest is another one, or the process is asked to end.
pub async fn push(
    source: &Path,
    remote: &Remote,
    digest: Option<ModelDigest>,
    replace: bool,
    parallel: usize,
    stop: Stop<'_>,
) -> Result<Pushed, StoreError> {
    let (folder, manifest) = local(source)?;
    let found = manifest.digest();
    if let Some(expected) = digest.filter(|expected| *expected != found) {
        return Err(StoreError::Digest { location: source.display().to_string(), found, expected });
    }
    let key = remote.path(MANIFEST)?;
    let there = match download::manifest(remote).await {
        // What is invalid may be replaced.
        Err(StoreError::Manifest { .. }) if replace => None,
        there => there?,
    };
    let same = there.as_ref().is_some_and(|there| there.digest() == found);
    if let Some(other) = there.as_ref().filter(|_| !same && !replace) {
        return Err(StoreError::Taken { location: remote.location.to_string(), found: other.digest() });
    }
    let listed: BTreeMap<String, ObjectMeta> = download::list(remote).await?.into_iter().collect();
    // Only what the former manifest names is deleted: other objects below the address belong to other models.
    let mut former: BTreeSet<String> =
        there.iter().flat_map(|there| &there.files).map(|file| file.path.clone()).collect();
    if !same {
        former.insert(SIGNATURE.to_owned());
    }
    if !same && replace {
        // From here on nobody takes what is there for the old model.
        delete(remote, &key).await?;
    }
    let mut files = manifest.files.clone();
    let signature = folder.join(SIGNATURE);
    if source.is_dir() && signature.is_file() {
        let of = Manifest::of_file(&signature).map_err(|why| StoreError::Source { path: signature, why })?;
        files.extend(of.files);
    }
    let sends = files.iter().map(|file| one(remote, &folder, file, listed.get(&file.path), stop));
    let sent: Vec<bool> = stream::iter(sends).buffer_unordered(parallel).try_collect().await?;
    if replace {
        let kept: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
        for (_, meta) in listed.iter().filter(|(name, _)| former.contains(*name) && !kept.contains(name.as_str())) {
            delete(remote, &meta.location).await?;
        }
    }
    if !same {
        let bytes =
            serde_json::to_vec(&manifest).map_err(std::io::Error::other).map_err(FileError::of("encoding", source))?;
        let put = remote.store.put(&key, bytes.into()).await;
        put.map_err(|error| StoreError::of("writing", &remote.shown(&key), &error))?;
    }
    let count = sent.iter().filter(|sent| **sent).count();
    let bytes = manifest.size_bytes();
    Ok(Pushed { digest: found, sent: count, there: sent.len() - count, bytes, artifact: None })
}

/// Returns the folder of the files, and their manifest.
pub(super) fn local(source: &Path) -> Result<(PathBuf, Manifest), StoreError> {
    let wrong = |why| StoreError::Source { path: source.to_owned(), why };
    if source.is_file() {
        let folder = source.parent().unwrap_or(Path::new("")).to_owned();
        return Ok((folder, Manifest::of_file(source).map_err(wrong)?));
    }
    let except = BTreeSet::from([SIGNATURE.to_owned()]);
    Ok((source.to_owned(), Manifest::of_dir_except(source, &except).map_err(wrong)?))
}

async fn delete(remote: &Remote, key: &Key) -> Result<(), StoreError> {
    match remote.store.delete(key).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(StoreError::of("deleting", &remote.shown(key), &error)),
    }
}

/// Sends a file, unless the store has it. Returns whether it was sent.
async fn one(
    remote: &Remote,
    folder: &Path,
    file: &Listed,
    there: Option<&ObjectMeta>,
    stop: Stop<'_>,
) -> Result<bool, StoreError> {
    let key = remote.path(&file.path)?;
    let shown = remote.shown(&key);
    if there.is_some_and(|there| there.size == file.size) && has(remote, &key, file.sha256).await? {
        return Ok(false);
    }
    let path = folder.join(&file.path);
    let input = File::open(&path).map_err(FileError::of("opening", &path))?;
    let mut source = Source { input, hasher: sha2::Sha256::new(), path: path.clone() };
    let attributes = attributes(remote, file.sha256);
    let failed = |error| StoreError::of("writing", &shown, &error);
    let moving = |found: Sha256| StoreError::Moving { path: path.clone(), found, expected: file.sha256 };
    if file.size <= PART {
        // One byte more than expected, to notice a file that grows.
        let bytes = source.take(file.size + 1)?;
        let found = source.finish();
        if found != file.sha256 {
            return Err(moving(found));
        }
        let options = PutOptions { attributes, ..PutOptions::default() };
        remote.store.put_opts(&key, bytes.into(), options).await.map_err(failed)?;
        return Ok(true);
    }
    let options = PutMultipartOptions { attributes, ..PutMultipartOptions::default() };
    let mut upload = remote.store.put_multipart_opts(&key, options).await.map_err(failed)?;
    let sent = match parts(&mut *upload, &mut source, file.size, &failed, stop).await {
        Ok(()) => match source.finish() {
            found if found == file.sha256 => Ok(()),
            found => Err(moving(found)),
        },
        Err(error) => Err(error),
    };
    if let Err(error) = sent {
        // Parts that nobody completes take space in the store.
        let _ = upload.abort().await;
        return Err(error);
    }
    upload.complete().await.map_err(failed)?;
    Ok(true)
}

/// Sends the parts of a file, two at a time.
async fn parts(
    upload: &mut dyn MultipartUpload,
    source: &mut Source,
    size: u64,
    failed: &impl Fn(object_store::Error) -> StoreError,
    stop: Stop<'_>,
) -> Result<(), StoreError> {
    let length = size.div_ceil(PARTS).max(PART);
    let mut before = None;
    loop {
        if stop() {
            return Err(StoreError::Interrupted);
        }
        let part = source.take(length)?;
        if part.is_empty() {
            break;
        }
        let logged = part.len();
        let now = upload.put_part(part.into());
        if let Some(before) = before.replace(now) {
            before.await.map_err(failed)?;
        }
        tracing::debug!(file = %source.path.display(), bytes = logged, "a part is sent");
    }
    match before {
        Some(last) => last.await.map_err(failed),
        None => Ok(()),
    }
}

/// Returns what a store keeps beside an object. Folders keep nothing.
fn attributes(remote: &Remote, sha256: Sha256) -> Attributes {
    if remote.is_local() {
        return Attributes::new();
    }
    Attributes::from_iter([(Attribute::Metadata(SHA256.into()), sha256.to_string())])
}

/// Whether a store has an object with these contents: by what it keeps beside it, or, in a folder, by reading it.
async fn has(remote: &Remote, key: &Key, sha256: Sha256) -> Result<bool, StoreError> {
    let shown = remote.shown(key);
    let failed = |error| StoreError::of("reading", &shown, &error);
    if !remote.is_local() {
        let options = GetOptions { head: true, ..GetOptions::default() };
        let found = remote.store.get_opts(key, options).await.map_err(failed)?;
        let kept = found.attributes.get(&Attribute::Metadata(SHA256.into()));
        return Ok(kept.is_some_and(|kept| kept.as_ref() == sha256.to_string()));
    }
    let mut pieces = remote.store.get(key).await.map_err(failed)?.into_stream();
    let mut hasher = sha2::Sha256::new();
    while let Some(piece) = pieces.next().await {
        hasher.update(&piece.map_err(failed)?);
    }
    Ok(Sha256::finish(hasher) == sha256)
}

/// A file that is hashed while it is read.
struct Source {
    input: File,
    hasher: sha2::Sha256,
    path: PathBuf,
}

impl Source {
    /// Reads at most `length` bytes, fewer only at the end.
    fn take(&mut self, length: u64) -> Result<Bytes, FileError> {
        let mut bytes = Vec::with_capacity(BUFFER.min(length as usize));
        let read = (&mut self.input).take(length).read_to_end(&mut bytes);
        read.map_err(FileError::of("reading", &self.path))?;
        self.hasher.update(&bytes);
        Ok(bytes.into())
    }

    fn finish(&mut self) -> Sha256 {
        Sha256::finish(std::mem::take(&mut self.hasher))
    }
}
