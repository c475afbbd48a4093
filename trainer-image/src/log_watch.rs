//! `codex log-watch`: signatures of an identity in a transparency log that no bundle explains. Reads a log, over HTTP or from a folder,
//! and files; writes its state.
//!
//! The log is read as C2SP tlog-tiles serves it (Rekor v2), or entry by entry from Rekor v1. Every entry is read once, and the state keeps
//! what is needed to continue: the number of entries, the hashes over them, and the entries that are still unexplained. It is also written
//! while a tree is read, so that a run that is stopped loses little. What such a run read counts only once the hashes over it and
//! everything after it are those that the log signed.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use codex_provenance::{IdentityPattern, Sha256, files, text::Printable};
use codex_reports::exit;
use codex_signing::{
    keyless,
    log::{self, Frontier, Head, LogError, LogKeys, MAX_BUNDLE, MAX_CHECKPOINT, WIDTH},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use ureq::Agent;

use crate::{
    arguments::Format,
    artifacts::environment::variable,
    atomic_fs,
    error::{CommandError, chain},
    hub,
};

/// The exit code for a log that does not answer, or that is not believed.
const UNREAD: i32 = 3;
/// The version of the state.
const SCHEMA_VERSION: u32 = 1;
/// Maximum size of a state or of a file of bundles in bytes.
const MAX_FILE: usize = 256 << 20;
/// After how many entries progress is logged.
const PROGRESS: u64 = 100_000;
/// After how many answers of the log the state is written.
const WRITTEN_AFTER: u64 = 64;

/// Report signatures of an identity in a transparency log that no bundle explains.
///
/// Reads the log from where the state file ends, verifies that it is complete and only grew, and compares each entry whose certificate
/// names the identity with the given bundles. A run that is stopped continues where it was. Exit codes: 0 all are explained, 1 some are not, 2 bad input, 3 the log does not
/// answer or is not believed.
#[derive(Clone, Debug, clap::Args)]
pub struct LogWatch {
    /// The log: the address below which checkpoint and tile/ lie, such as `https://rekor.example.com/api/v2`; a folder with a copy
    /// of it; or the address of Rekor v1, which ends in /api/v1.
    #[arg(long, value_name = "URL")]
    log: String,
    /// The trusted root of the Sigstore instance, in JSON: it names the key of the log.
    #[arg(long, value_name = "FILE")]
    trusted_root: PathBuf,
    /// The identity, as certificates name it. Exact, or with * for a run of characters other than /.
    #[arg(long, value_name = "IDENTITY")]
    certificate_identity: String,
    /// The issuer of its tokens; exact.
    #[arg(long, value_name = "URL")]
    certificate_oidc_issuer: String,
    /// The bundles that explain entries: a folder of JSON files, each a bundle, a ConfigMap with bundles, or a list of ConfigMaps as
    /// kubectl get configmaps -o json prints it.
    #[arg(long, value_name = "DIR")]
    bundles: PathBuf,
    /// The state: where the next run continues. It is created if it does not exist. Without it, the log is read from its start.
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// How the result is printed.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

/// An entry of the log that names the identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Found {
    /// Its index in the log.
    index: u64,
    /// SHA-256 of the entry.
    entry: Sha256,
    /// Subject of its certificate.
    subject: String,
}

/// Where a run ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct State {
    schema_version: u32,
    /// Name of the log in its checkpoints.
    origin: String,
    /// The identity and issuer whose entries were looked for.
    identity: String,
    issuer: String,
    /// The trees that ended before the one that `origin`, `size` and `peaks` describe. Only logs of Rekor v1 have several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ended: Vec<Ended>,
    /// Number of entries that were read.
    size: u64,
    /// The roots of the complete trees over them.
    peaks: Vec<Sha256>,
    /// What a run that was stopped had read of the tree after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reading: Option<Reading>,
    /// Entries of the identity that no bundle has explained yet.
    unexplained: Vec<Found>,
}

