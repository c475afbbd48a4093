//! Repositories of git as sources: checkouts, and single commits of repositories elsewhere. Runs the program `git`, which reads files and
//! uses the network.
//!
//! Credentials come from git's own configuration, such as a credential helper or the keys of ssh. They are never part of an address, and
//! what git says is shown without them.

use std::{
    fmt, fs,
    io::{self, BufRead as _, BufReader, Read, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread::{self, JoinHandle},
    time::Duration,
};

use codex::{atomic_fs::FileError, hub::is_loopback};
use codex_provenance::Sha256;

use super::{
    IngestError,
    sources::{Bounds, start},
};

/// The most bytes of git's messages that are kept.
const MAX_MESSAGE: u64 = 64 << 10;
/// How often the size of a repository is looked at while it is fetched.
const LOOK: Duration = Duration::from_millis(50);
/// The allowed forms of a repository.
const FORMS: &str =
    "write git+https://HOST/REPOSITORY@COMMIT, with #FOLDER behind it for a part; git+ssh:// and git+file:// work, too";

/// A commit of a repository, or of a folder or file in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remote {
    scheme: String,
    url: String,
    revision: String,
    path: Option<String>,
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "git+{}@{}", self.url, self.revision)?;
        self.path.iter().try_for_each(|path| write!(f, "#{path}"))
    }
}

