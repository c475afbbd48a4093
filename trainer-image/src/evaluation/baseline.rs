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
    #[error("{file}:{line}: no prediction: {source}; write {{\"prompt\", \"prediction\"}}")]
    Malformed {
        /// The file.
        file: String,
        /// The line, counted from 1.
        line: usize,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// Two predictions for one problem.
    #[error("{file}:{line}: a second prediction for {prompt:?}: keep one of the two")]
    Repeated {
        /// The file.
        file: String,
        /// The line, counted from 1.
        line: usize,
        /// The problem's prompt.
        prompt: String,
    },
    /// A problem without a prediction: counting it as wrong would make the judged model look better.
    #[error(
        "{file}: no prediction for {prompt:?}, which the problems ask: record the baseline on these problems (codex evaluate --record-baseline)"
    )]
    Missing {
        /// The file.
        file: String,
        /// The problem's prompt.
        prompt: String,
    },
}

/// A baseline's predictions by prompt.
#[derive(Clone, Debug, Default)]
pub struct Baseline {
    file: String,
    predictions: BTreeMap<String, String>,
}

impl Baseline {
    /// Reads recorded predictions. `file` is the name that an error tells.
    ///
    /// # Errors
    /// [`BaselineError`], with the file and the line.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, BaselineError> {
        let mut predictions = BTreeMap::new();
        for (index, text) in bytes.split(|byte| *byte == b'\n').enumerate() {
            if text.trim_ascii().is_empty() {
                continue;
            }
            let (file, line) = (file.to_owned(), index + 1);
            let Prediction { prompt, prediction } = match codex_json::from_slice(text) {
                Ok(prediction) => prediction,
                Err(source) => return Err(BaselineError::Malformed { file, line, source }),
            };
            if predictions.contains_key(&prompt) {
                return Err(BaselineError::Repeated { file, line, prompt });
            }
            predictions.insert(prompt, prediction);
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

    /// What the baseline answered to a problem.
    ///
    /// # Errors
    /// [`BaselineError::Missing`] where nothing was recorded.
    pub fn prediction(&self, prompt: &str) -> Result<&str, BaselineError> {
        self.predictions
            .get(prompt)
            .map(String::as_str)
            .ok_or_else(|| BaselineError::Missing { file: self.file.clone(), prompt: prompt.to_owned() })
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
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let bytes = write([("1+1:", "#2$"), ("2+2:", "")]).unwrap();
        let baseline = Baseline::parse("b.jsonl", &bytes).unwrap();
        assert_eq!(baseline.len(), 2);
        assert_eq!(baseline.prediction("1+1:").unwrap(), "#2$");
        assert_eq!(baseline.prediction("2+2:").unwrap(), "");
        let missing = baseline.prediction("3+3:").unwrap_err().to_string();
        assert!(missing.starts_with("b.jsonl: no prediction for \"3+3:\""), "{missing}");
    }

    #[test]
    fn a_malformed_line_is_named() {
        let said = |text: &str| Baseline::parse("b.jsonl", text.as_bytes()).unwrap_err().to_string();
        let good = r##"{"prompt":"1+1:","prediction":"#2$"}"##;
        assert!(said(&format!("{good}\n\n{{\"prompt\":1}}")).starts_with("b.jsonl:3: no prediction: "));
        assert!(said(&format!("{good}\n{good}")).starts_with("b.jsonl:2: a second prediction for \"1+1:\""));
    }
}
