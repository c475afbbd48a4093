//! Apply: creates and changes children by server-side apply, and deletes those that the plan no longer names. I/O.
//!
//! A child that is already as planned in the cache is not written. Objects of other owners are never touched.

mod bundles;
mod error;

pub use error::ApplyError;

use std::{collections::BTreeSet, fmt::Debug, hash::Hash, sync::Arc};

use codex_crds::child;
use codex_plan::{
    Desired, Expired, KeptKind,
    reasoning_pod::{CycleKind, ForeignSlice},
};
use futures::future::{join, try_join_all};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        core::v1::{Endpoints, Service},
        discovery::v1::EndpointSlice,
        networking::v1::NetworkPolicy,
    },
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, Preconditions, PropagationPolicy},
};
use serde::{Serialize, de::DeserializeOwned};
use tracing::{debug, info, warn};

use crate::{
    MANAGER,
    api::merge_params,
    context::Context,
    drift::{correction, difference},
    error::answered,
    observe::{Cache, Name, Names, caught_up, caught_up_deleted, get},
    ownership::{controller, is_controlled_by, is_shared},
    seal::ANNOTATION,
    unmended::UnmendedChild,
};

/// The prefixes of the names of bundles, which are never deleted.
const BUNDLES: [&str; 3] = ["codex-oms-", "codex-promo-", "codex-repro-"];

/// An object in a namespace, with its children or as one of them.
pub trait ApiObject:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned + 'static
{
}

impl<C> ApiObject for C where
    C: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
        + 'static
{
}

/// Whether the pod template of a child is sealed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Template {
    None,
    /// The template may be changed back.
    Mutable,
    /// A Job's template cannot be changed, so a Job with another seal is foreign.
    Immutable,
}

/// Applies the children of `object`, but for the objects of cycles, and deletes the others.
///
/// # Errors
/// When a child cannot be applied; the children before it have been applied.
pub async fn apply<K: ApiObject>(context: &Context, object: &K, desired: &Desired) -> Result<(), ApplyError> {
    let stores = &*context.stores;
    let apply =
        Apply { context, namespace: object.namespace().unwrap_or_default(), owner: object.uid().unwrap_or_default() };
    let Desired {
        config_maps,
        jobs,
        deployments,
        horizontal_pod_autoscalers,
        services,
        http_routes,
        endpoint_slices,
        foreign_slices,
        pod_disruption_budgets,
        network_policies,
        shared_policies,
        training_runs: _,
        evaluations: _,
        reasoning_pods: _,
        expired: _,
        kept,
        mounted_bundles,
        released_bundles,
    } = desired;
    let kept_of = |kind| kept.iter().filter(move |kept| kept.kind == kind).map(|kept| kept.name.clone());
    // What must be read before a Job is created is read while the ConfigMaps that it mounts are written.
    let mounted = async {
        for child in config_maps {
            apply.ensure(&stores.config_maps, child, Template::None).await?;
        }
        Ok::<_, ApplyError>(())
    };
    let work = try_join_all(jobs.iter().map(|child| apply.work(object, &stores.jobs, child)));
    let (mounted, work) = join(mounted, work).await;
    mounted?;
    for child in network_policies {
        apply.ensure(&stores.network_policies, child, Template::None).await?;
    }
    for child in shared_policies {
        apply.share(&stores.network_policies, child).await?;
    }
    for child in pod_disruption_budgets {
        apply.ensure(&stores.pod_disruption_budgets, child, Template::None).await?;
    }
    // Before the Services: a Service that loses its selector keeps its endpoints.
    for child in endpoint_slices {
        apply.ensure(&stores.endpoint_slices, child, Template::None).await?;
    }
    for child in services {
        apply.ensure(&stores.services, child, Template::None).await?;
    }
    apply.remove_slices(services, foreign_slices).await?;
    for child in http_routes {
        apply.ensure(&stores.http_routes, child, Template::None).await?;
    }
    // The Job of a former run is deleted first: a quota may have room for one.
    apply.prune(&stores.jobs, names(jobs).into_iter().chain(kept_of(KeptKind::Job)).collect()).await?;
    for (child, live) in jobs.iter().zip(work?) {
        apply.bring(&stores.jobs, live, child, Template::Immutable).await?;
    }
    for name in mounted_bundles {
        apply.hold(name, object.owner_ref(&())).await?;
    }
    for child in deployments {
        apply.ensure(&stores.deployments, child, Template::Mutable).await?;
    }
    for child in horizontal_pod_autoscalers {
        apply.ensure(&stores.horizontal_pod_autoscalers, child, Template::None).await?;
    }
    apply.prune(&stores.horizontal_pod_autoscalers, names(horizontal_pod_autoscalers)).await?;
    // In reverse order: pods are deleted before the objects that they mount.
    let serving = names(deployments).into_iter().chain(kept_of(KeptKind::Deployment)).collect();
    apply.prune(&stores.deployments, serving).await?;
    apply.prune(&stores.http_routes, names(http_routes)).await?;
    apply.prune(&stores.services, names(services)).await?;
    let slices = names(endpoint_slices).into_iter().chain(kept_of(KeptKind::EndpointSlice)).collect();
    apply.prune(&stores.endpoint_slices, slices).await?;
    apply.prune(&stores.pod_disruption_budgets, names(pod_disruption_budgets)).await?;
    apply.prune(&stores.network_policies, names(network_policies)).await?;
    let bundles = apply.owned(&stores.config_maps).into_iter().map(|found| found.name_any());
    let bundles = bundles.filter(|name| BUNDLES.iter().any(|prefix| name.starts_with(prefix)));
    let mounted = names(config_maps).into_iter().chain(kept_of(KeptKind::ConfigMap)).chain(bundles).collect();
    apply.prune(&stores.config_maps, mounted).await?;
    for name in released_bundles {
        apply.release(name).await?;
    }
    Ok(())
}

