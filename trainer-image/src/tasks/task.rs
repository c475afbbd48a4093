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

    /// How many digits its operands have.
    pub fn digits(self) -> Digits {
        match self {
            Self::Arithmetic | Self::WordProblems | Self::WordProblems3 | Self::ArithmeticPadded => Digits::up_to(3),
            Self::Arithmetic5 => Digits::up_to(5),
            Self::Multiplication => Digits::exactly(2),
        }
    }

    /// The task on operands of exactly `count` digits, however long those are that it trains on: what shows whether a model
    /// goes on from there.
    ///
    /// # Errors
    /// When the task has no such operands.
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

    /// The problem at `index` of the stream that `seed` names. Constant time; indices are independent of each other, so
    /// small problems come again and again.
    pub fn draw(self, split: Split, seed: u64, index: u64) -> Problem {
        Problems::from(self).draw(split, seed, index)
    }

    /// `count` held-out problems with `count` different keys.
    ///
    /// # Errors
    /// When the held-out part of the task is too small for `count`.
    pub fn held_out(self, seed: u64, count: usize) -> Result<Vec<Problem>, TaskError> {
        Problems::from(self).held_out(seed, count)
    }
}

/// A task on operands of certain lengths: [`Task::digits`], or others.
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
    /// As [`Task::draw`].
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
            // Problems that mix held-out and other calculations belong to neither side.
            if Split::of(&problem.inner_keys()) == Some(split) {
                return problem;
            }
        }
    }

    /// As [`Task::held_out`].
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

/// What cannot be drawn.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A name that no task has.
    #[error("task {0:?} is unknown: use one of {known}", known = Task::ALL.map(Task::name).join(", "))]
    Unknown(String),
    /// Operands that the task does not have.
    #[error("{count} digits are not what task {task} can be drawn with: use {least} to {most}")]
    Digits {
        /// The task.
        task: Task,
        /// What was asked for.
        count: u32,
        /// The fewest.
        least: u32,
        /// The most.
        most: u32,
    },
    /// More held-out problems than there are.
    #[error(
        "count {count} is more than task {task} holds out: about {found} different problems can be drawn, use at most that"
    )]
    TooMany {
        /// The task.
        task: Task,
        /// What was asked for.
        count: usize,
        /// What was found.
        found: usize,
    },
    /// Records that could not be written as JSON.
    #[error("records could not be encoded")]
    Encoding(#[source] std::io::Error),
}

/// The random numbers of one index: `ChaCha8` with a key made of everything else that names the stream.
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
