//! `codex repo-map --reasoning`: the settings that control a chain, each as `path -> value`. Reads a file of objects; prints.

use std::path::PathBuf;

use clap::{Args, builder::PossibleValuesParser};
use codex_checklist::{SECTIONS, Setting, as_json, told};
use codex_reports::exit;

use crate::{
    arguments::Format, atomic_fs, checklist::read_chain, configuration::ConfigurationError, error::CommandError,
};

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
    /// The file of the template that spec.templateFrom of the TrainingRun pins, if --config does not hold its ConfigMap.
    #[arg(long, value_name = "FILE", requires = "config")]
    template: Option<PathBuf>,
    /// Show another value, such as `evaluation.preset=cot-hard`; repeatable.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// How the map is printed.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

impl RepoMap {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let settings = self.settings()?;
        atomic_fs::say(&match self.format {
            Format::Text => told(&settings),
            Format::Json => as_json(&settings).to_string(),
        })?;
        Ok(exit::FINISHED)
    }

    /// Returns the settings of the sections that are asked for.
    ///
    /// # Errors
    /// Exit code 2: the objects cannot be read, or an override names no setting or has a wrong value.
    fn settings(&self) -> Result<Vec<Setting>, CommandError> {
        let mut chain = self.config.as_deref().map(|path| read_chain(path, &[], self.pod.as_deref())).transpose()?;
        if let Some(path) = &self.template {
            let bytes = atomic_fs::read_named::<ConfigurationError>("--template", path)?;
            // Text that is not UTF-8 has another digest than the one that is pinned.
            let text = String::from_utf8_lossy(&bytes).into_owned();
            chain = chain.map(|chain| chain.with_template(text));
        }
        codex_checklist::settings(chain.as_ref(), &self.set, &self.include).map_err(CommandError::bad_input)
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
                "deployment.preset -> unset",
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
                "deployment.rollout_ring -> 0D_base_",
                "deployment.preset -> custom",
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
    fn a_template_in_a_config_map_is_read_from_the_objects_or_a_file() {
        const TEMPLATE: &str = "defaults: [cot-starter, {/reasoning: baseline}]\n";
        let folder = tempfile::tempdir().unwrap();
        let (path, ours) = (folder.path().join("chain.yaml"), folder.path().join("ours.yaml"));
        let digest = codex_provenance::Sha256::of(TEMPLATE);
        let from = format!("templateFrom: {{ configMap: {{ name: templates, key: ours.yaml }}, sha256: {digest} }}");
        let objects = OBJECTS.replacen("template: cot-starter", &format!("template: ours\n  {from}"), 1);
        let config = ["--config", path.to_str().unwrap()];
        std::fs::write(&path, &objects).unwrap();
        let told = map(&config).unwrap_err();
        assert!(told.contains("is the key ours.yaml of the ConfigMap templates, which"), "{told}");
        let with_file = [&config[..], &["--template", ours.to_str().unwrap()]].concat();
        let traced = ["trace_mode -> weights", "curriculum.preset -> starter"];
        std::fs::write(&ours, TEMPLATE).unwrap();
        assert_eq!(map(&with_file).unwrap()[..2], traced);
        std::fs::write(&ours, "defaults: [cot-plus]\n").unwrap();
        let told = map(&with_file).unwrap_err();
        assert!(told.contains(&format!("but spec.templateFrom.sha256 is {digest}")), "{told}");
        let held = format!("kind: ConfigMap\nmetadata: {{ name: templates }}\ndata: {{ ours.yaml: {TEMPLATE:?} }}");
        std::fs::write(&path, format!("{objects}---\napiVersion: v1\n{held}\n")).unwrap();
        assert_eq!(map(&config).unwrap()[..2], traced);
    }

    #[test]
    fn unknown_settings_and_values_are_refused() {
        for (set, why) in [
            ("evaluation.preset=cot-lit", "did you mean cot-lite?"),
            ("metadata.rollout_ring=0E_base_", "is not a rollout ring"),
            ("deployment.preset=singel", "did you mean single?"),
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
