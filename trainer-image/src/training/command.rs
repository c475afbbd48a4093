//! `codex train`: the command line of training. Does I/O.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::Duration,
};

use codex_configs::{Data, Resolved, TEMPLATES, Training, choose, has_options};
use codex_provenance::{DataDigest, ModelDigest};
use codex_reports::{Stage, TrainingState, exit};
use codex_signing::key::PublicKey;

use super::{
    Base, BaseError, Origin, Outcome, Required, Session, TrainError, TrainerMetrics,
    arguments::default_data,
    checks::{Combination, ResumeProof},
    run::told_former,
};
use crate::{
    arguments::named_file,
    artifacts::segments,
    atomic_fs,
    composing::{self, Template},
    error::CommandError,
    exposition::{Exposition, ExpositionError},
    hub::{self, Fetched, Hub, Repository},
    overlap::{self, Named},
    reporting::Reporter,
    signals::{Stop, stop_flag_or_exit},
};

/// Train a model; resumes from the newest valid checkpoint in the output directory.
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["config", "template", "set", "changes"])))]
#[command(group(clap::ArgGroup::new("start").args(["base", "base_from_hub"])))]
pub struct Train {
    /// Resolved configuration, as the controller mounts it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["template", "set", "changes", "seed"])]
    pub(super) config: Option<PathBuf>,
    /// Template of the configuration: an included one such as cot-starter, or a file such as ours.yaml.
    #[arg(long, value_name = "NAME|FILE")]
    pub(super) template: Option<String>,
    /// Override a key of the template, such as `training.max_steps=200`.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,
    /// More overrides, after those of --set; template=NAME chooses the template, +reasoning=NAME settings to begin with, for which no
    /// template is needed, and `training.output_dir=DIRECTORY` is --output.
    #[arg(value_name = "KEY=VALUE")]
    pub(super) changes: Vec<String>,
    /// Seed of initial weights and data order [default: 1].
    #[arg(long, allow_negative_numbers = true, value_parser = crate::arguments::seed)]
    pub(super) seed: Option<u64>,
    /// Directory of the model to start from, in Hugging Face's form; it brings its own shape and tokenizer.
    #[arg(long, value_name = "DIRECTORY")]
    pub(super) base: Option<PathBuf>,
    /// Repository of the model to start from, as OWNER/NAME or OWNER/NAME@REVISION. It is downloaded into base/ of the output
    /// directory once. The token of a private or gated repository is read from `HF_TOKEN`.
    #[arg(long, value_name = "REPOSITORY", value_parser = clap::value_parser!(Repository))]
    pub(super) base_from_hub: Option<Repository>,
    /// Address of the hub [default: that of Hugging Face].
    #[arg(long, value_name = "URL", env = "HF_ENDPOINT")]
    pub(super) hub_endpoint: Option<String>,
    /// Digest that the base must have, as `codex verify` prints it.
    #[arg(long, value_name = "DIGEST", requires = "start")]
    pub(super) base_digest: Option<ModelDigest>,
    /// Public key by which the base must be signed, a PEM file. The signature is `model.sig` of the base, as `model_signing`
    /// writes it.
    #[arg(long, value_name = "KEY.pem", requires = "start")]
    pub(super) base_signed_by: Option<PathBuf>,
    /// Data file with records as JSON lines; without one, a template uses its synthetic tasks.
    #[arg(long, value_name = "NAME=FILE", value_parser = named_file)]
    pub(super) data: Vec<(String, PathBuf)>,
    /// Directory of the run.
    #[arg(long, value_name = "DIRECTORY", default_value = DEFAULT_OUTPUT)]
    pub(super) output: PathBuf,
    /// Check that configuration, base and data can be combined, and exit: 0 if they can, 2 with a line for each reason if not. Reads the
    /// base without its weights and the first record of each file, and writes nothing.
    #[arg(long, conflicts_with_all = ["plan", "prove_resume"])]
    pub(super) check: bool,
    /// Show the effect of resuming, and exit.
    #[arg(long, conflicts_with = "prove_resume")]
    pub(super) plan: bool,
    /// Resume although the configuration has changed so that the bits of the result differ from those of an uninterrupted
    /// run.
    #[arg(long)]
    pub(super) accept_other_bits: bool,
    /// Prove on this configuration, data and machine that a killed run resumes bit for bit: train a few steps with and without
    /// kills, and compare everything.
    #[arg(long)]
    pub(super) prove_resume: bool,
    /// Number of steps of the proof.
    #[arg(long, value_name = "STEPS", default_value_t = 40, requires = "prove_resume", value_parser = crate::arguments::whole::<u64>(0..=u64::MAX))]
    pub(super) prove_steps: u64,
    #[command(flatten)]
    pub(super) required: Required,
    /// Seconds from SIGTERM to SIGKILL: terminationGracePeriodSeconds of the pod.
    #[arg(long, value_name = "SECONDS", env = "CODEX_GRACE_SECONDS", value_parser = crate::arguments::whole::<u64>(0..=u64::MAX))]
    pub(super) grace_seconds: Option<u64>,
    /// The most bytes of metrics.ndjson, ledger.ndjson and states.ndjson. A full one is renamed to FILE.1, FILE.2 and so on, and a new
    /// one begins.
    #[arg(long, value_name = "BYTES", default_value_t = segments::SIZE, value_parser = crate::arguments::whole::<u64>(4096..=1 << 40))]
    pub(super) ledger_size: u64,
    /// Address on which /metrics is served to Prometheus, such as 127.0.0.1:9464.
    #[arg(long, env = "CODEX_METRICS_ADDRESS", value_name = "ADDRESS:PORT", value_parser = crate::arguments::socket_address)]
    pub(super) metrics_address: Option<SocketAddr>,
}

