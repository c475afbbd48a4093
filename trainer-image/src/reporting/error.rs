//! Errors in the set-up of reports. Pure.

use std::{io, path::PathBuf};

use super::endpoint::SendError;

/// The reasons for which a pod cannot report.
#[derive(Debug, thiserror::Error)]
pub enum ReportingError {
    /// Only some of the variables are set.
    #[error(
        "{present} is set but {missing} is not: set all of {all}, or none to work without reports",
        all = all.join(", ")
    )]
    Incomplete {
        /// A variable that is set.
        present: &'static str,
        /// A variable that is not set.
        missing: &'static str,
        /// All required variables.
        all: &'static [&'static str],
    },
    /// A variable has an invalid value.
    #[error("{variable} is {value:?}: {right}")]
    Variable {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// The allowed values.
        right: String,
    },
    /// The certificate authority of the endpoint is missing or has no certificate.
    #[error("CODEX_REPORT_CA {path:?} is unusable")]
    Authority {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: SendError,
    },
    /// The sending thread cannot start.
    #[error("reporting cannot start")]
    System(#[source] io::Error),
}
