//! Sums and differences in a field of seven places. Both operands share their places, which are drawn for each problem; places
//! without a digit have a dot. Pure.
//!
//! Example: `..347..+...86..:` → `.+.+0=0. .+.+0=0. 7+6+0=13 4+8+1=13 3+.+1=04 .+.+0=0. .+.+0=0. #..433..$`. For training, every other
//! field is filled with short numbers, separated by a dot or two, as in `.12.347+..4..86:`; in one of three such fields, more than
//! one fits. So digits occur at every place, in more places than one short number has, and a longer number needs no column that
//! was not trained.

use std::fmt::Write as _;

use rand::Rng;

use super::{
    calculation::{Calculation, digit, digits},
    key::{Key, Split},
    operands::Digits,
    operator::Operator,
    record::{Difficulty, Record},
};

/// Places of the field.
const PLACES: u32 = 7;

/// Digits by place, least significant first; `None` is a dot.
type Field = Vec<Option<u32>>;

/// Calculations with one operator in a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Padded {
    /// The calculations and the places of their least significant digits, in ascending order. A difference is negative only if
    /// it is the only calculation.
    calculations: Vec<(Calculation, u32)>,
}

impl Padded {
    /// The most digits of an operand; one place is for the carry of a sum.
    pub(super) const MOST: u32 = PLACES - 1;

    /// Draws a calculation and its place; for training, as many as fit.
    pub(super) fn sample(rng: &mut impl Rng, split: Split, range: Digits) -> Self {
        let calculation = range.calculation(rng, split);
        if split == Split::HeldOut || rng.random() {
            let first = rng.random_range(0..=Self::MOST - places(&calculation));
            return Self { calculations: vec![(calculation, first)] };
        }
        let mut calculations = Vec::new();
        let (mut next, mut first) = (calculation, rng.random_range(0..3));
        while first + places(&next) <= Self::MOST {
            if next.operator == Operator::Minus && next.left < next.right {
                (next.left, next.right) = (next.right, next.left);
            }
            calculations.push((next, first));
            first += places(&next) + 1 + u32::from(rng.random_range(0..4_u32) == 0);
            next = Calculation { left: range.operand(rng), right: range.operand(rng), ..next };
        }
        // Numbers that fill the field leave no room for an offset.
        if calculations.is_empty() {
            calculations.push((calculation, 0));
        }
        Self { calculations }
    }

    /// Returns the canonical key: that of the first calculation.
    pub fn key(&self) -> Key {
        self.inner_keys()[0]
    }

    /// Returns the keys of the calculations.
    pub(super) fn inner_keys(&self) -> Vec<Key> {
        self.calculations.iter().map(|(calculation, _)| calculation.key()).collect()
    }

    fn operator(&self) -> Operator {
        self.calculations[0].0.operator
    }

    fn field(&self, operand: impl Fn(&Calculation) -> u32) -> Field {
        let mut field = vec![None; PLACES as usize];
        for (calculation, first) in &self.calculations {
            let number = operand(calculation);
            for place in 0..digits(number) {
                field[(first + place) as usize] = Some(digit(number, place));
            }
        }
        field
    }

    /// Returns the columns, and the result in its field, as in `..433..`, with leading zeros.
    fn solution(&self) -> (String, String) {
        let (operator, mut text) = (self.operator(), String::new());
        let (left, right) = (self.field(|it| it.left), self.field(|it| it.right));
        let (mut result, carried) = columns(&mut text, operator, &left, &right);
        let negative = operator == Operator::Minus && carried == 1;
        if negative {
            text.push_str("- ");
            let zeros: Field = result.iter().map(|digit| digit.map(|_| 0)).collect();
            (result, _) = columns(&mut text, Operator::Minus, &zeros, &result);
        }
        (text, format!("{}{}", if negative { "-" } else { "" }, written(&result)))
    }

    /// Returns the answer in its field.
    pub(super) fn answer(&self) -> String {
        self.solution().1
    }

    pub(super) fn record(&self) -> Record {
        let (left, right) = (self.field(|it| it.left), self.field(|it| it.right));
        let (columns, answer) = self.solution();
        Record {
            prompt: format!("{}{}{}:", written(&left), self.operator().sign(), written(&right)),
            response: format!("{columns}#{answer}$"),
            difficulty: self.calculations.iter().map(|it| it.0.difficulty()).max().unwrap_or(Difficulty::Easy),
            category: self.operator().name().to_owned(),
            cluster: None,
        }
    }
}

