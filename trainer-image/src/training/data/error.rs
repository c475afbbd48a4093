//! Why data cannot be trained on. Pure.

use codex_provenance::{DataDigest, text::counted};

use super::FormatError;
use crate::{
    atomic_fs::{FileError, Misnamed},
    plugins::PluginError,
    safety::RulesError,
    tasks::{RecordError, TaskError},
    text::TokenizerError,
    training::failure_class::FailureClass,
};

/// Data that cannot be trained on.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// No file was passed for data that is not synthetic.
    #[error("data {0} has no file: pass --data {0}=FILE")]
    NoFile(String),
    /// A file was passed for synthetic data.
    #[error("data {0} is synthetic in the configuration: omit --data {0}=…")]
    Synthetic(String),
    /// A synthetic task has fewer held-out problems than the evaluation needs.
    #[error(
        "training.eval_records is {wanted}, {each} for each synthetic task, but {task} holds out about {found} problems: use at \
         most {most}"
    )]
    TooFewHeldOut {
        /// Configured number of records.
        wanted: usize,
        /// Share of each task.
        each: usize,
        /// Name of the task.
        task: String,
        /// Number of its held-out problems.
        found: usize,
        /// Largest value that works.
        most: usize,
    },
    /// The validation data is also training data.
    #[error(
        "data {name} and data validation have the same bytes, but validation data must not be trained on: use different files"
    )]
    TrainedOn {
        /// Name of the training data.
        name: String,
    },
    /// A named file is missing or is not a file.
    #[error(transparent)]
    Misnamed(#[from] Misnamed),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line is not a valid record.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// A file is not of its format.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A synthetic task cannot provide its records.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// A file is not the one that was hashed.
    #[error("data {name} changed while it was read: use a file that nothing writes to")]
    Changed {
        /// Name of the data.
        name: String,
    },
    /// The tokenizer cannot be encoded, or rejects its own tokens.
    #[error("the tokenizer of the model failed")]
    Tokenizer {
        /// Error of the tokenizer.
        #[source]
        source: TokenizerError,
    },
    /// A file has more records than can be numbered.
    #[error("data {name} has more than {} records: divide it into several files, each with a name", u32::MAX)]
    TooMany {
        /// Name of the data.
        name: String,
    },
    /// No record of a source is trained on.
    #[error(
        "data {name} has no record left to train on: of {}, {foreign} are in other languages than data.languages, {blocked} are \
         blocked by safety rules (data.safety, safety-rules), {filtered} are dropped by the plugin (plugin-filter), {duplicates} repeat others (data.deduplicate), and {held} are held out (data.validation)", counted(*seen, "record")
    )]
    NoneLeft {
        /// Name of the data.
        name: String,
        /// Number of its records.
        seen: u64,
        /// Number of those in other languages.
        foreign: u64,
        /// Number of those that safety rules block.
        blocked: u64,
        /// Number of those that the plugin dropped.
        filtered: u64,
        /// Number of those that repeat others.
        duplicates: u64,
        /// Number of those that are held out.
        held: u64,
    },
    /// The digest of a file differs from the configured one.
    #[error("data {name} has digest {found}, but the run requires {expected}: pass the file with that digest")]
    Mismatch {
        /// Name of the data.
        name: String,
        /// Digest of the file.
        found: DataDigest,
        /// Configured digest.
        expected: DataDigest,
    },
    /// The safety rules cannot be used.
    #[error("data safety-rules")]
    Safety(#[source] RulesError),
    /// A safety rule replaced the mark that ends a response.
    #[error(
        "data {name}, record {record}: a safety rule redacts the $ that ends the response: write a rule that does not match it, or that \
         blocks the record"
    )]
    RedactedEnd {
        /// Name of the data.
        name: String,
        /// Number of the record, counted from 1.
        record: u64,
    },
    /// A plugin cannot be used.
    #[error("data {name}: {file}: {source}")]
    Plugin {
        /// Name of the data.
        name: String,
        /// The file.
        file: String,
        /// What is wrong with it.
        source: PluginError,
    },
    /// The plugin that selects records failed.
    #[error("data {name}, record {record}: {source}")]
    Filter {
        /// Name of the data.
        name: String,
        /// Number of the record, counted from 1.
        record: u64,
        /// Why it failed.
        source: PluginError,
    },
    /// The plugin that rewards answers failed.
    #[error("data {record}: a sampled answer cannot be rewarded: {source}")]
    Reward {
        /// The record as `name[number]`, counted from 1.
        record: String,
        /// Why it failed.
        source: PluginError,
    },
    /// A record cannot be tokenized.
    #[error("data {name}, record {record}")]
    Text {
        /// Name of the data.
        name: String,
        /// Number of the record, counted from 1.
        record: usize,
        /// Error of the tokenizer.
        #[source]
        source: TokenizerError,
    },
    /// A record has no answer.
    #[error("data {name}, record {record}: the response has no answer: end it in #answer$")]
    Answerless {
        /// Name of the data.
        name: String,
        /// Number of the record, counted from 1.
        record: usize,
    },
    /// A record is longer than the context.
    #[error(
        "data {name}, record {record} has {tokens} tokens, but {} is {context}: shorten the record{}",
        if *given { "the context of the base" } else { "model.max_position_embeddings" },
        if *given { String::new() } else { format!(" or raise the setting to at least {tokens}") },
    )]
    TooLong {
        /// Name of the data.
        name: String,
        /// Number of the record, counted from 1.
        record: usize,
        /// Tokens of the record.
        tokens: usize,
        /// Length of the context.
        context: usize,
        /// Whether it is that of a base.
        given: bool,
    },
    /// A record has nothing to learn.
    #[error("data {name}, record {record} has no token that counts for the loss: write a response")]
    NoTarget {
        /// Name of the data.
        name: String,
        /// Number of the record, counted from 1.
        record: usize,
    },
    /// A record has nothing that rewards could be computed from.
    #[error("data {record}: {why}")]
    Unrewarded {
        /// The record as `name[number]`, counted from 1.
        record: String,
        /// What is wrong.
        why: String,
    },
    /// The data has fewer records than a batch.
    #[error(
        "training.batch_size is {batch}, but the data has {}: use at most {records}", counted(*records, "record")
    )]
    Batch {
        /// Configured batch size.
        batch: usize,
        /// Number of records of all data.
        records: usize,
    },
    /// A phase of the curriculum has no records.
    #[error(
        "phase {phase} of the curriculum has no records: {}; change its dataset, or the data",
        if labels.is_empty() { "its sources have none".to_owned() } else { format!("no record has the {labels}") }
    )]
    EmptyPhase {
        /// Id of the phase.
        phase: String,
        /// What it selects records by.
        labels: String,
    },
    /// A phase of the curriculum has fewer records than a batch.
    #[error(
        "phase {phase} of the curriculum has batches of {batch}, but {}: write a batch_size of at most {records}, or widen its \
         dataset", counted(*records, "record")
    )]
    PhaseBatch {
        /// Id of the phase.
        phase: String,
        /// Its batch size.
        batch: usize,
        /// Number of its records.
        records: u64,
    },
    /// No validation record is of a phase that is measured on them.
    #[error(
        "phase {phase} of the curriculum is measured by {metrics}, but no validation record is of its dataset: raise \
         training.eval_records, add such records to the data named validation, or remove the metrics"
    )]
    UnmeasuredPhase {
        /// Id of the phase.
        phase: String,
        /// Its metrics.
        metrics: String,
    },
    /// The attempt was asked to end.
    #[error("interrupted")]
    Interrupted,
}

