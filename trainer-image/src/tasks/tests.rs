use proptest::prelude::*;

use std::collections::HashSet;

use sha2::{Digest as _, Sha256};

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
fn written_calculations_are_on_the_side_of_their_problem() {
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
        // Padded problems and products have columns only, without heads.
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
        // There are 4,095 products of two-digit numbers with different keys.
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
fn too_many_held_out_problems_are_refused() {
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
fn operands_of_one_length_are_drawn_where_supported() {
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
    assert_eq!(said, "task multiplication has no problems with 3 digits: use 2 to 2");
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
