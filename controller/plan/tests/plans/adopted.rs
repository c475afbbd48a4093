//! Runs whose inputs a former run had: what proves it, what the trainer is told, and what is recorded and stated of an adopted model.

use std::sync::Arc;

use codex_crds::{ConditionType, TrainingRunPhase, TrainingRunStatus};
use codex_plan::{
    Effect, Plan, Settings,
    conditions::find,
    reasoning_pod,
    training_run::{self, ObservedTrainingRun, RecordedTraining, config_digest},
};
use codex_provenance::{
    ConfigDigest, ModelDigest, Sha256, Validity,
    attestation::{Attestation, attestations},
    promotion::{Attested, Promotion, Reported},
};
use codex_reports::{Adoption, FORMER_VARIABLE, Former, Kind, Stage, State, TrainingState};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Pod, PodSpec},
};
use kube::ResourceExt;
use serde_json::json;

use crate::{
    make,
    properties::{ready_to_sign, reproducible},
    world::World,
};

fn image(digit: &str) -> String {
    format!("registry.example.com/codex@sha256:{}", digit.repeat(64))
}

/// The record of the former run `run-0`, as its signed statements hold it.
fn record() -> RecordedTraining {
    let mut observed = ready_to_sign("run-0");
    let status = observed.run.as_mut().unwrap().status.as_mut().unwrap();
    status.computation = reproducible().status.unwrap().computation;
    status.work.image_id = Some(image("1"));
    let plan = reasoning_pod::plan(&observed, make::at(9));
    let [Effect::SignPromotion { config_map, promotion, build }] = &plan.effects[..] else { panic!("{plan:?}") };
    let config = promotion.reasons.training.attested.config_digest.to_string();
    assert_eq!(config_map.annotations()[codex_crds::annotation::CONFIG_DIGEST], config, "by which it is found");
    let [provenance, ..] = attestations(promotion, build);
    recorded(promotion, &Attestation::read(&provenance.payload, promotion).unwrap())
}

fn recorded(promotion: &Promotion, provenance: &Attestation) -> RecordedTraining {
    RecordedTraining {
        namespace: promotion.reasons.namespace.clone(),
        model: promotion.model,
        training: promotion.reasons.training.clone(),
        build: provenance.recorded_build().unwrap(),
        provenance: provenance.digest,
        validity: Validity::default(),
    }
}

/// The run `run-1` with the same inputs, without a Job.
fn observed() -> ObservedTrainingRun {
    let mut observed = World::new().observed_run();
    observed.settings = with_image(&image("1"));
    observed.records = vec![record()];
    observed
}

fn with_image(image: &str) -> Arc<Settings> {
    let attested_images = vec![self::image("1").parse().unwrap()];
    Arc::new(Settings { trainer_image: image.to_owned(), attested_images, ..Settings::clone(&make::settings()) })
}

fn plan(observed: &ObservedTrainingRun) -> Plan<TrainingRunStatus> {
    training_run::plan(observed, make::at(100))
}

fn job(observed: &ObservedTrainingRun) -> Job {
    plan(observed).desired.jobs.remove(0)
}

fn pod_spec(job: &Job) -> PodSpec {
    job.spec.clone().unwrap().template.spec.unwrap()
}

/// Returns what the trainers of a Job are told.
fn told(job: &Job) -> Option<Former> {
    let variables = pod_spec(job).containers[0].env.clone().unwrap();
    let variable = variables.into_iter().find(|variable| variable.name == FORMER_VARIABLE)?;
    Some(serde_json::from_str(&variable.value.unwrap()).unwrap())
}