/// Creates, changes and deletes the objects of cycles, after everything else of the plan: a template that the API server refuses keeps
/// nothing from being signed or served.
///
/// # Errors
/// When one of them cannot be written; those before it have been.
pub async fn apply_cycles<K: ApiObject>(context: &Context, object: &K, desired: &Desired) -> Result<(), ApplyError> {
    let stores = &*context.stores;
    let apply =
        Apply { context, namespace: object.namespace().unwrap_or_default(), owner: object.uid().unwrap_or_default() };
    let Desired { training_runs, evaluations, reasoning_pods, expired, .. } = desired;
    for child in training_runs {
        apply.ensure_work(object, &stores.training_runs, child).await?;
    }
    for child in evaluations {
        apply.ensure_work(object, &stores.evaluations, child).await?;
    }
    for child in reasoning_pods {
        Box::pin(apply.ensure(&stores.reasoning_pods, child, Template::Immutable)).await?;
    }
    for Expired { kind, name, uid } in expired {
        match kind {
            CycleKind::TrainingRun => apply.expire(&stores.training_runs, name, uid).await?,
            CycleKind::Evaluation => apply.expire(&stores.evaluations, name, uid).await?,
            CycleKind::ReasoningPod => apply.expire(&stores.reasoning_pods, name, uid).await?,
        }
    }
    Ok(())
}

/// Deletes what the objects of a namespace shared, once it has none that needs it.
///
/// # Errors
/// When it cannot be deleted.
pub async fn delete_shared(context: &Context, namespace: &str) -> Result<(), ApplyError> {
    let stores = &*context.stores;
    let shared = get(&stores.network_policies, namespace, child::WORKERS);
    let Some(policy) = shared.filter(|policy| is_shared(&**policy)) else { return Ok(()) };
    let _sharing = context.sharing.lock().await;
    if stores.has_workers(namespace) || policy.meta().deletion_timestamp.is_some() {
        return Ok(());
    }
    let apply = Apply { context, namespace: namespace.to_owned(), owner: String::new() };
    apply.delete::<NetworkPolicy>(child::WORKERS, policy.uid()).await?;
    caught_up_deleted(&stores.network_policies, &*policy).await;
    Ok(())
}

