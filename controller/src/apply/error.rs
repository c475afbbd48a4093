//! Why a child could not be applied. Pure.

use codex_crds::Reason;

use crate::{
    error::{client_category, refused, said},
    seal::SealError,
    unmended::UnmendedChild,
};

/// Why a child could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A request to the API server failed.
    #[error("the {kind} {name} cannot be {verb}: {}", said(source))]
    Client {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// The request, as a participle.
        verb: &'static str,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// Another owner's object has the name of the child.
    #[error(
        "the {kind} {name} exists and was not created by this controller for this object: delete it, or use another name"
    )]
    Taken {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
    /// A former child of that name is still being deleted.
    #[error("the {kind} {name} is being deleted; it is created again when it is gone")]
    Ending {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The child that was to be changed no longer exists, which the cache did not show.
    #[error("the {kind} {name} was deleted or replaced while it was to be changed; the object is planned again")]
    Gone {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The object has changed since it was observed, which the cache did not show.
    #[error("the {kind} {name} has changed since it was observed, so nothing is begun for it yet; it is planned again")]
    Outdated {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The child differs from the plan even after it was applied and corrected.
    #[error("{0}; delete it to have it recreated")]
    Unmended(Box<UnmendedChild>),
    /// The child cannot be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The child cannot be serialized.
    #[error("the {kind} {name} cannot be written as JSON: {source}")]
    Json {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl ApplyError {
    /// Returns the metric label of the error.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Client { source, .. } => client_category(source),
            Self::Taken { .. } => "name_taken",
            Self::Ending { .. } => "ending",
            Self::Gone { .. } => "gone",
            Self::Outdated { .. } => "outdated",
            Self::Unmended(_) => "foreign_fields",
            Self::Seal(source) => source.category(),
            Self::Json { .. } => "encoding",
        }
    }

    /// Returns the reason of an error that persists until a user changes something.
    pub fn needs_attention(&self) -> Option<Reason> {
        match self {
            Self::Taken { .. } | Self::Unmended(_) => Some(Reason::NameTaken),
            Self::Client { source, .. } => refused(source).then_some(Reason::Refused),
            Self::Ending { .. } | Self::Gone { .. } | Self::Outdated { .. } | Self::Seal(_) | Self::Json { .. } => None,
        }
    }
}
