//! A `CycloneDX` ML-BOM of a model: what it was made of, and what was measured. Pure.
//!
//! The same files give the same bytes.

use codex_configs::Method;
use codex_provenance::{
    Sha256,
    cyclonedx::{Bom, Metric, difference, slice},
    promotion,
};
use codex_verdict::{Bound, Decimal, Gate, GateResult};
use serde_json::{Value, json};

use super::content::{Content, Evaluated};
use crate::{
    evaluation::Shown,
    verify::{
        describe,
        given::{Outcome, Valid},
    },
};

/// Returns the document.
///
/// # Errors
/// A sentence: the model cannot be described without its files.
pub(super) fn document(content: &Content) -> Result<Value, String> {
    let Some(manifest) = content.manifest.found() else {
        let why = content.manifest.lack().unwrap_or_default();
        return Err(format!("no ML-BOM can be written without the files of the model: {why}"));
    };
    let base = content.metadata.found().and_then(|metadata| metadata.base.as_ref());
    let method = content.config.found().map(|config| config.spec().settings.training.method);
    let bom = Bom {
        tool: json!({ "type": "application", "name": "codex", "version": env!("CARGO_PKG_VERSION") }),
        name: &content.name,
        digest: manifest.digest(),
        files: &manifest.files,
        base: base
            .map(|base| (base.repository.clone().unwrap_or_else(|| base.source.display().to_string()), base.digest)),
        trained_on: trained_on(content),
        measured_on: measured_on(content),
        approach: method.map(|it| if it == Method::Grpo { "reinforcement-learning" } else { "supervised" }),
        metrics: metrics(content),
        properties: properties(content),
    };
    Ok(bom.document())
}

/// Returns the files that the model was trained on, from the run or else from the promotion.
fn trained_on(content: &Content) -> Vec<(&str, Sha256)> {
    let files = match content.checksums.found() {
        Some(checksums) => Some(&checksums.0),
        None => promoted(content).and_then(|promotion| promotion.reasons.training.data()),
    };
    files.into_iter().flatten().map(|(name, digest)| (name.as_str(), digest.0)).collect()
}

/// Returns the files that the model was measured on.
fn measured_on(content: &Content) -> Vec<(&str, Sha256)> {
    let own = content.evaluations.iter().flat_map(|it| it.report.data().map(|(name, digest)| (name, digest.0)));
    let stated = promoted(content).into_iter().flat_map(|promotion| &promotion.reasons.evaluations);
    let stated = stated.flat_map(|it| it.data.iter().map(|(name, digest)| (name.as_str(), digest.0)));
    own.chain(stated).collect()
}

fn promoted(content: &Content) -> Option<&promotion::Promotion> {
    let Outcome::Valid(valid) = &content.signatures else { return None };
    valid.promoted.as_ref().map(|promoted| &promoted.promotion)
}

/// Returns every measurement with its bounds: those of gates with the bounds that the verdict compared, at the confidence of the gate.
fn metrics(content: &Content) -> Vec<Metric> {
    let mut metrics = Vec::new();
    for evaluated in &content.evaluations {
        let problems = evaluated.report.data().find(|(name, _)| *name == "problems").map(|(_, digest)| digest);
        let on = slice(evaluated.report.preset(), problems);
        let metric = |name: String, value, bounds| Metric { name, on: on.clone(), value, bounds };
        let judged = judged(evaluated);
        for (name, measurement) in evaluated.report.metrics() {
            // What a gate compared is a difference, and the measurement has its own entry.
            if judged.iter().any(|(gate, _)| gate.metric.name() == name && !compares(gate)) {
                continue;
            }
            if let Some(shown) = Shown::of(name, measurement) {
                metrics.push(metric(name.to_owned(), Some(shown.value), Some((shown.lower, shown.upper))));
            }
        }
        for (gate, result) in judged {
            let text = |number: &Option<Decimal>| number.as_ref().map(|number| number.0.clone());
            let name = if compares(gate) { difference(&result.metric) } else { result.metric.clone() };
            metrics.push(metric(name, text(&result.value), text(&result.lower).zip(text(&result.upper))));
        }
    }
    let stated = promoted(content).into_iter().flat_map(|promotion| &promotion.reasons.evaluations);
    metrics.extend(
        stated.flat_map(Metric::of_gates).map(|metric| Metric { on: format!("{}, as promoted", metric.on), ..metric }),
    );
    metrics
}

/// Whether a gate compares with another evaluation.
fn compares(gate: &Gate) -> bool {
    matches!(gate.bound, Bound::BetterThan(_) | Bound::NotWorseThan(_))
}

fn judged(evaluated: &Evaluated) -> &[(Gate, GateResult)] {
    match &evaluated.gates {
        Some(Ok(gates)) => gates,
        _ => &[],
    }
}

/// Returns what `CycloneDX` has no field for: digests, gates with their verdicts, the promotion and who signed.
fn properties(content: &Content) -> Vec<(&'static str, String)> {
    let mut properties = Vec::new();
    if let Some(metadata) = content.metadata.found() {
        properties.push(("configDigest", metadata.config_digest.to_string()));
        properties.extend(metadata.adapter.map(|adapter| ("adapterDigest", adapter.to_string())));
    }
    for evaluated in &content.evaluations {
        properties.push(("reportDigest", evaluated.report.digest().to_string()));
        for (gate, result) in judged(evaluated) {
            properties.push(("gate", format!("{} {}: {}", gate.metric, gate.bound, result.verdict)));
        }
    }
    if let Outcome::Valid(valid) = &content.signatures {
        let Valid { promoted, .. } = &**valid;
        properties.push(("signedBy", valid.signer()));
        if let Some(promoted) = promoted {
            properties.push(("ring", promoted.promotion.reasons.ring.clone()));
            properties.push(("promotionDigest", promoted.digest.to_string()));
            let gates = promoted.promotion.reasons.evaluations.iter().flat_map(|evaluation| &evaluation.gates);
            properties.extend(gates.map(|gate| ("promotedGate", describe(gate))));
        }
    }
    properties
}
