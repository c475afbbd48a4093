//! `codex` on a run that it made itself: the page, the survey, the checklist and the record.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests and what they are made of")]

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use codex_provenance::manifest::Manifest;

const OBJECTS: &str = r#"
apiVersion: codex-ml.dev/v1alpha1
kind: TrainingRun
metadata: { name: cot }
spec:
  rolloutRing: 0B_base_
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
    - { metric: exact_match, min: "GATE" }
---
apiVersion: codex-ml.dev/v1alpha1
kind: ReasoningPod
metadata: { name: cot-dev }
spec:
  rolloutRing: 0B_base_
  trainingRun: cot
  evaluations: [lite]
  pod:
    resources:
      requests: { cpu: 200m, memory: 128Mi }
      limits: { memory: 512Mi }
"#;

fn codex(line: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_codex")).args(line).stdin(Stdio::null()).output().unwrap()
}

/// Runs a command that ends with this exit code, and returns what it printed.
fn ends(code: i32, line: &[&str]) -> String {
    let output = codex(line);
    let (told, why) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned());
    assert_eq!(output.status.code(), Some(code), "{line:?}: {told}{why}");
    told
}

/// Trains a small model for one step into `run`, and evaluates it on five problems.
fn make(run: &Path) {
    let place = run.to_str().unwrap();
    let mut line = vec!["train", "--template", "cot-starter", "--output", place];
    for set in [
        "model.hidden_size=32",
        "model.intermediate_size=96",
        "model.num_attention_heads=2",
        "model.num_hidden_layers=2",
        "training.batch_size=8",
        "training.stop_after=1",
    ] {
        line.extend(["--set", set]);
    }
    ends(0, &line);
    let (model, output) = (run.join("model"), run.join("evaluations/lite"));
    let (model, output) = (model.to_str().unwrap(), output.to_str().unwrap());
    let set = ["--set", "evaluation.limit=5", "--set", "evaluation.max_new_tokens=8"];
    ends(0, &[&["evaluate", "--preset", "cot-lite", "--model", model, "--output", output][..], &set].concat());
}

#[test]
fn a_run_is_shown_surveyed_checked_and_recorded() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let (run, model, objects, page) = (path("run"), path("run/model"), path("objects.yaml"), path("page.html"));
    make(Path::new(&run));
    let digest = Manifest::of_dir(Path::new(&model)).unwrap().digest().to_string();

    assert_eq!(ends(0, &["report", &run, "--out", &page]).trim(), page);
    let text = fs::read_to_string(&page).unwrap();
    for expected in [&*digest, "measured exactly these files", "cot-starter", "rustc", "Wrong: "] {
        assert!(text.contains(expected), "{expected}");
    }
    assert!(!text.contains("cannot be used"), "every file of the run is read");

    // A model answers nothing right after one step.
    fs::write(&objects, OBJECTS.replace("GATE", "0.95")).unwrap();
    let deploy = ["deploy", "--config", &objects, "--run-metadata-dir", &run, "--unsigned"];
    let told = ends(1, &deploy);
    assert!(told.starts_with("DEPLOYMENT BLOCKED: cot-dev into 0B_base_: 2 of 7 checks do not hold\n"), "{told}");
    assert!(
        told.contains("\n  evaluations: lite: exact_match Failed: ") && told.contains("\n  status report: "),
        "{told}"
    );

    fs::write(&objects, OBJECTS.replace("GATE", "0")).unwrap();
    let survey = ["status-report", &run, "--config", &objects, "--unsigned", "--pr", "7", "--date", "2026-11-28"];
    let told = ends(0, &[&survey[..], &["--out", &run]].concat());
    assert!(told.starts_with("# Survey of `0B_base_`, pull request 7, 2026-11-28\n"), "{told}");
    let written = Path::new(&run).join("survey-0B_base_-7-2026-11-28.md");
    assert_eq!(fs::read_to_string(written).unwrap().trim_end(), told.trim_end());
    let told = ends(0, &deploy);
    assert!(told.starts_with("ReasoningPod cot-dev may roll out into 0B_base_\n") && told.contains(&digest), "{told}");
    assert_eq!(ends(0, &[&deploy[..], &["--dry-run"]].concat()), told);
    let told = ends(0, &[&deploy[..], &["--format", "json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&json["model"], &json["blocked"]), (&digest.clone().into(), &false.into()));
    ends(2, &[&deploy[..], &["--no-dry-run"]].concat());

    let (expect, registry) = (path("manifest.sha256"), path("registry"));
    fs::write(&expect, &digest).unwrap();
    let told = ends(0, &["register", &model, "--expect", &expect, "--registry", &registry]);
    assert_eq!(told.trim(), format!("{digest} recorded in {registry}/{digest}.json"));
    let told = ends(0, &["register", &model, "--expect", &expect, "--registry", &registry]);
    assert!(told.contains("was recorded already"), "{told}");
}

#[test]
fn templates_and_settings_are_printed() {
    assert!(ends(0, &["reasoning-templates", "list"]).contains("\ncot-starter "));
    assert!(ends(0, &["reasoning-templates", "explain", "lora"]).contains("\ntraining.lora.rank "));
    ends(2, &["reasoning-templates", "explain", "lorra"]);
    let told = ends(0, &["repo-map", "--reasoning", "--include", "evaluation"]);
    assert_eq!(told, "reasoning_status\n  evaluation.preset -> unset\n");
}
