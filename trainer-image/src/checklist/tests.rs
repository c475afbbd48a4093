//! `codex deploy` and `codex status-report` on files.

use std::{fs, path::Path};

use clap::Parser;
use codex_checklist::{State, Subject};
use codex_reports::exit;
use serde_json::Value;

use super::*;
use crate::run_folder::tests::{evaluation, run};

#[derive(Parser)]
struct DeployArguments {
    #[command(flatten)]
    deploy: Deploy,
}

#[derive(Parser)]
struct SurveyArguments {
    #[command(flatten)]
    report: StatusReport,
}

const OBJECTS: &str = r#"
apiVersion: codex-ml.dev/v1alpha1
kind: TrainingRun
metadata: { name: cot }
spec:
  rolloutRing: 0D_base_
  template: cot-starter
  data:
    - name: arithmetic
      source: { synthetic: { task: arithmetic, seed: 1, count: 1000 } }
  output:
    persistentVolumeClaim: { claimName: models, subPath: runs }
---
apiVersion: codex-ml.dev/v1alpha1
kind: Evaluation
metadata: { name: lite }
spec:
  trainingRun: cot
  preset: cot-lite
  gates:
    - { metric: exact_match, min: "0.95", minSamples: 500, confidence: "0.95" }
    - { metric: trace_coverage, min: "0.8" }
---
apiVersion: codex-ml.dev/v1alpha1
kind: ReasoningPod
metadata: { name: cot-rc }
spec:
  rolloutRing: 0D_base_
  trainingRun: cot
  evaluations: [lite]
  dryRun: false
  replicas: 1
  pod:
    resources:
      requests: { cpu: 200m, memory: 128Mi }
      limits: { memory: 512Mi }
"#;

/// A run with a passed evaluation, its objects and its survey.
fn complete(objects: &str, right: u64) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let model = run(root.path());
    evaluation(root.path(), "lite", model, right);
    fs::write(root.path().join("objects.yaml"), objects).unwrap();
    survey(root.path(), &["--unsigned", "--out", root.path().to_str().unwrap()]).unwrap();
    root
}

fn deploy(root: &Path, more: &[&str]) -> Result<Checklist, (i32, String)> {
    let objects = root.join("objects.yaml");
    let line = ["deploy", "--config", objects.to_str().unwrap(), "--run-metadata-dir", root.to_str().unwrap()];
    let parsed = DeployArguments::try_parse_from(line.into_iter().chain(more.iter().copied()));
    let parsed = parsed.map_err(|error| (exit::BAD_INPUT, error.to_string()))?;
    parsed.deploy.check().map_err(|error| (error.exit, error.sentence()))
}

/// Surveys the run, writes what `--out` asks for, and returns the survey.
fn survey(root: &Path, more: &[&str]) -> Result<Survey, (i32, String)> {
    let objects = root.join("objects.yaml");
    let line = ["status-report", root.to_str().unwrap(), "--config", objects.to_str().unwrap(), "--date", "2026-11-28"];
    let parse = || {
        SurveyArguments::try_parse_from(line.into_iter().chain(more.iter().copied()))
            .map_err(|error| (exit::BAD_INPUT, error.to_string()))
    };
    let told = |error: crate::error::CommandError| (error.exit, error.sentence());
    let survey = parse()?.report.survey().map_err(told)?;
    if more.contains(&"--out") {
        parse()?.report.run().map_err(told)?;
    }
    Ok(survey)
}

fn state(checklist: &Checklist, subject: Subject) -> State {
    checklist.checks.iter().find(|check| check.subject == subject).unwrap().state
}

fn reasons(checklist: &Checklist) -> String {
    let reasons = checklist.checks.iter().flat_map(|check| &check.reasons);
    reasons.map(|reason| format!("{reason}\n")).collect::<Vec<_>>().concat()
}

