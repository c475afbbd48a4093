//! Sums and differences, solved column by column from the least significant digit. Pure.
//!
//! Each column has its carry or borrow before its digit: `digit+digit+carry=` carry and digit, or `digit-digit-borrow=` borrow
//! and digit. Example: `347+86:` → `7+6+0=13 4+8+1=13 3+0+1=04 #433$`. Nothing is written before the columns that decide it. The
//! last borrow decides which operand is larger: if there is one, the columns hold the complement of the result, which is
//! subtracted from a power of ten: `216-899:` → `… 1000-317:0-7-0=13 0-1-1=18 0-3-1=16 #-683$`.

use std::fmt::Write as _;

use super::{
    key::Key,
    operator::Operator,
    record::{Difficulty, Record},
};

/// A sum or difference of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Calculation {
    /// The operator.
    pub operator: Operator,
    /// The left operand.
    pub left: u32,
    /// The right operand.
    pub right: u32,
}

impl Calculation {
    /// Returns the result.
    pub fn result(&self) -> i64 {
        let (left, right) = (i64::from(self.left), i64::from(self.right));
        match self.operator {
            Operator::Plus => left + right,
            Operator::Minus => left - right,
        }
    }

    /// Returns the canonical key. a − b and b − a share a key, because their results differ only in sign.
    pub fn key(&self) -> Key {
        Key::new(self.operator.name(), &[self.left.max(self.right), self.left.min(self.right)])
    }

    /// Returns `left±right:`, the prompt, and the head of a step in a longer solution.
    pub(super) fn head(&self) -> String {
        format!("{}{}{}:", self.left, self.operator.sign(), self.right)
    }

    /// Returns the columns and the result, without the end mark.
    pub(super) fn solution(&self) -> String {
        let Self { operator, left, right } = *self;
        let places = digits(left.max(right));
        let mut worked = columns(operator, left, right, places);
        let mut text = written(operator, &worked);
        if operator == Operator::Minus && worked.last().is_some_and(|last| last.carry == 1) {
            let complement = number(&worked);
            worked = columns(operator, 0, complement, places);
            let _ = write!(text, "{}-{complement}:{}", 10_u32.pow(places), written(operator, &worked));
        }
        let _ = write!(text, "#{}", self.result());
        text
    }

    pub(super) fn difficulty(&self) -> Difficulty {
        match digits(self.left.max(self.right)) {
            1 => Difficulty::Easy,
            2 => Difficulty::Medium,
            3 => Difficulty::Hard,
            _ => Difficulty::VeryHard,
        }
    }

    pub(super) fn record(&self) -> Record {
        Record {
            prompt: self.head(),
            response: format!("{}$", self.solution()),
            difficulty: self.difficulty(),
            category: self.operator.name().to_owned(),
            cluster: None,
        }
    }
}

/// A column of a calculation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    /// The digit of the left operand.
    pub(super) upper: u32,
    /// The digit of the right operand.
    pub(super) lower: u32,
    /// The carry or borrow of the column before.
    pub(super) carried: u32,
    /// The carry or borrow of this column.
    pub(super) carry: u32,
    /// The digit of the result.
    pub(super) figure: u32,
}

/// Returns the first `places` columns, least significant first.
pub(super) fn columns(operator: Operator, left: u32, right: u32, places: u32) -> Vec<Column> {
    let mut carried = 0;
    let column = |place| {
        let (upper, lower) = (digit(left, place), digit(right, place));
        let (carry, figure) = match operator {
            Operator::Plus => ((upper + lower + carried) / 10, (upper + lower + carried) % 10),
            Operator::Minus => (u32::from(upper < lower + carried), (10 + upper - lower - carried) % 10),
        };
        Column { upper, lower, carried: std::mem::replace(&mut carried, carry), carry, figure }
    };
    (0..places).map(column).collect()
}

/// Returns the number that the columns' digits form.
pub(super) fn number(columns: &[Column]) -> u32 {
    columns.iter().rev().fold(0, |number, column| 10 * number + column.figure)
}

/// Formats columns, each followed by a space.
fn written(operator: Operator, columns: &[Column]) -> String {
    let sign = operator.sign();
    let column = |Column { upper, lower, carried, carry, figure }: &Column| {
        format!("{upper}{sign}{lower}{sign}{carried}={carry}{figure} ")
    };
    columns.iter().map(column).collect()
}

/// Returns the number of digits; 0 has one.
pub(super) fn digits(number: u32) -> u32 {
    number.checked_ilog10().unwrap_or(0) + 1
}

/// Returns the digit at `place`, counted from the least significant one; 0 beyond the number's digits.
pub(super) fn digit(number: u32, place: u32) -> u32 {
    number / 10_u32.pow(place) % 10
}

#[cfg(test)]
mod tests {
    use super::*;

    fn solve(left: u32, operator: Operator, right: u32) -> String {
        let record = Calculation { operator, left, right }.record();
        record.prompt + &record.response
    }

    #[test]
    fn columns_are_written_out() {
        assert_eq!(solve(347, Operator::Plus, 86), "347+86:7+6+0=13 4+8+1=13 3+0+1=04 #433$");
        assert_eq!(solve(999, Operator::Plus, 1), "999+1:9+1+0=10 9+0+1=10 9+0+1=10 #1000$");
        assert_eq!(solve(1, Operator::Plus, 99_999).matches('=').count(), 5);
        assert_eq!(solve(208, Operator::Minus, 9), "208-9:8-9-0=19 0-0-1=19 2-0-1=01 #199$");
        assert_eq!(solve(7, Operator::Minus, 7), "7-7:7-7-0=00 #0$");
    }

    #[test]
    fn a_negative_result_follows_from_the_last_borrow() {
        let columns = "6-9-0=17 1-9-1=11 2-8-1=13 1000-317:0-7-0=13 0-1-1=18 0-3-1=16";
        assert_eq!(solve(216, Operator::Minus, 899), format!("216-899:{columns} #-683$"));
        assert_eq!(solve(6, Operator::Minus, 7), "6-7:6-7-0=19 10-9:0-9-0=11 #-1$");
        assert_eq!(
            solve(1, Operator::Minus, 100),
            "1-100:1-0-0=01 0-0-0=00 0-1-0=19 1000-901:0-1-0=19 0-0-1=19 0-9-1=10 #-99$"
        );
        for (left, right) in (0..200).flat_map(|left| (0..200).map(move |right| (left, right))) {
            let calculation = Calculation { operator: Operator::Minus, left, right };
            let text = calculation.solution();
            let last = text.rsplit_once(':').map_or(text.as_str(), |(_, last)| last);
            let figures = last.split(' ').filter_map(|column| column.split_once('=')).map(|(_, result)| &result[1..]);
            let size = figures.rev().collect::<String>().parse::<i64>().unwrap();
            assert_eq!(size, calculation.result().abs(), "{left}-{right}:{text}");
            assert_eq!(text.contains(':'), left < right, "{left}-{right}:{text}");
        }
    }

    #[test]
    fn swapped_operands_share_a_key() {
        let key = |operator, left, right| Calculation { operator, left, right }.key();
        assert_eq!(key(Operator::Plus, 3, 64), key(Operator::Plus, 64, 3));
        assert_eq!(key(Operator::Minus, 3, 64), key(Operator::Minus, 64, 3));
        assert_ne!(key(Operator::Plus, 3, 64), key(Operator::Minus, 64, 3));
    }
}