fn names<C: Resource>(children: &[C]) -> BTreeSet<String> {
    children.iter().map(ResourceExt::name_any).collect()
}

struct Apply<'a> {
    context: &'a Context,
    namespace: String,
    owner: String,
}

impl Apply<'_> {
    fn api<C: ApiObject>(&self) -> Api<C> {
        Api::namespaced(self.context.client.clone(), &self.namespace)
    }

    /// Whether this version of a child is known to be as planned, which is the fact.
    fn is_known<C: ApiObject>(&self, live: &C, fact: impl Hash) -> bool {
        self.context.known.holds(live, fact, || false)
    }

    /// Remembers that this version of a child is as planned, which is the fact.
    fn learn<C: ApiObject>(&self, live: &C, fact: impl Hash) {
        self.context.known.holds(live, fact, || true);
    }

    /// The fact that a child of the object is as planned. What objects share is as planned for all of them.
    fn fact<C: ApiObject>(&self, planned: &C) -> impl Hash {
        let owner = controller(planned).map(|_| self.owner.clone());
        // What JSON cannot represent is never as planned.
        ("as planned", owner, serde_json::to_vec(planned).unwrap_or_default())
    }

    /// Ensures a child that the objects of the namespace share.
    async fn share<C: ApiObject + Names>(&self, store: &Cache<C>, child: &C) -> Result<(), ApplyError> {
        let cached = get(store, &self.namespace, &child.name_any());
        if cached.is_some_and(|live| self.is_known(&*live, self.fact(child))) {
            return Ok(());
        }
        let _sharing = self.context.sharing.lock().await;
        self.ensure(store, child, Template::None).await
    }

    /// Ensures a child that works, a Job or an object of a cycle. It is created only for the object as the API server has it: a cache that
    /// is late may lack the end that the status records, and work that has ended would begin again.
    async fn ensure_work<K: ApiObject, C: ApiObject + Names>(
        &self,
        object: &K,
        store: &Cache<C>,
        child: &C,
    ) -> Result<(), ApplyError> {
        let live = self.work(object, store, child).await?;
        self.bring(store, live, child, Template::Immutable).await
    }

    /// Returns a child that works, or `None` if it does not exist yet.
    ///
    /// # Errors
    /// [`ApplyError::Outdated`] if it does not exist and the object has changed since it was observed: then nothing may be begun for it.
    async fn work<K: ApiObject, C: ApiObject + Names>(
        &self,
        object: &K,
        store: &Cache<C>,
        child: &C,
    ) -> Result<Option<Arc<C>>, ApplyError> {
        let name = child.name_any();
        if let Some(live) = get(store, &self.namespace, &name) {
            return Ok(Some(live));
        }
        let (current, live) = join(self.check_current(object), self.read(&name)).await;
        current?;
        live
    }

    /// Reads a child that the cache does not have. The cache holds only objects with our label; another object may have the name.
    async fn read<C: ApiObject>(&self, name: &str) -> Result<Option<Arc<C>>, ApplyError> {
        match self.api::<C>().get_opt(name).await {
            Ok(live) => Ok(live.map(Arc::new)),
            Err(source) => {
                let (kind, name) = (C::kind(&()).into_owned(), name.to_owned());
                Err(ApplyError::Client { kind, name, verb: "read", source: Box::new(source) })
            }
        }
    }

    /// Checks that an object is as the API server has it.
    async fn check_current<K: ApiObject>(&self, object: &K) -> Result<(), ApplyError> {
        let (kind, name) = (K::kind(&()).into_owned(), object.name_any());
        let live = match self.api::<K>().get_metadata_opt(&name).await {
            Ok(live) => live,
            Err(source) => return Err(ApplyError::Client { kind, name, verb: "read", source: Box::new(source) }),
        };
        let version = |meta: &ObjectMeta| (meta.uid.clone(), meta.resource_version.clone());
        if live.is_none_or(|live| version(&live.metadata) != version(object.meta())) {
            return Err(ApplyError::Outdated { kind, name });
        }
        Ok(())
    }

    /// Ensures that a child is as planned.
    async fn ensure<C: ApiObject + Names>(
        &self,
        store: &Cache<C>,
        child: &C,
        template: Template,
    ) -> Result<(), ApplyError> {
        let name = child.name_any();
        let live = match get(store, &self.namespace, &name) {
            None => self.read(&name).await?,
            cached => cached,
        };
        self.bring(store, live, child, template).await
    }

    /// Brings a child to what is planned from how it is: creates it or changes it.
    async fn bring<C: ApiObject + Names>(
        &self,
        store: &Cache<C>,
        live: Option<Arc<C>>,
        child: &C,
        template: Template,
    ) -> Result<(), ApplyError> {
        let (kind, name) = (C::kind(&()).into_owned(), child.name_any());
        let as_planned = self.fact(child);
        let failed = |verb: &'static str| {
            let (kind, name) = (kind.clone(), name.clone());
            move |source| ApplyError::Client { kind, name, verb, source: Box::new(source) }
        };
        let live = live.as_deref();
        if live.is_some_and(|live| self.is_known(live, &as_planned)) {
            return Ok(());
        }
        if let Some(live) = live {
            let ours = match controller(child) {
                Some(_) => is_controlled_by(live, &self.owner),
                None => is_shared(live),
            };
            if !ours || (template == Template::Immutable && !self.context.seal.holds(&self.owner, live)) {
                return Err(ApplyError::Taken { kind, name });
            }
            if live.meta().deletion_timestamp.is_some() {
                return Err(ApplyError::Ending { kind, name });
            }
        }
        let mut child = child.clone();
        if template != Template::None {
            let seal = self.context.seal.of(&self.owner, &child)?;
            child.annotations_mut().insert(ANNOTATION.to_owned(), seal);
        }
        let json = |child: &C| {
            let (kind, name) = (kind.clone(), name.clone());
            serde_json::to_value(child).map_err(|source| ApplyError::Json { kind, name, source })
        };
        let wanted = json(&child)?;
        if let Some(live) = live {
            match difference(&wanted, &json(live)?) {
                None => {
                    self.learn(live, &as_planned);
                    return Ok(());
                }
                Some(difference) => {
                    debug!("the {kind} {name} differs from the plan: {difference}");
                    let child = UnmendedChild { kind: kind.clone(), name: name.clone(), difference };
                    let known = self.context.unmended.get(&self.owner).is_some_and(|known| known == child);
                    if self.context.backoff.rests(&self.owner) && known {
                        return Err(ApplyError::Unmended(child.into()));
                    }
                }
            }
        }
        let mut params = PatchParams::apply(MANAGER);
        params.force = live.is_some();
        // What was planned as a change must not create the child again: a cache may be late, and the Job of settled work stays deleted.
        child.meta_mut().uid = live.and_then(ResourceExt::uid);
        let written = self.api::<C>().patch(&name, &params, &Patch::Apply(&child)).await;
        let mut written = match written {
            // Another manager created it meanwhile: without force this is a conflict.
            Err(source) if live.is_none() && answered(&source, 409) => return Err(ApplyError::Taken { kind, name }),
            Err(source) if answered(&source, 409) => return Err(ApplyError::Gone { kind, name }),
            written => written.map_err(failed("applied"))?,
        };
        self.context.metrics.wrote(&kind, "apply");
        info!("{} the {kind} {name}", if live.is_some() { "changed" } else { "created" });
        let shown = json(&written)?;
        let mut differs = difference(&wanted, &shown);
        let correction = correction(&wanted, &shown, template == Template::Mutable);
        if let (Some(found), Some(correction)) = (&differs, correction) {
            // Apply keeps fields of other managers. Unplanned fields must not run in a server, stop it or divert its traffic.
            warn!("the {kind} {name} was changed by another manager; correcting it: {found}");
            let patch = Patch::Merge(correction);
            written = self.api::<C>().patch(&name, &merge_params(), &patch).await.map_err(failed("corrected"))?;
            self.context.metrics.wrote(&kind, "correct");
            differs = difference(&wanted, &json(&written)?);
        }
        if let Some(difference) = differs {
            caught_up(store, written.meta()).await;
            let child = UnmendedChild { kind, name, difference };
            self.context.unmended.insert(&self.owner, child.clone());
            return Err(ApplyError::Unmended(child.into()));
        }
        self.learn(&written, &as_planned);
        caught_up(store, written.meta()).await;
        Ok(())
    }

    /// Returns the children of a kind that the object has.
    fn owned<C: ApiObject + Names>(&self, store: &Cache<C>) -> Vec<Arc<C>> {
        store.naming(&self.namespace, &Name::Owner(self.owner.clone()))
    }

    async fn prune<C: ApiObject + Names>(&self, store: &Cache<C>, keep: BTreeSet<String>) -> Result<(), ApplyError> {
        let goes = self.owned(store).into_iter().filter(|child| {
            child.meta().deletion_timestamp.is_none()
                && is_controlled_by(&**child, &self.owner)
                && !child.meta().name.as_ref().is_some_and(|name| keep.contains(name))
        });
        for child in goes {
            self.delete::<C>(&child.name_any(), child.uid()).await?;
            caught_up_deleted(store, &*child).await;
        }
        Ok(())
    }

    /// Deletes an object of a cycle.
    async fn expire<C: ApiObject + Names>(&self, store: &Cache<C>, name: &str, uid: &str) -> Result<(), ApplyError> {
        self.delete::<C>(name, Some(uid.to_owned())).await?;
        if let Some(live) = get(store, &self.namespace, name).filter(|live| live.meta().uid.as_deref() == Some(uid)) {
            caught_up_deleted(store, &*live).await;
        }
        Ok(())
    }

    /// Deletes the EndpointSlices that others wrote for these Services, and the Endpoints objects that slices are copied from. The
    /// cluster writes neither for a Service without a selector, and removes none.
    async fn remove_slices(&self, services: &[Service], foreign: &[ForeignSlice]) -> Result<(), ApplyError> {
        if foreign.is_empty() {
            return Ok(());
        }
        for service in services {
            self.delete::<Endpoints>(&service.name_any(), None).await?;
        }
        for slice in foreign.iter().filter(|slice| !slice.mirrored) {
            self.delete::<EndpointSlice>(&slice.name, Some(slice.uid.clone())).await?;
        }
        Ok(())
    }

    /// Deletes an object, if it exists and has this uid.
    async fn delete<C: ApiObject>(&self, name: &str, uid: Option<String>) -> Result<(), ApplyError> {
        let kind = C::kind(&()).into_owned();
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            preconditions: uid.map(|uid| Preconditions { uid: Some(uid), resource_version: None }),
            ..DeleteParams::default()
        };
        match self.api::<C>().delete(name, &params).await {
            Ok(_) => {
                self.context.metrics.wrote(&kind, "delete");
                info!("deleted the {kind} {name}");
                Ok(())
            }
            // Already deleted, or replaced by another object of that name.
            Err(source) if answered(&source, 404) || answered(&source, 409) => Ok(()),
            Err(source) => {
                Err(ApplyError::Client { kind, name: name.to_owned(), verb: "deleted", source: Box::new(source) })
            }
        }
    }
}
