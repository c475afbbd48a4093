//! Data files of tasks as JSON lines. Pure.

use super::{
    key::Split,
    problem::Problem,
    record::{Record, write_records},
    task::{Problems, Task, TaskError},
};

/// Returns the bytes of a data file: `count` records of `task` as JSON lines.
///
/// # Errors
/// When the task has fewer held-out problems.
pub fn materialise(task: Task, split: Split, seed: u64, count: usize) -> Result<Vec<u8>, TaskError> {
    lines(&problems(task.into(), split, seed, count)?).map_err(TaskError::Encoding)
}

/// Returns the lines `range` of a training file, as [`materialise`] makes it, so that a long file can be made in pieces.
///
/// # Errors
/// When a record cannot be encoded.
pub fn training_lines(task: Task, seed: u64, range: std::ops::Range<u64>) -> Result<Vec<u8>, TaskError> {
    let problems: Vec<Problem> = range.map(|index| task.draw(Split::Train, seed, index)).collect();
    lines(&problems).map_err(TaskError::Encoding)
}

pub(super) fn problems(source: Problems, split: Split, seed: u64, count: usize) -> Result<Vec<Problem>, TaskError> {
    match split {
        Split::Train => Ok((0..count as u64).map(|index| source.draw(split, seed, index)).collect()),
        Split::HeldOut => source.held_out(seed, count),
    }
}

fn lines(problems: &[Problem]) -> std::io::Result<Vec<u8>> {
    let records: Vec<Record> = problems.iter().map(Problem::record).collect();
    let mut bytes = Vec::new();
    write_records(&records, &mut bytes)?;
    Ok(bytes)
}
