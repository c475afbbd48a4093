//! Pushing a model to a registry: the layers that are missing, and the manifest last. Uses the network, reads files.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use codex::{
    atomic_fs::{self, FileError},
    signals::Stop,
};
use codex_provenance::{ModelDigest, Sha256, manifest::File as Listed, oms::SIGNATURE};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::{HeaderMap, HeaderName, Method, StatusCode, header};
use url::Url;

use super::{
    super::{
        Location, Pushed,
        download::wait,
        error::StoreError,
        upload::{PART, local},
    },
    Artifact, Version,
    client::{Action, Asked, Client, Trouble},
    pack::{self, Descriptor},
    referrers,
};

/// Attempts without progress.
const ATTEMPTS: u32 = 6;
/// The header with the least bytes of a part.
const LEAST: HeaderName = HeaderName::from_static("oci-chunk-min-length");
/// The most bytes of a part, whatever a registry asks for.
const MOST: u64 = 256 << 20;
/// The most bytes of a bundle.
pub(super) const MAX_BUNDLE: u64 = 4 << 20;

/// Pushes a directory as an artefact under the tag of its address. Layers that the repository has already are not sent again. The
/// manifest is written last. The signature inside, and the files `bundles`, then refer to it.
///
/// # Errors
/// The registry fails, holds another model under the tag, the digest is another one, or the process is asked to end.
pub(in crate::stores) async fn push(
    source: &Path,
    artifact: &Artifact,
    digest: Option<ModelDigest>,
    replace: bool,
    bundles: &[PathBuf],
    parallel: usize,
    stop: Stop<'_>,
) -> Result<Pushed, StoreError> {
    let shown = artifact.location.to_string();
    let Version::Tag(tag) = artifact.version() else {
        let why = "a push writes a tag: end the address with :TAG".to_owned();
        return Err(StoreError::Artifact { location: shown, why });
    };
    let (folder, manifest) = local(source)?;
    // Before anything is sent.
    let attached = bundles.iter().map(|path| bundle(path)).collect::<Result<Vec<_>, _>>()?;
    let found = manifest.digest();
    if let Some(expected) = digest.filter(|expected| *expected != found) {
        return Err(StoreError::Digest { location: source.display().to_string(), found, expected });
    }
    let there = match artifact.found().await {
        Err(StoreError::NotFound(_)) => None,
        // What is invalid may be replaced.
        Err(StoreError::Artifact { .. }) if replace => None,
        there => Some(there?),
    };
    if let Some(there) = there.filter(|there| there.contents.manifest.digest() != found && !replace) {
        return Err(StoreError::Taken { location: shown, found: there.contents.manifest.digest() });
    }
    let signature = folder.join(SIGNATURE);
    let signature = (source.is_dir() && signature.is_file()).then(|| small(&signature)).transpose()?;
    let listed = signature.as_ref().map(|bytes| Listed {
        path: SIGNATURE.to_owned(),
        size: bytes.len() as u64,
        sha256: Sha256::of(bytes),
    });
    let config = manifest.files.iter().find(|file| file.path == "config.json" && file.size <= MAX_BUNDLE);
    let config = config.map(|file| atomic_fs::read(&folder.join(&file.path))).transpose()?;
    let (packed, config) = pack::pack(&manifest, listed.as_ref(), config.as_deref());
    let mut seen = BTreeSet::new();
    let files = manifest.files.iter().chain(&listed).filter(|file| seen.insert(file.sha256));
    let sends = files.map(|file| Layer { artifact, file, path: folder.join(&file.path), stop }.send());
    let sent: Vec<bool> = stream::iter(sends).buffer_unordered(parallel).try_collect().await?;
    let client = &*artifact.client;
    bytes(client, &packed.config, Bytes::from(config)).await.map_err(Trouble::of("writing", shown.clone()))?;
    let whole = Bytes::from(packed.bytes());
    let subject = Descriptor::of(pack::MANIFEST, &whole);
    if there.is_none_or(|there| Some(there.digest) != subject.sha256()) {
        let put = client.put_manifest(tag, pack::MANIFEST, whole).await;
        put.map_err(Trouble::of("writing", shown.clone()))?;
    }
    for bundle in signature.into_iter().filter(|bytes| referrers::is_bundle(bytes)).chain(attached) {
        referrers::attach(client, &subject, bundle).await.map_err(Trouble::of("writing", shown.clone()))?;
    }
    let count = sent.iter().filter(|sent| **sent).count();
    Ok(Pushed {
        digest: found,
        sent: count,
        there: sent.len() - count,
        bytes: manifest.size_bytes(),
        artifact: subject.sha256(),
    })
}

