//! The list of kinds of `codex-ml.dev`. Caches, queues, watches, sweeps, health and metrics are generated from it.

/// Calls the macro `$callback` with the list of kinds.
///
/// A `reconciled` kind implements [`Observe`](crate::observe::Observe): it has a plan, a queue and a controller. Its entry
/// is `field: type, label`, where `field` names its cache and queue, and `label` is the label by which a pod names the
/// object that it works for. A pod that carries several of these labels works for the kind that stands last.
///
/// A `referenced` kind only implements [`Kind`](crate::observe::Kind): the plans of other kinds depend on it. Its entry is
/// `field: type`.
macro_rules! kinds {
    ($callback:ident) => {
        $callback! {
            reconciled {
                training_runs: codex_crds::TrainingRun, codex_crds::label::TRAINING_RUN;
                evaluations: codex_crds::Evaluation, codex_crds::label::EVALUATION;
                reasoning_pods: codex_crds::ReasoningPod, codex_crds::label::REASONING_POD;
            }
            referenced {
                cluster_promotion_policies: codex_crds::ClusterPromotionPolicy;
                promotion_policies: codex_crds::PromotionPolicy;
                sign_offs: codex_crds::SignOff;
            }
        }
    };
}

pub(crate) use kinds;
