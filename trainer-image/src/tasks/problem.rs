//! A problem of any task. Pure.

use super::{
    calculation::Calculation, key::Key, multiplication::Multiplication, padded::Padded, record::Record,
    word_problems::WordProblem,
};

/// A problem of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Of [`Task::Arithmetic`] and [`Task::Arithmetic5`].
    Arithmetic(Calculation),
    /// Of [`Task::WordProblems`] and [`Task::WordProblems3`].
    Word(WordProblem),
    /// Of [`Task::Multiplication`].
    Multiplication(Multiplication),
    /// Of [`Task::ArithmeticPadded`].
    Padded(Padded),
}

impl Problem {
    /// Returns the canonical key, which is the same for all renderings.
    pub fn key(&self) -> Key {
        match self {
            Self::Arithmetic(calculation) => calculation.key(),
            Self::Word(problem) => problem.key(),
            Self::Multiplication(product) => product.key(),
            Self::Padded(padded) => padded.key(),
        }
    }

    /// Returns the keys of the calculations in its solution.
    pub fn inner_keys(&self) -> Vec<Key> {
        match self {
            Self::Arithmetic(_) | Self::Multiplication(_) => vec![self.key()],
            Self::Word(problem) => problem.calculations().iter().map(Calculation::key).collect(),
            Self::Padded(padded) => padded.inner_keys(),
        }
    }

    /// Returns the answer as it is written.
    pub fn answer(&self) -> String {
        match self {
            Self::Arithmetic(calculation) => calculation.result().to_string(),
            Self::Word(problem) => problem.calculations().last().map_or(0, Calculation::result).to_string(),
            Self::Multiplication(product) => product.result().to_string(),
            Self::Padded(padded) => padded.answer(),
        }
    }

    /// Returns the record: prompt, solution and labels.
    pub fn record(&self) -> Record {
        match self {
            Self::Arithmetic(calculation) => calculation.record(),
            Self::Word(problem) => problem.record(),
            Self::Multiplication(product) => product.record(),
            Self::Padded(padded) => padded.record(),
        }
    }
}
