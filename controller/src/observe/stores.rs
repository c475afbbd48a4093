//! The caches that everything is observed from.

use std::{collections::HashSet, sync::Arc, time::Duration};

use codex_plan::http_route::HttpRoute;
use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::Job,
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{Resource, ResourceExt, api::ObjectMeta, core::PartialObjectMeta, runtime::reflector::ObjectRef};

use super::cache::{Cache, CacheWriter, Names};
use crate::kinds::kinds;

/// The label selector of the children that the controller created.
pub const OURS: &str = "app.kubernetes.io/managed-by=codex-controller";
/// The label selector of everything else.
pub(super) const NOT_OURS: &str = "app.kubernetes.io/managed-by!=codex-controller";
/// How long to wait for a cache to show a write.
const CATCH_UP: Duration = Duration::from_secs(3);

macro_rules! declare_stores {
    (
        reconciled { $($reconciled:ident: $reconciled_kind:ty, $label:expr;)* }
        referenced { $($referenced:ident: $referenced_kind:ty;)* }
    ) => {
        declare_stores! {
            kinds { $($reconciled: $reconciled_kind;)* $($referenced: $referenced_kind;)* }
            others {
                /// The controller's Jobs.
                jobs: Job;
                /// The controller's Deployments.
                deployments: Deployment;
                /// The controller's HorizontalPodAutoscalers.
                horizontal_pod_autoscalers: HorizontalPodAutoscaler;
                /// The pods of the controller's Jobs and Deployments.
                pods: Pod;
                /// The metadata of all pods with the label of a ReasoningPod, including foreign ones.
                labelled: PartialObjectMeta<Pod>;
                /// The controller's ConfigMaps: configurations and bundles.
                config_maps: ConfigMap;
                /// The controller's Services.
                services: Service;
                /// The EndpointSlices of the controller's Services. The cluster copies the labels of a Service to the slices that it
                /// writes. Those have no endpoints in this cache.
                endpoint_slices: EndpointSlice;
                /// The controller's HTTPRoutes. The cluster may have none.
                http_routes: HttpRoute;
                /// The controller's PodDisruptionBudgets.
                pod_disruption_budgets: PodDisruptionBudget;
                /// The controller's NetworkPolicies.
                network_policies: NetworkPolicy;
                /// The metadata of all PersistentVolumeClaims.
                claims: PartialObjectMeta<PersistentVolumeClaim>;
            }
        }
    };
    (
        kinds { $($kind:ident: $kind_type:ty;)* }
        others { $($(#[$doc:meta])* $other:ident: $other_type:ty;)* }
    ) => {
        /// The caches.
        #[derive(Clone)]
        pub struct Stores {
            $(
                #[doc = concat!("The objects of kind `", stringify!($kind_type), "`.")]
                pub $kind: Cache<$kind_type>,
            )*
            $($(#[$doc])* pub $other: Cache<$other_type>,)*
        }

        /// The writers of [`Stores`].
        #[derive(Default)]
        pub struct Writers {
            $(
                #[doc = concat!("The objects of kind `", stringify!($kind_type), "`.")]
                pub $kind: CacheWriter<$kind_type>,
            )*
            $($(#[$doc])* pub $other: CacheWriter<$other_type>,)*
        }

        impl Stores {
            /// Returns the readers of `writers`.
            pub fn of(writers: &mut Writers) -> Self {
                Self {
                    $($kind: writers.$kind.as_reader(),)*
                    $($other: writers.$other.as_reader(),)*
                }
            }

            /// Whether the objects of all kinds of `codex-ml.dev` may be listed in all namespaces.
            pub fn are_allowed(&self) -> bool {
                [$(self.$kind.is_allowed()),*].into_iter().all(|allowed| allowed)
            }

            /// Returns the uids of all objects of the kinds of `codex-ml.dev`.
            pub fn uids(&self) -> HashSet<String> {
                let mut uids = HashSet::new();
                $(uids.extend(self.$kind.uids());)*
                uids
            }
        }

        #[cfg(test)]
        impl Writers {
            /// Returns writers whose stores are ready.
            pub(crate) fn ready() -> Self {
                use kube::runtime::watcher::Event;
                let mut writers = Self::default();
                $(
                    writers.$kind.apply_watcher_event(&Event::Init);
                    writers.$kind.apply_watcher_event(&Event::InitDone);
                )*
                $(
                    writers.$other.apply_watcher_event(&Event::Init);
                    writers.$other.apply_watcher_event(&Event::InitDone);
                )*
                writers
            }
        }
    };
}

kinds!(declare_stores);

impl Stores {
    /// Whether a namespace has a TrainingRun or an Evaluation, or may have one that the controller may not list.
    pub fn has_workers(&self, namespace: &str) -> bool {
        let Self { training_runs, evaluations, .. } = self;
        let unknown = training_runs.forbidden(namespace).or_else(|| evaluations.forbidden(namespace));
        training_runs.is_in(namespace) || evaluations.is_in(namespace) || unknown.is_some()
    }

    /// Returns why what trains in a namespace is not known: a kind may not be listed.
    pub fn unknown_training(&self, namespace: &str) -> Option<String> {
        let Self { training_runs, jobs, pods, config_maps, network_policies, claims, .. } = self;
        [
            training_runs.forbidden(namespace),
            jobs.forbidden(namespace),
            pods.forbidden(namespace),
            config_maps.forbidden(namespace),
            network_policies.forbidden(namespace),
            claims.forbidden(namespace),
        ]
        .into_iter()
        .flatten()
        .next()
    }

    /// Returns why what evaluates in a namespace is not known: a kind may not be listed.
    pub fn unknown_evaluation(&self, namespace: &str) -> Option<String> {
        self.evaluations.forbidden(namespace).or_else(|| self.unknown_training(namespace))
    }

    /// Returns why what serves in a namespace is not known: a kind may not be listed.
    pub fn unknown_serving(&self, namespace: &str) -> Option<String> {
        let Self {
            training_runs,
            evaluations,
            reasoning_pods,
            cluster_promotion_policies,
            promotion_policies,
            sign_offs,
            deployments,
            horizontal_pod_autoscalers,
            pods,
            labelled,
            config_maps,
            services,
            endpoint_slices,
            pod_disruption_budgets,
            network_policies,
            // HTTPRoutes may not exist in a cluster; Jobs and claims belong to trainers and evaluators, not to servers.
            http_routes: _,
            jobs: _,
            claims: _,
        } = self;
        [
            training_runs.forbidden(namespace),
            evaluations.forbidden(namespace),
            reasoning_pods.forbidden(namespace),
            cluster_promotion_policies.forbidden(namespace),
            promotion_policies.forbidden(namespace),
            sign_offs.forbidden(namespace),
            deployments.forbidden(namespace),
            horizontal_pod_autoscalers.forbidden(namespace),
            pods.forbidden(namespace),
            labelled.forbidden(namespace),
            config_maps.forbidden(namespace),
            services.forbidden(namespace),
            endpoint_slices.forbidden(namespace),
            pod_disruption_budgets.forbidden(namespace),
            network_policies.forbidden(namespace),
        ]
        .into_iter()
        .flatten()
        .next()
    }
}

/// Returns the object `name` of `namespace` from a cache.
pub fn get<K: Names>(cache: &Cache<K>, namespace: &str, name: &str) -> Option<Arc<K>> {
    cache.get(&ObjectRef::new(name).within(namespace))
}

/// Waits until a cache shows `written` or a newer version, so that the next observation does not miss it. Gives up after a
/// few seconds: what an outdated observation must not begin or overwrite, the API server is asked about.
pub async fn caught_up<K: Names>(cache: &Cache<K>, written: &ObjectMeta) {
    let version = |meta: &ObjectMeta| meta.resource_version.as_ref().and_then(|version| version.parse::<u64>().ok());
    let reference = reference(written);
    let seen = |seen: Arc<K>| seen.meta().uid != written.uid || version(seen.meta()) >= version(written);
    cache.until(CATCH_UP, || cache.get(&reference).is_some_and(seen)).await;
}

/// Waits until a cache no longer shows the object, or shows that it is being deleted.
pub async fn caught_up_deleted<K: Names>(cache: &Cache<K>, deleted: &K) {
    let reference = ObjectRef::from_obj(deleted);
    let gone = |seen: Arc<K>| seen.uid() != deleted.uid() || seen.meta().deletion_timestamp.is_some();
    cache.until(CATCH_UP, || cache.get(&reference).is_none_or(gone)).await;
}

fn reference<K: Resource<DynamicType = ()>>(meta: &ObjectMeta) -> ObjectRef<K> {
    let reference = ObjectRef::new(meta.name.as_deref().unwrap_or_default());
    match &meta.namespace {
        Some(namespace) => reference.within(namespace),
        None => reference,
    }
}
