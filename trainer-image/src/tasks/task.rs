//! The tasks, and how their problems are drawn. Pure.

use std::{collections::HashSet, fmt, str::FromStr};

use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest as _, Sha256};

use super::{
    key::Split, multiplication::Multiplication, operands::Digits, padded::Padded, problem::Problem,
    word_problems::WordProblem,
};

/// A family of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    /// a + b and a − b with one to three digits, negative results included.
    Arithmetic,
    /// Four short stories, each solved by two calculations.
    WordProblems,
    /// a + b and a − b with one to five digits, negative results included.
    Arithmetic5,
    /// a × b of two digits each, by partial products.
    Multiplication,
    /// Four short stories, each solved by three calculations.
    WordProblems3,
    /// As [`Self::Arithmetic`], in a field of places, to go on to longer numbers.
    ArithmeticPadded,
}

impl Task {
    /// Every task.
    pub const ALL: [Self; 6] = [
        Self::Arithmetic,
        Self::WordProblems,
        Self::Arithmetic5,
        Self::Multiplication,
        Self::WordProblems3,
        Self::ArithmeticPadded,
    ];

    /// The name that configuration and command line use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Arithmetic => "arithmetic",
            Self::WordProblems => "word-problems",
            Self::Arithmetic5 => "arithmetic-5",
            Self::Multiplication => "multiplication",
            Self::WordProblems3 => "word-problems-3",
            Self::ArithmeticPadded => "arithmetic-padded",
        }
    }

    /// Returns the range of its operands' digits.
    pub fn digits(self) -> Digits {
        match self {
            Self::Arithmetic | Self::WordProblems | Self::WordProblems3 | Self::ArithmeticPadded => Digits::up_to(3),
            Self::Arithmetic5 => Digits::up_to(5),
            Self::Multiplication => Digits::exactly(2),
        }
    }

    /// Returns the task on operands of exactly `count` digits, to test generalization to lengths that were not trained.
    ///
    /// # Errors
    /// When the task does not support `count` digits.
    pub fn of_digits(self, count: u32) -> Result<Problems, TaskError> {
        let (least, most) = match self {
            Self::Multiplication => (2, 2),
            Self::ArithmeticPadded => (1, Padded::MOST),
            _ => (1, Digits::LIMIT),
        };
        if !(least..=most).contains(&count) {
            return Err(TaskError::Digits { task: self, count, least, most });
        }
        Ok(Problems { task: self, digits: Digits::exactly(count) })
    }

    /// Draws the problem at `index` of the stream of `seed`, in constant time. Indices are independent, so small problems
    /// repeat.
    pub fn draw(self, split: Split, seed: u64, index: u64) -> Problem {
        Problems::from(self).draw(split, seed, index)
    }

    /// Draws `count` held-out problems with different keys.
    ///
    /// # Errors
    /// When the task has fewer held-out problems.
    pub fn held_out(self, seed: u64, count: usize) -> Result<Vec<Problem>, TaskError> {
        Problems::from(self).held_out(seed, count)
    }
}

/// A task on operands of given lengths: those of [`Task::digits`], or others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problems {
    task: Task,
    digits: Digits,
}

impl From<Task> for Problems {
    fn from(task: Task) -> Self {
        Self { task, digits: task.digits() }
    }
}

impl Problems {
    /// Draws a problem; see [`Task::draw`].
    pub fn draw(self, split: Split, seed: u64, index: u64) -> Problem {
        let Self { task, digits } = self;
        let mut rng = stream(task, split, seed, index);
        loop {
            let problem = match task {
                Task::Arithmetic | Task::Arithmetic5 => Problem::Arithmetic(digits.calculation(&mut rng, split)),
                Task::WordProblems => Problem::Word(WordProblem::two_steps(&mut rng, split, digits)),
                Task::WordProblems3 => Problem::Word(WordProblem::three_steps(&mut rng, split, digits)),
                Task::Multiplication => Problem::Multiplication(Multiplication::sample(&mut rng)),
                Task::ArithmeticPadded => Problem::Padded(Padded::sample(&mut rng, split, digits)),
            };
            // Problems with calculations of both sides belong to neither.
            if Split::of(&problem.inner_keys()) == Some(split) {
                return problem;
            }
        }
    }

    /// Draws held-out problems; see [`Task::held_out`].
    ///
    /// # Errors
    /// When there are fewer than `count`.
    pub fn held_out(self, seed: u64, count: usize) -> Result<Vec<Problem>, TaskError> {
        let mut seen = HashSet::new();
        let mut problems = Vec::with_capacity(count);
        let mut misses = 0;
        for index in 0.. {
            if problems.len() == count {
                break;
            }
            let problem = self.draw(Split::HeldOut, seed, index);
            if seen.insert(problem.key()) {
                problems.push(problem);
                misses = 0;
            } else {
                misses += 1;
                if misses > 10_000 {
                    return Err(TaskError::TooMany { task: self.task, count, found: problems.len() });
                }
            }
        }
        Ok(problems)
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Task {
    type Err = TaskError;

    fn from_str(name: &str) -> Result<Self, TaskError> {
        Self::ALL.into_iter().find(|task| task.name() == name).ok_or_else(|| TaskError::Unknown(name.to_owned()))
    }
}

/// Problems that cannot be drawn.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The name is unknown.
    #[error("task {0:?} is unknown: use one of {known}", known = Task::ALL.map(Task::name).join(", "))]
    Unknown(String),
    /// The task does not support the number of digits.
    #[error("task {task} has no problems with {count} digits: use {least} to {most}")]
    Digits {
        /// The task.
        task: Task,
        /// The requested number.
        count: u32,
        /// The least allowed.
        least: u32,
        /// The greatest allowed.
        most: u32,
    },
    /// The task has fewer held-out problems.
    #[error(
        "count {count} is out of range: task {task} has about {found} different held-out problems; use at most that"
    )]
    TooMany {
        /// The task.
        task: Task,
        /// The requested number.
        count: usize,
        /// The number that was found.
        found: usize,
    },
    /// Records cannot be encoded as JSON.
    #[error("the records cannot be encoded")]
    Encoding(#[source] std::io::Error),
}

/// Returns the random numbers of one index: `ChaCha8`, keyed by task, split and seed.
fn stream(task: Task, split: Split, seed: u64, index: u64) -> ChaCha8Rng {
    let mut hasher = Sha256::new();
    hasher.update(b"codex tasks 1\0");
    hasher.update(task.name());
    hasher.update([0, u8::from(split == Split::HeldOut)]);
    hasher.update(seed.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(hasher.finalize().into());
    rng.set_stream(index);
    rng
}
