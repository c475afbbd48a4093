//! The log of safety events: JSON lines without the texts. Does I/O.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use jiff::Timestamp;
use serde::Serialize;

use super::{
    Checked,
    rules::{Action, Direction},
};

/// The most bytes of a log; then it is renamed to `….1`, and a new one begins.
const MAX_LOG: u64 = 64 << 20;

/// What happened to a text. It holds nothing of the text.
#[derive(Serialize)]
struct Event<'a> {
    time: Timestamp,
    direction: Direction,
    rule: &'a str,
    action: Action,
    /// Number of matches.
    count: usize,
    /// Whether the text was refused.
    blocked: bool,
    /// Where the text came from, such as `/v1/chat/completions`.
    source: &'a str,
    /// The name of the API key; empty without keys.
    key: &'a str,
}

/// Writes events to a file, and always to the program's own log.
pub(crate) struct Log {
    file: Option<Mutex<(PathBuf, File, u64)>>,
}

impl Log {
    /// Opens a log, which is appended to.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(crate) fn open(path: Option<&Path>) -> io::Result<Self> {
        let open = |path: &Path| {
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            let size = file.metadata()?.len();
            Ok::<_, io::Error>(Mutex::new((path.to_owned(), file, size)))
        };
        Ok(Self { file: path.map(open).transpose()? })
    }

    /// Records the rules that hit.
    ///
    /// # Errors
    /// The event cannot be written, so that the text must not be used.
    pub(crate) fn record(&self, checked: &Checked, direction: Direction, source: &str, key: &str) -> io::Result<()> {
        for hit in &checked.hits {
            let event = Event {
                time: Timestamp::now(),
                direction,
                rule: &hit.rule,
                action: hit.action,
                count: hit.count,
                blocked: checked.text.is_none(),
                source,
                key,
            };
            tracing::warn!(rule = event.rule, action = ?event.action, direction = ?direction, source, key, "safety rule hit");
            let Some(file) = &self.file else { continue };
            let mut line = serde_json::to_vec(&event)?;
            line.push(b'\n');
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            let (path, file, size) = &mut *file;
            if *size + line.len() as u64 > MAX_LOG {
                let mut older = path.clone().into_os_string();
                older.push(".1");
                std::fs::rename(&*path, older)?;
                *file = OpenOptions::new().create(true).append(true).open(&*path)?;
                *size = 0;
            }
            file.write_all(&line)?;
            *size += line.len() as u64;
        }
        Ok(())
    }
}
