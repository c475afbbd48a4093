//! The base of a run: where its files are, which digest they must have, and what the run waits for. Pure.

use std::collections::BTreeSet;

use codex_crds::{BaseStatus, ConfigMapKey, HuggingFace, Reason, TrainingRun, TrainingRunSpec};
use codex_provenance::ModelDigest;
use codex_reports::is_commit;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{EnvVar, EnvVarSource, SecretKeySelector},
};
use kube::ResourceExt;

use super::observed::ObservedTrainingRun;
use crate::{
    pod_template::{Access, Mounts, below, is_within, join},
    work::{WaitingForModel, WorkFailure, finished_model},
};

/// The path at which trainers find the base, or the claim that holds it.
const MOUNT: &str = "/base";
/// The path at which trainers find the public key of `spec.base.signedBy`.
const KEY_MOUNT: &str = "/base-signer";
/// The argument of `codex train` for the digest that the base must have.
const DIGEST_ARGUMENT: &str = "--base-digest";
/// The field that names the ConfigMap with the key of a base.
const KEY_FIELD: &str = "spec.base.signedBy.configMap";
/// The field that names the run that is a base.
pub(crate) const RUN_FIELD: &str = "spec.base.trainingRun.name";

/// The base of a run that starts from given weights.
#[derive(Debug)]
pub(crate) struct Base<'a> {
    /// The source, as `status.base.source` names it.
    source: String,
    /// `spec.base.digest`.
    demanded: Option<ModelDigest>,
    /// The digest that the run started from: in `status.base`, else in the arguments of the Job, else in the first report.
    started_from: Option<ModelDigest>,
    /// `spec.base.signedBy`.
    key: Option<&'a ConfigMapKey>,
    location: Location<'a>,
}

/// Where the files of a base are.
#[derive(Debug)]
enum Location<'a> {
    /// A folder on a claim.
    Claim { claim: &'a str, path: &'a str },
    /// The model of a TrainingRun, or what to wait for.
    Run { name: &'a str, model: Result<RunModel<'a>, WaitingForModel> },
    /// A repository, which trainers download.
    Hub(&'a HuggingFace),
}

/// The finished model of a TrainingRun.
#[derive(Debug)]
struct RunModel<'a> {
    claim: &'a str,
    folder: String,
    digest: ModelDigest,
}

impl<'a> Base<'a> {
    /// Returns the base that a spec names. `reported` is the digest in the first report.
    ///
    /// # Errors
    /// One sentence that says what to change.
    pub(crate) fn of(observed: &'a ObservedTrainingRun, reported: Option<ModelDigest>) -> Result<Option<Self>, String> {
        let object = &observed.object;
        let Some(base) = &object.spec.base else { return Ok(None) };
        let demanded = base.digest.as_deref().map(str::parse).transpose();
        let demanded = demanded.map_err(|why| format!("spec.base.digest: {why}"))?;
        let (source, location) = match (&base.persistent_volume_claim, &base.training_run, &base.hugging_face) {
            (Some(claim), None, None) => {
                let (claim, path) = (claim.claim_name.as_str(), claim.path.as_str());
                let output = &object.spec.output.persistent_volume_claim;
                if output.claim_name == claim && is_within(&output.sub_path, path) {
                    return Err(
                        "spec.output is in the folder of spec.base, so that training would change the digest of the \
                                base: create another TrainingRun with another folder or claim"
                            .to_owned(),
                    );
                }
                let source = format!("PersistentVolumeClaim {}", join(&[claim, path]));
                (source, Location::Claim { claim, path })
            }
            (None, None, Some(hub)) => {
                (format!("Hugging Face {}@{}", hub.repository, hub.revision), Location::Hub(hub))
            }
            (None, Some(run), None) => {
                // A Job exists only if the base was finished, whatever happened to it since.
                if !observed.base_cycle.is_empty() && observed.job.is_none() {
                    let names = format!("{} → {}", object.name_any(), observed.base_cycle.join(" → "));
                    return Err(format!(
                        "spec.base leads back to this TrainingRun ({names}): create one of them with another base"
                    ));
                }
                let model = run_model(observed.base.as_ref());
                (format!("TrainingRun {}", run.name), Location::Run { name: &run.name, model })
            }
            _ => {
                return Err(
                    "spec.base must have exactly one of persistentVolumeClaim, trainingRun and huggingFace".to_owned()
                );
            }
        };
        let key = base.signed_by.as_ref().map(|signer| &signer.config_map);
        let recorded = object.status.as_ref().and_then(|status| status.base.as_ref()).map(|base| base.digest);
        let started_from = recorded.or_else(|| observed.job.as_ref().and_then(demanded_by)).or(reported);
        Ok(Some(Self { source, demanded, started_from, key, location }))
    }

