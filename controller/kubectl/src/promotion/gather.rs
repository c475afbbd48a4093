//! What is known about a run from the objects of a cluster. Pure.
//!
//! A client reads no volume, so what the trainer and the evaluators reported and the controller recorded takes the place of the files
//! of a run.

use codex_checklist::{Allowances, Chain, Facts, Judged, Model, Record, Records, Signatures, Usage};
use codex_configs::{Resolved, Training};
use codex_crds::{ConditionType, Evaluation, ReasoningPod, TrainingRun};
use codex_provenance::manifest::{File, Manifest, SCHEMA};
use codex_verdict::{Metric, Sample, gates_digest};
use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::Condition};
use kube::ResourceExt;
use serde::Serialize;
use serde_json::Value;

use super::snapshot::{Policies, Snapshot};
use crate::{cluster::served, error::CommandError};

/// The key of the configuration in its ConfigMap.
const CONFIG_FILE: &str = "config.yaml";

/// Returns the objects as the checks read them.
pub(crate) fn chain(snapshot: &Snapshot, policies: &Policies) -> Result<Chain, CommandError> {
    let mut objects = vec![value(&as_served(&snapshot.pod))?];
    objects.extend(snapshot.run.as_ref().map(value).transpose()?);
    objects.extend(snapshot.template.as_ref().map(value).transpose()?);
    objects.extend(values(&snapshot.evaluations)?);
    objects.extend(values(&snapshot.sign_offs)?);
    objects.extend(values(&snapshot.quotas)?);
    objects.extend(values(&snapshot.ranges)?);
    objects.extend(values(&policies.of_namespace)?);
    objects.extend(values(&policies.of_cluster)?);
    let place = format!("the namespace {}", snapshot.namespace);
    Chain::of(&place, objects, None).map_err(CommandError::BadInput)
}

/// Returns a ReasoningPod whose spec names what it serves: with `spec.redeploy`, that of the latest promoted cycle.
fn as_served(pod: &ReasoningPod) -> ReasoningPod {
    let mut pod = pod.clone();
    if let Some(run) = served(&pod) {
        pod.spec.training_run = run;
    }
    if let Some(current) = pod.status.as_ref().and_then(|status| status.current.as_ref()) {
        pod.spec.evaluations.clone_from(&current.evaluations);
    }
    pod
}

fn value<T: Serialize>(object: &T) -> Result<Value, CommandError> {
    Ok(serde_json::to_value(object)?)
}

fn values<T: Serialize>(objects: &[T]) -> Result<Vec<Value>, CommandError> {
    objects.iter().map(value).collect()
}

/// Returns what the objects say about the run and its model.
pub(crate) fn facts<'a>(snapshot: &Snapshot, chain: &'a Chain, unsigned: bool) -> Result<Facts<'a>, CommandError> {
    let model = model(chain.run_name(), snapshot.run.as_ref());
    let digest = model.as_ref().ok().map(|model| model.digest);
    let judged = chain.evaluations().map(|name| {
        let evaluation = snapshot.evaluations.iter().find(|evaluation| evaluation.name_any() == name);
        judged(chain, name, evaluation)
    });
    let name = Metric::TraceCoverage.name();
    let about = snapshot.evaluations.iter().filter_map(|evaluation| evaluation.status.as_ref()).filter(|status| {
        let measured = status.model.as_ref().map(|model| model.digest);
        measured.is_some() && measured == digest
    });
    let measured = about.flat_map(|status| &status.metrics).filter(|metric| metric.name == name);
    let coverage = measured.filter_map(|metric| Some(Sample::named(name, &metric.measurement()?).ok()?.value()));
    Ok(Facts {
        chain: Some(chain),
        ring: chain.ring,
        records: records(chain.run_name(), snapshot.run.as_ref(), snapshot.configuration.as_ref()),
        judged: judged.collect(),
        measured: Vec::new(),
        damaged: Vec::new(),
        coverage: coverage.collect(),
        signatures: signatures(snapshot, digest.map(|digest| digest.to_string()).as_deref()),
        unsigned,
        allowances: allowances(snapshot, chain)?,
        model,
    })
}

