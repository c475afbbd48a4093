//! A verdict as text, JSON, `JUnit`'s XML and annotations of GitHub Actions. Pure.

use std::fmt::Write as _;

use codex_verdict::{Gate, GateResult, Verdict};
use serde_json::json;

use super::Judged;

/// How a verdict is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// A line for each gate.
    Text,
    /// One JSON object.
    Json,
    /// `JUnit`'s XML: a failed gate is a failure, an inconclusive one an error.
    Junit,
    /// Annotations of GitHub Actions: a failed gate is an error, an inconclusive one a warning.
    Github,
}

impl Format {
    /// Returns the verdict in this format.
    pub(super) fn show(self, judged: &Judged) -> String {
        match self {
            Self::Text => text(judged),
            Self::Json => json(judged),
            Self::Junit => junit(judged),
            Self::Github => github(judged),
        }
    }
}

fn count(judged: &Judged, verdict: Verdict) -> usize {
    judged.gates.iter().filter(|(_, result)| result.verdict == verdict).count()
}

fn headline(judged: &Judged) -> String {
    let (passed, all) = (count(judged, Verdict::Passed), judged.gates.len());
    format!("{}: {passed} of {all} gates passed", judged.verdict)
}

/// What a gate requires, such as `exact_match at least 0.95`.
fn title(gate: &Gate) -> String {
    format!("{}: {}", gate.metric, gate.bound)
}

fn text(judged: &Judged) -> String {
    let mut text = format!("{}\n{}\n", judged.subject, headline(judged));
    for (gate, result) in &judged.gates {
        let _ = writeln!(text, "  {:<12}  {}: {}", result.verdict, gate.metric, result.message);
    }
    text
}

fn json(judged: &Judged) -> String {
    let gates: Vec<_> = judged.gates.iter().map(|(gate, result)| json!({ "gate": gate, "result": result })).collect();
    json!({
        "subject": judged.subject,
        "verdict": judged.verdict,
        "passed": count(judged, Verdict::Passed),
        "total": judged.gates.len(),
        "gates": gates,
    })
    .to_string()
}

fn junit(judged: &Judged) -> String {
    let (all, failed, undecided) =
        (judged.gates.len(), count(judged, Verdict::Failed), count(judged, Verdict::Inconclusive));
    let mut xml = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned();
    let name = xml_text(&judged.subject);
    let _ = writeln!(xml, "<testsuites tests=\"{all}\" failures=\"{failed}\" errors=\"{undecided}\">");
    let _ = writeln!(xml, "  <testsuite name=\"{name}\" tests=\"{all}\" failures=\"{failed}\" errors=\"{undecided}\">");
    for (gate, result) in &judged.gates {
        let _ = write!(xml, "    <testcase classname=\"gates\" name=\"{}\">", xml_text(&title(gate)));
        let message = xml_text(&result.message);
        let _ = match result.verdict {
            Verdict::Passed => write!(xml, "<system-out>{message}</system-out>"),
            Verdict::Failed => write!(xml, "<failure type=\"Failed\" message=\"{message}\"/>"),
            Verdict::Inconclusive => write!(xml, "<error type=\"Inconclusive\" message=\"{message}\"/>"),
        };
        xml.push_str("</testcase>\n");
    }
    xml.push_str("  </testsuite>\n</testsuites>\n");
    xml
}

/// Escapes text for XML; characters that XML cannot hold become question marks.
fn xml_text(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('?'),
            c => escaped.push(c),
        }
    }
    escaped
}

fn github(judged: &Judged) -> String {
    let line = |(gate, result): &(Gate, GateResult)| {
        let level = match result.verdict {
            Verdict::Passed => "notice",
            Verdict::Failed => "error",
            Verdict::Inconclusive => "warning",
        };
        let file = annotation(&judged.file.display().to_string(), true);
        let title = annotation(&format!("{}: {}", result.verdict, title(gate)), true);
        format!("::{level} file={file},title={title}::{}\n", annotation(&result.message, false))
    };
    let lines: String = judged.gates.iter().map(line).collect();
    format!("{lines}{}\n", annotation(&headline(judged), false))
}

/// Escapes the text of an annotation, and of its properties.
fn annotation(text: &str, is_property: bool) -> String {
    let text = text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    if is_property { text.replace(':', "%3A").replace(',', "%2C") } else { text }
}
