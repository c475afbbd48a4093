//! The generated parts of the documents: tables between two comment lines.

use std::fmt::Write as _;

use crate::{Contract, activator, alerts, controller, gpu, server, trainer};

/// The tables of a page, by the name in their comment lines.
pub type Tables = Vec<(&'static str, String)>;

/// Returns the tables of `docs/metrics.md`.
pub fn metrics() -> Tables {
    let tables = [
        ("controller", controller::ALL),
        ("server", server::ALL),
        ("activator", activator::ALL),
        ("trainer", trainer::ALL),
        ("gpu", gpu::ALL),
    ];
    tables.map(|(name, metrics)| (name, table(metrics))).into()
}

/// Returns the table of `docs/runbooks.md`.
pub fn runbooks() -> Tables {
    let mut text = "| Alert | Severity | Lasting | Meaning |\n|---|---|---|---|\n".to_owned();
    for alert in alerts::ALL.iter() {
        let (name, anchor) = (alert.name, alert.name.to_lowercase());
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| [{name}](#{anchor}) | {} | {} | {} |",
            alert.severity.name(),
            alert.lasting,
            alert.summary
        );
    }
    vec![("alerts", text)]
}

fn table(metrics: &[&Contract]) -> String {
    let mut text = "| Metric | Type, unit | Labels | Meaning |\n|---|---|---|---|\n".to_owned();
    for metric in metrics {
        let labels: Vec<_> = metric.labels.iter().map(|label| label.name).collect();
        let mut meaning = metric.help.to_owned();
        for more in [metric.more, if metric.later && metric.more.is_empty() { LATER } else { "" }] {
            if !more.is_empty() {
                meaning.push(' ');
                meaning.push_str(more);
            }
        }
        let (kind, unit) = (metric.kind.name(), metric.unit.name());
        let _ = writeln!(text, "| `{}` | {kind}, {unit} | {} | {meaning} |", metric.name, labels.join(", "));
    }
    text
}

/// Said about metrics without other text that appear only after an event.
const LATER: &str = "Appears with the first one.";

/// Replaces the tables of a page.
///
/// # Errors
/// The name of a table whose comment lines are missing in the page.
pub fn filled(page: &str, tables: &Tables) -> Result<String, &'static str> {
    let mut page = page.to_owned();
    for (name, table) in tables {
        let (begin, end) = (format!("<!-- generated: {name} -->\n"), "<!-- end -->");
        let (before, rest) = page.split_once(&begin).ok_or(*name)?;
        let (_, after) = rest.split_once(end).ok_or(*name)?;
        page = format!("{before}{begin}{table}{end}{after}");
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::filled;

    #[test]
    fn only_the_text_between_the_comment_lines_changes() {
        let page = "a\n<!-- generated: x -->\nold\n<!-- end -->\nb\n";
        let tables = vec![("x", "new\n".to_owned())];
        assert_eq!(filled(page, &tables).unwrap(), "a\n<!-- generated: x -->\nnew\n<!-- end -->\nb\n");
        assert_eq!(filled("no table", &tables), Err("x"));
    }
}