/// Returns the model of a run, whose recorded files must have its digest.
fn model(name: &str, run: Option<&TrainingRun>) -> Result<Model, String> {
    let run = run.ok_or_else(|| format!("TrainingRun {name} does not exist, so there is no model"))?;
    let status = run.status.clone().unwrap_or_default();
    let Some(model) = status.model else {
        let phase = status.phase.map_or_else(|| "Pending".to_owned(), |phase| format!("{phase:?}"));
        return Err(format!("TrainingRun {name} has no model: it is {phase}"));
    };
    let files = model.files.iter().map(|file| {
        let size = u64::try_from(file.size).map_err(|_| format!("{} has the size {}", file.path, file.size))?;
        Ok(File { path: file.path.clone(), size, sha256: file.sha256 })
    });
    let files: Result<Vec<File>, String> = files.collect();
    let manifest =
        Manifest { schema: SCHEMA, files: files.map_err(|why| format!("status.model of TrainingRun {name}: {why}"))? };
    if manifest.digest() != model.digest {
        return Err(format!(
            "status.model of TrainingRun {name} contradicts itself: its files have the digest {}, and its digest is {}",
            manifest.digest(),
            model.digest
        ));
    }
    Ok(Model { digest: model.digest, files: manifest.files.len(), bytes: manifest.size_bytes() })
}

/// Returns what is recorded about a run, with the configuration that its trainer was given.
fn records(name: &str, run: Option<&TrainingRun>, configuration: Option<&ConfigMap>) -> Records {
    let sources = [
        format!("the status of TrainingRun {name}"),
        configuration
            .map_or_else(|| "status.configDigest".to_owned(), |map| format!("the ConfigMap {}", map.name_any())),
        "status.dataDigests".to_owned(),
    ];
    let Some(run) = run else {
        return Records { lacks: vec![format!("TrainingRun {name} does not exist")], run: None, sources };
    };
    let status = run.status.clone().unwrap_or_default();
    let mut lacks = Vec::new();
    if status.data_digests.is_empty() {
        lacks.push(format!("status.dataDigests of TrainingRun {name} is empty: the trainer has not read its data"));
    }
    for read in &status.data_digests {
        let wanted = run.spec.data.iter().find(|item| item.name == read.name).and_then(|item| item.sha256.as_ref());
        if let Some(wanted) = wanted.filter(|wanted| **wanted != read.sha256.to_string()) {
            lacks.push(format!(
                "the data drifted: the trainer read {} with the SHA-256 {}, but spec.data names {wanted}",
                read.name, read.sha256
            ));
        }
    }
    let Some(config) = status.config_digest else {
        lacks.push(format!("status.configDigest of TrainingRun {name} is absent: the run has not begun"));
        return Records { lacks, run: None, sources };
    };
    // The ConfigMap may be gone, as after an upgrade or a restored backup; the recorded digest is what the trainer read.
    let file = configuration.and_then(|map| map.data.as_ref()?.get(CONFIG_FILE));
    let found = file.map(|file| Resolved::<Training>::from_yaml(file.as_bytes()));
    let config_found = match found.transpose() {
        Ok(found) => found.as_ref().map(Resolved::digest),
        Err(why) => {
            lacks.push(format!("{} cannot be used: {why}", sources[1]));
            None
        }
    };
    let record = Record {
        id: run.uid().unwrap_or_default(),
        template: run.spec.template.clone(),
        config,
        config_found,
        data: None,
        data_found: None,
    };
    Records { lacks, run: Some(record), sources }
}

