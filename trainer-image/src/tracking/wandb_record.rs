//! Records of a `.wandb` file: the messages of `wandb_internal.proto`, as far as they are used, in the log format of `LevelDB`. Pure.
//!
//! Sources: `wandb/proto/wandb_internal.proto` and `core/internal/transactionlog` of the client of W&B, which read and write version 0
//! of this format, and `doc/log_format.md` of `LevelDB`, which has CRC-32C in place of CRC-32.

use jiff::Timestamp;
use prost::Message;
use serde_json::Value;

/// What a file begins with: a name, the number 0xBEE1 and the version of the format.
const MAGIC: [u8; 7] = *b":W&B\xe1\xbe\x00";
/// Bytes of a block. No part of a record crosses the end of one.
pub(super) const BLOCK: usize = 32_768;
/// Bytes before the data of a part: checksum, length and type.
pub(super) const HEAD: usize = 7;
/// `FilesItem.FileType.WANDB`.
const WANDB: i32 = 1;

/// A record.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Record {
    #[prost(int64, tag = "1")]
    pub(super) num: i64,
    #[prost(oneof = "What", tags = "2, 3, 6, 17, 18, 21")]
    pub(super) what: Option<What>,
}

/// What a record says.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum What {
    /// Values of a step.
    #[prost(message, tag = "2")]
    History(History),
    /// The last values.
    #[prost(message, tag = "3")]
    Summary(Summary),
    /// Files to upload.
    #[prost(message, tag = "6")]
    Files(Files),
    /// The run begins.
    #[prost(message, tag = "17")]
    Run(Run),
    /// The run ended.
    #[prost(message, tag = "18")]
    Exit(Exit),
    /// The file begins.
    #[prost(message, tag = "21")]
    Header(Header),
}

/// The start of a file.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Header {
    #[prost(message, optional, tag = "1")]
    version: Option<Version>,
}

#[derive(Clone, PartialEq, Message)]
struct Version {
    #[prost(string, tag = "1")]
    producer: String,
}

impl Header {
    /// Returns the header of a program.
    pub(super) fn new(producer: &str) -> Self {
        Self { version: Some(Version { producer: producer.to_owned() }) }
    }
}

/// The start of a run.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Run {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(string, tag = "2")]
    pub(super) entity: String,
    #[prost(string, tag = "3")]
    pub(super) project: String,
    #[prost(message, optional, tag = "4")]
    pub(super) config: Option<Config>,
    #[prost(string, tag = "7")]
    pub(super) job_type: String,
    #[prost(string, tag = "8")]
    pub(super) display_name: String,
    #[prost(message, optional, tag = "17")]
    pub(super) start_time: Option<Time>,
}

/// A time.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Time {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

impl From<Timestamp> for Time {
    fn from(at: Timestamp) -> Self {
        Self { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
    }
}

/// Settings.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Config {
    #[prost(message, repeated, tag = "1")]
    pub(super) update: Vec<Item>,
}

/// The last values.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Summary {
    #[prost(message, repeated, tag = "1")]
    pub(super) update: Vec<Item>,
}

/// Values of a step.
#[derive(Clone, PartialEq, Message)]
pub(super) struct History {
    #[prost(message, repeated, tag = "1")]
    pub(super) item: Vec<Item>,
    #[prost(message, optional, tag = "2")]
    pub(super) step: Option<Step>,
}

/// The number of a step.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Step {
    #[prost(int64, tag = "1")]
    pub(super) num: i64,
}

impl History {
    /// Returns the values of a step.
    pub(super) fn new(item: Vec<Item>, step: u64) -> Self {
        Self { item, step: Some(Step { num: step.cast_signed() }) }
    }
}

/// A value under a key. The messages for settings, histories and summaries have the same fields.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Item {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(string, repeated, tag = "2")]
    pub(super) nested: Vec<String>,
    #[prost(string, tag = "16")]
    pub(super) json: String,
}

impl Item {
    /// Returns a value under a key.
    pub(super) fn top(key: &str, value: &Value) -> Self {
        Self { key: key.to_owned(), nested: Vec::new(), json: value.to_string() }
    }

    /// Returns a value under a path of one key, the form in which the client of W&B writes metrics.
    pub(super) fn nested(key: &str, value: &Value) -> Self {
        Self { key: String::new(), nested: vec![key.to_owned()], json: value.to_string() }
    }
}

/// Files to upload.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Files {
    #[prost(message, repeated, tag = "1")]
    files: Vec<File>,
}

#[derive(Clone, PartialEq, Message)]
struct File {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(int32, tag = "3")]
    kind: i32,
}

impl Files {
    /// Returns the record of a file below `files/`.
    pub(super) fn of(path: &str) -> Self {
        Self { files: vec![File { path: path.to_owned(), kind: WANDB }] }
    }
}

/// The end of a run.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Exit {
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    #[prost(int32, tag = "2")]
    pub(super) runtime: i32,
}

/// The bytes of a file, from its beginning on.
pub(super) struct Log {
    /// Bytes that were not taken yet.
    bytes: Vec<u8>,
    /// Bytes of the file so far.
    length: usize,
    /// The number of the last record.
    num: i64,
}

impl Log {
    /// Begins a file.
    pub(super) fn new() -> Self {
        Self { bytes: MAGIC.to_vec(), length: MAGIC.len(), num: 0 }
    }

    /// Returns the bytes that were not taken yet.
    pub(super) fn waiting(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes the bytes.
    pub(super) fn drain(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// Appends a record, in as many parts as blocks need.
    pub(super) fn push(&mut self, what: What) {
        self.num += 1;
        let data = Record { num: self.num, what: Some(what) }.encode_to_vec();
        let (mut rest, mut is_first) = (&data[..], true);
        loop {
            let left = BLOCK - self.length % BLOCK;
            if left < HEAD {
                self.append(&[0; HEAD][..left]);
                continue;
            }
            let (part, after) = rest.split_at(rest.len().min(left - HEAD));
            // Full, first, middle and last.
            let kind = match (is_first, after.is_empty()) {
                (true, true) => 1,
                (true, false) => 2,
                (false, false) => 3,
                (false, true) => 4_u8,
            };
            let mut checksum = crc32fast::Hasher::new();
            checksum.update(&[kind]);
            checksum.update(part);
            self.append(&checksum.finalize().to_le_bytes());
            self.append(&(part.len() as u16).to_le_bytes());
            self.append(&[kind]);
            self.append(part);
            (rest, is_first) = (after, false);
            if rest.is_empty() {
                return;
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.length += bytes.len();
    }
}
