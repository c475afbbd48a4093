//! Records of training and evaluation data as JSON lines, and the parts of a response. Pure.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

/// The character that ends a response.
pub const END: char = '$';

/// A problem with its solution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The problem.
    pub prompt: String,
    /// The solution, step by step, and the answer as `#answer$`.
    pub response: String,
    /// The difficulty.
    pub difficulty: Difficulty,
    /// The kind of problem, such as `addition`.
    pub category: String,
    /// The cluster of problems that share a story, a template or a document, so that their outcomes depend on each other; absent if
    /// the problem is drawn on its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
}

/// The difficulty of a problem, by the digits of its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Difficulty {
    /// Operands of one digit.
    Easy,
    /// Operands of two digits, or a word problem with one digit.
    Medium,
    /// Operands of three digits, or a word problem with two digits.
    Hard,
    /// A word problem with three digits, a product, or longer operands.
    VeryHard,
}

/// A file of records is invalid.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The line is not UTF-8.
    #[error("{file}:{line}: not UTF-8: save the file as UTF-8, with one JSON object per line")]
    Encoding {
        /// The file's name.
        file: String,
        /// The line, counted from 1.
        line: usize,
    },
    /// The file is UTF-16.
    #[error("{file}:1: UTF-16 text: save the file as UTF-8, with one JSON object per line")]
    Utf16 {
        /// The file's name.
        file: String,
    },
    /// The line is not a JSON object with the keys of a record.
    #[error("{file}:{line}: invalid record: {why}; write {right}")]
    Malformed {
        /// The file's name.
        file: String,
        /// The line, counted from 1.
        line: usize,
        /// The parser's message, with the column.
        why: String,
        /// What to write.
        right: String,
    },
    /// The response has no end mark, or more than one.
    #[error("{file}:{line}: the response must end in '$' and contain no other '$'")]
    Unended {
        /// The file's name.
        file: String,
        /// The line, counted from 1.
        line: usize,
    },
    /// The file has no records.
    #[error("{file}: no records: write one JSON object per line")]
    Empty {
        /// The file's name.
        file: String,
    },
}

/// Reads records as JSON lines. `file` is the name in errors.
///
/// # Errors
/// [`RecordError`], with the file and the line.
pub fn parse_records(file: &str, bytes: &[u8]) -> Result<Vec<Record>, RecordError> {
    parse(file, bytes, true)
}

/// Reads records as JSON lines like [`parse_records`], with any response: it needs no end mark.
///
/// # Errors
/// [`RecordError`], with the file and the line.
pub fn parse_free_records(file: &str, bytes: &[u8]) -> Result<Vec<Record>, RecordError> {
    parse(file, bytes, false)
}

fn parse(file: &str, bytes: &[u8], ended: bool) -> Result<Vec<Record>, RecordError> {
    const RIGHT: &str = r#"{"prompt", "response", "difficulty", "category"}, with or without "cluster""#;
    json_lines(file, bytes, |line, text| {
        let file = || file.to_owned();
        let record: Record = codex_json::from_str(text).map_err(|source| {
            // The parser got a single line, so its line number is always 1.
            let why = source.to_string().replacen(" at line 1 column", " in column", 1);
            RecordError::Malformed { file: file(), line, why, right: RIGHT.to_owned() }
        })?;
        if ended && record.response.find(END) != Some(record.response.len().wrapping_sub(END.len_utf8())) {
            return Err(RecordError::Unended { file: file(), line });
        }
        Ok(record)
    })
}

/// Reads JSON lines with `parse`, which gets the number of a line and its text. Blank lines and a UTF-8 byte order mark are
/// skipped.
fn json_lines<T>(
    file: &str,
    bytes: &[u8],
    mut parse: impl FnMut(usize, &str) -> Result<T, RecordError>,
) -> Result<Vec<T>, RecordError> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(RecordError::Utf16 { file: file.to_owned() });
    }
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let mut records = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let text =
            std::str::from_utf8(line).map_err(|_| RecordError::Encoding { file: file.to_owned(), line: index + 1 })?;
        if !text.trim().is_empty() {
            records.push(parse(index + 1, text)?);
        }
    }
    if records.is_empty() {
        return Err(RecordError::Empty { file: file.to_owned() });
    }
    Ok(records)
}

