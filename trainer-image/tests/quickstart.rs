//! The quickstart of reasoning runs as users write it, as processes.

#![allow(clippy::unwrap_used, reason = "these are tests and what they are made of")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use codex_provenance::manifest::Manifest;

/// The line that trains. What follows it in the test makes the model small and ends the run early.
const LINE: &str = "train +reasoning=baseline curriculum.phase_schedule=starter training.max_steps=500 \
                    logging.reasoning_trace=true training.output_dir=artifacts/runs/reasoning-starter";
const SMALL: [&str; 5] = [
    "model.hidden_size=32",
    "model.intermediate_size=96",
    "model.num_attention_heads=2",
    "training.eval_every=100",
    "training.stop_after=80",
];

/// The line that checks a promotion, with the objects of the test.
const CHECK: &str = "deploy --config cot.yaml --run-metadata-dir artifacts/runs/reasoning-starter --dry-run";
/// The line that records a model.
const RECORD: &str =
    "register --bundle artifacts/runs/reasoning-starter/model --expect manifest.sha256 --tag reasoning/m0/bespoke";
const OBJECTS: &str = r"
apiVersion: codex-ml.dev/v1alpha1
kind: TrainingRun
metadata: { name: cot }
spec:
  rolloutRing: 0C_base_
  template: cot-starter
  overrides: [+reasoning=baseline]
  data:
    - name: arithmetic
      source: { synthetic: { task: arithmetic, seed: 1, count: 1000 } }
  output:
    persistentVolumeClaim: { claimName: models, subPath: runs }
---
apiVersion: codex-ml.dev/v1alpha1
kind: ReasoningPod
metadata: { name: cot-rc }
spec:
  rolloutRing: 0D_base_
  trainingRun: cot
  evaluations: [lite]
";

/// Calls the program with a line in a folder.
fn call(place: &Path, line: &str, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_codex"));
    command.current_dir(place).args(line.split_whitespace()).args(more).output().unwrap()
}

#[test]
fn the_quickstart_runs_as_written() {
    let place = tempfile::tempdir().unwrap();
    let codex = |arguments: &[&str]| call(place.path(), LINE, arguments);
    let told = codex(&["--output", "elsewhere"]);
    let why = "--output is elsewhere, but training.output_dir is artifacts/runs/reasoning-starter: name one directory";
    assert_eq!(told.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&told.stderr).contains(why), "{}", String::from_utf8_lossy(&told.stderr));
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    let trained = codex(&SMALL);
    assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
    let run = place.path().join("artifacts/runs/reasoning-starter");
    assert!(run.join("model/config.json").is_file());
    let traces = fs::read_to_string(run.join("artifacts/reasoning_traces.ndjson")).unwrap();
    let traces: Vec<serde_json::Value> = traces.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // Eighty steps are within the first epoch, of which six traces are kept.
    assert_eq!(traces.len(), 6, "{traces:?}");
    assert!(traces.iter().all(|row| row["type"] == "reasoning_trace" && row["trace_mode"] == "weights"));
    assert!(traces.iter().all(|row| row["top_probability"].as_f64().unwrap() >= 0.15), "{traces:?}");
    // Where a run is written is in no digest.
    let config = fs::read_to_string(run.join("artifacts/config.yaml")).unwrap();
    assert!(!config.contains("output_dir") && !config.contains("reasoning-starter"));
    // The ring of the run is not that of the servers, nothing is signed, and there is no evaluation.
    fs::write(place.path().join("cot.yaml"), OBJECTS).unwrap();
    let checked = call(place.path(), CHECK, &[]);
    let told = String::from_utf8(checked.stdout).unwrap();
    assert_eq!(checked.status.code(), Some(1), "{told}{}", String::from_utf8_lossy(&checked.stderr));
    assert!(told.starts_with("DEPLOYMENT BLOCKED: cot-rc into 0D_base_: "), "{told}");
    assert!(told.contains("\n  ring: ") && told.contains("\n  signatures: "), "{told}");
    let mut left: Vec<_> = fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["artifacts", "cot.yaml"], "a checklist creates nothing");
    let digest = Manifest::of_dir(&run.join("model")).unwrap().digest();
    fs::write(place.path().join("manifest.sha256"), digest.to_string()).unwrap();
    let recorded = call(place.path(), RECORD, &[]);
    assert!(recorded.status.success(), "{}", String::from_utf8_lossy(&recorded.stderr));
    let named = fs::read_to_string(place.path().join("registry/tags/reasoning/m0/bespoke.sha256")).unwrap();
    assert_eq!(named.trim_end(), digest.to_string());
}

#[test]
fn the_quickstart_shows_templates_and_settings_as_written() {
    let place = tempfile::tempdir().unwrap();
    let told = |line: &str| {
        let output = call(place.path(), line, &[]);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let map = told("repo-map --reasoning");
    let paths: Vec<&str> =
        map.lines().skip(1).filter_map(|line| line.trim().split_once(" -> ")).map(|it| it.0).collect();
    let knobs = ["trace_mode", "curriculum.preset", "evaluation.preset", "deployment.preset", "metadata.rollout_ring"];
    assert!(map.starts_with("reasoning_status\n") && knobs.iter().all(|knob| paths.contains(knob)), "{map}");
    assert_eq!(
        told("repo-map --reasoning --include rollout_ring --include curriculum"),
        "reasoning_status\n  curriculum.preset -> none\n  curriculum.phase -> none\n  metadata.rollout_ring -> unset\n  \
         deployment.rollout_ring -> unset\n"
    );
    assert!(told("reasoning-templates list").lines().any(|line| line.starts_with("baseline ")));
    let explained = told("reasoning-templates explain baseline");
    assert!(explained.starts_with("baseline\n"), "{explained}");
    assert!(explained.contains("\nchosen by: +reasoning=baseline\n"), "{explained}");
}
