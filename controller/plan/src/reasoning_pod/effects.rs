//! The statements that the signer has to sign. Pure.

use std::collections::BTreeMap;

use codex_crds::{ModelStatus, TrainingRun, annotation};
use codex_provenance::{
    ModelDigest, OmsPayloadDigest,
    promotion::{self, Attested, Object, Promotion, Reasons, Reported, Training},
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;

use super::{bundles::manifest, signing::Signing, stage::Stage, trust::Chosen, view::View};
use crate::{
    evaluation::statement::statement,
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
    let Chosen::Missing { name, .. } = &view.evidence.oms else { return None };
    let config_map = config_map(view, run, name.clone(), model.digest);
    Some(Effect::SignModel { config_map, manifest: manifest(model).ok()?, name: run.name_any() })
}

fn sign_promotion(
    view: &View<'_>,
    run: &TrainingRun,
    model: &ModelStatus,
    payload: OmsPayloadDigest,
) -> Option<Effect> {
    let Chosen::Missing { name, .. } = &view.evidence.promotion else { return None };
    let ring = view.observed.object.spec.rollout_ring;
    let mut config_map = config_map(view, run, name.clone(), model.digest);
    config_map.metadata.labels.get_or_insert_default().extend([ring_label(ring)]);
    let mut evaluations: Vec<promotion::Evaluation> = view
        .observed
        .object
        .spec
        .evaluations
        .iter()
        .map(|name| statement(view.observed.evaluations.get(name)?, view.evidence.proofs.get(name.as_str())?))
        .collect::<Option<_>>()?;
    evaluations.sort_by(|a, b| (&a.name, &a.uid).cmp(&(&b.name, &b.uid)));
    let reasons = Reasons {
        ring: ring.name().to_owned(),
        namespace: run.namespace()?,
        oms_payload: payload,
        training: training(run)?,
        evaluations,
        policies: view.evidence.policies.held.clone(),
        earlier: view.evidence.policies.earlier.clone(),
        sign_offs: view.evidence.policies.signed.clone(),
        parity: view.evidence.policies.parity.clone(),
    };
    Some(Effect::SignPromotion { config_map, promotion: Box::new(Promotion { model: model.digest, reasons }) })
}

fn training(run: &TrainingRun) -> Option<Training> {
    let status = run.status.as_ref()?;
    let data: BTreeMap<_, _> = status.data_digests.iter().map(|file| (file.name.clone(), file.sha256)).collect();
    let attested = status.attested == Some(true);
    Some(Training {
        run: Object { name: run.name_any(), uid: run.uid()? },
        attested: Attested {
            config_digest: status.config_digest?,
            image_id: status.work.image_id.clone().unwrap_or_default(),
            completed_at: status.completed_at.as_ref().map(|time| time.0.to_string()),
            data: attested.then(|| data.clone()),
        },
        reported: (!attested).then_some(Reported { data }),
        base: status.base.as_ref().map(|base| promotion::Base {
            model: base.digest,
            source: Some(base.source.clone()),
            signer: base.signer,
        }),
    })
}
