//! SLSA verification summary v1: the promotion of a model into a ring, against a policy. Pure.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{OPERATOR, check_text, descriptor, named};
use crate::{
    canonical::canonical,
    digest::{ModelDigest, Sha256},
    promotion::{PolicyKey, Promotion},
};

/// The name of the promotion statement among the inputs.
const PROMOTION: &str = "promotion";
/// The name of the OMS statement among the inputs.
const SIGNATURE: &str = "signature";

/// Returns the predicate. `others` are further statements that it was made with, by name.
pub(super) fn predicate(promotion: &Promotion, others: &[(&str, Sha256)]) -> Value {
    let own = [(SIGNATURE, promotion.reasons.oms_payload.0), (PROMOTION, promotion.digest().0)];
    let inputs = own.iter().chain(others).map(|(name, digest)| {
        let mut entry = descriptor(name, *digest);
        entry["mediaType"] = json!("application/vnd.in-toto+json");
        entry
    });
    let mut predicate = json!({
        "verifier": { "id": OPERATOR },
        "resourceUri": resource(&promotion.reasons.ring, promotion.model),
        "policy": policy(promotion),
        "inputAttestations": inputs.collect::<Vec<_>>(),
        "verificationResult": "PASSED",
        "verifiedLevels": levels(&promotion.reasons.ring),
        "slsaVersion": "1.0",
    });
    if let Some(time) = time(promotion) {
        predicate["timeVerified"] = json!(time);
    }
    predicate
}

/// Returns the URI of a model in a ring, so that a summary for one ring does not serve for another.
fn resource(ring: &str, model: ModelDigest) -> String {
    format!("https://codex-ml.dev/rings/{ring}/models/sha256/{model}")
}

/// Returns the levels that a promotion verifies; that of the ring is a custom value, which must not begin with `SLSA_`.
fn levels(ring: &str) -> Value {
    json!(["SLSA_BUILD_LEVEL_1", format!("CODEX_RING_{ring}")])
}

/// Returns the time of the verification: that of the last verdict, as the promotion statement names it. The time of signing is not
/// used, because it would differ when the same promotion is signed again.
fn time(promotion: &Promotion) -> Option<&str> {
    let evaluations = promotion.reasons.evaluations.iter();
    evaluations.map(|it| it.completed_at.as_str()).max_by_key(|time| time.parse::<Timestamp>().ok())
}

/// Returns the policies with a rule for the ring. One has its own URI and the digest of its rule; several have one URI, and a digest
/// over the digests of all.
fn policy(promotion: &Promotion) -> Value {
    let reasons = &promotion.reasons;
    let mut keys: Vec<PolicyKey> = reasons.policies.iter().map(PolicyKey::of).collect();
    keys.sort_unstable();
    match &keys[..] {
        [] => json!({
            "uri": "https://codex-ml.dev/policies/none",
            "name": "no promotion policy has a rule for this ring: the gates of the evaluations alone decided",
        }),
        [one] => json!({
            "uri": format!("https://codex-ml.dev/policies/{}/{}/rules/{}", one.kind, one.name, reasons.ring),
            "digest": { "sha256": one.rule },
        }),
        all => json!({
            "uri": format!("https://codex-ml.dev/policies/all/rules/{}", reasons.ring),
            "digest": { "sha256": Sha256::of(canonical(&keys)) },
            "annotations": { "policies": all },
        }),
    }
}

/// Checks that a summary is about this promotion: its model, ring, policies and statements.
pub(super) fn check(predicate: &Value, promotion: &Promotion) -> Result<(), String> {
    check_text(predicate, "/verifier/id", OPERATOR)?;
    check_text(predicate, "/verificationResult", "PASSED")?;
    check_text(predicate, "/resourceUri", &resource(&promotion.reasons.ring, promotion.model))?;
    let policy = policy(promotion);
    check_text(predicate, "/policy/uri", policy["uri"].as_str().unwrap_or_default())?;
    if let Some(digest) = policy.pointer("/digest/sha256").and_then(Value::as_str) {
        check_text(predicate, "/policy/digest/sha256", digest)?;
    }
    let levels = levels(&promotion.reasons.ring);
    if predicate["verifiedLevels"] != levels {
        return Err(format!("its verifiedLevels are not {levels}"));
    }
    if predicate.get("timeVerified").and_then(Value::as_str) != time(promotion) {
        return Err("its timeVerified is not the time of the last verdict".to_owned());
    }
    check_input(predicate, SIGNATURE, promotion.reasons.oms_payload.0)?;
    check_input(predicate, PROMOTION, promotion.digest().0)
}

/// Checks that a summary names a statement among its inputs.
pub(super) fn check_input(predicate: &Value, name: &str, digest: Sha256) -> Result<(), String> {
    let inputs = named(predicate, "/inputAttestations")?;
    match inputs.iter().find(|(found, _)| found == name) {
        Some((_, found)) if *found == digest => Ok(()),
        Some((_, found)) => Err(format!("its inputAttestations name another {name}: {found}, not {digest}")),
        None => Err(format!("its inputAttestations lack {name} with {digest}")),
    }
}