/// The same after the trainer of its Job reported this state, and ended if it has finished.
fn said(mut observed: ObservedTrainingRun, state: TrainingState) -> ObservedTrainingRun {
    let mut job = job(&observed);
    let digest = job.annotations()[codex_crds::annotation::CONFIG_DIGEST].parse().ok();
    let finished = state.stage == Stage::Finished;
    let report = make::report(Kind::TrainingRun, "run-1", "pod", 1, digest, State::Training(state));
    let message = serde_json::to_string(&report).unwrap();
    let running = json!({"running": {"startedAt": make::at(2)}});
    let ended = json!({"terminated": {"exitCode": 0, "message": message, "finishedAt": make::at(90)}});
    let phase = if finished { ended } else { running };
    let mut pod: Pod = make::from(json!({
        "metadata": {"name": "pod", "uid": "pod", "creationTimestamp": make::at(2)},
        "status": {"containerStatuses": [{
            "name": "trainer", "image": "codex", "imageID": image("1"), "ready": true, "restartCount": 0,
            "state": phase,
        }]},
    }));
    pod.spec = Some(PodSpec { node_name: Some("node-2".to_owned()), ..pod_spec(&job) });
    if finished {
        job.status = make::from(json!({"conditions": [
            {"type": "Complete", "status": "True", "lastTransitionTime": make::at(90)},
        ]}));
    }
    observed.job = Some(job);
    observed.pods.push(pod);
    observed.reports.push(codex_plan::Received {
        report,
        pod: "pod".to_owned(),
        at: make::at(50),
        contradiction: None,
    });
    observed
}

fn adoption(refused: Option<&str>) -> Adoption {
    Adoption { run: "run-0".to_owned(), model: make::model("a").digest, refused: refused.map(str::to_owned) }
}

/// A trainer that took the model.
fn adopted() -> TrainingState {
    TrainingState {
        progress: None,
        steps_executed: 0,
        last_checkpoint: None,
        computation: Some(make::computation()),
        adoption: Some(adoption(None)),
        ..make::trained("a")
    }
}

fn reason(status: &TrainingRunStatus, kind: ConditionType) -> &str {
    &find(&status.conditions, kind).unwrap().reason
}

#[test]
fn the_trainer_is_told_of_a_former_run_and_of_nothing_else() {
    let observed = observed();
    let with = job(&observed);
    let former = told(&with).unwrap();
    assert_eq!((former.directory.as_str(), former.run.uid.as_str()), ("/former/run-0", "run-0"));
    assert_eq!((former.model, former.attested), (make::model("a").digest, false));
    assert_eq!(former.data.keys().collect::<Vec<_>>(), ["file", "made"]);
    let mounts = pod_spec(&with).containers[0].volume_mounts.clone().unwrap();
    let mount = mounts.iter().find(|mount| mount.mount_path == "/former").unwrap();
    assert_eq!((mount.sub_path.as_deref(), mount.read_only), (Some("runs"), Some(true)));
    // Without a record the pod is what it always was.
    let without = job(&ObservedTrainingRun { records: Vec::new(), ..observed });
    let mut stripped = pod_spec(&with);
    let container = &mut stripped.containers[0];
    container.env.as_mut().unwrap().retain(|variable| variable.name != FORMER_VARIABLE);
    container.volume_mounts.as_mut().unwrap().retain(|mount| mount.mount_path != "/former");
    assert_eq!((told(&without), stripped), (None, pod_spec(&without)));
}

#[test]
fn a_job_that_exists_is_not_changed_by_a_record() {
    let mut observed = ObservedTrainingRun { records: Vec::new(), ..observed() };
    observed.job = Some(job(&observed));
    observed.records = vec![record()];
    let plan = plan(&observed);
    assert!(plan.desired.jobs.is_empty() && plan.desired.kept.iter().any(|kept| kept.name == "codex-t-cot"));
}

