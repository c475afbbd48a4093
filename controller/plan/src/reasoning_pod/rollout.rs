//! What is signed and what is rolled out: names, statements, effects. Pure.

use std::collections::BTreeMap;

use codex_crds::{Evaluation, ModelStatus, ReasoningPod, Ring, TrainingRun, annotation, bundle};
use codex_provenance::{
    ModelDigest, OmsPayloadDigest, PromotionDigest, Sha256,
    manifest::{File, Manifest, ManifestError, SCHEMA},
    promotion::{Evaluation as Passed, Gate as Bound, PromotionKey, Reasons, Training},
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;

use super::{
    Bundle, ObservedReasoningPod, Signer,
    blocks::Evidence,
    stage::{Stage, View},
};
use crate::{
    Effect,
    metadata::{Component, Owner, ring_label},
    pod_template::join,
};

/// Where the bundles of an object are kept, as far as that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BundleNames {
    /// Known once the run has a model.
    pub oms: Option<String>,
    /// Known once every evaluation has reported.
    pub promotion: Option<String>,
}

/// Where to look for the bundles of an object.
pub fn bundle_names(
    object: &ReasoningPod,
    run: Option<&TrainingRun>,
    evaluations: &BTreeMap<String, Evaluation>,
) -> BundleNames {
    let model = run.and_then(|run| Some((run, run.status.as_ref()?.model.as_ref()?)));
    let Some((run, model)) = model else { return BundleNames::default() };
    let reported = |name: &String| {
        let status = evaluations.get(name)?.status.as_ref()?;
        Some((status.report_digest?, status.gates_digest?))
    };
    let evidence: Option<Vec<_>> = object.spec.evaluations.iter().map(reported).collect();
    let key = evidence.map(|evaluations| PromotionKey {
        model: model.digest,
        ring: object.spec.rollout_ring.name().to_owned(),
        evaluations,
    });
    let uid = run.uid();
    BundleNames {
        promotion: uid.as_ref().zip(key).map(|(uid, key)| promotion_name(uid, &key)),
        oms: uid.map(|uid| bundle::oms(&uid)),
    }
}

/// Where the promotion of a run's model with this key is kept. The run is part of the name because the bundle belongs to
/// it and goes with it: runs that made the same model have a promotion each, even on the same evidence.
fn promotion_name(run_uid: &str, key: &PromotionKey) -> String {
    bundle::promotion(&Sha256::of(format!("{run_uid}\n{}", key.digest())).short())
}

/// The manifest of a run's model, from its status.
///
/// # Errors
/// When the status holds no valid manifest, which somebody must have written into it.
pub fn manifest(model: &ModelStatus) -> Result<Manifest, ManifestError> {
    let files = model.files.iter().map(|file| File {
        path: file.path.clone(),
        // What is no size is larger than any model: the manifest is refused.
        size: u64::try_from(file.size).unwrap_or(u64::MAX),
        sha256: file.sha256,
    });
    let manifest = Manifest { schema: SCHEMA, files: files.collect() };
    manifest.validate()?;
    Ok(manifest)
}

/// What a promotion of this object is for, once every evaluation proves the model.
pub(crate) fn key(observed: &ObservedReasoningPod, evidence: &Evidence<'_>) -> Option<PromotionKey> {
    let (_, model) = evidence.trained?;
    let proofs = evidence.proofs.as_ref()?;
    Some(PromotionKey {
        model: model.digest,
        ring: observed.object.spec.rollout_ring.name().to_owned(),
        evaluations: proofs.iter().map(|proof| (proof.report, proof.gates)).collect(),
    })
}

/// A rollout that may happen: every link of the chain holds for one model, and both bundles are recorded.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Target {
    pub(crate) run_uid: String,
    pub(crate) claim: String,
    /// The folder of the model on that claim.
    pub(crate) path: String,
    pub(crate) model: ModelDigest,
    pub(crate) ring: Ring,
    pub(crate) fingerprint: Sha256,
    pub(crate) oms_bundle: String,
    pub(crate) promotion: PromotionDigest,
    pub(crate) promotion_bundle: String,
}