/// A part of a tree that was read, and not yet compared with what the log signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Reading {
    origin: String,
    /// Number of entries from the start of the tree.
    size: u64,
    /// The roots of the complete trees over them.
    peaks: Vec<Sha256>,
    /// Entries of the identity among those that this part adds.
    found: Vec<Found>,
}

/// Writes the state while the log is read.
type Keep<'a> = dyn Fn(&State) -> Result<(), CommandError> + 'a;

/// A tree of a log that no longer grows, with all of its entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Ended {
    origin: String,
    size: u64,
    root: Sha256,
}

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    origin: String,
    /// Number of entries in the log.
    size: u64,
    /// Number of entries that this run read.
    read: u64,
    /// Number of entries of the identity that were read or still unexplained.
    entries: usize,
    unexplained: Vec<Found>,
}

/// Reasons why the log is not read to its end.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error("{url} does not answer: {why}")]
    Silent { url: String, why: String },
    #[error("{url} answered with status {status}")]
    Status { url: String, status: u16 },
    #[error("{path:?} cannot be read")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the checkpoint is not UTF-8")]
    Text,
    #[error("the state is of the log {}, but this one is {}: use another --state", Printable(.state), Printable(.found))]
    Origin { state: String, found: String },
}

impl From<WatchError> for CommandError {
    fn from(why: WatchError) -> Self {
        Self { exit: UNREAD, source: Box::new(why) }
    }
}

impl LogWatch {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let outcome = self.watch()?;
        match self.format {
            Format::Text => atomic_fs::say(&outcome.to_string())?,
            Format::Json => atomic_fs::say(&serde_json::to_string_pretty(&outcome).map_err(CommandError::failed)?)?,
        }
        Ok(if outcome.unexplained.is_empty() { exit::FINISHED } else { exit::FAILED })
    }

    /// Reads what is new in the log, and writes the state, several times if there is much.
    fn watch(&self) -> Result<Outcome, CommandError> {
        let pattern = IdentityPattern::new(&self.certificate_oidc_issuer, &self.certificate_identity);
        let pattern = pattern.map_err(CommandError::bad_input)?;
        let root = read("--trusted-root", &self.trusted_root, keyless::MAX_ROOT)?;
        let keys = LogKeys::of_root(&String::from_utf8_lossy(&root))
            .map_err(|why| CommandError::bad_input(format!("--trusted-root: {why}")))?;
        let explained = explained(&self.bundles)?;
        if let Some(path) = &self.state {
            atomic_fs::check_output_file("--state", path).map_err(CommandError::bad_input)?;
        }
        let mut state = self.state()?;
        let source = Source::of(&self.log)?;
        let before = state.total();
        let keep = |state: &State| self.keep(state);
        state.advance(&source, &keys, &pattern, &keep)?;
        let entries = state.unexplained.len();
        state.unexplained.retain(|found| !explained.contains(&found.entry));
        keep(&state)?;
        Ok(Outcome {
            size: state.total(),
            read: state.total() - before,
            origin: state.origin,
            entries,
            unexplained: state.unexplained,
        })
    }

    /// Writes the state, if there is a file for it.
    fn keep(&self, state: &State) -> Result<(), CommandError> {
        let Some(path) = &self.state else { return Ok(()) };
        atomic_fs::make_parents(path)?;
        atomic_fs::write_json(path, state)?;
        Ok(())
    }

    /// Reads the state, or returns a new one.
    fn state(&self) -> Result<State, CommandError> {
        let (identity, issuer) = (self.certificate_identity.clone(), self.certificate_oidc_issuer.clone());
        let Some(path) = self.state.as_ref().filter(|path| path.exists()) else {
            return Ok(State { schema_version: SCHEMA_VERSION, identity, issuer, ..State::default() });
        };
        let wrong = |why: String| {
            let path = path.display().to_string();
            CommandError::bad_input(format!("--state: {}: {why}", Printable(&path)))
        };
        let state: State = codex_json::from_slice(&read("--state", path, MAX_FILE)?)
            .map_err(|why| wrong(format!("it is not a state of codex log-watch ({why}); name another file")))?;
        if state.schema_version != SCHEMA_VERSION {
            return Err(wrong(format!("it has the version {}, and {SCHEMA_VERSION} is known", state.schema_version)));
        }
        if (&state.identity, &state.issuer) != (&identity, &issuer) {
            return Err(wrong(format!(
                "it is of the identity {} of {}: its entries were not compared with another one; use another file",
                Printable(&state.identity),
                Printable(&state.issuer)
            )));
        }
        let reading = state.reading.iter().map(|reading| (reading.size, &reading.peaks));
        for (size, peaks) in reading.chain([(state.size, &state.peaks)]) {
            Frontier::of(size, peaks.clone()).map_err(|why| wrong(why.to_string()))?;
        }
        Ok(state)
    }
}

