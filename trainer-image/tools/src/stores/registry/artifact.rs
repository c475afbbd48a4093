//! An artefact as an object store that is only read: the files of its layers. Uses the network.

use std::{fmt, ops::Range, sync::Arc, time::SystemTime};

use async_trait::async_trait;
use codex_provenance::{
    Sha256,
    manifest::{File, Manifest},
};
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use http::{Extensions, Method, StatusCode, header};
use object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, path::Path,
};
use tokio::sync::OnceCell;

use super::{
    super::{Location, error::StoreError},
    Version,
    client::{Action, Asked, Client, Trouble},
    pack::{self, Contents, Packed},
};

/// An artefact of a registry.
#[derive(Debug)]
pub(in crate::stores) struct Artifact {
    pub(super) client: Arc<Client>,
    pub(super) location: Location,
    version: Version,
    found: OnceCell<Found>,
}

/// What is at an address.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// The digest of the artefact.
    pub(super) digest: Sha256,
    pub(super) contents: Contents,
}

impl fmt::Display for Artifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.location)
    }
}

impl Artifact {
    pub(in crate::stores) fn new(client: Client, location: Location, version: Version) -> Self {
        Self { client: Arc::new(client), location, version, found: OnceCell::new() }
    }

    /// Returns the tag or digest of the address.
    pub(super) fn version(&self) -> &Version {
        &self.version
    }

    /// Returns the digest of the artefact, once its manifest was read.
    pub(in crate::stores) fn digest(&self) -> Option<Sha256> {
        self.found.get().map(|found| found.digest)
    }

    /// Reads what is at the address, once.
    pub(super) async fn found(&self) -> std::result::Result<&Found, StoreError> {
        self.found.get_or_try_init(|| self.read()).await
    }

    async fn read(&self) -> std::result::Result<Found, StoreError> {
        let shown = || self.location.to_string();
        let wrong = |why: String| StoreError::Artifact { location: shown(), why };
        let bytes = self.client.manifest(&self.version.reference(), pack::MANIFEST).await;
        let bytes = bytes.map_err(Trouble::of("reading", shown()))?;
        let digest = Sha256::of(&bytes);
        if let Version::Digest(expected) = &self.version
            && *expected != digest
        {
            return Err(wrong(format!("the registry returns another one, sha256:{digest}")));
        }
        let contents = Packed::parse(&bytes).and_then(|packed| packed.contents()).map_err(wrong)?;
        Ok(Found { digest, contents })
    }

    /// Returns the manifest of the model.
    pub(in crate::stores) async fn manifest(&self) -> std::result::Result<Manifest, StoreError> {
        self.found().await.map(|found| found.contents.manifest.clone())
    }

    /// Returns a file by its object.
    async fn file(&self, path: &Path) -> Result<File> {
        let found = self.found().await.map_err(lift)?;
        let missing = || Error::NotFound { path: path.to_string(), source: "no layer has this path".into() };
        let prefix = &self.location.prefix;
        let parts = path.prefix_match(prefix).ok_or_else(missing)?;
        let name = parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/");
        let Contents { manifest, signature } = &found.contents;
        manifest.files.iter().chain(signature).find(|file| file.path == name).cloned().ok_or_else(missing)
    }

    fn meta(&self, file: &File) -> Result<ObjectMeta> {
        let location = Path::parse(format!("{}/{}", self.location.prefix, file.path))?;
        let tag = Some(format!("sha256:{}", file.sha256));
        Ok(ObjectMeta {
            location,
            last_modified: SystemTime::UNIX_EPOCH.into(),
            size: file.size,
            e_tag: tag,
            version: None,
        })
    }
}

/// Makes an error of an object store, which becomes the same sentence again.
fn lift(error: StoreError) -> Error {
    match error {
        StoreError::NotFound(path) => Error::NotFound { path, source: "it does not exist".into() },
        StoreError::Store { is_refused: true, why, location, .. } => {
            Error::PermissionDenied { path: location, source: why.into() }
        }
        error => Error::Generic { store: "registry", source: error.into() },
    }
}

fn only_read<T>() -> Result<T> {
    let operation = "writing".to_owned();
    Err(Error::NotImplemented { operation, implementer: "an artefact, which is pushed as a whole".to_owned() })
}

#[async_trait]
impl ObjectStore for Artifact {
    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        only_read()
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        only_read()
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let file = self.file(path).await?;
        let meta = self.meta(&file)?;
        let result = |payload, range| GetResult {
            payload: GetResultPayload::Stream(payload),
            meta: meta.clone(),
            range,
            attributes: Attributes::new(),
            extensions: Extensions::new(),
        };
        if options.head || file.size == 0 {
            return Ok(result(stream::empty().boxed(), 0..file.size));
        }
        let first = match options.range {
            Some(GetRange::Offset(first)) => first,
            None => 0,
            Some(_) => {
                let operation = "reading a range with an end".to_owned();
                return Err(Error::NotImplemented { operation, implementer: "an artefact".to_owned() });
            }
        };
        let shown = || Location { prefix: path.clone(), ..self.location.clone() }.to_string();
        let failed = |trouble| lift(Trouble::of("reading", shown())(trouble));
        let url = self.client.url(&format!("blobs/sha256:{}", file.sha256)).map_err(failed)?;
        let mut asked = Asked { once: true, ..Asked::default() };
        if first > 0 {
            asked = asked.header(header::RANGE, format!("bytes={first}-"));
        }
        let response = self.client.send(Action::Pull, Method::GET, &url, asked).await.map_err(failed)?;
        // Without the first byte in the answer, the layer begins anew.
        let range = response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
        let begin = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
        let begin = if response.status() == StatusCode::PARTIAL_CONTENT { begin.unwrap_or(0) } else { 0 };
        let pieces = response.into_body().bytes_stream();
        let pieces =
            pieces.map(|piece| piece.map_err(|error| Error::Generic { store: "registry", source: error.into() }));
        Ok(result(pieces.boxed(), Range { start: begin, end: file.size }))
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        paths.then(|_| async { only_read() }).boxed()
    }

    fn list(&self, _: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        // The manifest of the artefact is the list, and is read first.
        let Some(found) = self.found.get() else {
            let source = "the artefact was not read".into();
            return stream::iter([Err(Error::Generic { store: "registry", source })]).boxed();
        };
        let Contents { manifest, signature } = &found.contents;
        let listed: Vec<_> = manifest.files.iter().chain(signature).map(|file| self.meta(file)).collect();
        stream::iter(listed).boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Err(Error::NotImplemented { operation: "listing folders".to_owned(), implementer: "an artefact".to_owned() })
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        only_read()
    }
}
