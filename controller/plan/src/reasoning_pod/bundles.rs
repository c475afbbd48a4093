//! Names, keys and manifests of signed bundles. Pure.

use std::collections::BTreeMap;

use codex_crds::{Evaluation, ModelStatus, ReasoningPod, TrainingRun, bundle};
use codex_provenance::{
    GatesDigest, ReportDigest, Sha256,
    manifest::{File, Manifest, ManifestError, SCHEMA},
    promotion::{self, PolicyKey, PromotionKey},
};
use codex_verdict::policy::{Policy, stated};
use kube::ResourceExt;

use crate::evaluation::proof::digests;

/// The names of the `ConfigMaps` that hold the bundles of an object when they are first signed. Where a statement is signed again with
/// another key, [`bundle::again`] gives the name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BundleNames {
    /// `None` until the run has a model.
    pub oms: Option<String>,
    /// `None` until every evaluation has reported.
    pub promotion: Option<String>,
}

/// Returns the names of the `ConfigMaps` that hold the bundles of an object when they are first signed.
pub fn bundle_names(
    object: &ReasoningPod,
    run: Option<&TrainingRun>,
    evaluations: &BTreeMap<String, Evaluation>,
    policies: &[Policy],
) -> BundleNames {
    let model = run.and_then(|run| Some((run, run.status.as_ref()?.model.as_ref()?)));
    let Some((run, model)) = model else { return BundleNames::default() };
    let reported = |name: &String| digests(evaluations.get(name)?);
    let evaluations: Option<Vec<_>> = object.spec.evaluations.iter().map(reported).collect();
    let key = evaluations.map(|evaluations| promotion_key(object, model, evaluations, policies));
    let uid = run.uid();
    BundleNames {
        promotion: uid.as_ref().zip(key).map(|(uid, key)| promotion_name(uid, &key)),
        oms: uid.map(|uid| bundle::oms(&uid)),
    }
}

/// Returns the name of the ConfigMap that holds a promotion. The run is part of the name because the run owns the
/// ConfigMap: runs that made the same model have a promotion each, even on the same evidence.
pub(crate) fn promotion_name(run_uid: &str, key: &PromotionKey) -> String {
    bundle::promotion(&Sha256::of(format!("{run_uid}\n{}", key.digest())).short())
}

/// Returns the key of the promotion of `model` by an object to which these policies apply.
pub(crate) fn promotion_key(
    object: &ReasoningPod,
    model: &ModelStatus,
    evaluations: Vec<(ReportDigest, GatesDigest)>,
    policies: &[Policy],
) -> PromotionKey {
    let ring = object.spec.rollout_ring;
    PromotionKey {
        predicate_type: promotion::PREDICATE_TYPE,
        model: model.digest,
        ring: ring.name().to_owned(),
        evaluations,
        policies: stated(policies, ring).iter().map(PolicyKey::of).collect(),
    }
}

/// Returns the manifest of a run's model, from its status.
///
/// # Errors
/// When the files in the status are not a valid manifest: the controller never records such files.
pub fn manifest(model: &ModelStatus) -> Result<Manifest, ManifestError> {
    let files = model.files.iter().map(|file| File {
        path: file.path.clone(),
        // A negative size becomes `u64::MAX`, so validation fails.
        size: u64::try_from(file.size).unwrap_or(u64::MAX),
        sha256: file.sha256,
    });
    let manifest = Manifest { schema: SCHEMA, files: files.collect() };
    manifest.validate()?;
    Ok(manifest)
}
