//! The statements that the signer has to sign. Pure.

use std::collections::BTreeMap;

use codex_crds::{Evaluation, ModelStatus, TrainingRun, annotation, bundle};
use codex_provenance::{
    ModelDigest, OmsPayloadDigest,
    promotion::{Evaluation as Passed, Gate as Bound, Reasons, Training},
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;

use super::{
    bundles::{manifest, promotion_name},
    signing::Signing,
    stage::Stage,
    view::View,
};
use crate::{
    evaluation::proof::Proof,
    metadata::{Component, Owner, ring_label},
    plan::Effect,
};

/// Returns what the signer has to do now.
pub(crate) fn effects(view: &View<'_>, stage: &Stage) -> Vec<Effect> {
    let Stage::Signing(signing) = stage else { return Vec::new() };
    let Some((run, model)) = view.evidence.trained else { return Vec::new() };
    let effect = match signing {
        Signing::Model => sign_model(view, run, model),
        Signing::Promotion(payload) => sign_promotion(view, run, model, *payload),
        Signing::Recorded(_) => None,
    };
    effect.into_iter().collect()
}

fn config_map(view: &View<'_>, run: &TrainingRun, name: String, model: ModelDigest) -> ConfigMap {
    let mut metadata = Owner::run(run).child(name, Component::Bundle, &view.observed.settings.version);
    metadata.annotations = Some(BTreeMap::from([(annotation::MODEL_DIGEST.to_owned(), model.to_string())]));
    ConfigMap { metadata, immutable: Some(true), ..ConfigMap::default() }
}

fn sign_model(view: &View<'_>, run: &TrainingRun, model: &ModelStatus) -> Option<Effect> {
    let config_map = config_map(view, run, bundle::oms(&run.uid()?), model.digest);
    Some(Effect::SignModel { config_map, manifest: manifest(model).ok()?, name: run.name_any() })
}

fn sign_promotion(
    view: &View<'_>,
    run: &TrainingRun,
    model: &ModelStatus,
    payload: OmsPayloadDigest,
) -> Option<Effect> {
    let key = view.evidence.key.as_ref()?;
    let ring = view.observed.object.spec.rollout_ring;
    let mut config_map = config_map(view, run, promotion_name(&run.uid()?, key), model.digest);
    config_map.metadata.labels.get_or_insert_default().extend([ring_label(ring)]);
    let mut evaluations: Vec<_> = view
        .observed
        .object
        .spec
        .evaluations
        .iter()
        .filter_map(|name| passed(view.observed.evaluations.get(name)?, view.evidence.proofs.get(name.as_str())?))
        .collect();
    evaluations.sort_by(|a, b| (&a.name, &a.uid).cmp(&(&b.name, &b.uid)));
    let reasons = Reasons { ring: ring.name().to_owned(), oms_payload: payload, training: training(run)?, evaluations };
    Some(Effect::SignPromotion { config_map, model: model.digest, reasons })
}

fn training(run: &TrainingRun) -> Option<Training> {
    let status = run.status.as_ref()?;
    Some(Training {
        run_uid: run.uid()?,
        config_digest: status.config_digest?,
        data: status.data_digests.iter().map(|file| (file.name.clone(), file.sha256)).collect(),
        image_id: status.work.image_id.clone().unwrap_or_default(),
    })
}

/// Returns what the statement says about an evaluation that passed. Digests, gates and numbers are those of `proof`, which were
/// computed again from the sealed metrics.
fn passed(evaluation: &Evaluation, proof: &Proof) -> Option<Passed> {
    let status = evaluation.status.as_ref()?;
    let judged = evaluation.spec.gates.iter().zip(&proof.results);
    let text = |decimal: &Option<codex_verdict::Decimal>| decimal.as_ref().map(|decimal| decimal.0.clone());
    Some(Passed {
        name: evaluation.name_any(),
        uid: evaluation.uid()?,
        report_digest: proof.report,
        gates_digest: proof.gates,
        data: status.data_digests.iter().map(|file| (file.name.clone(), file.sha256)).collect(),
        image_id: status.work.image_id.clone().unwrap_or_default(),
        gates: judged
            .map(|(gate, judged)| Bound {
                metric: gate.metric.clone(),
                min: text(&gate.min),
                max: text(&gate.max),
                confidence: text(&gate.confidence),
                value: text(&judged.value),
                n: judged.n.and_then(|n| u64::try_from(n).ok()),
                lower: text(&judged.lower),
                upper: text(&judged.upper),
                verdict: judged.verdict.to_string(),
            })
            .collect(),
    })
}
