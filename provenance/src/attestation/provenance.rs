//! SLSA provenance v1: how a model was trained. Pure.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{BUILD_TYPE, Build, OPERATOR, check_named, check_text, descriptor};
use crate::{
    canonical::canonical,
    digest::Sha256,
    promotion::{Promotion, Training},
    reproduction::Computation,
};

/// Returns the predicate.
pub(super) fn predicate(promotion: &Promotion, build: &Build) -> Value {
    let training = &promotion.reasons.training;
    let mut metadata = Map::new();
    metadata.insert("invocationId".to_owned(), json!(training.computed_by().uid));
    let times = [("startedOn", build.started_at.as_deref()), ("finishedOn", training.computed_at())];
    metadata.extend(times.into_iter().filter_map(|(name, time)| Some((name.to_owned(), json!(time?)))));
    let mut builder = json!({ "id": OPERATOR });
    if let Some(computation) = &build.computation {
        builder["version"] = json!(computation);
    }
    json!({
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": build.parameters,
            "internalParameters": internal(promotion),
            "resolvedDependencies": dependencies(training),
        },
        "runDetails": { "builder": builder, "metadata": metadata },
    })
}

/// Returns what the operator set. A run that adopted the model of another one is named beside it.
fn internal(promotion: &Promotion) -> Value {
    let training = &promotion.reasons.training;
    let mut parameters = json!({
        "namespace": promotion.reasons.namespace,
        "trainingRun": training.computed_by().name,
        "dataIsAttested": training.is_attested(),
    });
    if training.adopted.is_some() {
        parameters["adoptedBy"] = json!(training.run);
    }
    parameters
}

/// What provenance records of a training beside its promotion, as far as another run can be compared with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecordedBuild {
    /// The parameters without `configuration`, which has its digest in the promotion.
    pub parameters: Value,
    /// What computed the model.
    pub computation: Computation,
}

/// Returns what provenance records of a training; `None` without parameters, or if it does not say what computed.
pub(super) fn recorded(predicate: &Value) -> Option<RecordedBuild> {
    let mut parameters = predicate.pointer("/buildDefinition/externalParameters")?.as_object()?.clone();
    parameters.remove("configuration");
    let version = predicate.pointer("/runDetails/builder/version")?.clone();
    let computation = codex_json::from_value(version).ok()?;
    Some(RecordedBuild { parameters: Value::Object(parameters), computation })
}

/// Returns what the training was given: configuration, image, base and data files. What has no digest is left out.
fn dependencies(training: &Training) -> Vec<Value> {
    let source = training.base.as_ref().and_then(|base| base.source.as_ref());
    let described = named(training).into_iter().map(|(name, digest)| {
        let mut entry = descriptor(&name, digest);
        match name.as_str() {
            "configuration" => entry["mediaType"] = json!("application/json"),
            "image" => entry["annotations"] = json!({ "imageID": training.computing_image() }),
            "base" if source.is_some() => entry["annotations"] = json!({ "source": source }),
            _ => {}
        }
        entry
    });
    described.collect()
}

fn named(training: &Training) -> Vec<(String, Sha256)> {
    let attested = &training.attested;
    let mut named = vec![("configuration".to_owned(), attested.config_digest.0)];
    named.extend(image_digest(training.computing_image()).map(|digest| ("image".to_owned(), digest)));
    named.extend(training.base.as_ref().map(|base| ("base".to_owned(), base.model.0)));
    named.extend(training.data().into_iter().flatten().map(|(name, digest)| (format!("data/{name}"), digest.0)));
    named
}

/// Returns the digest in the id or the name of an image, such as `registry.example.com/codex@sha256:…`; `None` without one.
pub fn image_digest(id: &str) -> Option<Sha256> {
    id.rsplit_once("sha256:")?.1.parse().ok()
}

/// Checks that provenance says about a training what the promotion says.
pub(super) fn check(predicate: &Value, promotion: &Promotion) -> Result<(), String> {
    let training = &promotion.reasons.training;
    check_text(predicate, "/buildDefinition/buildType", BUILD_TYPE)?;
    check_text(predicate, "/runDetails/builder/id", OPERATOR)?;
    check_text(predicate, "/runDetails/metadata/invocationId", &training.computed_by().uid)?;
    check_named(predicate, "/buildDefinition/resolvedDependencies", named(training))?;
    let own = self::predicate(promotion, &Build::default());
    for part in ["/buildDefinition/internalParameters", "/runDetails/metadata/finishedOn"] {
        if predicate.pointer(part) != own.pointer(part) {
            return Err(format!("its {} is not that of the promotion", part.trim_start_matches('/').replace('/', ".")));
        }
    }
    let parameters = predicate.pointer("/buildDefinition/externalParameters").and_then(Value::as_object);
    let parameters = parameters.ok_or("its buildDefinition.externalParameters is missing: an object is required")?;
    let expected = training.attested.config_digest;
    match parameters.get("configuration").map(|composed| Sha256::of(canonical(composed))) {
        Some(found) if found != expected.0 => Err(format!(
            "its buildDefinition.externalParameters.configuration has the digest {found}, but the promotion names {expected}"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_an_image_is_found_in_every_form_of_its_id() {
        let digest = Sha256::of("image");
        for id in [format!("docker.io/library/codex@sha256:{digest}"), format!("sha256:{digest}")] {
            assert_eq!(image_digest(&id), Some(digest), "{id}");
        }
        for id in ["", "codex:latest", "sha256:0002"] {
            assert_eq!(image_digest(id), None, "{id}");
        }
    }
}
