//! The reflectors of all kinds, fed by a test in place of watches: what [`watch`](super::watch) starts, without an API server.

use std::mem::take;

use codex_crds::{ClusterPromotionPolicy, Evaluation, PromotionPolicy, ReasoningPod, SignOff, TrainingRun, label};
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
use kube::{core::PartialObjectMeta, runtime::watcher::Event};
use serde_json::Value;

use super::{
    cache::CacheWriter,
    kind::Kind,
    queues::Queues,
    raw::RawObject,
    reflector::Reflector,
    stores::{NOT_OURS, OURS, Stores, Writers},
    triggers::Triggers,
    watches::{existing, job, labelled_pod, pod, slice},
};
use crate::metrics::Metrics;

fn raw(event: Event<Value>) -> Event<RawObject> {
    let raw = |object: Value| RawObject::try_from(object).unwrap();
    match event {
        Event::Apply(object) => Event::Apply(raw(object)),
        Event::Delete(object) => Event::Delete(raw(object)),
        Event::Init => Event::Init,
        Event::InitApply(object) => Event::InitApply(raw(object)),
        Event::InitDone => Event::InitDone,
    }
}

macro_rules! declare_reflectors {
    ($($field:ident: $kind:ty, $writer:expr, $of:literal, $selects:expr, $parse:expr, $trigger:expr;)*) => {
        /// The reflectors.
        pub(crate) struct Reflectors {
            $($field: Reflector<$kind>,)*
        }

        /// The watches: the name of each, the kind of its objects, and what it selects by labels.
        pub(crate) const WATCHES: &[(&str, &str, &str)] = &[$((stringify!($field), $of, $selects),)*];

        impl Reflectors {
            /// Creates the reflectors and their caches.
            pub(crate) fn new(metrics: &Metrics, queues: &Queues) -> (Self, Stores) {
                let mut writers = Writers::default();
                let stores = Stores::of(&mut writers);
                let triggers = Triggers::new(queues.clone(), stores.clone());
                let reflectors = Self {
                    $($field: {
                        let triggers = triggers.clone();
                        let trigger: fn(&Triggers, &$kind) = $trigger;
                        let writer: fn(&mut Writers) -> CacheWriter<$kind> = $writer;
                        Reflector::new(writer(&mut writers), metrics.clone(), $parse, move |object| trigger(&triggers, object))
                    },)*
                };
                (reflectors, stores)
            }

            /// Handles an event of the watch of this name.
            pub(crate) fn handle(&mut self, watch: &str, event: Event<Value>) {
                match watch {
                    $(stringify!($field) => self.$field.handle(0, raw(event)),)*
                    _ => panic!("{watch} is not a watch"),
                }
            }
        }
    };
}

declare_reflectors! {
    training_runs: TrainingRun, |all| take(&mut all.training_runs), "TrainingRun", "", RawObject::parse, |triggers, object| object.changed(triggers);
    evaluations: Evaluation, |all| take(&mut all.evaluations), "Evaluation", "", RawObject::parse, |triggers, object| object.changed(triggers);
    reasoning_pods: ReasoningPod, |all| take(&mut all.reasoning_pods), "ReasoningPod", "", RawObject::parse, |triggers, object| object.changed(triggers);
    cluster_promotion_policies: ClusterPromotionPolicy, |all| take(&mut all.cluster_promotion_policies), "ClusterPromotionPolicy", "", RawObject::parse, |triggers, object| object.changed(triggers);
    promotion_policies: PromotionPolicy, |all| take(&mut all.promotion_policies), "PromotionPolicy", "", RawObject::parse, |triggers, object| object.changed(triggers);
    sign_offs: SignOff, |all| take(&mut all.sign_offs), "SignOff", "", RawObject::parse, |triggers, object| object.changed(triggers);
    jobs: Job, |all| take(&mut all.jobs), "Job", OURS, job, Triggers::child;
    deployments: Deployment, |all| take(&mut all.deployments), "Deployment", OURS, RawObject::parse, Triggers::child;
    horizontal_pod_autoscalers: HorizontalPodAutoscaler, |all| take(&mut all.horizontal_pod_autoscalers), "HorizontalPodAutoscaler", OURS, RawObject::parse, Triggers::child;
    pods: Pod, |all| take(&mut all.pods), "Pod", OURS, pod, Triggers::pod;
    labelled: PartialObjectMeta<Pod>, |all| take(&mut all.labelled), "Pod", label::REASONING_POD, labelled_pod, Triggers::labelled;
    config_maps: ConfigMap, |all| take(&mut all.config_maps), "ConfigMap", OURS, RawObject::parse, Triggers::child;
    services: Service, |all| take(&mut all.services), "Service", OURS, RawObject::parse, Triggers::child;
    endpoint_slices: EndpointSlice, |all| take(&mut all.endpoint_slices), "EndpointSlice", OURS, slice, Triggers::slice;
    http_routes: HttpRoute, |all| take(&mut all.http_routes), "HTTPRoute", OURS, RawObject::parse, Triggers::child;
    pod_disruption_budgets: PodDisruptionBudget, |all| take(&mut all.pod_disruption_budgets), "PodDisruptionBudget", OURS, RawObject::parse, Triggers::child;
    network_policies: NetworkPolicy, |all| take(&mut all.network_policies), "NetworkPolicy", OURS, RawObject::parse, Triggers::network_policy;
    claims: PartialObjectMeta<PersistentVolumeClaim>, |all| take(&mut all.claims), "PersistentVolumeClaim", "", existing, Triggers::claim;
    users: PartialObjectMeta<ConfigMap>, |_| CacheWriter::default(), "ConfigMap", NOT_OURS, existing, Triggers::config_map;
}
