//! The recorded predictions of a baseline: what a model is compared with, pinned as a file. Pure.
//!
//! One JSON object a line, `{"prompt", "prediction"}`; an empty prediction is an answer that is wrong.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a baseline answered to one problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prediction {
    /// The problem's prompt.
    pub prompt: String,
    /// The response as it was generated; empty where none was.
    pub prediction: String,
}

/// A baseline that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    /// A line that is no prediction.
    #[error("{file}:{line}: invalid prediction: {why}; write {{\"prompt\", \"prediction\"}}")]
    Malformed {
        /// The file.
        file: String,
        /// The line, counted from 1.
        line: usize,
        /// The parser's message, with the column.
        why: String,
    },
    /// The file is UTF-16.
    #[error("{file}:1: UTF-16 text: save the file as UTF-8, with one JSON object per line")]
    Utf16 {
        /// The file.
        file: String,
    },
    /// Two predictions for one problem.
    #[error("{file}:{line}: a second prediction for the prompt of line {first}: keep one of the two")]
    Repeated {
        /// The file.
        file: String,
        /// The line, counted from 1.
        line: usize,
        /// The line of the first prediction.
        first: usize,
    },
    /// A problem without a prediction: counting it as wrong would make the judged model look better.
    #[error(
        "{file}: no prediction for {problem}: record the baseline on these problems (codex evaluate --record-baseline)"
    )]
    Missing {
        /// The file.
        file: String,
        /// Where the problem stands.
        problem: String,
    },
}

/// A baseline's predictions by prompt.
#[derive(Clone, Debug, Default)]
pub struct Baseline {
    file: String,
    /// By prompt, with the line.
    predictions: BTreeMap<String, (usize, String)>,
}

impl Baseline {
    /// Reads recorded predictions. Blank lines and a UTF-8 byte order mark are skipped. `file` is the name in errors.
    ///
    /// # Errors
    /// [`BaselineError`], with the file and the line.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, BaselineError> {
        if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
            return Err(BaselineError::Utf16 { file: file.to_owned() });
        }
        let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
        let mut predictions = BTreeMap::new();
        for (index, text) in bytes.split(|byte| *byte == b'\n').enumerate() {
            if text.trim_ascii().is_empty() {
                continue;
            }
            let (file, line) = (file.to_owned(), index + 1);
            let Prediction { prompt, prediction } = match codex_json::from_slice(text) {
                Ok(prediction) => prediction,
                Err(source) => {
                    // The parser got a single line, so its line number is always 1.
                    let why = source.to_string().replacen(" at line 1 column", " in column", 1);
                    return Err(BaselineError::Malformed { file, line, why });
                }
            };
            if let Some((first, _)) = predictions.get(&prompt) {
                return Err(BaselineError::Repeated { file, line, first: *first });
            }
            predictions.insert(prompt, (line, prediction));
        }
        Ok(Self { file: file.to_owned(), predictions })
    }

    /// Predictions.
    pub fn len(&self) -> usize {
        self.predictions.len()
    }

    /// True when it has no prediction at all.
    pub fn is_empty(&self) -> bool {
        self.predictions.is_empty()
    }

    /// What the baseline answered to a problem; `None` where nothing was recorded.
    pub fn prediction(&self, prompt: &str) -> Option<&str> {
        self.predictions.get(prompt).map(|(_, prediction)| prediction.as_str())
    }

    /// Checks that the baseline answered a problem, which stands in this line of `file`.
    ///
    /// # Errors
    /// [`BaselineError::Missing`] where nothing was recorded.
    pub fn check(&self, prompt: &str, file: &str, line: usize) -> Result<(), BaselineError> {
        let missing = || BaselineError::Missing { file: self.file.clone(), problem: format!("{file}:{line}") };
        self.prediction(prompt).map(|_| ()).ok_or_else(missing)
    }
}

