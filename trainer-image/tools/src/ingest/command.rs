//! The command `ingest`. Reads and writes files.

use std::{
    collections::BTreeSet,
    io::{BufWriter, Write as _},
    path::PathBuf,
};

use codex::{
    arguments::whole,
    atomic_fs::{self, FileError},
    error::CommandError,
    safety::{Direction, Rules, RulesError},
};
use codex_provenance::Sha256;
use codex_reports::exit;
use serde::Serialize;

use super::{
    document::{Chosen, NotText, decode, encoding},
    sources::{self, Bounds, Source, source},
};
use crate::size::{Size, size};

/// Write documents as training data: a line of JSON with text, source, encoding and sha256 for each.
///
/// A folder gives its files, but hidden ones; a checkout of git the files that git tracks; `git+https://HOST/REPOSITORY@COMMIT#FOLDER`
/// the files of that commit; a zip file its entries; another address the document there. Documents with the same text are written once.
/// Binary files are left out. The order is that of the arguments and, inside them, of the names, so that the same input gives the same bytes.
#[derive(Debug, clap::Args)]
pub struct Ingest {
    /// Files, folders, checkouts of git, zip files, or addresses that begin with https:// or, for a repository, git+https://,
    /// git+ssh:// or git+file://.
    #[arg(value_name = "SOURCE", required = true, value_parser = source)]
    sources: Vec<Source>,
    /// The file to write, whose name ends in .jsonl; it is replaced as a whole.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The encoding: auto, or a label such as utf-8, windows-1252 or `shift_jis`. auto takes UTF-8 where it is valid, else what the
    /// letters look like.
    #[arg(long, value_name = "ENCODING", default_value = "auto", value_parser = encoding)]
    encoding: Chosen,
    /// Only documents whose names end like this, such as .md. May be repeated.
    #[arg(long, value_name = "ENDING")]
    ending: Vec<String>,
    /// Safety rules, as those of a server: what they block is left out, what they redact is replaced. Without valid rules nothing is
    /// written.
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// The largest document; larger ones are left out.
    #[arg(long, value_name = "SIZE", default_value = "10M", value_parser = size)]
    max_document: Size,
    /// The most bytes that are fetched of a repository.
    #[arg(long, value_name = "SIZE", default_value = "2G", value_parser = size)]
    max_repository: Size,
    /// The fewest characters of a document; shorter ones are left out.
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = whole::<usize>(1..=1 << 30))]
    min_characters: usize,
}

/// Documents cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The safety rules cannot be used.
    #[error("--rules")]
    Rules(#[from] RulesError),
    /// The checkout cannot be listed.
    #[error("{path:?} is a checkout whose files git does not list: {why}")]
    Git {
        /// The folder.
        path: PathBuf,
        /// What git says.
        why: String,
    },
    /// The source names no commit with files, or git is missing.
    #[error("{remote}: {why}")]
    Commit {
        /// The repository, the revision and the folder.
        remote: String,
        /// What is wrong.
        why: String,
    },
    /// The repository cannot be fetched.
    #[error("{remote} cannot be fetched: {why}")]
    Fetch {
        /// The repository, the revision and the folder.
        remote: String,
        /// What git says.
        why: String,
    },
    /// The zip file cannot be read.
    #[error("{path:?} cannot be unpacked: {why}")]
    Zip {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The address gives no document.
    #[error("{url} cannot be downloaded: {why}")]
    Download {
        /// The address without its query.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
}

impl From<IngestError> for CommandError {
    fn from(error: IngestError) -> Self {
        match error {
            IngestError::File(error) => error.into(),
            IngestError::Download { .. } | IngestError::Fetch { .. } => Self::failed(error),
            error => Self::bad_input(error),
        }
    }
}

/// A record of training data.
#[derive(Debug, Serialize)]
struct Record<'a> {
    text: &'a str,
    source: &'a str,
    encoding: &'static str,
    /// Of the bytes before they were decoded.
    sha256: Sha256,
}

/// How many documents became what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    /// Written.
    pub(super) written: usize,
    /// Of these, with something redacted.
    pub(super) redacted: usize,
    /// Left out, because a rule blocks them.
    pub(super) blocked: usize,
    /// Left out, because their text was written already.
    pub(super) repeated: usize,
    /// Left out, because they are no text.
    pub(super) binary: usize,
    /// Left out, because their bytes are invalid in their encoding.
    pub(super) invalid: usize,
    /// Left out, because they are too large.
    pub(super) large: usize,
    /// Left out, because they are too short.
    pub(super) short: usize,
}

