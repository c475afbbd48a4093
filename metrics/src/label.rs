//! The labels of metrics. None holds the name of an object; `key` holds the names of a bounded number of API keys, and `rule` the ids of
//! a bounded number of safety rules.

/// A label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// What its values are.
    pub meaning: &'static str,
}

macro_rules! labels {
    ($($const:ident = $name:literal, $meaning:literal;)*) => {
        $(
            #[doc = concat!("`", $name, "`: ", $meaning, ".")]
            pub const $const: Label = Label { name: $name, meaning: $meaning };
        )*
    };
}

labels! {
    ACTION = "action", "what a safety rule does: block, allow or redact";
    CATEGORY = "category", "the cause of a failure, such as conflict or timeout";
    CODE = "code", "the HTTP status of the answer, or error if there was none";
    CONDITION = "condition", "the type of a condition, such as GatesPassed";
    DIRECTION = "direction", "which text a safety rule checks: prompt or answer";
    ENDPOINT = "endpoint", "the path of the request, such as /infer";
    GPU = "gpu", "the index of the GPU among those of the pod, from 0";
    KEY = "key", "the name of an API key, at most 64 of them";
    KIND = "kind", "the kind of the object, such as TrainingRun";
    METRIC = "metric", "the metric of an evaluation, such as exact_match";
    MODEL = "model", "the first twelve digits of the model digest";
    PHASE = "phase", "the phase of the object, such as Running";
    PORT = "port", "the port of the program: reports or health";
    PROBLEMS = "problems", "the first twelve digits of the digest of a set of problems";
    PURPOSE = "purpose", "what a key is for: signing, or verifying what it signed before";
    REASON = "reason", "the reason of a condition, such as GateFailed";
    RESULT = "result", "how it ended, such as ok or error";
    RING = "ring", "the rollout ring; empty for kinds without one";
    RULE = "rule", "the id of a safety rule, such as pii.card";
    STATE = "state", "which steps are counted: completed or executed";
    STATEMENT = "statement", "what was signed: model, promotion or reproduction";
    STATUS = "status", "the status of a condition: True, False or Unknown";
    TRACKER = "tracker", "the tracker: csv, tensorboard, mlflow-files, mlflow-server or wandb";
    TYPE = "type", "which tokens are counted: prompt or completion";
    VERB = "verb", "the operation, such as apply or list";
    VERDICT = "verdict", "Passed, Failed or Inconclusive";
    VERSION = "version", "the version of the running build";
}

/// Labels that Prometheus adds to every series of a target. They are no part of the contract.
pub mod target {
    use super::Label;

    labels! {
        JOB = "job", "the scrape job: codex-controller, codex-trainer, codex-server or codex-activator";
        INSTANCE = "instance", "the address of the target";
        NAMESPACE = "namespace", "the namespace of the pod";
        POD = "pod", "the name of the pod";
        LE = "le", "the upper end of a bucket of a histogram";
    }

    /// All of them.
    pub const ALL: [Label; 5] = [JOB, INSTANCE, NAMESPACE, POD, LE];
}
