//! The quickstart of reasoning runs as users write it, as a process.

#![allow(clippy::unwrap_used, reason = "these are tests and what they are made of")]

use std::{fs, process::Command};

/// The line of the documentation. What follows it in the test makes the model small and ends the run early.
const LINE: &str = "train +reasoning=baseline curriculum.phase_schedule=starter training.max_steps=500 \
                    logging.reasoning_trace=true training.output_dir=artifacts/runs/reasoning-starter";
const SMALL: [&str; 5] = [
    "model.hidden_size=32",
    "model.intermediate_size=96",
    "model.num_attention_heads=2",
    "training.eval_every=100",
    "training.stop_after=80",
];

#[test]
fn the_quickstart_runs_as_written() {
    let place = tempfile::tempdir().unwrap();
    let codex = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_codex"));
        command.current_dir(place.path()).args(LINE.split_whitespace()).args(arguments).output().unwrap()
    };
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
}
