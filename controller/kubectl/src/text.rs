//! Text for terminals: tones, tables, ages. Everything from the cluster is escaped. Pure.

use std::{ffi::OsStr, fmt::Write as _};

use codex_provenance::text::Printable;
use jiff::Timestamp;

/// The tone of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Strong,
    Faint,
    Good,
    Bad,
    Waiting,
}

/// Writes texts in tones, with colours or without.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Painter {
    colour: bool,
}

impl Painter {
    pub(crate) fn new(colour: bool) -> Self {
        Self { colour }
    }

    /// Returns the text with its control characters escaped, in this tone.
    pub(crate) fn paint(self, tone: Tone, text: &str) -> String {
        let text = Printable(text);
        let code = match tone {
            Tone::Plain => return text.to_string(),
            _ if !self.colour => return text.to_string(),
            Tone::Strong => "1",
            Tone::Faint => "2",
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Waiting => "33",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

/// Whether to use colours: on a terminal that has them, unless `NO_COLOR` is set and not empty.
pub(crate) fn coloured(terminal: bool, no_color: Option<&OsStr>, term: Option<&OsStr>) -> bool {
    let refused = no_color.is_some_and(|value| !value.is_empty());
    terminal && !refused && term.is_some_and(|term| !term.is_empty() && term != "dumb")
}

/// Returns a table as kubectl prints it: columns of equal width, three spaces apart.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> = std::iter::once(header.map(str::to_owned))
        .chain(rows.iter().map(|row| row.clone().map(|cell| if cell.is_empty() { "-".to_owned() } else { cell })))
        .map(|row| row.map(|cell| Printable(&cell).to_string()))
        .collect();
    let widths: Vec<usize> =
        (0..N).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}   ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Returns the time between two moments as kubectl prints ages: `12s`, `3m`, `5h`, `2d`.
pub(crate) fn age(since: Timestamp, now: Timestamp) -> String {
    duration(now.duration_since(since).as_secs())
}

/// Returns seconds in the largest unit that is at least twice contained, at most days.
pub(crate) fn duration(seconds: i64) -> String {
    match seconds.max(0) {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7_200 => format!("{}m", seconds / 60),
        seconds @ 7_200..172_800 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::{Painter, Tone, coloured, duration, table};

    #[test]
    fn what_directs_a_terminal_is_escaped() {
        let hostile = "a\u{1b}[2Jb\nc";
        assert_eq!(Painter::new(false).paint(Tone::Bad, hostile), "a\\u{1b}[2Jb\\nc");
        assert_eq!(Painter::new(true).paint(Tone::Good, "a\u{1b}"), "\u{1b}[32ma\\u{1b}\u{1b}[0m");
        assert_eq!(
            table(["A", "B"], &[[hostile.to_owned(), String::new()]]),
            "A                B\na\\u{1b}[2Jb\\nc   -\n"
        );
    }

    #[test]
    fn colours_are_for_terminals_that_want_them() {
        let (none, set, empty) = (None, Some(OsStr::new("1")), Some(OsStr::new("")));
        let xterm = Some(OsStr::new("xterm"));
        assert!(coloured(true, none, xterm) && coloured(true, empty, xterm));
        assert!(!coloured(false, none, xterm) && !coloured(true, set, xterm));
        assert!(!coloured(true, none, Some(OsStr::new("dumb"))) && !coloured(true, none, none));
    }

    #[test]
    fn durations_have_one_unit() {
        let all = [-1, 0, 119, 120, 7_199, 7_200, 172_799, 172_800].map(duration);
        assert_eq!(all, ["0s", "0s", "119s", "2m", "119m", "2h", "47h", "2d"]);
    }
}
