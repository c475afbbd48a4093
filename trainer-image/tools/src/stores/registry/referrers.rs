//! Bundles of Sigstore that refer to an artefact. Uses the network, writes files.
//!
//! A registry without the list of referrers, of version 1.1 of OCI's distribution specification, has a list under a tag made of the
//! digest in its place. Two pushes at once can lose an entry of it, as the specification says.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use codex::atomic_fs;
use codex_provenance::Sha256;
use http::{HeaderName, Method, header};

use super::{
    super::error::StoreError,
    Artifact,
    client::{Action, Asked, Client, MAX_MANIFEST, Trouble, whole},
    pack::{self, BUNDLE, Descriptor, INDEX, Index, Packed},
    upload::{self, MAX_BUNDLE},
};

/// The header of a registry that has a list of referrers.
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
/// The most bundles that are fetched.
const MOST: usize = 64;

/// Whether bytes are a bundle of Sigstore.
pub(super) fn is_bundle(bytes: &[u8]) -> bool {
    let wire: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    wire.get("mediaType").and_then(|text| text.as_str()) == Some(BUNDLE)
}

/// Pushes a bundle that refers to `subject`, unless it is there.
pub(super) async fn attach(client: &Client, subject: &Descriptor, bundle: Vec<u8>) -> Result<(), Trouble> {
    let (packed, config) = pack::attach(subject.clone(), &bundle);
    upload::bytes(client, &packed.config, Bytes::from_static(config)).await?;
    upload::bytes(client, &packed.layers[0], bundle.into()).await?;
    let entry = packed.entry();
    let headers = client.put_manifest(&entry.digest, pack::MANIFEST, packed.bytes().into()).await?;
    if headers.contains_key(SUBJECT) {
        return Ok(());
    }
    let tag = subject.digest.replace(':', "-");
    let mut index = listed(client, &tag).await?;
    if index.manifests.iter().any(|there| there.digest == entry.digest) {
        return Ok(());
    }
    index.manifests.push(entry);
    let bytes = serde_json::to_vec(&index).unwrap_or_default();
    client.put_manifest(&tag, INDEX, bytes.into()).await.map(|_| ())
}

/// Returns the list under a tag; an empty one if there is none.
async fn listed(client: &Client, tag: &str) -> Result<Index, Trouble> {
    match client.manifest(tag, INDEX).await {
        Ok(bytes) => parse(&bytes),
        Err(Trouble::NotFound) => Ok(Index::default()),
        Err(trouble) => Err(trouble),
    }
}

fn parse(bytes: &[u8]) -> Result<Index, Trouble> {
    codex_json::from_slice(bytes).map_err(|why| Trouble::Refused(format!("the list of referrers is invalid: {why}")))
}

/// Writes the bundles that refer to an artefact into a directory, each under its digest. Returns their files.
pub(in crate::stores) async fn fetch(artifact: &Artifact, directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |trouble| Trouble::of("reading", artifact.location.to_string())(trouble);
    let client = &*artifact.client;
    let digest = artifact.found().await?.digest;
    let url = client.url(&format!("referrers/sha256:{digest}")).map_err(failed)?;
    let asked = Asked::default().header(header::ACCEPT, INDEX);
    let index = match client.send(Action::Pull, Method::GET, &url, asked).await {
        Ok(response) => whole(response.into_body(), MAX_MANIFEST).await.and_then(|bytes| parse(&bytes)),
        Err(Trouble::NotFound) => listed(client, &format!("sha256-{digest}")).await,
        Err(trouble) => Err(trouble),
    };
    let index = index.map_err(failed)?;
    let mut files = Vec::new();
    let wanted = index.manifests.iter().filter(|entry| entry.artifact_type.as_deref() == Some(BUNDLE));
    for entry in wanted.take(MOST) {
        let bytes = bundle(client, entry).await.map_err(failed)?;
        let path = directory.join(format!("{}.sigstore.json", Sha256::of(&bytes).short()));
        atomic_fs::make_directory(directory)?;
        atomic_fs::write(&path, &bytes)?;
        files.push(path);
    }
    Ok(files)
}

async fn bundle(client: &Client, entry: &Descriptor) -> Result<Bytes, Trouble> {
    let other = |digest: &str| Trouble::Refused(format!("the registry returns other bytes than {digest}"));
    let bytes = client.manifest(&entry.digest, pack::MANIFEST).await?;
    if entry.sha256() != Some(Sha256::of(&bytes)) {
        return Err(other(&entry.digest));
    }
    let packed = Packed::parse(&bytes).map_err(Trouble::Refused)?;
    let [layer] = &packed.layers[..] else {
        return Err(Trouble::Refused(format!("{} has {} layers, not one bundle", entry.digest, packed.layers.len())));
    };
    let url = client.url(&format!("blobs/{}", layer.digest))?;
    let response = client.send(Action::Pull, Method::GET, &url, Asked::default()).await?;
    let bytes = whole(response.into_body(), MAX_BUNDLE).await?;
    if layer.sha256() == Some(Sha256::of(&bytes)) { Ok(bytes) } else { Err(other(&layer.digest)) }
}
