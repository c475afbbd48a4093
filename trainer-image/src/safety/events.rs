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

/// The path that stands for standard output.
const STANDARD_OUTPUT: &str = "-";

/// What happened to a text. It holds nothing of the text.
#[derive(Serialize)]
struct Event<'a> {
    /// Tells the line apart from others on standard output.
    #[serde(rename = "type")]
    kind: &'static str,
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

/// Where events go.
pub(crate) enum Log {
    /// To the program's own log.
    Own,
    /// To standard output, as lines of JSON, which is where collectors of a cluster find them.
    Output,
    /// To a file, as lines of JSON, and to the program's own log.
    File(Mutex<(PathBuf, File, u64)>),
}

impl Log {
    /// Opens a log, which is appended to; `-` is standard output.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(crate) fn open(path: Option<&Path>) -> io::Result<Self> {
        let Some(path) = path else { return Ok(Self::Own) };
        if path == Path::new(STANDARD_OUTPUT) {
            return Ok(Self::Output);
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self::File(Mutex::new((path.to_owned(), file, size))))
    }

    /// Records the rules that hit.
    ///
    /// # Errors
    /// The event cannot be written, so that the text must not be used.
    pub(crate) fn record(&self, checked: &Checked, direction: Direction, source: &str, key: &str) -> io::Result<()> {
        for hit in &checked.hits {
            let event = Event {
                kind: "safety_event",
                time: Timestamp::now(),
                direction,
                rule: &hit.rule,
                action: hit.action,
                count: hit.count,
                blocked: checked.text.is_none(),
                source,
                key,
            };
            let mut line = serde_json::to_vec(&event)?;
            line.push(b'\n');
            if let Self::Output = self {
                io::stdout().lock().write_all(&line)?;
                continue;
            }
            tracing::warn!(rule = event.rule, action = ?event.action, direction = ?direction, source, key, "safety rule hit");
            let Self::File(file) = self else { continue };
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
