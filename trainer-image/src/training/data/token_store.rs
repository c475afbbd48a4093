//! The tokens of an input on disk, read by position: neither the input nor its tokens are in memory as a whole. Does I/O.
//!
//! Two files have the tokens of all records, one after another, and an entry of 36 bytes for each record. With them lies a
//! description: the key of everything that the tokens depend on, and the digests of both files. Files without their description,
//! with another key or with other digests are not used.
//!
//! A token takes one, two or four bytes, as the vocabulary needs; its highest bit says whether it counts for the loss.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, Read, Write},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use codex_configs::{AugmentationKind, AugmentationSettings, DataFields, DataFormat, Format, Loss, SafetySettings};
use codex_provenance::{DataDigest, Sha256};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use super::{
    DataError,
    augmentation::Augmenter,
    encoder::{Encoded, Encoder},
    input::Input,
    languages::Languages,
    records::{Counts, Limits, Treatment, tokenize},
    scratch::scratch_file,
};
use crate::{
    atomic_fs::{self, FileError},
    signals::Stop,
    text::{Tokenizer, TokenizerError},
};

/// Version of the files and of what tokens depend on.
const VERSION: &str = "codex token cache 1";
/// Bytes of an entry: offset (8), tokens (4), tokens of the first sequence (4), number of the record in the input (4), hash of the
/// tokens (16).
const ENTRY: u64 = 36;
/// Bytes that are hashed at once.
const BLOCK: usize = 1 << 18;

/// Where token stores are kept.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caches {
    /// Directory of the stores; `None` keeps none.
    pub(crate) directory: Option<PathBuf>,
    /// Whether new stores are kept there. Otherwise they are temporary files.
    pub(crate) keep: bool,
}

impl Caches {
    /// Returns the caches of the run in `output`.
    pub(crate) fn of_run(output: &Path, keep: bool) -> Self {
        Self { directory: Some(output.join("cache")), keep }
    }

    /// Directory of temporary files.
    pub(super) fn scratch(&self) -> PathBuf {
        self.kept().map_or_else(std::env::temp_dir, Path::to_owned)
    }

    fn kept(&self) -> Option<&Path> {
        self.directory.as_deref().filter(|_| self.keep)
    }
}

/// Everything that the tokens of an input depend on.
#[derive(Serialize)]
struct Key<'a> {
    version: &'static str,
    program: &'static str,
    file: DataDigest,
    /// The label, because its ending tells some formats.
    label: &'a str,
    tokenizer: Sha256,
    context: usize,
    response: Format,
    format: DataFormat,
    fields: &'a DataFields,
    loss: Loss,
    languages: &'a [String],
    /// The file of safety rules, and the groups of known forms.
    #[serde(skip_serializing_if = "Option::is_none")]
    safety: Option<(Option<DataDigest>, &'a SafetySettings)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filter: Option<DataDigest>,
    /// Seed and number of a changed version, share of the changed words, and what is changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    augmented: Option<(u64, u32, f64, &'a [AugmentationKind])>,
    given: bool,
    preferences: bool,
}

/// Sums over the lengths of records. A record has a row less than tokens for each of its sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sums {
    pub(super) records: u64,
    /// Number of tokens.
    pub(super) tokens: u64,
    /// Tokens of the longest record.
    pub(super) most_tokens: u64,
    /// Number of rows.
    pub(super) rows: u64,
    /// Rows of the longest record.
    pub(super) longest: u64,
    /// Sum of the squares of the records' rows.
    pub(super) squares: u64,
}

impl Sums {
    pub(super) fn add(&mut self, entry: &Entry) {
        self.add_as(entry, entry.rows());
    }

    /// As [`add`](Self::add), for a record that can have up to this many rows.
    pub(super) fn add_as(&mut self, entry: &Entry, rows: u64) {
        let tokens = u64::from(entry.tokens);
        self.records += 1;
        self.tokens += tokens;
        self.most_tokens = self.most_tokens.max(tokens);
        self.rows += rows;
        self.longest = self.longest.max(rows);
        self.squares = self.squares.saturating_add(rows.saturating_mul(rows));
    }
}

