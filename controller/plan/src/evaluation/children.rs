//! The children of an evaluation: its mounted configuration and its Job. Pure.

use super::{reference, stage::Stage, view::View};
use crate::{
    data::mount_data,
    plan::Desired,
    pod_template::{CONFIG, CONFIG_FILE, Mounts, Probes, Template},
    work::DesiredJob,
};

/// Returns the desired children.
pub(crate) fn children(view: &View<'_>, stage: &Stage) -> Desired {
    let job = match stage {
        Stage::Failed(_) => view.work.failed_job(),
        // There has been no run, so there is no Job.
        Stage::Scheduled(_) => DesiredJob::Absent,
        Stage::Done(_) => view.work.expired().unwrap_or(DesiredJob::Unchanged),
        // A Job that exists stays as it is: its pod exits by itself, or goes on while run or spec are being corrected.
        Stage::Judged(_)
        | Stage::Uncounted(_)
        | Stage::Invalid(_)
        | Stage::Waiting { .. }
        | Stage::WithoutReference(_)
        | Stage::Discarded(_) => DesiredJob::Unchanged,
        Stage::Active(active) => active.job(),
    };
    view.work.children(view.job_name(), job, |name| template(view, name))
}

fn template<'a>(view: &'a View<'_>, config_map: String) -> Option<Template<'a>> {
    let (spec, settings, owner) = (view.spec(), view.work.settings, &view.work.worker.owner);
    let mut mounts = Mounts::default();
    let config_file = format!("{CONFIG}/{CONFIG_FILE}");
    let mut args = ["evaluate", "--config", &config_file].map(str::to_owned).to_vec();
    args.extend(spec.device.into_iter().flat_map(|device| ["--device".to_owned(), device.to_string()]));
    if spec.page {
        args.extend(["--page".to_owned(), serde_json::to_string(&spec.gates).ok()?]);
    }
    view.model()?.mount(&view.folder(), &mut mounts, &mut args);
    mount_data(&spec.data, &mut mounts, &mut args);
    reference::mount(view.observed, view.references.as_ref().ok()?, &mut mounts, &mut args)?;
    Some(Template {
        owner,
        component: view.work.component,
        settings,
        image: view.image.as_deref().unwrap_or_default(),
        args,
        env: Vec::new(),
        worker: &spec.pod,
        config_map,
        mounts,
        restart_policy: Some("Never"),
        grace_seconds: spec.termination_grace_period_seconds,
        ports: Vec::new(),
        probes: Probes::default(),
    })
}