/// Reads a bundle.
fn bundle(path: &Path) -> Result<Vec<u8>, StoreError> {
    let bytes = small(path)?;
    if referrers::is_bundle(&bytes) {
        return Ok(bytes);
    }
    let why = format!("its mediaType is not {:?}", pack::BUNDLE);
    Err(StoreError::Bundle { path: path.to_owned(), why })
}

fn small(path: &Path) -> Result<Vec<u8>, StoreError> {
    let size = fs::metadata(path).map_err(FileError::of("reading", path))?.len();
    if size > MAX_BUNDLE {
        return Err(StoreError::Bundle {
            path: path.to_owned(),
            why: format!("it has {size} bytes, more than {MAX_BUNDLE}"),
        });
    }
    Ok(atomic_fs::read(path)?)
}

/// Sends a small blob, unless the repository has it.
pub(super) async fn bytes(client: &Client, blob: &Descriptor, bytes: Bytes) -> Result<(), Trouble> {
    let mut pause = client.pause;
    for attempt in 1.. {
        if has(client, &blob.digest).await? {
            return Ok(());
        }
        let (url, _) = begin(client).await?;
        match end(client, url, &blob.digest, bytes.clone()).await {
            Err(Trouble::Transient(why)) if attempt < ATTEMPTS => {
                tracing::warn!(digest = blob.digest, why, "a small layer is sent again");
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            ended => return ended,
        }
    }
    Ok(())
}

/// Whether the repository has a blob.
async fn has(client: &Client, digest: &str) -> Result<bool, Trouble> {
    let url = client.url(&format!("blobs/{digest}"))?;
    // A registry may ask for another permission to write, which is then the one for all.
    match client.send(Action::Push, Method::HEAD, &url, Asked::default()).await {
        Ok(_) => Ok(true),
        Err(Trouble::NotFound) => Ok(false),
        Err(trouble) => Err(trouble),
    }
}

/// Begins an upload. Returns its address, and the headers of the answer.
async fn begin(client: &Client) -> Result<(Url, HeaderMap), Trouble> {
    let url = client.url("blobs/uploads/")?;
    let response = client.send(Action::Push, Method::POST, &url, Asked::default()).await?;
    Ok((Client::location(&url, response.headers())?, response.headers().clone()))
}

/// Ends an upload with its last bytes.
async fn end(client: &Client, mut url: Url, digest: &str, bytes: Bytes) -> Result<(), Trouble> {
    url.query_pairs_mut().append_pair("digest", digest);
    let asked = Asked { body: bytes, once: true, ..Asked::default() };
    let asked = asked.header(header::CONTENT_TYPE, "application/octet-stream");
    client.send(Action::Push, Method::PUT, &url, asked).await.map(|_| ())
}

/// A file that is sent.
struct Layer<'a> {
    artifact: &'a Artifact,
    file: &'a Listed,
    path: PathBuf,
    stop: Stop<'a>,
}

/// An upload.
struct Upload {
    url: Url,
    /// Bytes that the registry has.
    offset: u64,
    /// Bytes of a part.
    part: u64,
}

