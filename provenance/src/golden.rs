//! Golden tokens: what a model generated for a few prompts when it was evaluated. A server generates them again before it is
//! ready. Pure.
//!
//! Numbers are texts, so that no reader rounds them and a status stays short: a prompt is one line.

use std::fmt::{Display, Write as _};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The most prompts of a record.
pub const MAX_PROMPTS: usize = 4;
/// The most tokens of a prompt.
pub const MAX_PROMPT_TOKENS: usize = 128;
/// The most tokens that are generated for a prompt.
pub const MAX_TOKENS: usize = 32;
/// The most characters of a name, and of a number.
const MAX_NAME: usize = 32;
/// The most characters of the ids of a prompt: eight digits and a space each. No vocabulary has ids of more.
const MAX_PROMPT_TEXT: usize = 9 * MAX_PROMPT_TOKENS;
/// The most characters of generated ids.
const MAX_TOKENS_TEXT: usize = 9 * MAX_TOKENS;
/// The most characters of log-probabilities.
const MAX_LOG_PROBABILITIES_TEXT: usize = 18 * MAX_TOKENS;

/// What a model generated for a few prompts, and how it was computed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Golden {
    /// Code path of the decoder: backend, precision and kernels of products, such as `cpu-bf16-amx`.
    #[schemars(length(max = MAX_NAME))]
    pub path: String,
    /// Instruction set of all other kernels, such as `avx512`.
    #[schemars(length(max = MAX_NAME))]
    pub instruction_set: String,
    /// Version of the arithmetic of the kernels. Another version may give other bits.
    #[schemars(with = "i32", range(min = 1))]
    pub kernels: u32,
    /// Greatest difference from a log-probability on other code paths, instruction sets and versions, in nats, as a decimal.
    #[schemars(length(max = MAX_NAME))]
    pub tolerance: String,
    /// Prompts with their tokens.
    #[schemars(length(max = MAX_PROMPTS))]
    pub prompts: Vec<GoldenPrompt>,
}

/// A prompt, and what was generated for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GoldenPrompt {
    /// Token ids of the prompt, separated by spaces.
    #[schemars(length(max = MAX_PROMPT_TEXT))]
    pub prompt: String,
    /// Ids of the most likely tokens after it, separated by spaces.
    #[schemars(length(max = MAX_TOKENS_TEXT))]
    pub tokens: String,
    /// Natural logarithm of the probability of each of these tokens, separated by spaces.
    #[schemars(length(max = MAX_LOG_PROBABILITIES_TEXT))]
    pub log_probabilities: String,
}

/// A prompt as numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Tokens {
    /// The ids of the prompt.
    pub prompt: Vec<u32>,
    /// The generated ids.
    pub tokens: Vec<u32>,
    /// The log-probability of each of them.
    pub log_probabilities: Vec<f32>,
}

/// A record that is malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GoldenError {
    /// A number of things is out of range.
    #[error("{field} has {found} {what}; 1 to {most} are allowed")]
    Count {
        /// The field.
        field: &'static str,
        /// What is counted.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many may be.
        most: usize,
    },
    /// A name is too long or not printable.
    #[error("{field} must be 1 to {MAX_NAME} printable characters of ASCII")]
    Name {
        /// The field.
        field: &'static str,
    },
    /// A text is not a list of numbers in range.
    #[error("{field} must be {right}")]
    Number {
        /// The field.
        field: &'static str,
        /// What it must be.
        right: &'static str,
    },
}

impl Golden {
    /// Reads the numbers.
    ///
    /// # Errors
    /// The record is malformed.
    pub fn read(&self) -> Result<Vec<Tokens>, GoldenError> {
        name("path", &self.path)?;
        name("instructionSet", &self.instruction_set)?;
        self.tolerance()?;
        count("prompts", "prompts", self.prompts.len(), MAX_PROMPTS)?;
        self.prompts.iter().map(GoldenPrompt::read).collect()
    }

    /// Returns the greatest difference of a log-probability on other code paths and instruction sets.
    ///
    /// # Errors
    /// It is no number from 0 to 100.
    pub fn tolerance(&self) -> Result<f32, GoldenError> {
        let text = Some(&self.tolerance).filter(|text| text.len() <= MAX_NAME);
        let read: Option<f32> = text.and_then(|text| text.parse().ok());
        let right = "a number from 0 to 100";
        read.filter(|read| (0.0..=100.0).contains(read)).ok_or(GoldenError::Number { field: "tolerance", right })
    }

    /// Returns the number of generated tokens.
    pub fn count(&self) -> usize {
        self.prompts.iter().map(|prompt| prompt.tokens.split(' ').count()).sum()
    }
}

impl GoldenPrompt {
    /// Writes the numbers of a prompt.
    pub fn new(tokens: &Tokens) -> Self {
        let exact = tokens.log_probabilities.iter().map(|number| format!("{number:e}"));
        Self { prompt: joined(&tokens.prompt), tokens: joined(&tokens.tokens), log_probabilities: joined(exact) }
    }

    fn read(&self) -> Result<Tokens, GoldenError> {
        let ids = "token ids separated by single spaces";
        let read = Tokens {
            prompt: numbers("prompts.prompt", &self.prompt, (MAX_PROMPT_TOKENS, MAX_PROMPT_TEXT), ids)?,
            tokens: numbers("prompts.tokens", &self.tokens, (MAX_TOKENS, MAX_TOKENS_TEXT), ids)?,
            log_probabilities: numbers(
                LOG_PROBABILITIES,
                &self.log_probabilities,
                (MAX_TOKENS, MAX_LOG_PROBABILITIES_TEXT),
                "numbers separated by single spaces",
            )?,
        };
        // A number above 0 would be a probability above 1.
        if !read.log_probabilities.iter().all(|number| number.is_finite() && *number <= 0.0) {
            return Err(GoldenError::Number { field: LOG_PROBABILITIES, right: "finite numbers, at most 0" });
        }
        if read.log_probabilities.len() != read.tokens.len() {
            let right = "as many numbers as there are tokens";
            return Err(GoldenError::Number { field: LOG_PROBABILITIES, right });
        }
        Ok(read)
    }
}

