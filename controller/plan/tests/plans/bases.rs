//! Given weights: bases of runs, and evaluations of models that no run made.

use std::collections::BTreeMap;

use codex_crds::{TrainingRun, TrainingRunPhase, TrainingRunStatus};
use codex_plan::{
    Plan,
    conditions::find,
    evaluation::{self, ObservedEvaluation},
    reasoning_pod,
    training_run::{self, ObservedTrainingRun, base_cycle},
};
use codex_provenance::ModelDigest;
use codex_reports::{Kind, Stage, State, TrainingState};
use k8s_openapi::{api::core::v1::PodSpec, apimachinery::pkg::apis::meta::v1::Condition};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::{
    make,
    properties::{busy, trained},
    world::World,
};

fn base_digest() -> ModelDigest {
    make::model("base").digest
}

/// A run with this base that can start, as far as its own claims are concerned.
fn observed(base: &Value) -> ObservedTrainingRun {
    let mut observed = World::new().observed_run();
    observed.object.spec.base = Some(make::from(base.clone()));
    observed
}

fn plan(observed: &ObservedTrainingRun) -> Plan<TrainingRunStatus> {
    training_run::plan(observed, make::at(100))
}

fn ready(conditions: &[Condition]) -> (&str, &str) {
    let ready = find(conditions, codex_crds::ConditionType::Ready).unwrap();
    (&ready.reason, &ready.message)
}

/// The spec of the pods of a planned Job, and the arguments of their container.
fn pods<S>(plan: &Plan<S>) -> (PodSpec, Vec<String>) {
    let spec = plan.desired.jobs[0].spec.clone().unwrap().template.spec.unwrap();
    let args = spec.containers[0].args.clone().unwrap();
    (spec, args)
}

/// A run with this base, whose Job has a pod for each of these states, which it reported, the oldest first.
fn reported(base: &Value, states: &[TrainingState]) -> ObservedTrainingRun {
    with_states(observed(base), states)
}

fn with_states(mut observed: ObservedTrainingRun, states: &[TrainingState]) -> ObservedTrainingRun {
    observed.job = Some(plan(&observed).desired.jobs.remove(0));
    for (index, state) in states.iter().enumerate() {
        let pod = format!("pod-{index}");
        observed.pods.push(make::from(json!({
            "metadata": {"name": pod, "uid": pod, "creationTimestamp": make::at(index.try_into().unwrap())},
            "status": {"containerStatuses": [{
                "name": "trainer", "image": "codex:dev", "imageID": "codex@sha256:0", "ready": true, "restartCount": 0,
                "state": {"running": {"startedAt": make::at(1)}},
            }]},
        })));
        let digest = observed.job.as_ref().unwrap().annotations()[codex_crds::annotation::CONFIG_DIGEST].parse().ok();
        let report = make::report(Kind::TrainingRun, "run-1", &pod, 1, digest, State::Training(state.clone()));
        observed.reports.push(codex_plan::Received { report, pod, at: make::at(2), contradiction: None });
    }
    observed
}

#[test]
fn a_base_on_the_claim_of_the_output_is_one_volume_with_two_mounts() {
    let claim = json!({"persistentVolumeClaim": {"claimName": "output", "path": "given/llama/"}});
    let (spec, args) = pods(&plan(&observed(&claim)));
    let volumes: Vec<_> = spec.volumes.iter().flatten().filter(|it| it.persistent_volume_claim.is_some()).collect();
    let [volume] = &volumes[..] else { panic!("{volumes:?}") };
    assert_eq!(volume.persistent_volume_claim.as_ref().unwrap().read_only, None, "the output is written");
    let mounts = spec.containers[0].volume_mounts.iter().flatten().filter(|it| it.name == volume.name);
    let mounts: Vec<_> = mounts.map(|it| (&*it.mount_path, it.sub_path.as_deref(), it.read_only)).collect();
    assert_eq!(mounts, [("/output", Some("runs/run-1"), None), ("/base", None, Some(true))]);
    let at = args.iter().position(|arg| arg == "--base").unwrap();
    assert_eq!(args[at + 1], "/base/given/llama");
    assert!(!args.contains(&"--base-digest".to_owned()), "{args:?}");
}

