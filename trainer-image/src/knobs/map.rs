//! `codex repo-map --reasoning`: the settings that control a chain, each as `path -> value`. Reads a file of objects; prints.

use std::path::PathBuf;

use clap::{Args, builder::PossibleValuesParser};
use codex_configs::{CURRICULUM_PRESETS, CurriculumSettings, TraceMode, TrainingSettings, compose_evaluation};
use codex_provenance::text::Printable;
use codex_reports::exit;
use codex_verdict::Ring;
use serde::Serialize;

use crate::{arguments::Format, atomic_fs, checklist::chain::Chain, error::CommandError};

/// The sections of the map, in its order.
const SECTIONS: [&str; 5] = ["trace_mode", "curriculum", "evaluation", "metadata", "deployment"];
/// The curriculum of a run without one, and its phase.
const NONE: &str = "none";
/// The value of a setting that nothing decides.
const UNSET: &str = "unset";

/// Show where the settings that control a chain stand, and their values.
#[derive(Debug, Args)]
pub struct RepoMap {
    /// Print `reasoning_status`: trace mode, curriculum, preset of the evaluation, and the rings of the run and the server.
    #[arg(long, required = true)]
    reasoning: bool,
    /// Print these sections only; repeatable.
    #[arg(long, value_name = "SECTION", value_parser = PossibleValuesParser::new(SECTIONS))]
    include: Vec<String>,
    /// The objects of a chain: a ReasoningPod, its TrainingRun and its Evaluations.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The ReasoningPod, if the file holds several.
    #[arg(long, value_name = "NAME", requires = "config")]
    pod: Option<String>,
    /// Show another value, such as `evaluation.preset=cot-hard`; repeatable.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// How the map is printed.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

/// A setting of the map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Setting {
    /// Its path.
    path: &'static str,
    /// Its value.
    value: String,
}

impl RepoMap {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let settings = self.settings()?;
        atomic_fs::say(&match self.format {
            Format::Text => {
                let lines = settings.iter().map(|it| format!("\n  {} -> {}", it.path, Printable(&it.value)));
                format!("reasoning_status{}", lines.collect::<String>())
            }
            Format::Json => {
                let map: serde_json::Map<_, _> =
                    settings.into_iter().map(|it| (it.path.to_owned(), it.value.into())).collect();
                serde_json::json!({ "reasoning_status": map }).to_string()
            }
        })?;
        Ok(exit::FINISHED)
    }

    /// Returns the settings of the sections that are asked for.
    ///
    /// # Errors
    /// Exit code 2: the objects cannot be read, or an override names no setting or has a wrong value.
    fn settings(&self) -> Result<Vec<Setting>, CommandError> {
        let chain = self.config.as_deref().map(|path| Chain::read(path, self.pod.as_deref())).transpose()?;
        let chain = chain.as_ref();
        let presets: Vec<&str> = chain
            .into_iter()
            .flat_map(|chain| chain.evaluations().filter_map(move |name| Some(chain.evaluation(name)?.ok()?.0)))
            .collect();
        let run_ring = chain.and_then(|chain| Some(chain.run()?.0.to_owned()));
        let setting = |path, value: Option<String>| Setting { path, value: value.unwrap_or_else(|| UNSET.to_owned()) };
        let run = chain.map(Chain::settings).transpose().map_err(CommandError::bad_input)?.flatten();
        let trace_mode = run.as_ref().map_or(TraceMode::Disabled, |(settings, _)| settings.trace_mode());
        let (preset, phase) = match &run {
            Some((
                TrainingSettings { curriculum: CurriculumSettings { phase_schedule, phases, .. }, .. },
                reported,
            )) => {
                let first = phases.first().map(|phase| phase.id.as_str());
                (phase_schedule.clone(), reported.or(first).unwrap_or(NONE).to_owned())
            }
            None => (NONE.to_owned(), NONE.to_owned()),
        };
        let mut settings = vec![
            setting("trace_mode", Some(trace_mode.name().to_owned())),
            setting("curriculum.preset", Some(preset)),
            setting("curriculum.phase", Some(phase)),
            setting("evaluation.preset", Some(presets.join(", ")).filter(|presets| !presets.is_empty())),
            setting("metadata.rollout_ring", run_ring),
            setting("deployment.rollout_ring", chain.map(|chain| chain.ring.to_string())),
        ];
        for text in &self.set {
            let wrong = |why: String| CommandError::bad_input(format!("--set {}: {why}", Printable(text)));
            let example = "write KEY=VALUE, such as evaluation.preset=cot-hard";
            let (key, value) = text.split_once('=').ok_or_else(|| wrong(example.to_owned()))?;
            match key {
                "evaluation.preset" => {
                    compose_evaluation(value, &[], 1, Vec::new()).map_err(|why| wrong(why.to_string()))?;
                }
                "metadata.rollout_ring" | "deployment.rollout_ring" => {
                    value.parse::<Ring>().map_err(|why| wrong(why.to_string()))?;
                }
                "curriculum.preset" if CURRICULUM_PRESETS.contains(&value) => {}
                "curriculum.preset" => {
                    return Err(wrong(format!(
                        "there is no such curriculum: use one of {}",
                        CURRICULUM_PRESETS.join(", ")
                    )));
                }
                "curriculum.phase" => {
                    return Err(wrong("the phase follows from the progress of the run: remove it".to_owned()));
                }
                "trace_mode" if TraceMode::ALL.iter().any(|mode| mode.name() == value) => {}
                "trace_mode" => {
                    let known = TraceMode::ALL.map(TraceMode::name).join(", ");
                    return Err(wrong(format!("there is no such source of traces: use one of {known}")));
                }
                _ => {
                    let known: Vec<_> = settings.iter().map(|setting| setting.path).collect();
                    return Err(wrong(format!("there is no such setting: use one of {}", known.join(", "))));
                }
            }
            let found = settings.iter_mut().filter(|setting| setting.path == key);
            found.for_each(|setting| value.clone_into(&mut setting.value));
        }
        let section = |path: &str| path.split('.').next().unwrap_or_default().to_owned();
        settings.retain(|setting| self.include.is_empty() || self.include.contains(&section(setting.path)));
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        map: RepoMap,
    }

    fn map(more: &[&str]) -> Result<Vec<String>, String> {
        let line = ["repo-map", "--reasoning"].into_iter().chain(more.iter().copied());
        let map = Arguments::try_parse_from(line).map_err(|error| error.to_string())?.map;
        let settings = map.settings().map_err(|error| {
            assert_eq!(error.exit, exit::BAD_INPUT);
            error.sentence()
        })?;
        Ok(settings.iter().map(|setting| format!("{} -> {}", setting.path, setting.value)).collect())
    }

    const OBJECTS: &str = r#"
