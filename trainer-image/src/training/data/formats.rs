//! Formats of data files: JSON lines, JSON arrays, CSV, Parquet and text, plain or compressed with gzip or Zstandard. All become
//! rows of named values. Pure.

use std::io::Read as _;

use bytes::Bytes;
use codex_configs::DataFormat;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use serde_json::{Map, Value};

use crate::tasks::{RecordError, json_lines};

/// A row, with its line or number from 1.
type Row = (usize, Map<String, Value>);

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

/// Reads the rows of a file. A line of a text file is a row with the field `text`.
///
/// # Errors
/// The file is not of the format.
pub(super) fn rows(file: &str, bytes: &[u8], format: DataFormat, text: &str) -> Result<Vec<Row>, FormatError> {
    let unpacked = unpack(file, bytes)?;
    let bytes = unpacked.as_deref().unwrap_or(bytes);
    let name = file.strip_suffix(".gz").or_else(|| file.strip_suffix(".zst")).unwrap_or(file);
    let ends = |ending: &str| name.to_ascii_lowercase().ends_with(ending);
    match format {
        DataFormat::Parquet => parquet(file, bytes),
        DataFormat::Auto if bytes.starts_with(b"PAR1") => parquet(file, bytes),
        DataFormat::Csv => table(file, bytes, if ends(".tsv") { b'\t' } else { b',' }),
        DataFormat::Auto if ends(".csv") => table(file, bytes, b','),
        DataFormat::Auto if ends(".tsv") => table(file, bytes, b'\t'),
        DataFormat::Text => lines(file, bytes, text),
        DataFormat::Auto if ends(".txt") => lines(file, bytes, text),
        DataFormat::Auto if ends(".json") && bytes.trim_ascii_start().starts_with(b"[") => array(file, bytes),
        DataFormat::Auto | DataFormat::Jsonl => json(file, bytes),
    }
}

/// Unpacks a compressed file; `None` if it is not compressed.
fn unpack(file: &str, bytes: &[u8]) -> Result<Option<Vec<u8>>, FormatError> {
    let failed = |method| move |source| FormatError::Compressed { file: file.to_owned(), method, source };
    let mut unpacked = Vec::new();
    if bytes.starts_with(&[0x1f, 0x8b]) {
        // A file may consist of several members, as of `cat a.gz b.gz`.
        flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut unpacked).map_err(failed("gzip"))?;
    } else if bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        zstd::stream::copy_decode(bytes, &mut unpacked).map_err(failed("Zstandard"))?;
    } else {
        return Ok(None);
    }
    Ok(Some(unpacked))
}

fn json(file: &str, bytes: &[u8]) -> Result<Vec<Row>, FormatError> {
    let rows = json_lines(file, bytes, |line, text| {
        let row = codex_json::from_str(text).map_err(|source| RecordError::Malformed {
            file: file.to_owned(),
            line,
            // The parser got a single line, so its line number is always 1.
            why: source.to_string().replacen(" at line 1 column", " in column", 1),
            right: RIGHT.to_owned(),
        })?;
        Ok((line, row))
    })?;
    Ok(rows)
}

/// What a line must be, before the names of its fields matter.
const RIGHT: &str = r#"{"prompt", "response"} or {"messages": [{"role", "content"}]} or {"text"}"#;

fn array(file: &str, bytes: &[u8]) -> Result<Vec<Row>, FormatError> {
    let rows: Vec<Map<String, Value>> = codex_json::from_slice(bytes).map_err(|source| RecordError::Malformed {
        file: file.to_owned(),
        line: source.line().max(1),
        why: source.to_string(),
        right: "an array of objects".to_owned(),
    })?;
    Ok(rows.into_iter().enumerate().map(|(at, row)| (at + 1, row)).collect())
}

fn lines(file: &str, bytes: &[u8], field: &str) -> Result<Vec<Row>, FormatError> {
    Ok(json_lines(file, bytes, |line, text| {
        let text = text.strip_suffix('\r').unwrap_or(text).to_owned();
        Ok((line, Map::from_iter([(field.to_owned(), Value::String(text))])))
    })?)
}

fn table(file: &str, bytes: &[u8], delimiter: u8) -> Result<Vec<Row>, FormatError> {
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let failed = |source: csv::Error| {
        let line = source.position().map_or(1, csv::Position::line);
        let why = match source.kind() {
            csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                format!("the line has {len} fields, but the header has {expected_len} fields")
            }
            csv::ErrorKind::Utf8 { .. } => "not UTF-8".to_owned(),
            _ => source.to_string(),
        };
        FormatError::Table { file: file.to_owned(), line, why }
    };
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(bytes);
    let header = reader.headers().map_err(failed)?.clone();
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(failed)?;
        let line = record.position().map_or(0, csv::Position::line) as usize;
        let values = record.iter().map(|value| Value::String(value.to_owned()));
        rows.push((line, header.iter().map(str::to_owned).zip(values).collect()));
    }
    Ok(rows)
}

fn parquet(file: &str, bytes: &[u8]) -> Result<Vec<Row>, FormatError> {
    let failed = |source| FormatError::Parquet { file: file.to_owned(), source };
    let reader = SerializedFileReader::new(Bytes::copy_from_slice(bytes)).map_err(failed)?;
    let rows = reader.get_row_iter(None).map_err(failed)?.enumerate();
    rows.map(|(at, row)| match row.map_err(failed)?.to_json_value() {
        Value::Object(row) => Ok((at + 1, row)),
        other => Ok((at + 1, Map::from_iter([("value".to_owned(), other)]))),
    })
    .collect()
}
