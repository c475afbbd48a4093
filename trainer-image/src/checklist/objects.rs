//! The objects of a chain in files. Reads files.

use std::path::{Path, PathBuf};

use codex_checklist::Chain;
use codex_provenance::{files, text::Printable};
use codex_validate::{GROUP, Validator, documents};
use serde_json::Value;

use crate::error::CommandError;

/// The largest file of objects, in bytes.
const MAX_OBJECTS: usize = 64 << 20;
/// Kinds of Kubernetes that say what a namespace allows.
const ALLOWANCES: [&str; 2] = ["ResourceQuota", "LimitRange"];
/// The kinds that are read besides those of codex: what a namespace allows, and templates of runs.
const OTHERS: [&str; 3] = ["ResourceQuota", "LimitRange", "ConfigMap"];

/// Reads the objects of a file, and the quotas and ranges of `limits`, and chooses the ReasoningPod, the one of this name if there are
/// several.
///
/// # Errors
/// Exit code 2: a file cannot be read, an object is invalid, or there is not exactly one ReasoningPod to choose.
pub(crate) fn read(path: &Path, limits: &[PathBuf], chosen: Option<&str>) -> Result<Chain, CommandError> {
    let shown = path.display().to_string();
    let wrong = |why: String| CommandError::bad_input(format!("--config: {}: {why}", Printable(&shown)));
    let content = content(path).map_err(wrong)?;
    // Nothing of a file is quoted before it is known to hold objects: it may be a token or a key.
    if !content.contains(GROUP) {
        return Err(wrong(format!("it holds no objects of {GROUP}: name the file of the ReasoningPod")));
    }
    let validator = Validator::new().map_err(|error| CommandError::failed(error.to_string()))?;
    let mut objects = validator.objects(&content).map_err(|findings| {
        let all: Vec<_> = findings.iter().map(|it| Printable(&it.to_string()).to_string()).collect();
        wrong(format!("{}: correct it (codex validate shows the same)", all.join("; ")))
    })?;
    objects.extend(of_kinds(&content, &OTHERS).map_err(wrong)?);
    for path in limits {
        let shown = path.display().to_string();
        let wrong = |why: String| CommandError::bad_input(format!("--limits: {}: {why}", Printable(&shown)));
        let found = self::content(path).and_then(|content| of_kinds(&content, &ALLOWANCES)).map_err(wrong)?;
        if found.is_empty() {
            return Err(wrong(format!("it holds no {}", ALLOWANCES.join(" and no "))));
        }
        objects.extend(found);
    }
    Chain::of(&shown, objects, chosen).map_err(wrong)
}

/// Reads a file of objects; the error is one sentence.
fn content(path: &Path) -> Result<String, String> {
    let bytes = files::read_start(path, MAX_OBJECTS).map_err(|why| why.to_string())?;
    if bytes.len() > MAX_OBJECTS {
        return Err(format!("it has more than {MAX_OBJECTS} bytes: no manifest is that large"));
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text: save it as UTF-8".to_owned())
}

/// Returns the objects of these kinds in a file, also those in a List. The error is one sentence.
fn of_kinds(content: &str, kinds: &[&str]) -> Result<Vec<Value>, String> {
    // A file that names no such kind is not parsed, so that nothing of it is quoted.
    if !kinds.iter().any(|kind| content.contains(kind)) {
        return Ok(Vec::new());
    }
    let documents = documents(content).map_err(|finding| finding.to_string())?;
    let items = documents.into_iter().flat_map(|document| match document.get("items") {
        Some(Value::Array(items)) => items.clone(),
        _ => vec![document],
    });
    Ok(items.filter(|object| kinds.iter().any(|kind| object["kind"] == *kind)).collect())
}
