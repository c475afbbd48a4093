//! Word problems of two or three calculations. Example: `Jon has 3 eggs. Bob has 64 more. How many in all?` →
//! `3+64:3+4+0=07 0+6+0=06 #67 3+67:3+7+0=10 0+6+1=07 #70$`. Pure.

use rand::Rng;

use super::{
    calculation::{Calculation, digits},
    key::{Key, Split},
    operands::Digits,
    operator::Operator,
    record::{Difficulty, Record},
};

const NAMES: [&str; 10] = ["Jon", "Bob", "Ann", "Eva", "Tim", "Mia", "Sam", "Zoe", "Max", "Ida"];
const THINGS: [&str; 10] = ["eggs", "pens", "nuts", "cups", "hats", "keys", "coins", "books", "cards", "stones"];

/// The story of a word problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Story {
    /// One has a, the other b more; how many in all?
    More,
    /// One has a, the other b fewer; how many in all?
    Fewer,
    /// One had a, got b and lost c.
    GotLost,
    /// One had a, lost b and got c.
    LostGot,
    /// One has a, the other b more, and they lose c; how many in all?
    MoreLost,
    /// One has a, the other b fewer, and they get c; how many in all?
    FewerGot,
    /// One had a, got b, lost c and got d.
    GotLostGot,
    /// One had a, lost b, got c and lost d.
    LostGotLost,
}

impl Story {
    /// The stories that two calculations solve.
    const TWO_STEPS: [Self; 4] = [Self::More, Self::Fewer, Self::GotLost, Self::LostGot];
    /// The stories that three calculations solve.
    const THREE_STEPS: [Self; 4] = [Self::MoreLost, Self::FewerGot, Self::GotLostGot, Self::LostGotLost];

    /// Returns the number of operands.
    fn operands(self) -> usize {
        match self {
            Self::More | Self::Fewer => 2,
            Self::GotLost | Self::LostGot | Self::MoreLost | Self::FewerGot => 3,
            Self::GotLostGot | Self::LostGotLost => 4,
        }
    }

    /// Returns the kind of its keys.
    fn name(self) -> &'static str {
        match self {
            Self::More => "more",
            Self::Fewer => "fewer",
            Self::GotLost => "got-lost",
            Self::LostGot => "lost-got",
            Self::MoreLost => "more-lost",
            Self::FewerGot => "fewer-got",
            Self::GotLostGot => "got-lost-got",
            Self::LostGotLost => "lost-got-lost",
        }
    }
}

/// A word problem: a story, its operands, and the names in its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WordProblem {
    /// The story.
    pub story: Story,
    /// The operands a, b, c and d; 0 where the story has fewer.
    pub operands: [u32; 4],
    /// The names of the persons.
    pub names: [&'static str; 2],
    /// The objects that they have.
    pub things: &'static str,
}

impl WordProblem {
    /// Draws a story of two calculations without negative numbers.
    pub(super) fn two_steps(rng: &mut impl Rng, split: Split, range: Digits) -> Self {
        Self::sample(rng, split, range, Story::TWO_STEPS, 3)
    }

    /// Draws a story of three calculations without negative numbers.
    pub(super) fn three_steps(rng: &mut impl Rng, split: Split, range: Digits) -> Self {
        Self::sample(rng, split, range, Story::THREE_STEPS, 4)
    }

    fn sample(rng: &mut impl Rng, split: Split, range: Digits, stories: [Story; 4], numbers: usize) -> Self {
        let story = stories[rng.random_range(0..4_u32) as usize];
        // Large operands give sums with one more digit, which are rare otherwise.
        let long = split == Split::Train && rng.random_range(0..4_u32) == 0;
        let top = 10_u32.pow(range.most);
        let mut operands = [0; 4];
        for operand in operands.iter_mut().take(numbers) {
            *operand = if long { rng.random_range(4 * top / 10..top) } else { range.operand(rng) };
        }
        operands[story.operands()..].fill(0);
        let [a, b, c, d] = &mut operands;
        match story {
            Story::More => {}
            Story::Fewer | Story::LostGot | Story::FewerGot => larger_first(a, b),
            Story::GotLost | Story::GotLostGot => {
                if *c > *a + *b {
                    std::mem::swap(a, c);
                }
            }
            Story::MoreLost => {
                if *c > 2 * *a + *b {
                    std::mem::swap(a, c);
                }
            }
            Story::LostGotLost => {
                larger_first(a, b);
                if *d > *a - *b + *c {
                    std::mem::swap(c, d);
                }
            }
        }
        let first = rng.random_range(0..NAMES.len() as u32) as usize;
        let other = (first + rng.random_range(1..NAMES.len() as u32) as usize) % NAMES.len();
        let things = THINGS[rng.random_range(0..THINGS.len() as u32) as usize];
        Self { story, operands, names: [NAMES[first], NAMES[other]], things }
    }

    /// Returns the canonical key: the story and its operands, without the names.
    pub fn key(&self) -> Key {
        Key::new(self.story.name(), &self.operands)
    }

