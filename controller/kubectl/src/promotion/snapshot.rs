//! The objects that decide about a promotion, as the cluster holds them at one time. I/O.

use codex_crds::{ClusterPromotionPolicy, Evaluation, PromotionPolicy, ReasoningPod, SignOff, TrainingRun, child};
use k8s_openapi::api::core::v1::{ConfigMap, LimitRange, Pod, ResourceQuota};
use kube::{Api, api::ListParams};

use crate::{
    cluster::{Cluster, served},
    error::CommandError,
    subject::Kind,
};

/// A ReasoningPod and the objects that decide whether it may roll out.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) namespace: String,
    pub(crate) pod: ReasoningPod,
    /// The run whose model it serves.
    pub(crate) run: Option<TrainingRun>,
    /// All Evaluations of the namespace.
    pub(crate) evaluations: Vec<Evaluation>,
    /// All SignOffs of the namespace.
    pub(crate) sign_offs: Vec<SignOff>,
    pub(crate) quotas: Vec<ResourceQuota>,
    pub(crate) ranges: Vec<LimitRange>,
    /// The present servers.
    pub(crate) servers: Vec<Pod>,
    /// The configuration that the trainer was given.
    pub(crate) configuration: Option<ConfigMap>,
    /// The ConfigMap with the template that `spec.templateFrom` of the run names.
    pub(crate) template: Option<ConfigMap>,
    /// The bundles that the status of the ReasoningPod names, as far as they exist.
    pub(crate) bundles: Vec<ConfigMap>,
}

/// Policies that may state weights of readiness.
#[derive(Clone, Debug, Default)]
pub(crate) struct Policies {
    pub(crate) of_namespace: Vec<PromotionPolicy>,
    pub(crate) of_cluster: Vec<ClusterPromotionPolicy>,
}

impl Cluster {
    /// Reads a ReasoningPod and what decides whether it may roll out.
    pub(crate) async fn snapshot(&self, name: &str) -> Result<Snapshot, CommandError> {
        let pod: Option<ReasoningPod> = self.get_opt(name).await?;
        let pod = pod.ok_or_else(|| {
            let namespace = &self.namespace;
            CommandError::BadInput(format!(
                "--cluster {namespace}/{name}: there is no ReasoningPod {name} in {namespace}"
            ))
        })?;
        let all = ListParams::default;
        let (mut run, mut configuration, mut template): (Option<TrainingRun>, _, _) = (None, None, None);
        if let Some(name) = served(&pod) {
            run = self.get_opt(&name).await?;
            configuration = self.get_opt(&child::trainer(&name)).await?;
        }
        if let Some(from) = run.as_ref().and_then(|run| run.spec.template_from.as_ref()) {
            template = self.get_opt(&from.config_map.name).await?;
        }
        let status = pod.status.as_ref();
        let manifest = status.and_then(|status| Some(&status.manifest.as_ref()?.bundle));
        let promotion = status.and_then(|status| Some(&status.promotion.as_ref()?.bundle));
        let mut bundles: Vec<ConfigMap> = Vec::new();
        for name in manifest.into_iter().chain(promotion) {
            bundles.extend(self.get_opt(name).await?);
        }
        Ok(Snapshot {
            namespace: self.namespace.clone(),
            run,
            evaluations: self.list(false, all()).await?,
            sign_offs: self.list(false, all()).await?,
            quotas: self.list(false, all()).await?,
            ranges: self.list(false, all()).await?,
            servers: self.list(false, all().labels(&Kind::ReasoningPod.pods(name))).await?,
            configuration,
            template,
            bundles,
            pod,
        })
    }

    /// Reads the promotion policies. With `is_weighed`, the user has given the weights, and policies of the cluster that the user must not
    /// list are left out.
    pub(crate) async fn policies(&self, is_weighed: bool) -> Result<Policies, CommandError> {
        let of_namespace = self.list(false, ListParams::default()).await?;
        let api: Api<ClusterPromotionPolicy> = Api::all(self.client.clone());
        let of_cluster = match api.list(&ListParams::default()).await {
            Ok(list) => list.items,
            Err(kube::Error::Api(status)) if status.code == 403 && is_weighed => Vec::new(),
            Err(failure) => {
                let what =
                    "listing the ClusterPromotionPolicies, which may state weights (--weights gives them instead)";
                return Err(CommandError::request(what)(failure));
            }
        };
        Ok(Policies { of_namespace, of_cluster })
    }
}