    /// Returns the digest that the base must have, as far as it is known.
    fn required(&self) -> Option<ModelDigest> {
        let made = match &self.location {
            Location::Run { model: Ok(model), .. } => Some(model.digest),
            _ => None,
        };
        self.demanded.or(self.started_from).or(made)
    }

    /// Returns the words before the required digest in a message.
    fn demand(&self) -> &'static str {
        if self.demanded.is_some() { "spec.base.digest requires" } else { "this run started from" }
    }

    /// Returns what the run waits for before its Job can be created, with the name of the run that is the base.
    pub(crate) fn waiting(&self) -> Option<(&'a str, &WaitingForModel)> {
        match &self.location {
            Location::Run { name, model: Err(waiting) } => Some((name, waiting)),
            Location::Run { .. } | Location::Claim { .. } | Location::Hub(_) => None,
        }
    }

    /// Returns a failure if the run that is the base made another model than this run needs. It matters only while the Job
    /// has to be created.
    pub(crate) fn unusable(&self) -> Option<WorkFailure> {
        let Location::Run { name, model: Ok(model) } = &self.location else { return None };
        let required = self.required().filter(|required| *required != model.digest)?;
        let why = format!(
            "TrainingRun {name} made the model {}, but {} {required}: create another TrainingRun",
            model.digest,
            self.demand()
        );
        Some(WorkFailure::new(Reason::BaseMismatch, why))
    }

    /// Returns a failure if a trainer found another base than the run needs.
    pub(crate) fn mismatch(&self, base: &codex_reports::Base) -> Option<WorkFailure> {
        let found = base.digest;
        let Some(required) = self.required().filter(|required| *required != found) else {
            return self.unproven(base).map(|why| WorkFailure::new(Reason::BaseMismatch, why));
        };
        let why = format!(
            "the trainer found the base {found} in {}, but {} {required}: restore the files and create another \
             TrainingRun, or create one with the digest of these files",
            self.source,
            self.demand()
        );
        Some(WorkFailure::new(Reason::BaseMismatch, why))
    }

    /// Returns a sentence if a trainer loaded a base without what the spec requires beside the digest.
    fn unproven(&self, base: &codex_reports::Base) -> Option<String> {
        if let Location::Hub(hub) = &self.location {
            let commit = base.commit.as_deref().filter(|commit| is_commit(commit));
            let Some(commit) = commit else {
                return Some(format!(
                    "the trainer reported no commit for the base {}, so its origin is unknown: correct spec.pod.image",
                    self.source
                ));
            };
            if is_commit(&hub.revision) && commit != hub.revision {
                return Some(format!(
                    "the trainer downloaded the commit {commit}, but spec.base.huggingFace.revision is {}: correct \
                     spec.pod.image",
                    hub.revision
                ));
            }
        }
        (self.key.is_some() && base.signer.is_none()).then(|| {
            "the trainer reported no signature of the base, but spec.base.signedBy requires one: correct spec.pod.image"
                .to_owned()
        })
    }

    /// Returns `status.base` for what a trainer reported, which is no mismatch.
    pub(crate) fn status(&self, base: &codex_reports::Base) -> BaseStatus {
        let digest = base.digest;
        let source = match (&self.location, &base.commit) {
            (Location::Hub(hub), Some(commit)) => {
                let at = hub.endpoint.as_ref().map_or_else(String::new, |endpoint| format!(" at {endpoint}"));
                format!("Hugging Face {}@{commit}{at}", hub.repository)
            }
            _ => self.source.clone(),
        };
        BaseStatus { digest, short: digest.short(), source, signer: base.signer.filter(|_| self.key.is_some()) }
    }

    /// Returns the variables of trainers by which they download the base.
    pub(crate) fn variables(&self) -> Vec<EnvVar> {
        let Location::Hub(hub) = &self.location else { return Vec::new() };
        let endpoint = hub.endpoint.as_ref().map(|endpoint| EnvVar {
            name: "HF_ENDPOINT".to_owned(),
            value: Some(endpoint.clone()),
            ..EnvVar::default()
        });
        let token = hub.token_secret.as_ref().map(|secret| EnvVar {
            name: "HF_TOKEN".to_owned(),
            value_from: Some(EnvVarSource {
                secret_key_ref: Some(SecretKeySelector {
                    name: secret.name.clone(),
                    key: secret.key.clone(),
                    optional: None,
                }),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        });
        endpoint.into_iter().chain(token).collect()
    }

    /// Returns the claim that holds the base, with the field that names it.
    pub(crate) fn claim(&self) -> Option<(String, &'a str)> {
        match &self.location {
            Location::Claim { claim, .. } => Some(("spec.base.persistentVolumeClaim.claimName".to_owned(), *claim)),
            Location::Run { name, model } => {
                let field = format!("spec.output.persistentVolumeClaim.claimName of TrainingRun {name}");
                model.as_ref().ok().map(|model| (field, model.claim))
            }
            Location::Hub(_) => None,
        }
    }

    /// Mounts the base read-only and adds the arguments of `codex train` that name it.
    pub(crate) fn mount(&self, mounts: &mut Mounts, args: &mut Vec<String>) {
        let (argument, value) = match &self.location {
            // The whole claim, so that a missing folder is the trainer's error and is not created by the kubelet.
            Location::Claim { claim, path } => {
                mounts.claim(claim, "", MOUNT, Access::Untouched);
                ("--base", below(MOUNT, path))
            }
            Location::Run { model: Ok(model), .. } => {
                mounts.claim(model.claim, &model.folder, MOUNT, Access::ReadOnly);
                ("--base", MOUNT.to_owned())
            }
            // A run that waits has no Job.
            Location::Run { model: Err(_), .. } => return,
            Location::Hub(hub) => ("--base-from-hub", format!("{}@{}", hub.repository, hub.revision)),
        };
        args.extend([argument.to_owned(), value]);
        if let Some(key) = self.key {
            mounts.config_map(&key.name, Some(&key.key), KEY_MOUNT);
            args.extend(["--base-signed-by".to_owned(), format!("{KEY_MOUNT}/{}", key.key)]);
        }
        if let Some(digest) = self.required() {
            args.extend([DIGEST_ARGUMENT.to_owned(), digest.to_string()]);
        }
    }
}

/// Returns the ConfigMap with the key that must have signed the base, and the field that names it.
pub(crate) fn key(spec: &TrainingRunSpec) -> Option<(String, &ConfigMapKey)> {
    let signer = spec.base.as_ref()?.signed_by.as_ref()?;
    Some((KEY_FIELD.to_owned(), &signer.config_map))
}

fn run_model(run: Option<&TrainingRun>) -> Result<RunModel<'_>, WaitingForModel> {
    let run = run.ok_or(WaitingForModel::Missing)?;
    if run.metadata.deletion_timestamp.is_some() {
        return Err(WaitingForModel::Deleting);
    }
    let model = finished_model(run).ok_or_else(|| WaitingForModel::for_run(run))?;
    let output = &run.spec.output.persistent_volume_claim;
    let folder = join(&[&output.sub_path, &run.uid().unwrap_or_default(), "model"]);
    Ok(RunModel { claim: &output.claim_name, folder, digest: model.digest })
}

