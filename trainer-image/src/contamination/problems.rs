//! The problems of an evaluation, found by their words. Pure.
//!
//! Words are compared as is usual for language models (Brown et al. 2020, appendix C): in lower case, without punctuation, divided
//! by white space. A problem is asked by a record if its text is a prompt of the record, to the letter but for white space around
//! it.

use std::collections::{BTreeSet, HashMap};

use serde::Serialize;

use crate::training::Example;

/// Problems, and where each was found first.
#[derive(Debug)]
pub(super) struct Problems {
    ngram: usize,
    /// Lines of the problems.
    lines: Vec<usize>,
    /// Number of problems with fewer words than are compared.
    pub(super) short: usize,
    /// Problems by their text.
    texts: HashMap<String, Vec<u32>>,
    /// Problems by each sequence of words.
    grams: HashMap<String, Vec<u32>>,
    exact: HashMap<u32, Place>,
    words: HashMap<u32, Place>,
}

/// A record that overlaps a problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Place {
    /// Name of the data.
    pub(super) data: String,
    /// Line or row of the record, from 1.
    pub(super) line: usize,
    /// What both have.
    pub(super) text: String,
}

/// The problems that a record overlaps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Problems that the record asks, with their text.
    pub(super) exact: Vec<(u32, String)>,
    /// Problems that share a sequence of words with the record.
    pub(super) words: Vec<(u32, String)>,
}

/// Text in lower case, without punctuation, with one space between words.
struct Words {
    text: String,
    /// Where each word begins and ends.
    bounds: Vec<(usize, usize)>,
}

impl Words {
    fn of(text: &str) -> Self {
        let mut words = Self { text: String::with_capacity(text.len()), bounds: Vec::new() };
        for word in text.split_whitespace() {
            let start = words.text.len() + usize::from(!words.bounds.is_empty());
            let mut letters =
                word.chars().filter(|letter| letter.is_alphanumeric()).flat_map(char::to_lowercase).peekable();
            if letters.peek().is_none() {
                continue;
            }
            if !words.bounds.is_empty() {
                words.text.push(' ');
            }
            words.text.extend(letters);
            words.bounds.push((start, words.text.len()));
        }
        words
    }

    /// Sequences of `count` words.
    fn grams(&self, count: usize) -> impl Iterator<Item = &str> {
        self.bounds.windows(count).map(move |words| &self.text[words[0].0..words[count - 1].1])
    }
}

/// Yields what a record asks, without white space around it.
fn asked(example: &Example) -> impl Iterator<Item = &str> {
    example.asked().into_iter().map(str::trim)
}

impl Problems {
    /// Returns an empty set of problems, which are compared by sequences of `ngram` words.
    pub(super) fn new(ngram: usize) -> Self {
        Self {
            ngram,
            lines: Vec::new(),
            short: 0,
            texts: HashMap::new(),
            grams: HashMap::new(),
            exact: HashMap::new(),
            words: HashMap::new(),
        }
    }

    /// Adds the problem of a line.
    pub(super) fn add(&mut self, line: usize, problem: &Example) {
        let index = self.lines.len() as u32;
        self.lines.push(line);
        if let Some(text) = asked(problem).last() {
            self.texts.entry((*text).to_owned()).or_default().push(index);
        }
        let mut short = true;
        for text in problem.texts() {
            for gram in Words::of(text).grams(self.ngram) {
                short = false;
                let problems = self.grams.entry(gram.to_owned()).or_default();
                if problems.last() != Some(&index) {
                    problems.push(index);
                }
            }
        }
        self.short += usize::from(short);
    }

    /// Finds the problems that a record overlaps.
    pub(super) fn find(&self, example: &Example) -> Found {
        let mut found = Found::default();
        for text in asked(example) {
            let problems = self.texts.get(text).into_iter().flatten();
            found.exact.extend(problems.map(|problem| (*problem, text.to_owned())));
        }
        let mut seen = BTreeSet::new();
        for text in example.texts() {
            for gram in Words::of(text).grams(self.ngram) {
                let problems = self.grams.get(gram).into_iter().flatten().filter(|problem| seen.insert(**problem));
                found.words.extend(problems.map(|problem| (*problem, gram.to_owned())));
            }
        }
        found
    }

    /// Notes what was found in a record of the data `name`.
    pub(super) fn note(&mut self, name: &str, line: usize, found: Found) {
        let place = |text| Place { data: name.to_owned(), line, text };
        for (problem, text) in found.exact {
            self.exact.entry(problem).or_insert_with(|| place(text));
        }
        for (problem, text) in found.words {
            self.words.entry(problem).or_insert_with(|| place(text));
        }
    }

    /// Number of consecutive words that are compared.
    pub(super) fn ngram(&self) -> usize {
        self.ngram
    }

    /// Number of problems.
    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    /// Number of problems that a record asks, and of those that share a sequence of words with one.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.exact.len(), self.words.len())
    }

    /// Returns the line of each problem that was found, with the record that asks it, and the record that shares words with it.
    pub(super) fn found(&self) -> impl Iterator<Item = (usize, Option<&Place>, Option<&Place>)> {
        let all = self.lines.iter().zip(0_u32..);
        all.filter_map(|(line, index)| {
            let (exact, words) = (self.exact.get(&index), self.words.get(&index));
            (exact.is_some() || words.is_some()).then_some((*line, exact, words))
        })
    }
}
