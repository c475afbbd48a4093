//! A download: which files are taken, each of them with resumption and checks, and the directory at the end. Does I/O.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write as _},
    path::Path,
};

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use codex_provenance::oms::SIGNATURE;
use codex_reports::is_commit;

use super::{
    Repository,
    client::{Answer, Hub, Listing, Sibling},
    error::HubError,
    is_weights,
};
use crate::{
    atomic_fs::{self, FileError},
    model::{INDEX, WEIGHTS, shards},
    signals::Stop,
};

/// Files that describe a model: configuration, tokenizer and chat template.
pub(super) const DESCRIPTION: [&str; 11] = [
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];
/// Files that a base needs, whatever else it has.
const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];
/// Weights in forms that could run code.
const PICKLED: [&str; 5] = [".bin", ".pt", ".pth", ".ckpt", ".pkl"];
/// Bytes that are read at once.
const BUFFER: usize = 1 << 20;
/// Bytes between two lines of the log.
const LOGGED: u64 = 1 << 28;

/// Downloads the files of a listing into `directory`, which does not exist yet. Files are collected in `directory.partial`, from
/// which a later attempt goes on.
///
/// # Errors
/// The hub refuses the request, a file is not what the hub says, the volume is too small or cannot be written, or the process is
/// asked to end.
pub(super) fn snapshot(
    hub: &Hub,
    repository: &Repository,
    listing: &Listing,
    directory: &Path,
    stop: Stop,
) -> Result<(), HubError> {
    let at = |name: &str| listing.siblings.iter().find(|file| file.name == name);
    let mut wanted: Vec<&Sibling> = DESCRIPTION.iter().chain([&SIGNATURE]).filter_map(|name| at(name)).collect();
    if let Some(file) = REQUIRED.into_iter().find(|name| at(name).is_none()) {
        return Err(HubError::NoFile { repository: repository.clone(), file: file.to_owned() });
    }
    let partial = directory.with_added_extension("partial");
    atomic_fs::make_directory(&partial)?;
    let lock = File::open(&partial).map_err(FileError::of("opening", &partial))?;
    // Not every volume has locks. Each file is checked under its final name, so that two downloads end well without one, too.
    if let Err(fs::TryLockError::WouldBlock) = lock.try_lock() {
        return Err(HubError::Busy(partial));
    }
    let one =
        |file: &Sibling| Download { hub, repository, commit: &listing.sha, file, directory: &partial, stop }.run();
    match (at(WEIGHTS), at(INDEX)) {
        (Some(weights), _) => wanted.push(weights),
        (None, Some(index)) => {
            one(index)?;
            wanted.push(index);
            let names = shards(&atomic_fs::read(&partial.join(INDEX))?).map_err(HubError::Index)?;
            for name in names {
                if !is_weights(&name) {
                    return Err(HubError::Shard(name));
                }
                let missing = || HubError::NoFile { repository: repository.clone(), file: name.clone() };
                wanted.push(at(&name).ok_or_else(missing)?);
            }
        }
        (None, None) => {
            let pickled = |file: &&Sibling| PICKLED.iter().any(|ending| file.name.ends_with(ending));
            let files = listing.siblings.iter().filter(pickled).take(5).map(|file| file.name.clone()).collect();
            return Err(HubError::NoWeights { repository: repository.clone(), files });
        }
    }
    remove_others(&partial, &wanted)?;
    check_space(&partial, &wanted)?;
    wanted.iter().try_for_each(|file| one(file))?;
    atomic_fs::sync_directory(&partial)?;
    // An empty directory would be replaced.
    if fs::symlink_metadata(directory).is_ok() {
        return Err(HubError::Exists(directory.to_owned()));
    }
    fs::rename(&partial, directory).map_err(FileError::of("renaming to", directory))?;
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
    Ok(atomic_fs::sync_directory(parent.unwrap_or(Path::new(".")))?)
}

