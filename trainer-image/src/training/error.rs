//! Why training gives up, and whether another attempt could succeed. Pure.

use std::path::PathBuf;

use codex_provenance::{ConfigDigest, DataDigest, manifest::ManifestError};
use codex_reports::{Failure, exit};

use crate::{
    cli::{CommandError, chain},
    durable::FileError,
    model::ModelError,
    reporting::ReportingError,
    tasks::{RecordError, TaskError},
    tokenizer::TokenizerError,
};

/// Why training gives up.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A configuration that cannot be used.
    #[error(transparent)]
    Config(#[from] codex_configs::ConfigError),
    /// A shape that cannot be computed.
    #[error(transparent)]
    Shape(#[from] codex_engine::ConfigError),
    /// Arguments that do not go together.
    #[error("{0}")]
    Arguments(String),
    /// Data that cannot be read as records.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// A task that cannot be drawn from.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// A file that hashes to something else than the run asks for.
    #[error("data {name} hashes to {found}, but the run asks for {expected}: give it the file that it names")]
    DataMismatch {
        /// The data's name.
        name: String,
        /// What the file hashes to.
        found: DataDigest,
        /// What the run asks for.
        expected: DataDigest,
    },
    /// A record that cannot be tokenised.
    #[error("data {name}, record {record}")]
    Text {
        /// The data's name.
        name: String,
        /// The record, counted from 1.
        record: usize,
        /// What the tokenizer says.
        #[source]
        source: TokenizerError,
    },
    /// A record without an answer.
    #[error("data {name}, record {record}: the response has no answer: end it in #answer$")]
    Answerless {
        /// The data's name.
        name: String,
        /// The record, counted from 1.
        record: usize,
    },
    /// A record that does not fit.
    #[error(
        "data {name}, record {record} has {tokens} tokens, but model.max_position_embeddings is {context}: shorten the record \
         or raise it to at least {tokens}"
    )]
    TooLong {
        /// The data's name.
        name: String,
        /// The record, counted from 1.
        record: usize,
        /// Its tokens.
        tokens: usize,
        /// What fits.
        context: usize,
    },
    /// A batch that the data cannot fill.
    #[error("training.batch_size is {batch}, but the data has {records} records: use at most {records}")]
    Batch {
        /// The size of a batch.
        batch: usize,
        /// Records of all data.
        records: usize,
    },
    /// The output directory belongs to another run.
    #[error(
        "{path:?} holds a checkpoint of configuration {found}, but this run's is {expected}: use an empty output directory"
    )]
    ForeignCheckpoint {
        /// The checkpoint.
        path: PathBuf,
        /// Its configuration.
        found: ConfigDigest,
        /// The run's.
        expected: ConfigDigest,
    },
    /// The output directory's data was other data.
    #[error("{path:?} was trained on other data than this run's: use an empty output directory")]
    ForeignData {
        /// The checkpoint.
        path: PathBuf,
    },
    /// A loss or a gradient that is no number.
    #[error(
        "{what} of step {step} is not finite: lower training.learning_rate or look at the step's records: {records}"
    )]
    NotFinite {
        /// `the loss`, or the gradient of which tensor.
        what: String,
        /// The step, counted from 1.
        step: u64,
        /// `name[index]` of each record of the step.
        records: String,
    },
    /// A newer attempt has taken the directory over.
    #[error("attempt {newer} has taken the output directory over, so attempt {own} stops writing to it")]
    Superseded {
        /// This attempt.
        own: u32,
        /// The newest attempt.
        newer: u32,
    },
    /// The file system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// Files that no manifest can list.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A model that cannot be written.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A batch or a state that the engine refuses.
    #[error("the engine cannot go on")]
    Engine(#[from] codex_engine::EngineError),
    /// The system refused a thread or a signal handler.
    #[error("the trainer cannot start")]
    System(#[source] std::io::Error),
    /// Reports that cannot be sent.
    #[error(transparent)]
    Reporting(#[from] ReportingError),
}

impl TrainError {
    /// The reason for status, and whether another attempt is in vain.
    fn class(&self) -> (&'static str, bool) {
        match self {
            Self::Config(_) | Self::Shape(_) | Self::Arguments(_) => ("InvalidConfiguration", true),
            Self::DataMismatch { .. } => ("DataMismatch", true),
            Self::Records(_)
            | Self::Task(_)
            | Self::Text { .. }
            | Self::Answerless { .. }
            | Self::TooLong { .. }
            | Self::Batch { .. } => ("InvalidData", true),
            Self::ForeignCheckpoint { .. } | Self::ForeignData { .. } => ("ForeignCheckpoint", true),
            // The same seed and data would come to the same step again.
            Self::NotFinite { .. } => ("NotFinite", true),
            Self::Superseded { .. } => ("Superseded", false),
            Self::File(_) => ("StorageFailed", false),
            Self::Manifest(_) | Self::Model(_) | Self::Engine(_) | Self::System(_) | Self::Reporting(_) => {
                ("TrainingFailed", false)
            }
        }
    }

    /// As a report tells it.
    pub fn failure(&self) -> Failure {
        let (reason, is_final) = self.class();
        Failure { is_final, reason: reason.to_owned(), message: chain(self) }
    }

    /// The process's exit code.
    pub fn exit(&self) -> i32 {
        if self.class().1 { exit::BAD_INPUT } else { exit::FAILED }
    }
}

impl From<TrainError> for CommandError {
    fn from(error: TrainError) -> Self {
        Self { exit: error.exit(), source: Box::new(error) }
    }
}