/// The description of a store, which lies beside its files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    key: Sha256,
    /// Bytes of a token.
    width: u32,
    sums: Sums,
    /// Records of the input.
    seen: u64,
    /// Records that were left out because of their language.
    foreign: u64,
    /// Records that were left out because a safety rule blocks them.
    #[serde(default)]
    blocked: u64,
    /// Other records of which a safety rule redacted something.
    #[serde(default)]
    redacted: u64,
    /// Number of records that each safety rule hit.
    #[serde(default)]
    rules: BTreeMap<String, u64>,
    /// Records that the plugin of the run dropped.
    #[serde(default)]
    filtered: u64,
    tokens: Sha256,
    entries: Sha256,
}

/// The entry of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Number of tokens before the record.
    offset: u64,
    tokens: u32,
    /// Tokens of its first sequence. The others are those of its second one.
    first: u32,
    /// Number of the record in the input, from 0.
    pub(super) number: u32,
    /// Hash of the tokens, of what counts for the loss, and of where the second sequence begins.
    pub(super) hash: [u8; 16],
}

impl Entry {
    /// Rows of the record.
    pub(super) fn rows(&self) -> u64 {
        [self.first, self.tokens - self.first].map(|tokens| u64::from(tokens.saturating_sub(1))).iter().sum()
    }

    fn to_bytes(self) -> [u8; ENTRY as usize] {
        let mut bytes = [0; ENTRY as usize];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.tokens.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.first.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.number.to_le_bytes());
        bytes[20..].copy_from_slice(&self.hash);
        bytes
    }

    fn from_bytes(bytes: [u8; ENTRY as usize]) -> Self {
        let number = |range: std::ops::Range<usize>| {
            bytes[range].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
        };
        let mut hash = [0; 16];
        hash.copy_from_slice(&bytes[20..]);
        let tokens = number(8..12) as u32;
        // A file that changes while it is read has any number here.
        let first = (number(12..16) as u32).min(tokens);
        Self { offset: number(0..8), tokens, first, number: number(16..20) as u32, hash }
    }
}

/// The tokens of an input.
#[derive(Debug)]
pub(super) struct TokenStore {
    tokens: File,
    entries: File,
    width: usize,
    pub(super) sums: Sums,
    pub(super) counts: Counts,
    /// The path in errors.
    path: PathBuf,
}

impl TokenStore {
    /// Returns the tokens of an input, of the records that the filter keeps: those in `caches` if they are whole and of this input, or else new ones.
    ///
    /// # Errors
    /// When the input cannot be read, a record cannot be trained on, or a file operation fails, and
    /// [`DataError::Interrupted`] soon after `stop` returns true.
    pub(super) fn of(
        input: &Input,
        encoder: Encoder,
        treatment: Treatment,
        caches: &Caches,
        limits: Limits,
        stop: Stop,
    ) -> Result<Self, DataError> {
        let key = key(input, encoder, treatment)?;
        let own = input.file.name.as_str();
        // No data has a dot in its name.
        let version = treatment.augmenter.map(|augmenter| format!("{own}.{}", augmenter.variant));
        let name = version.as_deref().unwrap_or(own);
        if let Some(directory) = &caches.directory {
            match Self::open(directory, name, key, stop)? {
                Found::Whole(store) => return Ok(*store),
                Found::Unusable(why) => {
                    tracing::warn!(cache = %directory.display(), "the token cache of data {name} {why}: building it again");
                }
                Found::None => {}
            }
        }
        let vocabulary = encoder.tokenizer.vocabulary();
        let mut writer = StoreWriter::create(caches.kept().map(|directory| (directory, name)), vocabulary)?;
        let languages = Languages::of(encoder.data);
        let selected = (&languages, treatment);
        let counts =
            tokenize(input, encoder, selected, limits, stop, |record| writer.push(record.number, &record.encoded))?;
        tracing::debug!(data = name, records = counts.seen, held = counts.held, "tokenized");
        writer.finish(key, counts)
    }

