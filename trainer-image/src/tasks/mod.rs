//! Synthetic reasoning tasks: problems whose answer is reached in steps that can be written down. Pure, but for
//! [`PrepareData`], the command that writes them.
//!
//! A training record is addressed by `(task, seed, index)`: the same three give the same bytes on every machine, in
//! constant time, whatever was drawn before. What is held out is decided by [`Key`], never by a seed.

mod calculation;
mod multiplication;
mod operands;
mod padded;
mod prepare;
mod record;
mod split;
mod word_problems;

use std::{collections::HashSet, fmt, str::FromStr};

use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest as _, Sha256};

pub use calculation::{Calculation, Operator};
pub use multiplication::Multiplication;
pub use operands::Digits;
pub use padded::Padded;
pub use prepare::{PrepareData, materialise, training_lines};
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

/// One problem of a task.
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
    /// Its canonical key: the same for all renderings.
    pub fn key(&self) -> Key {
        match self {
            Self::Arithmetic(calculation) => calculation.key(),
            Self::Word(problem) => problem.key(),
            Self::Multiplication(product) => product.key(),
            Self::Padded(padded) => padded.key(),
        }
    }

    /// The keys of the calculations that its solution goes through.
    pub fn inner_keys(&self) -> Vec<Key> {
        match self {
            Self::Arithmetic(_) | Self::Multiplication(_) => vec![self.key()],
            Self::Word(problem) => problem.calculations().iter().map(Calculation::key).collect(),
            Self::Padded(padded) => padded.inner_keys(),
        }
    }

    /// The answer, as it is written.
    pub fn answer(&self) -> String {
        match self {
            Self::Arithmetic(calculation) => calculation.result().to_string(),
            Self::Word(problem) => problem.calculations().last().map_or(0, Calculation::result).to_string(),
            Self::Multiplication(product) => product.result().to_string(),
            Self::Padded(padded) => padded.answer(),
        }
    }

    /// The problem, its solution step by step, and its labels.
    pub fn record(&self) -> Record {
        match self {
            Self::Arithmetic(calculation) => calculation.record(),
            Self::Word(problem) => problem.record(),
            Self::Multiplication(product) => product.record(),
            Self::Padded(padded) => padded.record(),
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

    /// The keys of the sums and differences that a record writes out, read from its text.
    fn written_keys(record: &Record) -> Vec<Key> {
        let text = format!("{}{}", record.prompt, record.response);
        let heads = text.split(':').filter_map(|before| {
            let head = before.rsplit(|c: char| !c.is_ascii_digit() && !"+-".contains(c)).next()?;
            let (left, right) = head.split_once(['+', '-'])?;
            let operator = if head.contains('+') { Operator::Plus } else { Operator::Minus };
            Some(Calculation { operator, left: left.parse().ok()?, right: right.parse().ok()? }.key())
        });
        heads.collect()
    }

    #[test]
    fn what_is_written_is_on_the_same_side_as_its_problem() {
        for task in Task::ALL {
            let mut seen = 0;
            for index in 0..20_000 {
                let keys = written_keys(&task.draw(Split::Train, 1, index).record());
                assert!(!keys.iter().any(Key::is_held_out), "{keys:?}");
                seen += keys.len();
            }
            for index in 0..500 {
                let keys = written_keys(&task.draw(Split::HeldOut, 1, index).record());
                assert!(keys.iter().all(|key| key.is_held_out() || key.is_complement()), "{keys:?}");
            }
            // A field of places is read by its columns alone, and so is a product.
            let heads = !matches!(task, Task::Multiplication | Task::ArithmeticPadded);
            assert_eq!(seen >= 20_000, heads, "{task}: {seen}");
        }
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
            // There are 4,095 products of two-digit numbers, commutation folded.
            let count = if task == Task::Multiplication { 200 } else { 2000 };
            let problems = task.held_out(7, count).unwrap();
            let keys: HashSet<Key> = problems.iter().map(Problem::key).collect();
            assert_eq!(keys.len(), count);
            assert!(problems.iter().all(|problem| problem.inner_keys().iter().all(Key::is_held_out)));
        }
    }

    #[test]
    fn the_tasks_are_those_of_the_configuration() {
        assert_eq!(Task::ALL.map(Task::name), codex_configs::TASKS);
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
        insta::assert_snapshot!(digest(Task::Arithmetic), @"ccb381ac5b240df488dc8888b220ab568a41c8f4be29239b1934b1e3588d3608");
        insta::assert_snapshot!(digest(Task::WordProblems), @"c4cf4ac2193471682aa84f9e9bd2591fd5e6a59294fee39ec5565686f8a20aeb");
        insta::assert_snapshot!(digest(Task::Arithmetic5), @"565164e352817267434fb7d3218ab3628881358eb828f21c2f17e2e7e1492202");
        insta::assert_snapshot!(digest(Task::Multiplication), @"46b7a88acc83bb26706822e2bc14e02c567f85bb3361b834f307ea8f6e302610");
        insta::assert_snapshot!(digest(Task::WordProblems3), @"c0ff116abcd61b0adad91d7351b74bfb36795a74e2e7f8eae29dd11fb390fdd5");
        insta::assert_snapshot!(digest(Task::ArithmeticPadded), @"359bd1aaf7bd7dd09a7560423d9575dea864fb7954c025a9ded93e3999a4f030");
    }

    #[test]
    fn operands_of_one_length_are_drawn_where_there_are_any() {
        for task in Task::ALL {
            for count in 0..=10 {
                let Ok(problems) = task.of_digits(count) else {
                    let digits = match task {
                        Task::Multiplication => 2..=2,
                        Task::ArithmeticPadded => 1..=6,
                        _ => 1..=8,
                    };
                    assert!(!digits.contains(&count), "{task} {count}");
                    continue;
                };
                for index in 0..50 {
                    let key = problems.draw(Split::HeldOut, 1, index).key();
                    assert!(key.operands.iter().take(2).all(|operand| calculation::digits(*operand) <= count));
                    assert_eq!(calculation::digits(key.operands.into_iter().max().unwrap()), count);
                }
            }
        }
        let said = Task::Multiplication.of_digits(3).unwrap_err().to_string();
        assert_eq!(said, "3 digits are not what task multiplication can be drawn with: use 2 to 2");
    }

    proptest! {
        #[test]
        fn solutions_are_right(seed: u64, index: u64, held_out: bool, task in 0..Task::ALL.len(), digits in 1..=8_u32) {
            let split = if held_out { Split::HeldOut } else { Split::Train };
            let task = Task::ALL[task];
            let longer = task.of_digits(digits).map(|problems| problems.draw(split, seed, index));
            for problem in [Ok(task.draw(split, seed, index)), longer].into_iter().flatten() {
                let record = problem.record();
                prop_assert_eq!(answer(&record.response).map(str::to_owned), Some(problem.answer()));
                prop_assert!(!steps(&record.response).is_empty());
            }
            let record = task.draw(split, seed, index).record();
            prop_assert!(record.prompt.len() + record.response.len() <= 256, "{record:?}");
        }
    }
}