apiVersion: codex-ml.dev/v1alpha1
kind: TrainingRun
metadata: { name: cot }
spec:
  rolloutRing: 0C_base_
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
    - { metric: exact_match, min: "0.95" }
---
apiVersion: codex-ml.dev/v1alpha1
kind: ReasoningPod
metadata: { name: cot-rc }
spec:
  rolloutRing: 0D_base_
  trainingRun: cot
  evaluations: [lite]
"#;

    #[test]
    fn every_setting_has_a_path_and_a_value() {
        let unset = map(&[]).unwrap();
        assert_eq!(
            unset,
            [
                "trace_mode -> disabled",
                "curriculum.preset -> none",
                "curriculum.phase -> none",
                "evaluation.preset -> unset",
                "metadata.rollout_ring -> unset",
                "deployment.rollout_ring -> unset",
            ]
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chain.yaml");
        std::fs::write(&path, OBJECTS).unwrap();
        let config = ["--config", path.to_str().unwrap()];
        let found = map(&config).unwrap();
        assert_eq!(
            found[3..],
            [
                "evaluation.preset -> cot-lite",
                "metadata.rollout_ring -> 0C_base_",
                "deployment.rollout_ring -> 0D_base_"
            ]
        );
        // The run is in a phase of its curriculum, or has not begun.
        let with = "template: cot-starter\n  overrides: [+reasoning=baseline]";
        let begun = OBJECTS.replacen("template: cot-starter", with, 1);
        std::fs::write(&path, &begun).unwrap();
        let running = ["trace_mode -> weights", "curriculum.preset -> starter", "curriculum.phase -> warmup"];
        assert_eq!(map(&config).unwrap()[..3], running);
        let set = [&config[..], &["--set", "trace_mode=activations"]].concat();
        assert_eq!(map(&set).unwrap()[0], "trace_mode -> activations");
        let status = "spec:\n  rolloutRing: 0C_base_";
        let phases = "{ phase: challenge, index: 3, of: 3, steps: 1/300, phases: [] }";
        let begun = begun.replacen(status, &format!("status: {{ curriculum: {phases} }}\n{status}"), 1);
        std::fs::write(&path, begun).unwrap();
        assert_eq!(map(&config).unwrap()[1..3], ["curriculum.preset -> starter", "curriculum.phase -> challenge"]);
        std::fs::write(&path, OBJECTS).unwrap();
        let some = [&config[..], &["--include", "metadata", "--include", "deployment"]].concat();
        assert_eq!(map(&some).unwrap(), found[4..]);
        let set =
            [&config[..], &["--set", "evaluation.preset=cot-hard", "--set", "metadata.rollout_ring=main"]].concat();
        assert_eq!(map(&set).unwrap()[3..5], ["evaluation.preset -> cot-hard", "metadata.rollout_ring -> main"]);
    }

    #[test]
    fn unknown_settings_and_values_are_refused() {
        for (set, why) in [
            ("evaluation.preset=cot-lit", "did you mean cot-lite?"),
            ("metadata.rollout_ring=0E_base_", "is not a rollout ring"),
            ("trace_mode=gradients", "there is no such source of traces: use one of disabled, weights, activations"),
            ("curriculum.preset=start", "there is no such curriculum: use one of none, starter"),
            ("curriculum.phase=warmup", "the phase follows from the progress of the run"),
            ("training.max_steps=1", "there is no such setting: use one of trace_mode"),
            ("main", "write KEY=VALUE"),
        ] {
            let told = map(&["--set", set]).unwrap_err();
            assert!(told.starts_with(&format!("--set {set}: ")) && told.contains(why), "{told}");
        }
        assert!(map(&["--include", "training"]).unwrap_err().contains("possible values: trace_mode"));
        assert!(Arguments::try_parse_from(["repo-map"]).is_err());
        assert!(map(&["--config", "nowhere.yaml"]).unwrap_err().starts_with("--config: nowhere.yaml: "));
    }
}
