//! `codex metrics tail`: prints the newest rows of a run, one line per step; with `--follow`, also new ones. Reads a growing file.
//!
//! A run that resumes from a checkpoint cuts its ledger; `--follow` logs that and prints no row twice. A full file of the ledger gets a
//! number, and its rows are followed by those of the next one. It polls twice a second, because file system notifications do not work
//! across network file systems.

use std::{
    fs::File,
    io::{Read as _, Seek as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::Duration,
};

use clap::Args;
use jiff::Timestamp;

use super::{error::MetricsError, series::shown};
use crate::{
    arguments::whole,
    artifacts::{
        ledger::{self, Row},
        segments::{Segment, segments},
    },
    atomic_fs::{self, FileError},
    signals::stop_flag,
};

/// Print the newest rows; with --follow, also new ones.
#[derive(Debug, Args)]
pub(super) struct Tail {
    /// A run's directory, or a ledger.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Number of newest lines to print first.
    #[arg(long, short = 'n', default_value_t = 10, value_parser = whole::<usize>(0..=u64::MAX))]
    lines: usize,
    /// Print only this metric. May be repeated.
    #[arg(long, value_name = "NAME")]
    metric: Vec<String>,
    /// Print new rows until Ctrl-C. Waits for a run that has no ledger yet.
    #[arg(long, short)]
    follow: bool,
}

const POLL_INTERVAL: Duration = Duration::from_millis(500);

impl Tail {
    pub(super) fn run(self) -> Result<(), MetricsError> {
        let stop = self.follow.then(stop_flag).transpose().map_err(MetricsError::Signals)?;
        if !self.follow && self.run.is_dir() && !ledger::exists(&ledger::locate(&self.run)) {
            return Err(MetricsError::NoLedger(self.run));
        }
        let mut follower = Follower::new(&self.run);
        let mut shown = follower.look(!self.follow)?.lines(&self.metric);
        for line in shown.split_off(shown.len().saturating_sub(self.lines)) {
            atomic_fs::say(&line)?;
        }
        while stop.as_ref().is_some_and(|stop| !stop.load(Ordering::Relaxed)) {
            std::thread::sleep(POLL_INTERVAL);
            let seen = follower.look(false)?;
            if let Some(step) = seen.replaced {
                tracing::info!("the run resumed from step {step}");
            }
            for line in seen.lines(&self.metric) {
                atomic_fs::say(&line)?;
            }
        }
        Ok(())
    }
}

/// Reads new rows of a ledger that grows, is rotated or is cut.
#[derive(Debug)]
struct Follower {
    run: PathBuf,
    file: Option<File>,
    /// Bytes of an incomplete line.
    rest: Vec<u8>,
    /// Number of lines before `rest`.
    lines: usize,
    /// Time of the newest row that was read.
    newest: Option<Timestamp>,
}

/// New rows.
#[derive(Debug, Default)]
struct Seen {
    rows: Vec<Row>,
    /// The last step that a new ledger kept of the one that it replaced.
    replaced: Option<u64>,
}

impl Follower {
    fn new(run: &Path) -> Self {
        Self { run: run.to_owned(), file: None, rest: Vec::new(), lines: 0, newest: None }
    }

    /// Reads new rows. A missing file is an error if it `must_exist`.
    fn look(&mut self, must_exist: bool) -> Result<Seen, MetricsError> {
        let path = ledger::locate(&self.run);
        let mut files = segments(&path).map_err(FileError::of("listing", &path))?;
        if files.is_empty() && must_exist {
            files.push(Segment { path: path.clone(), number: None });
        }
        let (mut seen, before) = (Seen::default(), self.newest);
        let held = self.held(&files).map_err(FileError::of("reading", &path))?;
        // Without the held file, the ledger is new, or was cut when its run resumed.
        let anew = held.is_none().then_some(before).flatten();
        if let Some(held) = held {
            self.read(&files[held].path, None, &mut seen)?;
            files.drain(..=held);
        }
        let replaced = anew.filter(|_| !files.is_empty());
        let mut kept = 0;
        for Segment { path, .. } in files {
            self.file = Some(File::open(&path).map_err(FileError::of("reading", &path))?);
            (self.rest, self.lines) = (Vec::new(), 0);
            kept = kept.max(self.read(&path, anew, &mut seen)?);
        }
        seen.replaced = replaced.map(|_| kept);
        Ok(seen)
    }

    /// Reads the rows of the held file, whose path is `path`, from where it was read last. Leaves out those that are not newer than `anew`,
    /// and returns the last step of these.
    fn read(&mut self, path: &Path, anew: Option<Timestamp>, seen: &mut Seen) -> Result<u64, MetricsError> {
        let Some(file) = &mut self.file else { return Ok(0) };
        file.read_to_end(&mut self.rest).map_err(FileError::of("reading", path))?;
        let mut kept = 0;
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            self.lines += 1;
            if line.trim_ascii().is_empty() {
                continue;
            }
            match Row::parse(&line) {
                // A ledger that was cut repeats rows that were read before.
                Ok(row) if anew.is_some_and(|newest| row.timestamp <= newest) => kept = kept.max(row.step),
                Ok(row) => {
                    self.newest = self.newest.max(Some(row.timestamp));
                    seen.rows.push(row);
                }
                Err(why) => tracing::warn!("{}:{}: invalid ledger row: {why}", path.display(), self.lines),
            }
        }
        Ok(kept)
    }

    /// Returns which of these files is held; `None` if none is, or if it was cut since it was read.
    fn held(&mut self, files: &[Segment]) -> std::io::Result<Option<usize>> {
        let Some(file) = &mut self.file else { return Ok(None) };
        let (held, place) = (file.metadata()?, file.stream_position()?);
        let same = |segment: &Segment| {
            let found = std::fs::metadata(&segment.path).ok()?;
            ((found.dev(), found.ino()) == (held.dev(), held.ino())).then_some(found.len())
        };
        let found = files.iter().enumerate().find_map(|(index, segment)| Some((index, same(segment)?)));
        Ok(found.filter(|(_, length)| *length >= place).map(|(index, _)| index))
    }
}

