//! The statements that the signer has to sign. Pure.

use std::collections::BTreeMap;

use codex_crds::{ComputationStatus, ModelStatus, TrainingRun, annotation};
use codex_provenance::{
    Device, ModelDigest, OmsPayloadDigest,
    attestation::Build,
    promotion::{self, Attested, Object, Promotion, Reasons, Reported, Training},
    reproduction::Computation,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Resource, ResourceExt};

use super::{bundles::manifest, signing::Signing, stage::Stage, trust::Chosen, view::View};
use crate::{
    evaluation::statement::statement,
    metadata::{Component, Owner, ring_label},
    plan::Effect,
    training_run,
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
    // The servers that will mount it must be able to start after the run was deleted.
    metadata.owner_references.get_or_insert_default().extend(view.observed.object.owner_ref(&()));
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
    // A run that is created again looks for the record of its configuration.
    let config = run.status.as_ref().and_then(|status| status.config_digest);
    let config = config.map(|digest| (annotation::CONFIG_DIGEST.to_owned(), digest.to_string()));
    config_map.metadata.annotations.get_or_insert_default().extend(config);
    let mut evaluations: Vec<promotion::Evaluation> = view
        .observed
        .object
        .spec
        .evaluations
        .iter()
        .map(|name| {
            let stated = statement(view.observed.evaluations.get(name)?, view.evidence.proofs.get(name.as_str())?)?;
            Some(view.evidence.policies.with_divided(stated))
        })
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
    Some(Effect::SignPromotion {
        config_map,
        promotion: Box::new(Promotion { model: model.digest, reasons }),
        build: Box::new(build(run, model)),
    })
}

/// Returns what attestations say about a run and its model. The composed configuration is left out if this controller composes
/// another one than the trainer was given, as after an upgrade; its digest is among the dependencies.
fn build(run: &TrainingRun, model: &ModelStatus) -> Build {
    let mut parameters = training_run::parameters(&run.spec);
    let status = run.status.as_ref();
    let digest = status.and_then(|status| status.config_digest);
    let composed = digest.and_then(|digest| training_run::configuration(&run.spec, digest));
    parameters.extend(composed.map(|composed| ("configuration".to_owned(), composed)));
    // A run that adopted its model started no training.
    let trained = status.filter(|status| training_run::stated_adoption(status.adoption.as_ref()).is_none());
    let started = trained.and_then(|status| status.work.started_at.as_ref());
    let files = manifest(model).map(|manifest| manifest.files).unwrap_or_default();
    Build {
        parameters: parameters.into(),
        started_at: started.map(|time| time.0.to_string()),
        computation: status.and_then(|status| computation(status.computation.as_ref()?)),
        files,
    }
}

/// Returns what computed a model; `None` if attempts computed with different programs or kernels.
fn computation(status: &ComputationStatus) -> Option<Computation> {
    let ComputationStatus { program, engine, kernels, mixed, .. } = status.clone();
    (mixed != Some(true)).then_some(Computation { program, engine, kernels })
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
        device: status.device.as_ref().map(|device| Device {
            name: device.name.clone(),
            engine: device.engine.clone(),
            driver: device.driver.clone(),
            memory_bytes: device.memory_bytes.and_then(|bytes| u64::try_from(bytes).ok()),
            fallback: None,
        }),
        adapter: status.model.as_ref().and_then(|model| model.adapter),
        adopted: training_run::stated_adoption(status.adoption.as_ref()),
    })
}
