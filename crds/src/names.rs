//! Names of labels, annotations and child objects. Pure.

/// Labels of the project, used beside `app.kubernetes.io/*`.
pub mod label {
    /// Name of the TrainingRun that owns a child.
    pub const TRAINING_RUN: &str = "codex-ml.dev/training-run";
    /// Name of the Evaluation that owns a child.
    pub const EVALUATION: &str = "codex-ml.dev/evaluation";
    /// Name of the ReasoningPod that owns a child.
    pub const REASONING_POD: &str = "codex-ml.dev/reasoning-pod";
    /// The part of a rollout that a server belongs to: `canary`. Other servers do not have it.
    pub const TRACK: &str = "codex-ml.dev/track";
    /// Whether a pod of the controller is that of the leader: `true`. Other pods do not have it.
    pub const LEADER: &str = "codex-ml.dev/leader";
    /// The ring, in its label form.
    pub const RING: &str = "codex-ml.dev/ring";
    /// Name of the LocalQueue of Kueue that admits a Job. Kueue's own label.
    pub const QUEUE_NAME: &str = "kueue.x-k8s.io/queue-name";
}

/// Annotations of the project. Digests are annotations because they are too long for labels.
pub mod annotation {
    /// Prefix of all annotations of the project.
    pub const PREFIX: &str = "codex-ml.dev/";
    /// SHA-256 of the resolved configuration.
    pub const CONFIG_DIGEST: &str = "codex-ml.dev/config-digest";
    /// Digest of the model.
    pub const MODEL_DIGEST: &str = "codex-ml.dev/model-digest";
    /// SHA-256 of the promotion statement.
    pub const PROMOTION_DIGEST: &str = "codex-ml.dev/promotion-digest";
    /// SHA-256 of the settings of the controller that created a pod template.
    pub const SETTINGS_DIGEST: &str = "codex-ml.dev/settings-digest";
    /// Digest of what the pod template was made for: the model, its promotion, the key and `spec.serving`.
    pub const ATTEMPT: &str = "codex-ml.dev/attempt";
    /// The span, as in a `traceparent` header, that the spans of a TrainingRun become part of. Set by whoever applies the run.
    pub const TRACE_PARENT: &str = "codex-ml.dev/traceparent";
    /// Time of the cycle for which an object was created, in seconds since 1970.
    pub const CYCLE: &str = "codex-ml.dev/cycle";
    /// Names of the Evaluations of the cycle, separated by commas. On the TrainingRun of a cycle.
    pub const CYCLE_EVALUATIONS: &str = "codex-ml.dev/cycle-evaluations";
    /// SHA-256 over the name of an object of a cycle and the parts of its spec that define the result.
    pub const SPEC_DIGEST: &str = "codex-ml.dev/spec-digest";
    /// SHA-256 of the settings in `spec.pod` that a Job was created with.
    pub const POD_DIGEST: &str = "codex-ml.dev/pod-digest";
    /// Name of the queue that a Job was created for.
    pub const QUEUE: &str = "codex-ml.dev/queue";
    /// Namespaces that an installation of the controller watches, separated by commas; empty for all. On its Lease.
    pub const WATCHES: &str = "codex-ml.dev/watches";
    /// Whether an installation of the controller reconciles objects: true or false. On its Lease.
    pub const RECONCILES: &str = "codex-ml.dev/reconciles";
}

/// Names of child objects. Custom resources have names of at most 52 characters, so these names are valid label values.
pub mod child {
    /// Name of the NetworkPolicy that the pods of all TrainingRuns and Evaluations of a namespace share.
    pub const WORKERS: &str = "codex-workers";

    /// Returns the name of the Job and of the ConfigMap of a TrainingRun.
    pub fn trainer(run: &str) -> String {
        format!("codex-t-{run}")
    }

    /// Returns the name of the Job and of the ConfigMap of an Evaluation.
    pub fn evaluator(evaluation: &str) -> String {
        format!("codex-e-{evaluation}")
    }

