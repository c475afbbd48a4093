//! The children of an evaluation: its mounted configuration and its Job. Pure.

use codex_crds::child;
use kube::ResourceExt;

use super::stage::{Stage, View, Waiting};
use crate::{
    Desired,
    data::mount_data,
    job::{Course, Task},
    metadata::Component,
    pod_template::{Access, CONFIG, CONFIG_FILE, Mounts, Probes, Template, join},
};

/// From SIGTERM to SIGKILL: an evaluation begins anew, there is nothing to save.
const GRACE_SECONDS: i64 = 30;

pub(crate) fn children(view: &View<'_>, stage: &Stage) -> Desired {
    let course = match stage {
        Stage::Failed(_) => Course::On { stopped: !view.worker.gave_up(), settled: true },
        Stage::Suspended => Course::On { stopped: true, settled: false },
        Stage::Waiting(Waiting::Pod(_) | Waiting::LastReport(_)) | Stage::Running => {
            Course::On { stopped: false, settled: false }
        }
        // What has begun stays as it is: its pod has said all and ends by itself, or somebody looks at run or spec.
        Stage::Done
        | Stage::Judged(_)
        | Stage::Invalid(_)
        | Stage::Waiting(Waiting::Run | Waiting::RunEnding | Waiting::Training | Waiting::FailedTraining(_)) => {
            Course::Kept
        }
        Stage::Waiting(Waiting::References(_)) => Course::None,
    };
    let task = Task {
        worker: &view.worker,
        component: Component::Evaluator,
        settings: &view.observed.settings,
        name: child::evaluator(&view.worker.owner.name),
        live: view.observed.job.as_ref(),
        config: &view.config,
        granted: view.granted(),
    };
    task.children(course, |name| template(view, name))
}

fn template<'a>(view: &'a View<'_>, config_map: String) -> Option<Template<'a>> {
    let (spec, settings) = (view.spec(), &view.observed.settings);
    let (run, model) = view.trained()?;
    let output = &run.spec.output.persistent_volume_claim;
    let folder = join(&[&output.sub_path, &run.uid().unwrap_or_default()]);
    let mut mounts = Mounts::default();
    mounts.claim(&output.claim_name, &join(&[&folder, "model"]), "/model", Access::ReadOnly);
    let results = join(&[&folder, "evaluations", &view.worker.owner.uid]);
    mounts.claim(&output.claim_name, &results, "/output", Access::Writable);
    let (config_file, digest) = (format!("{CONFIG}/{CONFIG_FILE}"), model.digest.to_string());
    let mut args: Vec<String> = ["evaluate", "--config", &config_file, "--model", "/model", "--model-digest", &digest]
        .into_iter()
        .chain(["--output", "/output"])
        .map(str::to_owned)
        .collect();
    mount_data(&spec.data, &mut mounts, &mut args);
    Some(Template {
        owner: &view.worker.owner,
        component: Component::Evaluator,
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