/// Removes files of another commit from a directory of an earlier attempt.
fn remove_others(partial: &Path, wanted: &[&Sibling]) -> Result<(), FileError> {
    let names: BTreeSet<&str> = wanted.iter().map(|file| file.name.as_str()).collect();
    for entry in fs::read_dir(partial).map_err(FileError::of("reading directory", partial))? {
        let entry = entry.map_err(FileError::of("reading directory", partial))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !names.contains(name.strip_suffix(".partial").unwrap_or(&name)) {
            fs::remove_file(entry.path()).map_err(FileError::of("removing", &entry.path()))?;
        }
    }
    Ok(())
}

/// Checks that the volume has space for the bytes that are missing, as far as sizes are known.
pub(super) fn check_space(partial: &Path, wanted: &[&Sibling]) -> Result<(), HubError> {
    let there = |name: &str| fs::metadata(partial.join(name)).map_or(0, |metadata| metadata.len());
    let missing = |file: &&Sibling| {
        let name = &file.name;
        size(file).unwrap_or(0).saturating_sub(there(name).max(there(&format!("{name}.partial"))))
    };
    let needed: u64 = wanted.iter().map(missing).fold(0, u64::saturating_add);
    // A volume that does not say how much is free is found out by writing.
    let Ok(volume) = rustix::fs::statvfs(partial) else { return Ok(()) };
    let free = volume.f_bavail.saturating_mul(volume.f_frsize);
    if needed > free {
        return Err(HubError::Space { path: partial.to_owned(), free, needed });
    }
    tracing::info!(bytes = needed, directory = %partial.display(), "downloading from the hub");
    Ok(())
}

fn size(file: &Sibling) -> Option<u64> {
    file.lfs.as_ref().and_then(|large| large.size).or(file.size)
}

/// What a file must be, as far as the hub says it.
#[derive(Clone, Debug, Default)]
struct Expected {
    size: Option<u64>,
    /// SHA-256, or the hash of Git.
    hash: Option<String>,
}

impl Expected {
    fn of(file: &Sibling) -> Self {
        let hash = match &file.lfs {
            Some(large) => Some(large.sha256.clone()),
            None => file.blob.clone(),
        };
        Self { size: size(file), hash: hash.filter(|hash| is_hash(hash)) }
    }

    /// Compares a complete file.
    fn check(&self, name: &str, path: &Path) -> Result<(), HubError> {
        let file = File::open(path).map_err(FileError::of("opening", path))?;
        let found = file.metadata().map_err(FileError::of("reading", path))?.len();
        if let Some(expected) = self.size.filter(|expected| *expected != found) {
            return Err(HubError::Size { file: name.to_owned(), found, expected });
        }
        let Some(expected) = &self.hash else { return Ok(()) };
        let found = hash(file, found, expected.len() == 40).map_err(FileError::of("reading", path))?;
        if found != *expected {
            return Err(HubError::Hash { file: name.to_owned(), found, expected: expected.clone() });
        }
        Ok(())
    }
}

fn is_hash(text: &str) -> bool {
    is_commit(text) || (text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
}

/// Returns the SHA-256 of a file, or its hash in Git: SHA-1 over a head with the size, and the bytes.
fn hash(mut file: impl Read, size: u64, git: bool) -> io::Result<String> {
    let mut context = Context::new(if git { &SHA1_FOR_LEGACY_USE_ONLY } else { &SHA256 });
    if git {
        context.update(format!("blob {size}\0").as_bytes());
    }
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(context.finish())),
            count => context.update(&buffer[..count]),
        }
    }
}

/// The download of one file.
struct Download<'a> {
    hub: &'a Hub,
    repository: &'a Repository,
    commit: &'a str,
    file: &'a Sibling,
    directory: &'a Path,
    stop: Stop<'a>,
}

