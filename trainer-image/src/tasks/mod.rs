//! Synthetic reasoning tasks: problems whose solution is written out step by step. Pure, but for [`PrepareData`], the command
//! that writes them.
//!
//! `(task, seed, index)` names a training record: the same three give the same bytes on every machine, in constant time. A
//! [`Key`] decides what is held out, never a seed.

mod answers;
mod calculation;
mod data_file;
mod key;
mod multiplication;
mod operands;
mod operator;
mod padded;
mod prepare;
mod problem;
mod record;
mod task;
mod word_problems;

#[cfg(test)]
mod tests;

pub use answers::Answers;
pub use calculation::Calculation;
pub use data_file::{materialise, training_lines};
pub use key::{HELD_OUT_SHARE, Key, Split};
pub use multiplication::Multiplication;
pub use operands::Digits;
pub use operator::Operator;
pub use padded::Padded;
pub use prepare::PrepareData;
pub use problem::Problem;
pub use record::{
    Difficulty, END, Record, RecordError, answer, common_in_order, last_number, parse_free_records, parse_records,
    steps, write_records, written_steps,
};
pub use task::{Problems, Task, TaskError};
pub use word_problems::{Story, WordProblem};