#[test]
fn a_base_on_a_claim_of_its_own_is_not_touched() {
    let digest = base_digest();
    let claim = json!({"persistentVolumeClaim": {"claimName": "given"}, "digest": digest});
    let mut waits = observed(&claim);
    let plan_of = plan(&waits);
    assert_eq!(
        ready(&plan_of.status.conditions),
        (
            "NotFound",
            "spec.base.persistentVolumeClaim.claimName names the PersistentVolumeClaim \"given\", which does not exist in \
             this namespace: create it"
        )
    );
    assert!(plan_of.desired.jobs.is_empty());
    waits.references.as_mut().unwrap().claims.insert("given".to_owned());
    let (spec, args) = pods(&plan(&waits));
    let claims = spec.volumes.iter().flatten().filter_map(|it| it.persistent_volume_claim.as_ref());
    let claims: Vec<_> = claims.map(|it| (&*it.claim_name, it.read_only)).collect();
    assert_eq!(claims, [("output", None), ("given", Some(true))]);
    let at = args.iter().position(|arg| arg == "--base").unwrap();
    assert_eq!(args[at..at + 4], ["--base", "/base", "--base-digest", &digest.to_string()]);
}

#[test]
fn a_run_without_a_base_has_neither_argument_nor_mount() {
    let (spec, args) = pods(&plan(&World::new().observed_run()));
    assert!(!args.iter().any(|arg| arg.starts_with("--base")), "{args:?}");
    assert!(!spec.containers[0].volume_mounts.iter().flatten().any(|it| it.mount_path == "/base"));
}

#[test]
fn a_method_that_needs_a_base_is_refused_without_one() {
    let mut observed = World::new().observed_run();
    observed.object.spec.overrides = vec!["training.method=lora".to_owned()];
    let plan_of = plan(&observed);
    assert_eq!(
        ready(&plan_of.status.conditions),
        ("InvalidConfiguration", "training.method is lora: it needs a base; set spec.base, or write sft")
    );
    assert!(plan_of.desired.jobs.is_empty());
}

#[test]
fn the_model_of_a_former_run_is_taken_over_without_training() {
    let (digest, path) = (base_digest(), "runs/run-0/model");
    let claim = json!({"persistentVolumeClaim": {"claimName": "output", "path": path}, "digest": digest});
    let mut restored = observed(&claim);
    restored.object.spec.overrides = vec!["training.method=none".to_owned()];
    let (_, args) = pods(&plan(&restored));
    let at = args.iter().position(|arg| arg == "--base").unwrap();
    assert_eq!(args[at..at + 4], ["--base", &format!("/base/{path}"), "--base-digest", &digest.to_string()]);
    // It reads no data, and reports none.
    let read = make::training_from("base", 0);
    let copied = TrainingState { stage: Stage::Finished, model: Some(make::model("base")), data: Vec::new(), ..read };
    let mut restored = with_states(restored, &[copied]);
    let complete = json!({"conditions": [{"type": "Complete", "status": "True"}]});
    restored.job.as_mut().unwrap().status = Some(make::from(complete));
    let status = plan(&restored).status;
    assert_eq!(status.phase, Some(TrainingRunPhase::Succeeded), "{:?}", ready(&status.conditions));
    assert_eq!((status.model.unwrap().digest, status.base.unwrap().digest), (digest, digest));
}

