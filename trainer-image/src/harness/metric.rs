//! Metrics of a document, and what they are over all documents. Pure. Names and definitions are those of lm-evaluation-harness.

use regex::Regex;

use super::{HarnessError, filter::regex, read::Section};

/// The punctuation of Python's `string.punctuation`.
const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";

/// How the request of a task is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OutputType {
    /// The model writes.
    GenerateUntil,
    /// The log-probability of the target.
    Loglikelihood,
    /// The choice with the highest log-probability.
    MultipleChoice,
}

impl OutputType {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::GenerateUntil => "generate_until",
            Self::Loglikelihood => "loglikelihood",
            Self::MultipleChoice => "multiple_choice",
        }
    }

    fn metrics(self) -> &'static [&'static str] {
        match self {
            Self::GenerateUntil => &["exact_match"],
            Self::Loglikelihood => &["acc", "perplexity"],
            Self::MultipleChoice => &["acc", "acc_norm"],
        }
    }
}

/// What is measured of a document.
#[derive(Clone, Debug)]
enum Kind {
    /// The response is the target.
    ExactMatch { ignore_case: bool, ignore_punctuation: bool, ignore_numbers: bool, regexes_to_ignore: Vec<Regex> },
    /// The target is what the model would write, or the most likely choice.
    Acc,
    /// The most likely choice, each divided by its length in characters.
    AccNorm,
    /// The log-probability of the target.
    Perplexity,
}

/// A metric of a task.
#[derive(Clone, Debug)]
pub(super) struct Metric {
    pub(super) name: &'static str,
    pub(super) higher_is_better: bool,
    kind: Kind,
}

/// What the model said to a document, as metrics see it.
#[derive(Clone, Debug)]
pub(super) enum Said<'a> {
    /// A response after its filter, and the target.
    Text { response: &'a str, target: &'a str },
    /// The log-probability of the target, and whether the model would write it.
    Likelihood { log_probability: f64, greedy: bool },
    /// The log-probability of each choice, the choices, and the index of the right one.
    Choices { log_probabilities: &'a [f64], choices: &'a [String], right: usize },
}

impl Metric {
    /// Returns the metrics of a task that lists none.
    pub(super) fn of(kind: OutputType) -> Vec<Self> {
        let exact = Kind::ExactMatch {
            ignore_case: false,
            ignore_punctuation: false,
            ignore_numbers: false,
            regexes_to_ignore: Vec::new(),
        };
        let metric = |name, kind, higher_is_better| Self { name, higher_is_better, kind };
        match kind {
            OutputType::GenerateUntil => vec![metric("exact_match", exact, true)],
            OutputType::Loglikelihood => {
                vec![metric("perplexity", Kind::Perplexity, false), metric("acc", Kind::Acc, true)]
            }
            OutputType::MultipleChoice => vec![metric("acc", Kind::Acc, true), metric("acc_norm", Kind::AccNorm, true)],
        }
    }

    /// Reads a metric.
    ///
    /// # Errors
    /// It is unknown, is no metric of the output type, or has a wrong argument.
    pub(super) fn read(section: Section<'_>, kind: OutputType) -> Result<Self, HarnessError> {
        let named = section.text("metric")?.unwrap_or_default();
        let Some(name) = kind.metrics().iter().copied().find(|known| *known == named) else {
            let right = kind.metrics().join(", ");
            let why = format!("{named:?} is no supported metric of output_type {}: use {right}", kind.name());
            return Err(section.refuse("metric", why));
        };
        let arguments = ["ignore_case", "ignore_punctuation", "ignore_numbers", "regexes_to_ignore"];
        if name != "exact_match"
            && let Some(other) = arguments.into_iter().find(|argument| section.value(argument).is_some())
        {
            return Err(section.refuse(other, format!("belongs to exact_match and not to {name}: remove it")));
        }
        let (own, aggregation, better) = match name {
            "exact_match" => {
                let patterns = section.texts("regexes_to_ignore")?.unwrap_or_default();
                let compiled = patterns.iter().map(|pattern| regex(pattern)).collect::<Result<_, _>>();
                let exact = Kind::ExactMatch {
                    ignore_case: section.flag("ignore_case")?,
                    ignore_punctuation: section.flag("ignore_punctuation")?,
                    ignore_numbers: section.flag("ignore_numbers")?,
                    regexes_to_ignore: compiled.map_err(|why| section.refuse("regexes_to_ignore", why))?,
                };
                (exact, "mean", true)
            }
            "acc" => (Kind::Acc, "mean", true),
            "acc_norm" => (Kind::AccNorm, "mean", true),
            _ => (Kind::Perplexity, "perplexity", false),
        };
        if section.text("aggregation")?.is_some_and(|found| found != aggregation) {
            return Err(section.refuse("aggregation", format!("of {name} is {aggregation}: write that, or remove it")));
        }
        let stated = section.value("higher_is_better").map(|_| section.flag("higher_is_better")).transpose()?;
        Ok(Self { name, higher_is_better: stated.unwrap_or(better), kind: own })
    }

    /// Returns the value for a document.
    pub(super) fn value(&self, said: &Said<'_>) -> f64 {
        let share = |right: bool| f64::from(u8::from(right));
        match (&self.kind, said) {
            (Kind::ExactMatch { .. }, Said::Text { response, target }) => {
                // An empty response is no answer, whatever the target is.
                share(!response.is_empty() && self.compared(response) == self.compared(target))
            }
            (Kind::Acc, Said::Likelihood { greedy, .. }) => share(*greedy),
            (Kind::Perplexity, Said::Likelihood { log_probability, .. }) => *log_probability,
            (Kind::Acc, Said::Choices { log_probabilities, right, .. }) => {
                share(most(log_probabilities.iter().copied()) == Some(*right))
            }
            (Kind::AccNorm, Said::Choices { log_probabilities, choices, right }) => {
                let lengths = choices.iter().map(|choice| choice.chars().count().max(1) as f64);
                share(most(log_probabilities.iter().zip(lengths).map(|(own, length)| own / length)) == Some(*right))
            }
            // The output type of a task decides on both.
            _ => 0.0,
        }
    }

    fn compared(&self, text: &str) -> String {
        let Kind::ExactMatch { ignore_case, ignore_punctuation, ignore_numbers, regexes_to_ignore } = &self.kind else {
            return text.to_owned();
        };
        let mut text = text.to_owned();
        for pattern in regexes_to_ignore {
            text = pattern.replace_all(&text, "").into_owned();
        }
        if *ignore_case {
            text = text.to_lowercase();
        }
        text.retain(|c| !(*ignore_punctuation && PUNCTUATION.contains(c) || *ignore_numbers && c.is_ascii_digit()));
        text
    }

    /// Returns the value over all documents, and its standard error if it is a mean.
    pub(super) fn aggregate(&self, values: &[f64]) -> (f64, Option<f64>) {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        if matches!(self.kind, Kind::Perplexity) {
            return ((-mean).exp(), None);
        }
        let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
        (mean, (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt() / count.sqrt()))
    }
}

/// Returns the index of the largest value, the first of equal ones.
fn most(values: impl Iterator<Item = f64>) -> Option<usize> {
    let larger = |best: (usize, f64), next: (usize, f64)| if next.1 > best.1 { next } else { best };
    values.enumerate().reduce(larger).map(|(at, _)| at)
}