#[test]
fn a_complete_run_may_roll_out() {
    let root = complete(OBJECTS, 990);
    let checklist = deploy(root.path(), &["--unsigned", "--dry-run"]).unwrap();
    assert!(!checklist.blocked, "{checklist}");
    assert_eq!(checklist.checks.len(), 7);
    assert_eq!(state(&checklist, Subject::Signatures), State::Waived);
    assert_eq!(state(&checklist, Subject::StatusReport), State::Holds);
    let told = checklist.to_string();
    assert!(told.starts_with("ReasoningPod cot-rc may roll out into 0D_base_\nmodel "), "{told}");
    assert!(told.contains("\n  ok      evaluations: lite: 2 of 2 gates passed\n"), "{told}");
    assert!(told.contains("\n  ok      resources: deployment.preset is custom\n"), "{told}");
    assert!(told.contains("\n  waived  signatures: not checked (--unsigned)"), "{told}");
    assert!(told.ends_with("nothing was created: apply the objects with kubectl or Argo CD"), "{told}");
    let json: Value = serde_json::to_value(&checklist).unwrap();
    assert_eq!(
        (&json["schemaVersion"], &json["blocked"], &json["ring"]),
        (&1.into(), &false.into(), &"0D_base_".into())
    );
    assert_eq!(json["checks"][6]["subject"], "resources");
}

#[test]
fn every_reason_is_named_at_once() {
    let objects = OBJECTS
        .replacen("rolloutRing: 0D_base_", "rolloutRing: 0C_base_", 1)
        .replace("limits: { memory: 512Mi }", "limits: { memory: 8 }");
    let root = complete(&objects, 700);
    fs::remove_file(root.path().join("artifacts/dataset_checksums.json")).unwrap();
    fs::write(root.path().join("model/config.json"), "{ }").unwrap();
    let checklist = deploy(root.path(), &[]).unwrap();
    assert!(checklist.blocked);
    let told = checklist.to_string();
    assert!(told.starts_with("DEPLOYMENT BLOCKED: cot-rc into 0D_base_: 7 of 7 checks do not hold\n"), "{told}");
    for expected in [
        "  ring: TrainingRun cot is in 0C_base_, and ReasoningPod cot-rc is in 0D_base_: change",
        "  artifacts: ",
        "dataset_checksums.json does not exist\n",
        "  manifest: Evaluation lite measured the model ",
        "  evaluations: lite: exact_match Failed: ",
        "  signatures: no bundle was given: ",
        "  status report: no survey is about this model in the ring 0D_base_",
        "  resources: spec.pod.resources.limits.memory is below the size of the model",
        "requests.memory is above its limit",
    ] {
        assert!(told.contains(expected), "{expected}: {told}");
    }
    assert!(told.ends_with("\nnothing was created"), "{told}");
}

#[test]
fn what_the_objects_lack_is_named() {
    let [run, evaluation, pod] = OBJECTS.split("---").collect::<Vec<_>>()[..] else { panic!("three objects") };
    let root = complete(OBJECTS, 990);
    let with = |objects: &str| {
        fs::write(root.path().join("objects.yaml"), objects).unwrap();
        deploy(root.path(), &["--unsigned"])
    };
    let told = reasons(&with(pod).unwrap());
    assert!(
        told.contains("the ring of the run is not declared: ") && told.contains("TrainingRun cot; add it"),
        "{told}"
    );
    assert!(told.contains("lite: ") && told.contains("so its gates are unknown: add it"), "{told}");
    let refused = |objects: &str| with(objects).unwrap_err();
    let (code, told) = refused(&format!("{run}---{evaluation}"));
    assert!(code == exit::BAD_INPUT && told.contains("it holds no ReasoningPod"), "{told}");
    let (code, told) = refused(&format!("{pod}---{}", pod.replace("cot-rc", "cot-main")));
    assert!(code == exit::BAD_INPUT && told.contains("choose by --pod one of cot-rc, cot-main"), "{told}");
    let (code, told) = refused("kind: a-token\n");
    assert!(
        code == exit::BAD_INPUT && told.contains("it holds no objects of codex-ml.dev") && !told.contains("a-token")
    );
    let (code, told) = refused(&pod.replace("0D_base_", "0E_base_"));
    assert!(code == exit::BAD_INPUT && told.contains("spec.rolloutRing"), "{told}");
    fs::write(root.path().join("objects.yaml"), OBJECTS).unwrap();
    let (code, told) = deploy(root.path(), &["--pod", "other"]).unwrap_err();
    assert!(code == exit::BAD_INPUT && told.contains("no ReasoningPod other: use one of cot-rc"), "{told}");
}

#[test]
fn only_a_dry_run_is_possible() {
    let root = complete(OBJECTS, 990);
    let (code, told) = deploy(root.path(), &["--no-dry-run"]).unwrap_err();
    assert!(code == exit::BAD_INPUT && told.contains("apply the objects with kubectl or Argo CD"), "{told}");
    assert_eq!(deploy(root.path(), &["--no-dry-run", "--dry-run"]).unwrap_err().0, exit::BAD_INPUT);
    let (code, told) = deploy(root.path(), &["--run-metadata-dir", "nowhere"]).unwrap_err();
    assert_eq!(code, exit::BAD_INPUT, "{told}");
}

