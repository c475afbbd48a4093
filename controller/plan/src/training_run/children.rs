//! The children of a run: its mounted configuration and its Job. Pure.

use std::collections::BTreeMap;

use codex_crds::child;
use k8s_openapi::api::core::v1::ConfigMap;

use super::stage::{Stage, View, Waiting};
use crate::{
    Desired, KeptKind,
    data::mount_data,
    job::{Config, Limits, Work, carry_on, keep},
    metadata::Component,
    pod_template::{Access, CA, CONFIG, Mounts, Probes, Template, join},
};

/// From SIGTERM to SIGKILL: time enough for the step at hand and a checkpoint.
const GRACE_SECONDS: i64 = 60;

pub(crate) fn children(view: &View<'_>, stage: &Stage) -> Desired {
    let mut desired = Desired::default();
    let name = child::trainer(&view.worker.owner.name);
    let stopped = match stage {
        Stage::Done(_) | Stage::Succeeded(_) | Stage::Suspended => true,
        Stage::Failed(_) => !view.worker.gave_up(),
        // What has begun stays as it is while somebody looks at the spec.
        Stage::Invalid(_) => return kept(view, desired, name),
        Stage::Waiting(Waiting::References(_)) => return desired,
        Stage::Waiting(Waiting::Pod(_) | Waiting::LastReport(_)) | Stage::Running => false,
    };
    let limits = Limits {
        suspend: stopped,
        retries: view.spec().retries,
        remaining: view.worker.clock.remaining(view.spec().active_deadline_seconds),
    };
    let settled = matches!(stage, Stage::Done(_) | Stage::Succeeded(_) | Stage::Failed(_));
    match (&view.observed.job, &view.config) {
        (Some(live), config) => {
            let metadata = view.worker.owner.child(name.clone(), Component::Trainer, &view.observed.settings.version);
            carry_on(&mut desired, live, metadata, limits);
            match config {
                Ok(Config { file: Some(file), .. }) if !settled => {
                    desired.config_maps.push(config_map(view, name, file));
                }
                _ => keep(&mut desired, KeptKind::ConfigMap, name),
            }
        }
        // Success is what was recorded, and failure stays: nothing is made again.
        (None, _) if settled => keep(&mut desired, KeptKind::ConfigMap, name),
        (None, Ok(config)) if !stopped => {
            if let Some(file) = &config.file {
                desired.config_maps.push(config_map(view, name.clone(), file));
            }
            desired.jobs.push(work(view, name, config, limits).job());
        }
        (None, _) => {}
    }
    desired
}

fn kept(view: &View<'_>, mut desired: Desired, name: String) -> Desired {
    if view.observed.job.is_some() {
        keep(&mut desired, KeptKind::ConfigMap, name.clone());
        keep(&mut desired, KeptKind::Job, name);
    }
    desired
}

fn config_map(view: &View<'_>, name: String, file: &str) -> ConfigMap {
    let settings = &view.observed.settings;
    ConfigMap {
        metadata: view.worker.owner.child(name, Component::Trainer, &settings.version),
        data: Some(BTreeMap::from([
            ("config.yaml".to_owned(), file.to_owned()),
            (CA.to_owned(), settings.report_ca.clone()),
        ])),
        ..ConfigMap::default()
    }
}

fn work<'a>(view: &'a View<'_>, name: String, config: &Config, limits: Limits) -> Work<'a> {
    let (spec, settings) = (view.spec(), &view.observed.settings);
    let output = &spec.output.persistent_volume_claim;
    let mut mounts = Mounts::default();
    mounts.claim(&output.claim_name, &join(&[&output.sub_path, &view.worker.owner.uid]), "/output", Access::Writable);
    let mut args: Vec<String> =
        ["train", "--config", &format!("{CONFIG}/config.yaml"), "--output", "/output"].map(str::to_owned).to_vec();
    mount_data(&spec.data, &mut mounts, &mut args);
    Work {
        name: name.clone(),
        template: Template {
            owner: &view.worker.owner,
            component: Component::Trainer,
            settings,
            image: spec.pod.image.as_deref().unwrap_or(&settings.trainer_image),
            args,
            env: &spec.pod.env,
            worker: &spec.pod.worker,
            config_map: name,
            mounts,
            restart_policy: Some("Never"),
            grace_seconds: GRACE_SECONDS,
            port: None,
            probes: Probes::default(),
        },
        config_digest: config.digest,
        limits,
    }
}
