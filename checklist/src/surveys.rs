//! Surveys in files and in a folder, and their dates. Reads files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use codex_provenance::files;
use jiff::civil::Date;

use crate::Survey;

/// The largest survey that is read, in bytes.
const MAX_BYTES: usize = 64 << 20;

/// Reads the date of a survey from the command line.
///
/// # Errors
/// The text is no date; one sentence.
pub fn date(text: &str) -> Result<Date, String> {
    text.parse().map_err(|_| "write a date, such as 2026-11-28".to_owned())
}

/// Reads the named survey, or else the surveys in a folder, with the names of their files, the oldest first.
///
/// # Errors
/// The named file cannot be read, or is no survey of this version; one sentence with its path.
pub fn at_hand(named: Option<&Path>, folder: &Path) -> Result<Vec<(String, Survey)>, String> {
    named.map_or_else(|| Ok(in_folder(folder)), |path| Ok(vec![(file_name(path), read(path)?)]))
}

/// Reads a survey.
///
/// # Errors
/// The file cannot be read, or is no survey of this version; one sentence with its path.
fn read(path: &Path) -> Result<Survey, String> {
    let unusable = |why: String| format!("{} cannot be used: {why}", path.display());
    let bytes = files::read_start(path, MAX_BYTES).map_err(|why| unusable(why.to_string()))?;
    if bytes.len() > MAX_BYTES {
        return Err(unusable(format!("it has more than {MAX_BYTES} bytes")));
    }
    Survey::from_json(&bytes).map_err(unusable)
}

/// Reads the surveys in a folder with the names of their files, the oldest first. Files that are no surveys are left out.
fn in_folder(folder: &Path) -> Vec<(String, Survey)> {
    let is_survey = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("survey-") && path.extension().is_some_and(|extension| extension == "json")
    };
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut surveys: Vec<(String, Survey)> =
        entries.filter(is_survey).filter_map(|path| Some((file_name(&path), read(&path).ok()?))).collect();
    surveys.sort_by(|(one, first), (other, second)| (&first.date, one).cmp(&(&second.date, other)));
    surveys
}

/// Returns the name of a file without its folder.
fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