impl DataError {
    pub(crate) fn class(&self) -> FailureClass {
        match self {
            Self::NoFile(_) | Self::Synthetic(_) | Self::TooFewHeldOut { .. } | Self::Misnamed(_) => {
                FailureClass::INVALID_CONFIGURATION
            }
            Self::File(_) => FailureClass::STORAGE_FAILED,
            Self::Mismatch { .. } | Self::Changed { .. } => FailureClass::DATA_MISMATCH,
            Self::TrainedOn { .. }
            | Self::Records(_)
            | Self::Format(_)
            | Self::Tokenizer { .. }
            | Self::TooMany { .. }
            | Self::NoneLeft { .. }
            | Self::Task(_)
            | Self::Text { .. }
            | Self::Answerless { .. }
            | Self::TooLong { .. }
            | Self::NoTarget { .. }
            | Self::Unrewarded { .. }
            | Self::Safety(_)
            | Self::RedactedEnd { .. }
            | Self::Plugin { .. }
            | Self::Filter { .. }
            | Self::Reward { .. }
            | Self::EmptyPhase { .. }
            | Self::PhaseBatch { .. }
            | Self::UnmeasuredPhase { .. }
            | Self::Batch { .. } => FailureClass::INVALID_DATA,
            Self::Interrupted => FailureClass::INTERRUPTED,
        }
    }
}
