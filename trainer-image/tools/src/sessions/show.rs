//! How events are shown: to people, and as lines of JSON. Pure.

use std::fmt::Write as _;

use codex_provenance::text::Printable;

use super::{
    database::Summary,
    event::{Event, time},
};

/// How events are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// Lines for people.
    #[default]
    Text,
    /// A line of JSON for each event, as in the file of a session.
    Json,
}

/// Returns an event in a format, with its line feeds.
pub(super) fn event(event: &Event, format: Format, with_session: bool) -> String {
    match format {
        // The times of events were checked.
        Format::Json => event.line().unwrap_or_default(),
        Format::Text => {
            let mut head = shown(event.ts);
            if with_session {
                let _ = write!(head, "  {}", event.session_id);
            }
            let _ = write!(head, "  {:<9}  ", event.role);
            let indent = " ".repeat(head.chars().count());
            let mut text = String::new();
            // Texts of others must not direct the terminal.
            for (index, line) in event.message.trim_end_matches(['\r', '\n']).split('\n').enumerate() {
                let before = if index == 0 { &head } else { &indent };
                let line = line.trim_end_matches('\r');
                let _ = writeln!(text, "{}", format!("{before}{}", Printable(line)).trim_end());
            }
            text
        }
    }
}

/// Returns the summary of a session in a format, with its line feed.
pub(super) fn summary(summary: &Summary, format: Format) -> String {
    match format {
        Format::Json => serde_json::to_string(summary).unwrap_or_default() + "\n",
        Format::Text => format!(
            "{}  {}  {:>8}  {}\n",
            shown(summary.first),
            shown(summary.last),
            summary.events,
            Printable(&summary.session_id)
        ),
    }
}

/// Returns a time to the millisecond.
fn shown(ts: f64) -> String {
    time(ts).map_or_else(|| "?".to_owned(), |time| time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sessions::Role;

    #[test]
    fn people_see_aligned_lines_and_nothing_that_directs_a_terminal() {
        let said = Event {
            ts: 1_764_320_400.25,
            session_id: "a".parse().unwrap(),
            role: Role::Warn,
            message: "one\ntwo\u{1b}[2J\n".to_owned(),
        };
        assert_eq!(
            event(&said, Format::Text, true),
            "2025-11-28T09:00:00.250Z  a  WARN       one\n                                        two\\u{1b}[2J\n"
        );
        assert_eq!(
            event(&said, Format::Json, false),
            "{\"ts\":1764320400.25,\"session_id\":\"a\",\"role\":\"WARN\",\"message\":\"one\\ntwo\\u001b[2J\\n\"}\n"
        );
    }
}
