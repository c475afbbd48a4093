//! The traits of the kinds in the list of [`kinds`](crate::kinds).

use std::{fmt::Debug, sync::Arc};

use codex_plan::{Obstruction, Plan, Received, Sealable, StatusSeal, trace::Span};
use jiff::Timestamp;
use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::Condition};
use kube::Resource;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    cache::{Cache, Names},
    error::ObserveError,
    reflector::WatchScope,
    stores::Stores,
    triggers::Triggers,
};
use crate::context::Context;

/// A kind that the controller watches.
pub trait Kind: Names + Resource<Scope: WatchScope> + Clone + Debug + DeserializeOwned + Send + Sync + 'static {
    /// Returns the value of the metric label `phase`.
    fn phase(&self) -> String;

    /// Returns when it got its phase, if its status says so.
    fn phase_since(&self) -> Option<Timestamp> {
        None
    }

    /// Returns the value of the metric label `ring`, which is empty for a kind without rings.
    fn ring(&self) -> String {
        String::new()
    }

    /// Returns its conditions.
    fn conditions(&self) -> &[Condition] {
        &[]
    }

    /// Queues the objects whose plans depend on this one, after it was created, changed or deleted.
    fn changed(&self, triggers: &Triggers);
}

/// A kind that the controller reconciles.
pub trait Observe: Kind + Resource<Scope = NamespaceResourceScope> + Serialize {
    /// The type of its status.
    type Status: Sealable + PartialEq + Send + Sync;
    /// The input of its plan.
    type Observed: Send + Sync;

    /// Returns why its objects in a namespace cannot be planned: a kind that their plans depend on may not be listed.
    fn unknown(stores: &Stores, namespace: &str) -> Option<String>;

    /// Returns its cache.
    fn store(context: &Context) -> &Cache<Self>;

    /// Returns its status.
    fn status(&self) -> Option<&Self::Status>;

    /// Observes the object and everything that its plan depends on.
    fn observe(self: Arc<Self>, context: &Context)
    -> impl Future<Output = Result<Self::Observed, ObserveError>> + Send;

    /// Replaces its status.
    fn set_status(&mut self, status: Option<Self::Status>);

    /// Returns what the seal of its status says.
    fn check_seal(&self, context: &Context) -> StatusSeal {
        let check = || {
            context.seal.check_status(&Self::kind(&()), self.meta().uid.as_deref().unwrap_or_default(), self.status())
        };
        let mut found = None;
        // What was found out about this version of the object is not computed again.
        if context.known.holds(self, "sealed status", || *found.insert(check()) == StatusSeal::Valid) {
            return StatusSeal::Valid;
        }
        found.unwrap_or(StatusSeal::Broken)
    }

    /// Returns the object without the parts of its status that carry no valid seal.
    #[must_use]
    fn believed(mut self, context: &Context) -> Self {
        let seal = self.check_seal(context);
        if seal != StatusSeal::Valid {
            let status = self.status().map(|status| status.clone().believed(&seal));
            self.set_status(status);
        }
        self
    }

    /// Returns the reports in an observation.
    fn reports(observed: &Self::Observed) -> &[Received];

    /// Adds what apply met to an observation.
    fn obstruct(observed: &mut Self::Observed, obstruction: Obstruction);

    /// Makes an observation what it is after its plan's status was written. Returns false for a kind whose next observation may differ
    /// in more than that.
    fn recorded(_observed: &mut Self::Observed, _status: Self::Status, _at: Timestamp) -> bool {
        false
    }

    /// Returns the plan for an observation.
    fn plan(observed: &Self::Observed, now: Timestamp) -> Plan<Self::Status>;

    /// Returns the spans that end with the status of a plan.
    fn spans(observed: &Self::Observed, next: &Self::Status, now: Timestamp) -> Vec<Span>;
}
