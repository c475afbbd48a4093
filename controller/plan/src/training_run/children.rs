//! The children of a run: its mounted configuration and its Job. Pure.

use codex_crds::child;

use super::stage::{Stage, View, Waiting};
use crate::{
    Desired,
    data::mount_data,
    job::{Course, Task},
    metadata::Component,
    pod_template::{Access, CONFIG, CONFIG_FILE, Mounts, Port, Probes, Template, join},
};

/// From SIGTERM to SIGKILL: time enough for the step at hand and a checkpoint.
const GRACE_SECONDS: i64 = 60;
/// Where Prometheus finds a trainer's numbers.
const METRICS_PORT: i32 = 9464;

pub(crate) fn children(view: &View<'_>, stage: &Stage) -> Desired {
    let course = match stage {
        Stage::Done(_) | Stage::Succeeded(_) => Course::On { stopped: true, settled: true },
        Stage::Failed(_) => Course::On { stopped: !view.worker.gave_up(), settled: true },
        Stage::Suspended => Course::On { stopped: true, settled: false },
        Stage::Waiting(Waiting::Pod(_) | Waiting::LastReport(_)) | Stage::Running => {
            Course::On { stopped: false, settled: false }
        }
        // What has begun stays as it is while somebody looks at the spec.
        Stage::Invalid(_) => Course::Kept,
        Stage::Waiting(Waiting::References(_)) => Course::None,
    };
    let task = Task {
        worker: &view.worker,
        component: Component::Trainer,
        settings: &view.observed.settings,
        name: child::trainer(&view.worker.owner.name),
        live: view.observed.job.as_ref(),
        config: &view.config,
        granted: view.granted(),
    };
    task.children(course, |name| Some(template(view, name)))
}

fn template<'a>(view: &'a View<'_>, config_map: String) -> Template<'a> {
    let (spec, settings) = (view.spec(), &view.observed.settings);
    let output = &spec.output.persistent_volume_claim;
    let mut mounts = Mounts::default();
    mounts.claim(&output.claim_name, &join(&[&output.sub_path, &view.worker.owner.uid]), "/output", Access::Writable);
    let config_file = format!("{CONFIG}/{CONFIG_FILE}");
    let mut args = ["train", "--config", &config_file, "--output", "/output"].map(str::to_owned).to_vec();
    mount_data(&spec.data, &mut mounts, &mut args);
    Template {
        owner: &view.worker.owner,
        component: Component::Trainer,
        settings,
        image: spec.pod.image.as_deref().unwrap_or(&settings.trainer_image),
        args,
        env: &spec.pod.env,
        worker: &spec.pod.worker,
        config_map,
        mounts,
        restart_policy: Some("Never"),
        grace_seconds: GRACE_SECONDS,
        port: Some(Port::Metrics(METRICS_PORT)),
        probes: Probes::default(),
    }
}