    /// Opens a store, and checks its digests.
    fn open(directory: &Path, name: &str, key: Sha256, stop: Stop) -> Result<Found, DataError> {
        let [tokens, entries, description] = paths(directory, name);
        let unusable = |why: &str| Ok(Found::Unusable(why.to_owned()));
        let bytes = match fs::read(&description) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::None),
            Err(error) => return unusable(&format!("cannot be read ({error})")),
        };
        let Ok(described) = codex_json::from_slice::<Description>(&bytes) else {
            return unusable("has an invalid description");
        };
        if described.key != key {
            return unusable("is of another file, tokenizer, setting or program");
        }
        let (Ok(tokens), Ok(entries)) = (File::open(&tokens), File::open(&entries)) else {
            return unusable("is incomplete");
        };
        for (file, expected) in [(&tokens, described.tokens), (&entries, described.entries)] {
            match hash(file, stop) {
                Ok(Some(found)) if found == expected => {}
                Ok(None) => return Err(DataError::Interrupted),
                _ => return unusable("is damaged"),
            }
        }
        let store = Self {
            tokens,
            entries,
            width: described.width as usize,
            sums: described.sums,
            counts: Counts {
                seen: described.seen,
                foreign: described.foreign,
                blocked: described.blocked,
                redacted: described.redacted,
                rules: described.rules,
                filtered: described.filtered,
                held: 0,
            },
            path: directory.join(name),
        };
        Ok(Found::Whole(Box::new(store)))
    }

    /// Number of records.
    pub(super) fn len(&self) -> u64 {
        self.sums.records
    }

    /// Returns the entry of a record.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn entry(&self, record: u64) -> Result<Entry, DataError> {
        let mut bytes = [0; ENTRY as usize];
        self.entries.read_exact_at(&mut bytes, record * ENTRY).map_err(|source| self.failed(source))?;
        Ok(Entry::from_bytes(bytes))
    }

    /// Returns the entries of all records in their order.
    pub(super) fn entries(&self) -> impl Iterator<Item = Result<Entry, DataError>> {
        let mut reader = BufReader::with_capacity(1 << 16, At { file: &self.entries, offset: 0 });
        (0..self.len()).map(move |_| {
            let mut bytes = [0; ENTRY as usize];
            reader.read_exact(&mut bytes).map_err(|source| self.failed(source))?;
            Ok(Entry::from_bytes(bytes))
        })
    }

    /// Returns the tokens of a record.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(super) fn record(&self, entry: Entry) -> Result<Encoded, DataError> {
        let mut bytes = vec![0; entry.tokens as usize * self.width];
        let offset = entry.offset * self.width as u64;
        self.tokens.read_exact_at(&mut bytes, offset).map_err(|source| self.failed(source))?;
        let top = 1_u32 << (8 * self.width - 1);
        let tokens = bytes.chunks_exact(self.width);
        let tokens = tokens.map(|bytes| bytes.iter().rev().fold(0, |token, byte| token << 8 | u32::from(*byte)));
        let (ids, mask) = tokens.map(|token| (token & !top, token & top != 0)).unzip();
        Ok(Encoded { ids, mask, first: entry.first as usize })
    }

    fn failed(&self, source: io::Error) -> DataError {
        FileError { action: "reading the tokens in", path: self.path.clone(), source }.into()
    }
}

/// What is in the place of a store.
enum Found {
    None,
    /// Something else, and what is wrong with it.
    Unusable(String),
    Whole(Box<TokenStore>),
}

fn paths(directory: &Path, name: &str) -> [PathBuf; 3] {
    ["tokens", "entries", "json"].map(|ending| directory.join(format!("{name}.{ending}")))
}