impl Remote {
    /// Parses what follows `git+` in a source.
    ///
    /// # Errors
    /// The allowed forms.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (address, path) = text.split_once('#').map_or((text, None), |(address, path)| (address, Some(path)));
        let (scheme, rest) = address.split_once("://").ok_or(FORMS)?;
        let (host, place) = rest.split_at(rest.find('/').ok_or(FORMS)?);
        let (place, revision) = place.rsplit_once('@').unwrap_or((place, "HEAD"));
        let user = host.rsplit_once('@').map(|(user, _)| user);
        let is_plain = |text: &str| !text.starts_with('-') && text.chars().all(|sign| sign.is_ascii_graphic());
        let server = host.rsplit_once('@').map_or(host, |(_, server)| server);
        let is_inside = |path: &str| path.split('/').all(|part| !["", ".", ".."].contains(&part));
        if !["https", "http", "ssh", "file"].contains(&scheme) || host.is_empty() != (scheme == "file") {
            return Err(FORMS.to_owned());
        }
        if user.is_some_and(|user| scheme != "ssh" || user.contains(':')) || place.contains('?') {
            return Err("write the address without credentials: git asks its credential helper for them".to_owned());
        }
        if !is_plain(host) || !is_plain(server) || place.len() < 2 || revision.is_empty() || !is_plain(revision) {
            return Err(FORMS.to_owned());
        }
        if path.is_some_and(|path| !is_inside(path)) {
            return Err("write the folder behind # without a slash at its ends and without dots, such as #docs/guide"
                .to_owned());
        }
        let url = format!("{scheme}://{host}{place}");
        if scheme == "http" && !is_loopback(&url) {
            return Err("the address has no TLS: write git+https://".to_owned());
        }
        Ok(Self { scheme: scheme.to_owned(), url, revision: revision.to_owned(), path: path.map(str::to_owned) })
    }

    /// Passes on the files of the commit, without links, in the order of their names. What is fetched is kept beside the output, so that
    /// a repetition does not fetch it again.
    ///
    /// # Errors
    /// The source names no commit, the repository cannot be fetched or is too large, or the action fails.
    pub(super) fn each(
        &self,
        bounds: Bounds,
        action: &mut impl FnMut(&str, Vec<u8>) -> Result<(), IngestError>,
    ) -> Result<(), IngestError> {
        if !is_commit(&self.revision) {
            return Err(self.unpinned());
        }
        let place = bounds.fetched().join(Sha256::of(format!("{}@{}", self.url, self.revision)).to_string());
        if !self.is_there(&place)? {
            self.fetch(&place, bounds.repository)?;
        }
        let files = self.files(&place)?;
        if files.is_empty() {
            let part = self.path.as_deref().unwrap_or("the repository");
            return Err(self.wrong(format!("{part} has no file in this commit: name another folder or commit")));
        }
        let mut git = self.git(Some(&place));
        git.args(["cat-file", "--batch"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = git.spawn().map_err(|error| self.cannot_run(&error))?;
        let read = self.read(&mut child, &files, bounds.document, action);
        // Its input is closed, so that it ends.
        let ended = child.wait();
        read?;
        ended.map(drop).map_err(|error| self.failed(error.to_string()))
    }

    /// Reads files from `git cat-file --batch`.
    fn read(
        &self,
        child: &mut Child,
        files: &[(String, String)],
        limit: u64,
        action: &mut impl FnMut(&str, Vec<u8>) -> Result<(), IngestError>,
    ) -> Result<(), IngestError> {
        let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(self.failed("git has no input or output".to_owned()));
        };
        let mut output = BufReader::new(output);
        for (name, object) in files {
            let mut one = || -> io::Result<Vec<u8>> {
                writeln!(input, "{object}")?;
                let mut head = String::new();
                output.read_line(&mut head)?;
                let size = head.trim_end().rsplit_once(' ').and_then(|(_, size)| size.parse::<u64>().ok());
                let size = size.ok_or_else(|| io::Error::other(format!("git says {:?}", head.trim_end())))?;
                let mut file = (&mut output).take(size);
                let bytes = start(Ok(&mut file), limit)?;
                io::copy(&mut file, &mut io::sink())?;
                output.read_exact(&mut [0])?;
                Ok(bytes)
            };
            let bytes = one().map_err(|error| self.failed(format!("{name}: {error}")))?;
            action(&format!("git+{}@{}#{name}", self.url, self.revision), bytes)?;
        }
        Ok(())
    }

    /// Returns the names and objects of the files of the commit, sorted by name. Links and other repositories are left out.
    fn files(&self, place: &Path) -> Result<Vec<(String, String)>, IngestError> {
        let mut git = self.git(Some(place));
        git.args(["ls-tree", "-r", "-z", "--full-tree", &self.revision, "--"]).args(&self.path);
        let listed = self.output(&mut git)?;
        let listed = String::from_utf8(listed).map_err(|_| self.wrong("a name is no UTF-8".to_owned()))?;
        let file = |entry: &str| {
            let (head, name) = entry.split_once('\t')?;
            let mut words = head.split(' ');
            let is_file = words.next()?.starts_with("100");
            is_file.then_some((name.to_owned(), words.nth(1)?.to_owned()))
        };
        let mut files: Vec<_> = listed.split_terminator('\0').filter_map(file).collect();
        files.sort();
        Ok(files)
    }

    /// Whether an earlier attempt fetched the commit. Objects arrive together or not at all.
    fn is_there(&self, place: &Path) -> Result<bool, IngestError> {
        if !place.exists() {
            return Ok(false);
        }
        let mut git = self.git(Some(place));
        git.args(["cat-file", "-e", &format!("{}^{{tree}}", self.revision)]);
        let status = git.stderr(Stdio::null()).status();
        Ok(status.map_err(|error| self.cannot_run(&error))?.success())
    }

    /// Fetches the commit without its history. Git compares its objects with their digests.
    fn fetch(&self, place: &Path, most: u64) -> Result<(), IngestError> {
        // What an attempt left that was cut is not used.
        if place.exists() {
            fs::remove_dir_all(place).map_err(FileError::of("removing", place))?;
        }
        fs::create_dir_all(place).map_err(FileError::of("creating", place))?;
        // Without a template, no program of this machine runs when something is fetched.
        self.output(self.git(None).args(["init", "--quiet", "--bare", "--template="]).arg(place))?;
        let mut git = self.git(Some(place));
        git.args(["fetch", "--quiet", "--depth=1", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules"]);
        git.args(["--no-auto-maintenance", "--", &self.url, &self.revision]);
        tracing::info!("fetching {self}");
        let child = git.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| self.cannot_run(&error))?;
        let told = child.stderr.take().map(listen);
        match within(&mut child, place, most).map_err(|error| self.failed(error.to_string()))? {
            Some(status) if status.success() => Ok(()),
            Some(_) => {
                let told = told.and_then(|told| told.join().ok()).unwrap_or_default();
                Err(self.failed(without_credentials(told.trim())))
            }
            None => {
                // Processes of git may still write there; the next attempt removes what they leave.
                drop(fs::remove_dir_all(place));
                Err(self.wrong(format!("the commit has more than {most} bytes: raise --max-repository, or ingest a part of it from a checkout")))
            }
        }
    }

    /// Returns why the source is refused, with the commit that its revision stands for now.
    fn unpinned(&self) -> IngestError {
        let revision = &self.revision;
        // A tag with a message is an object of its own; what it marks has a mark behind its name.
        let tag = format!("{revision}^{{}}");
        let listed = match self.output(self.git(None).args(["ls-remote", "--", &self.url, revision, &tag])) {
            Ok(listed) => String::from_utf8_lossy(&listed).into_owned(),
            Err(error) => return error,
        };
        let lines: Vec<(&str, &str)> = listed.lines().filter_map(|line| line.split_once('\t')).collect();
        let names = [format!("refs/tags/{tag}"), format!("refs/tags/{revision}"), format!("refs/heads/{revision}")];
        let of = |name: &str| lines.iter().find(|(_, found)| *found == name);
        let found = names.iter().find_map(|name| of(name)).or_else(|| of(revision));
        self.wrong(match found {
            Some((commit, _)) => format!("{revision} may become another commit: write @{commit}, which it is now"),
            None => format!("there is no branch or tag {revision}: write the commit, 40 hexadecimal digits"),
        })
    }

    /// Returns git, which asks nothing, uses the protocol of the address alone and reads no other repository.
    fn git(&self, place: Option<&Path>) -> Command {
        let mut git = Command::new("git");
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE"] {
            git.env_remove(name);
        }
        // Traces have the headers of requests.
        for name in ["GIT_TRACE", "GIT_TRACE_CURL", "GIT_TRACE_PACKET", "GIT_CURL_VERBOSE"] {
            git.env_remove(name);
        }
        git.envs([("GIT_TERMINAL_PROMPT", "0"), ("GIT_ALLOW_PROTOCOL", self.scheme.as_str()), ("LC_ALL", "C")]);
        git.envs([("GIT_HTTP_LOW_SPEED_LIMIT", "1000"), ("GIT_HTTP_LOW_SPEED_TIME", "60")]);
        if std::env::var_os("GIT_SSH_COMMAND").is_none() {
            git.env("GIT_SSH_COMMAND", "ssh -oBatchMode=yes -oConnectTimeout=30 -oServerAliveInterval=30");
        }
        if let Some(place) = place {
            git.arg("--git-dir").arg(place);
        }
        if is_loopback(&self.url) {
            git.args(["-c", "http.proxy="]);
        }
        git
    }

    /// Runs git to its end, and returns what it prints.
    fn output(&self, git: &mut Command) -> Result<Vec<u8>, IngestError> {
        let done = git.stdin(Stdio::null()).output().map_err(|error| self.cannot_run(&error))?;
        if done.status.success() {
            return Ok(done.stdout);
        }
        Err(self.failed(without_credentials(String::from_utf8_lossy(&done.stderr).trim())))
    }

    fn cannot_run(&self, error: &io::Error) -> IngestError {
        self.wrong(cannot_run(error))
    }

    fn wrong(&self, why: String) -> IngestError {
        IngestError::Commit { remote: self.to_string(), why }
    }

    fn failed(&self, why: String) -> IngestError {
        IngestError::Fetch { remote: self.to_string(), why }
    }
}