#[test]
fn invalid_bases_are_named() {
    let claim = json!({"claimName": "output", "path": "llama"});
    for (base, told) in [
        (json!({"persistentVolumeClaim": {"claimName": "output"}}), "spec.output is in the folder of spec.base"),
        (json!({"persistentVolumeClaim": {"claimName": "output", "path": "./runs/"}}), "spec.output is in the folder"),
        (json!({}), "spec.base must have exactly one of persistentVolumeClaim, trainingRun and huggingFace"),
        (
            json!({"trainingRun": {"name": "b"}, "huggingFace": {"repository": "org/small", "revision": "main"}}),
            "spec.base must have exactly one of persistentVolumeClaim, trainingRun and huggingFace",
        ),
        (
            json!({"persistentVolumeClaim": claim, "trainingRun": {"name": "b"}}),
            "spec.base must have exactly one of persistentVolumeClaim, trainingRun and huggingFace",
        ),
        (json!({"persistentVolumeClaim": claim, "digest": "abc"}), "spec.base.digest: "),
    ] {
        let plan = plan(&observed(&base));
        let (reason, message) = ready(&plan.status.conditions);
        assert!(reason == "InvalidConfiguration" && message.starts_with(told), "{reason}: {message}");
        assert!(plan.desired.jobs.is_empty());
    }
}

#[test]
fn a_cycle_of_bases_is_refused_until_it_is_broken_and_does_not_end_a_job() {
    let run = json!({"trainingRun": {"name": "b"}});
    let mut in_a_cycle = observed(&run);
    in_a_cycle.base_cycle = vec!["b".to_owned(), "cot".to_owned()];
    let plan_of = plan(&in_a_cycle);
    assert_eq!(
        ready(&plan_of.status.conditions),
        (
            "InvalidConfiguration",
            "spec.base leads back to this TrainingRun (cot → b → cot): create one of them with another base"
        )
    );
    assert_eq!((plan_of.status.phase, &plan_of.status.completed_at), (Some(TrainingRunPhase::Failed), &None));
    in_a_cycle.base_cycle.clear();
    assert_eq!(ready(&plan(&in_a_cycle).status.conditions).0, "NotFound");
    in_a_cycle.base = Some(trained());
    in_a_cycle.job = Some(plan(&in_a_cycle).desired.jobs.remove(0));
    in_a_cycle.base_cycle = vec!["b".to_owned(), "cot".to_owned()];
    assert_eq!(ready(&plan(&in_a_cycle).status.conditions).0, "WaitingForPod");
}

#[test]
fn cycles_are_found_and_finished_runs_end_the_search() {
    let based = |name: &str, base: &str| -> TrainingRun {
        let mut run = make::run();
        run.metadata.name = Some(name.to_owned());
        run.spec.base = Some(make::from(json!({"trainingRun": {"name": base}})));
        run
    };
    let all = |runs: &[TrainingRun]| -> BTreeMap<String, TrainingRun> {
        runs.iter().map(|run| (run.name_any(), run.clone())).collect()
    };
    let cycle = |runs: &[TrainingRun]| {
        let all = all(runs);
        base_cycle(&runs[0], |name| all.get(name).cloned().map(std::sync::Arc::new))
    };
    assert_eq!(cycle(&[based("a", "a")]), ["a"]);
    assert_eq!(cycle(&[based("a", "b"), based("b", "c"), based("c", "a")]), ["b", "c", "a"]);
    // The base is missing; the cycle is one of others, which they name.
    assert!(cycle(&[based("a", "b")]).is_empty());
    assert!(cycle(&[based("a", "b"), based("b", "c"), based("c", "b")]).is_empty());
    // A finished run waits for nothing, even if another run now has the name of its base.
    let mut finished = based("b", "a");
    finished.status = trained().status;
    assert!(cycle(&[based("a", "b"), finished]).is_empty());
    assert!(cycle(&[make::run()]).is_empty());
}

#[test]
fn the_model_of_a_run_must_have_the_digest_of_the_base() {
    let mut demanding = observed(&json!({"trainingRun": {"name": "b"}, "digest": base_digest()}));
    demanding.base = Some(trained());
    let plan_of = plan(&demanding);
    assert!(plan_of.desired.jobs.is_empty() && plan_of.status.completed_at.is_some());
    let (reason, message) = ready(&plan_of.status.conditions);
    let made = make::model("a").digest;
    assert_eq!(
        (reason, message),
        (
            "BaseMismatch",
            &*format!(
                "TrainingRun b made the model {made}, but spec.base.digest requires {}: create another TrainingRun",
                base_digest()
            )
        )
    );
    demanding.object.spec.base.as_mut().unwrap().digest = Some(made.to_string());
    let (_, args) = pods(&plan(&demanding));
    assert!(args.contains(&made.to_string()), "{args:?}");
}

