//! ML-BOM, a `CycloneDX` document: what a model was made of, and what its verdict measured. Pure.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Build, check_text, test_result};
use crate::{
    cyclonedx::{Bom, FORMAT, Metric, VERSION, read_file},
    manifest::{File, Manifest},
    promotion::Promotion,
};

/// The place of the files of the model.
const FILES: &str = "/metadata/component/components";
/// The place of the measurements.
const METRICS: &str = "/metadata/component/modelCard/quantitativeAnalysis/performanceMetrics";
/// The place of the data.
const DATA: &str = "/components";

/// Returns the predicate.
pub(super) fn predicate(promotion: &Promotion, build: &Build) -> Value {
    let reasons = &promotion.reasons;
    let training = &reasons.training;
    // The record of a promotion names no evaluation, so their order may not count.
    let metrics: BTreeSet<Metric> = reasons.evaluations.iter().flat_map(Metric::of_gates).collect();
    let data = reasons.evaluations.iter().flat_map(|evaluation| &evaluation.data);
    Bom {
        tool: json!({ "type": "application", "name": "codex-controller" }),
        name: &training.run.name,
        digest: promotion.model,
        files: &build.files,
        base: training.base.as_ref().map(|base| {
            let name = base.source.clone().unwrap_or_else(|| base.model.to_string());
            (name, base.model)
        }),
        trained_on: training.data().into_iter().flatten().map(|(name, digest)| (name.as_str(), digest.0)).collect(),
        measured_on: data.map(|(name, digest)| (name.as_str(), digest.0)).collect(),
        approach: None,
        metrics: metrics.into_iter().collect(),
        properties: properties(promotion),
    }
    .document()
}

/// Returns the digests of configuration, adapter and reports, the ring, and the gates with their verdicts.
fn properties(promotion: &Promotion) -> Vec<(&'static str, String)> {
    let reasons = &promotion.reasons;
    let training = &reasons.training;
    let reports: BTreeSet<String> = reasons.evaluations.iter().map(|it| it.report_digest.to_string()).collect();
    let gates = reasons.evaluations.iter().flat_map(|evaluation| &evaluation.gates);
    let gates: BTreeSet<String> = gates.map(|gate| format!("{}: {}", test_result::name(gate), gate.verdict)).collect();
    let mut properties =
        vec![("ring", reasons.ring.clone()), ("configDigest", training.attested.config_digest.to_string())];
    properties.extend(training.adapter.map(|adapter| ("adapterDigest", adapter.to_string())));
    properties.extend(reports.into_iter().map(|report| ("reportDigest", report)));
    properties.extend(gates.into_iter().map(|gate| ("gate", gate)));
    properties
}

/// Checks that an ML-BOM lists exactly the files of the promoted model, and says about data, base, measurements and gates what the
/// promotion says.
pub(super) fn check(predicate: &Value, promotion: &Promotion) -> Result<(), String> {
    check_text(predicate, "/bomFormat", FORMAT)?;
    check_text(predicate, "/specVersion", VERSION)?;
    let files = files(predicate)?;
    let manifest = Manifest::of_hashed(files.clone())
        .map_err(|why| format!("its metadata.component.components are not the files of a model: {why}"))?;
    let found = manifest.digest();
    if found != promotion.model {
        return Err(format!(
            "its metadata.component.components are the files of the model {found}, not of {}",
            promotion.model
        ));
    }
    let own = self::predicate(promotion, &Build { files, ..Build::default() });
    let parts = ["/metadata/component/version", "/metadata/component/pedigree", "/metadata/component/properties"];
    match parts.into_iter().chain([METRICS, DATA]).find(|part| predicate.pointer(part) != own.pointer(part)) {
        Some(part) => {
            Err(format!("its {} is not that of the promotion", part.trim_start_matches('/').replace('/', ".")))
        }
        None => Ok(()),
    }
}

fn files(predicate: &Value) -> Result<Vec<File>, String> {
    let field = "metadata.component.components";
    let list = predicate.pointer(FILES).and_then(Value::as_array);
    let list = list.ok_or_else(|| format!("its {field} is missing: a list of files is required"))?;
    let read = |(index, component): (usize, &Value)| {
        read_file(component).ok_or_else(|| format!("its {field}[{index}] needs a name, a SHA-256 and codex:size"))
    };
    list.iter().enumerate().map(read).collect()
}

/// Returns one sentence about what it says.
pub(super) fn told(predicate: &Value) -> String {
    let count = |place: &str| predicate.pointer(place).and_then(Value::as_array).map_or(0, Vec::len);
    let (files, data, metrics) = (count(FILES), count(DATA), count(METRICS));
    format!("{FORMAT} {VERSION}, which lists its files ({files}), data ({data}) and measurements ({metrics})")
}
