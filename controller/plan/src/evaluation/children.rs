//! The children of an evaluation: its mounted configuration and its Job. Pure.

use std::collections::BTreeMap;

use codex_crds::child;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;

use super::stage::{Stage, View, Waiting};
use crate::{
    Desired, KeptKind,
    data::mount_data,
    job::{Config, Limits, Work, carry_on, keep},
    metadata::Component,
    pod_template::{Access, CA, CONFIG, Mounts, Probes, Template, join},
};

/// From SIGTERM to SIGKILL: an evaluation begins anew, there is nothing to save.
const GRACE_SECONDS: i64 = 30;

pub(crate) fn children(view: &View<'_>, stage: &Stage) -> Desired {
    let mut desired = Desired::default();
    let name = child::evaluator(&view.worker.owner.name);
    let (settled, stopped) = match stage {
        Stage::Failed(_) => (true, !view.worker.gave_up()),
        Stage::Suspended => (false, true),
        Stage::Waiting(Waiting::Pod(_) | Waiting::LastReport(_)) | Stage::Running => (false, false),
        // What has begun stays as it is: its pod has said all and ends by itself, or somebody looks at run or spec.
        Stage::Done
        | Stage::Judged(_)
        | Stage::Invalid(_)
        | Stage::Waiting(Waiting::Run | Waiting::Training | Waiting::FailedTraining(_)) => {
            keep(&mut desired, KeptKind::ConfigMap, name.clone());
            if view.observed.job.is_some() {
                keep(&mut desired, KeptKind::Job, name);
            }
            return desired;
        }
        Stage::Waiting(Waiting::References(_)) => return desired,
    };
    let limits = Limits {
        suspend: stopped,
        retries: view.spec().retries,
        remaining: view.worker.clock.remaining(view.spec().active_deadline_seconds),
    };
    match (&view.observed.job, &view.config) {
        (Some(live), config) => {
            let metadata = view.worker.owner.child(name.clone(), Component::Evaluator, &view.observed.settings.version);
            carry_on(&mut desired, live, metadata, limits);
            match config {
                Ok(Config { file: Some(file), .. }) if !settled => {
                    desired.config_maps.push(config_map(view, name, file));
                }
                _ => keep(&mut desired, KeptKind::ConfigMap, name),
            }
        }
        // The verdict is what was recorded, and failure stays: nothing is made again.
        (None, _) if settled => keep(&mut desired, KeptKind::ConfigMap, name),
        (None, Ok(config)) if !stopped => {
            if let Some(file) = &config.file {
                desired.config_maps.push(config_map(view, name.clone(), file));
            }
            desired.jobs.extend(work(view, name, config, limits).map(Work::job));
        }
        (None, _) => {}
    }
    desired
}

fn config_map(view: &View<'_>, name: String, file: &str) -> ConfigMap {
    let settings = &view.observed.settings;
    ConfigMap {
        metadata: view.worker.owner.child(name, Component::Evaluator, &settings.version),
        data: Some(BTreeMap::from([
            ("config.yaml".to_owned(), file.to_owned()),
            (CA.to_owned(), settings.report_ca.clone()),
        ])),
        ..ConfigMap::default()
    }
}

fn work<'a>(view: &'a View<'_>, name: String, config: &Config, limits: Limits) -> Option<Work<'a>> {
    let (spec, settings) = (view.spec(), &view.observed.settings);
    let (run, model) = view.trained()?;
    let output = &run.spec.output.persistent_volume_claim;
    let folder = join(&[&output.sub_path, &run.uid().unwrap_or_default()]);
    let mut mounts = Mounts::default();
    mounts.claim(&output.claim_name, &join(&[&folder, "model"]), "/model", Access::ReadOnly);
    let results = join(&[&folder, "evaluations", &view.worker.owner.uid]);
    mounts.claim(&output.claim_name, &results, "/output", Access::Writable);
    let config_file = format!("{CONFIG}/config.yaml");
    let digest = model.digest.to_string();
    let mut args: Vec<String> = ["evaluate", "--config", &config_file, "--model", "/model", "--model-digest", &digest]
        .into_iter()
        .chain(["--output", "/output"])
        .map(str::to_owned)
        .collect();
    mount_data(&spec.data, &mut mounts, &mut args);
    Some(Work {
        name: name.clone(),
        template: Template {
            owner: &view.worker.owner,
            component: Component::Evaluator,
            settings,
            image: &settings.worker_image,
            args,
            env: &[],
            worker: &spec.pod,
            config_map: name,
            mounts,
            restart_policy: Some("Never"),
            grace_seconds: GRACE_SECONDS,
            port: None,
            probes: Probes::default(),
        },
        config_digest: config.digest,
        limits,
    })
}
