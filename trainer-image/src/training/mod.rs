//! `codex train`: a run from its configuration to its model directory, restart-safe and the same for the same input.
//!
//! A run's directory holds `model/` (written last, whole), `checkpoints/step-00000400/`, `artifacts/` and `writers/` (one
//! file an attempt). Whoever starts `codex train` on it again goes on from the newest valid checkpoint; a finished run
//! says again what its model is. Whoever needs a model in a few seconds (a test, say) trains
//! `cot-starter` on 20,000 records of `arithmetic` with these overrides; after about eight seconds of one core its
//! `trace_coverage` on held-out arithmetic is about 0.6, where that of the initial model (`training.stop_after=0`) is 0:
//!
//! ```text
//! model.hidden_size=32 model.intermediate_size=96 model.num_attention_heads=2 training.max_steps=500
//! training.warmup_steps=20 training.batch_size=32 training.learning_rate=0.01 training.checkpoint_every=100
//! ```

mod artifacts;
mod bisect;
mod checkpoint;
mod data;
#[cfg(test)]
mod death;
mod epochs;
mod error;
mod groups;
mod keep;
mod memory;
mod meter;
mod origin;
mod patience;
mod plan;
mod progress;
mod prove;
mod records;
mod replay;
mod requirement;
mod retention;
mod saver;
mod schedule;
mod session;
mod smoke;
mod snapshot;
mod spikes;
mod state;
mod validation;
mod writer;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use codex_configs::{Data, Resolved, Synthetic, Training, VALIDATION, compose_training};
use codex_provenance::{DataDigest, Sha256};
use codex_reports::{Stage, TrainingState, exit};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

pub use bisect::Bisect;
pub use error::TrainError;
pub use meter::Meter;
use prove::Proof;
pub use records::RecordsError;
pub use replay::ReplayStep;
pub use session::{Outcome, Session};
pub use smoke::{CheckpointSmoke, SmokeError};

use crate::{
    atomic_fs,
    error::CommandError,
    exposition::{Exposition, ExpositionError},
    reporting::Reporter,
};

/// Train a model; goes on from the newest valid checkpoint in the output directory.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["config", "template"])))]
pub struct Train {
    /// A resolved configuration, as the controller mounts it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["set", "seed"])]
    config: Option<PathBuf>,
    /// A template to compose a configuration from, such as cot-starter.
    #[arg(long)]
    template: Option<String>,
    /// Change a key of the template, such as `training.max_steps=200`.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Chooses initial weights and the order of data [default: 1].
    #[arg(long, allow_negative_numbers = true, value_parser = crate::arguments::seed)]
    seed: Option<u64>,
    /// A file of records (JSON lines); without any, a template learns the synthetic tasks that it was made for.
    #[arg(long, value_name = "NAME=FILE", value_parser = named_file)]
    data: Vec<(String, PathBuf)>,
    /// The run's directory.
    #[arg(long, value_name = "DIRECTORY")]
    output: PathBuf,
    /// Say what a resume would change, and stop.
    #[arg(long, conflicts_with = "prove_resume")]
    plan: bool,
    /// Go on from a checkpoint although the configuration has changed so that the result has other bits than an
    /// uninterrupted run's.
    #[arg(long)]
    accept_other_bits: bool,
    /// Prove on this configuration, data and machine that a killed run goes on bit for bit: train a few steps, with and
    /// without kills, and compare everything.
    #[arg(long)]
    prove_resume: bool,
    /// Steps of the proof.
    #[arg(long, value_name = "STEPS", default_value_t = 40, requires = "prove_resume")]
    prove_steps: u64,
    /// Seconds from SIGTERM to SIGKILL: a pod's terminationGracePeriodSeconds.
    #[arg(long, value_name = "SECONDS", env = "CODEX_GRACE_SECONDS")]
    grace_seconds: Option<u64>,
    /// Serve /metrics to Prometheus on this address, such as 127.0.0.1:9464.
    #[arg(long, env = "CODEX_METRICS_ADDRESS", value_name = "ADDRESS:PORT")]
    metrics_address: Option<SocketAddr>,
}

/// Records of each synthetic task that a template learns when no data is named.
const DEFAULT_RECORDS: u64 = 100_000;

fn named_file(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.to_owned(), path.into())),
        _ => Err("write NAME=FILE".to_owned()),
    }
}