#[test]
fn a_sign_off_counts_for_exactly_its_model_and_report() {
    let root = complete(OBJECTS, 700);
    let failed = deploy(root.path(), &["--unsigned"]).unwrap();
    assert_eq!(state(&failed, Subject::Evaluations), State::Blocked);
    let report: Value =
        serde_json::from_slice(&fs::read(root.path().join("evaluations/lite/evaluation.json")).unwrap()).unwrap();
    let (model, report) = (report["model"]["digest"].as_str().unwrap(), report["reportDigest"].as_str().unwrap());
    let other = "0".repeat(64);
    let with = |about: &str, model: &str, report: &str| {
        let sign_off = format!(
            "---\napiVersion: codex-ml.dev/v1alpha1\nkind: SignOff\nmetadata: {{ name: ada }}\nspec:\n  {about}\n  by: ada\n  \
             reason: read it\n  modelDigest: {model:?}\n  reportDigest: {report:?}\n"
        );
        fs::write(root.path().join("objects.yaml"), format!("{OBJECTS}{sign_off}")).unwrap();
        deploy(root.path(), &["--unsigned"]).unwrap()
    };
    for about in ["evaluation: lite", "reasoningPod: cot-rc"] {
        let checklist = with(about, model, report);
        assert_eq!(state(&checklist, Subject::Evaluations), State::Waived, "{checklist}");
        assert!(checklist.to_string().contains("lite: signed off by ada: read it (the operator itself"), "{checklist}");
    }
    let told = reasons(&with("evaluation: lite", &other, report));
    assert!(told.contains("lite: SignOff ada does not count: it names the model 000000000000"), "{told}");
    let told = reasons(&with("evaluation: lite", model, &other));
    assert!(told.contains("it names the report 000000000000, and the report is "), "{told}");
    let told = reasons(&with("evaluation: lite\n  ring: main", model, report));
    assert!(told.contains("it is for the ring main, and this is 0D_base_"), "{told}");
}

#[test]
fn artifacts_of_another_run_are_noticed() {
    let root = complete(OBJECTS, 990);
    fs::write(
        root.path().join("artifacts/dataset_checksums.json"),
        format!("{{\"arithmetic\": \"{}\"}}", "0".repeat(64)),
    )
    .unwrap();
    let told = reasons(&deploy(root.path(), &["--unsigned"]).unwrap());
    assert!(told.starts_with("the data drifted: dataset_checksums.json gives the version "), "{told}");
    let objects = OBJECTS
        .replace("template: cot-starter", "template: cot-padded")
        .replace("task: arithmetic,", "task: arithmetic-padded,");
    fs::write(root.path().join("objects.yaml"), objects).unwrap();
    let told = reasons(&deploy(root.path(), &["--unsigned"]).unwrap());
    assert!(told.contains("the run is of the template cot-starter, but its TrainingRun has cot-padded"), "{told}");
}

#[test]
fn evaluations_are_found_by_name_or_by_preset_and_model() {
    let root = complete(OBJECTS, 990);
    let lite = root.path().join("evaluations/lite");
    fs::rename(&lite, root.path().join("evaluations/uid-1")).unwrap();
    assert!(!deploy(root.path(), &["--unsigned"]).unwrap().blocked, "the only one of its preset");
    let model = deploy(root.path(), &["--unsigned"]).unwrap().model.unwrap();
    let second = evaluation(root.path(), "uid-2", model, 999);
    let told = reasons(&deploy(root.path(), &["--unsigned"]).unwrap());
    assert!(told.contains("several files may be meant") && told.contains("--evaluation lite=FILE"), "{told}");
    let chosen = format!("lite={}", second.display());
    assert!(!deploy(root.path(), &["--unsigned", "--evaluation", &chosen]).unwrap().blocked);
    let (code, told) = deploy(root.path(), &["--unsigned", "--evaluation", "lite=nowhere.json"]).unwrap_err();
    assert!(code == exit::BAD_INPUT && told.contains("--evaluation: nowhere.json cannot be read"), "{told}");
    fs::remove_dir_all(root.path().join("evaluations")).unwrap();
    let told = reasons(&deploy(root.path(), &["--unsigned"]).unwrap());
    assert!(told.contains("lite: no evaluation.json of the preset cot-lite is about the model"), "{told}");
}