impl Download<'_> {
    /// Downloads the file, unless it is there already.
    fn run(&self) -> Result<(), HubError> {
        let name = &self.file.name;
        let path = self.directory.join(name);
        if path.exists() {
            match Expected::of(self.file).check(name, &path) {
                Err(HubError::Size { .. } | HubError::Hash { .. }) => {
                    fs::remove_file(&path).map_err(FileError::of("removing", &path))?;
                }
                checked => return checked,
            }
        }
        let partial = path.with_added_extension("partial");
        let there = || fs::metadata(&partial).map_or(0, |metadata| metadata.len());
        self.hub.retry(self.stop, there, || self.attempt(&partial))?;
        Ok(fs::rename(&partial, &path).map_err(FileError::of("renaming to", &path))?)
    }

    /// Asks for the bytes that are missing, appends them, and checks the whole. A file that is wrong is removed.
    fn attempt(&self, partial: &Path) -> Result<(), HubError> {
        let name = &self.file.name;
        let mut file =
            OpenOptions::new().create(true).append(true).open(partial).map_err(FileError::of("creating", partial))?;
        let metadata = file.metadata().map_err(FileError::of("reading", partial))?;
        let mut first = metadata.len();
        let answer = self.hub.open(self.repository, self.commit, name, first)?;
        let expected = self.expected(&answer)?;
        let resumed = answer.status == 206 && range_start(&answer) == Some(first);
        let complete = answer.status == 416 && expected.size == Some(first);
        if first > 0 && !resumed && !complete {
            file.set_len(0).map_err(FileError::of("truncating", partial))?;
            first = 0;
            if answer.status != 200 {
                let source = io::Error::other("the server does not go on where the file ends");
                return Err(HubError::Cut { url: answer.url, source });
            }
        }
        if answer.status != 416 {
            self.receive(answer, &mut file, partial, first, expected.size)?;
        }
        file.sync_all().map_err(FileError::of("writing", partial))?;
        expected.check(name, partial).inspect_err(|_| drop(fs::remove_file(partial)))
    }

    /// Returns what the file must be: what the list of files says, else what the answer says.
    fn expected(&self, answer: &Answer) -> Result<Expected, HubError> {
        if let Some(found) = answer.facts.commit.as_ref().filter(|commit| *commit != self.commit) {
            let (repository, expected) = (self.repository.clone(), self.commit.to_owned());
            return Err(HubError::Commit { repository, found: found.clone(), expected });
        }
        let listed = Expected::of(self.file);
        // An answer to a range has the length of the range.
        let size = answer.facts.size.filter(|_| answer.status == 200).or_else(|| range_total(answer));
        let tag = answer.facts.tag.clone().filter(|tag| is_hash(tag));
        Ok(Expected { size: listed.size.or(size), hash: listed.hash.or(tag) })
    }

    fn receive(
        &self,
        answer: Answer,
        file: &mut File,
        path: &Path,
        first: u64,
        size: Option<u64>,
    ) -> Result<(), HubError> {
        let Answer { body, url, .. } = answer;
        let mut reader = body.into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; BUFFER];
        let mut there = first;
        loop {
            if (self.stop)() {
                return Err(HubError::Interrupted);
            }
            let count = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(HubError::Cut { url, source }),
            };
            file.write_all(&buffer[..count]).map_err(FileError::of("writing", path))?;
            let before = there / LOGGED;
            there += count as u64;
            if there / LOGGED > before {
                tracing::info!(file = self.file.name, bytes = there, of = size, "downloading");
            }
            if let Some(expected) = size.filter(|size| there > *size) {
                drop(fs::remove_file(path));
                return Err(HubError::Size { file: self.file.name.clone(), found: there, expected });
            }
        }
        match size {
            // A body without a length ends like this when it is cut.
            Some(size) if there < size => {
                let source = io::Error::new(io::ErrorKind::UnexpectedEof, format!("{there} of {size} bytes arrived"));
                Err(HubError::Cut { url, source })
            }
            _ => Ok(()),
        }
    }
}

fn content_range(answer: &Answer) -> Option<&str> {
    answer.headers.get("content-range")?.to_str().ok()
}

/// Returns the first byte of an answer to a range.
fn range_start(answer: &Answer) -> Option<u64> {
    content_range(answer)?.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// Returns the size of the whole file from an answer to a range.
fn range_total(answer: &Answer) -> Option<u64> {
    content_range(answer)?.rsplit('/').next()?.parse().ok()
}
