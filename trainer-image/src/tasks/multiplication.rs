//! Products of two-digit numbers by partial products: the left operand times each digit of the right one, each row added to
//! the row before. Pure.
//!
//! Example: `47*86:` → `7*6:42+0+0=42 4*6:24+0+4=28 #282 7*8:56+8+0=64 4*8:32+2+6=40 #4042$`. Each step is a product of two digits,
//! plus the digit of the row before, plus the carry.

use std::fmt::Write as _;

use rand::Rng;

use super::{
    calculation::{digit, digits},
    key::Key,
    operands::Digits,
    record::{Difficulty, Record},
};

/// A product of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Multiplication {
    /// The left operand.
    pub left: u32,
    /// The right operand; each of its digits gives a row.
    pub right: u32,
}

impl Multiplication {
    /// Draws operands of two digits.
    pub(super) fn sample(rng: &mut impl Rng) -> Self {
        let two = Digits::exactly(2);
        Self { left: two.operand(rng), right: two.operand(rng) }
    }

    /// Returns the result.
    pub fn result(self) -> u32 {
        self.left * self.right
    }

    /// Returns the canonical key. A row, such as `47*6`, has no key: like a column of a sum, it is part of many problems.
    pub fn key(self) -> Key {
        Key::new("multiplication", &[self.left.max(self.right), self.left.min(self.right)])
    }

    pub(super) fn record(self) -> Record {
        let mut response = String::new();
        let mut total = 0;
        for row in 0..digits(self.right) {
            let factor = digit(self.right, row);
            let mut carry = 0;
            for place in 0..digits(self.left) {
                let (figure, above) = (digit(self.left, place), digit(total, row + place));
                let sum = figure * factor + above + carry;
                let _ = write!(response, "{figure}*{factor}:{:02}+{above}+{carry}={sum:02} ", figure * factor);
                carry = sum / 10;
            }
            total += self.left * factor * 10_u32.pow(row);
            let _ = write!(response, "#{total} ");
        }
        response.pop();
        response.push('$');
        Record {
            prompt: format!("{}*{}:", self.left, self.right),
            response,
            difficulty: Difficulty::VeryHard,
            category: "multiplication".to_owned(),
            cluster: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_written_out() {
        let solve = |left, right| Multiplication { left, right }.record().response;
        assert_eq!(solve(47, 86), "7*6:42+0+0=42 4*6:24+0+4=28 #282 7*8:56+8+0=64 4*8:32+2+6=40 #4042$");
        assert_eq!(solve(10, 10), "0*0:00+0+0=00 1*0:00+0+0=00 #0 0*1:00+0+0=00 1*1:01+0+0=01 #100$");
        assert_eq!(solve(99, 99), "9*9:81+0+0=81 9*9:81+0+8=89 #891 9*9:81+9+0=90 9*9:81+8+9=98 #9801$");
    }

    #[test]
    fn the_carries_add_up_to_the_result() {
        for left in 10..100 {
            for right in 10..100 {
                let product = Multiplication { left, right };
                let response = product.record().response;
                assert!(response.ends_with(&format!("#{}$", product.result())), "{response}");
                // The last column and the final digits of the rows form the result, too.
                let (rows, mut written) = (response.split(" #").collect::<Vec<_>>(), 0);
                let columns = |row: &str| -> Vec<u32> {
                    let sums = row.split(' ').filter_map(|step| step.split_once('='));
                    sums.map(|(_, sum)| sum.parse().unwrap()).collect()
                };
                let first = columns(rows[0]);
                let second = columns(rows[1].split_once(' ').unwrap().1);
                for (place, sum) in [first[0], second[0], second[1]].into_iter().enumerate() {
                    written += sum % 10 * 10_u32.pow(place as u32);
                }
                assert_eq!(written + second[1] / 10 * 1000, product.result());
            }
        }
    }
}
