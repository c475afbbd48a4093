//! Where documents come from. Reads files and uses the network.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use codex::{
    artifacts::environment::variable,
    atomic_fs::FileError,
    hub::{agent, is_loopback},
};

use super::{
    IngestError,
    git::{Remote, tracked},
};

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 5;
/// The most bytes that are unpacked of a zip file.
const MAX_UNPACKED: u64 = if cfg!(test) { 1 << 20 } else { 16 << 30 };
/// The most files of a zip file.
const MAX_ENTRIES: usize = 100_000;

/// A source of documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A file or a folder.
    Path(PathBuf),
    /// An address.
    Url(String),
    /// A commit of a repository of git.
    Git(Remote),
}

/// What is written, and how much is read for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds<'a> {
    /// The file that is being written.
    pub(super) out: &'a Path,
    /// The most bytes of a document.
    pub(super) document: u64,
    /// The most bytes of a commit of a repository.
    pub(super) repository: u64,
}

impl Bounds<'_> {
    /// Returns the directory of fetched repositories, which is kept until the file is written.
    pub(super) fn fetched(&self) -> PathBuf {
        self.out.with_added_extension("fetched")
    }
}

/// Parses a source.
///
/// # Errors
/// The allowed forms.
pub(super) fn source(text: &str) -> Result<Source, String> {
    if let Some(repository) = text.strip_prefix("git+") {
        return Remote::parse(repository).map(Source::Git);
    }
    match text.split_once("://") {
        None if text.is_empty() => Err("write a path, or an address that begins with https://".to_owned()),
        None => Ok(Source::Path(text.into())),
        Some((_, rest)) if rest.split('/').next().is_some_and(|host| host.contains('@')) => {
            Err("write the address without a user".to_owned())
        }
        Some(("https" | "http", rest)) if !rest.is_empty() => Ok(Source::Url(text.to_owned())),
        Some(_) => Err("write a path, or an address that begins with https://, http:// or git+".to_owned()),
    }
}

/// Passes on the name and the bytes of each document of a source, in the order of their names. Bytes are one more than the bound if a
/// document has more. What is being written is no document.
///
/// # Errors
/// A source cannot be read, or the action fails.
pub(super) fn each(
    source: &Source,
    bounds: Bounds,
    action: &mut impl FnMut(&str, Vec<u8>) -> Result<(), IngestError>,
) -> Result<(), IngestError> {
    let Bounds { out, document: limit, .. } = bounds;
    match source {
        Source::Git(remote) => remote.each(bounds, action),
        Source::Url(url) => action(plain(url), download(url, limit)?),
        Source::Path(path) if path.is_dir() => {
            let files = if path.join(".git").exists() { tracked(path)? } else { walk(path)? };
            let own = [out.to_owned(), out.with_added_extension("partial")].map(|path| fs::canonicalize(path).ok());
            let fetched = fs::canonicalize(bounds.fetched()).ok();
            for file in files {
                let found = fs::canonicalize(&file).ok();
                let is_fetched =
                    found.as_ref().zip(fetched.as_ref()).is_some_and(|(file, place)| file.starts_with(place));
                if is_fetched || own.contains(&found) {
                    continue;
                }
                let name = file.strip_prefix(path).unwrap_or(&file).to_string_lossy().into_owned();
                let bytes = start(File::open(&file), limit).map_err(FileError::of("reading", &file))?;
                action(&name, bytes)?;
            }
            Ok(())
        }
        Source::Path(path) => {
            let is_zip = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("zip"));
            if is_zip {
                return unzip(path, limit, action);
            }
            let bytes = start(File::open(path), limit).map_err(FileError::of("reading", path))?;
            action(&path.to_string_lossy(), bytes)
        }
    }
}

/// Reads the first bytes, one more than `limit`.
pub(super) fn start(reader: io::Result<impl Read>, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader?.take(limit + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Returns the files below a folder, without hidden ones and without links.
fn walk(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let entries: io::Result<Vec<_>> = fs::read_dir(folder).and_then(Iterator::collect);
    let mut entries = entries.map_err(FileError::of("listing", folder))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    let mut found = Vec::new();
    for entry in entries {
        let kind = entry.file_type().map_err(FileError::of("reading", folder))?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if kind.is_dir() {
            found.extend(walk(&entry.path())?);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Passes on the files of a zip file. Nothing is written under their names, and no more than `limit` bytes of each are unpacked.
fn unzip(
    path: &Path,
    limit: u64,
    action: &mut impl FnMut(&str, Vec<u8>) -> Result<(), IngestError>,
) -> Result<(), IngestError> {
    let wrong = |why: String| IngestError::Zip { path: path.to_owned(), why };
    let file = File::open(path).map_err(FileError::of("opening", path))?;
    let mut archive = zip::ZipArchive::new(io::BufReader::new(file)).map_err(|error| wrong(error.to_string()))?;
    if archive.len() > MAX_ENTRIES {
        return Err(wrong(format!("it has {} entries: split it into ones of at most {MAX_ENTRIES}", archive.len())));
    }
    let mut names: Vec<(String, usize)> = Vec::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(|error| wrong(error.to_string()))?;
        let hidden = entry.name().split('/').any(|part| part.starts_with('.') || part == "__MACOSX");
        if entry.is_file() && !hidden {
            names.push((entry.name().to_owned(), index));
        }
    }
    names.sort();
    let mut left = MAX_UNPACKED;
    for (name, index) in names {
        let read = archive.by_index(index).map_err(io::Error::other).and_then(|entry| start(Ok(entry), limit));
        let bytes = read.map_err(|error| wrong(format!("{name}: {error}")))?;
        let more = || wrong(format!("it has more than {MAX_UNPACKED} bytes unpacked: split it"));
        left = left.checked_sub(bytes.len() as u64).ok_or_else(more)?;
        action(&name, bytes)?;
    }
    Ok(())
}

/// Returns an address without its query, which may be a signature.
fn plain(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

/// Downloads a document.
fn download(url: &str, limit: u64) -> Result<Vec<u8>, IngestError> {
    let wrong = |url: &str, why: String| IngestError::Download { url: plain(url).to_owned(), why };
    // Only an address of this machine may lead to another one in clear text.
    let is_near = is_loopback(url);
    let mut url = url.to_owned();
    for _ in 0..=MAX_REDIRECTS {
        if !(url.starts_with("https://") || is_near && is_loopback(&url)) {
            return Err(wrong(&url, "it has no TLS: use https".to_owned()));
        }
        let certificates = variable("SSL_CERT_FILE").map(PathBuf::from);
        let agent = agent(&url, certificates).map_err(|error| wrong(&url, codex::error::chain(&error)))?;
        let answer = agent.get(&url).call().map_err(|error| wrong(&url, error.to_string()))?;
        match answer.status().as_u16() {
            200 => {
                let reader = answer.into_body().into_with_config().limit(limit + 2).reader();
                return start(Ok(reader), limit).map_err(|error| wrong(&url, error.to_string()));
            }
            301 | 302 | 303 | 307 | 308 => {
                let to = answer.headers().get("location").and_then(|to| to.to_str().ok());
                let base = url::Url::parse(&url).ok();
                let next = base.zip(to).and_then(|(base, to)| base.join(to).ok());
                let next = next.ok_or_else(|| wrong(&url, "it redirects to no address".to_owned()))?;
                url = next.to_string();
            }
            status => return Err(wrong(&url, format!("it answered with status {status}"))),
        }
    }
    Err(wrong(&url, "it redirects too often".to_owned()))
}
