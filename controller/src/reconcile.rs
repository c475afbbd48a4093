//! Reconciliation: observe → plan → apply → report, for one object and for all objects of a kind.

use std::{sync::Arc, time::Duration};

use codex_crds::Reason;
use codex_plan::{Obstruction, Plan, Sealable};
use futures::{FutureExt, StreamExt, channel::mpsc::UnboundedReceiver};
use kube::{
    ResourceExt,
    runtime::{
        controller::{self, Action, Config},
        reflector::{ObjectRef, Store},
    },
};
use tokio::time::Instant;
use tracing::{Instrument, debug, error, info_span};

use crate::{
    apply::{ApplyError, apply, apply_cycles},
    context::Context,
    effects::{EffectError, carry_out},
    error::chain,
    observe::{Observe, ObserveError, requests},
    report::{self, ReportError},
    seal::SealError,
};

/// The number of objects of a kind that are reconciled concurrently.
const CONCURRENCY: u16 = 16;
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
    drop(observed);
    context.obstructions.remove(&uid);
    async {
        report::status(context, &*object, &plan.status).await?;
        if let Some((traces, spans)) = traces {
            traces.ended(spans);
        }
        context.inbox.record(&uid, &seen);
        report::events(context, &*object, &plan.events).await;
        Ok(plan.requeue)
    }
    .instrument(info_span!("report"))
    .await
}

/// Plans and seals the status of the plan.
fn sealed_plan<K: Observe>(
    context: &Context,
    object: &K,
    observed: &K::Observed,
) -> Result<Plan<K::Status>, SealError> {
    let mut plan = info_span!("plan").in_scope(|| K::plan(observed, context.now()));
    let uid = object.meta().uid.as_deref().unwrap_or_default();
    let seal = context.seal.of_status(&K::kind(&()), uid, &plan.status)?;
    plan.status.set_seal(seal);
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
    let store = Store::clone(K::store(&context));
    let config = Config::default().concurrency(CONCURRENCY).debounce(DEBOUNCE);
    let one = |object: Arc<K>, context: Arc<Context>| {
        let (namespace, object_name) = (object.namespace().unwrap_or_default(), object.name_any());
        let generation = object.meta().generation;
        let span = info_span!("reconcile", kind = %K::kind(&()), namespace, name = object_name, generation);
        if let Some(waited) = context.queues.waiting().ended(&K::kind(&()), &namespace, &object_name) {
            context.metrics.waited(&K::kind(&()), waited);
        }
        async move {
            let (uid, began) = (object.uid().unwrap_or_default(), Instant::now());
            let result = reconcile(object, &context).await;
            context.metrics.reconciled(
                &K::kind(&()),
                began.elapsed(),
                result.as_ref().err().map(ReconcileError::category),
            );
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
            result.map(|again| again.map_or_else(Action::await_change, Action::requeue))
        }
        .instrument(span)
        .boxed()
    };
    let failed = |object: Arc<K>, _: &ReconcileError, context: Arc<Context>| {
        Action::requeue(context.backoff.failed(&object.uid().unwrap_or_default()))
    };
    controller::applier(one, failed, context.clone(), store, requests(queue), config)
        .for_each(|result| async {
            // Failed reconciliations are logged above. The remaining error is an object that was deleted while queued.
            if let Err(failure) = result {
                if let controller::Error::ObjectNotFound(gone) = &failure {
                    let namespace = gone.namespace.as_deref().unwrap_or_default();
                    context.queues.waiting().ended(&K::kind(&()), namespace, &gone.name);
                }
                debug!(error = chain(&failure), "not reconciled");
            }
        })
        .await;
}
