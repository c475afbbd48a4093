//! The children of an evaluation: its mounted configuration and its Job. Pure.

use codex_crds::child;
use kube::ResourceExt;

use super::{stage::Stage, view::View};
use crate::{
    data::mount_data,
    plan::Desired,
    pod_template::{Access, CONFIG, CONFIG_FILE, Mounts, Probes, Template, join},
    work::DesiredJob,
};

/// Seconds from SIGTERM to SIGKILL: an evaluation starts over, so it saves nothing.
const GRACE_SECONDS: i64 = 30;

/// Returns the desired children.
pub(crate) fn children(view: &View<'_>, stage: &Stage) -> Desired {
    let job = match stage {
        Stage::Failed(_) => view.work.failed_job(),
        // A Job that exists stays as it is: its pod exits by itself, or goes on while run or spec are being corrected.
        Stage::Done | Stage::Judged(_) | Stage::Invalid(_) | Stage::Waiting(_) => DesiredJob::Unchanged,
        Stage::Active(active) => active.job(),
    };
    let name = child::evaluator(&view.work.worker.owner.name);
    view.work.children(name, job, |name| template(view, name))
}

fn template<'a>(view: &'a View<'_>, config_map: String) -> Option<Template<'a>> {
    let (spec, settings, owner) = (view.spec(), view.work.settings, &view.work.worker.owner);
    let (run, model) = view.trained()?;
    let output = &run.spec.output.persistent_volume_claim;
    let folder = join(&[&output.sub_path, &run.uid().unwrap_or_default()]);
    let mut mounts = Mounts::default();
    mounts.claim(&output.claim_name, &join(&[&folder, "model"]), "/model", Access::ReadOnly);
    let results = join(&[&folder, "evaluations", &owner.uid]);
    mounts.claim(&output.claim_name, &results, "/output", Access::Writable);
    let (config_file, digest) = (format!("{CONFIG}/{CONFIG_FILE}"), model.digest.to_string());
    let mut args: Vec<String> = ["evaluate", "--config", &config_file, "--model", "/model", "--model-digest", &digest]
        .into_iter()
        .chain(["--output", "/output"])
        .map(str::to_owned)
        .collect();
    mount_data(&spec.data, &mut mounts, &mut args);
    Some(Template {
        owner,
        component: view.work.component,
        settings,
        image: &settings.worker_image,
        args,
        env: &[],
        worker: &spec.pod,
        config_map,
        mounts,
        restart_policy: Some("Never"),
        grace_seconds: GRACE_SECONDS,
        port: None,
        probes: Probes::default(),
    })
}