impl Ingest {
    /// Writes the file, and prints a line of JSON with the counts.
    ///
    /// # Errors
    /// Exit code 2: a source or the rules cannot be used. 1: a download or the file system fails. Nothing is written then.
    pub fn run(self) -> Result<i32, CommandError> {
        atomic_fs::check_output_file("--out", &self.out).map_err(CommandError::bad_input)?;
        let counts = self.ingest()?;
        let line = serde_json::to_string(&counts).map_err(CommandError::failed)?;
        atomic_fs::say(&line)?;
        Ok(exit::FINISHED)
    }

    pub(super) fn ingest(&self) -> Result<Counts, IngestError> {
        let rules = self.rules.as_ref().map(|path| {
            let read = std::fs::read(path);
            Rules::parse(&read.map_err(|source| RulesError::Unreadable { path: path.clone(), source })?)
        });
        let rules = rules.transpose()?;
        let bounds = Bounds { out: &self.out, document: self.max_document.0, repository: self.max_repository.0 };
        let (mut counts, mut seen, mut failed) = (Counts::default(), BTreeSet::new(), None);
        atomic_fs::make_parents(&self.out)?;
        atomic_fs::write_with(&self.out, |file| {
            let mut writer = BufWriter::new(file);
            let mut one = |name: &str, bytes: Vec<u8>| {
                let Some(line) = self.line(name, &bytes, rules.as_ref(), &mut counts, &mut seen) else { return Ok(()) };
                Ok(writer.write_all(line.as_bytes()).map_err(FileError::of("writing", &self.out))?)
            };
            let all = self.sources.iter().try_for_each(|source| sources::each(source, bounds, &mut one));
            if let Err(error) = all {
                failed = Some(error);
                return Err(std::io::Error::other("the sources failed"));
            }
            writer.flush()
        })
        .map_err(|error| failed.unwrap_or(error.into()))?;
        let fetched = bounds.fetched();
        if self.sources.iter().any(|source| matches!(source, Source::Git(_))) && fetched.exists() {
            std::fs::remove_dir_all(&fetched).map_err(FileError::of("removing", &fetched))?;
        }
        Ok(counts)
    }

    /// Returns the line of a document, unless it is left out.
    fn line(
        &self,
        name: &str,
        bytes: &[u8],
        rules: Option<&Rules>,
        counts: &mut Counts,
        seen: &mut BTreeSet<Sha256>,
    ) -> Option<String> {
        if !self.ending.is_empty() && !self.ending.iter().any(|ending| name.ends_with(ending.as_str())) {
            return None;
        }
        if bytes.len() as u64 > self.max_document.0 {
            counts.large += 1;
            return None;
        }
        let (decoded, encoding) = match decode(bytes, self.encoding) {
            Ok(decoded) => decoded,
            Err(NotText::Binary) => {
                counts.binary += 1;
                return None;
            }
            Err(NotText::Invalid(encoding)) => {
                tracing::warn!(document = name, encoding, "the document is invalid in its encoding and is left out");
                counts.invalid += 1;
                return None;
            }
        };
        let checked = rules.map(|rules| rules.check(&decoded, Direction::Prompt));
        let text = match &checked {
            Some(checked) => {
                let Some(clean) = &checked.text else {
                    counts.blocked += 1;
                    return None;
                };
                clean
            }
            None => &decoded,
        };
        if text.trim().chars().count() < self.min_characters {
            counts.short += 1;
            return None;
        }
        if !seen.insert(Sha256::of(text)) {
            counts.repeated += 1;
            return None;
        }
        counts.written += 1;
        counts.redacted += usize::from(*text != decoded);
        let record = Record { text, source: name, encoding, sha256: Sha256::of(bytes) };
        serde_json::to_string(&record).ok().map(|line| line + "\n")
    }
}