    /// Returns the calculations in the order of the solution.
    pub fn calculations(&self) -> Vec<Calculation> {
        use Operator::{Minus, Plus};
        let [a, b, c, d] = self.operands;
        let calculation = |left, operator, right| Calculation { operator, left, right };
        match self.story {
            Story::More => vec![calculation(a, Plus, b), calculation(a, Plus, a + b)],
            Story::Fewer => vec![calculation(a, Minus, b), calculation(a, Plus, a - b)],
            Story::GotLost => vec![calculation(a, Plus, b), calculation(a + b, Minus, c)],
            Story::LostGot => vec![calculation(a, Minus, b), calculation(a - b, Plus, c)],
            Story::MoreLost => {
                vec![calculation(a, Plus, b), calculation(a, Plus, a + b), calculation(a + a + b, Minus, c)]
            }
            Story::FewerGot => {
                vec![calculation(a, Minus, b), calculation(a, Plus, a - b), calculation(a + a - b, Plus, c)]
            }
            Story::GotLostGot => {
                vec![calculation(a, Plus, b), calculation(a + b, Minus, c), calculation(a + b - c, Plus, d)]
            }
            Story::LostGotLost => {
                vec![calculation(a, Minus, b), calculation(a - b, Plus, c), calculation(a - b + c, Minus, d)]
            }
        }
    }

    pub(super) fn record(&self) -> Record {
        let Self { story, operands: [a, b, c, d], names: [name, other], things } = self;
        let prompt = match story {
            Story::More => format!("{name} has {a} {things}. {other} has {b} more. How many in all?"),
            Story::Fewer => format!("{name} has {a} {things}. {other} has {b} fewer. How many in all?"),
            Story::GotLost => format!("{name} had {a} {things}, got {b} and lost {c}. How many now?"),
            Story::LostGot => format!("{name} had {a} {things}, lost {b} and got {c}. How many now?"),
            Story::MoreLost => {
                format!("{name} has {a} {things}. {other} has {b} more. They lose {c}. How many in all?")
            }
            Story::FewerGot => {
                format!("{name} has {a} {things}. {other} has {b} fewer. They get {c}. How many in all?")
            }
            Story::GotLostGot => format!("{name} had {a} {things}, got {b}, lost {c} and got {d}. How many now?"),
            Story::LostGotLost => format!("{name} had {a} {things}, lost {b}, got {c} and lost {d}. How many now?"),
        };
        let difficulty = match self.operands.map(digits).into_iter().max() {
            Some(1) => Difficulty::Medium,
            Some(2) => Difficulty::Hard,
            _ => Difficulty::VeryHard,
        };
        let calculations: Vec<String> =
            self.calculations().iter().map(|step| format!("{}{}", step.head(), step.solution())).collect();
        let response = format!("{}$", calculations.join(" "));
        Record { prompt, response, difficulty, category: "word-problem".to_owned(), cluster: None }
    }
}

fn larger_first(a: &mut u32, b: &mut u32) {
    (*a, *b) = ((*a).max(*b), (*a).min(*b));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stories_have_a_text_and_a_solution() {
        let tell = |story, operands| {
            let problem = WordProblem { story, operands, names: ["Jon", "Bob"], things: "eggs" };
            let record = problem.record();
            format!("{}\n{}", record.prompt, record.response)
        };
        insta::assert_snapshot!(tell(Story::More, [3, 64, 0, 0]), @r"
        Jon has 3 eggs. Bob has 64 more. How many in all?
        3+64:3+4+0=07 0+6+0=06 #67 3+67:3+7+0=10 0+6+1=07 #70$
        ");
        insta::assert_snapshot!(tell(Story::Fewer, [64, 3, 0, 0]), @r"
        Jon has 64 eggs. Bob has 3 fewer. How many in all?
        64-3:4-3-0=01 6-0-0=06 #61 64+61:4+1+0=05 6+6+0=12 #125$
        ");
        insta::assert_snapshot!(tell(Story::GotLost, [8, 5, 4, 0]), @r"
        Jon had 8 eggs, got 5 and lost 4. How many now?
        8+5:8+5+0=13 #13 13-4:3-4-0=19 1-0-1=00 #9$
        ");
        insta::assert_snapshot!(tell(Story::LostGot, [8, 5, 4, 0]), @r"
        Jon had 8 eggs, lost 5 and got 4. How many now?
        8-5:8-5-0=03 #3 3+4:3+4+0=07 #7$
        ");
        insta::assert_snapshot!(tell(Story::MoreLost, [3, 64, 5, 0]), @r"
        Jon has 3 eggs. Bob has 64 more. They lose 5. How many in all?
        3+64:3+4+0=07 0+6+0=06 #67 3+67:3+7+0=10 0+6+1=07 #70 70-5:0-5-0=15 7-0-1=06 #65$
        ");
        insta::assert_snapshot!(tell(Story::FewerGot, [8, 3, 9, 0]), @r"
        Jon has 8 eggs. Bob has 3 fewer. They get 9. How many in all?
        8-3:8-3-0=05 #5 8+5:8+5+0=13 #13 13+9:3+9+0=12 1+0+1=02 #22$
        ");
        insta::assert_snapshot!(tell(Story::GotLostGot, [8, 5, 4, 2]), @r"
        Jon had 8 eggs, got 5, lost 4 and got 2. How many now?
        8+5:8+5+0=13 #13 13-4:3-4-0=19 1-0-1=00 #9 9+2:9+2+0=11 #11$
        ");
        insta::assert_snapshot!(tell(Story::LostGotLost, [8, 5, 4, 2]), @r"
        Jon had 8 eggs, lost 5, got 4 and lost 2. How many now?
        8-5:8-5-0=03 #3 3+4:3+4+0=07 #7 7-2:7-2-0=05 #5$
        ");
    }

    #[test]
    fn names_do_not_change_the_key() {
        let problem = |names, things| WordProblem { story: Story::More, operands: [3, 64, 0, 0], names, things };
        assert_eq!(problem(["Jon", "Bob"], "eggs").key(), problem(["Ann", "Eva"], "pens").key());
    }
}
