//! Four short stories that two calculations solve, as in `Jon has 3 eggs. Bob has 64 more. How many in all?` →
//! `3+64:3+4+0=07 0+6+0=06 #67 3+67:3+7+0=10 0+6+1=07 #70$`. Pure.

use rand::Rng;

use super::{
    Calculation, Difficulty, Key, Operator, Record, Split,
    arithmetic::{digits, operand},
};

const NAMES: [&str; 10] = ["Jon", "Bob", "Ann", "Eva", "Tim", "Mia", "Sam", "Zoe", "Max", "Ida"];
const THINGS: [&str; 10] = ["eggs", "pens", "nuts", "cups", "hats", "keys", "coins", "books", "cards", "stones"];

/// What happens in a word problem.
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
}

/// A word problem: a story, its numbers, and the names that it is told with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WordProblem {
    /// What happens.
    pub story: Story,
    /// a, b and, in the stories that have it, c.
    pub operands: [u32; 3],
    /// Who it is about.
    pub names: [&'static str; 2],
    /// What they have.
    pub things: &'static str,
}

impl WordProblem {
    /// Draws a story; no number in it or on the way to its answer is negative.
    pub(super) fn sample(rng: &mut impl Rng, split: Split) -> Self {
        let story = match rng.random_range(0..4_u32) {
            0 => Story::More,
            1 => Story::Fewer,
            2 => Story::GotLost,
            _ => Story::LostGot,
        };
        // Long numbers have sums of four digits, which are rare otherwise.
        let long = split == Split::Train && rng.random_range(0..8_u32) == 0;
        let number = |rng: &mut _| if long { Rng::random_range(rng, 400..1000) } else { operand(rng) };
        let (mut a, mut b, mut c) = (number(rng), number(rng), number(rng));
        match story {
            Story::More => c = 0,
            Story::Fewer => {
                (a, b) = (a.max(b), a.min(b));
                c = 0;
            }
            Story::GotLost => {
                if c > a + b {
                    (a, c) = (c, a);
                }
            }
            Story::LostGot => (a, b) = (a.max(b), a.min(b)),
        }
        let first = rng.random_range(0..NAMES.len() as u32) as usize;
        let other = (first + rng.random_range(1..NAMES.len() as u32) as usize) % NAMES.len();
        let things = THINGS[rng.random_range(0..THINGS.len() as u32) as usize];
        Self { story, operands: [a, b, c], names: [NAMES[first], NAMES[other]], things }
    }

    /// The canonical key: the story and its numbers, without names and things.
    pub fn key(&self) -> Key {
        let kind = match self.story {
            Story::More => "more",
            Story::Fewer => "fewer",
            Story::GotLost => "got-lost",
            Story::LostGot => "lost-got",
        };
        Key { kind, operands: self.operands }
    }

    /// The two calculations, in the order of the solution.
    pub fn calculations(&self) -> [Calculation; 2] {
        use Operator::{Minus, Plus};
        let [a, b, c] = self.operands;
        let calculation = |left, operator, right| Calculation { operator, left, right };
        match self.story {
            Story::More => [calculation(a, Plus, b), calculation(a, Plus, a + b)],
            Story::Fewer => [calculation(a, Minus, b), calculation(a, Plus, a - b)],
            Story::GotLost => [calculation(a, Plus, b), calculation(a + b, Minus, c)],
            Story::LostGot => [calculation(a, Minus, b), calculation(a - b, Plus, c)],
        }
    }

    pub(super) fn record(&self) -> Record {
        let Self { story, operands: [a, b, c], names: [name, other], things } = self;
        let prompt = match story {
            Story::More => format!("{name} has {a} {things}. {other} has {b} more. How many in all?"),
            Story::Fewer => format!("{name} has {a} {things}. {other} has {b} fewer. How many in all?"),
            Story::GotLost => format!("{name} had {a} {things}, got {b} and lost {c}. How many now?"),
            Story::LostGot => format!("{name} had {a} {things}, lost {b} and got {c}. How many now?"),
        };
        let difficulty = match self.operands.map(digits).into_iter().max() {
            Some(1) => Difficulty::Medium,
            Some(2) => Difficulty::Hard,
            _ => Difficulty::VeryHard,
        };
        let [first, second] = self.calculations();
        let response = format!("{}{} {}{}$", first.head(), first.solution(), second.head(), second.solution());
        Record { prompt, response, difficulty, category: "word-problem".to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stories_are_told_and_solved() {
        let tell = |story, operands| {
            let problem = WordProblem { story, operands, names: ["Jon", "Bob"], things: "eggs" };
            let record = problem.record();
            format!("{}\n{}", record.prompt, record.response)
        };
        insta::assert_snapshot!(tell(Story::More, [3, 64, 0]), @r"
        Jon has 3 eggs. Bob has 64 more. How many in all?
        3+64:3+4+0=07 0+6+0=06 #67 3+67:3+7+0=10 0+6+1=07 #70$
        ");
        insta::assert_snapshot!(tell(Story::Fewer, [64, 3, 0]), @r"
        Jon has 64 eggs. Bob has 3 fewer. How many in all?
        64-3:04-3-0=1 06-0-0=6 #61 64+61:4+1+0=05 6+6+0=12 #125$
        ");
        insta::assert_snapshot!(tell(Story::GotLost, [8, 5, 4]), @r"
        Jon had 8 eggs, got 5 and lost 4. How many now?
        8+5:8+5+0=13 #13 13-4:13-4-0=9 01-0-1=0 #9$
        ");
        insta::assert_snapshot!(tell(Story::LostGot, [8, 5, 4]), @r"
        Jon had 8 eggs, lost 5 and got 4. How many now?
        8-5:08-5-0=3 #3 3+4:3+4+0=07 #7$
        ");
    }

    #[test]
    fn names_and_things_do_not_make_another_problem() {
        let problem = |names, things| WordProblem { story: Story::More, operands: [3, 64, 0], names, things };
        assert_eq!(problem(["Jon", "Bob"], "eggs").key(), problem(["Ann", "Eva"], "pens").key());
    }
}
