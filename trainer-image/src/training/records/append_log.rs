//! A file of JSON rows that is only appended to. Does I/O.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use super::Row;
use crate::{
    append::AppendFile,
    atomic_fs::{self, FileError},
    training::listing::some_of,
};

/// A file of rows, open for appending. A failed append leaves no partial line.
#[derive(Debug)]
pub(crate) struct AppendLog {
    file: AppendFile,
}

/// Result of opening a file of rows.
#[derive(Debug)]
pub(crate) struct Opened<R> {
    /// The file.
    pub(crate) log: AppendLog,
    /// Last row that was kept.
    pub(crate) last: Option<R>,
    /// Notice about damaged lines, if there were any.
    pub(crate) notice: Option<String>,
}

impl AppendLog {
    /// Opens a file for a run that resumes at `step`. Rows of later steps, and a line that a kill cut short, are dropped: they
    /// will be written again.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn open<R: Row>(path: PathBuf, step: u64) -> Result<Opened<R>, FileError> {
        Self::open_while(path, |row: &R| row.step() <= step)
    }

    /// Opens a file. The first row that is not `kept` and everything after it are dropped.
    ///
    /// A complete line that is not a row is damage, not work that will be repeated. It is left out, the rows after it are kept,
    /// and a copy of the damaged file stays beside it.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn open_while<R: Row>(path: PathBuf, kept: impl Fn(&R) -> bool) -> Result<Opened<R>, FileError> {
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read.map_err(FileError::of("reading", &path))?,
        };
        let (mut rows, mut last, mut damaged) = (Vec::new(), None, Vec::new());
        for (index, line) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
            let Some(row) = line.strip_suffix(b"\n").map(serde_json::from_slice::<R>) else { break };
            match row {
                Ok(row) if kept(&row) => {
                    rows.extend_from_slice(line);
                    last = Some(row);
                }
                Ok(_) => break,
                Err(_) => damaged.push((index + 1).to_string()),
            }
        }
        let mut notice = None;
        if !damaged.is_empty() {
            let copy = set_aside(&path, &text)?;
            atomic_fs::write(&path, &rows)?;
            notice = Some(format!(
                "{} was damaged in line {}: the damaged lines are removed, and the original is kept as {}",
                path.display(),
                some_of(&damaged, ", "),
                copy.display()
            ));
        }
        let mut file = AppendFile::open(path)?;
        file.truncate(rows.len() as u64)?;
        Ok(Opened { log: Self { file }, last, notice })
    }

    /// Appends rows durably, all or none of them.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn append<R: Row>(&mut self, rows: &[R]) -> Result<(), FileError> {
        self.file.append(&self.encoded(rows)?)
    }

    /// Appends rows, all or none of them, without syncing: they survive this process, but not a crash of the machine.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn append_unsynced<R: Row>(&mut self, rows: &[R]) -> Result<(), FileError> {
        self.file.append_unsynced(&self.encoded(rows)?)
    }

    /// Returns rows as lines of JSON.
    fn encoded<R: Row>(&self, rows: &[R]) -> Result<Vec<u8>, FileError> {
        let mut bytes = Vec::new();
        for row in rows {
            serde_json::to_writer(&mut bytes, row)
                .map_err(io::Error::from)
                .map_err(FileError::of("encoding", self.file.path()))?;
            bytes.push(b'\n');
        }
        Ok(bytes)
    }
}

/// Writes the bytes of a damaged file beside it, under the first free name.
fn set_aside(path: &Path, bytes: &[u8]) -> Result<PathBuf, FileError> {
    let mut number = 1;
    loop {
        let copy = path.with_added_extension(format!("damaged-{number}"));
        match File::create_new(&copy) {
            Ok(mut file) => {
                file.write_all(bytes).and_then(|()| file.sync_all()).map_err(FileError::of("writing", &copy))?;
                return Ok(copy);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(FileError::of("creating", &copy)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            LEDGER, LedgerRow, read_rows,
            rows::testing::{ledger_row, lines},
        },
        *,
    };

    #[test]
    fn a_file_is_continued_at_a_step() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LEDGER);
        let rows: Vec<LedgerRow> = (1..=6).map(ledger_row).collect();
        let Opened { mut log, last, .. } = AppendLog::open::<LedgerRow>(path.clone(), 0).unwrap();
        assert_eq!(last, None);
        log.append(&rows[..4]).unwrap();
        fs::write(&path, [fs::read(&path).unwrap(), b"{\"step\":5,\"fi".to_vec()].concat()).unwrap();
        assert_eq!(read_rows::<LedgerRow>(&path).unwrap(), rows[..4], "a line that was cut short is left out");
        let Opened { mut log, last, notice } = AppendLog::open::<LedgerRow>(path.clone(), 2).unwrap();
        assert_eq!(notice, None);
        assert_eq!(last.as_ref(), Some(&rows[1]));
        log.append(&rows[2..]).unwrap();
        assert!(fs::read(&path).unwrap() == lines(&rows));
    }

    /// A write that fails after half a row, and a truncation that fails as well: the next append truncates first.
    #[test]
    fn a_partial_row_is_not_joined_to_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LEDGER);
        let rows: Vec<LedgerRow> = (1..=3).map(ledger_row).collect();
        let mut log = AppendLog::open::<LedgerRow>(path.clone(), 0).unwrap().log;
        log.append(&rows[..1]).unwrap();
        let file = log.file.replace(File::open(&path).unwrap());
        let error = log.append(&rows[1..2]).unwrap_err();
        assert_eq!(error.action, "writing");
        fs::write(&path, [lines(&rows[..1]), b"{\"step\":2,\"fi\xff".to_vec()].concat()).unwrap();
        log.file.replace(file);
        log.append_unsynced(&rows[1..]).unwrap();
        assert_eq!(read_rows::<LedgerRow>(&path).unwrap(), rows);
        assert_eq!(read_rows::<LedgerRow>(&directory.path().join("nowhere")).unwrap(), []);
    }

    #[test]
    fn rows_after_a_damaged_line_are_kept_and_the_original_stays_beside_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LEDGER);
        let rows: Vec<LedgerRow> = (1..=4).map(ledger_row).collect();
        let damaged = [lines(&rows[..2]), b"{\"step\":?}\n".to_vec(), lines(&rows[2..])].concat();
        for number in 1..=2 {
            fs::write(&path, &damaged).unwrap();
            let opened = AppendLog::open::<LedgerRow>(path.clone(), 4).unwrap();
            assert_eq!(opened.last.as_ref(), rows.last());
            let copy = directory.path().join(format!("ledger.ndjson.damaged-{number}"));
            let said = format!(
                "{} was damaged in line 3: the damaged lines are removed, and the original is kept as {}",
                path.display(),
                copy.display()
            );
            assert_eq!(opened.notice, Some(said));
            assert!(fs::read(copy).unwrap() == damaged && fs::read(&path).unwrap() == lines(&rows));
        }
    }
}