/// A difference between this run and the record, each of which makes it train.
#[test]
fn a_run_that_would_state_anything_else_trains() {
    type Edit = fn(&mut ObservedTrainingRun);
    fn of(observed: &mut ObservedTrainingRun) -> &mut RecordedTraining {
        &mut observed.records[0]
    }
    let changes: [(&str, Edit); 17] = [
        ("seed", |it| it.object.spec.seed = 2),
        ("data", |it| it.object.spec.data.truncate(1)),
        ("parameters", |it| of(it).build.parameters["data"][0]["source"]["synthetic"]["seed"] = json!(2)),
        ("configuration", |it| of(it).training.attested.config_digest = ConfigDigest(Sha256::of("x"))),
        ("an image by a tag", |it| it.settings = with_image("codex:dev")),
        ("a tag that looks like a digest", |it| it.settings = with_image(&format!("evil/sha256:{}", "1".repeat(64)))),
        ("another image", |it| it.settings = with_image(&image("2"))),
        ("an image of its own", |it| it.object.spec.pod.image = Some(image("1"))),
        ("a variable", |it| it.object.spec.pod.env = make::from(json!([{"name": "A", "value": "b"}]))),
        ("variables of the former run", |it| of(it).build.parameters["environment"] = json!(["A"])),
        ("variables that were not stated", |it| {
            of(it).build.parameters.as_object_mut().unwrap().remove("environment");
        }),
        ("a GPU", |it| {
            it.settings = Arc::new(Settings { cuda_image: Some(image("1")), ..Settings::clone(&it.settings) });
            it.object.spec.pod.worker.resources = make::from(json!({"limits": {"nvidia.com/gpu": "1"}}));
        }),
        ("another namespace", |it| of(it).namespace = "others".to_owned()),
        ("a signer that counts no more", |it| of(it).validity.not_after = Some(make::at(99))),
        ("its own record", |it| of(it).training.run.uid = "run-1".to_owned()),
        ("a uid that is a path", |it| of(it).training.run.uid = "../../others".to_owned()),
        ("an adapter", |it| of(it).training.adapter = Some(ModelDigest(Sha256::of("adapter")))),
    ];
    assert!(told(&job(&observed())).is_some());
    for (name, edit) in changes {
        let mut changed = observed();
        edit(&mut changed);
        assert_eq!(told(&job(&changed)), None, "{name}");
    }
}

/// A private run with a secret key cannot be repeated, so that what it gives is not known before.
#[test]
fn a_run_with_secret_randomness_trains() {
    for (randomness, adopts) in [("seed", true), ("secret", false)] {
        let mut observed = observed();
        let overrides = [
            "training.spike_action=count",
            "training.privacy.target_epsilon=3",
            "training.privacy.target_delta=1e-6",
            &format!("training.privacy.randomness={randomness}"),
        ];
        observed.object.spec.overrides = overrides.map(str::to_owned).to_vec();
        let config = config_digest(&observed.object.spec, None).unwrap();
        let record = &mut observed.records[0];
        record.training.attested.config_digest = config;
        record.build.parameters["overrides"] = json!(overrides);
        assert_eq!(told(&job(&observed)).is_some(), adopts, "{randomness}");
    }
}

#[test]
fn the_newest_of_several_former_runs_is_taken() {
    let mut observed = observed();
    let mut newer = record();
    newer.training.run.uid = "run-9".to_owned();
    newer.training.attested.completed_at = Some("2099-01-01T00:00:00Z".to_owned());
    newer.provenance = Sha256::of("newer");
    for place in [0, 1] {
        observed.records = vec![record()];
        observed.records.insert(place, newer.clone());
        assert_eq!(told(&job(&observed)).unwrap().run.uid, "run-9");
    }
}

#[test]
fn an_adopted_model_is_recorded_and_stated_as_what_it_is() {
    let mut observed = said(observed(), adopted());
    let first = plan(&observed);
    assert_eq!(first.status.phase, Some(TrainingRunPhase::Succeeded), "{:?}", first.status.conditions);
    let adoption = first.status.adoption.clone().unwrap();
    assert_eq!((adoption.uid.as_str(), adoption.model, &adoption.refused), ("run-0", make::model("a").digest, &None));
    assert_eq!(reason(&first.status, ConditionType::Trained), "Adopted");
    let event = first.events.iter().find(|event| event.reason == "Adopted").unwrap();
    assert!(event.note.contains("from the former TrainingRun cot (uid run-0)"), "{event:?}");
    assert_eq!(first.status.model.as_ref().unwrap().location, "output/runs/run-1/model");
    assert_eq!((&first.status.progress, first.status.steps_executed), (&None, None), "no number of a training");
    assert_eq!(first.status.computation.as_ref().unwrap().node, None, "this node computed nothing");
    // It stays when Job, pod and record are gone.
    observed.object.status = Some(first.status.clone());
    (observed.job, observed.pods, observed.records) = (None, Vec::new(), Vec::new());
    assert_eq!(plan(&observed).status, first.status);

    let mut pod = ready_to_sign("run-1");
    let status = pod.run.as_mut().unwrap().status.as_mut().unwrap();
    (status.adoption, status.computation) = (first.status.adoption, first.status.computation);
    let plan = reasoning_pod::plan(&pod, make::at(9));
    let [Effect::SignPromotion { promotion, build, .. }] = &plan.effects[..] else { panic!("{plan:?}") };
    let stated = promotion.reasons.training.adopted.as_ref().unwrap();
    assert_eq!((stated.run.uid.as_str(), stated.image_id.as_str()), ("run-0", image("1").as_str()));
    assert_eq!((stated.provenance, &build.started_at), (record().provenance, &None));
    let [provenance, ..] = attestations(promotion, build);
    let read = Attestation::read(&provenance.payload, promotion).unwrap();

    // Once this run is created again as well, its record names its own folder, and still the run that computed.
    let mut third = self::observed();
    third.object.metadata.uid = Some("run-2".to_owned());
    third.records = vec![recorded(promotion, &read)];
    let former = told(&job(&third)).unwrap();
    assert_eq!((former.directory.as_str(), former.run.uid.as_str()), ("/former/run-1", "run-0"));
}