/// Returns the digest of everything that the tokens depend on.
fn key(input: &Input, encoder: Encoder, treatment: Treatment) -> Result<Sha256, DataError> {
    let Encoder { tokenizer, context, format, data, given, preferences } = encoder;
    let of_tokenizer = digest(tokenizer).map_err(|source| DataError::Tokenizer { source })?;
    let key = Key {
        version: VERSION,
        program: env!("CARGO_PKG_VERSION"),
        file: input.file.sha256,
        label: &input.label,
        tokenizer: of_tokenizer,
        context,
        response: format,
        format: data.format,
        fields: &data.fields,
        loss: data.loss,
        languages: &data.languages,
        safety: treatment.safety.map(|safety| (safety.file.as_ref().map(|file| file.sha256), &safety.settings)),
        filter: treatment.filter.map(|(_, digest)| digest),
        augmented: treatment.augmenter.map(|Augmenter { settings, seed, variant }| {
            let AugmentationSettings { rate, kinds, .. } = settings;
            (seed, variant, *rate, kinds.as_slice())
        }),
        given,
        preferences,
    };
    let bytes = serde_json::to_vec(&key).map_err(io::Error::other);
    Ok(Sha256::of(bytes.map_err(FileError::of("encoding the key of", Path::new(&input.label)))?))
}

/// Returns the digest of a tokenizer: of its files, and of the ids that end a response.
fn digest(tokenizer: &Tokenizer) -> Result<Sha256, TokenizerError> {
    let mut hasher = sha2::Sha256::new();
    for (name, bytes) in tokenizer.files()? {
        hasher.update(Sha256::of(name).bytes());
        hasher.update(Sha256::of(bytes).bytes());
    }
    for id in tokenizer.ends() {
        hasher.update(id.to_le_bytes());
    }
    Ok(Sha256::finish(hasher))
}

/// Hashes a file from its beginning; `None` if `stop` returns true.
fn hash(file: &File, stop: Stop) -> io::Result<Option<Sha256>> {
    let (mut hasher, mut block) = (sha2::Sha256::new(), vec![0; BLOCK]);
    let mut reader = At { file, offset: 0 };
    for number in 1_u64.. {
        match reader.read(&mut block)? {
            0 => break,
            count => hasher.update(&block[..count]),
        }
        if number.is_multiple_of(64) && stop() {
            return Ok(None);
        }
    }
    Ok(Some(Sha256::finish(hasher)))
}

/// Reads a file by position, so that several readers can share it.
pub(super) struct At<'a> {
    pub(super) file: &'a File,
    pub(super) offset: u64,
}

impl Read for At<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(into, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// Writes a file and hashes it.
struct Hashed {
    file: BufWriter<File>,
    hasher: sha2::Sha256,
}

impl Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes)
    }

    fn finish(self) -> io::Result<(File, Sha256)> {
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok((file, Sha256::finish(self.hasher)))
    }
}

/// Writes a store. Files that are not finished are removed.
pub(super) struct StoreWriter {
    tokens: Hashed,
    entries: Hashed,
    width: usize,
    sums: Sums,
    offset: u64,
    partial: Partial,
}

/// Where the files of a store go; `None` for temporary files.
struct Partial(Option<(PathBuf, String)>);

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some((directory, name)) = &self.0 {
            for path in paths(directory, name) {
                drop(fs::remove_file(path.with_added_extension("partial")));
            }
        }
    }
}

