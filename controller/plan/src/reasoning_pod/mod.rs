//! The plan of a ReasoningPod: `View` → `Stage` → children, effects and status. Pure.

mod agreement;
mod autoscaling;
mod bundles;
mod canary;
mod children;
mod criteria;
mod cycles;
mod effects;
mod endpoints;
mod evidence;
mod generated;
mod guarded;
mod idle;
mod lent;
mod observed;
mod parity;
mod policy;
mod redeploy;
mod route;
mod servers;
mod shadow;
mod signing;
mod stage;
mod status;
mod target;
mod trial;
mod trust;
mod view;

use codex_crds::ReasoningPodStatus;
use jiff::Timestamp;

pub use bundles::{BundleNames, bundle_names, manifest};
pub use cycles::{Aims, CycleKind, CycleObject, Named, ObservedCycle, aims, cycles};
pub use endpoints::{ForeignSlice, SERVICE_NAME, WRITER, WRITTEN_BY};
pub(crate) use redeploy::planned;

pub use observed::{
    Bundle, Compared, HeldProof, Incumbent, LentPromotion, Mirrored, ObservedReasoningPod, RecordedPromotion,
    SignedModel, SignedPromotion, Signer, TrustedKey, TrustedRoot,
};

use crate::{events::events, plan::Plan, throttle::whole_seconds};
use stage::Stage;
use view::View;

/// Returns the plan for a ReasoningPod.
pub fn plan(observed: &ObservedReasoningPod, now: Timestamp) -> Plan<ReasoningPodStatus> {
    let view = View::of(observed, whole_seconds(now));
    let stage = Stage::of(&view);
    let mut desired = children::children(&view, &stage);
    generated::children(&view, &mut desired);
    let mut effects = effects::effects(&view, &stage);
    effects.extend(trial::effects(&view));
    let (status, requeue) = status::status(&view, &stage);
    let mut events = events(&view.status.conditions, &status.conditions, view.obstruction);
    redeploy::events(&view, &status, &mut events);
    Plan { desired, effects, status, events, requeue }
}
