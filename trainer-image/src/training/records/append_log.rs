//! A file of JSON rows that is only appended to, and rotated by size. Does I/O.
//!
//! A full file gets the next number, and a new one begins: see [`segments`]. Where rows are appended one by one, the files that a run
//! leaves depend on its rows alone, so a run that was killed and resumed leaves the same bytes as one that was not.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use super::Row;
use crate::{
    append::AppendFile,
    artifacts::segments::{Segment, numbered, segments},
    atomic_fs::{self, FileError},
    training::listing::some_of,
};

/// A file of rows, open for appending. A failed append leaves no partial line.
#[derive(Debug)]
pub(crate) struct AppendLog {
    path: PathBuf,
    file: AppendFile,
    /// The most bytes of a file, if it has more than one batch of rows.
    size: u64,
    /// The greatest number of a full file.
    rotated: u64,
    /// Whether the open file has its number already, because the next one could not be created.
    renamed: bool,
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

/// The rows of a file that are kept.
struct Kept<R> {
    rows: Vec<u8>,
    last: Option<R>,
    /// Numbers of damaged lines.
    damaged: Vec<String>,
    /// Whether something follows that is dropped.
    ended: bool,
}

impl<R: Row> Kept<R> {
    fn of(text: &[u8], kept: &impl Fn(&R) -> bool) -> Self {
        let mut found = Self { rows: Vec::new(), last: None, damaged: Vec::new(), ended: false };
        for (index, line) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
            match line.strip_suffix(b"\n").map(serde_json::from_slice::<R>) {
                Some(Ok(row)) if kept(&row) => {
                    found.rows.extend_from_slice(line);
                    found.last = Some(row);
                }
                Some(Err(_)) => found.damaged.push((index + 1).to_string()),
                Some(Ok(_)) | None => {
                    found.ended = true;
                    break;
                }
            }
        }
        found
    }
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