/// Writes records as JSON lines.
///
/// # Errors
/// When writing to `out` fails.
pub fn write_records<'a>(records: impl IntoIterator<Item = &'a Record>, mut out: impl Write) -> io::Result<()> {
    for record in records {
        serde_json::to_writer(&mut out, record)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// Returns the steps of a reference, in order: its parts between white space before the marked answer (`#answer$`). The head of a
/// calculation, as in `3+64:3+4+0=07`, is a step of its own (`3+64:`). A reference without a marked answer is the answer itself and
/// has no steps.
pub fn steps(reference: &str) -> Vec<&str> {
    let text = reference.trim_end();
    let ends_in_mark = text.split_whitespace().next_back().is_some_and(|last| last.starts_with('#'));
    if ends_in_mark || answer(text).is_some() { written_steps(text) } else { Vec::new() }
}

/// Returns the steps of a text that a model wrote, which may have been cut off before its answer: as [`steps`], but a text without a
/// marked answer is steps alone.
pub fn written_steps(text: &str) -> Vec<&str> {
    let mut steps: Vec<&str> = text.split_whitespace().flat_map(|part| part.split_inclusive(':')).collect();
    if let Some(mark) = steps.iter().rposition(|part| part.starts_with('#'))
        && (mark + 1 == steps.len() || text.trim_end().ends_with(END))
    {
        steps.truncate(mark);
    }
    steps
}

/// Returns the length of the longest common subsequence: how many parts of `reference`, such as steps, are in `written`, in order.
pub fn common_in_order(reference: &[&str], written: &[&str]) -> usize {
    let mut found = vec![0; reference.len() + 1];
    for part in written {
        let mut diagonal = 0;
        for (index, wanted) in reference.iter().enumerate() {
            let above = found[index + 1];
            found[index + 1] = if wanted == part { diagonal + 1 } else { above.max(found[index]) };
            diagonal = above;
        }
    }
    found[reference.len()]
}

/// Returns the answer of a response: the text between its last `#` and the `$` that ends it. `None` if either is missing or the
/// answer is empty.
pub fn answer(response: &str) -> Option<&str> {
    let (_, answer) = response.strip_suffix(END)?.rsplit_once('#')?;
    (!answer.is_empty()).then_some(answer)
}

/// Returns the last number of a text in its shortest form: `-7` for `-07.0`. Commas between digits are skipped. A minus is a sign
/// only if no letter, digit or closing bracket stands before it.
pub fn last_number(text: &str) -> Option<String> {
    let characters: Vec<char> = text.chars().collect();
    let digit = |at: usize| characters.get(at).is_some_and(char::is_ascii_digit);
    let end = (0..characters.len()).rev().find(|at| digit(*at))? + 1;
    let mut start = end;
    let (mut whole, mut fraction) = (String::new(), None::<String>);
    while start > 0 {
        match characters[start - 1] {
            character if character.is_ascii_digit() => whole.insert(0, character),
            ',' if start >= 2 && digit(start - 2) && !whole.is_empty() => {}
            '.' if fraction.is_none() && start >= 2 && digit(start - 2) => fraction = Some(std::mem::take(&mut whole)),
            _ => break,
        }
        start -= 1;
    }
    let fraction = fraction.unwrap_or_default();
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    let signed = start > 0 && characters[start - 1] == '-';
    let operator = start > 1 && (characters[start - 2].is_alphanumeric() || ")]}".contains(characters[start - 2]));
    let sign = if signed && !operator && !(whole.is_empty() && fraction.is_empty()) { "-" } else { "" };
    let whole = if whole.is_empty() { "0" } else { whole };
    Some(if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_marked_answers_have_steps() {
        for (text, of_reference, written) in [
            ("3+64:3+4+0=07 6+0=06 #67$", &["3+64:", "3+4+0=07", "6+0=06"][..], &["3+64:", "3+4+0=07", "6+0=06"][..]),
            ("3+64: 3+4+0=07 #67\n", &["3+64:", "3+4+0=07"], &["3+64:", "3+4+0=07"]),
            ("#67$", &[], &[]),
            ("red + blue #dark violet$", &["red", "+", "blue"], &["red", "+", "blue"]),
            // An answer alone, and a text that was cut off.
            ("k", &[], &["k"]),
            ("3+64:3+4", &[], &["3+64:", "3+4"]),
            ("", &[], &[]),
        ] {
            assert_eq!((steps(text), written_steps(text)), (of_reference.to_vec(), written.to_vec()), "{text}");
        }
    }

    #[test]
    fn last_numbers_have_one_form() {
        for (text, number) in [
            ("The answer is 12.", Some("12")),
            ("4 - 1 = 3. 3 - 7 = -4. #-4", Some("-4")),
            ("15 - 3", Some("3")),
            ("15-3", Some("3")),
            ("f(2)-3", Some("3")),
            ("x = -03.50 apples", Some("-3.5")),
            ("It costs 1,234.00 in all", Some("1234")),
            ("-0", Some("0")),
            ("0.50", Some("0.5")),
            ("7.", Some("7")),
            (".5", Some("5")),
            ("no number", None),
            ("", None),
        ] {
            assert_eq!(last_number(text).as_deref(), number, "{text}");
        }
    }

    proptest! {
        #[test]
        fn last_numbers_are_found_in_any_text(before in ".*", number in -100_000_i64..100_000) {
            let text = format!("{before} {number} end");
            prop_assert_eq!(last_number(&text), Some(number.to_string()));
        }

        #[test]
        fn last_numbers_never_panic(text in ".*") {
            let _ = last_number(&text);
        }
    }

    #[test]
    fn a_byte_order_mark_is_skipped_and_utf_16_is_named() {
        let text = r##"{"prompt":"1+1:","response":"#2$","difficulty":"easy","category":"addition"}"##;
        let marked = format!("\u{feff}{text}\r\n{text}\r\n");
        assert_eq!(parse_records("a.jsonl", marked.as_bytes()).unwrap().len(), 2);
        let utf16: Vec<u8> = marked.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let error = parse_records("a.jsonl", &utf16).unwrap_err().to_string();
        assert_eq!(error, "a.jsonl:1: UTF-16 text: save the file as UTF-8, with one JSON object per line");
    }

    #[test]
    fn arrays_and_objects_in_the_place_of_names_are_refused() {
        let refused = |line: &str| parse_records("a.jsonl", line.as_bytes()).unwrap_err().to_string();
        let array = refused(r##"["1+1:","#2$","easy","addition"]"##);
        assert!(
            array.starts_with("a.jsonl:1: invalid record: invalid type: sequence, expected an object with prompt"),
            "{array}"
        );
        let object =
            refused(r##"{"prompt":"1+1:","response":"#2$","difficulty":{"easy":null},"category":"addition"}"##);
        assert!(
            object.starts_with("a.jsonl:1: invalid record: invalid type: map, expected the name as a string"),
            "{object}"
        );
    }

    prop_compose! {
        fn record()(
            prompt: String,
            response in "[^$]{0,40}",
            difficulty in prop::sample::select(vec![
                Difficulty::Easy, Difficulty::Medium, Difficulty::Hard, Difficulty::VeryHard,
            ]),
            category: String,
            cluster: Option<String>,
        ) -> Record {
            Record { prompt, response: response + "$", difficulty, category, cluster }
        }
    }

    proptest! {
        #[test]
        fn written_records_are_read(records in prop::collection::vec(record(), 1..8)) {
            let mut bytes = Vec::new();
            write_records(&records, &mut bytes).unwrap();
            prop_assert_eq!(parse_records("a", &bytes).unwrap(), records);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\n')], 0..200)) {
            prop_assert!(parse_records("a", &bytes).is_err());
        }

        /// A file with a changed byte is refused, or gives records that are written again as they were read.
        #[test]
        fn a_changed_file_is_read_as_it_is_written(
            records in prop::collection::vec(record(), 1..4), at: prop::sample::Index, byte: u8,
        ) {
            let mut bytes = Vec::new();
            write_records(&records, &mut bytes).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            match parse_records("a", &bytes) {
                Ok(read) => {
                    let mut again = Vec::new();
                    write_records(&read, &mut again).unwrap();
                    let values = |bytes: &[u8]| -> Vec<serde_json::Value> {
                        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
                        lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
                    };
                    prop_assert_eq!(values(&again), values(&bytes));
                }
                Err(error) => prop_assert!(error.to_string().starts_with("a:"), "{error}"),
            }
        }
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
    fn an_incomplete_response_has_no_answer() {
        assert_eq!(answer("7+6+0=13 #43"), None);
        assert_eq!(answer("7+6+0=13$"), None);
        assert_eq!(answer("#$"), None);
        assert_eq!(answer(""), None);
    }

    #[test]
    fn an_invalid_line_is_named() {
        let good = r##"{"prompt":"1+1:","response":"#2$","difficulty":"easy","category":"addition"}"##;
        let parse = |text: String| parse_records("data.jsonl", text.as_bytes());
        assert_eq!(parse(format!("{good}\n\n{good}")).unwrap().len(), 2);
        let said = |text: String| parse(text).unwrap_err().to_string();
        assert!(said(format!("{good}\n{{\"prompt\":1}}")).starts_with("data.jsonl:2: invalid record"));
        assert!(said(format!("{good}\n{}", good.replace('$', ""))).starts_with("data.jsonl:2: the response"));
        assert!(said(r#"{"prompt""#.to_owned()).contains("in column 9; write"));
        assert!(said("\n".to_owned()).starts_with("data.jsonl: no records"));
    }
}
