//! Names of labels, annotations and children: one place, so that selectors and owners cannot disagree. Pure.

/// Labels of ours; the `app.kubernetes.io/*` ones stand beside them.
pub mod label {
    /// The TrainingRun that a child works for.
    pub const TRAINING_RUN: &str = "codex-ml.dev/training-run";
    /// The Evaluation that a child works for.
    pub const EVALUATION: &str = "codex-ml.dev/evaluation";
    /// The ReasoningPod that a child works for.
    pub const REASONING_POD: &str = "codex-ml.dev/reasoning-pod";
    /// The ring, in its label form.
    pub const RING: &str = "codex-ml.dev/ring";
}

/// Annotations of ours: digests are too long for labels.
pub mod annotation {
    /// What every annotation of ours begins with.
    pub const PREFIX: &str = "codex-ml.dev/";
    /// The digest of the resolved configuration.
    pub const CONFIG_DIGEST: &str = "codex-ml.dev/config-digest";
    /// The digest of the model.
    pub const MODEL_DIGEST: &str = "codex-ml.dev/model-digest";
    /// The digest of the promotion statement.
    pub const PROMOTION_DIGEST: &str = "codex-ml.dev/promotion-digest";
    /// The digest of what the controller that made a pod template was started with.
    pub const SETTINGS_DIGEST: &str = "codex-ml.dev/settings-digest";
}

/// Names of children. Objects have names of at most 52 characters, so every child's name is a valid label value.
pub mod child {
    /// The Job and the ConfigMap of a TrainingRun.
    pub fn trainer(run: &str) -> String {
        format!("{run}-train")
    }

    /// The Job and the ConfigMap of an Evaluation.
    pub fn evaluator(evaluation: &str) -> String {
        format!("{evaluation}-eval")
    }

    /// The Deployment, PodDisruptionBudget and NetworkPolicy of a ReasoningPod; its Service has the object's own name.
    pub fn server(pod: &str) -> String {
        format!("{pod}-serve")
    }
}

/// Whether an object of Kubernetes can have this name: a DNS subdomain of RFC 1123. The API server refuses others in a spec;
/// whoever asks for an object by a name in a spec asks this first, because a spec may be older than that rule.
pub fn is_subdomain(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let label = |label: &str| {
        let ends = [label.bytes().next(), label.bytes().next_back()];
        ends.iter().all(|end| end.is_some_and(letter)) && label.bytes().all(|byte| letter(byte) || byte == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// Names of the immutable ConfigMaps that hold bundles.
pub mod bundle {
    /// Holds the OMS signature of a run's model.
    pub fn oms(run_uid: &str) -> String {
        format!("codex-oms-{run_uid}")
    }

    /// Holds a promotion statement; `key` digests the run, and what of it was promoted, where, and on which evidence.
    pub fn promotion(key: &str) -> String {
        format!("codex-promo-{key}")
    }
}

#[cfg(test)]
mod tests {
    use super::is_subdomain;

    #[test]
    fn names_of_kubernetes_are_told_from_others() {
        for name in ["a", "0", "train-set", "a.b-c.0", &"x".repeat(253)] {
            assert!(is_subdomain(name), "{name}");
        }
        for name in [
            "",
            "train set",
            "train\n",
            "../secrets",
            "a..b",
            "-a",
            "a-",
            ".a",
            "a.",
            "A",
            "a_b",
            "\u{e4}",
            &"x".repeat(254),
        ] {
            assert!(!is_subdomain(name), "{name:?}");
        }
    }
}