/// The directory of a run that names none.
const DEFAULT_OUTPUT: &str = "runs/default";
/// The override that is `--output`. It is no setting: where a run is written does not change what it is, so it is in no digest.
const OUTPUT_DIR: &str = "training.output_dir";
/// The directories in `--output` whose files a run replaces or removes.
const OUTPUTS: [&str; 7] = ["model", "checkpoints", "artifacts", "cache", "mlruns", "writers", PROOF];
/// The cache of downloaded bases in `--output`.
const BASES: &str = "base";
/// The directory of `--prove-resume` in `--output`.
const PROOF: &str = "prove-resume";

impl Train {
    pub(crate) fn run(mut self) -> Result<i32, CommandError> {
        self.take_output()?;
        if self.check {
            return Ok(self.check()?);
        }
        if self.plan {
            return Ok(self.show_diff()?);
        }
        if self.prove_resume {
            let (resolved, base) = (self.resolve()?, self.base(&|| false)?);
            let directory = self.output.join(PROOF);
            let proof = ResumeProof {
                resolved: &resolved,
                base: base.as_ref(),
                files: &self.data,
                directory,
                steps: self.prove_steps,
            };
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

    /// Takes the directory of the run out of the overrides.
    ///
    /// # Errors
    /// `--output` names another one.
    fn take_output(&mut self) -> Result<(), TrainError> {
        for texts in [&mut self.set, &mut self.changes] {
            let (chosen, rest) = choose(OUTPUT_DIR, texts);
            *texts = rest;
            let Some(chosen) = chosen.map(PathBuf::from) else { continue };
            if self.output != Path::new(DEFAULT_OUTPUT) && self.output != chosen {
                let (output, chosen) = (self.output.display(), chosen.display());
                let why = format!("--output is {output}, but {OUTPUT_DIR} is {chosen}: name one directory");
                return Err(TrainError::Arguments(why));
            }
            self.output = chosen;
        }
        Ok(())
    }

    fn train(&self, reporter: &Reporter<TrainingState>) -> Result<Outcome, TrainError> {
        reporter.update(|state| state.stage = Stage::Starting);
        // A second Ctrl-C ends the process without waiting for the checkpoint.
        let stop = stop_flag_or_exit().map_err(TrainError::System)?;
        let resolved = self.resolve()?;
        reporter.set_config_digest(resolved.digest());
        let metrics = TrainerMetrics::new().map_err(ExpositionError::from)?;
        crate::gpu::register(metrics.registry(), resolved.spec().settings.training.device)
            .map_err(ExpositionError::from)?;
        let exposition = self
            .metrics_address
            .map(|address| Exposition::start(address, metrics.registry(), metrics.refused_connections()))
            .transpose()?;
        let stop = || stop.load(Ordering::Relaxed);
        let base = match self.base(&stop) {
            Err(error) if error.is_interruption() => {
                tracing::info!("interrupted while the base was downloaded");
                reporter.update(|report| report.stage = Stage::Interrupted);
                return Ok(Outcome::Interrupted { step: 0 });
            }
            Err(error) => {
                // The controller is told the digest that was found, too.
                if let TrainError::Base(BaseError::Digest { found, .. }) = &error {
                    reporter.update(|state| state.base = Some(codex_reports::Base::of(*found)));
                }
                return Err(error);
            }
            Ok(base) => base,
        };
        if let Some(base) = &base {
            reporter.update(|state| state.base = Some(base.reported()));
        }
        let session = self.session(&resolved, base.as_ref(), reporter, &stop);
        let former = told_former();
        let metrics = exposition.is_some().then_some(&metrics);
        Session { metrics, former: former.as_ref(), ..session }.run()
    }

    fn session<'a>(
        &'a self,
        resolved: &'a Resolved<Training>,
        base: Option<&'a Base>,
        reporter: &'a Reporter<TrainingState>,
        stop: Stop<'a>,
    ) -> Session<'a> {
        Session {
            resolved,
            base,
            files: &self.data,
            output: &self.output,
            reporter,
            metrics: None,
            stop,
            accept_other_bits: self.accept_other_bits,
            required: Some(&self.required),
            former: None,
            grace: self.grace_seconds.map(Duration::from_secs),
            ledger_size: self.ledger_size,
        }
    }