impl Target {
    /// What the status says was rolled out, where the servers' template is no longer that; none where another key was pinned
    /// since, by which no server would know it. The servers check both bundles against the key, the ring and the digests, so
    /// that a status that somebody forged brings nothing unsigned to life.
    pub(crate) fn recorded(observed: &ObservedReasoningPod) -> Option<Self> {
        let status = observed.object.status.as_ref().filter(|_| observed.tampered)?;
        let (manifest, promotion) = (status.manifest.as_ref()?, status.promotion.as_ref()?);
        let fingerprint = observed.signer.fingerprint();
        if manifest.signer != fingerprint.short() {
            return None;
        }
        let (claim, path) = manifest.location.as_ref()?.split_once('/')?;
        Some(Self {
            run_uid: status.training_run_uid.clone()?,
            claim: claim.to_owned(),
            path: path.to_owned(),
            model: manifest.digest,
            ring: promotion.ring,
            fingerprint,
            oms_bundle: manifest.bundle.clone(),
            promotion: promotion.digest,
            promotion_bundle: promotion.bundle.clone(),
        })
    }
}

/// How far signing is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Signing {
    /// The model has no signature.
    Model,
    /// The model has no promotion for this key.
    Promotion(OmsPayloadDigest),
    /// Both are recorded.
    Recorded(Box<Target>),
}

impl Signing {
    /// None while something blocks.
    pub(crate) fn of(observed: &ObservedReasoningPod, evidence: &Evidence<'_>) -> Option<Self> {
        if !evidence.blocks.is_empty() {
            return None;
        }
        let (run, model) = evidence.trained?;
        let key = key(observed, evidence)?;
        let Signer::Available { fingerprint } = observed.signer else { return None };
        let run_uid = run.uid()?;
        let signed = match &observed.oms {
            Bundle::Absent => return Some(Self::Model),
            Bundle::Valid(signed) => signed,
            Bundle::Unchecked | Bundle::Foreign(_) | Bundle::Invalid(_) => return None,
        };
        let promoted = match &observed.promotion {
            Bundle::Absent => return Some(Self::Promotion(signed.payload)),
            Bundle::Valid(promoted) if promoted.key == key.digest() => promoted,
            Bundle::Valid(_) | Bundle::Unchecked | Bundle::Foreign(_) | Bundle::Invalid(_) => return None,
        };
        let output = &run.spec.output.persistent_volume_claim;
        Some(Self::Recorded(Box::new(Target {
            claim: output.claim_name.clone(),
            path: join(&[&output.sub_path, &run_uid, "model"]),
            model: model.digest,
            ring: observed.object.spec.rollout_ring,
            fingerprint,
            oms_bundle: bundle::oms(&run_uid),
            promotion: promoted.digest,
            promotion_bundle: promotion_name(&run_uid, &key),
            run_uid,
        })))
    }
}

/// What has to be signed now.
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
    let key = key(view.observed, &view.evidence)?;
    let ring = view.observed.object.spec.rollout_ring;
    let mut config_map = config_map(view, run, promotion_name(&run.uid()?, &key), model.digest);
    config_map.metadata.labels.get_or_insert_default().extend([ring_label(ring)]);
    let mut evaluations: Vec<_> = view
        .observed
        .object
        .spec
        .evaluations
        .iter()
        .filter_map(|name| passed(view.observed.evaluations.get(name)?))
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

fn passed(evaluation: &Evaluation) -> Option<Passed> {
    let status = evaluation.status.as_ref()?;
    let judged = evaluation.spec.gates.iter().zip(&status.gates);
    let text = |decimal: &Option<codex_crds::Decimal>| decimal.as_ref().map(|decimal| decimal.0.clone());
    Some(Passed {
        name: evaluation.name_any(),
        uid: evaluation.uid()?,
        report_digest: status.report_digest?,
        gates_digest: status.gates_digest?,
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
                verdict: format!("{:?}", judged.verdict),
            })
            .collect(),
    })
}