impl State {
    /// Returns the number of entries that were read, of all trees.
    fn total(&self) -> u64 {
        self.ended_entries().saturating_add(self.reading.as_ref().map_or(self.size, |reading| reading.size))
    }

    /// Returns the number of entries of the trees that ended.
    fn ended_entries(&self) -> u64 {
        self.ended.iter().map(|ended| ended.size).fold(0, u64::saturating_add)
    }

    /// Reads every entry that the log has beyond this state. What was read becomes a part of the state only if the log is believed.
    fn advance(
        &mut self,
        source: &Source,
        keys: &LogKeys,
        pattern: &IdentityPattern,
        keep: &Keep<'_>,
    ) -> Result<(), CommandError> {
        if source.is_rekor_v1() {
            return self.read_trees(source, keys, pattern, keep);
        }
        let checkpoint = source.get("checkpoint", MAX_CHECKPOINT)?;
        let checkpoint = std::str::from_utf8(&checkpoint).map_err(|_| WatchError::Text)?;
        let head = keys.open(checkpoint).map_err(WatchError::from)?;
        self.read_tree(head, pattern, keep, &mut |index, size| {
            let first = index / WIDTH * WIDTH;
            let width = WIDTH.min(size - first);
            let bundle = source.bundle(first / WIDTH, width)?;
            let entries = log::entries(&bundle, first, width)?.into_iter().skip(skipped(index, first));
            Ok(entries.map(<[u8]>::to_vec).collect())
        })
    }

    /// Reads the trees of a log of Rekor v1. Each but the last has ended.
    fn read_trees(
        &mut self,
        source: &Source,
        keys: &LogKeys,
        pattern: &IdentityPattern,
        keep: &Keep<'_>,
    ) -> Result<(), CommandError> {
        let heads = self.heads(source, keys)?;
        let last = heads.len() - 1;
        for (index, head) in heads.into_iter().enumerate().skip(self.ended.len()) {
            let before = self.ended_entries();
            let Head { origin, size, root } = head.clone();
            self.read_tree(head, pattern, keep, &mut |index, _| {
                let index = before.saturating_add(index);
                let answer = source.get(&log::v1::entry_path(index), log::v1::MAX_ANSWER)?;
                Ok(vec![log::v1::entry(&answer, index)?])
            })?;
            if index < last {
                self.ended.push(Ended { origin, size, root });
                (self.origin, self.size, self.peaks) = (String::new(), 0, Vec::new());
                keep(self)?;
            }
        }
        Ok(())
    }

    /// Returns what a log of Rekor v1 signed of each of its trees. Those that had ended must be the same.
    fn heads(&self, source: &Source, keys: &LogKeys) -> Result<Vec<Head>, WatchError> {
        let checkpoints = log::v1::checkpoints(&source.get(log::v1::INFO, log::v1::MAX_ANSWER)?)?;
        let heads: Vec<Head> = checkpoints.iter().map(|text| keys.open(text)).collect::<Result<_, _>>()?;
        for (index, Ended { origin, size, root }) in self.ended.iter().enumerate() {
            let head = Head { origin: origin.clone(), size: *size, root: *root };
            if heads.get(index) != Some(&head) {
                return Err(LogError::Ended(head).into());
            }
        }
        Ok(heads)
    }

