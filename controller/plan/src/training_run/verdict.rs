//! The verdict of a run that reproduces another one: its conditions, and its signature. Pure.

use codex_crds::{ComputationStatus, ConditionType, ModelStatus, Reason, bundle};
use k8s_openapi::api::core::v1::ConfigMap;

use super::{
    reproduction::{Reproduction, no_such_node, statement},
    stage::Stage,
    view::View,
};
use crate::{
    conditions::{Conditions, Truth},
    metadata::Component,
    plan::Effect,
    reasoning_pod::{Bundle, Signer},
    seal::StatusSeal,
    work::Active,
};

/// The name of the ConfigMap with the signed verdict of the recorded status, and the statement.
fn signable(view: &View<'_>, stage: &Stage) -> Option<(String, codex_provenance::reproduction::Reproduction)> {
    let settled = matches!(stage, Stage::Done(_)) && view.observed.seal == StatusSeal::Valid;
    let statement = settled.then(|| statement(&view.observed.object)).flatten()?;
    Some((bundle::reproduction(&statement.digest().short()), statement))
}

/// Returns the name of the ConfigMap with the signed verdict, if it is signed.
pub(crate) fn signed(view: &View<'_>, stage: &Stage) -> Option<String> {
    let valid = matches!(view.observed.verdict, Bundle::Valid(_));
    signable(view, stage).map(|(name, _)| name).filter(|_| valid)
}

/// Returns what the signer has to do. The verdict is signed once its status is recorded: nothing is lost if the signer fails.
pub(crate) fn effects(view: &View<'_>, stage: &Stage) -> Vec<Effect> {
    let available = matches!(view.observed.signer, Some(Signer::Available { .. }));
    let absent = view.observed.verdict == Bundle::Absent;
    let Some((name, reproduction)) = signable(view, stage).filter(|_| available && absent) else { return Vec::new() };
    let owner = &view.work.worker.owner;
    let metadata = owner.child(name, Component::Bundle, &view.observed.settings.version);
    let config_map = ConfigMap { metadata, immutable: Some(true), ..ConfigMap::default() };
    vec![Effect::SignReproduction { config_map, reproduction: Box::new(reproduction) }]
}

/// Sets `Reproduced`, and `Signed` once the models are equal. `reason` and `message` are those of `Ready`.
pub(crate) fn conditions(
    view: &View<'_>,
    stage: &Stage,
    (reason, message): (Reason, &str),
    conditions: &mut Conditions<'_>,
) {
    use ConditionType::{Reproduced, Signed};
    let Some(reproduction) = &view.reproduction else { return };
    match stage {
        Stage::Done(model) | Stage::Succeeded(model) => {
            let (equal, reason, message) = compared(view, model);
            conditions.set(Reproduced, equal, reason, &message);
        }
        Stage::Active(Active::Pending(Some(obstacle))) if no_such_node(obstacle) => {
            let message = format!(
                "no node has what computed the model of TrainingRun {}: {obstacle}; the run starts when there is one",
                reproduction.name
            );
            conditions.set(Reproduced, Truth::Unknown, Reason::Unreproducible, &message);
        }
        _ => conditions.set(Reproduced, Truth::Unknown, reason, message),
    }
    let Some((name, _)) = signable(view, stage) else { return };
    let advice = format!("delete the ConfigMap {name} to have the verdict signed again");
    let (reason, why) = match (&view.observed.verdict, &view.observed.signer) {
        (Bundle::Valid(_), _) => {
            let message = format!("the verdict is signed in the ConfigMap {name}");
            return conditions.set(Signed, true, Reason::BundlesRecorded, &message);
        }
        // It is signed with this plan, and the next one says so.
        (Bundle::Absent, Some(Signer::Available { .. })) => return conditions.keep(Signed),
        (Bundle::Absent, Some(Signer::Unavailable { reason, .. })) => (Reason::SignerUnavailable, reason.clone()),
        (Bundle::Absent | Bundle::Unchecked, _) => {
            (Reason::SignerUnavailable, "there is no key to verify the verdict with".to_owned())
        }
        (Bundle::Foreign(why), _) => (Reason::ForeignSignature, format!("{why}: {advice}")),
        (Bundle::Invalid(why), _) => (Reason::VerificationFailed, format!("{why}: {advice}")),
    };
    conditions.set(Signed, false, reason, &why);
}

/// Returns whether the models are equal, with the reason and the message.
fn compared(view: &View<'_>, model: &ModelStatus) -> (Truth, Reason, String) {
    let target = |it: &Reproduction<'_>| Some((it.name.to_owned(), it.status(view.observed, Some(model), None, None)?));
    let Some((name, target)) = view.reproduction.as_ref().and_then(target) else {
        let message = "what the other run recorded is no longer known: create another TrainingRun".to_owned();
        return (Truth::Unknown, Reason::Unreproducible, message);
    };
    let node = |it: Option<ComputationStatus>| it.and_then(|it| it.node).unwrap_or_else(|| "unknown".to_owned());
    let (then, now) = (node(target.computation), node(view.computation()));
    if model.digest == target.model {
        let message = format!(
            "both runs made the model {}, bit for bit: TrainingRun {name} on the node {then}, this one on the node {now}",
            model.short
        );
        return (Truth::True, Reason::Reproduced, message);
    }
    let file =
        target.first_difference.map_or_else(String::new, |path| format!(" The first file that differs is {path}."));
    let message = format!(
        "TrainingRun {name} made the model {} on the node {then}, and this run made {} on the node {now}, with the same \
         configuration, data, program, engine and kernels.{file} Compare the folders of both runs with codex bisect",
        target.model, model.digest
    );
    (Truth::False, Reason::DigestsDiffer, message)
}
