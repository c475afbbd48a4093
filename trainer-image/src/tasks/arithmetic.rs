//! a + b and a − b, solved column by column, least significant digit first. Pure.
//!
//! Plus: `digit+digit+carry=` carry and digit, as in `347+86:` → `7+6+0=13 4+8+1=13 3+0+1=04 #433$`. Minus: the upper digit
//! with what it borrowed in front, `18-9-0=9`, and the larger operand on top: `683-899:` → `899-683:09-3-0=6 … #-216$`.

use std::fmt::Write as _;

use rand::Rng;

use super::{Difficulty, Key, Record, Split};

/// What a calculation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// left + right
    Plus,
    /// left − right
    Minus,
}

/// One calculation on two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Calculation {
    /// What is done.
    pub operator: Operator,
    /// The left operand.
    pub left: u32,
    /// The right operand.
    pub right: u32,
}

impl Calculation {
    /// Draws operands of one to three digits, each length equally likely. In training one problem in three is one that
    /// small models find hard: equal leading digits, borrowing past a zero, a chain of carries.
    pub(super) fn sample(rng: &mut impl Rng, split: Split) -> Self {
        let operator = if rng.random() { Operator::Plus } else { Operator::Minus };
        let (left, right) = if split == Split::Train && rng.random_range(0..3_u32) == 0 {
            hard_operands(rng, operator)
        } else {
            (operand(rng), operand(rng))
        };
        Self { operator, left, right }
    }

    /// The result.
    pub fn result(&self) -> i64 {
        let (left, right) = (i64::from(self.left), i64::from(self.right));
        match self.operator {
            Operator::Plus => left + right,
            Operator::Minus => left - right,
        }
    }

    /// The canonical key. a − b and b − a share one, for the same columns solve both.
    pub fn key(&self) -> Key {
        let kind = match self.operator {
            Operator::Plus => "addition",
            Operator::Minus => "subtraction",
        };
        Key { kind, operands: [self.left.max(self.right), self.left.min(self.right), 0] }
    }

    /// `left±right:`, which is a prompt here and the head of a step in a longer solution.
    pub(super) fn head(&self) -> String {
        let sign = match self.operator {
            Operator::Plus => '+',
            Operator::Minus => '-',
        };
        format!("{}{sign}{}:", self.left, self.right)
    }

    /// The columns and the result: what follows [`head`](Self::head), without the end mark.
    pub(super) fn solution(&self) -> String {
        let mut text = String::new();
        let (upper, lower) = (self.left.max(self.right), self.left.min(self.right));
        match self.operator {
            Operator::Plus => {
                let mut carry = 0;
                for column in 0..digits(upper) {
                    let (a, b) = (digit(self.left, column), digit(self.right, column));
                    let sum = a + b + carry;
                    let _ = write!(text, "{a}+{b}+{carry}={sum:02} ");
                    carry = sum / 10;
                }
            }
            Operator::Minus => {
                if self.left < self.right {
                    let _ = write!(text, "{upper}-{lower}:");
                }
                let mut borrowed = 0;
                for column in 0..digits(upper) {
                    let (a, b) = (digit(upper, column), digit(lower, column));
                    let borrow = u32::from(a < b + borrowed);
                    let _ = write!(text, "{borrow}{a}-{b}-{borrowed}={} ", 10 * borrow + a - b - borrowed);
                    borrowed = borrow;
                }
            }
        }
        let _ = write!(text, "#{}", self.result());
        text
    }

    pub(super) fn record(&self) -> Record {
        let difficulty = match digits(self.left.max(self.right)) {
            1 => Difficulty::Easy,
            2 => Difficulty::Medium,
            _ => Difficulty::Hard,
        };
        let category = match self.operator {
            Operator::Plus => "addition",
            Operator::Minus => "subtraction",
        };
        Record {
            prompt: self.head(),
            response: format!("{}$", self.solution()),
            difficulty,
            category: category.to_owned(),
        }
    }
}

/// A number of one to three digits, each length equally likely.
pub(super) fn operand(rng: &mut impl Rng) -> u32 {
    match rng.random_range(0..3_u32) {
        0 => rng.random_range(0..10),
        1 => rng.random_range(10..100),
        _ => rng.random_range(100..1000),
    }
}

fn hard_operands(rng: &mut impl Rng, operator: Operator) -> (u32, u32) {
    let a = operand(rng);
    let b = match (operator, rng.random_range(0..4_u32)) {
        // Near-equal operands: what is left has fewer digits, and which operand is larger shows late.
        (Operator::Minus, 0) => a.saturating_add_signed(rng.random_range(-12..=12)),
        (Operator::Minus, 1) => a.saturating_add_signed(rng.random_range(-99..=99)),
        (_, 0) => a - a % 10 + rng.random_range(0..10),
        // Equal middle digits: whether a column borrows or carries is decided by the one before it.
        (_, 1 | 2) => 100 * rng.random_range(0..10) + 10 * complement(operator, digit(a, 1)) + rng.random_range(0..10),
        // Zeros and nines: a borrow or a carry runs through.
        _ => {
            let edge = |rng: &mut _| if Rng::random(rng) { 9 } else { 0 };
            100 * edge(rng) + 10 * edge(rng) + rng.random_range(0..10)
        }
    };
    let b = b.min(999);
    if rng.random() { (a, b) } else { (b, a) }
}

/// The digit that makes a column depend on the one before it.
fn complement(operator: Operator, digit: u32) -> u32 {
    match operator {
        Operator::Plus => 9 - digit,
        Operator::Minus => digit,
    }
}

pub(super) fn digits(number: u32) -> u32 {
    number.checked_ilog10().unwrap_or(0) + 1
}

fn digit(number: u32, column: u32) -> u32 {
    number / 10_u32.pow(column) % 10
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
        assert_eq!(solve(208, Operator::Minus, 9), "208-9:18-9-0=9 10-0-1=9 02-0-1=1 #199$");
        assert_eq!(solve(683, Operator::Minus, 899), "683-899:899-683:09-3-0=6 09-8-0=1 08-6-0=2 #-216$");
        assert_eq!(solve(7, Operator::Minus, 7), "7-7:07-7-0=0 #0$");
    }

    #[test]
    fn commutation_is_folded() {
        let key = |operator, left, right| Calculation { operator, left, right }.key();
        assert_eq!(key(Operator::Plus, 3, 64), key(Operator::Plus, 64, 3));
        assert_eq!(key(Operator::Minus, 3, 64), key(Operator::Minus, 64, 3));
        assert_ne!(key(Operator::Plus, 3, 64), key(Operator::Minus, 64, 3));
    }
}
