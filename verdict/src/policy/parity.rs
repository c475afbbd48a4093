//! The demand that a shadow with the same model has proved parity. Pure.

use codex_provenance::promotion;

use super::RequiredParity;
use crate::{Ring, Rounding, Sample, bounds, decimal};

/// The confidence of the one-sided bounds that decide parity.
pub const PARITY_CONFIDENCE: f64 = 0.99;

/// What a shadow that serves the same model in the same ring has compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShadowParity {
    /// The name of the shadow.
    pub shadow: String,
    /// Whether its status says that parity holds.
    pub holds: bool,
    /// Requests that were compared.
    pub compared: u64,
    /// Compared requests with the same final answer.
    pub agreed: u64,
    /// The greatest share that it may answer differently, as its spec states it.
    pub max_divergence: String,
}

impl ShadowParity {
    /// Returns what a promotion statement says. It names only what held; the numbers are judged again.
    pub fn of_statement(parity: &promotion::Parity) -> Self {
        Self {
            shadow: parity.shadow.name.clone(),
            holds: true,
            compared: parity.compared,
            agreed: parity.agreed,
            max_divergence: parity.max_divergence.clone(),
        }
    }

    /// Returns the upper bound of the share of requests that are answered differently; `None` if the numbers give none.
    fn upper(&self) -> Option<f64> {
        let successes = self.compared.checked_sub(self.agreed)?;
        let found =
            (self.compared > 0).then(|| bounds(&Sample::Share { successes, n: self.compared }, PARITY_CONFIDENCE));
        found.flatten().map(|found| found.upper)
    }

    /// Returns the upper bound of the share of requests that are answered differently, rounded up; `None` if the numbers give none.
    pub fn bound(&self) -> Option<String> {
        self.upper().map(|upper| Rounding::Up.show(upper))
    }

    /// Whether it meets a demand.
    pub fn meets(&self, wanted: &RequiredParity) -> bool {
        self.falls_short(wanted).is_none()
    }

    /// Returns why it does not meet a demand.
    fn falls_short(&self, wanted: &RequiredParity) -> Option<String> {
        let Self { holds, compared, agreed, max_divergence, .. } = self;
        if compared < &u64::from(wanted.min_requests) {
            return Some(format!("has compared {compared} requests"));
        }
        let limits = [Some(max_divergence), wanted.max_divergence.as_ref()].into_iter().flatten();
        let Some(upper) = self.upper() else { return Some(format!("states {agreed} of {compared} requests")) };
        for limit in limits {
            if decimal::parse(limit).is_none_or(|limit| upper > limit) {
                let upper = Rounding::Up.show(upper);
                return Some(format!(
                    "may answer up to {upper} of the requests differently, and at most {limit} is allowed"
                ));
            }
        }
        (!holds).then(|| "has not proved parity".to_owned())
    }
}

/// Checks that one of these shadows has proved parity.
///
/// # Errors
/// What is missing, and what would satisfy the demand.
pub(super) fn check(wanted: &RequiredParity, ring: Ring, shadows: &[ShadowParity]) -> Result<(), String> {
    let mut closest = Vec::new();
    for shadow in shadows {
        match shadow.falls_short(wanted) {
            None => return Ok(()),
            Some(why) => closest.push(format!("ReasoningPod {} {why}", shadow.shadow)),
        }
    }
    let found = if closest.is_empty() { "there is no candidate".to_owned() } else { closest.join("; ") };
    let most = wanted.max_divergence.as_ref().map(|most| format!(" and maxDivergence {most}")).unwrap_or_default();
    Err(format!(
        "no shadow with this model in {ring} has proved parity with minRequests {}{most}: {found}: create a ReasoningPod with \
         spec.shadow, rolloutRing {ring} and the same model in this namespace, and keep it until its ParityHolding is True with that \
         many compared requests",
        wanted.min_requests
    ))
}