/// Returns why git does not run.
fn cannot_run(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no program git: install it".to_owned(),
        _ => format!("git cannot be run: {error}"),
    }
}

/// Whether a revision is a commit, which never becomes another one.
fn is_commit(revision: &str) -> bool {
    [40, 64].contains(&revision.len()) && revision.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Reads messages to their end, so that who writes them does not wait, and returns their beginning.
fn listen(mut messages: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut kept = Vec::new();
        let read = (&mut messages).take(MAX_MESSAGE).read_to_end(&mut kept);
        drop(read.and_then(|_| io::copy(&mut messages, &mut io::sink())));
        String::from_utf8_lossy(&kept).into_owned()
    })
}

/// Waits for a process, and ends it once a directory has more than `most` bytes; then there is no status.
fn within(child: &mut Child, directory: &Path, most: u64) -> io::Result<Option<ExitStatus>> {
    loop {
        let ended = child.try_wait()?;
        if size_of(directory) > most {
            if ended.is_none() {
                child.kill()?;
                child.wait()?;
            }
            return Ok(None);
        }
        if ended.is_some() {
            return Ok(ended);
        }
        thread::sleep(LOOK);
    }
}

/// Returns the bytes of the files below a directory. What vanishes meanwhile has none.
fn size_of(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(about) if about.is_dir() => size_of(&entry.path()),
        Ok(about) => about.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

/// Returns a text whose addresses have no user and no password: git's configuration may add them.
fn without_credentials(text: &str) -> String {
    let mut parts = text.split("://");
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end =
            part.find(|sign: char| sign == '/' || sign.is_whitespace() || "'\"".contains(sign)).unwrap_or(part.len());
        let (host, rest) = part.split_at(end);
        clean.push_str("://");
        clean.push_str(host.rsplit_once('@').map_or(host, |(_, host)| host));
        clean.push_str(rest);
    }
    clean
}

