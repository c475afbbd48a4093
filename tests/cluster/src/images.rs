//! Images: the pause image of every sandbox, and archives that are loaded into containerd or pushed to a registry.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::layout::{Layout, cache};
use crate::privilege::root_command;
use crate::{Error, Result, command, host};

/// The image of every sandbox.
pub(crate) const PAUSE: &str = "codex-ml.dev/pause:1";
/// The containerd namespace of the kubelet's images.
const NAMESPACE: &str = "k8s.io";
const PAUSE_SOURCE: &str = include_str!("../tools/pause/pause.c");

/// The index of an OCI archive.
#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    digest: String,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

/// An image in an archive.
#[derive(Debug, PartialEq, Eq)]
struct Image {
    name: String,
    digest: String,
}

/// Loads the image of an OCI archive into the cluster's containerd; does nothing if it exists.
/// Returns the name that pods use. They may also name it [by digest](by_digest), as one that was pulled.
///
/// # Errors
/// If the archive does not exist, is invalid or names no image, or if containerd refuses it.
pub(crate) fn load(layout: &Layout, archive: &Path) -> Result<String> {
    let image = read(archive)?;
    if present(layout, &image)? {
        return Ok(image.name);
    }
    let mut import = ctr(layout);
    command::output(import.args(["images", "import"]).arg(archive))?;
    // The kubelet looks for a name without a registry in Docker's, so tag the image with that name as well.
    let names = [normal(&image.name), normal(&pinned(&image))];
    for name in names.iter().filter(|name| **name != image.name) {
        command::output(ctr(layout).args(["images", "tag", "--force", &image.name, name]))?;
    }
    // The kubelet sees an image only after the listener of containerd has processed it.
    let began = Instant::now();
    for name in names {
        while !present(layout, &Image { name: name.clone(), digest: image.digest.clone() })? {
            if began.elapsed() > Duration::from_secs(10) {
                return Err(Error::Timeout { what: format!("containerd does not list {name}"), seconds: 10 });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(image.name)
}

/// Returns the name by digest of the image in an OCI archive: `codex@sha256:…` for `codex:1`.
///
/// # Errors
/// If the archive does not exist, is invalid or names no image.
pub(crate) fn by_digest(archive: &Path) -> Result<String> {
    Ok(pinned(&read(archive)?))
}

fn pinned(image: &Image) -> String {
    let (folder, last) = image.name.rsplit_once('/').map_or(("", &*image.name), |(folder, last)| (folder, last));
    let untagged = last.split(':').next().unwrap_or_default();
    let slash = if folder.is_empty() { "" } else { "/" };
    format!("{folder}{slash}{untagged}@{}", image.digest)
}

/// Pushes the image of an OCI archive to a registry and returns the reference to pull it by, digest included.
///
/// # Errors
/// If the archive cannot be read or the registry refuses it.
pub(crate) fn push(archive: &Path, registry: &str) -> Result<String> {
    let image = read(archive)?;
    let name = normal(&image.name);
    let (_, repository) = name.split_once('/').unwrap_or(("", &name));
    let target = format!("{registry}/{repository}");
    let digests = std::env::temp_dir().join(format!("codex-push-{}", std::process::id()));
    let mut skopeo = Command::new("skopeo");
    // Registries at localhost or an IP address have no certificate.
    let host = registry.split(':').next().unwrap_or_default();
    let plain = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok();
    skopeo.args(["--insecure-policy", "copy", "--quiet", &format!("--dest-tls-verify={}", !plain), "--digestfile"]);
    skopeo.arg(&digests).arg(format!("oci-archive:{}", archive.display())).arg(format!("docker://{target}"));
    let pushed = command::output(&mut skopeo);
    let digest = fs::read_to_string(&digests).unwrap_or_default();
    let _ = fs::remove_file(&digests);
    pushed?;
    let (untagged, _) = target.rsplit_once(':').unwrap_or((&target, ""));
    Ok(format!("{untagged}@{}", digest.trim()))
}

/// Returns the archive that an argument names: a file, or an image in buildah's store, which is written to the cache first.
///
/// # Errors
/// If the argument is neither.
pub(crate) fn archive_of(argument: &str) -> Result<PathBuf> {
    let path = PathBuf::from(argument);
    if path.is_file() {
        return Ok(path);
    }
    let known = command::succeeds(Command::new("buildah").args([
        "--storage-driver",
        "vfs",
        "inspect",
        "--type=image",
        argument,
    ]));
    if !known {
        return Err(Error::Input {
            field: "image",
            value: argument.into(),
            expected:
                "the file of an OCI archive (`buildah push IMAGE oci-archive:FILE:NAME`) or an image of buildah's store"
                    .into(),
        });
    }
    let file = cache().join("images").join(format!("{}.oci", &hex::encode(Sha256::digest(argument))[..16]));
    let folder = cache().join("images");
    fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    let _ = fs::remove_file(&file);
    let target = format!("oci-archive:{}:{argument}", file.display());
    command::output(Command::new("buildah").args(["--storage-driver", "vfs", "push", "--quiet", argument, &target]))?;
    Ok(file)
}

/// Builds the pause image if the cache lacks it, and returns its archive.
///
/// # Errors
/// If there is no C compiler or a file cannot be written.
pub(crate) fn pause() -> Result<PathBuf> {
    let root = cache().join(format!("pause-{}", &hex::encode(Sha256::digest(PAUSE_SOURCE))[..12]));
    let archive = root.join("pause.oci");
    if archive.is_file() {
        return Ok(archive);
    }
    let mut gcc = host::gcc()?;
    let (files, blobs) = (root.join("files"), root.join("image/blobs/sha256"));
    for folder in [&files, &blobs] {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    let source = root.join("pause.c");
    fs::write(&source, PAUSE_SOURCE).map_err(Error::io("write", &source))?;
    command::output(gcc.args(["-Os", "-static", "-s", "-o"]).arg(files.join("pause")).arg(&source))?;
    let layer_file = root.join("layer.tar");
    tar(&layer_file, &files, &["pause"])?;
    let layer = blob(&blobs, &fs::read(&layer_file).map_err(Error::io("read", &layer_file))?)?;
    let architecture = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Entrypoint": ["/pause"], "User": "65535:65535" },
        "rootfs": { "type": "layers", "diff_ids": [layer.0] },
    });
    let config = blob(&blobs, config.to_string().as_bytes())?;
    let oci = "application/vnd.oci.image";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": format!("{oci}.manifest.v1+json"),
        "config": { "mediaType": format!("{oci}.config.v1+json"), "digest": config.0, "size": config.1 },
        "layers": [{ "mediaType": format!("{oci}.layer.v1.tar"), "digest": layer.0, "size": layer.1 }],
    });
    let manifest = blob(&blobs, manifest.to_string().as_bytes())?;
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": format!("{oci}.manifest.v1+json"),
            "digest": manifest.0,
            "size": manifest.1,
            "annotations": { "org.opencontainers.image.ref.name": PAUSE },
        }],
    });
    let image = root.join("image");
    for (name, text) in [("index.json", index.to_string()), ("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#.into())]
    {
        fs::write(image.join(name), text).map_err(Error::io("write", image.join(name)))?;
    }
    let fresh = root.join("new");
    tar(&fresh, &image, &["oci-layout", "index.json", "blobs"])?;
    fs::rename(&fresh, &archive).map_err(Error::io("create", &archive))?;
    Ok(archive)
}

fn ctr(layout: &Layout) -> Command {
    let mut command = root_command("ctr");
    command.arg("--address").arg(layout.containerd_socket()).args(["--namespace", NAMESPACE]);
    command
}

/// Returns whether containerd and its Kubernetes side both know this image.
fn present(layout: &Layout, image: &Image) -> Result<bool> {
    let filter = format!("name=={}", image.name);
    let listed = command::output(ctr(layout).args(["images", "list", &filter]))?;
    Ok(listed.lines().any(|line| line.contains(&image.digest) && line.contains("io.cri-containerd.image=managed")))
}

fn read(archive: &Path) -> Result<Image> {
    let unlike = || Error::Input {
        field: "image",
        value: archive.display().to_string(),
        expected: "an OCI archive with one named image (`buildah push IMAGE oci-archive:FILE:NAME`)".into(),
    };
    let text = command::output(Command::new("tar").arg("-xOf").arg(archive).arg("index.json")).map_err(|_| unlike())?;
    parse_index(&text).ok_or_else(unlike)
}

fn parse_index(text: &str) -> Option<Image> {
    let index: Index = serde_json::from_str(text).ok()?;
    let [entry] = index.manifests.as_slice() else { return None };
    let name = |key| entry.annotations.get(key).filter(|name| !name.is_empty());
    let name = name("io.containerd.image.name").or_else(|| name("org.opencontainers.image.ref.name"))?;
    name.contains(['/', ':']).then(|| Image { name: name.clone(), digest: entry.digest.clone() })
}

/// Returns the full name that the kubelet looks for: with a registry and a tag.
fn normal(name: &str) -> String {
    let first = name.split('/').next().unwrap_or_default();
    let registry = name.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let name = match (registry, name.contains('/')) {
        (true, _) => name.to_owned(),
        (false, true) => format!("docker.io/{name}"),
        (false, false) => format!("docker.io/library/{name}"),
    };
    let tagged = name.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if tagged { name } else { format!("{name}:latest") }
}

/// Writes a blob under its digest; returns digest and size.
fn blob(folder: &Path, bytes: &[u8]) -> Result<(String, usize)> {
    let digest = hex::encode(Sha256::digest(bytes));
    let path = folder.join(&digest);
    fs::write(&path, bytes).map_err(Error::io("write", path))?;
    Ok((format!("sha256:{digest}"), bytes.len()))
}

/// Writes an archive that depends only on the contents of the files.
fn tar(archive: &Path, folder: &Path, names: &[&str]) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--format=ustar", "-cf"]);
    command::output(tar.arg(archive).arg("-C").arg(folder).args(names)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_the_kubelet_does() {
        assert_eq!(normal("codex"), "docker.io/library/codex:latest");
        assert_eq!(normal("codex:dev"), "docker.io/library/codex:dev");
        assert_eq!(normal("team/codex:dev"), "docker.io/team/codex:dev");
        assert_eq!(normal("localhost/codex:dev"), "localhost/codex:dev");
        assert_eq!(normal("10.213.0.1:5000/codex"), "10.213.0.1:5000/codex:latest");
        assert_eq!(normal("codex@sha256:1"), "docker.io/library/codex@sha256:1");
        let pinned = |name: &str| pinned(&Image { name: name.to_owned(), digest: "sha256:1".to_owned() });
        assert_eq!(pinned("codex:dev"), "codex@sha256:1");
        assert_eq!(pinned("10.213.0.1:5000/codex"), "10.213.0.1:5000/codex@sha256:1");
    }

    #[test]
    fn an_archive_must_name_one_image() {
        let named =
            r#"{"manifests":[{"digest":"sha256:1","annotations":{"org.opencontainers.image.ref.name":"a:1"}}]}"#;
        assert_eq!(parse_index(named), Some(Image { name: "a:1".into(), digest: "sha256:1".into() }));
        assert_eq!(parse_index(r#"{"manifests":[{"digest":"sha256:1"}]}"#), None);
        assert_eq!(parse_index(r#"{"manifests":[]}"#), None);
    }

    #[test]
    fn what_is_no_archive_is_refused_by_name() {
        let error = read(Path::new("/etc/hostname")).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("/etc/hostname") && error.to_string().contains("oci-archive"));
    }
}
