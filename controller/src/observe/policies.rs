//! Promotion policies and sign-offs: what their changes trigger, and what a ReasoningPod observes of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use codex_crds::{ClusterPromotionPolicy, PromotionPolicy, ReasoningPod, SignOff};
use codex_plan::reasoning_pod::RecordedPromotion;
use codex_provenance::ModelDigest;
use codex_signing::verify::read_promotion;
use codex_verdict::policy::{Lineage, Policy};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;

use super::{cache::Name, kind::Kind, stores::get, triggers::Triggers};
use crate::{context::Context, signer::BUNDLE};

/// The phase of objects that never report.
const PRESENT: &str = "Present";

impl Kind for ClusterPromotionPolicy {
    fn phase(&self) -> String {
        PRESENT.to_owned()
    }

    fn changed(&self, triggers: &Triggers) {
        triggers.reasoning_pods(None, |_| true);
    }
}

impl Kind for PromotionPolicy {
    fn phase(&self) -> String {
        PRESENT.to_owned()
    }

    fn changed(&self, triggers: &Triggers) {
        triggers.reasoning_pods(self.namespace().as_deref(), |_| true);
    }
}

impl Kind for SignOff {
    fn phase(&self) -> String {
        PRESENT.to_owned()
    }

    fn ring(&self) -> String {
        self.spec.ring.map(|ring| ring.to_string()).unwrap_or_default()
    }

    fn changed(&self, triggers: &Triggers) {
        triggers.reasoning_pods(self.namespace().as_deref(), |pod| concerns(self, pod));
    }
}

/// Whether a SignOff names a ReasoningPod or one of its Evaluations.
fn concerns(sign_off: &SignOff, pod: &ReasoningPod) -> bool {
    let spec = &sign_off.spec;
    spec.reasoning_pod.as_ref().is_some_and(|name| *name == pod.name_any())
        || spec.evaluation.as_ref().is_some_and(|name| pod.spec.evaluations.contains(name) || of_cycle(pod, name))
}

/// Whether an Evaluation is one of the cycle that has not ended or of what is served. A forged status causes a needless plan.
fn of_cycle(pod: &ReasoningPod, name: &String) -> bool {
    let Some(status) = &pod.status else { return false };
    let cycle = status.redeploy.as_ref().and_then(|redeploy| redeploy.cycle.as_ref());
    status.current.as_ref().is_some_and(|current| current.evaluations.contains(name))
        || cycle.is_some_and(|cycle| cycle.evaluations.contains(name))
}

/// Returns the policies that apply in a namespace, by kind and name.
pub(super) fn policies(context: &Context, namespace: &str) -> Vec<Policy> {
    let everywhere = context.stores.cluster_promotion_policies.all();
    let own = context.stores.promotion_policies.all();
    let own = own.filter(|policy| policy.metadata.namespace.as_deref() == Some(namespace));
    let mut policies: Vec<Policy> =
        everywhere.map(|policy| Policy::from(&*policy)).chain(own.map(|policy| Policy::from(&*policy))).collect();
    policies.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    policies
}

/// Returns the SignOffs that concern a ReasoningPod, by name.
pub(super) fn sign_offs(context: &Context, pod: &ReasoningPod) -> Vec<SignOff> {
    let own = context
        .stores
        .sign_offs
        .all()
        .filter(|it| it.metadata.namespace == pod.metadata.namespace && concerns(it, pod));
    let mut found: Vec<SignOff> = own.map(|it| SignOff::clone(&it)).collect();
    found.sort_by_key(ResourceExt::name_any);
    found
}

/// Returns the promotions of these models that are recorded in a namespace, and the one in the ConfigMap `named`. Each is
/// verified with the listed keys, those included that do not count now: anyone may write a ConfigMap, and only the controller can sign.
pub(super) fn promotions(
    context: &Context,
    namespace: &str,
    models: &BTreeSet<ModelDigest>,
    named: Option<&str>,
) -> Vec<RecordedPromotion> {
    let trusted = context.signer.trusted();
    if trusted.is_empty() {
        return Vec::new();
    }
    let config_maps = &context.stores.config_maps;
    let of_model = |model: &ModelDigest| config_maps.naming(namespace, &Name::Model(model.to_string()));
    let named = named.and_then(|name| get(config_maps, namespace, name));
    let found: BTreeMap<String, Arc<ConfigMap>> =
        models.iter().flat_map(of_model).chain(named).map(|config_map| (config_map.name_any(), config_map)).collect();
    let mut found: Vec<RecordedPromotion> = found
        .values()
        .filter_map(|config_map| {
            let bundle = config_map.data.as_ref()?.get(BUNDLE)?;
            let promoted = read_promotion(bundle.as_bytes(), &trusted).ok()?;
            let reasons = &promoted.promotion.reasons;
            // A copy from another namespace was promoted under the policies there.
            (reasons.namespace == namespace).then_some(())?;
            Some(RecordedPromotion {
                digest: promoted.digest,
                ring: reasons.ring.parse().ok()?,
                since: config_map.metadata.creation_timestamp.as_ref()?.0,
                lineage: Lineage::of_statement(&promoted.promotion, promoted.signer),
                parity: reasons.parity.clone(),
                run: reasons.training.run.uid.clone(),
                sign_offs: reasons.sign_offs.iter().map(|it| it.uid.clone()).collect(),
            })
        })
        .collect();
    found.sort_by_key(|promoted| (promoted.ring, promoted.since, promoted.digest));
    found
}