const LOG_PROBABILITIES: &str = "prompts.logProbabilities";

fn name(field: &'static str, text: &str) -> Result<(), GoldenError> {
    let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
    let good = printable && !text.is_empty() && text.len() <= MAX_NAME;
    good.then_some(()).ok_or(GoldenError::Name { field })
}

fn count(field: &'static str, what: &'static str, found: usize, most: usize) -> Result<(), GoldenError> {
    (1..=most).contains(&found).then_some(()).ok_or(GoldenError::Count { field, what, found, most })
}

fn joined(numbers: impl IntoIterator<Item = impl Display>) -> String {
    let mut text = String::new();
    for number in numbers {
        let space = if text.is_empty() { "" } else { " " };
        // Writing to a text cannot fail.
        let _ = write!(text, "{space}{number}");
    }
    text
}

fn numbers<N: std::str::FromStr>(
    field: &'static str,
    text: &str,
    (most, characters): (usize, usize),
    right: &'static str,
) -> Result<Vec<N>, GoldenError> {
    count(field, "characters", text.len().max(1), characters)?;
    count(field, "numbers", text.split(' ').count(), most)?;
    let read = text.split(' ').map(|number| number.parse().map_err(|_| GoldenError::Number { field, right }));
    read.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden() -> Golden {
        let tokens = Tokens {
            prompt: vec![5, 0, 4_294_967_295],
            tokens: vec![7, 1],
            log_probabilities: vec![-1e-8, -12.345_678],
        };
        Golden {
            path: "cpu-f32".to_owned(),
            instruction_set: "avx512".to_owned(),
            kernels: 1,
            tolerance: "0.01".to_owned(),
            prompts: vec![GoldenPrompt::new(&tokens)],
        }
    }

    #[test]
    fn numbers_are_read_as_they_were_written() {
        let written = golden();
        assert_eq!(written.prompts[0].prompt, "5 0 4294967295");
        assert_eq!(written.prompts[0].log_probabilities, "-1e-8 -1.2345678e1");
        let read = written.read().unwrap();
        assert_eq!(GoldenPrompt::new(&read[0]), written.prompts[0]);
        assert_eq!((written.count(), written.tolerance().unwrap()), (2, 0.01));
        for bits in [0x8000_0000_u32, 0x8000_0001, 0xbf80_0001, 0xff7f_ffff] {
            let number = f32::from_bits(bits);
            let prompt = Tokens { prompt: vec![1], tokens: vec![1], log_probabilities: vec![number] };
            let again = GoldenPrompt::new(&prompt).read().unwrap();
            assert_eq!(again.log_probabilities[0].to_bits(), bits);
        }
    }

    #[test]
    fn the_largest_record_fits_the_schema() {
        let ids = |count| vec![99_999_999_u32; count];
        let tokens = Tokens {
            prompt: ids(MAX_PROMPT_TOKENS),
            tokens: ids(MAX_TOKENS),
            log_probabilities: vec![-1.234_567_8e-38; MAX_TOKENS],
        };
        let GoldenPrompt { prompt, tokens, log_probabilities } = GoldenPrompt::new(&tokens);
        assert!(prompt.len() <= MAX_PROMPT_TEXT && tokens.len() <= MAX_TOKENS_TEXT);
        assert!(log_probabilities.len() <= MAX_LOG_PROBABILITIES_TEXT);
        const { assert!(MAX_PROMPTS * (MAX_PROMPT_TEXT + MAX_TOKENS_TEXT + MAX_LOG_PROBABILITIES_TEXT) < 9_000) };
    }

    #[test]
    fn a_malformed_record_is_refused() {
        let told = |change: &dyn Fn(&mut Golden)| {
            let mut golden = golden();
            change(&mut golden);
            golden.read().unwrap_err().to_string()
        };
        assert_eq!(told(&|it| it.prompts.clear()), "prompts has 0 prompts; 1 to 4 are allowed");
        assert_eq!(told(&|it| it.path = "a b".to_owned()), "path must be 1 to 32 printable characters of ASCII");
        assert_eq!(told(&|it| it.tolerance = "NaN".to_owned()), "tolerance must be a number from 0 to 100");
        let ids = "must be token ids separated by single spaces";
        assert_eq!(told(&|it| it.prompts[0].prompt = "1  2".to_owned()), format!("prompts.prompt {ids}"));
        assert_eq!(told(&|it| it.prompts[0].tokens = String::new()), format!("prompts.tokens {ids}"));
        assert_eq!(told(&|it| it.prompts[0].tokens = "-1 2".to_owned()), format!("prompts.tokens {ids}"));
        let many = ["1"; MAX_TOKENS + 1].join(" ");
        assert_eq!(
            told(&|it| it.prompts[0].tokens = many.clone()),
            "prompts.tokens has 33 numbers; 1 to 32 are allowed"
        );
        for (wrong, right) in [
            ("0.5 -1", "finite numbers, at most 0"),
            ("-inf -1", "finite numbers, at most 0"),
            ("-1", "as many numbers as there are tokens"),
        ] {
            let found = told(&|it| it.prompts[0].log_probabilities = wrong.to_owned());
            assert_eq!(found, format!("prompts.logProbabilities must be {right}"));
        }
    }
}
