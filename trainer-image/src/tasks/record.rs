//! A record of training or evaluation data as a line of JSON, and how a response is taken apart. Pure.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

/// The character that ends a response.
pub const END: char = '$';

/// One problem with its solution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What is asked.
    pub prompt: String,
    /// The solution, step by step, and the answer as `#answer$`.
    pub response: String,
    /// How hard it is.
    pub difficulty: Difficulty,
    /// What kind of problem it is, such as `addition`.
    pub category: String,
}

/// How hard a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Difficulty {
    /// One digit.
    Easy,
    /// Two digits, or a story with one.
    Medium,
    /// Three digits, or a story with two.
    Hard,
    /// A story with three.
    VeryHard,
}

/// A line that is no record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not UTF-8.
    #[error("{file}:{line}: not UTF-8; write one JSON object a line")]
    Encoding {
        /// The file's name.
        file: String,
        /// The line, counted from 1.
        line: usize,
    },
    /// Bytes before the first record that say what UTF-8 need not say.
    #[error("{file}:1: begins with a byte order mark: save the file as UTF-8 without one")]
    ByteOrderMark {
        /// The file's name.
        file: String,
    },
    /// No JSON, or another shape.
    #[error("{file}:{line}: no record: {why}; write {{\"prompt\", \"response\", \"difficulty\", \"category\"}}")]
    Malformed {
        /// The file's name.
        file: String,
        /// The line, counted from 1.
        line: usize,
        /// What the parser says, and in which column.
        why: String,
    },
    /// A response that does not end, or ends twice.
    #[error("{file}:{line}: the response must end in '$' and hold no other '$'")]
    Unended {
        /// The file's name.
        file: String,
        /// The line, counted from 1.
        line: usize,
    },
    /// Nothing in it.
    #[error("{file}: no records; write one JSON object a line")]
    Empty {
        /// The file's name.
        file: String,
    },
}

/// Reads JSON lines; lines of white space are passed over. `file` is the name that an error tells.
///
/// # Errors
/// [`RecordError`], with the file and the line.
pub fn parse_records(file: &str, bytes: &[u8]) -> Result<Vec<Record>, RecordError> {
    if bytes.starts_with("\u{feff}".as_bytes()) {
        return Err(RecordError::ByteOrderMark { file: file.to_owned() });
    }
    let mut records = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let at = || (file.to_owned(), index + 1);
        let line = std::str::from_utf8(line).map_err(|_| {
            let (file, line) = at();
            RecordError::Encoding { file, line }
        })?;
        if line.trim().is_empty() {
            continue;
        }
        let record: Record = serde_json::from_str(line).map_err(|source| {
            let (file, line) = at();
            // The parser saw one line and calls it the first.
            let why = source.to_string().replacen(" at line 1 column", " in column", 1);
            RecordError::Malformed { file, line, why }
        })?;
        if record.response.find(END) != Some(record.response.len().wrapping_sub(END.len_utf8())) {
            let (file, line) = at();
            return Err(RecordError::Unended { file, line });
        }
        records.push(record);
    }
    if records.is_empty() {
        return Err(RecordError::Empty { file: file.to_owned() });
    }
    Ok(records)
}

/// Writes records as JSON lines.
///
/// # Errors
/// When `out` cannot be written.
pub fn write_records<'a>(records: impl IntoIterator<Item = &'a Record>, mut out: impl Write) -> io::Result<()> {
    for record in records {
        serde_json::to_writer(&mut out, record)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// The steps of a response, in order: what white space separates, without the final `#answer$`. A head that says what is
/// computed next, as in `3+64:3+4+0=07`, is a step of its own (`3+64:`).
pub fn steps(response: &str) -> Vec<&str> {
    let mut steps: Vec<&str> = response.split_whitespace().flat_map(|part| part.split_inclusive(':')).collect();
    if steps.last().is_some_and(|last| last.starts_with('#')) {
        steps.pop();
    }
    steps
}

/// The answer of a response: what stands between its last `#` and the `$` that ends it. None when it does not end, or has
/// no answer, or an empty one.
pub fn answer(response: &str) -> Option<&str> {
    let (_, answer) = response.strip_suffix(END)?.rsplit_once('#')?;
    (!answer.is_empty()).then_some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_is_named() {
        let error = parse_records("a.jsonl", b"\xef\xbb\xbf{\"prompt\":\"\"}").unwrap_err().to_string();
        assert_eq!(error, "a.jsonl:1: begins with a byte order mark: save the file as UTF-8 without one");
    }

    #[test]
    fn a_response_is_taken_apart() {
        let response = "3+64:3+4+0=07 0+6+0=06 #67 3+67:3+7+0=10 0+6+1=07 #70$";
        assert_eq!(steps(response), ["3+64:", "3+4+0=07", "0+6+0=06", "#67", "3+67:", "3+7+0=10", "0+6+1=07"]);
        assert_eq!(answer(response), Some("70"));
        assert_eq!(steps("#-216$"), [""; 0]);
        assert_eq!(answer("#-216$"), Some("-216"));
    }

    #[test]
    fn what_does_not_end_has_no_answer() {
        assert_eq!(answer("7+6+0=13 #43"), None);
        assert_eq!(answer("7+6+0=13$"), None);
        assert_eq!(answer("#$"), None);
        assert_eq!(answer(""), None);
    }

    #[test]
    fn a_malformed_line_is_named() {
        let good = r##"{"prompt":"1+1:","response":"#2$","difficulty":"easy","category":"addition"}"##;
        let parse = |text: String| parse_records("data.jsonl", text.as_bytes());
        assert_eq!(parse(format!("{good}\n\n{good}")).unwrap().len(), 2);
        let said = |text: String| parse(text).unwrap_err().to_string();
        assert!(said(format!("{good}\n{{\"prompt\":1}}")).starts_with("data.jsonl:2: no record"));
        assert!(said(format!("{good}\n{}", good.replace('$', ""))).starts_with("data.jsonl:2: the response"));
        assert!(said(r#"{"prompt""#.to_owned()).contains("in column 9; write"));
        assert!(said("\n".to_owned()).starts_with("data.jsonl: no records"));
    }
}
