//! Formats of data files: JSON lines, JSON arrays, CSV, Parquet and text, plain or compressed with gzip or Zstandard. All become
//! rows of named values, one at a time. Reads files.

use std::{
    cell::Cell,
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek as _},
    ops::ControlFlow,
    path::Path,
};

use codex_configs::DataFormat;
use parquet::file::reader::{ChunkReader, FileReader as _, SerializedFileReader};
use serde::de::{Deserializer as _, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{DataError, input::Input, scratch::scratch_file};
use crate::{atomic_fs::FileError, tasks::RecordError};

/// The most bytes of a line or row. More is another format than was meant, and would have to be in memory as a whole.
const LONGEST: u64 = 64 << 20;

/// Takes a row, with its line or number from 1, and says whether to go on.
pub(super) type EachRow<'a> = dyn FnMut(usize, Map<String, Value>) -> Result<ControlFlow<()>, DataError> + 'a;

/// A file that is not of its format.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// A record is invalid.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A compressed file is damaged.
    #[error("{file}: the {method} file cannot be unpacked: check that it is complete")]
    Compressed {
        /// The file's name.
        file: String,
        /// How it is compressed.
        method: &'static str,
        /// What is wrong with it.
        #[source]
        source: std::io::Error,
    },
    /// A line or row is longer than any record.
    #[error("{file}:{line}: the record has more than {} MiB: check the format of the file, or split the record", LONGEST >> 20)]
    TooLong {
        /// The file's name.
        file: String,
        /// The line or row, from 1.
        line: usize,
    },
    /// A line of a table is invalid.
    #[error("{file}:{line}: {why}; write a header line and the same number of fields in every line")]
    Table {
        /// The file's name.
        file: String,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
    /// A Parquet file is invalid.
    #[error("{file}: the Parquet file cannot be read")]
    Parquet {
        /// The file's name.
        file: String,
        /// What is wrong with it.
        #[source]
        source: parquet::errors::ParquetError,
    },
}

/// A file that is being read.
struct Open<'a> {
    file: &'a str,
    reader: Box<dyn BufRead + 'a>,
    /// How it is compressed.
    method: Option<&'static str>,
    /// Bytes that the current line or row may still have.
    left: &'a Cell<u64>,
}

/// Reads the rows of a file until `each` breaks. A line of a text file is a row with the field `text`.
///
/// # Errors
/// The file cannot be read, is not of the format, or is not the one that was hashed; the errors of `each`.
pub(super) fn each_row(input: &Input, format: DataFormat, text: &str, each: &mut EachRow) -> Result<(), DataError> {
    let mut raw = input.reader()?;
    let left = Cell::new(LONGEST);
    let ended = Open::of(&input.label, &mut raw, &left).and_then(|open| open.rows(input, format, text, each));
    if let Some(error) = raw.failure() {
        return Err(error.into());
    }
    match ended? {
        ControlFlow::Continue(()) => raw.finish(),
        ControlFlow::Break(()) => Ok(()),
    }
}

