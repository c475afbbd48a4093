//! Answers of a model that are right and wrong, from `records.ndjson`. Reads files.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _},
    path::Path,
};

use serde::Deserialize;

use crate::run_folder::Part;

/// The most bytes that are read.
const MAX_FILE: u64 = 1 << 30;

/// A problem with its answer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Example {
    /// The line of the problem in its file.
    pub(super) line: usize,
    /// The prompt.
    pub(super) prompt: String,
    /// The response of the model.
    pub(super) prediction: String,
    /// The right answer.
    pub(super) expected: Option<String>,
    /// The answer of the model.
    pub(super) answer: Option<String>,
    /// Whether the answer is right.
    pub(super) correct: bool,
}

/// The first answers of a file that are right and wrong, and how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Examples {
    /// Right answers.
    pub(super) right: Vec<Example>,
    /// Wrong answers.
    pub(super) wrong: Vec<Example>,
    /// Number of right answers.
    pub(super) rights: u64,
    /// Number of wrong answers.
    pub(super) wrongs: u64,
    /// Number of lines that cannot be read.
    pub(super) bad: u64,
}

impl Examples {
    /// Reads a file, and keeps the first `shown` right and wrong answers.
    pub(super) fn read(path: &Path, shown: usize) -> Part<Self> {
        match Self::of(path, shown) {
            Ok(examples) => Part::Found(examples),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Part::Missing(path.to_owned()),
            Err(error) => Part::Invalid(path.to_owned(), error.to_string()),
        }
    }

    fn of(path: &Path, shown: usize) -> io::Result<Self> {
        let mut examples = Self::default();
        for line in BufReader::new(File::open(path)?.take(MAX_FILE)).split(b'\n') {
            let line = line?;
            if line.trim_ascii().is_empty() {
                continue;
            }
            let Ok(example) = codex_json::from_slice::<Example>(&line) else {
                examples.bad += 1;
                continue;
            };
            let (kept, count) = if example.correct {
                (&mut examples.right, &mut examples.rights)
            } else {
                (&mut examples.wrong, &mut examples.wrongs)
            };
            *count += 1;
            if kept.len() < shown {
                kept.push(example);
            }
        }
        Ok(examples)
    }
}