    /// Reads a tree to its end. `read` returns entries from an index on, at least one, of a tree of this size. If it fails, the state
    /// that is kept has the entries before.
    fn read_tree(
        &mut self,
        head: Head,
        pattern: &IdentityPattern,
        keep: &Keep<'_>,
        read: &mut dyn FnMut(u64, u64) -> Result<Vec<Vec<u8>>, WatchError>,
    ) -> Result<(), CommandError> {
        let known = self.reading.as_ref().map_or(&self.origin, |reading| &reading.origin);
        if !known.is_empty() && *known != head.origin {
            return Err(WatchError::Origin { state: known.clone(), found: head.origin }.into());
        }
        let before = self.ended_entries();
        let mut kept = self.reading.is_some();
        let Reading { size, peaks, mut found, .. } = self.reading.take().unwrap_or_else(|| Reading {
            origin: head.origin.clone(),
            size: self.size,
            peaks: self.peaks.clone(),
            found: Vec::new(),
        });
        let mut frontier = Frontier::of(size, peaks).map_err(WatchError::from)?;
        frontier.check_size(&head).map_err(WatchError::from)?;
        let mut pause = |state: &mut Self, frontier: &Frontier, found: &[Found]| {
            kept = true;
            let (origin, size, peaks) = (head.origin.clone(), frontier.size(), frontier.peaks().to_vec());
            state.reading = Some(Reading { origin, size, peaks, found: found.to_vec() });
            keep(state)
        };
        let mut answers = 0_u64;
        while frontier.size() < head.size {
            match read(frontier.size(), head.size) {
                Ok(entries) => found.extend(push(&entries, &mut frontier, before, pattern)),
                Err(why) if frontier.size() == size => return Err(why.into()),
                Err(why) => {
                    pause(self, &frontier, &found)?;
                    return Err(why.into());
                }
            }
            answers += 1;
            if answers.is_multiple_of(WRITTEN_AFTER) {
                pause(self, &frontier, &found)?;
            }
        }
        self.reading = None;
        if let Err(why) = frontier.check(&head) {
            // What was read is not what the log signed, so the next run reads it again.
            if kept {
                keep(self)?;
            }
            return Err(WatchError::from(why).into());
        }
        let Head { origin, size, .. } = head;
        (self.origin, self.size, self.peaks) = (origin, size, frontier.peaks().to_vec());
        self.unexplained.append(&mut found);
        Ok(())
    }
}

/// Adds entries to a tree, and returns those that name an identity that matches. Before the tree, the log has `before` entries.
fn push(entries: &[Vec<u8>], frontier: &mut Frontier, before: u64, pattern: &IdentityPattern) -> Vec<Found> {
    let mut found = Vec::new();
    for entry in entries {
        if let Some(identity) = log::identities(entry).into_iter().find(|identity| pattern.admits(identity)) {
            let index = before.saturating_add(frontier.size());
            found.push(Found { index, entry: Sha256::of(entry), subject: identity.subject });
        }
        frontier.push(entry);
        if frontier.size().is_multiple_of(PROGRESS) {
            tracing::info!(entries = frontier.size(), "reading the log");
        }
    }
    found
}

/// Returns the number of entries of a bundle that were read before.
fn skipped(index: u64, first: u64) -> usize {
    usize::try_from(index - first).unwrap_or(usize::MAX)
}

/// Where a log is read.
enum Source {
    Address(Box<Agent>, String),
    Folder(PathBuf),
}

impl Source {
    fn of(log: &str) -> Result<Self, CommandError> {
        if !log.contains("://") {
            let folder = PathBuf::from(log);
            if folder.is_dir() {
                return Ok(Self::Folder(folder));
            }
            let told = format!(
                "--log: {} is neither a folder nor an address such as https://rekor.example.com/api/v2",
                Printable(log)
            );
            return Err(CommandError::bad_input(told));
        }
        let agent = hub::agent(log, variable("SSL_CERT_FILE").map(PathBuf::from));
        let agent = agent.map_err(|why| CommandError::bad_input(format!("--log: {}", chain(&why))))?;
        Ok(Self::Address(Box::new(agent), log.trim_end_matches('/').to_owned()))
    }

