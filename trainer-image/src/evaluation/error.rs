//! Why an evaluation gives up, and whether another attempt could succeed. Pure.

use std::{io, path::PathBuf};

use codex_provenance::{DataDigest, ModelDigest, manifest::ManifestError};
use codex_reports::{Failure, exit};
use codex_verdict::Metric;

use super::{UnusableModel, baseline::BaselineError, inputs::MAX_CLUSTER};
use crate::{
    atomic_fs::{FileError, Misnamed},
    error::{CommandError, chain},
    model::GenerateError,
    overlap::Overlap,
    plugins::PluginError,
    reporting::ReportingError,
    tasks::{RecordError, TaskError},
};

/// Why an evaluation gives up.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// A configuration that cannot be used.
    #[error(transparent)]
    Config(#[from] codex_configs::ConfigError),
    /// Arguments that do not go together.
    #[error("{0}")]
    Arguments(String),
    /// A model other than the one that is to be judged.
    #[error("the model in {} hashes to {found}, but {expected} is to be evaluated: it was changed after it was trained", path.display())]
    ModelMismatch {
        /// The model directory.
        path: PathBuf,
        /// What it hashes to.
        found: ModelDigest,
        /// What is to be evaluated.
        expected: ModelDigest,
    },
    /// An empty directory in place of a trained model.
    #[error(
        "the model {expected} is to be evaluated, but {} contains no files: the volume was replaced or emptied; restore its \
         files from a backup, or train again with another TrainingRun",
        path.display()
    )]
    Gone {
        /// The model directory.
        path: PathBuf,
        /// What is to be evaluated.
        expected: ModelDigest,
    },
    /// A model that cannot be used.
    #[error(transparent)]
    Model(#[from] UnusableModel),
    /// A file that hashes to something else than the evaluation asks for.
    #[error("data {name} hashes to {found}, but the evaluation asks for {expected}: give it the file that it names")]
    DataMismatch {
        /// The data's name.
        name: String,
        /// What the file hashes to.
        found: DataDigest,
        /// What the evaluation asks for.
        expected: DataDigest,
    },
    /// Problems that cannot be read.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// A task that cannot be drawn from.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// A model without the chat template that the configuration requires.
    #[error("evaluation.prompt is chat, but the model in {} has no chat template: use auto or plain", path.display())]
    NoTemplate {
        /// The model directory.
        path: PathBuf,
    },
    /// A problem without an answer.
    #[error("{file}:{line}: the response has no answer: {wanted}")]
    Answerless {
        /// The file.
        file: String,
        /// The line, counted from 1.
        line: usize,
        /// What the configuration takes for an answer.
        wanted: String,
    },
    /// A problem that stands there twice.
    #[error("{file}:{line}: the prompt of line {first} again: every problem counts once, so remove one of the two")]
    Repeated {
        /// The file.
        file: String,
        /// The line, counted from 1.
        line: usize,
        /// The line that asked it before.
        first: usize,
    },
    /// A file in which only some problems have a cluster.
    #[error(
        "{file}:{line}: the problem {}, but that of line {other} {}: give a cluster to every problem, or to none",
        if *has_cluster { "has a cluster" } else { "has no cluster" },
        if *has_cluster { "has none" } else { "has one" }
    )]
    Clusters {
        /// The file.
        file: String,
        /// The line, counted from 1.
        line: usize,
        /// A line before it.
        other: usize,
        /// Whether the problem has a cluster.
        has_cluster: bool,
    },
    /// A name of a cluster that is empty or too long.
    #[error("{file}:{line}: the cluster {cluster:?} is invalid: use 1 to {MAX_CLUSTER} characters")]
    Cluster {
        /// The file.
        file: String,
        /// The line, counted from 1.
        line: usize,
        /// The name.
        cluster: String,
    },
    /// The model cannot be asked a problem; scoring it as wrong would judge the problem and not the model.
    #[error("{file}:{line}: the model cannot answer this problem")]
    Prompt {
        /// The file.
        file: String,
        /// The line, counted from 1.
        line: usize,
        /// Why the prompt is refused.
        #[source]
        source: GenerateError,
    },
    /// The log-probability of a reference response cannot be computed; leaving it out would change the perplexity and the
    /// token accuracy.
    #[error("{file}:{line}: the {metric} of this response cannot be measured")]
    Expected {
        /// The metric.
        metric: Metric,
        /// The file.
        file: String,
        /// The line, counted from 1.
        line: usize,
        /// Why.
        #[source]
        source: GenerateError,
    },
    /// The decoder failed at a problem.
    #[error("{file}:{line}: generating the response failed")]
    Generation {
        /// The file.
        file: String,
        /// The line, counted from 1.
        line: usize,
        /// The failure.
        #[source]
        source: GenerateError,
    },
    /// The decoder failed at golden tokens.
    #[error("generating golden tokens failed")]
    Golden(#[source] GenerateError),
    /// A baseline that cannot be used.
    #[error(transparent)]
    Baseline(#[from] BaselineError),
    /// Outcomes of another evaluation that this one cannot be compared with.
    #[error("{file}: {why}")]
    Reference {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// A plugin that cannot be used.
    #[error("{file}: {source}")]
    Plugin {
        /// The file.
        file: String,
        /// What is wrong with it.
        source: PluginError,
    },
    /// The plugin failed on a response; leaving the problem out would change the metric.
    #[error("{file}:{line}: the response to this problem cannot be scored: {source}")]
    Unscored {
        /// The file of problems.
        file: String,
        /// The line, counted from 1.
        line: usize,
        /// Why the plugin failed.
        source: PluginError,
    },
    /// A file or directory that was named and is none.
    #[error(transparent)]
    Misnamed(#[from] Misnamed),
    /// An output would change an input.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// The file system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// The system refused a signal handler.
    #[error("the evaluator cannot start")]
    System(#[source] io::Error),
    /// Reports that cannot be sent.
    #[error(transparent)]
    Reporting(#[from] ReportingError),
}

impl EvaluateError {
    /// The reason for status, and whether another attempt is in vain.
    fn class(&self) -> (&'static str, bool) {
        match self {
            Self::Config(_) | Self::Arguments(_) | Self::Misnamed(_) | Self::Overlap(_) | Self::NoTemplate { .. } => {
                ("InvalidConfiguration", true)
            }
            Self::ModelMismatch { .. } | Self::Gone { .. } => ("ModelMismatch", true),
            // A volume may come back; a directory that is no model stays none.
            Self::Model(UnusableModel::Manifest { source: ManifestError::Unreadable { source, .. }, .. })
                if !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                ("StorageFailed", false)
            }
            Self::Model(_) => ("InvalidModel", true),
            Self::DataMismatch { .. } => ("DataMismatch", true),
            Self::Records(_)
            | Self::Task(_)
            | Self::Answerless { .. }
            | Self::Repeated { .. }
            | Self::Clusters { .. }
            | Self::Cluster { .. }
            | Self::Prompt { .. }
            | Self::Expected { .. }
            | Self::Reference { .. }
            | Self::Plugin { .. }
            | Self::Unscored { .. }
            | Self::Baseline(_) => ("InvalidData", true),
            Self::File(_) => ("StorageFailed", false),
            Self::Generation { .. } | Self::Golden(_) | Self::System(_) | Self::Reporting(_) => {
                ("EvaluationFailed", false)
            }
        }
    }

    /// As a report tells it.
    pub fn failure(&self) -> Failure {
        let (reason, is_final) = self.class();
        Failure { is_final, reason: reason.to_owned(), message: chain(self) }
    }

    /// The process's exit code. It is never [`exit::FAILED`], which says that a gate failed.
    pub fn exit(&self) -> i32 {
        if self.class().1 { exit::BAD_INPUT } else { exit::NOT_EVALUATED }
    }
}

impl From<EvaluateError> for CommandError {
    fn from(error: EvaluateError) -> Self {
        Self { exit: error.exit(), source: Box::new(error) }
    }
}
