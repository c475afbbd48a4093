//! Errors of the set-up of reports. Pure.

use std::{io, path::PathBuf};

use super::endpoint::SendError;

/// Why a pod cannot report.
#[derive(Debug, thiserror::Error)]
pub enum ReportingError {
    /// Some variables are there and others are not.
    #[error(
        "{present} is set and {missing} is not: the controller sets all of {all}; unset them all to work without reports",
        all = all.join(", ")
    )]
    Incomplete {
        /// A variable that is set.
        present: &'static str,
        /// One that is not.
        missing: &'static str,
        /// All of them.
        all: &'static [&'static str],
    },
    /// A variable with a value that cannot be.
    #[error("{variable} is {value:?}: {right}")]
    Variable {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        right: String,
    },
    /// The endpoint's certificate authority is not there or holds no certificate.
    #[error("the certificates in {path:?} (CODEX_REPORT_CA) cannot be used")]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: SendError,
    },
    /// The system gives no thread or no signal handler.
    #[error("reporting cannot start")]
    System(#[source] io::Error),
}