    /// Whether this is the address of Rekor v1, which serves no tiles.
    fn is_rekor_v1(&self) -> bool {
        matches!(self, Self::Address(_, address) if address.ends_with("/api/v1"))
    }

    fn get(&self, path: &str, limit: usize) -> Result<Vec<u8>, WatchError> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(path);
                files::read_start(&path, limit).map_err(|source| WatchError::File { path, source })
            }
            Self::Address(agent, address) => {
                let url = format!("{address}/{path}");
                let silent = |why: ureq::Error| WatchError::Silent { url: url.clone(), why: why.to_string() };
                let mut response = agent.get(&url).call().map_err(silent)?;
                let status = response.status().as_u16();
                if status != 200 {
                    return Err(WatchError::Status { url, status });
                }
                response.body_mut().with_config().limit(limit as u64).read_to_vec().map_err(silent)
            }
        }
    }

    /// Returns a bundle of entries. A part of one may be gone as soon as all of it exists.
    fn bundle(&self, index: u64, width: u64) -> Result<Vec<u8>, WatchError> {
        let part = self.get(&log::bundle_path(index, width), MAX_BUNDLE);
        match part {
            Err(WatchError::Status { status: 404, .. } | WatchError::File { .. }) if width < WIDTH => {
                self.get(&log::bundle_path(index, WIDTH), MAX_BUNDLE)
            }
            read => read,
        }
    }
}

/// Returns the digests of the entries that the bundles in a folder hold.
///
/// # Errors
/// Exit code 2: the folder or a file in it cannot be read, or is not JSON. Files without the extension json are skipped.
fn explained(folder: &Path) -> Result<BTreeSet<Sha256>, CommandError> {
    let unreadable = |path: &Path, why: &dyn fmt::Display| {
        let path = path.display().to_string();
        CommandError::bad_input(format!("--bundles: {} cannot be read: {why}", Printable(&path)))
    };
    let listed = fs::read_dir(folder).map_err(|why| unreadable(folder, &why))?;
    let mut explained = BTreeSet::new();
    for entry in listed {
        let path = entry.map_err(|why| unreadable(folder, &why))?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let bytes = files::read_start(&path, MAX_FILE).map_err(|why| unreadable(&path, &why))?;
        let value: Value = codex_json::from_slice(&bytes).map_err(|why| unreadable(&path, &why))?;
        add(&value, &mut explained);
    }
    Ok(explained)
}

/// Adds the entries of a bundle, of the bundles in a ConfigMap, or of those in a list.
fn add(value: &Value, explained: &mut BTreeSet<Sha256>) {
    if let Some(logged) = log::logged(value) {
        explained.extend(logged.iter().map(Sha256::of));
        return;
    }
    for item in value["items"].as_array().into_iter().flatten() {
        add(item, explained);
    }
    for text in value["data"].as_object().into_iter().flat_map(serde_json::Map::values).filter_map(Value::as_str) {
        if let Some(logged) = codex_json::from_slice(text.as_bytes()).ok().and_then(|inner: Value| log::logged(&inner))
        {
            explained.extend(logged.iter().map(Sha256::of));
        }
    }
}

fn read(argument: &'static str, path: &Path, limit: usize) -> Result<Vec<u8>, CommandError> {
    files::read_start(path, limit).map_err(|why| {
        let path = path.display().to_string();
        CommandError::bad_input(format!("{argument}: {} cannot be read: {why}", Printable(&path)))
    })
}

/// The result for people. Text from the log is escaped.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, size, read, entries, unexplained } = self;
        for Found { index, entry, subject } in unexplained {
            writeln!(f, "unexplained {index} {entry}: signed by {}", Printable(subject))?;
        }
        let (origin, open) = (Printable(origin), unexplained.len());
        write!(f, "{origin}: {size} entries, {read} of them new; of {entries} by this identity, {open} unexplained")
    }
}

#[cfg(test)]
mod tests;
