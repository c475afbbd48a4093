//! A `CycloneDX` ML-BOM of a model: what it was made of, and what was measured. Pure.
//!
//! Source: <https://cyclonedx.org/docs/1.6/json/>. The same files give the same bytes, so the document has no time, and its serial
//! number follows from its content.

use codex_configs::Method;
use codex_provenance::{Sha256, promotion};
use codex_verdict::{Bound, Gate, GateResult};
use serde_json::{Map, Value, json};

use super::content::{Content, Evaluated};
use crate::{
    evaluation::Shown,
    verify::{
        describe,
        given::{Outcome, Valid},
    },
};

/// The `bom-ref` of the model.
const MODEL: &str = "model";

/// Returns the document.
///
/// # Errors
/// A sentence: the model cannot be described without its files.
pub(super) fn document(content: &Content) -> Result<Value, String> {
    let Some(manifest) = content.manifest.found() else {
        let why = content.manifest.lack().unwrap_or_default();
        return Err(format!("no ML-BOM can be written without the files of the model: {why}"));
    };
    let digest = manifest.digest();
    let files =
        manifest.files.iter().map(|file| json!({ "type": "file", "name": file.path, "hashes": [hash(file.sha256)] }));
    let (training_data, measured_on) = (training_data(content), measured_on(content));
    let datasets: Vec<Value> = training_data.iter().map(|data| json!({ "ref": data["bom-ref"] })).collect();
    let mut model = json!({
        "type": "machine-learning-model",
        "bom-ref": MODEL,
        "name": content.name,
        "version": digest,
        "components": files.collect::<Vec<_>>(),
        "modelCard": {
            "modelParameters": parameters(content, &datasets),
            "quantitativeAnalysis": { "performanceMetrics": performance(content) },
        },
        "properties": properties(content),
    });
    if let Some(base) = content.metadata.found().and_then(|metadata| metadata.base.as_ref()) {
        let name = base.repository.clone().unwrap_or_else(|| base.source.display().to_string());
        let ancestor = json!({ "type": "machine-learning-model", "name": name, "version": base.digest });
        model["pedigree"] = json!({ "ancestors": [ancestor] });
    }
    let data: Vec<Value> = training_data.into_iter().chain(measured_on).collect();
    let needs: Vec<&Value> = data.iter().map(|data| &data["bom-ref"]).collect();
    let mut document = json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": { "components": [{ "type": "application", "name": "codex", "version": env!("CARGO_PKG_VERSION") }] },
            "component": model,
        },
        "dependencies": [{ "ref": MODEL, "dependsOn": needs }],
        "components": data,
    });
    document["serialNumber"] = json!(serial(&Sha256::of(document.to_string())));
    Ok(document)
}

/// Returns a serial number in the form of a UUID of version 8, whose bits the digest of the content gives.
fn serial(digest: &Sha256) -> String {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.bytes()[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let digits = hex::encode(bytes);
    format!("urn:uuid:{}-{}-{}-{}-{}", &digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..])
}

fn hash(digest: Sha256) -> Value {
    json!({ "alg": "SHA-256", "content": digest })
}

fn data(name: &str, digest: Sha256, role: &str) -> Value {
    json!({ "type": "data", "bom-ref": format!("{role}/{name}"), "name": name, "hashes": [hash(digest)] })
}

/// Returns the files that the model was trained on, from the run or else from the promotion.
fn training_data(content: &Content) -> Vec<Value> {
    let role = "training-data";
    if let Some(checksums) = content.checksums.found() {
        return checksums.0.iter().map(|(name, digest)| data(name, digest.0, role)).collect();
    }
    let stated = promoted(content).and_then(|promotion| promotion.reasons.training.data());
    stated.into_iter().flatten().map(|(name, digest)| data(name, digest.0, role)).collect()
}

/// Returns the files that the model was measured on. A file that several evaluations read is there once.
fn measured_on(content: &Content) -> Vec<Value> {
    let own = content.evaluations.iter().flat_map(|it| it.report.data().map(|(name, digest)| (name, digest.0)));
    let stated = promoted(content).into_iter().flat_map(|promotion| &promotion.reasons.evaluations);
    let stated = stated.flat_map(|it| it.data.iter().map(|(name, digest)| (name.as_str(), digest.0)));
    let mut files: Vec<(&str, Sha256)> = own.chain(stated).collect();
    files.sort_unstable();
    files.dedup();
    // Names are not unique among evaluations, and a bom-ref has to be.
    let named = |(name, digest): (&str, Sha256)| data(name, digest, &format!("evaluation-data/{}", digest.short()));
    files.into_iter().map(named).collect()
}

fn promoted(content: &Content) -> Option<&promotion::Promotion> {
    let Outcome::Valid(valid) = &content.signatures else { return None };
    valid.promoted.as_ref().map(|promoted| &promoted.promotion)
}

