//! Settings of reasoning traces: those of the options, what takes effect, and what is refused.

use codex_provenance::{DataDigest, Sha256};

use super::{data, overrides, starter};
use crate::{Data, Pooling, ReasoningMode, ReasoningSettings, Resolved, TraceMode, Training, compose_training};

fn file() -> Vec<Data> {
    vec![Data { name: "mine".to_owned(), sha256: Some(DataDigest(Sha256::of("mine"))), synthetic: None }]
}

/// The presets of evaluations and of deployments that a run is meant for.
fn presets(run: &Resolved<Training>) -> [Option<&str>; 2] {
    let settings = &run.spec().settings;
    [settings.evaluation.preset.as_deref(), settings.deployment.preset.as_deref()]
}

fn with_file(texts: &[&str]) -> Result<Resolved<Training>, String> {
    compose_training("lora", &overrides(texts), None, 1, file()).map_err(|error| error.to_string())
}

#[test]
fn options_have_the_settings_that_users_know() {
    let baseline = starter(&["+reasoning=baseline"], None);
    let settings = &baseline.spec().settings;
    let ReasoningSettings { trace_history, log_probability_threshold, objective, head, tool_adapter, .. } =
        &settings.training.reasoning;
    assert_eq!((settings.trace_mode(), settings.trace_capture.pooling), (TraceMode::Weights, Pooling::Mean));
    assert_eq!((*trace_history, objective.max_traces_per_epoch, objective.log_top_k), (128, 6, 5));
    assert_eq!((head.hidden_size, head.projection_size, head.trace_vocab_size), (768, 256, 64));
    assert_eq!(objective.trace_store, "reasoning_traces.ndjson");
    assert!((log_probability_threshold - 0.15).abs() < f64::EPSILON && !tool_adapter.enabled);
    let curriculum = &settings.curriculum;
    assert_eq!((curriculum.preset.as_str(), curriculum.phase_schedule.as_str()), ("starter", "starter"));
    assert_eq!(settings.metadata.owner, "reasoning-foundations");
    assert_eq!(presets(&baseline), [Some("base"), Some("reasoning_pod")]);
    let chain = starter(&["+reasoning=chain_of_thought"], None);
    let objective = &chain.spec().settings.training.reasoning.objective;
    assert_eq!((objective.max_traces_per_epoch, objective.trace_store.as_str()), (8, "cot_traces.ndjson"));
    assert_eq!(presets(&chain), presets(&baseline));
    let tools = with_file(&["+reasoning=tool_execution"]).unwrap();
    let settings = &tools.spec().settings;
    let ReasoningSettings { objective, tool_adapter, .. } = &settings.training.reasoning;
    assert_eq!((objective.mode, settings.trace_mode()), (ReasoningMode::ToolExecution, TraceMode::Activations));
    assert_eq!(settings.training.tool_supervision(), Some(2.5));
    assert_eq!((tool_adapter.enabled, tool_adapter.pooling), (true, Pooling::Cls));
    assert_eq!(tool_adapter.tools, ["browser", "python_repl", "calculator"]);
    assert_eq!(presets(&tools), [Some("tools"), Some("reasoning_pod")]);
}

/// The presets that an option names are recorded and change nothing else. Without them the configuration is what it was before options
/// named any, with the same digest.
#[test]
fn presets_of_options_can_be_removed_and_replaced() {
    let baseline = starter(&["+reasoning=baseline"], None);
    let without = starter(&["+reasoning=baseline", "~evaluation.preset", "~deployment.preset"], None);
    assert_eq!(presets(&without), [None, None]);
    let yaml = without.to_yaml().unwrap();
    assert!(!yaml.contains("evaluation:") && !yaml.contains("deployment:"), "{yaml}");
    let (mut recorded, settings) = (baseline.spec().settings.clone(), &without.spec().settings);
    (recorded.evaluation, recorded.deployment) = (settings.evaluation.clone(), settings.deployment.clone());
    assert_eq!(recorded, *settings);
    let other = starter(&["evaluation.preset=cot-hard", "reasoning=baseline"], Some("deployment: {preset: single}"));
    assert_eq!(presets(&other), [Some("cot-hard"), Some("single")]);
}

#[test]
fn what_takes_effect_needs_all_three() {
    let mode = |texts: &[&str]| starter(texts, None).spec().settings.trace_mode();
    let [capture, logging] = ["trace_capture.mode=activations", "logging.reasoning_trace=true"];
    assert_eq!(mode(&[]), TraceMode::Disabled);
    assert_eq!(mode(&[capture]), TraceMode::Disabled);
    assert_eq!(mode(&[logging]), TraceMode::Disabled);
    assert_eq!(mode(&[capture, logging]), TraceMode::Activations);
    assert_eq!(mode(&[capture, logging, "training.reasoning.enabled=false"]), TraceMode::Disabled);
    let weight = "training.reasoning.objective.tool_supervision_weight=3";
    assert_eq!(starter(&[weight], None).spec().settings.training.tool_supervision(), None, "of another objective");
}

#[test]
fn settings_that_do_not_go_together_are_refused() {
    let key = |key: &str, value: &str| format!("training.reasoning.{key}={value}");
    let told = |text: String| compose_training("cot-starter", &[text], None, 1, data()).unwrap_err().to_string();
    for name in ["traces", "../traces.ndjson", "a/b.ndjson", ".ndjson", "\"a b.ndjson\""] {
        let told = told(key("objective.trace_store", name));
        assert!(told.contains("write the name of a file in the artifacts of the run"), "{told}");
    }
    let taken = told(key("objective.trace_store", "ledger.ndjson"));
    assert!(taken.contains("the run writes another file of that name"), "{taken}");
    let few = told(key("head.trace_vocab_size", "4"));
    assert!(few.ends_with("write at most training.reasoning.head.trace_vocab_size (4)"), "{few}");
    assert!(told(key("log_probability_threshold", "0")).contains("a number above 0 and at most 1"));
    assert!(told(key("tool_adapter.tools", "[a, a]")).contains("a list of 1 to 32 different names"));
    assert!(told(key("tool_adapter.tools", "[a b]")).contains("such as [calculator]"));
    assert!(told("trace_capture.mode=gradients".to_owned()).contains("one of disabled, weights, activations"));
    assert!(told("trace_capture.pooling=max".to_owned()).contains("one of mean, cls, last"));
    let compared = with_file(&["+reasoning=tool_execution", "training.method=dpo"]).unwrap_err();
    assert!(compared.contains("training.method dpo compares whole responses; write 1"), "{compared}");
}
