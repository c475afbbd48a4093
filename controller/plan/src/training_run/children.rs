//! The children of a run: its mounted configuration and its Job. Pure.

use codex_crds::child;

use super::{adoption, stage::Stage, view::View};
use crate::{
    data::mount_data,
    plan::Desired,
    pod_template::{Access, CONFIG, CONFIG_FILE, Mounts, Port, Probes, Template, join},
    work::DesiredJob,
};

/// The port of a trainer's metrics.
pub(crate) const METRICS_PORT: i32 = 9464;

/// Returns the desired children.
pub(crate) fn children(view: &View<'_>, stage: &Stage) -> Desired {
    let job = match stage {
        Stage::Done(_) | Stage::Succeeded(_) => {
            view.work.expired().unwrap_or(DesiredJob::Present { suspended: true, settled: true })
        }
        Stage::Failed(_) | Stage::Unreproducible(_) => view.work.failed_job(),
        // A Job that exists goes on while the spec is being corrected.
        Stage::Invalid(_) | Stage::Waiting { .. } | Stage::Discarded(_) => DesiredJob::Unchanged,
        // What is reproduced is recorded before anything is trained.
        Stage::Active(_) if view.pins() => DesiredJob::Absent,
        Stage::Active(active) => active.job(),
    };
    let name = child::trainer(&view.work.worker.owner.name);
    view.work.children(name, job, |name| Some(template(view, name)))
}

fn template<'a>(view: &'a View<'_>, config_map: String) -> Template<'a> {
    let (spec, settings, owner) = (view.spec(), view.work.settings, &view.work.worker.owner);
    let output = &spec.output.persistent_volume_claim;
    let (mut mounts, mut env) = (Mounts::default(), spec.pod.env.clone());
    mounts.claim(&output.claim_name, &join(&[&output.sub_path, &owner.uid]), "/output", Access::Writable);
    let config_file = format!("{CONFIG}/{CONFIG_FILE}");
    let mut args = ["train", "--config", &config_file, "--output", "/output"].map(str::to_owned).to_vec();
    if let Ok(Some(base)) = &view.base {
        base.mount(&mut mounts, &mut args);
        let own = base.variables();
        env.retain(|variable| !own.iter().any(|it| it.name == variable.name));
        env.extend(own);
    }
    mount_data(&spec.data, &mut mounts, &mut args);
    let mut worker = &spec.pod.worker;
    if let Some(reproduction) = &view.reproduction {
        args.extend(reproduction.arguments());
        env.extend(reproduction.variable());
        worker = &reproduction.worker;
    }
    if let Some(former) = &view.former {
        adoption::tell(former, spec, &mut mounts, &mut env);
    }
    Template {
        owner,
        component: view.work.component,
        settings,
        image: view.image.as_deref().unwrap_or_default(),
        args,
        env,
        worker,
        config_map,
        mounts,
        restart_policy: Some("Never"),
        grace_seconds: spec.termination_grace_period_seconds,
        ports: vec![Port::Metrics(METRICS_PORT)],
        probes: Probes::default(),
    }
}
