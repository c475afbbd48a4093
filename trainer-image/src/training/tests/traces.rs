//! Reasoning traces: they change no result, resume exactly, and are written as configured; and the weight of tool calls.

use std::{fs, path::Path};

use codex_configs::{Data, TraceMode};
use codex_provenance::{DataDigest, Sha256};

use crate::{
    artifacts::{
        metadata::RunMetadata,
        reasoning::{Reasoning, TraceRow},
    },
    training::{
        records::{LEDGER, LedgerRow, read_rows},
        test_support::{SPECK, attempt, finished, resolved, speck, with_files},
    },
};

/// Settings of a run with a small head that captures a trace after every step.
fn captured<'a>(mode: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let small = [
        "logging.reasoning_trace=true",
        "training.checkpoint_every=4",
        "training.reasoning.head.projection_size=8",
        "training.reasoning.log_probability_threshold=0.001",
        "training.reasoning.objective.max_traces_per_epoch=0",
        mode,
    ];
    [&small[..], more].concat()
}

const ACTIVATIONS: &str = "trace_capture.mode=activations";
const WEIGHTS: &str = "trace_capture.mode=weights";
const ADAPTER: &str = "training.reasoning.tool_adapter.enabled=true";

fn read<T: serde::de::DeserializeOwned>(output: &Path, name: &str) -> T {
    serde_json::from_slice(&fs::read(output.join("artifacts").join(name)).unwrap()).unwrap()
}

