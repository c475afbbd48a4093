//! The metrics ledger `metrics.ndjson`: one row per line, written by a run and read by `codex metrics`. Reads files.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::segments::{Segment, segments};
use crate::atomic_fs::{self, FileError};

/// The value of `$schema` in each row.
pub const SCHEMA: &str = "https://codex-ml.dev/schemas/metrics-ledger/v1";
/// The value of `schema_version` in each row.
pub const SCHEMA_VERSION: &str = "v1";
/// The file's name.
pub const FILE: &str = "metrics.ndjson";

/// A row of the metrics ledger, version 1. The order of the keys is part of the format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "metrics.ndjson: one row")]
pub struct Row {
    /// The schema of the row.
    #[serde(rename = "$schema")]
    #[schemars(extend("const" = SCHEMA))]
    pub schema: String,
    /// The version of the schema.
    #[schemars(extend("const" = SCHEMA_VERSION))]
    pub schema_version: String,
    /// Time of writing.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub timestamp: Timestamp,
    /// The run: the object's uid in a cluster, the output directory's name elsewhere.
    pub run_id: String,
    /// Optimizer steps done.
    pub step: u64,
    /// What was measured: the records of the step (`train`), held-out records, always the same (`val`), or the machine (`system`).
    #[schemars(length(min = 1))]
    pub split: String,
    /// The name of the metric.
    #[schemars(length(min = 1))]
    pub metric: String,
    /// The value of the metric.
    pub value: f64,
    /// The names of the data, joined by `+`.
    pub dataset: String,
    /// Free labels.
    pub tags: BTreeMap<String, String>,
}

/// The reasons for which a line is not a row.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The line is not JSON, or has another shape.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// The row has another schema or version.
    #[error("{field} is not {expected}: it is another file, or of another version of this program")]
    Schema {
        /// The field.
        field: &'static str,
        /// The value that this program reads.
        expected: &'static str,
    },
    /// A name is empty.
    #[error("{0} is empty: write a name")]
    Empty(&'static str),
}

impl Row {
    /// Parses a line.
    ///
    /// # Errors
    /// When the line is not a row of this version.
    pub fn parse(line: &[u8]) -> Result<Self, LineError> {
        let row: Self = codex_json::from_slice(line)?;
        for (field, found, expected) in
            [("$schema", &row.schema, SCHEMA), ("schema_version", &row.schema_version, SCHEMA_VERSION)]
        {
            if found != expected {
                return Err(LineError::Schema { field, expected });
            }
        }
        for (field, text) in [("split", &row.split), ("metric", &row.metric)] {
            if text.is_empty() {
                return Err(LineError::Empty(field));
            }
        }
        Ok(row)
    }
}

/// An invalid line.
#[derive(Debug)]
pub struct BadLine {
    /// The file.
    pub path: PathBuf,
    /// The line number, counted from 1.
    pub line: usize,
    /// The reason.
    pub why: LineError,
}

/// The content of a ledger, with its full files.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The path of the ledger.
    pub path: PathBuf,
    /// The rows, in the order of the files.
    pub rows: Vec<Row>,
    /// The invalid lines.
    pub bad: Vec<BadLine>,
    /// Whether the last line is incomplete: its writer is still writing, or was killed. It counts neither as a row nor as invalid.
    pub unfinished: bool,
}

impl Ledger {
    /// Parses the text of a ledger. Blank lines are skipped.
    pub fn parse(text: &[u8]) -> Self {
        let (whole, rest) = match text.iter().rposition(|byte| *byte == b'\n') {
            Some(last) => text.split_at(last + 1),
            None => (&[][..], text),
        };
        let mut ledger = Self::default();
        for (index, line) in whole.split(|byte| *byte == b'\n').enumerate() {
            if line.trim_ascii().is_empty() {
                continue;
            }
            match Row::parse(line) {
                Ok(row) => ledger.rows.push(row),
                Err(why) => ledger.bad.push(BadLine { path: PathBuf::new(), line: index + 1, why }),
            }
        }
        // A complete row counts even without its final line feed.
        match Row::parse(rest) {
            Ok(row) => ledger.rows.push(row),
            Err(_) => ledger.unfinished = !rest.trim_ascii().is_empty(),
        }
        ledger
    }

    /// Reads a ledger from a file and from those that were full before it.
    ///
    /// # Errors
    /// When a file cannot be read, or none exists.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let mut files = segments(path).map_err(FileError::of("listing", path))?;
        if files.is_empty() {
            files.push(Segment { path: path.to_owned(), number: None });
        }
        let mut ledger = Self { path: path.to_owned(), ..Self::default() };
        for Segment { path, .. } in files {
            let Self { rows, bad, unfinished, .. } = Self::parse(&atomic_fs::read(&path)?);
            ledger.rows.extend(rows);
            ledger.bad.extend(bad.into_iter().map(|bad| BadLine { path: path.clone(), ..bad }));
            ledger.unfinished |= unfinished;
        }
        Ok(ledger)
    }
}

/// Whether a ledger is at `path`: the file or a full one before it, which a kill may leave alone.
pub fn exists(path: &Path) -> bool {
    segments(path).is_ok_and(|files| !files.is_empty())
}