/// The synthetic tasks that a template was made for.
fn default_data(template: &str) -> impl Iterator<Item = Data> {
    codex_configs::template_tasks(template).iter().map(|task| Data {
        name: (*task).to_owned(),
        sha256: None,
        synthetic: Some(Synthetic { task: (*task).to_owned(), seed: 1, count: DEFAULT_RECORDS }),
    })
}

impl Train {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        if self.plan {
            return Ok(self.say_plan()?);
        }
        if self.prove_resume {
            let resolved = self.resolve()?;
            let directory = self.output.join("prove-resume");
            let proof = Proof { resolved: &resolved, files: &self.data, directory, steps: self.prove_steps };
            let said = atomic_fs::say(&proof.run()?.to_string());
            return said.map(|()| exit::FINISHED).map_err(CommandError::failed);
        }
        let reporter = Reporter::<TrainingState>::from_env().map_err(TrainError::from)?;
        match self.train(&reporter) {
            Ok(Outcome::Finished(model)) => {
                reporter.finish(exit::FINISHED);
                let line = serde_json::json!({
                    "model": self.output.join("model"),
                    "digest": model.digest,
                    "parameters": model.parameters,
                    "size": model.manifest.size_bytes(),
                });
                atomic_fs::say(&line.to_string()).map_err(CommandError::failed)?;
                Ok(exit::FINISHED)
            }
            Ok(Outcome::Interrupted { .. }) => {
                reporter.finish(exit::INTERRUPTED);
                Ok(exit::INTERRUPTED)
            }
            Err(error) => {
                reporter.fail(error.failure());
                reporter.finish(error.exit());
                Err(error.into())
            }
        }
    }

    fn train(&self, reporter: &Reporter<TrainingState>) -> Result<Outcome, TrainError> {
        reporter.update(|state| state.stage = Stage::Starting);
        let stop = Arc::new(AtomicBool::new(false));
        // Whoever presses Ctrl-C twice does not want to wait for the checkpoint.
        flag::register_conditional_shutdown(SIGINT, exit::FAILED, Arc::clone(&stop)).map_err(TrainError::System)?;
        for signal in [SIGTERM, SIGINT] {
            flag::register(signal, Arc::clone(&stop)).map_err(TrainError::System)?;
        }
        let resolved = self.resolve()?;
        reporter.set_config_digest(resolved.digest());
        let meter = Meter::new().map_err(ExpositionError::from)?;
        let exposition =
            self.metrics_address.map(|address| Exposition::start(address, meter.registry())).transpose()?;
        let stop = || stop.load(Ordering::Relaxed);
        Session { meter: exposition.is_some().then_some(&meter), ..self.session(&resolved, reporter, &stop) }.run()
    }

    fn session<'a>(
        &'a self,
        resolved: &'a Resolved<Training>,
        reporter: &'a Reporter<TrainingState>,
        stop: data::Stop<'a>,
    ) -> Session<'a> {
        Session {
            resolved,
            files: &self.data,
            output: &self.output,
            reporter,
            meter: None,
            stop,
            accept_other_bits: self.accept_other_bits,
            grace: self.grace_seconds.map(Duration::from_secs),
        }
    }

    /// Prints what a resume would change; the exit code says whether it would be refused.
    fn say_plan(&self) -> Result<i32, TrainError> {
        let (resolved, reporter) = (self.resolve()?, Reporter::nowhere());
        let session = self.session(&resolved, &reporter, &|| false);
        let plan = session.look()?;
        atomic_fs::say(&plan.to_string())?;
        Ok(if session.permits(&plan) { exit::FINISHED } else { exit::BAD_INPUT })
    }

    /// The resolved configuration: read, or composed here. Whether there is a place for results comes first.
    fn resolve(&self) -> Result<Resolved<Training>, TrainError> {
        atomic_fs::check_output(&self.output)?;
        if let Some(path) = &self.config {
            return Ok(Resolved::from_yaml(&atomic_fs::read_named::<TrainError>("--config", path)?)?);
        }
        let template = self.template.as_deref().unwrap_or_default();
        let mut data = Vec::new();
        for (name, path) in &self.data {
            let sha256 = DataDigest(Sha256::of(atomic_fs::read_named::<TrainError>(&format!("data {name}"), path)?));
            data.push(Data { name: name.clone(), sha256: Some(sha256), synthetic: None });
        }
        if data.iter().all(|data| data.name == VALIDATION) {
            data.extend(default_data(template));
        }
        compose_training(template, &self.set, None, self.seed.unwrap_or(1), data)
            .map_err(|why| why.on_command_line(&self.set).into())
    }
}

#[cfg(test)]
mod tests;
