//! `codex reasoning-pod`: writes a ReasoningPod by a deployment preset. Prints.

use clap::{Args, builder::PossibleValuesParser};
use codex_configs::{ConfigError, deployment};
use codex_provenance::text::Printable;
use codex_reports::exit;
use codex_validate::Validator;
use codex_verdict::Ring;
use serde_json::json;

use crate::{atomic_fs, error::CommandError};

/// Print a ReasoningPod whose servers are those of a deployment preset, to be reviewed and applied.
#[derive(Debug, Args)]
pub struct ReasoningPod {
    /// Name of the ReasoningPod.
    #[arg(value_name = "NAME")]
    name: String,
    /// TrainingRun whose model is served.
    #[arg(long, value_name = "NAME")]
    training_run: String,
    /// Evaluation that must have passed; repeatable.
    #[arg(long, value_name = "NAME", required = true)]
    evaluation: Vec<String>,
    /// Ring in which the model is served: that of the TrainingRun.
    #[arg(long, value_parser = PossibleValuesParser::new(Ring::ALL.map(Ring::name)))]
    ring: String,
    /// Deployment preset: `reasoning_pod`, two to ten servers that follow the load, or `single`, one small server.
    #[arg(long, value_name = "NAME", default_value = "reasoning_pod")]
    preset: String,
    /// Override a key of the preset, such as `deployment.replicas=3`; repeatable.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl ReasoningPod {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        atomic_fs::say(self.text()?.trim_end())?;
        Ok(exit::FINISHED)
    }

    /// Writes the object.
    ///
    /// # Errors
    /// Exit code 2: the preset, a key or a value is wrong, or the API server would refuse the object.
    fn text(&self) -> Result<String, CommandError> {
        let wrong = |why: ConfigError| CommandError::bad_input(why.on_command_line(&self.set));
        let mut spec = deployment(&self.preset, &self.set).map_err(wrong)?;
        spec["rolloutRing"] = json!(self.ring);
        spec["trainingRun"] = json!(self.training_run);
        spec["evaluations"] = json!(self.evaluation);
        let object = json!({
            "apiVersion": "codex-ml.dev/v1alpha1",
            "kind": "ReasoningPod",
            "metadata": { "name": self.name },
            "spec": spec,
        });
        let text = serde_yaml::to_string(&object).map_err(CommandError::failed)?;
        let validator = Validator::new().map_err(|error| CommandError::failed(error.to_string()))?;
        validator.objects(&text).map_err(|findings| {
            let all: Vec<_> = findings.iter().map(|it| format!("{}: {}", it.field, it.message)).collect();
            CommandError::bad_input(Printable(&all.join("; ")).to_string())
        })?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use codex_configs::{DEPLOYMENT_PRESETS, deployment_preset};
    use serde_json::Value;

    use super::*;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        pod: ReasoningPod,
    }

    fn written(more: &[&str]) -> Result<Value, String> {
        let line = ["codex", "cot-rc", "--training-run", "cot", "--evaluation", "lite", "--ring", "0D_base_"];
        let line = line.into_iter().chain(more.iter().copied());
        let pod = Arguments::try_parse_from(line).map_err(|error| error.to_string())?.pod;
        let text = pod.text().map_err(|error| error.sentence())?;
        Ok(serde_yaml::from_str(&text).expect("YAML"))
    }

    #[test]
    fn every_preset_gives_a_valid_object() {
        for preset in DEPLOYMENT_PRESETS {
            let object = written(&["--preset", preset]).unwrap();
            assert_eq!(deployment_preset(&object["spec"]), Some(*preset));
            assert_eq!((&object["kind"], &object["metadata"]["name"]), (&json!("ReasoningPod"), &json!("cot-rc")));
            let spec = &object["spec"];
            assert_eq!((&spec["trainingRun"], &spec["evaluations"]), (&json!("cot"), &json!(["lite"])));
            assert_eq!((&spec["rolloutRing"], &spec["dryRun"]), (&json!("0D_base_"), &json!(true)));
        }
        let set = ["--preset", "single", "--set", "deployment.replicas=3", "--set", "deployment.shadow.of=cot-main"];
        let object = written(&set).unwrap();
        assert_eq!((&object["spec"]["replicas"], &object["spec"]["shadow"]["of"]), (&json!(3), &json!("cot-main")));
    }

    #[test]
    fn wrong_presets_keys_and_values_are_refused() {
        for (more, told) in [
            (["--preset", "singel"], "did you mean single?"),
            (["--set", "deployment.replica=3"], "--set deployment.replica=3 names the key deployment.replica"),
            (["--set", "deployment.resources.limits.memory=4GB"], "must hold quantities"),
            (["--set", "deployment.serving.rate_limit=often"], "spec.serving.rateLimit"),
        ] {
            let refused = written(&more).expect_err(told);
            assert!(refused.contains(told), "{refused}");
        }
        assert!(written(&["--ring", "0E_base_"]).is_err());
    }
}