impl<'a> Open<'a> {
    /// Unpacks a file if it is compressed.
    fn of(file: &'a str, raw: &'a mut dyn Read, left: &'a Cell<u64>) -> Result<Self, DataError> {
        let mut raw = BufReader::with_capacity(1 << 16, raw);
        let start = peek(&mut raw).map_err(FileError::of("reading", Path::new(file)))?.to_vec();
        let (reader, method): (Box<dyn Read + 'a>, _) = if start.starts_with(&[0x1f, 0x8b]) {
            // A file may consist of several members, as of `cat a.gz b.gz`.
            (Box::new(flate2::bufread::MultiGzDecoder::new(raw)), Some("gzip"))
        } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            let decoder = zstd::stream::read::Decoder::with_buffer(raw);
            (Box::new(decoder.map_err(FileError::of("reading", Path::new(file)))?), Some("Zstandard"))
        } else {
            (Box::new(raw), None)
        };
        let reader = Box::new(BufReader::with_capacity(1 << 16, Metered { reader, left }));
        Ok(Self { file, reader, method, left })
    }

    /// Returns the error of a read. `line` is the line or row.
    fn failed(&self, line: usize, source: io::Error) -> DataError {
        let file = self.file.to_owned();
        match self.method {
            _ if self.left.get() == 0 => FormatError::TooLong { file, line }.into(),
            Some(method) => FormatError::Compressed { file, method, source }.into(),
            None => FileError { action: "reading", path: file.into(), source }.into(),
        }
    }

    fn rows(
        mut self,
        input: &Input,
        format: DataFormat,
        text: &str,
        each: &mut EachRow,
    ) -> Result<ControlFlow<()>, DataError> {
        let file = self.file;
        let start = match peek(&mut self.reader) {
            Ok(start) => start.to_vec(),
            Err(source) => return Err(self.failed(1, source)),
        };
        let name = file.strip_suffix(".gz").or_else(|| file.strip_suffix(".zst")).unwrap_or(file);
        let ends = |ending: &str| name.to_ascii_lowercase().ends_with(ending);
        let begins =
            || start.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&start).trim_ascii_start().starts_with(b"[");
        match format {
            DataFormat::Parquet => self.parquet(input, each),
            DataFormat::Auto if start.starts_with(b"PAR1") => self.parquet(input, each),
            DataFormat::Csv => self.table(if ends(".tsv") { b'\t' } else { b',' }, each),
            DataFormat::Auto if ends(".csv") => self.table(b',', each),
            DataFormat::Auto if ends(".tsv") => self.table(b'\t', each),
            DataFormat::Text => self.text(text, each),
            DataFormat::Auto if ends(".txt") => self.text(text, each),
            DataFormat::Auto if ends(".json") && begins() => self.array(each),
            DataFormat::Auto | DataFormat::Jsonl => self.json(each),
        }
    }

    /// Reads lines without their ends. Blank lines and a UTF-8 byte order mark are skipped.
    fn lines(
        mut self,
        mut each: impl FnMut(usize, &str) -> Result<ControlFlow<()>, DataError>,
    ) -> Result<ControlFlow<()>, DataError> {
        let file = || self.file.to_owned();
        let mut bytes = Vec::new();
        for line in 1.. {
            bytes.clear();
            self.left.set(LONGEST);
            match self.reader.read_until(b'\n', &mut bytes) {
                Ok(0) => break,
                Ok(_) => {}
                Err(source) => return Err(self.failed(line, source)),
            }
            if line == 1 && [[0xff, 0xfe], [0xfe, 0xff]].iter().any(|mark| bytes.starts_with(mark)) {
                return Err(RecordError::Utf16 { file: file() }.into());
            }
            let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
            let text = text.strip_prefix("\u{feff}".as_bytes()).filter(|_| line == 1).unwrap_or(text);
            let text = std::str::from_utf8(text).map_err(|_| RecordError::Encoding { file: file(), line })?;
            if !text.trim().is_empty() && each(line, text)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn json(self, each: &mut EachRow) -> Result<ControlFlow<()>, DataError> {
        let file = self.file;
        self.lines(|line, text| {
            let row = codex_json::from_str(text).map_err(|source| RecordError::Malformed {
                file: file.to_owned(),
                line,
                // The parser got a single line, so its line number is always 1.
                why: source.to_string().replacen(" at line 1 column", " in column", 1),
                right: RIGHT.to_owned(),
            })?;
            each(line, row)
        })
    }

    fn text(self, field: &str, each: &mut EachRow) -> Result<ControlFlow<()>, DataError> {
        self.lines(|line, text| {
            let text = text.strip_suffix('\r').unwrap_or(text).to_owned();
            each(line, Map::from_iter([(field.to_owned(), Value::String(text))]))
        })
    }

    fn array(mut self, each: &mut EachRow) -> Result<ControlFlow<()>, DataError> {
        self.skip_mark();
        let mut elements =
            Elements { file: self.file, left: self.left, number: 0, each, ended: Ok(ControlFlow::Continue(())) };
        let mut json = serde_json::Deserializer::from_reader(&mut self.reader);
        let read = json.deserialize_seq(&mut elements).and_then(|()| json.end());
        if !matches!(elements.ended, Ok(ControlFlow::Continue(()))) {
            return elements.ended;
        }
        let number = elements.number;
        match read {
            Ok(()) => Ok(ControlFlow::Continue(())),
            Err(error) if error.is_io() => Err(self.failed(number + 1, error.into())),
            Err(source) => Err(RecordError::Malformed {
                file: self.file.to_owned(),
                line: source.line().max(1),
                why: source.to_string(),
                right: "an array of objects".to_owned(),
            }
            .into()),
        }
    }

    fn table(mut self, delimiter: u8, each: &mut EachRow) -> Result<ControlFlow<()>, DataError> {
        self.skip_mark();
        let Self { file, reader, method, left } = self;
        let failed = |number: usize, source: csv::Error| {
            let (line, told) = (source.position().map_or(1, csv::Position::line), source.to_string());
            let why = match source.into_kind() {
                csv::ErrorKind::Io(source) => {
                    return Open { file, reader: Box::new(io::empty()), method, left }.failed(number, source);
                }
                csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                    format!("the line has {len} fields, but the header has {expected_len} fields")
                }
                csv::ErrorKind::Utf8 { .. } => "not UTF-8".to_owned(),
                _ => told,
            };
            FormatError::Table { file: file.to_owned(), line, why }.into()
        };
        let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(reader);
        let header = reader.headers().map_err(|source| failed(1, source))?.clone();
        let mut record = csv::StringRecord::new();
        for number in 2.. {
            left.set(LONGEST);
            if !reader.read_record(&mut record).map_err(|source| failed(number, source))? {
                break;
            }
            let line = record.position().map_or(0, csv::Position::line) as usize;
            let values = record.iter().map(|value| Value::String(value.to_owned()));
            if each(line, header.iter().map(str::to_owned).zip(values).collect())?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Reads a Parquet file, which needs random access: the file itself, or a copy of it without a name.
    fn parquet(mut self, input: &Input, each: &mut EachRow) -> Result<ControlFlow<()>, DataError> {
        if let (Some(path), None) = (input.path(), self.method) {
            let file = File::open(path).map_err(FileError::of("reading", path))?;
            return parquet_rows(self.file, file, each);
        }
        let place = input.scratch();
        let mut copy = scratch_file(place)?;
        let mut block = vec![0; 1 << 18];
        loop {
            self.left.set(LONGEST);
            let count = match self.reader.read(&mut block) {
                Ok(0) => break,
                Ok(count) => count,
                Err(source) => return Err(self.failed(1, source)),
            };
            io::Write::write_all(&mut copy, &block[..count]).map_err(FileError::of("writing a copy to", place))?;
        }
        copy.rewind().map_err(FileError::of("reading a copy in", place))?;
        parquet_rows(self.file, copy, each)
    }

    /// Skips a UTF-8 byte order mark.
    fn skip_mark(&mut self) {
        if peek(&mut self.reader).is_ok_and(|start| start.starts_with("\u{feff}".as_bytes())) {
            self.reader.consume(3);
        }
    }
}

fn parquet_rows(
    file: &str,
    reader: impl ChunkReader + 'static,
    each: &mut EachRow,
) -> Result<ControlFlow<()>, DataError> {
    let failed = |source| FormatError::Parquet { file: file.to_owned(), source };
    let reader = SerializedFileReader::new(reader).map_err(failed)?;
    for (at, row) in reader.get_row_iter(None).map_err(failed)?.enumerate() {
        let row = match row.map_err(failed)?.to_json_value() {
            Value::Object(row) => row,
            other => Map::from_iter([("value".to_owned(), other)]),
        };
        if each(at + 1, row)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Returns the next bytes without taking them; none at the end of the file.
fn peek(reader: &mut impl BufRead) -> io::Result<&[u8]> {
    reader.fill_buf()
}

/// Reads while bytes are left for the current line or row.
struct Metered<'a> {
    reader: Box<dyn Read + 'a>,
    left: &'a Cell<u64>,
}

impl Read for Metered<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(into)?;
        match self.left.get().checked_sub(count as u64) {
            Some(left) if left > 0 => self.left.set(left),
            _ => {
                self.left.set(0);
                return Err(io::Error::other("the record is too long"));
            }
        }
        Ok(count)
    }
}

/// Hands the elements of an array on as they are read.
struct Elements<'a, 'b, 'c> {
    file: &'a str,
    left: &'a Cell<u64>,
    number: usize,
    each: &'b mut EachRow<'c>,
    ended: Result<ControlFlow<()>, DataError>,
}

impl<'de> Visitor<'de> for &mut Elements<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        formatter.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        while let Some(element) = elements.next_element::<Value>()? {
            self.number += 1;
            self.left.set(LONGEST);
            self.ended = match element {
                Value::Object(row) => (self.each)(self.number, row),
                _ => Err(RecordError::Malformed {
                    file: self.file.to_owned(),
                    line: self.number,
                    why: "not an object".to_owned(),
                    right: "an array of objects".to_owned(),
                }
                .into()),
            };
            if !matches!(self.ended, Ok(ControlFlow::Continue(()))) {
                return Err(serde::de::Error::custom("not read further"));
            }
        }
        Ok(())
    }
}

/// What a line must be, before the names of its fields matter.
const RIGHT: &str = r#"{"prompt", "response"} or {"messages": [{"role", "content"}]} or {"text"}"#;
