//! Files of rows that are rotated by size: `FILE.1`, `FILE.2` and so on, the oldest first, then `FILE`, which receives new rows. Reads
//! directories.
//!
//! A number is given once and a numbered file never changes, unless a run resumes from a step in it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The most bytes of a file of rows, unless a run is told otherwise.
pub const SIZE: u64 = 64 << 20;

/// A file of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its path.
    pub path: PathBuf,
    /// Its number; `None` for the file that receives new rows.
    pub number: Option<u64>,
}

/// Returns the files of the rows at `path` that exist, the oldest first.
///
/// # Errors
/// The directory cannot be read.
pub fn segments(path: &Path) -> io::Result<Vec<Segment>> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?.file_name();
        let Some(rest) = entry.to_str().and_then(|entry| entry.strip_prefix(name)) else { continue };
        let number = rest.strip_prefix('.').and_then(number);
        if rest.is_empty() || number.is_some() {
            found.push(Segment { path: path.with_file_name(&entry), number });
        }
    }
    found.sort_by_key(|segment| segment.number.unwrap_or(u64::MAX));
    Ok(found)
}

/// Returns the path of the file of rows with this number.
pub fn numbered(path: &Path, number: u64) -> PathBuf {
    path.with_added_extension(number.to_string())
}

/// Reads a number as [`numbered`] writes it.
fn number(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number > 0 && number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_in_the_order_of_their_rows() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("ledger.ndjson");
        assert_eq!(segments(&path).unwrap(), []);
        assert_eq!(segments(&root.path().join("nowhere/ledger.ndjson")).unwrap(), []);
        for name in ["", ".2", ".10", ".1", ".0", ".01", ".damaged-1", ".1.tmp", "x"] {
            fs::write(root.path().join(format!("ledger.ndjson{name}")), "").unwrap();
        }
        let numbers: Vec<Option<u64>> = segments(&path).unwrap().into_iter().map(|segment| segment.number).collect();
        assert_eq!(numbers, [Some(1), Some(2), Some(10), None]);
        assert_eq!(segments(&path).unwrap()[2].path, numbered(&path, 10));
    }
}
