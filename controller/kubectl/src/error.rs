//! Why a command failed.

use std::{io, path::PathBuf, process::ExitCode};

use crate::subject::Kind;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// The kubeconfig cannot be used.
    #[error("the kubeconfig cannot be used: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// The file that `--kubeconfig` names cannot be used.
    #[error("--kubeconfig {}: {source}", path.display())]
    KubeconfigFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// There is no configuration of a cluster.
    #[error("no cluster is configured: {0}")]
    NoCluster(#[from] kube::config::InferConfigError),
    /// A request failed.
    #[error("{what}: {}", said(source))]
    Request {
        /// What was requested.
        what: String,
        /// The client's error.
        #[source]
        source: Box<kube::Error>,
    },
    /// No object has the name.
    #[error("no TrainingRun, Evaluation or ReasoningPod {name:?} exists in the namespace {namespace}")]
    NotFound {
        /// The name.
        name: String,
        /// The namespace.
        namespace: String,
    },
    /// Objects of several kinds have the name.
    #[error("{name:?} is the name of {}: write {}", several(kinds), written(kinds, name))]
    Ambiguous {
        /// The name.
        name: String,
        /// The kinds.
        kinds: Vec<Kind>,
    },
    /// The object is no TrainingRun.
    #[error("{0} is no TrainingRun: only the model of a TrainingRun can be reproduced")]
    NoRun(String),
    /// The object has no pod whose log could be shown.
    #[error("{0} has no pod yet: kubectl codex why says what it waits for")]
    NoPod(String),
    /// A flag has a wrong value, or an object cannot be used as it is.
    #[error("{0}")]
    BadInput(String),
    /// A file of `--out` cannot be written.
    #[error("--out: {} cannot be written: {source}", path.display())]
    Out {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The output cannot be written.
    #[error("the output cannot be written: {0}")]
    Output(#[from] io::Error),
    /// The output cannot be serialized.
    #[error("the output cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl CommandError {
    /// Returns the exit code: 2 if another attempt with the same flags cannot succeed, else 1.
    pub(crate) fn exit(&self) -> ExitCode {
        if matches!(self, Self::BadInput(_)) { ExitCode::from(2) } else { ExitCode::FAILURE }
    }

    /// Returns the error of a request for `what`.
    pub(crate) fn request(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self::Request { what, source: Box::new(source) }
    }
}

/// Returns the message of the API server if the error is its answer.
fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status)
            if status.code == 404 && status.message.contains("could not find the requested resource") =>
        {
            "the CRDs of codex-ml.dev are not installed on this cluster".to_owned()
        }
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => other.to_string(),
    }
}

fn several(kinds: &[Kind]) -> String {
    kinds.iter().map(|kind| format!("a {}", kind.name())).collect::<Vec<_>>().join(" and of ")
}

fn written(kinds: &[Kind], name: &str) -> String {
    kinds.iter().map(|kind| format!("{}/{name}", kind.name().to_lowercase())).collect::<Vec<_>>().join(" or ")
}