/// Returns the digest that the trainers of a Job must find.
fn demanded_by(job: &Job) -> Option<ModelDigest> {
    let container = job.spec.as_ref()?.template.spec.as_ref()?.containers.first()?;
    let mut args = container.args.iter().flatten();
    args.find(|arg| *arg == DIGEST_ARGUMENT)?;
    args.next()?.parse().ok()
}

/// Returns the names of the runs through which the base of `run` leads back to it, in that order and with its own name last;
/// empty if it does not lead back. `find` returns a run of the same namespace by name. A finished run ends the search: it
/// waits for no base.
pub fn base_cycle<R: AsRef<TrainingRun>>(run: &TrainingRun, find: impl Fn(&str) -> Option<R>) -> Vec<String> {
    let of = |run: &TrainingRun| Some(run.spec.base.as_ref()?.training_run.as_ref()?.name.clone());
    let own = run.name_any();
    let (mut names, mut seen) = (Vec::new(), BTreeSet::new());
    let mut next = of(run);
    while let Some(name) = next {
        if name == own {
            names.push(name);
            return names;
        }
        if !seen.insert(name.clone()) {
            return Vec::new();
        }
        let Some(found) = find(&name).filter(|found| finished_model(found.as_ref()).is_none()) else {
            return Vec::new();
        };
        next = of(found.as_ref());
        names.push(name);
    }
    Vec::new()
}
