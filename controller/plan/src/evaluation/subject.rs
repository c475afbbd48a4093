//! The model that an Evaluation scores: where its files are, and where the results go. Pure.

use codex_crds::{ClaimOutput, Evaluation, ModelStatus, TrainingRun};
use codex_provenance::ModelDigest;
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;

use super::observed::ObservedEvaluation;
use crate::{
    pod_template::{Access, Mounts, below, is_within, join},
    work::finished_model,
};

/// The path at which evaluators find the model, or the claim that holds it.
const MOUNT: &str = "/model";
/// The path at which evaluators write their results.
const OUTPUT: &str = "/output";

/// What an Evaluation scores.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Subject<'a> {
    /// The model of the TrainingRun of this name.
    Run(&'a str),
    /// A given model.
    Given(Given<'a>),
}

/// A given model, as the spec names it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given<'a> {
    claim: &'a str,
    path: &'a str,
    /// `spec.model.digest`.
    digest: Option<ModelDigest>,
    output: &'a ClaimOutput,
}

/// A model whose files exist.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Model<'a> {
    /// The finished model of a TrainingRun.
    Trained { run: &'a TrainingRun, model: &'a ModelStatus },
    /// A given model.
    Given(Given<'a>),
}

impl<'a> Subject<'a> {
    /// Returns what a spec names.
    ///
    /// # Errors
    /// One sentence that says what to change.
    pub(crate) fn of(object: &'a Evaluation) -> Result<Self, String> {
        let spec = &object.spec;
        match (&spec.training_run, &spec.model, &spec.output) {
            (Some(run), None, None) => Ok(Self::Run(run)),
            (None, Some(model), Some(output)) => {
                let digest = model.digest.as_deref().map(str::parse).transpose();
                let digest = digest.map_err(|why| format!("spec.model.digest: {why}"))?;
                let (claim, path) = (&model.persistent_volume_claim.claim_name, &model.persistent_volume_claim.path);
                let output = &output.persistent_volume_claim;
                if output.claim_name == *claim && is_within(&output.sub_path, path) {
                    return Err(
                        "spec.output is in the folder of spec.model, so that the results would change the digest of \
                                the model: create another Evaluation with another folder or claim"
                            .to_owned(),
                    );
                }
                Ok(Self::Given(Given { claim, path, digest, output }))
            }
            (None, Some(_), None) => {
                Err("spec.output is required with spec.model: name a claim for the results".to_owned())
            }
            (Some(_), None, Some(_)) => {
                Err("spec.output must be absent with spec.trainingRun: the results are stored beside the run"
                    .to_owned())
            }
            (Some(_), Some(_), _) | (None, None, _) => {
                Err("spec must have exactly one of trainingRun and model".to_owned())
            }
        }
    }

    /// Returns the model, if its files exist as far as the controller knows.
    pub(crate) fn model(self, observed: &'a ObservedEvaluation) -> Option<Model<'a>> {
        match self {
            Self::Run(_) => {
                let run = observed.run.as_ref()?;
                Some(Model::Trained { run, model: finished_model(run)? })
            }
            Self::Given(given) => Some(Model::Given(given)),
        }
    }
}

impl<'a> Model<'a> {
    /// Returns the digest that the evaluator must find; `None` if any model may be there.
    pub(crate) fn expected(&self) -> Option<ModelDigest> {
        match self {
            Self::Trained { model, .. } => Some(model.digest),
            Self::Given(given) => given.digest,
        }
    }

    /// Returns a sentence about an evaluator that found another model than `expected`.
    pub(crate) fn mismatch(&self, found: ModelDigest, expected: ModelDigest) -> String {
        match self {
            Self::Trained { run, .. } => format!(
                "the evaluator found the model {found} on the volume, but TrainingRun {} made {expected}: the files were \
                 modified",
                run.name_any()
            ),
            Self::Given(given) => format!(
                "the evaluator found the model {found} in PersistentVolumeClaim {}, but spec.model.digest requires \
                 {expected}: restore the files and create another Evaluation, or create one with the digest of these files",
                join(&[given.claim, given.path])
            ),
        }
    }

    /// Returns the claims that the pod mounts, each with the field that names it.
    pub(crate) fn claims(&self) -> Vec<(String, &'a str)> {
        match self {
            Self::Trained { run, .. } => {
                let field = format!("spec.output.persistentVolumeClaim.claimName of TrainingRun {}", run.name_any());
                vec![(field, &run.spec.output.persistent_volume_claim.claim_name)]
            }
            Self::Given(given) => vec![
                ("spec.model.persistentVolumeClaim.claimName".to_owned(), given.claim),
                ("spec.output.persistentVolumeClaim.claimName".to_owned(), &given.output.claim_name),
            ],
        }
    }

    /// Returns the claim that receives the results, and the folder above all results on it.
    fn output(&self) -> (&'a ClaimOutput, String) {
        match *self {
            Self::Trained { run, .. } => {
                let output = &run.spec.output.persistent_volume_claim;
                (output, join(&[&output.sub_path, &run.uid().unwrap_or_default()]))
            }
            Self::Given(given) => (given.output, join(&[&given.output.sub_path])),
        }
    }

    /// Returns the claim and the folder of the results, which is called `name` among those of all Evaluations.
    pub(crate) fn results(&self, name: &str) -> (&'a str, String) {
        let (output, folder) = self.output();
        (&output.claim_name, join(&[&folder, "evaluations", name]))
    }

    /// Mounts the model read-only and the folder of the results, and adds the arguments of `codex evaluate` that name them.
    /// `name` is that of the folder among those of all Evaluations.
    pub(crate) fn mount(&self, name: &str, mounts: &mut Mounts, args: &mut Vec<String>) {
        let (output, folder) = self.output();
        let model = match self {
            Self::Trained { .. } => {
                mounts.claim(&output.claim_name, &join(&[&folder, "model"]), MOUNT, Access::ReadOnly);
                MOUNT.to_owned()
            }
            // The whole claim, so that a missing folder is the evaluator's error and is not created by the kubelet.
            Self::Given(given) => {
                mounts.claim(given.claim, "", MOUNT, Access::Untouched);
                below(MOUNT, given.path)
            }
        };
        let (claim, results) = self.results(name);
        mounts.claim(claim, &results, OUTPUT, Access::Writable);
        args.extend(["--model".to_owned(), model]);
        if let Some(digest) = self.expected() {
            args.extend(["--model-digest".to_owned(), digest.to_string()]);
        }
        args.extend(["--output".to_owned(), OUTPUT.to_owned()]);
    }

    /// Returns the folder that the pods of `job` read instead of this model's, if they read another. The template of a Job cannot
    /// be changed, so it says which run was meant when the Job was created, whatever became of the status.
    pub(crate) fn former(&self, job: &Job) -> Option<String> {
        let Self::Trained { run, .. } = self else { return None };
        let uid = run.uid()?;
        let pod = job.spec.as_ref()?.template.spec.as_ref()?;
        let mut mounts = pod.containers.iter().flat_map(|container| container.volume_mounts.iter().flatten());
        let read = mounts.find(|mount| mount.mount_path == MOUNT)?.sub_path.clone()?;
        // The folder of a run is named after its uid. The path to it can be written in several ways.
        (!read.split('/').any(|part| part == uid)).then_some(read)
    }
}