#[test]
fn resources_must_be_stated() {
    let root = complete(OBJECTS, 990);
    let with = |from: &str, to: &str| {
        fs::write(root.path().join("objects.yaml"), OBJECTS.replace(from, to)).unwrap();
        let checklist = deploy(root.path(), &["--unsigned"]).unwrap();
        assert_eq!(state(&checklist, Subject::Resources), State::Blocked, "{to}");
        reasons(&checklist)
    };
    let told = with("      limits: { memory: 512Mi }\n", "");
    assert!(told.contains("spec.pod.resources.limits.memory is not set: write a quantity, such as 512Mi"), "{told}");
    let told = with("cpu: 200m", "cpu: \"0\"");
    assert!(told.contains("requests.cpu is \"0\": write a quantity above 0"), "{told}");
    let told = with("replicas: 1", "replicas: 0");
    assert!(told.contains("spec.replicas is 0"), "{told}");
}

#[test]
fn quotas_beside_the_objects_limit_the_servers() {
    let root = complete(OBJECTS, 990);
    let quota = |cpu: &str| {
        format!(
            "apiVersion: v1\nkind: ResourceQuota\nmetadata: {{ name: team }}\nspec: {{ hard: {{ requests.cpu: {cpu} }} }}\n"
        )
    };
    let with = |cpu: &str| {
        fs::write(root.path().join("objects.yaml"), format!("{OBJECTS}---\n{}", quota(cpu))).unwrap();
        deploy(root.path(), &["--unsigned"])
    };
    let checklist = with("200m").unwrap();
    assert!(!checklist.blocked, "{checklist}");
    assert!(checklist.to_string().contains("resources: the servers are within ResourceQuota team"), "{checklist}");
    let told = reasons(&with("199m").unwrap());
    assert!(told.contains("ResourceQuota team allows 0.199 of requests.cpu, others use 0"), "{told}");
    let (code, told) = with("lots").unwrap_err();
    assert!(code == exit::BAD_INPUT && told.contains("spec.hard.requests.cpu is \"lots\""), "{told}");

    fs::write(root.path().join("objects.yaml"), OBJECTS).unwrap();
    let path = root.path().join("limits.yaml");
    let limits = ["--unsigned", "--limits", path.to_str().unwrap()];
    let range = "{ apiVersion: v1, kind: LimitRange, metadata: { name: sizes }, spec: { limits: [{ type: Container, max: { memory: 256Mi } }] } }";
    fs::write(&path, format!("apiVersion: v1\nkind: List\nitems: [{range}]\n")).unwrap();
    let told = reasons(&deploy(root.path(), &limits).unwrap());
    assert!(told.contains("limits.memory is 512Mi, and LimitRange sizes asks for at most 256Mi"), "{told}");
    fs::write(&path, "kind: ConfigMap\n").unwrap();
    let (code, told) = deploy(root.path(), &limits).unwrap_err();
    assert!(code == exit::BAD_INPUT && told.contains("it holds no ResourceQuota and no LimitRange"), "{told}");
}

#[test]
fn policies_state_the_weights_of_readiness() {
    let root = complete(OBJECTS, 990);
    let policy = "---\napiVersion: codex-ml.dev/v1alpha1\nkind: PromotionPolicy\nmetadata: { name: team }\nspec:\n  readiness: \
                  { evidence: \"0\", traces: \"1\", deployment: \"0\" }\n";
    fs::write(root.path().join("objects.yaml"), format!("{OBJECTS}{policy}")).unwrap();
    let found = survey(root.path(), &["--unsigned"]).unwrap();
    assert!((found.readiness - 0.9).abs() < 1e-9 && found.weights.traces > 0.99, "{found:?}");
    assert_eq!(survey(root.path(), &["--unsigned", "--weights", "0,1,0"]).unwrap(), found);
    let (code, told) = survey(root.path(), &["--unsigned", "--weights", "1,0,0"]).unwrap_err();
    assert!(
        code == exit::BAD_INPUT && told.contains("PromotionPolicy team states the weights 0,1,0: remove the flag"),
        "{told}"
    );
}