impl Layer<'_> {
    fn client(&self) -> &Client {
        &self.artifact.client
    }

    fn shown(&self) -> String {
        let path = format!("{}/{}", self.artifact.location.prefix, self.file.path);
        Location { prefix: path.into(), ..self.artifact.location.clone() }.to_string()
    }

    /// Sends the file, unless the repository has it. Returns whether it was sent.
    async fn send(self) -> Result<bool, StoreError> {
        let failed = |trouble| Trouble::of("writing", self.shown())(trouble);
        let digest = format!("sha256:{}", self.file.sha256);
        if has(self.client(), &digest).await.map_err(failed)? {
            return Ok(false);
        }
        let mut input = File::open(&self.path).map_err(FileError::of("opening", &self.path))?;
        let (mut upload, mut failures, mut pause) = (None, 0, self.client().pause);
        loop {
            if (self.stop)() {
                return Err(StoreError::Interrupted);
            }
            // The answer to the last part may have been lost.
            if upload.is_none() && failures > 0 && has(self.client(), &digest).await.map_err(failed)? {
                return Ok(true);
            }
            let before = upload.as_ref().map_or(0, |upload: &Upload| upload.offset);
            match self.step(&mut upload, &mut input, &digest).await {
                Ok(true) => return Ok(true),
                Ok(false) => {
                    // An upload that only began is no progress.
                    if upload.as_ref().is_some_and(|upload| upload.offset > before) {
                        (failures, pause) = (0, self.client().pause);
                    }
                }
                Err(Step::Store(error)) => return Err(error),
                Err(Step::Trouble(trouble)) => {
                    let why = match trouble {
                        Trouble::Transient(why) => why,
                        // The upload is gone, or its bytes are not those of the file.
                        Trouble::NotFound if upload.is_some() => {
                            "the registry does not know the upload any more".to_owned()
                        }
                        trouble @ Trouble::Wrong { .. } if upload.is_some() => {
                            self.check()?;
                            trouble.to_string()
                        }
                        trouble => return Err(failed(trouble)),
                    };
                    failures += 1;
                    if failures == ATTEMPTS {
                        return Err(StoreError::Cut { location: self.shown(), times: failures, why });
                    }
                    let had = upload.is_some();
                    let kept = match upload.take() {
                        Some(former) => self.resumed(former).await,
                        None => None,
                    };
                    let bytes = kept.as_ref().map_or(0, |upload| upload.offset);
                    if had && kept.is_none() {
                        tracing::warn!(layer = self.shown(), why, "the layer is sent again from its beginning");
                    } else {
                        tracing::warn!(layer = self.shown(), why, bytes, "the upload goes on after a pause");
                    }
                    if bytes > before {
                        failures = 0;
                    }
                    upload = kept;
                    wait(pause, self.stop).await?;
                    pause = (pause * 2).min(std::time::Duration::from_secs(60));
                }
            }
        }
    }

    /// Begins the upload, or sends a part of it. Returns whether it is complete.
    async fn step(&self, upload: &mut Option<Upload>, input: &mut File, digest: &str) -> Result<bool, Step> {
        let size = self.file.size;
        let Some(current) = upload else {
            let (url, headers) = begin(self.client()).await?;
            let least = headers.get(LEAST).and_then(|text| text.to_str().ok()?.parse().ok()).unwrap_or(0);
            *upload = Some(Upload { url, offset: 0, part: PART.max(least).min(MOST) });
            return Ok(false);
        };
        input.seek(SeekFrom::Start(current.offset)).map_err(FileError::of("reading", &self.path))?;
        let mut bytes = Vec::new();
        // One byte more than expected, to notice a file that grows.
        let limit = if current.offset + current.part >= size { size - current.offset + 1 } else { current.part };
        let read = input.take(limit).read_to_end(&mut bytes);
        read.map_err(FileError::of("reading", &self.path))?;
        let count = bytes.len() as u64;
        let is_last = current.offset + count == size;
        if current.offset + count > size || (!is_last && count < current.part) {
            self.check()?;
            return Err(Trouble::Transient("the file was read in part".to_owned()).into());
        }
        if is_last && (current.offset == 0 || count == 0) {
            end(self.client(), current.url.clone(), digest, bytes.into()).await?;
            return Ok(true);
        }
        let last = current.offset + count - 1;
        let asked = Asked { body: bytes.into(), once: true, ..Asked::default() };
        let asked = asked.header(header::CONTENT_TYPE, "application/octet-stream");
        let asked = asked.header(header::CONTENT_RANGE, format!("{}-{last}", current.offset));
        let response = self.client().send(Action::Push, Method::PATCH, &current.url, asked).await?;
        current.url = Client::location(&current.url, response.headers())?;
        current.offset = received(response.headers()).unwrap_or(last + 1);
        if current.offset > size {
            return Err(Trouble::Transient("the registry has more bytes than were sent".to_owned()).into());
        }
        tracing::debug!(layer = self.file.path, bytes = current.offset, of = size, "a part is sent");
        Ok(false)
    }

    /// Asks how much of an upload the registry has; `None` if it is to begin anew.
    async fn resumed(&self, former: Upload) -> Option<Upload> {
        let response = self.client().send(Action::Push, Method::GET, &former.url, Asked::default()).await.ok()?;
        if response.status() != StatusCode::NO_CONTENT {
            return None;
        }
        let url = Client::location(&former.url, response.headers()).unwrap_or(former.url);
        let offset = received(response.headers()).filter(|offset| *offset <= self.file.size)?;
        (offset > 0).then_some(Upload { url, offset, part: former.part })
    }

    /// Says whether the file is the one that was hashed.
    fn check(&self) -> Result<(), StoreError> {
        let found = atomic_fs::digest(&self.path).map_err(FileError::of("reading", &self.path))?;
        if found == self.file.sha256 {
            return Ok(());
        }
        Err(StoreError::Moving { path: self.path.clone(), found, expected: self.file.sha256 })
    }
}

/// Returns how many bytes of an upload a registry has.
fn received(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(header::RANGE)?.to_str().ok()?;
    let (_, last) = range.strip_prefix("bytes=").unwrap_or(range).split_once('-')?;
    // A registry says `0-0` for nothing and for one byte; one byte more is sent again at worst.
    match last.parse::<u64>().ok()? {
        0 => Some(0),
        last => last.checked_add(1),
    }
}

/// Why a step failed.
enum Step {
    Trouble(Trouble),
    Store(StoreError),
}

impl From<Trouble> for Step {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl From<StoreError> for Step {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<FileError> for Step {
    fn from(error: FileError) -> Self {
        Self::Store(error.into())
    }
}