fn rows(output: &Path, name: &str) -> Vec<TraceRow> {
    let text = fs::read_to_string(output.join("artifacts").join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn capturing_changes_no_weight_and_no_loss() {
    let plain = tempfile::tempdir().unwrap();
    let expected = finished(&attempt(&speck(&[]), plain.path(), false));
    let ledger = |output: &Path| read_rows::<LedgerRow>(&output.join("artifacts").join(LEDGER)).unwrap();
    assert!(!plain.path().join("artifacts/reasoning_traces.ndjson").exists());
    let described: Reasoning = read(plain.path(), "reasoning.json");
    assert_eq!(described.effective.trace_mode, TraceMode::Disabled);
    assert_eq!(described.effective.reason.as_deref(), Some("trace_capture.mode is disabled"));
    for (mode, more) in [(WEIGHTS, &[][..]), (ACTIVATIONS, &[]), (ACTIVATIONS, &[ADAPTER]), (WEIGHTS, &[ADAPTER])] {
        let output = tempfile::tempdir().unwrap();
        let found = finished(&attempt(&speck(&captured(mode, more)), output.path(), false));
        assert_eq!(found, expected, "{mode} {more:?}");
        assert_eq!(ledger(output.path()), ledger(plain.path()), "{mode} {more:?}");
        let traces = rows(output.path(), "reasoning_traces.ndjson");
        assert_eq!(traces.iter().map(|row| row.step).collect::<Vec<_>>(), (1..=12).collect::<Vec<_>>());
        assert!(traces.iter().all(|row| row.tool_decision.is_some() != more.is_empty()), "{traces:?}");
        let described: Reasoning = read(output.path(), "reasoning.json");
        assert_eq!(format!("trace_capture.mode={}", described.effective.trace_mode.name()), mode);
        assert_eq!((described.effective.reason, described.effective.tool_adapter), (None, !more.is_empty()));
        assert_eq!(described.runtime.top_k, 5);
        let source = described.effective.source.unwrap();
        if mode == WEIGHTS {
            assert_eq!(source, "model.embed_tokens.weight");
        } else {
            assert_eq!((source.as_str(), described.effective.inputs), ("hidden_states", Some(16)));
        }
        let metadata: RunMetadata = read(output.path(), "run_metadata.json");
        assert_eq!(metadata.knobs.unwrap().trace_mode.unwrap(), described.effective.trace_mode.name());
    }
}

#[test]
fn traces_after_a_resume_are_those_of_an_unbroken_run() {
    for (mode, history) in [(ACTIVATIONS, 128), (WEIGHTS, 3), (ACTIVATIONS, 5)] {
        let history = format!("training.reasoning.trace_history={history}");
        let run = speck(&captured(mode, &[ADAPTER, &history]));
        let output = tempfile::tempdir().unwrap();
        let path = output.path().join("artifacts/reasoning_traces.ndjson");
        let first = finished(&attempt(&run, output.path(), false));
        let traces = fs::read_to_string(&path).unwrap();
        let states = fs::read_to_string(output.path().join("artifacts/states.ndjson")).unwrap();
        // As if the run had been killed after step 12 and resumed from step 8.
        fs::remove_dir_all(output.path().join("checkpoints/step-00000012")).unwrap();
        let again = attempt(&run, output.path(), false);
        assert_eq!(again.state.resumed_from, Some(8));
        assert_eq!(finished(&again), first);
        assert_eq!(fs::read_to_string(&path).unwrap(), traces, "{mode} {history}");
        assert_eq!(fs::read_to_string(output.path().join("artifacts/states.ndjson")).unwrap(), states);
    }
}

#[test]
fn a_run_resumes_when_capturing_is_turned_on_or_off() {
    let output = tempfile::tempdir().unwrap();
    let half = ["training.checkpoint_every=4", "training.stop_after=8"];
    finished(&attempt(&speck(&half), output.path(), false));
    let more = finished(&attempt(&speck(&captured(WEIGHTS, &[])), output.path(), false));
    let traces = rows(output.path(), "reasoning_traces.ndjson");
    assert_eq!(traces.iter().map(|row| row.step).collect::<Vec<_>>(), [9, 10, 11, 12]);
    let other = tempfile::tempdir().unwrap();
    finished(&attempt(&speck(&captured(WEIGHTS, &["training.stop_after=8"])), other.path(), false));
    assert_eq!(finished(&attempt(&speck(&["training.checkpoint_every=4"]), other.path(), false)), more);
}

/// Data with a tool call in every record, or in none.
fn calls(directory: &Path, with: bool) -> (Vec<Data>, Vec<(String, std::path::PathBuf)>) {
    let call = if with { r#"<tool_call>{\"name\": \"calculator\"}</tool_call>"# } else { "" };
    let line = |at: usize| format!("{{\"prompt\": \"{at}+1:\", \"response\": \"{call}#{}$\"}}\n", at + 1);
    let bytes: String = (0..40).map(line).collect();
    let path = directory.join("calls.jsonl");
    fs::write(&path, &bytes).unwrap();
    let sha256 = Some(DataDigest(Sha256::of(&bytes)));
    (vec![Data { name: "calls".to_owned(), sha256, synthetic: None }], vec![("calls".to_owned(), path)])
}

#[test]
fn tokens_of_tool_calls_have_their_weight() {
    let small = [
        "training.gradient_accumulation=2",
        "training.max_steps=12",
        "training.warmup_steps=3",
        "training.checkpoint_every=12",
    ];
    let train = |with: bool, more: &[&str]| {
        let directory = tempfile::tempdir().unwrap();
        let (data, files) = calls(directory.path(), with);
        let run = resolved(&[&SPECK[..], &small, more].concat(), data);
        let attempt = with_files(&run, &files, &directory.path().join("run"), &|| false);
        let ledger = read_rows::<LedgerRow>(&directory.path().join("run/artifacts").join(LEDGER)).unwrap();
        (finished(&attempt).digest, ledger[0].loss)
    };
    let tools = "training.reasoning.objective.mode=tool_execution";
    let [heavy, equal] = [2.5, 1.0].map(|it| format!("training.reasoning.objective.tool_supervision_weight={it}"));
    let plain = train(true, &[]);
    assert_eq!(train(true, &[tools, &equal]), plain);
    assert_eq!(train(true, &[&heavy]), plain, "of another objective");
    let weighed = train(true, &[tools, &heavy]);
    assert_ne!(weighed.0, plain.0);
    assert_eq!(weighed.1.to_bits(), plain.1.to_bits(), "the loss is reported without the weights");
    assert_eq!(train(true, &[tools, &heavy]), weighed);
    // Without a call in the data, the weights are all the same.
    let [weighed, plain] = [&[tools, heavy.as_str()][..], &[]].map(|more| train(false, more));
    assert_eq!(weighed, plain);
}

#[test]
fn the_tool_adapter_decides_on_the_tool_of_the_record() {
    let directory = tempfile::tempdir().unwrap();
    let (data, files) = calls(directory.path(), true);
    let small = ["training.max_steps=60", "training.warmup_steps=3"];
    let more = captured(ACTIVATIONS, &[ADAPTER, "training.reasoning.objective.trace_store=tool_traces.ndjson"]);
    let run = resolved(&[&SPECK[..], &small, &more].concat(), data);
    finished(&with_files(&run, &files, &directory.path().join("run"), &|| false));
    let traces = rows(&directory.path().join("run"), "tool_traces.ndjson");
    let decision = traces.last().unwrap().tool_decision.as_ref().unwrap();
    assert_eq!(decision.tool.as_deref(), Some("calculator"), "{decision:?}");
}