#[test]
fn readiness_is_the_weighted_sum_of_its_parts() {
    let root = complete(OBJECTS, 990);
    let found = survey(root.path(), &["--unsigned"]).unwrap();
    let run = &found.runs[0];
    assert_eq!((run.gates_passed, run.gates, run.checks.len()), (2, 2, 6));
    let shares = [run.evidence, run.traces, run.deployment, run.readiness, found.readiness];
    for (found, expected) in shares.into_iter().zip([1.0, 0.9, 1.0, 0.98, 0.98]) {
        assert!((found - expected).abs() < 1e-9, "{shares:?}");
    }
    let found = survey(root.path(), &["--unsigned", "--weights", "0,1,0"]).unwrap();
    assert!((found.readiness - 0.9).abs() < 1e-9, "{}", found.readiness);
    // Without a signature, five of six checks hold.
    let found = survey(root.path(), &["--weights", "0,0,1"]).unwrap();
    assert!((found.readiness - 0.8333).abs() < 1e-9, "{}", found.readiness);
    fs::remove_dir_all(root.path().join("evaluations")).unwrap();
    let found = survey(root.path(), &["--unsigned", "--weights", "0.5,0.5,0"]).unwrap();
    assert!(found.readiness.abs() < 1e-9 && found.runs[0].gates == 2, "{found:?}");
    for wrong in ["1", "0.5,0.5,0.5", "1.5,-0.5,0", "a,b,c", "nan,0,1"] {
        let (code, told) = survey(root.path(), &[&format!("--weights={wrong}")]).unwrap_err();
        assert!(code == exit::BAD_INPUT && told.contains("write three numbers from 0 to 1 that sum to 1"), "{told}");
    }
}

#[test]
fn a_survey_without_objects_needs_a_ring() {
    let root = tempfile::tempdir().unwrap();
    run(root.path());
    let with = |more: &[&str]| {
        let line = ["status-report", root.path().to_str().unwrap()].into_iter().chain(more.iter().copied());
        SurveyArguments::try_parse_from(line).unwrap().report.survey()
    };
    let error = with(&[]).unwrap_err();
    assert!(error.exit == exit::BAD_INPUT && error.sentence().contains("give --config FILE or --ring RING"));
    let found = with(&["--ring", "main", "--unsigned"]).unwrap();
    let run = &found.runs[0];
    let holds: Vec<_> = run.checks.iter().filter(|it| it.state != State::Blocked).map(|it| it.subject).collect();
    assert_eq!(holds, [Subject::Artifacts, Subject::Signatures]);
    assert!(run.evidence.abs() < 1e-9 && run.gates == 0);
}

#[test]
fn surveys_have_names_and_escape_markup() {
    let root = complete(OBJECTS, 990);
    let name = "survey-0D_base_-local-2026-11-28";
    for extension in ["md", "json"] {
        assert!(root.path().join(format!("{name}.{extension}")).is_file());
    }
    let mut found = survey(root.path(), &["--pr", "12"]).unwrap();
    assert_eq!(found.file_name(), "survey-0D_base_-12-2026-11-28");
    found.runs[0].name = "<script>|x\n# y".to_owned();
    let text = found.markdown();
    assert!(text.starts_with("# Survey of `0D_base_`, pull request 12, 2026-11-28\n"), "{text}");
    assert!(text.contains("| &lt;script&gt;\\|x\\\\n\\# y |") && !text.contains("<script>"), "{text}");
    assert!(text.contains("- [ ] signatures: no bundle was given"), "{text}");
    let json = serde_json::to_vec(&found).unwrap();
    assert_eq!(codex_json::from_slice::<Survey>(&json).unwrap(), found);
    let model = root.path().join("model");
    let (code, told) = survey(root.path(), &["--out", model.to_str().unwrap()]).unwrap_err();
    assert!(code == exit::BAD_INPUT && told.contains("a model of RUN_DIR"), "{told}");
}

#[test]
fn reports_on_the_command_line_may_have_names() {
    assert_eq!(maybe_named("lite=a=b").unwrap(), (Some("lite".to_owned()), "a=b".into()));
    assert_eq!(maybe_named("out/lite=1/evaluation.json").unwrap(), (None, "out/lite=1/evaluation.json".into()));
    assert_eq!(maybe_named("evaluation.json").unwrap(), (None, "evaluation.json".into()));
    for wrong in ["", "=x", "lite="] {
        assert!(maybe_named(wrong).unwrap_err().starts_with("write EVALUATION=FILE or FILE"));
    }
    let error = reports_of(&["lite=".to_owned()]).unwrap_err();
    assert!(error.exit == exit::BAD_INPUT && error.sentence().starts_with("--evaluation lite=: write EVALUATION=FILE"));
}
