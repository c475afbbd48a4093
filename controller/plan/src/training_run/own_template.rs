//! The template of a run that a ConfigMap holds. Pure.

use codex_crds::TrainingRunSpec;
use codex_provenance::Sha256;

use super::view::View;
use crate::{data, pods::References};

/// The field that names the ConfigMap.
const FIELD: &str = "spec.templateFrom.configMap";

/// Returns the text of the template, if the spec names one and the text has the pinned digest; `None` without `spec.templateFrom`.
///
/// # Errors
/// One sentence that says what to change.
pub(super) fn pinned<'a>(spec: &TrainingRunSpec, text: Option<&'a str>) -> Result<Option<&'a str>, String> {
    let Some(from) = &spec.template_from else { return Ok(None) };
    let (name, key) = (&from.config_map.name, &from.config_map.key);
    let Some(text) = text else {
        return Err(format!("{FIELD}: the key {key:?} of the ConfigMap {name:?} was not read"));
    };
    let (found, wanted) = (Sha256::of(text).to_string(), &from.sha256);
    if found == *wanted {
        return Ok(Some(text));
    }
    Err(format!(
        "{FIELD}: the key {key:?} of the ConfigMap {name:?} has the SHA-256 {found}, but spec.templateFrom.sha256 is {wanted}: restore the \
         text, or create another object with the digest of this one"
    ))
}

/// Returns what is missing of the template before there is a Job, in sentences. `None` if nothing is.
pub(super) fn missing(view: &View<'_>) -> Option<Vec<String>> {
    let from = view.spec().template_from.as_ref()?;
    if view.work.job.is_some() || view.observed.template.is_some() {
        return None;
    }
    let none = References::default();
    let references = view.observed.references.as_ref().unwrap_or(&none);
    let mut missing = data::missing(&[], &[], &[(FIELD.to_owned(), &from.config_map)], references);
    if missing.is_empty() {
        let (name, key) = (&from.config_map.name, &from.config_map.key);
        missing.push(format!(
            "{FIELD}.key is {key:?}, which is binary in the ConfigMap {name:?}: write the text under data"
        ));
    }
    Some(missing)
}
