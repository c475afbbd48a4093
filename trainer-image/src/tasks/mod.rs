//! Synthetic reasoning tasks: problems whose answer is reached in steps that can be written down. Pure, but for
//! [`PrepareData`], the command that writes them.
//!
//! A training record is addressed by `(task, seed, index)`: the same three give the same bytes on every machine, in
//! constant time, whatever was drawn before. What is held out is decided by [`Key`], never by a seed.

mod arithmetic;
mod prepare;
mod record;
mod split;
mod word_problems;

use std::{collections::HashSet, fmt, str::FromStr};

use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest as _, Sha256};

pub use arithmetic::{Calculation, Operator};
pub use prepare::{PrepareData, materialise};
pub use record::{Difficulty, END, Record, RecordError, answer, parse_records, steps, write_records};
pub use split::{HELD_OUT_SHARE, Key, Split};
pub use word_problems::{Story, WordProblem};

/// A family of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    /// a + b and a − b with one to three digits, negative results included.
    Arithmetic,
    /// Four short stories, each solved by two calculations.
    WordProblems,
}

impl Task {
    /// Every task.
    pub const ALL: [Self; 2] = [Self::Arithmetic, Self::WordProblems];

    /// The name that configuration and command line use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Arithmetic => "arithmetic",
            Self::WordProblems => "word-problems",
        }
    }

    /// The problem at `index` of the stream that `seed` names. Constant time; indices are independent of each other, so
    /// small problems come again and again.
    pub fn draw(self, split: Split, seed: u64, index: u64) -> Problem {
        let mut rng = stream(self, split, seed, index);
        loop {
            let problem = match self {
                Self::Arithmetic => Problem::Arithmetic(Calculation::sample(&mut rng, split)),
                Self::WordProblems => Problem::Word(WordProblem::sample(&mut rng, split)),
            };
            // Problems that mix held-out and other calculations belong to neither side.
            if Split::of(&problem.inner_keys()) == Some(split) {
                return problem;
            }
        }
    }

    /// `count` held-out problems with `count` different keys.
    ///
    /// # Errors
    /// When the held-out part of the task is too small for `count`.
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
                    return Err(TaskError::TooMany { task: self, count, found: problems.len() });
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
    #[error("task {0:?} is unknown: use arithmetic or word-problems")]
    Unknown(String),
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

/// One problem of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Of [`Task::Arithmetic`].
    Arithmetic(Calculation),
    /// Of [`Task::WordProblems`].
    Word(WordProblem),
}

impl Problem {
    /// Its canonical key: the same for all renderings.
    pub fn key(&self) -> Key {
        match self {
            Self::Arithmetic(calculation) => calculation.key(),
            Self::Word(problem) => problem.key(),
        }
    }

    /// The keys of the calculations that its solution goes through.
    pub fn inner_keys(&self) -> Vec<Key> {
        match self {
            Self::Arithmetic(calculation) => vec![calculation.key()],
            Self::Word(problem) => problem.calculations().iter().map(Calculation::key).collect(),
        }
    }

    /// The problem, its solution step by step, and its labels.
    pub fn record(&self) -> Record {
        match self {
            Self::Arithmetic(calculation) => calculation.record(),
            Self::Word(problem) => problem.record(),
        }
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every held-out calculation on operands up to `limit`, in canonical order.
    fn held_out_keys(limit: u32) -> HashSet<Key> {
        let mut keys = HashSet::new();
        for operator in [Operator::Plus, Operator::Minus] {
            for left in 0..=limit {
                for right in 0..=left {
                    let key = Calculation { operator, left, right }.key();
                    if key.is_held_out() {
                        keys.insert(key);
                    }
                }
            }
        }
        keys
    }

    #[test]
    fn no_training_record_goes_through_a_held_out_calculation() {
        let held_out = held_out_keys(999);
        let share = held_out.len() as f64 / f64::from(2 * 1000 * 1001 / 2);
        assert!((share * f64::from(HELD_OUT_SHARE) - 1.0).abs() < 0.05, "share {share}");
        for task in Task::ALL {
            for seed in [1, 2] {
                for index in 0..20_000 {
                    for key in task.draw(Split::Train, seed, index).inner_keys() {
                        assert!(!held_out.contains(&key) && !key.is_held_out(), "{key:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn held_out_problems_are_distinct_and_held_out_in_every_step() {
        for task in Task::ALL {
            let problems = task.held_out(7, 2000).unwrap();
            let keys: HashSet<Key> = problems.iter().map(Problem::key).collect();
            assert_eq!(keys.len(), 2000);
            assert!(problems.iter().all(|problem| problem.inner_keys().iter().all(Key::is_held_out)));
        }
    }

    #[test]
    fn more_than_there_are_is_refused() {
        let error = Task::Arithmetic.held_out(1, 100_000).unwrap_err();
        assert!(matches!(error, TaskError::TooMany { .. }), "{error}");
    }

    #[test]
    fn the_bytes_are_the_same_on_every_machine() {
        let digest = |task: Task| {
            let records: Vec<Record> = (0..2000).map(|index| task.draw(Split::Train, 42, index).record()).collect();
            let mut bytes = Vec::new();
            write_records(&records, &mut bytes).unwrap();
            hex::encode(Sha256::digest(bytes))
        };
        insta::assert_snapshot!(digest(Task::Arithmetic), @"285e3d9778d65c7c25e90359ddb160576aed90bcb46e2387efa63d0c4166f503");
        insta::assert_snapshot!(digest(Task::WordProblems), @"4782b3d7f20311090510907d9791b1367215c6f86655525aa40b8431d31216cd");
    }

    proptest! {
        #[test]
        fn solutions_are_right(seed: u64, index: u64, held_out: bool, words: bool) {
            let split = if held_out { Split::HeldOut } else { Split::Train };
            let task = if words { Task::WordProblems } else { Task::Arithmetic };
            let problem = task.draw(split, seed, index);
            let record = problem.record();
            let expected = match &problem {
                Problem::Arithmetic(calculation) => calculation.result(),
                Problem::Word(problem) => problem.calculations()[1].result(),
            };
            prop_assert_eq!(answer(&record.response).map(str::to_owned), Some(expected.to_string()));
            prop_assert!(record.prompt.len() + record.response.len() < 160);
            prop_assert!(!steps(&record.response).is_empty());
        }
    }
}
