//! The plan of a ReasoningPod: `View` → `Stage` → children, effects and status. Pure.

mod autoscaling;
mod bundles;
mod canary;
mod children;
mod effects;
mod endpoints;
mod evidence;
mod guarded;
mod lent;
mod observed;
mod parity;
mod policy;
mod servers;
mod shadow;
mod signing;
mod stage;
mod status;
mod target;
mod trust;
mod view;

use codex_crds::ReasoningPodStatus;
use jiff::Timestamp;

pub use bundles::{BundleNames, bundle_names, manifest};
pub use endpoints::{ForeignSlice, SERVICE_NAME, WRITER, WRITTEN_BY};
pub use observed::{
    Bundle, Compared, Incumbent, LentPromotion, Mirrored, ObservedReasoningPod, RecordedPromotion, SignedModel,
    SignedPromotion, Signer, TrustedKey, TrustedRoot,
};

use crate::{events::events, plan::Plan, throttle::whole_seconds};
use stage::Stage;
use view::View;

/// Returns the plan for a ReasoningPod.
pub fn plan(observed: &ObservedReasoningPod, now: Timestamp) -> Plan<ReasoningPodStatus> {
    let view = View::of(observed, whole_seconds(now));
    let stage = Stage::of(&view);
    let desired = children::children(&view, &stage);
    let effects = effects::effects(&view, &stage);
    let (status, requeue) = status::status(&view, &stage);
    let events = events(&view.status.conditions, &status.conditions, view.obstruction);
    Plan { desired, effects, status, events, requeue }
}