    /// Opens a file. The first row that is not `kept` and everything after it are dropped; the file with the last row that is kept
    /// receives the next ones.
    ///
    /// A complete line that is not a row is damage, not work that will be repeated. It is left out, the rows after it are kept,
    /// and a copy of the damaged file stays beside it.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn open_while<R: Row>(path: PathBuf, kept: impl Fn(&R) -> bool) -> Result<Opened<R>, FileError> {
        let files = segments(&path).map_err(FileError::of("listing", &path))?;
        // The file that receives the next rows, and the bytes that are kept of it.
        let (mut current, mut length) = (0, 0);
        let (mut last, mut notices) = (None, Vec::new());
        for (index, file) in files.iter().enumerate() {
            let text = atomic_fs::read(&file.path)?;
            let found = Kept::of(&text, &kept);
            if !found.damaged.is_empty() {
                let copy = set_aside(&file.path, &text)?;
                atomic_fs::write(&file.path, &found.rows)?;
                notices.push(format!(
                    "{} was damaged in line {}: the damaged lines are removed, and the original is kept as {}",
                    file.path.display(),
                    some_of(&found.damaged, ", "),
                    copy.display()
                ));
            }
            // Without a row that is kept, the next ones belong to the file before.
            if !found.rows.is_empty() || index == 0 {
                (current, length) = (index, found.rows.len() as u64);
            }
            last = found.last.or(last);
            if found.ended {
                break;
            }
        }
        let rotated = files[..current.min(files.len())].last().and_then(|file| file.number);
        let rotated = rotated.or_else(|| Some(files.get(current)?.number? - 1)).unwrap_or_default();
        reopen(&path, files.get(current..).unwrap_or_default())?;
        let mut file = AppendFile::open(path.clone())?;
        file.truncate(length)?;
        let notice = Some(notices.join("; ")).filter(|notice| !notice.is_empty());
        Ok(Opened { log: Self { path, file, size: u64::MAX, rotated, renamed: false }, last, notice })
    }

    /// Begins a new file when one has no room for more rows within `size` bytes.
    pub(crate) fn rotated_at(self, size: u64) -> Self {
        Self { size, ..self }
    }

    /// Appends rows durably, all or none of them.
    ///
    /// # Errors
    /// When a file operation fails.
    #[cfg(test)]
    pub(crate) fn append<R: Row>(&mut self, rows: &[R]) -> Result<(), FileError> {
        let bytes = self.encoded(rows)?;
        self.make_room(bytes.len() as u64)?;
        self.file.append(&bytes)
    }

    /// Appends rows one by one, durably, and removes those that are written from `rows`.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn append_each<R: Row>(&mut self, rows: &mut Vec<R>) -> Result<(), FileError> {
        let mut written = 0;
        let result: Result<(), FileError> = rows.iter().try_for_each(|row| {
            self.append_unsynced(std::slice::from_ref(row))?;
            written += 1;
            Ok(())
        });
        rows.drain(..written);
        result.and_then(|()| self.file.sync())
    }

    /// Appends rows, all or none of them, without syncing: they survive this process, but not a crash of the machine.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn append_unsynced<R: Row>(&mut self, rows: &[R]) -> Result<(), FileError> {
        let bytes = self.encoded(rows)?;
        self.make_room(bytes.len() as u64)?;
        self.file.append_unsynced(&bytes)
    }

    /// Gives a file that has no room for `added` bytes its number, and begins a new one.
    fn make_room(&mut self, added: u64) -> Result<(), FileError> {
        if self.file.length() == 0 || self.file.length().saturating_add(added) <= self.size {
            return Ok(());
        }
        if !self.renamed {
            self.file.sync()?;
            let to = numbered(&self.path, self.rotated + 1);
            fs::rename(&self.path, &to).map_err(FileError::of("renaming to", &to))?;
            (self.rotated, self.renamed) = (self.rotated + 1, true);
        }
        self.file = AppendFile::open(self.path.clone())?;
        self.renamed = false;
        atomic_fs::sync_directory(self.path.parent().unwrap_or(Path::new(".")))
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

/// Makes the first of these files the one at `path`, and removes the later ones, the last one first: a kill in between leaves files that
/// are opened in the same way.
fn reopen(path: &Path, files: &[Segment]) -> Result<(), FileError> {
    let Some((current, later)) = files.split_first() else { return Ok(()) };
    for file in later.iter().rev() {
        fs::remove_file(&file.path).map_err(FileError::of("removing", &file.path))?;
    }
    if current.number.is_some() {
        fs::rename(&current.path, path).map_err(FileError::of("renaming to", path))?;
    }
    Ok(())
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

    /// Returns the names and bytes of the files of rows, the oldest first.
    fn files(path: &Path) -> Vec<(String, Vec<u8>)> {
        let file = |segment: Segment| {
            let name = segment.path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(&segment.path).unwrap())
        };
        segments(path).unwrap().into_iter().map(file).collect()
    }

    fn opened(path: &Path, step: u64) -> (AppendLog, Option<LedgerRow>) {
        let Opened { log, last, notice } = AppendLog::open::<LedgerRow>(path.to_owned(), step).unwrap();
        assert_eq!(notice, None);
        (log.rotated_at(1000), last)
    }

    #[test]
    fn rows_are_in_files_of_at_most_the_size() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LEDGER);
        let mut rows: Vec<LedgerRow> = (1..=40).map(ledger_row).collect();
        let all = rows.clone();
        opened(&path, 0).0.append_each(&mut rows).unwrap();
        assert!(rows.is_empty());
        let written = files(&path);
        assert!(written.len() > 3 && written.last().unwrap().0 == LEDGER && written[1].0 == "ledger.ndjson.2");
        assert!(written.iter().all(|(_, bytes)| (1..=1000).contains(&bytes.len()) && bytes.ends_with(b"\n")));
        assert_eq!(read_rows::<LedgerRow>(&path).unwrap(), all);
        // A batch is never divided.
        let path = directory.path().join("batches");
        let mut log = opened(&path, 0).0;
        log.append(&all[..20]).unwrap();
        log.append(&all[20..21]).unwrap();
        assert_eq!(files(&path).len(), 2);
        assert_eq!(read_rows::<LedgerRow>(&path).unwrap(), all[..21]);
    }

    /// Whatever the step of the checkpoint, and wherever a kill cut the files.
    #[test]
    fn a_resumed_run_leaves_the_same_files() {
        let all: Vec<LedgerRow> = (1..=30).map(ledger_row).collect();
        let straight = tempfile::tempdir().unwrap();
        let path = straight.path().join(LEDGER);
        opened(&path, 0).0.append_each(&mut all.clone()).unwrap();
        let expected = files(&path);
        for step in 0..=30 {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join(LEDGER);
            opened(&path, 0).0.append_each(&mut all.clone()).unwrap();
            fs::write(&path, [fs::read(&path).unwrap(), b"{\"step\":31,\"fi".to_vec()].concat()).unwrap();
            let (mut log, last) = opened(&path, step);
            assert_eq!(last.map_or(0, |row| row.step), step);
            assert_eq!(read_rows::<LedgerRow>(&path).unwrap(), all[..step as usize]);
            let (_, again) = opened(&path, step);
            assert_eq!(again.map_or(0, |row| row.step), step, "opening changes nothing more");
            log.append_each(&mut all[step as usize..].to_vec()).unwrap();
            assert!(files(&path) == expected, "resumed at step {step}");
        }
    }

    /// A kill between the steps of a rotation, and between those of a resume.
    #[test]
    fn a_kill_between_two_files_loses_nothing() {
        let all: Vec<LedgerRow> = (1..=30).map(ledger_row).collect();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LEDGER);
        opened(&path, 0).0.append_each(&mut all[..20].to_vec()).unwrap();
        let next = numbered(&path, files(&path).len() as u64);
        fs::rename(&path, &next).unwrap();
        assert_eq!(read_rows::<LedgerRow>(&path).unwrap(), all[..20], "without a file for new rows");
        let (mut log, last) = opened(&path, 20);
        assert_eq!(last.map(|row| row.step), Some(20));
        log.append_each(&mut all[20..].to_vec()).unwrap();
        assert_eq!(read_rows::<LedgerRow>(&path).unwrap(), all);
        fs::remove_file(&path).unwrap();
        let (mut log, last) = opened(&path, 7);
        assert_eq!(last.map(|row| row.step), Some(7));
        log.append_each(&mut all[7..].to_vec()).unwrap();
        assert_eq!(read_rows::<LedgerRow>(&path).unwrap(), all);
    }

    #[test]
    fn an_old_file_that_was_removed_gives_its_number_to_no_other() {
        let all: Vec<LedgerRow> = (1..=40).map(ledger_row).collect();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LEDGER);
        opened(&path, 0).0.append_each(&mut all[..30].to_vec()).unwrap();
        let before = files(&path).len();
        fs::remove_file(numbered(&path, 1)).unwrap();
        opened(&path, 30).0.append_each(&mut all[30..].to_vec()).unwrap();
        let names: Vec<String> = files(&path).into_iter().map(|(name, _)| name).collect();
        assert!(!names.contains(&"ledger.ndjson.1".to_owned()) && names.len() >= before, "{names:?}");
        assert_eq!(read_rows::<LedgerRow>(&path).unwrap().last(), all.last());
    }
}
