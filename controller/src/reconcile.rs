//! Reconciliation: observe → plan → apply → report, for one object and for all objects of a kind.

use std::{panic::resume_unwind, sync::Arc, time::Duration};

use codex_crds::Reason;
use codex_plan::{Obstruction, Plan, Sealable, StatusSeal};
use futures::{FutureExt, StreamExt, channel::mpsc::UnboundedReceiver};
use kube::{
    ResourceExt,
    runtime::{
        controller::{self, Action, Config},
        reflector::ObjectRef,
    },
};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, debug, error, info_span, warn};

use crate::{
    apply::{ApplyError, apply, apply_cycles, delete_shared},
    context::{Context, Settled},
    effects::{EffectError, carry_out},
    error::chain,
    observe::{Given, Listed, Observe, ObserveError, Turns, get, same_metadata},
    report::{self, ReportError},
    seal::SealError,
};

/// The number of objects of a kind that are reconciled concurrently.
const CONCURRENCY: u16 = 32;
/// Changes within this time cause one reconciliation.
const DEBOUNCE: Duration = Duration::from_millis(20);

/// Why a reconciliation failed.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// Failed to observe the object.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// Failed to apply its children.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// Failed to sign a bundle.
    #[error(transparent)]
    Effect(#[from] EffectError),
    /// Failed to seal its status.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Failed to write its status.
    #[error(transparent)]
    Report(#[from] ReportError),
}

impl ReconcileError {
    /// Returns the metric label of the error.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Observe(source) => source.category(),
            Self::Apply(source) => source.category(),
            Self::Effect(source) => source.category(),
            Self::Seal(source) => source.category(),
            Self::Report(source) => source.category(),
        }
    }

    /// Returns the reason of an error that needs attention: it persists until a user changes something.
    fn needs_attention(&self) -> Option<Reason> {
        match self {
            Self::Apply(source) => source.needs_attention(),
            Self::Effect(source) => source.needs_attention(),
            Self::Observe(_) | Self::Seal(_) | Self::Report(_) => None,
        }
    }
}

/// Reconciles an object that was queued, unless that was only because its own status was written. Returns when to reconcile it again
/// although nothing changed, and whether it was reconciled.
///
/// # Errors
/// Those of [`reconcile`].
pub async fn attend<K: Observe>(object: Arc<K>, context: &Context) -> Result<(Option<Duration>, bool), ReconcileError> {
    let (namespace, uid) = (object.namespace().unwrap_or_default(), object.uid().unwrap_or_default());
    let wait = context.queues.waiting().ended(&K::kind(&()), &namespace, &object.name_any());
    if let Some(wait) = wait {
        context.metrics.waited(&K::kind(&()), wait.elapsed());
        if wait.own
            && let Some(settled) = context.settled.get(&uid)
            && object.meta().resource_version.as_ref() == Some(&settled.version)
        {
            let rest = settled.due.map(|due| due.saturating_duration_since(Instant::now()));
            // What is due now is not skipped.
            if rest != Some(Duration::ZERO) {
                return Ok((rest, false));
            }
        }
    }
    context.settled.remove(&uid);
    reconcile(object, context).await.map(|again| (again, true))
}

/// Reconciles one object. Returns when to reconcile it again although nothing changed.
///
/// If apply meets an obstruction, the plan is made again with the obstruction observed, and its status is written.
///
/// # Errors
/// When I/O failed, another owner's object has the name of a child, or the API server refuses a child.
pub async fn reconcile<K: Observe>(object: Arc<K>, context: &Context) -> Result<Option<Duration>, ReconcileError> {
    // The garbage collector deletes the children of a deleted object.
    if object.meta().deletion_timestamp.is_some() {
        return Ok(None);
    }
    let uid = object.uid().unwrap_or_default();
    // An empty cache would look as if nothing existed.
    if let Some(why) = K::unknown(&context.stores, &object.namespace().unwrap_or_default()) {
        return Err(ObserveError::Forbidden(why).into());
    }
    let mut observed = object.clone().observe(context).instrument(info_span!("observe")).await?;
    let seen: Vec<_> =
        K::reports(&observed).iter().map(|received| (received.report.pod_uid.clone(), received.report.seq)).collect();
    let plan = sealed_plan(context, &*object, &observed)?;
    let applied = async {
        apply(context, &*object, &plan.desired).await?;
        carry_out(context, &plan.effects).await?;
        Ok::<_, ReconcileError>(apply_cycles(context, &*object, &plan.desired).await?)
    };
    if let Err(failure) = applied.instrument(info_span!("apply")).await {
        if let Some(reason) = failure.needs_attention() {
            let generation = object.meta().generation;
            let waits = matches!(&failure, ReconcileError::Effect(source) if source.waits());
            let obstruction = Obstruction { reason, message: chain(&failure), generation, waits };
            K::obstruct(&mut observed, recorded(context, &uid, obstruction));
            let plan = sealed_plan(context, &*object, &observed)?;
            async {
                report::status(context, &*object, &plan.status).await?;
                report::events(context, &*object, &plan.events).await;
                Ok::<_, ReconcileError>(())
            }
            .instrument(info_span!("report"))
            .await?;
        }
        return Err(failure);
    }
    let traces = context.traces.as_ref();
    let traces = traces.map(|traces| (traces, K::spans(&observed, &plan.status, context.now())));
    context.obstructions.remove(&uid);
    async {
        let written = report::status(context, &*object, &plan.status).await?;
        if let Some((traces, spans)) = traces {
            traces.ended(spans);
        }
        context.inbox.record(&uid, &seen);
        report::events(context, &*object, &plan.events).await;
        let settled = written.and_then(|version| settle(context, &*object, observed, &plan, version));
        Ok(settled.map_or(plan.requeue, |same| same.requeue))
    }
    .instrument(info_span!("report"))
    .await
}

