//! What a trainer made, checked: nothing that it says is taken before it fits together. Pure.

use codex_crds::{FileStatus, MAX_MODEL_FILES, ModelStatus, Reason};
use codex_reports::{Model, Stage as PodStage};

use super::stage::View;
use crate::{data, job, pod_template::join, refusal::Refusal};

/// The finished model: from the newest report, from last words that hold all of it, or from the status.
pub(crate) fn model(view: &View<'_>) -> Option<Result<ModelStatus, Refusal>> {
    let reported = view.states().find_map(|(_, state)| {
        let model = state.model.as_ref().filter(|_| state.stage == PodStage::Finished)?;
        // Last words that were cut short leave out the files; whole ones come by report.
        (!model.manifest.files.is_empty()).then_some((model, state))
    });
    let Some((model, state)) = reported else {
        return view.status.model.clone().map(Ok);
    };
    let read = view.read(state);
    let unread = data::unread(&view.spec().data, view.data(), &read).map(|why| Refusal::new(Reason::DataMismatch, why));
    Some(unread.map_or_else(|| checked(view, model), Err))
}

fn checked(view: &View<'_>, model: &Model) -> Result<ModelStatus, Refusal> {
    let refuse = |why: String| {
        Err(Refusal::new(Reason::ModelMismatch, format!("the trainer's report contradicts itself: {why}")))
    };
    if let Err(why) = model.manifest.validate() {
        return refuse(format!("its manifest is none: {why}"));
    }
    let digest = model.manifest.digest();
    if digest != model.digest {
        return refuse(format!("it names the model {} and its manifest hashes to {digest}", model.digest));
    }
    if model.manifest.oms_root() != model.oms_root {
        let root = model.manifest.oms_root();
        return refuse(format!("it names the OMS root {} and its manifest has {root}", model.oms_root));
    }
    let count = model.manifest.files.len();
    if count > MAX_MODEL_FILES {
        return refuse(format!("its model has {count} files, and at most {MAX_MODEL_FILES} can be recorded"));
    }
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let output = &view.spec().output.persistent_volume_claim;
    Ok(ModelStatus {
        digest,
        short: digest.short(),
        oms_root: model.oms_root,
        location: join(&[&output.claim_name, &output.sub_path, &view.worker.owner.uid, "model"]),
        parameters: number(model.parameters),
        size_bytes: number(model.manifest.size_bytes()),
        files: model
            .manifest
            .files
            .iter()
            .map(|file| FileStatus { path: file.path.clone(), size: number(file.size), sha256: file.sha256 })
            .collect(),
    })
}

/// What pods said that can never come right, whatever their Job goes on to do.
pub(crate) fn fault(view: &View<'_>) -> Option<Refusal> {
    let mounted = view.observed.job.as_ref().and_then(job::config_digest);
    for (report, state) in view.states() {
        if let Some(why) = data::mismatch(&view.spec().data, view.data(), &view.read(state)) {
            return Some(Refusal::new(Reason::DataMismatch, why));
        }
        if let (Some(mounted), Some(read)) = (mounted, report.config_digest)
            && mounted != read
        {
            let why = format!("the trainer was given the configuration {mounted} and read {read}");
            return Some(Refusal::new(Reason::InvalidConfiguration, why));
        }
    }
    view.model.as_ref().and_then(|model| model.as_ref().err().cloned())
}