impl StoreWriter {
    /// Creates a store of this name in a directory, or in temporary files.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(super) fn create(place: Option<(&Path, &str)>, vocabulary: usize) -> Result<Self, FileError> {
        let (tokens, entries) = match place {
            None => {
                let scratch = std::env::temp_dir();
                (scratch_file(&scratch)?, scratch_file(&scratch)?)
            }
            Some((directory, name)) => {
                atomic_fs::make_directory(directory)?;
                let [tokens, entries, _] = paths(directory, name);
                (create(&tokens)?, create(&entries)?)
            }
        };
        let hashed = |file| Hashed { file: BufWriter::with_capacity(1 << 16, file), hasher: sha2::Sha256::new() };
        Ok(Self {
            tokens: hashed(tokens),
            entries: hashed(entries),
            width: match vocabulary {
                0..=0x80 => 1,
                0x81..=0x8000 => 2,
                _ => 4,
            },
            sums: Sums::default(),
            offset: 0,
            partial: Partial(place.map(|(directory, name)| (directory.to_owned(), name.to_owned()))),
        })
    }

    /// Appends a record; `number` is its number in the input.
    ///
    /// # Errors
    /// When writing fails.
    pub(super) fn push(&mut self, number: u32, encoded: &Encoded) -> Result<(), DataError> {
        let top = 1_u32 << (8 * self.width - 1);
        let mut hasher = sha2::Sha256::new();
        let mut bytes = Vec::with_capacity(encoded.ids.len() * self.width);
        for (id, target) in encoded.ids.iter().zip(&encoded.mask) {
            let token = (id | if *target { top } else { 0 }).to_le_bytes();
            bytes.extend_from_slice(&token[..self.width]);
        }
        hasher.update((encoded.first as u64).to_le_bytes());
        hasher.update(&bytes);
        let whole = Sha256::finish(hasher);
        let mut hash = [0; 16];
        hash.copy_from_slice(&whole.bytes()[..16]);
        let (tokens, first) = (encoded.ids.len() as u32, encoded.first as u32);
        let entry = Entry { offset: self.offset, tokens, first, number, hash };
        self.sums.add(&entry);
        self.offset += encoded.ids.len() as u64;
        let written = self.tokens.write(&bytes).and_then(|()| self.entries.write(&entry.to_bytes()));
        Ok(written.map_err(FileError::of("writing the token cache in", &self.path()))?)
    }

    /// Completes the files and their description.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(super) fn finish(self, key: Sha256, counts: Counts) -> Result<TokenStore, DataError> {
        let path = self.path();
        let failed = || FileError::of("writing the token cache in", &path);
        let (tokens, tokens_digest) = self.tokens.finish().map_err(failed())?;
        let (entries, entries_digest) = self.entries.finish().map_err(failed())?;
        if let Some((directory, name)) = &self.partial.0 {
            let [tokens, entries, description] = paths(directory, name);
            for path in [&tokens, &entries] {
                fs::rename(path.with_added_extension("partial"), path).map_err(FileError::of("replacing", path))?;
            }
            // Without syncs: what a crash damages does not have its digest, and is built again.
            let described = Description {
                key,
                width: self.width as u32,
                sums: self.sums,
                seen: counts.seen,
                foreign: counts.foreign,
                blocked: counts.blocked,
                redacted: counts.redacted,
                rules: counts.rules.clone(),
                filtered: counts.filtered,
                tokens: tokens_digest,
                entries: entries_digest,
            };
            let bytes = serde_json::to_vec_pretty(&described).map_err(io::Error::other);
            let mut file = create(&description)?;
            file.write_all(&bytes.map_err(failed())?).map_err(failed())?;
            fs::rename(description.with_added_extension("partial"), &description)
                .map_err(FileError::of("replacing", &description))?;
        }
        Ok(TokenStore { tokens, entries, width: self.width, sums: self.sums, counts, path })
    }

    fn path(&self) -> PathBuf {
        self.partial.0.as_ref().map_or_else(std::env::temp_dir, |(directory, name)| directory.join(name))
    }
}

/// Creates the file that becomes `path`. An older attempt that still writes one of this name keeps its own.
fn create(path: &Path) -> Result<File, FileError> {
    let partial = path.with_added_extension("partial");
    drop(fs::remove_file(&partial));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&partial);
    file.map_err(FileError::of("creating", &partial))
}
