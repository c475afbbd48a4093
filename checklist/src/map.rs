//! The settings that control a chain, each as `path -> value`. Pure.

use codex_configs::{
    CURRICULUM_PRESETS, CurriculumSettings, TraceMode, TrainingSettings, compose_evaluation, deployment,
};
use codex_provenance::text::Printable;
use codex_verdict::Ring;
use serde_json::{Map, Value, json};

use crate::Chain;

/// The sections of the map, in its order, and then the ring of the run and the ring of the servers together.
pub const SECTIONS: [&str; 6] = ["trace_mode", "curriculum", "evaluation", "metadata", "deployment", "rollout_ring"];
/// The curriculum of a run without one, and its phase.
const NONE: &str = "none";
/// The value of a setting that nothing decides.
const UNSET: &str = "unset";

/// A setting of the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its path.
    pub path: &'static str,
    /// Its value.
    pub value: String,
}

/// Returns the settings of a chain in the sections `include`, all if it is empty. Each of `set` replaces a value, as `KEY=VALUE`.
///
/// # Errors
/// The configuration of the run is refused, or an override names no setting or has a wrong value; one sentence.
pub fn settings(chain: Option<&Chain>, set: &[String], include: &[String]) -> Result<Vec<Setting>, String> {
    let mut settings = of(chain)?;
    for text in set {
        replace(&mut settings, text).map_err(|why| format!("--set {}: {why}", Printable(text)))?;
    }
    let included = |setting: &Setting| setting.path.split('.').any(|part| include.iter().any(|named| named == part));
    settings.retain(|setting| include.is_empty() || included(setting));
    Ok(settings)
}

/// Returns the map for people.
pub fn told(settings: &[Setting]) -> String {
    let lines = settings.iter().map(|it| format!("\n  {} -> {}", it.path, Printable(&it.value)));
    format!("reasoning_status{}", lines.collect::<String>())
}

/// Returns the map for programs.
pub fn as_json(settings: &[Setting]) -> Value {
    let map: Map<_, _> = settings.iter().map(|it| (it.path.to_owned(), it.value.clone().into())).collect();
    json!({ "reasoning_status": map })
}

fn of(chain: Option<&Chain>) -> Result<Vec<Setting>, String> {
    let presets: Vec<&str> = chain
        .into_iter()
        .flat_map(|chain| chain.evaluations().filter_map(move |name| Some(chain.evaluation(name)?.ok()?.0)))
        .collect();
    let run_ring = chain.and_then(|chain| Some(chain.run()?.0.to_owned()));
    let setting = |path, value: Option<String>| Setting { path, value: value.unwrap_or_else(|| UNSET.to_owned()) };
    let run = chain.map(Chain::settings).transpose()?.flatten();
    let trace_mode = run.as_ref().map_or(TraceMode::Disabled, |(settings, _)| settings.trace_mode());
    let (preset, phase) = match &run {
        Some((TrainingSettings { curriculum: CurriculumSettings { phase_schedule, phases, .. }, .. }, reported)) => {
            let first = phases.first().map(|phase| phase.id.as_str());
            (phase_schedule.clone(), reported.or(first).unwrap_or(NONE).to_owned())
        }
        None => (NONE.to_owned(), NONE.to_owned()),
    };
    let intended = run.as_ref().and_then(|(settings, _)| settings.evaluation.preset.clone());
    let evaluated = Some(presets.join(", ")).filter(|presets| !presets.is_empty()).or(intended);
    Ok(vec![
        setting("trace_mode", Some(trace_mode.name().to_owned())),
        setting("curriculum.preset", Some(preset)),
        setting("curriculum.phase", Some(phase)),
        setting("evaluation.preset", evaluated),
        setting("metadata.rollout_ring", run_ring),
        setting("deployment.rollout_ring", chain.map(|chain| chain.ring.to_string())),
        setting("deployment.preset", chain.map(|chain| chain.deployment_preset().to_owned())),
    ])
}

/// Replaces the value of a setting, as `KEY=VALUE` says.
fn replace(settings: &mut [Setting], text: &str) -> Result<(), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, such as evaluation.preset=cot-hard")?;
    match key {
        "evaluation.preset" => {
            compose_evaluation(value, &[], 1, Vec::new()).map_err(|why| why.to_string())?;
        }
        "metadata.rollout_ring" | "deployment.rollout_ring" => {
            value.parse::<Ring>().map_err(|why| why.to_string())?;
        }
        "curriculum.preset" if CURRICULUM_PRESETS.contains(&value) => {}
        "curriculum.preset" => {
            return Err(format!("there is no such curriculum: use one of {}", CURRICULUM_PRESETS.join(", ")));
        }
        "curriculum.phase" => {
            return Err("the phase follows from the progress of the run: remove it".to_owned());
        }
        "deployment.preset" => {
            deployment(value, &[]).map_err(|why| why.to_string())?;
        }
        "trace_mode" if TraceMode::ALL.iter().any(|mode| mode.name() == value) => {}
        "trace_mode" => {
            let known = TraceMode::ALL.map(TraceMode::name).join(", ");
            return Err(format!("there is no such source of traces: use one of {known}"));
        }
        _ => {
            let known: Vec<_> = settings.iter().map(|setting| setting.path).collect();
            return Err(format!("there is no such setting: use one of {}", known.join(", ")));
        }
    }
    let found = settings.iter_mut().filter(|setting| setting.path == key);
    found.for_each(|setting| value.clone_into(&mut setting.value));
    Ok(())
}