/// The lines of a baseline file.
///
/// # Errors
/// Only where JSON cannot carry a text, which no text is.
pub(super) fn write<'a>(
    predictions: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = Vec::new();
    for (prompt, prediction) in predictions {
        let line = Prediction { prompt: prompt.to_owned(), prediction: prediction.to_owned() };
        serde_json::to_writer(&mut bytes, &line)?;
        bytes.push(b'\n');
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Writes a baseline of these predictions.
    fn written(predictions: &BTreeMap<String, String>) -> Vec<u8> {
        write(predictions.iter().map(|(prompt, prediction)| (prompt.as_str(), prediction.as_str()))).unwrap()
    }

    fn predictions() -> impl Strategy<Value = BTreeMap<String, String>> {
        prop::collection::btree_map(any::<String>(), any::<String>(), 1..8)
    }

    proptest! {
        #[test]
        fn written_predictions_are_read(predictions in predictions(), marked: bool, windows: bool) {
            let mut text = String::from_utf8(written(&predictions)).unwrap();
            if windows {
                text = text.replace('\n', "\r\n");
            }
            let text = if marked { format!("\u{feff}{text}") } else { text };
            let baseline = Baseline::parse("b", text.as_bytes()).unwrap();
            prop_assert_eq!(baseline.len(), predictions.len());
            for (prompt, prediction) in &predictions {
                prop_assert_eq!(baseline.prediction(prompt).unwrap(), prediction);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\n')], 0..200)) {
            match Baseline::parse("b", &bytes) {
                Ok(baseline) => prop_assert!(baseline.is_empty(), "random bytes hold no prediction"),
                Err(error) => {
                    let told = error.to_string();
                    prop_assert!(told.starts_with("b:") && !told.contains('\n'), "{told}");
                }
            }
        }

        /// A file with a changed byte is refused with its line, or holds what its lines say.
        #[test]
        fn a_changed_file_is_refused_or_read_as_it_is_written(
            predictions in predictions(), at: prop::sample::Index, byte: u8,
        ) {
            let mut bytes = written(&predictions);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            match Baseline::parse("b", &bytes) {
                Ok(baseline) => {
                    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
                    let values: Vec<serde_json::Value> = lines.map(|line| serde_json::from_slice(line).unwrap()).collect();
                    prop_assert_eq!(values.len(), baseline.len());
                    for value in values {
                        let prompt = value["prompt"].as_str().unwrap();
                        prop_assert_eq!(value["prediction"].as_str(), baseline.prediction(prompt));
                    }
                }
                Err(error) => prop_assert!(error.to_string().starts_with("b:"), "{error}"),
            }
        }
    }

    #[test]
    fn utf_16_and_the_column_are_named() {
        let text = r##"{"prompt":"1+1:","prediction":"#2$"}"##;
        let refused = |bytes: &[u8]| Baseline::parse("b.jsonl", bytes).unwrap_err().to_string();
        for utf16 in [u16::to_le_bytes, u16::to_be_bytes] {
            let bytes: Vec<u8> = format!("\u{feff}{text}").encode_utf16().flat_map(utf16).collect();
            assert_eq!(
                refused(&bytes),
                "b.jsonl:1: UTF-16 text: save the file as UTF-8, with one JSON object per line"
            );
        }
        let told = refused(format!("{text}\n{}", &text[..20]).as_bytes());
        assert!(told.starts_with("b.jsonl:2: invalid prediction: ") && told.contains(" in column 20;"), "{told}");
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = write([("1+1:", "#2$"), ("2+2:", "")]).unwrap();
        let baseline = Baseline::parse("b.jsonl", &bytes).unwrap();
        assert_eq!(baseline.len(), 2);
        assert_eq!(baseline.prediction("1+1:").unwrap(), "#2$");
        assert_eq!(baseline.prediction("2+2:").unwrap(), "");
        assert_eq!(baseline.prediction("3+3:"), None);
        let missing = baseline.check("3+3:", "p.jsonl", 7).unwrap_err().to_string();
        assert!(missing.starts_with("b.jsonl: no prediction for p.jsonl:7: record the baseline"), "{missing}");
    }

    #[test]
    fn a_malformed_line_is_named() {
        let said = |text: &str| Baseline::parse("b.jsonl", text.as_bytes()).unwrap_err().to_string();
        let good = r##"{"prompt":"1+1:","prediction":"#2$"}"##;
        assert!(said(&format!("{good}\n\n{{\"prompt\":1}}")).starts_with("b.jsonl:3: invalid prediction: "));
        assert!(
            said(&format!("{good}\n{good}")).starts_with("b.jsonl:2: a second prediction for the prompt of line 1")
        );
    }
}
