//! The object that a command is about: `NAME` or `KIND/NAME`. Pure.

use std::str::FromStr;

use codex_crds::{child, label};
use serde::Serialize;

/// A kind of `codex-ml.dev`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) enum Kind {
    TrainingRun,
    Evaluation,
    ReasoningPod,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::TrainingRun, Self::Evaluation, Self::ReasoningPod];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::TrainingRun => "TrainingRun",
            Self::Evaluation => "Evaluation",
            Self::ReasoningPod => "ReasoningPod",
        }
    }

    /// Returns the kind that `kubectl` knows by this name.
    pub(crate) fn of(name: &str) -> Option<Self> {
        let name = name.to_lowercase();
        let plain = name.strip_suffix(".codex-ml.dev").unwrap_or(&name);
        Self::ALL.into_iter().find(|known| known.names().contains(&plain))
    }

    /// Returns the names that `kubectl` takes for the kind.
    fn names(self) -> [&'static str; 3] {
        match self {
            Self::TrainingRun => ["trainingrun", "trainingruns", "trun"],
            Self::Evaluation => ["evaluation", "evaluations", "evl"],
            Self::ReasoningPod => ["reasoningpod", "reasoningpods", "rpod"],
        }
    }

    /// Returns the label selector of the pods that work for the object `name`.
    pub(crate) fn pods(self, name: &str) -> String {
        let (label, component) = match self {
            Self::TrainingRun => (label::TRAINING_RUN, "trainer"),
            Self::Evaluation => (label::EVALUATION, "evaluator"),
            Self::ReasoningPod => (label::REASONING_POD, "server"),
        };
        format!("{label}={name},app.kubernetes.io/component={component}")
    }

    /// Returns the name of the container that does the work.
    pub(crate) fn container(self) -> &'static str {
        match self {
            Self::TrainingRun => "trainer",
            Self::Evaluation => "evaluator",
            Self::ReasoningPod => "server",
        }
    }

    /// Returns the name of the Job or the Deployment of the object `name`; names of their pods begin with it.
    pub(crate) fn child(self, name: &str) -> String {
        match self {
            Self::TrainingRun => child::trainer(name),
            Self::Evaluation => child::evaluator(name),
            Self::ReasoningPod => child::server(name),
        }
    }
}

/// What a user wrote: a name, with or without a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) kind: Option<Kind>,
    pub(crate) name: String,
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, name) = match text.split_once('/') {
            None => (None, text),
            Some((kind, name)) => {
                let found = Kind::of(kind).ok_or_else(|| {
                    let kind = kind.to_lowercase();
                    format!("{kind:?} is no kind of codex-ml.dev: write trainingrun/NAME, evaluation/NAME or reasoningpod/NAME")
                })?;
                (Some(found), name)
            }
        };
        if !codex_crds::is_subdomain(name) {
            return Err(format!("{name:?} cannot be the name of an object: write NAME or KIND/NAME"));
        }
        Ok(Self { kind, name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Subject};

    #[test]
    fn a_subject_is_a_name_or_a_kind_and_a_name() {
        let subject = |kind, name: &str| Ok(Subject { kind, name: name.to_owned() });
        assert_eq!("cot".parse::<Subject>(), subject(None, "cot"));
        assert_eq!("trun/cot".parse::<Subject>(), subject(Some(Kind::TrainingRun), "cot"));
        assert_eq!("ReasoningPods.codex-ml.dev/a.b".parse::<Subject>(), subject(Some(Kind::ReasoningPod), "a.b"));
        assert!("pod/cot".parse::<Subject>().unwrap_err().contains("trainingrun/NAME"));
        for bad in ["", "Cot", "trun/", "a/b/c", "a,b=c"] {
            assert!(bad.parse::<Subject>().is_err(), "{bad}");
        }
    }
}
