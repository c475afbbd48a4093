//! The lines of keys in a text of YAML. Pure. Values are never taken from here: another parser reads them.

use std::collections::BTreeMap;

use saphyr::{MarkedYaml, YamlData, YamlLoader};

/// Returns the line of every key of the first document, counted from 1, by its path: names with dots between them. Empty if the
/// text cannot be parsed.
pub fn lines(text: &str) -> BTreeMap<String, usize> {
    let mut lines = BTreeMap::new();
    if let Some(document) = document(text) {
        walk(&document, "", &mut lines);
    }
    lines
}

/// Returns the line of every entry of the list under a key at the top of a text, counted from 1. Empty if there is no such list.
pub(crate) fn items(text: &str, key: &str) -> Vec<usize> {
    let Some(MarkedYaml { data: YamlData::Mapping(fields), .. }) = document(text) else { return Vec::new() };
    let named = |name: &MarkedYaml| matches!(&name.data, YamlData::Representation(text, ..) if *text == key);
    match fields.iter().find(|(name, _)| named(name)).map(|(_, list)| &list.data) {
        Some(YamlData::Sequence(entries)) => entries.iter().map(|entry| entry.span.start.line()).collect(),
        _ => Vec::new(),
    }
}

/// Parses the first document of a text. `None` if it cannot be parsed.
fn document(text: &str) -> Option<MarkedYaml<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut loader = YamlLoader::<MarkedYaml>::default();
    loader.early_parse(false);
    let loaded = saphyr_parser::Parser::new_from_str(text).load(&mut loader, true);
    if loaded.is_err() || loader.error().is_some() {
        return None;
    }
    loader.into_documents().into_iter().next()
}

fn walk(node: &MarkedYaml, parent: &str, lines: &mut BTreeMap<String, usize>) {
    let YamlData::Mapping(fields) = &node.data else { return };
    for (key, value) in fields {
        let YamlData::Representation(name, ..) = &key.data else { continue };
        let path = if parent.is_empty() { name.to_string() } else { format!("{parent}.{name}") };
        walk(value, &path, lines);
        lines.entry(path).or_insert_with(|| key.span.start.line());
    }
}

/// Returns the line on which a text names a key again, for parsers that only say that it does.
pub(crate) fn second(text: &str, key: &str) -> Option<usize> {
    let name = key.rsplit('.').next().unwrap_or(key);
    let named = |line: &str| {
        let line = line.trim_start();
        let line = line.strip_prefix(['"', '\'']).unwrap_or(line);
        let rest = line.strip_prefix(key).or_else(|| line.strip_prefix(name));
        rest.is_some_and(|rest| rest.trim_start_matches(['"', '\'']).trim_start().starts_with(':'))
    };
    text.lines().zip(1..).filter(|(line, _)| named(line)).nth(1).map(|(_, number)| number)
}