#[test]
fn a_base_with_another_digest_than_the_spec_demands_fails_the_run() {
    let claim = json!({"persistentVolumeClaim": {"claimName": "output", "path": "llama"}, "digest": base_digest()});
    let plan_of = plan(&reported(&claim, &[make::training_from("another", 5)]));
    let found = make::model("another").digest;
    assert_eq!(
        ready(&plan_of.status.conditions),
        (
            "BaseMismatch",
            &*format!(
                "the trainer found the base {found} in PersistentVolumeClaim output/llama, but spec.base.digest requires \
                 {}: restore the files and create another TrainingRun, or create one with the digest of these files",
                base_digest()
            )
        )
    );
    assert_eq!((plan_of.status.phase, plan_of.status.base), (Some(TrainingRunPhase::Failed), None));
    assert!(plan_of.status.completed_at.is_some());
}

#[test]
fn the_first_report_pins_the_base() {
    let claim = json!({"persistentVolumeClaim": {"claimName": "output", "path": "llama"}});
    let states = [make::training_from("base", 5), make::training_from("another", 6)];
    let plan_of = plan(&reported(&claim, &states));
    assert_eq!(ready(&plan_of.status.conditions).0, "BaseMismatch");
    assert_eq!(plan_of.status.base.map(|base| base.digest), Some(base_digest()));
    let plan_of = plan(&reported(&claim, &states[..1]));
    let base = plan_of.status.base.unwrap();
    assert_eq!((base.digest, &*base.source), (base_digest(), "PersistentVolumeClaim output/llama"));
    assert_eq!(base.short, base_digest().short());
}

#[test]
fn a_model_without_its_base_is_not_recorded_and_a_base_without_a_spec_is_refused() {
    let claim = json!({"persistentVolumeClaim": {"claimName": "output", "path": "run"}});
    let plan_of = plan(&reported(&claim, &[make::trained("a")]));
    assert!(plan_of.status.model.is_none());
    assert_eq!(
        ready(&plan_of.status.conditions),
        (
            "BaseMismatch",
            "the trainer reported no digest for spec.base, so the weights that it started from are unverified"
        )
    );
    let mut without = reported(&claim, &[make::training_from("base", 5)]);
    without.object.spec.base = None;
    let plan_of = plan(&without);
    let (reason, message) = ready(&plan_of.status.conditions);
    assert!(
        reason == "BaseMismatch" && message.ends_with("but the spec has no base: correct spec.pod.image"),
        "{message}"
    );
    assert!(plan_of.status.base.is_none());
}

/// Makes the Evaluation `lite` of a serving world one of a given model.
fn given(world: &World) -> ObservedEvaluation {
    let mut observed = world.observed_evaluation();
    let spec = &mut observed.object.spec;
    spec.training_run = None;
    spec.model = Some(make::from(json!({"persistentVolumeClaim": {"claimName": "output", "path": "llama"}})));
    spec.output = Some(make::from(json!({"persistentVolumeClaim": {"claimName": "output"}})));
    observed.object.status.as_mut().unwrap().training_run_uid = None;
    observed.run = None;
    observed
}