impl Seen {
    /// Returns a line for each step and split, with the given metrics; all metrics if `metrics` is empty.
    fn lines(&self, metrics: &[String]) -> Vec<String> {
        let mut lines = Vec::new();
        for rows in self.rows.chunk_by(|a, b| (a.step, &a.split) == (b.step, &b.split)) {
            let chosen = rows.iter().filter(|row| metrics.is_empty() || metrics.contains(&row.metric));
            let cells: Vec<String> = chosen.map(|row| format!("{} {}", row.metric, shown(row.value))).collect();
            if !cells.is_empty() {
                lines.push(format!("{:>8}  {:<5}  {}", rows[0].step, rows[0].split, cells.join("  ")));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::artifacts::{
        ledger::tests::{row, text},
        segments::numbered,
    };

    #[test]
    fn a_growing_ledger_is_followed_through_a_resume() {
        let root = tempfile::tempdir().unwrap();
        let mut follower = Follower::new(root.path());
        assert!(follower.look(true).is_err());
        assert!(follower.look(false).unwrap().rows.is_empty());

        let path = ledger::locate(root.path());
        let rows: Vec<Row> =
            [10, 20, 30, 40].iter().flat_map(|step| [row(*step, "loss", 1.5), row(*step, "x", 2.0)]).collect();
        atomic_fs::make_parents(&path).unwrap();
        atomic_fs::write(&path, &text(&rows[..3])).unwrap();
        let seen = follower.look(false).unwrap();
        assert_eq!((seen.rows.len(), seen.replaced), (3, None));
        assert_eq!(seen.lines(&[]), ["      10  train  loss 1.5000  x 2.0000", "      20  train  loss 1.5000"]);
        assert_eq!(seen.lines(&["x".to_owned()]), ["      10  train  x 2.0000"]);

        // An incomplete line is not a row yet.
        let mut file = File::options().append(true).open(&path).unwrap();
        let more = text(&rows[3..4]);
        file.write_all(&more[..9]).unwrap();
        assert!(follower.look(false).unwrap().rows.is_empty());
        file.write_all(&more[9..]).unwrap();
        assert_eq!(follower.look(false).unwrap().rows, rows[3..4]);

        // A resume from step 10 replaces the file; its first rows were printed before.
        let mut again = text(&rows[..2]);
        let later: Vec<Row> = rows[2..6]
            .iter()
            .map(|row| Row { timestamp: row.timestamp + jiff::SignedDuration::from_secs(100), ..row.clone() })
            .collect();
        again.extend(text(&later));
        atomic_fs::write(&path, &again).unwrap();
        let seen = follower.look(false).unwrap();
        assert_eq!((seen.rows, seen.replaced), (later, Some(10)));
    }

    #[test]
    fn a_ledger_is_followed_from_file_to_file() {
        let root = tempfile::tempdir().unwrap();
        let path = ledger::locate(root.path());
        let rows: Vec<Row> = (1..=12).map(|step| row(step, "loss", 1.5)).collect();
        let steps = |seen: &Seen| seen.rows.iter().map(|row| row.step).collect::<Vec<_>>();
        atomic_fs::make_parents(&path).unwrap();
        atomic_fs::write(&path, &text(&rows[..2])).unwrap();
        let mut follower = Follower::new(root.path());
        assert_eq!(steps(&follower.look(true).unwrap()), [1, 2]);
        // Two files are full before the next look.
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(&text(&rows[2..3])).unwrap();
        std::fs::rename(&path, numbered(&path, 1)).unwrap();
        atomic_fs::write(&numbered(&path, 2), &text(&rows[3..6])).unwrap();
        atomic_fs::write(&path, &text(&rows[6..7])).unwrap();
        let seen = follower.look(true).unwrap();
        assert_eq!((steps(&seen), seen.replaced), (vec![3, 4, 5, 6, 7], None));
        // A kill between two files, and what follows it.
        std::fs::rename(&path, numbered(&path, 3)).unwrap();
        assert_eq!(steps(&follower.look(true).unwrap()), [0; 0]);
        atomic_fs::write(&path, &text(&rows[7..8])).unwrap();
        let seen = follower.look(true).unwrap();
        assert_eq!((steps(&seen), seen.replaced), (vec![8], None));
        assert_eq!(steps(&Follower::new(root.path()).look(true).unwrap()), [1, 2, 3, 4, 5, 6, 7, 8]);
        // A resume from step 5 makes the second file the last one again.
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_file(numbered(&path, 3)).unwrap();
        std::fs::remove_file(numbered(&path, 2)).unwrap();
        let again = Row { timestamp: rows[11].timestamp, ..rows[5].clone() };
        atomic_fs::write(&path, &text(&[rows[3].clone(), rows[4].clone(), again.clone()])).unwrap();
        let seen = follower.look(true).unwrap();
        assert_eq!((seen.rows, seen.replaced), (vec![again], Some(5)));
    }
}
