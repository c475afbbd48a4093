//! One calculation on two numbers, solved column by column, least significant digit first. Pure.
//!
//! Plus: `digit+digit+carry=` carry and digit, as in `347+86:` → `7+6+0=13 4+8+1=13 3+0+1=04 #433$`. Minus: the upper digit
//! with what it borrowed in front, `18-9-0=9`, and the larger operand on top: `683-899:` → `899-683:09-3-0=6 … #-216$`.

use std::fmt::Write as _;

use super::{Difficulty, Key, Record};

/// What a calculation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// left + right
    Plus,
    /// left − right
    Minus,
}

impl Operator {
    fn sign(self) -> char {
        match self {
            Self::Plus => '+',
            Self::Minus => '-',
        }
    }

    /// The category of records, and the kind of keys.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plus => "addition",
            Self::Minus => "subtraction",
        }
    }
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
        Key::new(self.operator.name(), &[self.left.max(self.right), self.left.min(self.right)])
    }

    /// `left±right:`, which is a prompt here and the head of a step in a longer solution.
    pub(super) fn head(&self) -> String {
        format!("{}{}{}:", self.left, self.operator.sign(), self.right)
    }

    /// The columns and the result: what follows [`head`](Self::head), without the end mark.
    pub(super) fn solution(&self) -> String {
        let mut text = String::new();
        let swapped = self.operator == Operator::Minus && self.left < self.right;
        let (upper, lower) = if swapped { (self.right, self.left) } else { (self.left, self.right) };
        if swapped {
            let _ = write!(text, "{upper}-{lower}:");
        }
        let mut carried = 0;
        for place in 0..digits(upper.max(lower)) {
            let (a, b) = (digit(upper, place), digit(lower, place));
            match self.operator {
                Operator::Plus => {
                    let sum = a + b + carried;
                    let _ = write!(text, "{a}+{b}+{carried}={sum:02} ");
                    carried = sum / 10;
                }
                Operator::Minus => {
                    let borrow = u32::from(a < b + carried);
                    let _ = write!(text, "{borrow}{a}-{b}-{carried}={} ", 10 * borrow + a - b - carried);
                    carried = borrow;
                }
            }
        }
        let _ = write!(text, "#{}", self.result());
        text
    }

    fn difficulty(&self) -> Difficulty {
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
        }
    }
}

/// How many digits a number has; 0 has one.
pub(super) fn digits(number: u32) -> u32 {
    number.checked_ilog10().unwrap_or(0) + 1
}

/// The digit at `place`, counted from the least significant one; 0 where the number has none.
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