    /// Prints what cannot be combined; the exit code says whether there is anything.
    fn check(&self) -> Result<i32, TrainError> {
        let resolved = self.resolve()?;
        let (base, is_remote) = (self.base.as_deref(), self.base_from_hub.is_some());
        let findings = Combination { resolved: &resolved, base, is_remote, files: &self.data }.check();
        atomic_fs::say(&findings.to_string())?;
        Ok(if findings.refusals.is_empty() { exit::FINISHED } else { exit::BAD_INPUT })
    }

    /// Prints the effect of resuming; the exit code says whether resuming would be refused.
    fn show_diff(&self) -> Result<i32, TrainError> {
        let (resolved, reporter, base) = (self.resolve()?, Reporter::nowhere(), self.base(&|| false)?);
        let session = self.session(&resolved, base.as_ref(), &reporter, &|| false);
        let diff = session.resume_diff()?;
        atomic_fs::say(&diff.to_string())?;
        Ok(if session.permits(&diff) { exit::FINISHED } else { exit::BAD_INPUT })
    }

    /// Checks that neither a data file nor the base is in a directory whose files the run replaces or removes, and that the run does
    /// not write into the base.
    fn check_overlap(&self) -> Result<(), TrainError> {
        let outputs = OUTPUTS.map(|name| Named::new("--output", self.output.join(name)));
        let base = self.base.iter().map(|base| Named::new("--base", base));
        let bases: Vec<Named> = base.collect();
        overlap::check(&[Named::new("--output", &self.output)], &bases)?;
        let inputs: Vec<Named> = Named::data(&self.data).chain(bases).collect();
        Ok(overlap::check_inputs_outside(&outputs, &inputs)?)
    }

    /// Reads the base, if one is named, after downloading it if it comes from a hub.
    pub(super) fn base(&self, stop: Stop) -> Result<Option<Base>, TrainError> {
        let key = self.base_signed_by.as_deref().map(public_key).transpose()?;
        let (path, origin) = match (&self.base, &self.base_from_hub) {
            (Some(path), _) => (path.clone(), None),
            (None, Some(repository)) => {
                let hub = Hub::of_environment(self.hub_endpoint.as_deref())?;
                let Fetched { path, commit } = hub::cached(&hub, repository, &self.output.join(BASES), stop)?;
                (path, Some(Origin { repository: repository.name.clone(), commit }))
            }
            (None, None) => return Ok(None),
        };
        Ok(Some(Base::open_from(&path, self.base_digest, origin, key.as_ref())?))
    }

    /// Reads or composes the resolved configuration, after checking the output directory.
    fn resolve(&self) -> Result<Resolved<Training>, TrainError> {
        atomic_fs::check_output(&self.output)?;
        self.check_overlap()?;
        if let Some(path) = &self.config {
            return Ok(Resolved::from_yaml(&atomic_fs::read_named::<TrainError>("--config", path)?)?);
        }
        let (chosen, set) = choose("template", &[self.set.clone(), self.changes.clone()].concat());
        let template = chosen.as_deref().or(self.template.as_deref());
        let template = template.map(Template::read::<TrainError>).transpose()?;
        if template.is_none() && !has_options(&set) {
            let why = format!(
                "--template: name one of {} or a file, or write template=NAME or +reasoning=baseline",
                TEMPLATES.join(", ")
            );
            return Err(TrainError::Arguments(why));
        }
        let mut data = Vec::new();
        for (name, path) in &self.data {
            let failed = |source| atomic_fs::named::<TrainError>(&format!("data {name}"), path, source);
            let sha256 = DataDigest(atomic_fs::digest(path).map_err(failed)?);
            data.push(Data { name: name.clone(), sha256: Some(sha256), synthetic: None });
        }
        if !data.iter().any(Data::is_trained_on) {
            data.extend(default_data(template.as_ref().map_or("", |template| template.name.as_str())));
        }
        Ok(composing::compose(template.as_ref(), &set, self.seed.unwrap_or(1), data)?)
    }
}

/// Reads the key of `--base-signed-by`.
fn public_key(path: &Path) -> Result<PublicKey, TrainError> {
    let pem = atomic_fs::read_named::<TrainError>("--base-signed-by", path)?;
    PublicKey::from_pem(&String::from_utf8_lossy(&pem))
        .map_err(|why| TrainError::Arguments(format!("--base-signed-by: {}: {why}", path.display())))
}
