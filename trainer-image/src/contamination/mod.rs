//! `codex data`: checks data before a training. Reads files.
//!
//! `check` looks for problems of an evaluation in training data: problems that are asked in the same words, and sequences of words
//! that a problem and a record share.

mod problems;
mod report;
#[cfg(test)]
mod tests;

use std::{ops::ControlFlow, path::PathBuf};

use codex_configs::{Data as DataItem, TrainingSettings};
use codex_provenance::{DataDigest, Sha256};
use codex_reports::exit;
use rayon::prelude::*;

use self::{
    problems::{Found, Problems},
    report::{Report, Source},
};
use crate::{
    arguments::named_file,
    atomic_fs,
    composing::{self, Template},
    error::CommandError,
    training::{Example, Input, TrainError, default_data, each_record},
};

/// Records that are compared at once.
const CHUNK: usize = 4096;
/// Bytes of text after which records are compared.
const CHUNK_BYTES: usize = 8 << 20;

/// Check data before a training.
#[derive(Debug, clap::Args)]
pub struct Data {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Look for the problems of an evaluation in training data; exits with 1 if more than --max-share of them overlap.
    Check(Check),
}

/// Look for the problems of an evaluation in training data.
#[derive(Debug, clap::Args)]
pub(crate) struct Check {
    /// Training data, in any format that training reads.
    #[arg(long, value_name = "NAME=FILE", required = true, value_parser = named_file)]
    pub(crate) data: Vec<(String, PathBuf)>,
    /// Problems of the evaluation, in any format that training reads.
    #[arg(long, value_name = "FILE")]
    pub(crate) against: PathBuf,
    /// Number of consecutive words that are an overlap.
    #[arg(long, value_name = "WORDS", default_value_t = 13, value_parser = crate::arguments::whole::<usize>(1..=1000))]
    pub(crate) ngram: usize,
    /// Share of the problems that may overlap.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub(crate) max_share: f64,
    /// Set how the training data is read, such as `data.fields.prompt=instruction`, or `training.method=dpo` for preferences.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Form of the report.
    #[arg(long, value_enum, default_value_t = Form::Text)]
    pub(crate) format: Form,
}

/// The form of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    /// Plain text.
    Text,
    /// One JSON object.
    Json,
}

/// Parses a share.
fn share(text: &str) -> Result<f64, String> {
    let share: Option<f64> = text.parse().ok();
    share.filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| "write a number from 0 to 1".to_owned())
}

impl Data {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        match self.command {
            Command::Check(command) => command.run(),
        }
    }
}

impl Check {
    fn run(&self) -> Result<i32, CommandError> {
        let report = self.report()?;
        let text = match self.format {
            Form::Text => report.to_string(),
            Form::Json => serde_json::to_string_pretty(&report).map_err(CommandError::failed)?,
        };
        atomic_fs::say(&text).map_err(CommandError::failed)?;
        Ok(if report.passed { exit::FINISHED } else { exit::FAILED })
    }

    /// Returns the data as a configuration lists it, so that settings can name it. They do not depend on the digest.
    fn named(&self) -> Vec<DataItem> {
        let item =
            |name: &str| DataItem { name: name.to_owned(), sha256: Some(DataDigest(Sha256::of(""))), synthetic: None };
        // Validation records can be checked, too, but a configuration must have other data, and evaluations with them.
        let mut data: Vec<_> = self.data.iter().map(|(name, _)| item(name)).filter(DataItem::is_trained_on).collect();
        if data.is_empty() {
            data.push(item("data"));
        }
        data
    }

    /// Compares the data with the problems.
    ///
    /// # Errors
    /// When a setting is invalid, or a file cannot be read or has an invalid record.
    pub(crate) fn report(&self) -> Result<Report, TrainError> {
        const TEMPLATE: &str = "cot-starter";
        let read = |set: &[String], data: Vec<DataItem>| -> Result<TrainingSettings, TrainError> {
            Ok(composing::compose(Some(&Template::included(TEMPLATE)), set, 1, data)?.spec().settings.clone())
        };
        let settings = read(&self.set, self.named())?;
        let preferences = settings.training.preferences().is_some();
        let plain = read(&[], default_data(TEMPLATE).collect())?.data;
        let against = Input::of_file("problems", &self.against, &|| false)?;
        let mut problems = Problems::new(self.ngram);
        each_record(&against, &plain, false, |line, example| {
            problems.add(line, &example);
            Ok(ControlFlow::Continue(()))
        })?;
        let mut sources = Vec::new();
        for (name, path) in &self.data {
            let input = Input::of_file(name, path, &|| false)?;
            let mut source = Source::new(&input);
            let (mut waiting, mut bytes) = (Vec::new(), 0);
            each_record(&input, &settings.data, preferences, |line, example| {
                bytes += example.size();
                waiting.push((line, example));
                if waiting.len() >= CHUNK || bytes >= CHUNK_BYTES {
                    compare(&mut waiting, &mut problems, &mut source);
                    bytes = 0;
                }
                Ok(ControlFlow::Continue(()))
            })?;
            compare(&mut waiting, &mut problems, &mut source);
            sources.push(source);
        }
        Ok(Report::new(&against, &problems, sources, self.max_share))
    }
}

/// Compares records with the problems, notes the problems that they overlap, and counts the records.
fn compare(records: &mut Vec<(usize, Example)>, problems: &mut Problems, source: &mut Source) {
    let found: Vec<Found> = records.par_iter().map(|(_, example)| problems.find(example)).collect();
    for ((line, _), found) in records.drain(..).zip(found) {
        source.count(&found);
        problems.note(&source.name, line, found);
    }
}