/// Returns the files of a checkout that git tracks and that are there, without links.
///
/// # Errors
/// Git does not list them.
pub(super) fn tracked(folder: &Path) -> Result<Vec<PathBuf>, IngestError> {
    let wrong = |why: String| IngestError::Git { path: folder.to_owned(), why };
    // The configuration of a checkout may name a program here, which git would run.
    let mut git = Command::new("git");
    let listed = git.args(["-c", "core.fsmonitor=false", "-C"]).arg(folder).args(["ls-files", "-z"]).output();
    let listed = listed.map_err(|error| wrong(cannot_run(&error)))?;
    if !listed.status.success() {
        return Err(wrong(String::from_utf8_lossy(&listed.stderr).trim().to_owned()));
    }
    let names = String::from_utf8(listed.stdout).map_err(|_| wrong("a name is no UTF-8".to_owned()))?;
    let base = fs::canonicalize(folder).map_err(FileError::of("reading", folder))?;
    // No part of a path is a link.
    let inside =
        |name: &&str| fs::canonicalize(folder.join(name)).is_ok_and(|path| path == base.join(name) && path.is_file());
    let mut paths: Vec<PathBuf> = names.split_terminator('\0').filter(inside).map(|name| folder.join(name)).collect();
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_named_by_address_commit_and_folder() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        for (text, url, revision, path) in [
            ("https://host/team/a.git@main", "https://host/team/a.git", "main", None),
            ("https://host:8443/a#docs/guide", "https://host:8443/a", "HEAD", Some("docs/guide")),
            ("ssh://git@host/a.git@feature/x#b.md", "ssh://git@host/a.git", "feature/x", Some("b.md")),
            ("file:///srv/a", "file:///srv/a", "HEAD", None),
            ("http://127.0.0.1:80/a", "http://127.0.0.1:80/a", "HEAD", None),
        ] {
            let remote = Remote::parse(text).unwrap();
            assert_eq!((remote.url.as_str(), remote.revision.as_str(), remote.path.as_deref()), (url, revision, path));
        }
        assert_eq!(
            Remote::parse(&format!("file:///a@{commit}#b")).unwrap().to_string(),
            format!("git+file:///a@{commit}#b")
        );
        for (text, told) in [
            ("ftp://host/a", "write git+https://HOST"),
            ("git@host:team/a.git", "write git+https://HOST"),
            ("https://host", "write git+https://HOST"),
            ("https:///a", "write git+https://HOST"),
            ("ssh://-oProxyCommand=x/a", "write git+https://HOST"),
            ("https://host/a@--upload-pack=x", "write git+https://HOST"),
            ("https://me@host/a", "without credentials"),
            ("https://me:word@host/a", "without credentials"),
            ("ssh://me:word@host/a", "without credentials"),
            ("https://host/a?token=word", "without credentials"),
            ("https://host/a#../b", "without dots"),
            ("https://host/a#b/", "without a slash at its ends"),
            ("http://host/a", "no TLS"),
        ] {
            let found = Remote::parse(text).unwrap_err();
            assert!(found.contains(told) && !found.contains("word"), "{text}: {found}");
        }
        assert!(
            is_commit(commit) && !is_commit("main") && !is_commit(&commit.to_uppercase()) && !is_commit(&commit[1..])
        );
    }

    #[test]
    fn messages_have_no_credentials() {
        for (text, clean) in [
            ("fatal: 'https://me:word@host/a': no", "fatal: 'https://host/a': no"),
            ("to http://word@one and ssh://two/b@c", "to http://one and ssh://two/b@c"),
            ("a@b", "a@b"),
            ("", ""),
        ] {
            assert_eq!(without_credentials(text), clean);
        }
        let missing = cannot_run(&io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(missing, "there is no program git: install it");
    }
}