/// Returns an Evaluation with its verdict, if that is about its present gates.
fn judged(chain: &Chain, name: &str, evaluation: Option<&Evaluation>) -> Judged {
    let (gates, evaluation) = match (chain.evaluation(name), evaluation) {
        (Some(Ok((_, gates))), Some(evaluation)) => (gates, evaluation),
        (Some(Err(why)), _) => return Judged::without(name, 1, why),
        _ => {
            let why = format!("{} does not hold it, so its gates are unknown: add it", chain.place);
            return Judged::without(name, 1, why);
        }
    };
    let status = evaluation.status.clone().unwrap_or_default();
    let without = |why: String| Judged {
        model: status.model.as_ref().map(|model| model.digest),
        ..Judged::without(name, gates.len(), why)
    };
    if status.observed_generation != evaluation.metadata.generation {
        return without(
            "the controller has not seen the latest change of its spec: wait for the controller".to_owned(),
        );
    }
    if status.verdict.is_none() || status.gates.is_empty() {
        let ready = condition(&status.conditions, ConditionType::Ready).map(|ready| ready.message.as_str());
        return without(format!("it has no verdict: {}", ready.unwrap_or("the controller has not seen it")));
    }
    if status.gates_digest != Some(gates_digest(&gates)) {
        return without("its verdict is about other gates than its spec has: create another Evaluation".to_owned());
    }
    Judged {
        name: name.to_owned(),
        asked: gates.len(),
        report: status.report_digest.map(|digest| digest.0),
        model: status.model.map(|model| model.digest),
        gates: status.gates,
        why: None,
    }
}

/// Returns what the controller recorded about the signatures of the model with this digest.
fn signatures(snapshot: &Snapshot, model: Option<&str>) -> Signatures {
    let pod = &snapshot.pod;
    let status = pod.status.clone().unwrap_or_default();
    let Some(manifest) = &status.manifest else {
        return Signatures::Missing(
            "status.manifest is absent: no bundle is recorded; give --unsigned if the operator is to sign at the rollout".to_owned(),
        );
    };
    let (mut found, mut reasons) = (Vec::new(), Vec::new());
    if status.observed_generation != pod.metadata.generation {
        reasons.push(
            "the controller has not seen the latest change of the ReasoningPod: wait for the controller".to_owned(),
        );
    }
    if model != Some(manifest.digest.to_string().as_str()) {
        reasons
            .push(format!("status.manifest is about the model {}, and another one is to be served", manifest.digest));
    }
    if let Some(signed) = condition(&status.conditions, ConditionType::Signed).filter(|it| it.status != "True") {
        reasons.push(signed.message.clone());
    }
    found.push(format!(
        "the operator recorded the signature of {} in the ConfigMap {}",
        manifest.signer, manifest.bundle
    ));
    let mut named = vec![&manifest.bundle];
    // A shadow needs the promotion into the ring before its own.
    let ring = pod.spec.rollout_ring;
    let wanted = if pod.spec.shadow.is_some() { ring.before().unwrap_or(ring) } else { ring };
    match &status.promotion {
        None => found.push("no promotion is recorded: the operator signs it at the rollout".to_owned()),
        Some(promotion) => {
            named.push(&promotion.bundle);
            found.push(format!("promoted into {} by the statement {}", promotion.ring, promotion.digest));
            if promotion.ring != wanted {
                reasons.push(format!("the recorded promotion is into {}, and {wanted} is asked for", promotion.ring));
            }
        }
    }
    let exists = |name: &str| snapshot.bundles.iter().any(|bundle| bundle.name_any() == name);
    for name in named.into_iter().filter(|name| !exists(name)) {
        reasons.push(format!("the ConfigMap {name} does not exist, so its bundle cannot be verified: restore it"));
    }
    Signatures::Given { found, reasons }
}

/// Returns the limits of the namespace, without what the present servers use.
fn allowances(snapshot: &Snapshot, chain: &Chain) -> Result<Allowances, CommandError> {
    let mut own = Usage::default();
    for server in &snapshot.servers {
        let phase = server.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            continue;
        }
        own.add_pod();
        for container in server.spec.iter().flat_map(|spec| &spec.containers) {
            own.add_container(&value(&container.resources)?);
        }
    }
    Ok(chain.allowances().map_err(CommandError::BadInput)?.with_own(own))
}

fn condition(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|condition| condition.type_ == kind.name())
}