#[test]
fn the_results_about_a_given_model_are_stored_in_its_output() {
    let mut observed = given(&busy());
    (observed.object.status, observed.job) = (None, None);
    (observed.pods, observed.reports) = (Vec::new(), Vec::new());
    let plan = evaluation::plan(&observed, make::at(100));
    let (spec, args) = pods(&plan);
    let claims: Vec<_> = spec.volumes.iter().flatten().filter_map(|it| it.persistent_volume_claim.as_ref()).collect();
    assert_eq!((claims.len(), claims[0].read_only), (1, None));
    let mounts: Vec<_> = spec.containers[0].volume_mounts.iter().flatten().take(2).collect();
    let mounts: Vec<_> = mounts.iter().map(|it| (&*it.mount_path, it.sub_path.as_deref(), it.read_only)).collect();
    assert_eq!(mounts, [("/model", None, Some(true)), ("/output", Some("evaluations/evaluation-1"), None)]);
    assert_eq!(args[3..], ["--model", "/model/llama", "--output", "/output"]);
    let mut on_a_processor = observed.clone();
    on_a_processor.object.spec.device = Some(codex_crds::Device::Cpu);
    let (_, args) = pods(&evaluation::plan(&on_a_processor, make::at(0)));
    assert_eq!(args[3..], ["--device", "cpu", "--model", "/model/llama", "--output", "/output"]);
    assert!(!plan.desired.jobs[0].labels().contains_key(codex_crds::label::TRAINING_RUN));
}

#[test]
fn what_needs_a_gpu_is_refused_in_a_pod_without_one() {
    let mut run = World::new().observed_run();
    for (setting, instead) in
        [("training.device=cuda", "training.device=auto"), ("training.dtype=fp16", "training.dtype=bf16")]
    {
        run.object.spec.overrides = vec![setting.to_owned()];
        let planned = plan(&run);
        let (reason, message) = ready(&planned.status.conditions);
        assert_eq!((reason, planned.desired.jobs.len()), ("InvalidConfiguration", 0), "{message}");
        assert!(message.contains(&format!("{setting} needs a GPU, but spec.pod asks for none")), "{message}");
        assert!(message.contains(&format!("or write {instead}")), "{message}");
    }
    // A RuntimeClass can give a GPU to a pod that asks for none, and another image can have its own way.
    let is_refused = |run: &ObservedTrainingRun| ready(&plan(run).status.conditions).1.contains("needs a GPU");
    let (mut with_class, mut with_image) = (run.clone(), run.clone());
    with_class.object.spec.pod.worker.runtime_class_name = Some("nvidia".to_owned());
    with_image.object.spec.pod.image = Some("ours:1".to_owned());
    assert!(is_refused(&run) && !is_refused(&with_class) && !is_refused(&with_image));
    // Nothing is computed.
    run.object.spec.base = Some(make::from(json!({"persistentVolumeClaim": {"claimName": "models", "path": "llama"}})));
    run.object.spec.overrides.push("training.method=none".to_owned());
    assert!(!is_refused(&run));

    let mut judged = World::new().observed_evaluation();
    (judged.run, judged.object.spec.device) = (Some(trained()), Some(codex_crds::Device::Cuda));
    let status = evaluation::plan(&judged, make::at(100)).status;
    assert!(ready(&status.conditions).1.contains("spec.device: cuda needs a GPU"), "{status:?}");
    let mut served = busy().observed_pod();
    served.object.spec.serving.device = Some(codex_crds::Device::Cuda);
    let blocked = reasoning_pod::plan(&served, make::at(1_000)).status.blocked_by;
    assert!(blocked.iter().any(|why| why.contains("spec.serving.device: cuda needs a GPU")), "{blocked:?}");
}

#[test]
fn invalid_subjects_of_evaluations_are_named() {
    type Change = fn(&mut ObservedEvaluation);
    let changes: [(Change, &str); 5] = [
        (
            |it| it.object.spec.training_run = Some("cot".to_owned()),
            "spec must have exactly one of trainingRun and model",
        ),
        (|it| it.object.spec.model = None, "spec must have exactly one of trainingRun and model"),
        (
            |it| it.object.spec.output.as_mut().unwrap().persistent_volume_claim.sub_path = "llama/results".to_owned(),
            "spec.output is in the folder of spec.model, so that the results would change the digest of the model: create \
             another Evaluation with another folder or claim",
        ),
        (|it| it.object.spec.output = None, "spec.output is required with spec.model: name a claim for the results"),
        (
            |it| {
                it.object.spec.training_run = Some("cot".to_owned());
                it.object.spec.model = None;
            },
            "spec.output must be absent with spec.trainingRun: the results are stored beside the run",
        ),
    ];
    for (change, told) in changes {
        let mut observed = given(&busy());
        (observed.object.status, observed.job) = (None, None);
        change(&mut observed);
        let plan = evaluation::plan(&observed, make::at(100));
        assert_eq!(ready(&plan.status.conditions), ("InvalidConfiguration", told));
        assert!(plan.desired.jobs.is_empty());
    }
}

