//! What the trainers of a run reported as their result, checked before it is used. Pure.

use codex_crds::{FileStatus, MAX_MODEL_FILES, ModelStatus, Reason};
use codex_reports::{Model, Stage as PodStage, TrainingState};

use super::{adoption, view::View};
use crate::{numbers::count, pod_template::join, work::WorkFailure};

/// What the trainers reported, checked.
pub(crate) struct Outcome {
    /// The finished model, as it was reported or as the status records it.
    pub(crate) model: Option<ModelStatus>,
    /// Why no attempt can succeed, whatever the Job goes on to do.
    pub(crate) failure: Option<WorkFailure>,
}

impl Outcome {
    pub(crate) fn of(view: &View<'_>) -> Self {
        if let Some(failure) = view.work.worker.contradiction() {
            return Self { model: None, failure: Some(failure.clone()) };
        }
        let wrong = view
            .states()
            .find_map(|(report, state)| view.work.wrong_input(report, &state.data).or_else(|| view.wrong_base(state)));
        match model(view).transpose() {
            Ok(model) => Self { model, failure: wrong },
            Err(failure) => Self { model: None, failure: wrong.or(Some(failure)) },
        }
    }
}

/// Returns the finished model: from the newest report that holds all of it, else from the status.
fn model(view: &View<'_>) -> Option<Result<ModelStatus, WorkFailure>> {
    let mut counted = view.states().filter(|(report, state)| !adoption::is_outdated(view, report, state));
    let reported = counted.find_map(|(_, state)| {
        let model = state.model.as_ref().filter(|_| state.stage == PodStage::Finished)?;
        // A termination message that had to be shortened has no files.
        (!model.manifest.files.is_empty()).then_some((model, state))
    });
    let Some((model, state)) = reported else {
        return view.status.model.clone().map(Ok);
    };
    let unread = view.work.unread(&view.work.digests(&state.data)).or_else(|| view.unread_base(state));
    Some(unread.map_or_else(|| checked(view, model, state), Err))
}

fn checked(view: &View<'_>, model: &Model, state: &TrainingState) -> Result<ModelStatus, WorkFailure> {
    let refuse = |why: String| {
        Err(WorkFailure::new(Reason::ModelMismatch, format!("the trainer's report is inconsistent: {why}")))
    };
    if let Err(why) = model.manifest.validate() {
        return refuse(format!("its manifest is invalid: {why}"));
    }
    let digest = model.manifest.digest();
    if digest != model.digest {
        return refuse(format!("it names the model {}, but the digest of its manifest is {digest}", model.digest));
    }
    if model.manifest.oms_root() != model.oms_root {
        let root = model.manifest.oms_root();
        return refuse(format!("it names the OMS root {}, but that of its manifest is {root}", model.oms_root));
    }
    let files = model.manifest.files.len();
    if files > MAX_MODEL_FILES {
        return refuse(format!("its model has {files} files, but at most {MAX_MODEL_FILES} can be recorded"));
    }
    if let Some(refuted) = adoption::refuted(view, state, digest) {
        return Err(refuted);
    }
    let output = &view.spec().output.persistent_volume_claim;
    Ok(ModelStatus {
        digest,
        short: digest.short(),
        oms_root: model.oms_root,
        location: join(&[&output.claim_name, &output.sub_path, &view.work.worker.owner.uid, "model"]),
        parameters: count(model.parameters),
        size_bytes: count(model.manifest.size_bytes()),
        adapter: model.adapter,
        files: model
            .manifest
            .files
            .iter()
            .map(|file| FileStatus { path: file.path.clone(), size: count(file.size), sha256: file.sha256 })
            .collect(),
    })
}
