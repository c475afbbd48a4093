//! The signed records of former trainings, which a run that is created again may prove its model with. From the caches.

use codex_crds::TrainingRun;
use codex_plan::training_run::{RecordedTraining, config_digest};
use codex_provenance::{Validity, attestation::AttestationKind};
use codex_signing::verify::{Promoted, Trusted, read_promotion, verify_attestations};
use codex_verdict::policy::{Lineage, Policy, denials};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;

use super::{cache::Name, policies::policies};
use crate::{context::Context, signer::BUNDLE};

/// Returns the signed records of trainings with the configuration of a run, in its namespace. `template` is the text that
/// `spec.templateFrom` names. Anyone may write a ConfigMap, and only the controller can sign: the owner of one does not count, so a record
/// may outlive its run.
pub(super) fn records(context: &Context, run: &TrainingRun, template: Option<&str>) -> Vec<RecordedTraining> {
    let Some(digest) = config_digest(&run.spec, template) else { return Vec::new() };
    let namespace = run.namespace().unwrap_or_default();
    let found = context.stores.config_maps.naming(&namespace, &Name::Configuration(digest.to_string()));
    let trusted = context.signer.trusted();
    if found.is_empty() || trusted.is_empty() {
        return Vec::new();
    }
    let policies = policies(context, &namespace);
    let mut records: Vec<RecordedTraining> =
        found.iter().filter_map(|config_map| record(context, config_map, &trusted, &policies)).collect();
    records.sort_by_key(|record| record.provenance);
    records.dedup_by_key(|record| record.provenance);
    records
}

/// Returns the record in a ConfigMap. `None` if a bundle is missing or not signed by one who is trusted, if provenance and promotion do not
/// belong together, or if a policy denies the model, its base, its data or its signer.
fn record(
    context: &Context,
    config_map: &ConfigMap,
    trusted: &Trusted,
    policies: &[Policy],
) -> Option<RecordedTraining> {
    let data = config_map.data.as_ref()?;
    let promoted = read_promotion(data.get(BUNDLE)?.as_bytes(), trusted).ok()?;
    let bundle = data.get(AttestationKind::SlsaProvenance.entry())?.as_bytes();
    let attestation = verify_attestations(&promoted, [bundle], trusted).ok()?.pop()?;
    let build = attestation.recorded_build()?;
    if !denials(policies, &Lineage::of_statement(&promoted.promotion, promoted.signer)).is_empty() {
        return None;
    }
    let validity = validity(context, &promoted)?;
    let reasons = promoted.promotion.reasons;
    Some(RecordedTraining {
        namespace: reasons.namespace,
        model: promoted.promotion.model,
        training: reasons.training,
        build,
        provenance: attestation.digest,
        validity,
    })
}

/// Returns the time in which the signatures of the signer count; `None` if it is not listed. Without a list, the pinned key always counts.
fn validity(context: &Context, promoted: &Promoted) -> Option<Validity> {
    let listed = context.signer.listed(promoted.identity.as_slice());
    if listed.is_empty() {
        return Some(Validity::default());
    }
    listed.iter().find(|trusted| trusted.fingerprint == promoted.signer).map(|trusted| trusted.validity)
}