/// Remembers an object whose plan stays the same now that its status is written as this version, and returns the plan that follows.
/// The object's change need not be answered, because the answer would be that plan. Everything else that changed queues the object by
/// itself.
fn settle<K: Observe>(
    context: &Context,
    object: &K,
    mut observed: K::Observed,
    plan: &Plan<K::Status>,
    version: String,
) -> Option<Plan<K::Status>> {
    let (namespace, uid) = (object.namespace()?, object.uid()?);
    let live = get(K::store(context), &namespace, &object.name_any())?;
    let as_written = live.meta().resource_version.as_ref() == Some(&version)
        && live.status() == Some(&plan.status)
        // Somebody may have changed the object after it was observed and before its status was written.
        && same_metadata(live.meta(), object.meta());
    let now = context.now();
    if !as_written || !K::recorded(&mut observed, plan.status.clone(), context.written.get(&uid)?) {
        return None;
    }
    let next = K::plan(&observed, now);
    if next.desired != plan.desired || next.effects != plan.effects || next.status != plan.status {
        return None;
    }
    let due = next.requeue.map(|wait| Instant::now() + wait);
    context.settled.insert(&uid, Settled { version, due });
    Some(next)
}

/// Plans and seals the status of the plan.
fn sealed_plan<K: Observe>(
    context: &Context,
    object: &K,
    observed: &K::Observed,
) -> Result<Plan<K::Status>, SealError> {
    let mut plan = info_span!("plan").in_scope(|| K::plan(observed, context.now()));
    let uid = object.meta().uid.as_deref().unwrap_or_default();
    // The same status has the same seal.
    plan.status.set_seal(object.status().and_then(|status| status.seal().map(str::to_owned)));
    if object.status() != Some(&plan.status) || object.check_seal(context) != StatusSeal::Valid {
        let seal = context.seal.of_status(&K::kind(&()), uid, &plan.status)?;
        plan.status.set_seal(seal);
    }
    Ok(plan)
}

/// Records an obstruction and returns the one to observe. That is the recorded one while the object's backoff lasts: the
/// API server may word a refusal differently each time, and every write of the status triggers another reconciliation.
fn recorded(context: &Context, uid: &str, obstruction: Obstruction) -> Obstruction {
    let same = |known: &Obstruction| (known.reason, known.generation) == (obstruction.reason, obstruction.generation);
    if context.backoff.rests(uid)
        && let Some(known) = context.obstructions.get(uid).filter(same)
    {
        return known;
    }
    context.obstructions.insert(uid, obstruction.clone());
    obstruction
}

/// Reconciles every queued object, until the queue is closed and running reconciliations have finished.
pub async fn control<K: Observe>(context: Arc<Context>, queue: UnboundedReceiver<ObjectRef<K>>) {
    let listed = K::store(&context).listed();
    let config = Config::default().concurrency(CONCURRENCY).debounce(DEBOUNCE);
    let given = Given::default();
    let one = |listed: Arc<Listed<K>>, context: Arc<Context>| {
        let (namespace, object_name) = (listed.namespace().unwrap_or_default(), listed.name_any());
        given.begun(&namespace, &object_name);
        let Some(object) = get(K::store(&context), &namespace, &object_name) else {
            // It was deleted while it was queued.
            context.queues.waiting().ended(&K::kind(&()), &namespace, &object_name);
            let gone = async move {
                delete_shared(&context, &namespace).await?;
                Ok::<_, ReconcileError>(Action::await_change())
            };
            return gone.boxed();
        };
        let generation = object.meta().generation;
        let span = info_span!("reconcile", kind = %K::kind(&()), namespace, name = object_name, generation);
        let work = async move {
            let (uid, began) = (object.uid().unwrap_or_default(), Instant::now());
            let result = attend(object, &context).await;
            if !matches!(result, Ok((_, false))) {
                let failure = result.as_ref().err().map(ReconcileError::category);
                context.metrics.reconciled(&K::kind(&()), began.elapsed(), failure);
            }
            match &result {
                Ok(_) => context.backoff.forget(&uid),
                Err(failure) => {
                    error!(
                        category = failure.category(),
                        error = chain(failure),
                        "reconciliation failed; it will be retried"
                    );
                }
            }
            result.map(|(again, _)| again.map_or_else(Action::await_change, Action::requeue))
        };
        // A task of its own: kube's runner polls all futures whenever one of them is woken. Dropping the handle cancels it.
        let task = AbortOnDropHandle::new(tokio::spawn(work.instrument(span)));
        async move { task.await.unwrap_or_else(|ended| resume_unwind(ended.into_panic())) }.boxed()
    };
    let failed = |object: Arc<Listed<K>>, _: &ReconcileError, context: Arc<Context>| {
        Action::requeue(context.backoff.failed(&object.uid().unwrap_or_default()))
    };
    controller::applier(one, failed, context.clone(), listed, Turns::of(queue, given.clone()), config)
        .for_each(|result| async {
            // Failed reconciliations are logged above. The remaining error is an object that was deleted while queued.
            if let Err(failure) = result {
                if let controller::Error::ObjectNotFound(gone) = &failure {
                    let namespace = gone.namespace.as_deref().unwrap_or_default();
                    given.begun(namespace, &gone.name);
                    context.queues.waiting().ended(&K::kind(&()), namespace, &gone.name);
                    if let Err(failure) = delete_shared(&context, namespace).await {
                        warn!(category = failure.category(), error = chain(&failure), "the next sweep tries again");
                    }
                }
                debug!(error = chain(&failure), "not reconciled");
            }
        })
        .await;
}