#[test]
fn a_refusal_is_recorded_and_the_run_trains() {
    let refused = |state: TrainingState| {
        let adoption = Some(adoption(Some("the data made is another")));
        plan(&said(observed(), TrainingState { computation: Some(make::computation()), adoption, ..state })).status
    };
    let running = refused(make::training(5));
    assert_eq!(running.adoption.unwrap().refused.as_deref(), Some("the data made is another"));
    let trained = refused(make::trained("b"));
    assert_eq!(reason(&trained, ConditionType::Trained), "Succeeded");
    assert_eq!(trained.model.unwrap().digest, make::model("b").digest, "whatever training gives");
    assert!(!trained.adoption.unwrap().is_done());
    assert_eq!(trained.computation.unwrap().node.as_deref(), Some("node-2"));
}

#[test]
fn a_program_that_does_not_know_former_runs_trains() {
    let status = plan(&said(observed(), make::trained("a"))).status;
    assert_eq!((reason(&status, ConditionType::Trained), status.adoption.clone()), ("Succeeded", None));
}

#[test]
fn a_trainer_that_adopts_something_else_fails_the_run() {
    type Edit = fn(&mut TrainingState);
    let changes: [(&str, Edit); 6] = [
        ("another model", |it| it.model = Some(make::model("b"))),
        ("another model than it says", |it| it.adoption.as_mut().unwrap().model = make::model("b").digest),
        ("another run", |it| it.adoption.as_mut().unwrap().run = "run-7".to_owned()),
        ("other data", |it| it.data[0].sha256 = codex_provenance::DataDigest(Sha256::of("x"))),
        ("another program", |it| it.computation.as_mut().unwrap().program = Sha256::of("x")),
        ("no program", |it| it.computation = None),
    ];
    for (name, edit) in changes {
        let mut state = adopted();
        edit(&mut state);
        let status = plan(&said(observed(), state)).status;
        assert_eq!(status.phase, Some(TrainingRunPhase::Failed), "{name}");
        assert_eq!(reason(&status, ConditionType::Stalled), "ModelMismatch", "{name}");
    }
    let untold = ObservedTrainingRun { records: Vec::new(), ..observed() };
    let status = plan(&said(untold, adopted())).status;
    let stalled = find(&status.conditions, ConditionType::Stalled).unwrap();
    assert!(stalled.message.contains("of which it was not told"), "{}", stalled.message);
}

/// The word of a trainer that copied is worth no more than that of the one that computed.
#[test]
fn an_adopted_model_is_attested_only_if_its_training_was() {
    let attested = |edit: fn(&mut RecordedTraining)| {
        let mut observed = observed();
        edit(&mut observed.records[0]);
        plan(&said(observed, adopted())).status.attested
    };
    assert_eq!(attested(|_| ()), None);
    let vouched = attested(|record| {
        let Reported { data } = record.training.reported.take().unwrap();
        record.training.attested = Attested { data: Some(data), ..record.training.attested.clone() };
    });
    assert_eq!(vouched, Some(true));
}
