//! Draws operands. Pure.

use rand::Rng;

use super::{
    calculation::{Calculation, digit, digits},
    key::Split,
    operator::Operator,
};

/// The range of an operand's digits; every length in the range is equally likely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digits {
    /// The fewest digits.
    pub least: u32,
    /// The most digits.
    pub most: u32,
}

impl Digits {
    /// The most digits that all tasks support.
    pub const LIMIT: u32 = 8;

    /// Makes the range from one digit to `most`.
    pub const fn up_to(most: u32) -> Self {
        Self { least: 1, most }
    }

    /// Makes a range of exactly `count` digits.
    pub const fn exactly(count: u32) -> Self {
        Self { least: count, most: count }
    }

    /// Draws a number; each length is equally likely.
    pub(super) fn operand(self, rng: &mut impl Rng) -> u32 {
        let count = self.least + rng.random_range(0..=self.most - self.least);
        let least = if count == 1 { 0 } else { 10_u32.pow(count - 1) };
        rng.random_range(least..10_u32.pow(count))
    }

    /// Draws a sum or a difference. For training, one in three is hard for small models: equal leading digits, borrows past a
    /// zero, chains of carries.
    pub(super) fn calculation(self, rng: &mut impl Rng, split: Split) -> Calculation {
        let operator = if rng.random() { Operator::Plus } else { Operator::Minus };
        let (left, right) = if split == Split::Train && rng.random_range(0..3_u32) == 0 {
            self.hard_operands(rng, operator)
        } else {
            (self.operand(rng), self.operand(rng))
        };
        Calculation { operator, left, right }
    }

    fn hard_operands(self, rng: &mut impl Rng, operator: Operator) -> (u32, u32) {
        let a = self.operand(rng);
        let top = self.most - 1;
        let b = match (operator, rng.random_range(0..4_u32)) {
            // Near-equal operands: the result has fewer digits, and the last columns decide which operand is larger.
            (Operator::Minus, 0) => a.saturating_add_signed(rng.random_range(-12..=12)),
            (Operator::Minus, 1) => a.saturating_add_signed(rng.random_range(-99..=99)),
            (_, 0) => a - a % 10 + rng.random_range(0..10),
            // Equal inner digits: each column's borrow or carry depends on the column before.
            (_, 1 | 2) => {
                let inner: u32 = (1..top).map(|place| 10_u32.pow(place) * complement(operator, digit(a, place))).sum();
                10_u32.pow(top) * rng.random_range(0..10) + inner + rng.random_range(0..10)
            }
            // Zeros and nines: a borrow or carry passes through all columns.
            _ => {
                let edges: u32 =
                    (1..=top).rev().map(|place| 10_u32.pow(place) * if rng.random() { 9 } else { 0 }).sum();
                edges + rng.random_range(0..10)
            }
        };
        let b = b.min(10_u32.pow(self.most) - 1);
        let b = if digits(b) < self.least { a } else { b };
        if rng.random() { (a, b) } else { (b, a) }
    }
}

/// Returns the digit that makes a column depend on the column before.
fn complement(operator: Operator, digit: u32) -> u32 {
    match operator {
        Operator::Plus => 9 - digit,
        Operator::Minus => digit,
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn operands_have_the_requested_digits() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for range in [Digits::up_to(3), Digits::up_to(5), Digits::exactly(1), Digits::exactly(Digits::LIMIT)] {
            let mut lengths = [0; 9];
            for split in [Split::Train, Split::HeldOut].into_iter().cycle().take(2000) {
                let Calculation { left, right, .. } = range.calculation(&mut rng, split);
                for operand in [left, right] {
                    assert!((range.least..=range.most).contains(&digits(operand)), "{operand} of {range:?}");
                    lengths[digits(operand) as usize] += 1;
                }
            }
            let fewest = (range.least..=range.most).map(|count| lengths[count as usize]).min();
            assert!(fewest > Some(4000 / 10), "{range:?}: {lengths:?}");
        }
    }
}
