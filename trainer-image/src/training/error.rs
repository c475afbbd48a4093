//! Why training gives up, and whether another attempt could succeed. Pure.

use std::path::PathBuf;

use codex_provenance::{DataDigest, manifest::ManifestError};
use codex_reports::{Failure, exit};

use crate::{
    atomic_fs::{FileError, Misnamed},
    error::{CommandError, chain},
    exposition::ExpositionError,
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
    /// A parameter group that is none.
    #[error(transparent)]
    Groups(#[from] super::groups::GroupError),
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
    #[error("{path:?} is a checkpoint of another run ({differences}): {right}")]
    ForeignCheckpoint {
        /// The checkpoint.
        path: PathBuf,
        /// What differs, then and now.
        differences: String,
        /// What would be right.
        right: &'static str,
    },
    /// A checkpoint that another version wrote.
    #[error(
        "{path:?} is a checkpoint of format {found}, but this version reads {expected}: go on with the version that wrote it, \
         or use an empty output directory",
        expected = super::checkpoint::SCHEMA_VERSION
    )]
    CheckpointVersion {
        /// The checkpoint.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// A checkpoint whose tensors are not this model's.
    #[error("{path:?} {source}")]
    CheckpointState {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A checkpoint that changed while it was read.
    #[error("{path:?} is not what its digests say, in {tensors}, though it was a moment ago: look at the volume")]
    CheckpointDigest {
        /// The file.
        path: PathBuf,
        /// The tensors that differ.
        tensors: String,
    },
    /// A checkpoint without a part of the state.
    #[error("the checkpoint of step {step} lacks {what}: go on with the version that wrote it")]
    CheckpointParts {
        /// Its step.
        step: u64,
        /// What is missing.
        what: String,
    },
    /// Data in another order than the run has seen so far.
    #[error(
        "step {step} saw records of digest {found}, but here it would have seen {expected}: this version orders data in \
         another way, so go on with the version that began the run"
    )]
    DataOrder {
        /// The step.
        step: u64,
        /// What the ledger says.
        found: String,
        /// What is computed here.
        expected: String,
    },
    /// More memory than there is.
    #[error("training would take {estimate}, but {source_of_limit} allows {limit}: {right}")]
    Memory {
        /// What it would take, part by part.
        estimate: String,
        /// Who allows how much.
        source_of_limit: String,
        /// How much.
        limit: String,
        /// What would fit.
        right: String,
    },
    /// The output directory is not the one that the attempt began in.
    #[error("{path:?} is gone, so the volume beneath it was taken away or exchanged: nothing is written there")]
    Vanished {
        /// The attempt's own file.
        path: PathBuf,
    },
    /// The records of a run that cannot be read.
    #[error(transparent)]
    RunRecords(#[from] super::records::RecordsError),
    /// A resumed run that came to something else.
    #[error(
        "the resumed run differs from the uninterrupted one in {what}: it is not bit-exact here; both are kept in {kept:?}"
    )]
    NotReproduced {
        /// Steps, files and tensors.
        what: String,
        /// Where both runs lie.
        kept: PathBuf,
    },
    /// A part of a proof that did not do its work.
    #[error("{0}")]
    Proof(String),
    /// Asked to end before there was anything to save.
    #[error("interrupted")]
    Interrupted,
    /// A loss or a gradient that is no number.
    #[error(
        "{what} of step {step} is not finite{}: lower training.learning_rate or look at the step's records: {records}",
        tensor.as_ref().map(|tensor| format!(", nor is {tensor}")).unwrap_or_default()
    )]
    NotFinite {
        /// `the loss`, or the gradient of which tensor.
        what: String,
        /// The first tensor that is not finite either, as `parameters/NAME` or `gradients/NAME`.
        tensor: Option<String>,
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
    /// A file or directory that was named and is none.
    #[error(transparent)]
    Misnamed(#[from] Misnamed),
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
    /// A volume that checkpoints cannot be trusted to.
    #[error(transparent)]
    Smoke(#[from] super::smoke::SmokeError),
    /// Metrics that cannot be served.
    #[error(transparent)]
    Exposition(#[from] ExpositionError),
    /// Reports that cannot be sent.
    #[error(transparent)]
    Reporting(#[from] ReportingError),
}

impl TrainError {
    /// The reason for status, and whether another attempt is in vain.
    fn class(&self) -> (&'static str, bool) {
        match self {
            Self::Config(_) | Self::Shape(_) | Self::Arguments(_) | Self::Groups(_) | Self::Misnamed(_) => {
                ("InvalidConfiguration", true)
            }
            Self::DataMismatch { .. } => ("DataMismatch", true),
            Self::Records(_)
            | Self::Task(_)
            | Self::Text { .. }
            | Self::Answerless { .. }
            | Self::TooLong { .. }
            | Self::Batch { .. } => ("InvalidData", true),
            Self::ForeignCheckpoint { .. }
            | Self::CheckpointVersion { .. }
            | Self::CheckpointState { .. }
            | Self::CheckpointParts { .. }
            | Self::DataOrder { .. } => ("ForeignCheckpoint", true),
            Self::Memory { .. } => ("InsufficientMemory", true),
            // The same seed and data would come to the same step again.
            Self::NotFinite { .. } => ("NotFinite", true),
            Self::Superseded { .. } => ("Superseded", false),
            Self::File(_) | Self::Vanished { .. } | Self::CheckpointDigest { .. } => ("StorageFailed", false),
            // Never an end: the session turns it into its outcome.
            Self::Interrupted => ("Interrupted", false),
            Self::RunRecords(_) => ("InvalidRecords", true),
            Self::NotReproduced { .. } | Self::Proof(_) => ("NotReproduced", false),
            Self::Smoke(_)
            | Self::Manifest(_)
            | Self::Exposition(_)
            | Self::Model(_)
            | Self::Engine(_)
            | Self::System(_)
            | Self::Reporting(_) => ("TrainingFailed", false),
        }
    }

    /// Whether a volume is to blame, which may be mended while training goes on.
    pub(super) fn is_storage(&self) -> bool {
        self.class().0 == "StorageFailed"
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