/// Returns the path of the ledger of `run`, which is the ledger itself, a run's directory, or its `artifacts` directory.
pub fn locate(run: &Path) -> PathBuf {
    let inside = [run.join("artifacts").join(FILE), run.join(FILE)];
    if !run.is_dir() {
        return run.to_owned();
    }
    inside.iter().find(|path| exists(path)).unwrap_or(&inside[0]).clone()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::{super::segments::numbered, *};

    pub(crate) fn row(step: u64, metric: &str, value: f64) -> Row {
        Row {
            schema: SCHEMA.to_owned(),
            schema_version: SCHEMA_VERSION.to_owned(),
            timestamp: Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_secs((step % 1_000_000).cast_signed()),
            run_id: "r".to_owned(),
            step,
            split: "train".to_owned(),
            metric: metric.to_owned(),
            value,
            dataset: "a+b".to_owned(),
            tags: BTreeMap::new(),
        }
    }

    pub(crate) fn text(rows: &[Row]) -> Vec<u8> {
        rows.iter().flat_map(|row| [serde_json::to_vec(row).unwrap(), b"\n".to_vec()].concat()).collect()
    }

    prop_compose! {
        fn any_row()(
            step: u64,
            metric in "[a-z_é\"\\\\]{1,8}",
            value in prop::num::f64::NORMAL | prop::num::f64::ZERO | prop::num::f64::SUBNORMAL,
            split in "[a-z]{1,5}",
            seconds in 0_i64..4_000_000_000,
            tags in prop::collection::btree_map(".{0,4}", ".{0,4}", 0..3),
        ) -> Row {
            let timestamp = Timestamp::from_second(seconds).unwrap();
            Row { timestamp, step, split, tags, ..row(step, &metric, value) }
        }
    }

    proptest! {
        #[test]
        fn written_rows_are_read(rows in prop::collection::vec(any_row(), 0..8)) {
            let read = Ledger::parse(&text(&rows));
            prop_assert!(read.bad.is_empty() && !read.unfinished);
            prop_assert_eq!(read.rows, rows);
        }

        #[test]
        fn a_ledger_cut_anywhere_keeps_its_complete_rows(
            rows in prop::collection::vec(any_row(), 1..5), cut: prop::sample::Index,
        ) {
            let text = text(&rows);
            let cut = cut.index(text.len());
            let read = Ledger::parse(&text[..cut]);
            prop_assert!(read.bad.is_empty());
            prop_assert_eq!(&read.rows[..], &rows[..read.rows.len()]);
            let whole = text[..cut].split(|byte| *byte == b'\n').count() - 1;
            prop_assert!(read.rows.len() == whole || read.rows.len() == whole + 1 && !read.unfinished);
        }

        #[test]
        fn any_bytes_give_rows_and_numbered_lines(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(b'{')], 0..200)) {
            let read = Ledger::parse(&bytes);
            prop_assert!(read.rows.is_empty());
            let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
            for bad in &read.bad {
                prop_assert!(!lines[bad.line - 1].trim_ascii().is_empty());
            }
            let filled = lines.iter().filter(|line| !line.trim_ascii().is_empty()).count();
            prop_assert_eq!(read.bad.len() + usize::from(read.unfinished), filled);
        }
    }

    #[test]
    fn invalid_lines_have_a_reason() {
        let good = String::from_utf8(text(&[row(1, "loss", 0.5)])).unwrap();
        let cases = [
            (good.replace("0.5", "null"), "invalid type: null"),
            (good.replace("0.5", "1e999"), "number out of range"),
            (good.replace("\"v1\"", "\"v2\""), "schema_version is not v1: "),
            (good.replace("ledger/v1", "ledger/v3"), "$schema is not https://codex-ml.dev/"),
            (good.replace("\"loss\"", "\"\""), "metric is empty"),
            (good.replace("\"step\":1", "\"step\":-1"), "invalid value"),
            (good.replace("\"step\"", "\"stp\""), "unknown field `stp`"),
            ("{}\n".to_owned(), "missing field"),
        ];
        for (line, why) in cases {
            let read = Ledger::parse(format!("{good}\n{line}").as_bytes());
            assert_eq!((read.rows.len(), read.bad.len()), (1, 1), "{line}");
            assert_eq!(read.bad[0].line, 3);
            assert!(read.bad[0].why.to_string().contains(why), "{}", read.bad[0].why);
        }
    }

    #[test]
    fn full_files_are_read_before_the_last_one() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        assert!(Ledger::read(&path).unwrap_err().to_string().contains("metrics.ndjson"));
        let rows: Vec<Row> = (1..=12).map(|step| row(step, "loss", 0.5)).collect();
        for (number, rows) in (1..).zip(rows[..11].chunks(1)) {
            atomic_fs::write(&numbered(&path, number), &text(rows)).unwrap();
        }
        assert_eq!(Ledger::read(&path).unwrap().rows, rows[..11], "a kill between two files");
        atomic_fs::write(&path, &text(&rows[11..])).unwrap();
        atomic_fs::write(&numbered(&path, 2), b"nonsense\n").unwrap();
        let read = Ledger::read(&path).unwrap();
        assert_eq!(read.rows, [&rows[..1], &rows[2..]].concat());
        assert_eq!((read.bad.len(), &read.bad[0].path, read.bad[0].line), (1, &numbered(&path, 2), 1));
    }

    #[test]
    fn a_run_is_its_directory_its_artefacts_or_the_file() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("artifacts").join(FILE);
        assert_eq!(locate(root.path()), file);
        atomic_fs::make_parents(&file).unwrap();
        atomic_fs::write(&file, b"").unwrap();
        assert_eq!(locate(root.path()), file);
        assert_eq!(locate(&root.path().join("artifacts")), file);
        assert_eq!(locate(&file), file);
        assert_eq!(locate(Path::new("not/there.ndjson")), Path::new("not/there.ndjson"));
    }
}