#[test]
fn an_evaluation_of_a_given_model_proves_exactly_the_digest_that_it_scored() {
    let world = busy();
    let mut pod = world.observed_pod();
    // The given model is the run's model: the verdict is about exactly these bytes.
    pod.evaluations = BTreeMap::from([("lite".to_owned(), given(&world).object)]);
    let plan = reasoning_pod::plan(&pod, make::at(1_000));
    assert_eq!(plan.status.blocked_by, [""; 0]);
    // Another one gates nothing here.
    let evaluation = pod.evaluations.get_mut("lite").unwrap();
    let another = make::model("b").digest;
    evaluation.status.as_mut().unwrap().model.as_mut().unwrap().digest = another;
    let plan = reasoning_pod::plan(&pod, make::at(1_000));
    let served = make::model("a").digest.short();
    assert_eq!(
        plan.status.blocked_by,
        [format!("Evaluation lite does not prove the model {served}: it evaluated the model {}", another.short())]
    );
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The state of a trainer that loaded the base "base" with this commit and signer.
fn from_hub(commit: Option<&str>, signer: Option<&str>) -> TrainingState {
    let base = codex_reports::Base {
        digest: base_digest(),
        commit: commit.map(str::to_owned),
        signer: signer.map(codex_provenance::Sha256::of),
    };
    TrainingState { base: Some(base), ..make::training_from("base", 5) }
}

#[test]
fn a_base_of_a_hub_is_an_argument_and_two_variables() {
    let hub = json!({"huggingFace": {
        "repository": "org/small", "revision": "main", "endpoint": "https://hub.example",
        "tokenSecret": {"name": "hugging-face", "key": "token"},
    }});
    let mut observed = observed(&hub);
    observed.object.spec.pod.env =
        make::from(json!([{"name": "HF_TOKEN", "value": "other"}, {"name": "HTTPS_PROXY", "value": "http://proxy"}]));
    let (spec, args) = pods(&plan(&observed));
    let at = args.iter().position(|arg| arg == "--base-from-hub").unwrap();
    assert_eq!(args[at + 1], "org/small@main");
    assert!(!args.iter().any(|arg| arg == "--base" || arg == "--base-digest"), "{args:?}");
    let env = spec.containers[0].env.clone().unwrap();
    let named = |name: &str| env.iter().filter(|variable| variable.name == name).collect::<Vec<_>>();
    let token = named("HF_TOKEN");
    let secret = token[0].value_from.as_ref().unwrap().secret_key_ref.as_ref().unwrap();
    assert_eq!((token.len(), &*secret.name, &*secret.key), (1, "hugging-face", "token"));
    assert_eq!(named("HF_ENDPOINT")[0].value.as_deref(), Some("https://hub.example"));
    assert_eq!(named("HTTPS_PROXY").len(), 1);
    assert!(spec.volumes.iter().flatten().all(|volume| volume.secret.is_none()));
    // Without them, the variables of the spec stay.
    observed.object.spec.base = Some(make::from(json!({"huggingFace": {"repository": "org/small", "revision": "v1"}})));
    let (spec, _) = pods(&plan(&observed));
    let env = spec.containers[0].env.clone().unwrap();
    assert!(env.iter().any(|variable| variable.name == "HF_TOKEN" && variable.value.as_deref() == Some("other")));
    assert!(!env.iter().any(|variable| variable.name == "HF_ENDPOINT"));
}

#[test]
fn the_commit_of_a_hub_is_recorded_and_must_be_the_one_of_the_spec() {
    let hub = |revision: &str| json!({"huggingFace": {"repository": "org/small", "revision": revision}});
    let plan_of = plan(&reported(&hub("main"), &[from_hub(Some(COMMIT), None)]));
    let base = plan_of.status.base.unwrap();
    assert_eq!((base.digest, base.source), (base_digest(), format!("Hugging Face org/small@{COMMIT}")));
    assert_eq!(base.signer, None);
    let mirror =
        json!({"huggingFace": {"repository": "org/small", "revision": "main", "endpoint": "https://hub.example"}});
    let plan_of = plan(&reported(&mirror, &[from_hub(Some(COMMIT), None)]));
    let source = plan_of.status.base.unwrap().source;
    assert_eq!(source, format!("Hugging Face org/small@{COMMIT} at https://hub.example"));

    let other = COMMIT.replace('0', "f");
    for (revision, commit, told) in [
        ("main", None, "the trainer reported no commit for the base Hugging Face org/small@main"),
        ("main", Some("main"), "the trainer reported no commit for the base"),
        (&*other, Some(COMMIT), "the trainer downloaded the commit 0123456789abcdef"),
    ] {
        let plan_of = plan(&reported(&hub(revision), &[from_hub(commit, None)]));
        let (reason, message) = ready(&plan_of.status.conditions);
        assert!(reason == "BaseMismatch" && message.starts_with(told), "{reason}: {message}");
        assert!(plan_of.status.base.is_none() && plan_of.status.completed_at.is_some());
    }
}

#[test]
fn a_signed_base_needs_a_key_and_a_report_of_its_signature() {
    let claim = json!({
        "persistentVolumeClaim": {"claimName": "output", "path": "llama"},
        "signedBy": {"configMap": {"name": "signers", "key": "team.pem"}},
    });
    let mut waits = observed(&claim);
    let field = "spec.base.signedBy.configMap";
    let plan_of = plan(&waits);
    assert_eq!(
        ready(&plan_of.status.conditions),
        (
            "NotFound",
            &*format!(
                "{field}.name names the ConfigMap \"signers\", which does not exist in this namespace: create it"
            )
        )
    );
    let maps = &mut waits.references.as_mut().unwrap().config_maps;
    maps.insert("signers".to_owned(), std::iter::once("other.pem".to_owned()).collect());
    let plan_of = plan(&waits);
    let (_, message) = ready(&plan_of.status.conditions);
    assert!(
        message.starts_with(&format!("{field}.key is \"team.pem\"")) && message.ends_with("other.pem"),
        "{message}"
    );
    let maps = &mut waits.references.as_mut().unwrap().config_maps;
    maps.insert("signers".to_owned(), std::iter::once("team.pem".to_owned()).collect());
    let (spec, args) = pods(&plan(&waits));
    let at = args.iter().position(|arg| arg == "--base-signed-by").unwrap();
    assert_eq!(args[at + 1], "/base-signer/team.pem");
    let mount = spec.containers[0].volume_mounts.iter().flatten().find(|it| it.mount_path == "/base-signer").unwrap();
    assert_eq!(mount.read_only, Some(true));

    let with = |states: &[TrainingState]| {
        // The Job exists only if the ConfigMap did.
        let mut base = claim.clone();
        base.as_object_mut().unwrap().remove("signedBy");
        let mut observed = reported(&base, states);
        observed.object.spec.base = Some(make::from(claim.clone()));
        plan(&observed)
    };
    let plan_of = with(&[from_hub(None, Some("key"))]);
    let signer = plan_of.status.base.unwrap().signer;
    assert_eq!(signer, Some(codex_provenance::Sha256::of("key")));
    let plan_of = with(&[from_hub(None, None)]);
    let (reason, message) = ready(&plan_of.status.conditions);
    assert!(
        reason == "BaseMismatch" && message.starts_with("the trainer reported no signature of the base"),
        "{message}"
    );
}