fn places(calculation: &Calculation) -> u32 {
    digits(calculation.left.max(calculation.right))
}

/// Writes a column for each place, followed by a space. Returns the digits of the result, and the last carry or borrow.
fn columns(text: &mut String, operator: Operator, upper: &Field, lower: &Field) -> (Field, u32) {
    let mut carried = 0;
    let sign = operator.sign();
    let column = |(upper, lower): (&Option<u32>, &Option<u32>)| {
        let (a, b) = (upper.unwrap_or(0), lower.unwrap_or(0));
        let (carry, figure) = match operator {
            Operator::Plus => ((a + b + carried) / 10, (a + b + carried) % 10),
            Operator::Minus => (u32::from(a < b + carried), (10 + a - b - carried) % 10),
        };
        // Without digits, only the carry of a sum gives a digit.
        let left = upper.is_some() || lower.is_some() || operator == Operator::Plus && carried == 1;
        let figure = left.then_some(figure);
        let [upper, lower, result] = [*upper, *lower, figure].map(mark);
        let _ = write!(text, "{upper}{sign}{lower}{sign}{carried}={carry}{result} ");
        carried = carry;
        figure
    };
    let result = upper.iter().zip(lower).map(column).collect();
    (result, carried)
}

fn mark(digit: Option<u32>) -> char {
    digit.and_then(|digit| char::from_digit(digit, 10)).unwrap_or('.')
}

/// Formats a field, most significant place first.
fn written(field: &Field) -> String {
    field.iter().rev().map(|digit| mark(*digit)).collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn columns_are_at_the_places_of_the_digits() {
        let solve = |left, operator, right, first| {
            let record = Padded { calculations: vec![(Calculation { operator, left, right }, first)] }.record();
            record.prompt + &record.response
        };
        assert_eq!(
            solve(347, Operator::Plus, 86, 2),
            "..347..+...86..:.+.+0=0. .+.+0=0. 7+6+0=13 4+8+1=13 3+.+1=04 .+.+0=0. .+.+0=0. #..433..$"
        );
        assert_eq!(
            solve(95, Operator::Plus, 7, 0),
            ".....95+......7:5+7+0=12 9+.+1=10 .+.+1=01 .+.+0=0. .+.+0=0. .+.+0=0. .+.+0=0. #....102$"
        );
        assert_eq!(
            solve(208, Operator::Minus, 199, 4),
            "208....-199....:.-.-0=0. .-.-0=0. .-.-0=0. .-.-0=0. 8-9-0=19 0-9-1=10 2-1-1=00 #009....$"
        );
        assert_eq!(
            solve(12, Operator::Minus, 34, 5),
            "12.....-34.....:.-.-0=0. .-.-0=0. .-.-0=0. .-.-0=0. .-.-0=0. 2-4-0=18 1-3-1=17 - \
             .-.-0=0. .-.-0=0. .-.-0=0. .-.-0=0. .-.-0=0. 0-8-0=12 0-7-1=12 #-22.....$"
        );
    }

    #[test]
    fn several_short_numbers_share_a_field() {
        let sum = |left, right| Calculation { operator: Operator::Plus, left, right };
        let record = Padded { calculations: vec![(sum(347, 86), 0), (sum(12, 4), 4)] }.record();
        assert_eq!(
            record.prompt + &record.response,
            ".12.347+..4..86:7+6+0=13 4+8+1=13 3+.+1=04 .+.+0=0. 2+4+0=06 1+.+0=01 .+.+0=0. #.16.433$"
        );
    }

    #[test]
    fn the_field_holds_the_results() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut several = 0;
        for _ in 0..2000 {
            for (range, split) in [(3, Split::Train), (Padded::MOST, Split::HeldOut)] {
                let padded = Padded::sample(&mut rng, split, Digits::up_to(range));
                several += u32::from(padded.calculations.len() > 1);
                let answer = padded.answer();
                // A sum may carry into the dot between two numbers.
                let mut results: Vec<i64> = Vec::new();
                for (calculation, first) in padded.calculations.iter().rev() {
                    let size = digits(calculation.result().unsigned_abs() as u32).max(places(calculation));
                    let end = answer.len() - *first as usize;
                    let result: i64 = answer[end - size as usize..end].parse().unwrap();
                    results.push(if answer.starts_with('-') { -result } else { result });
                }
                let right: Vec<i64> = padded.calculations.iter().rev().map(|it| it.0.result()).collect();
                assert_eq!(results, right, "{padded:?}");
            }
        }
        assert!((200..600).contains(&several), "{several}");
    }
}