fn parameters(content: &Content, datasets: &[Value]) -> Value {
    let mut parameters = json!({
        "task": "text-generation",
        "architectureFamily": "transformer",
        "inputs": [{ "format": "text/plain" }],
        "outputs": [{ "format": "text/plain" }],
    });
    if !datasets.is_empty() {
        parameters["datasets"] = json!(datasets);
    }
    if let Some(method) = content.config.found().map(|config| config.spec().settings.training.method) {
        let approach = if method == Method::Grpo { "reinforcement-learning" } else { "supervised" };
        parameters["approach"] = json!({ "type": approach });
    }
    parameters
}

/// Returns every measurement with its bounds: those of gates with the bounds that the verdict compared, at the confidence of the gate.
fn performance(content: &Content) -> Vec<Value> {
    let mut metrics = Vec::new();
    for evaluated in &content.evaluations {
        let on = slice(evaluated.report.preset(), evaluated.report.data().find(|(name, _)| *name == "problems"));
        let judged = judged(evaluated);
        for (name, measurement) in evaluated.report.metrics() {
            // What a gate compared is a difference, and the measurement has its own entry.
            if judged.iter().any(|(gate, _)| gate.metric.name() == name && !compares(gate)) {
                continue;
            }
            if let Some(shown) = Shown::of(name, measurement) {
                metrics.push(metric(name, Some(&shown.value), &on, Some((&shown.lower, &shown.upper))));
            }
        }
        for (gate, result) in judged {
            let bounds = result.lower.as_ref().zip(result.upper.as_ref());
            let bounds = bounds.map(|(lower, upper)| (lower.0.as_str(), upper.0.as_str()));
            let name = if compares(gate) { difference(&result.metric) } else { result.metric.clone() };
            metrics.push(metric(&name, result.value.as_ref().map(|value| value.0.as_str()), &on, bounds));
        }
    }
    let stated = promoted(content).into_iter().flat_map(|promotion| &promotion.reasons.evaluations);
    for evaluation in stated {
        let problems = evaluation.data.get_key_value("problems").map(|(name, digest)| (name.as_str(), *digest));
        let on = format!("{}, as promoted", slice(&evaluation.preset, problems));
        for gate in &evaluation.gates {
            let bounds = gate.lower.as_deref().zip(gate.upper.as_deref());
            let is_difference = gate.better_than.is_some() || gate.not_worse_than.is_some();
            let name = if is_difference { difference(&gate.metric) } else { gate.metric.clone() };
            metrics.push(metric(&name, gate.value.as_deref(), &on, bounds));
        }
    }
    metrics
}

/// Whether a gate compares with another evaluation.
fn compares(gate: &Gate) -> bool {
    matches!(gate.bound, Bound::BetterThan(_) | Bound::NotWorseThan(_))
}

fn difference(metric: &str) -> String {
    format!("difference of {metric}")
}

fn judged(evaluated: &Evaluated) -> &[(Gate, GateResult)] {
    match &evaluated.gates {
        Some(Ok(gates)) => gates,
        _ => &[],
    }
}

/// Returns what a metric was computed on.
fn slice(preset: &str, problems: Option<(&str, codex_provenance::DataDigest)>) -> String {
    match problems {
        Some((_, digest)) => format!("{preset}, problems {digest}"),
        None => preset.to_owned(),
    }
}

fn metric(name: &str, value: Option<&str>, on: &str, bounds: Option<(&str, &str)>) -> Value {
    let mut metric = Map::from_iter([("type".to_owned(), json!(name)), ("slice".to_owned(), json!(on))]);
    metric.extend(value.map(|value| ("value".to_owned(), json!(value))));
    let interval = bounds.map(|(lower, upper)| json!({ "lowerBound": lower, "upperBound": upper }));
    metric.extend(interval.map(|interval| ("confidenceInterval".to_owned(), interval)));
    metric.into()
}

/// Returns what `CycloneDX` has no field for: digests, gates with their verdicts, the promotion and who signed.
fn properties(content: &Content) -> Vec<Value> {
    let property = |name: &str, value: String| json!({ "name": format!("codex:{name}"), "value": value });
    let mut properties = Vec::new();
    if let Some(metadata) = content.metadata.found() {
        properties.push(property("configDigest", metadata.config_digest.to_string()));
    }
    for evaluated in &content.evaluations {
        properties.push(property("reportDigest", evaluated.report.digest().to_string()));
        for (gate, result) in judged(evaluated) {
            properties.push(property("gate", format!("{} {}: {}", gate.metric, gate.bound, result.verdict)));
        }
    }
    if let Outcome::Valid(valid) = &content.signatures {
        let Valid { promoted, .. } = &**valid;
        properties.push(property("signedBy", valid.signer()));
        if let Some(promoted) = promoted {
            properties.push(property("ring", promoted.promotion.reasons.ring.clone()));
            properties.push(property("promotionDigest", promoted.digest.to_string()));
            let gates = promoted.promotion.reasons.evaluations.iter().flat_map(|evaluation| &evaluation.gates);
            properties.extend(gates.map(|gate| property("promotedGate", describe(gate))));
        }
    }
    properties
}
