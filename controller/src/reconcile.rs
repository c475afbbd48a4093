//! Observe → plan → apply → report, for one object and for all of a kind.

use std::{sync::Arc, time::Duration};

use codex_crds::{ConditionType, Reason};
use codex_plan::conditions::find;
use futures::{FutureExt, StreamExt, channel::mpsc::UnboundedReceiver};
use kube::{
    ResourceExt,
    runtime::{
        controller::{self, Action, Config},
        reflector::ObjectRef,
    },
};
use tokio::time::Instant;
use tracing::{Instrument, debug, error, info_span};

use crate::{
    apply::{ApplyError, apply},
    context::Context,
    effects::{EffectError, carry_out},
    error::chain,
    observe::{Observe, ObserveError, requests},
    report::{self, ReportError},
};

/// How many objects of a kind are looked at at once.
const CONCURRENCY: u16 = 16;
/// Changes that come together are looked at together.
const DEBOUNCE: Duration = Duration::from_millis(20);

/// Why an object is not where its plan wants it.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// Looking.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// Children.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// Signing.
    #[error(transparent)]
    Effect(#[from] EffectError),
    /// Status.
    #[error(transparent)]
    Report(#[from] ReportError),
}

impl ReconcileError {
    /// A word for metric labels.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Observe(source) => source.category(),
            Self::Apply(source) => source.category(),
            Self::Effect(source) => source.category(),
            Self::Report(source) => source.category(),
        }
    }

    /// Why a person has to do something, if one has to.
    fn needs_attention(&self) -> Option<Reason> {
        match self {
            Self::Apply(source) => source.needs_attention(),
            Self::Effect(source) => source.needs_attention(),
            Self::Observe(_) | Self::Report(_) => None,
        }
    }
}

/// Looks at one object and does what its plan says. Says when to look again.
///
/// # Errors
/// When I/O failed, somebody else's object stands in the way, or the API server refuses a child.
pub async fn reconcile<K: Observe>(object: Arc<K>, context: &Context) -> Result<Option<Duration>, ReconcileError> {
    // What is being deleted takes its children along by itself.
    if object.meta().deletion_timestamp.is_some() {
        return Ok(None);
    }
    let uid = object.uid().unwrap_or_default();
    let observed = object.clone().observe(context).instrument(info_span!("observe")).await?;
    let seen: Vec<_> =
        K::reports(&observed).iter().map(|received| (received.report.pod_uid.clone(), received.report.seq)).collect();
    let plan = info_span!("plan").in_scope(|| K::plan(&observed, context.now()));
    drop(observed);
    let done = async {
        apply(context, &*object, &plan.desired).await?;
        Ok::<_, ReconcileError>(carry_out(context, &plan.effects).await?)
    };
    if let Err(why) = done.instrument(info_span!("apply")).await {
        if let Some(reason) = why.needs_attention() {
            obstructed(context, &*object, plan.status, reason, &why).await?;
        }
        return Err(why);
    }
    async {
        report::status(context, &*object, &plan.status).await?;
        context.inbox.record(&uid, &seen);
        report::events(context, &*object, &plan.events).await;
        Ok(plan.requeue)
    }
    .instrument(info_span!("report"))
    .await
}

/// Says in the status that somebody else's object stands in the way, or that the API server refuses a child.
async fn obstructed<K: Observe>(
    context: &Context,
    object: &K,
    mut status: K::Status,
    reason: Reason,
    why: &ReconcileError,
) -> Result<(), ReportError> {
    let mut before = object.status().cloned();
    let before = before.as_mut().map(|status| std::mem::take(K::conditions(status))).unwrap_or_default();
    let generation = object.meta().generation;
    let told = find(&before, ConditionType::Stalled)
        .is_some_and(|stalled| stalled.reason == reason.name() && stalled.observed_generation == generation);
    if told && context.backoff.rests(object.meta().uid.as_deref().unwrap_or_default()) {
        // A refusal may be worded anew each time, and every write of the status wakes the object.
        return Ok(());
    }
    let sentence = chain(why);
    let conditions = K::conditions(&mut status);
    let stall = report::Stall { reason, sentence: &sentence, generation };
    *conditions = report::stalled(conditions, &before, &stall, context.now());
    // A plan that waits for what was refused leaves the status as it is; this one speaks of the spec as it stands.
    *K::observed_generation(&mut status) = generation;
    if report::status(context, object, &status).await? {
        let event = codex_plan::Event {
            type_: codex_plan::EventType::Warning,
            reason: reason.name().to_owned(),
            action: ConditionType::Stalled.name().to_owned(),
            note: sentence,
        };
        report::events(context, object, &[event]).await;
    }
    Ok(())
}

/// Looks at every object that is queued, until the queue is closed and what was begun is done.
pub async fn control<K: Observe>(context: Arc<Context>, queue: UnboundedReceiver<ObjectRef<K>>) {
    let store = K::store(&context).clone();
    let config = Config::default().concurrency(CONCURRENCY).debounce(DEBOUNCE);
    let one = |object: Arc<K>, context: Arc<Context>| {
        let (namespace, object_name) = (object.namespace().unwrap_or_default(), object.name_any());
        let generation = object.meta().generation;
        let span = info_span!("reconcile", kind = %K::kind(&()), namespace, name = object_name, generation);
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
                    error!(category = failure.category(), error = chain(failure), "failed; it is tried again");
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
    controller::applier(one, failed, context, store, requests(queue), config)
        .for_each(|result| async {
            // Failures were logged where they happened; what is left is an object that vanished from under its request.
            if let Err(failure) = result {
                debug!(error = chain(&failure), "not looked at");
            }
        })
        .await;
}