    /// Returns the name of the Job and of the ConfigMap of one run of a repeated Evaluation. No other Evaluation has this name, because
    /// names of Evaluations begin with a letter.
    pub fn evaluator_run(evaluation: &str, number: i64) -> String {
        format!("{}{evaluation}", evaluator_run_prefix(number))
    }

    /// Returns how the names of the Job and the pods of this run of a repeated Evaluation begin. The API server may shorten the end of
    /// the name of a pod.
    pub fn evaluator_run_prefix(number: i64) -> String {
        format!("codex-e-{number}-")
    }

    /// Returns the name of the Deployment, HorizontalPodAutoscaler, PodDisruptionBudget and NetworkPolicy of a ReasoningPod. Its Service has the name
    /// of the ReasoningPod.
    pub fn server(pod: &str) -> String {
        format!("codex-s-{pod}")
    }

    /// Returns the name of the Deployment of the canary of a ReasoningPod.
    pub fn canary(pod: &str) -> String {
        format!("codex-c-{pod}")
    }

    /// Returns the name of the Deployment and NetworkPolicy of the activator of a ReasoningPod, and of the Service through which it
    /// reaches the servers.
    pub fn activator(pod: &str) -> String {
        format!("codex-a-{pod}")
    }

    /// Returns the name of the TrainingRun of a cycle of a ReasoningPod, which was due at this minute since 1970, and of its shadow.
    pub fn cycle(pod: &str, minute: i64) -> String {
        format!("{pod}-{minute}")
    }

    /// Returns the name of an Evaluation of a cycle.
    pub fn cycle_evaluation(pod: &str, minute: i64, evaluation: &str) -> String {
        format!("{pod}-{minute}-{evaluation}")
    }

    /// Returns the name of the immutable ConfigMap with the trusted root of a ReasoningPod's servers. `digest` is the first twelve
    /// digits of its SHA-256.
    pub fn root(pod: &str, digest: &str) -> String {
        format!("codex-r-{pod}-{digest}")
    }
}

/// Whether a Kubernetes object can have this name: a DNS subdomain of RFC 1123.
///
/// The CRDs refuse other names in a spec. Check a name from a spec again before using it in a request, because the object
/// may be older than that rule.
pub fn is_subdomain(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let label = |label: &str| {
        let ends = [label.bytes().next(), label.bytes().next_back()];
        ends.iter().all(|end| end.is_some_and(letter)) && label.bytes().all(|byte| letter(byte) || byte == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// Names of the immutable ConfigMaps that hold signed bundles.
pub mod bundle {
    /// Returns the name of the ConfigMap with the OpenSSF Model Signing bundle of a run's model.
    pub fn oms(run_uid: &str) -> String {
        format!("codex-oms-{run_uid}")
    }

    /// Returns the name of the ConfigMap with a promotion bundle. `key` is a digest of the run, the model, the ring and the
    /// evidence.
    pub fn promotion(key: &str) -> String {
        format!("codex-promo-{key}")
    }

    /// Returns the name of the ConfigMap with the bundle of a reproduction. `payload` is the first twelve digits of the digest of the
    /// statement.
    pub fn reproduction(payload: &str) -> String {
        format!("codex-repro-{payload}")
    }

    /// Returns whether a ConfigMap of this name holds a bundle that servers mount.
    pub fn is_mounted(name: &str) -> bool {
        name.starts_with("codex-oms-") || name.starts_with("codex-promo-")
    }

    /// Returns the name of the ConfigMap in which the statement of the ConfigMap `first` is signed again. `key` is the first twelve
    /// digits of the fingerprint of the key that signs.
    pub fn again(first: &str, key: &str) -> String {
        format!("{first}-{key}")
    }
}

#[cfg(test)]
mod tests {
    use super::is_subdomain;

    #[test]
    fn subdomains_are_recognized() {
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
