//! `codex train --prove-resume`: proves on the user's configuration, data and machine that a killed run resumes bit for bit.
//! Starts real processes and kills them.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use codex_configs::{Randomness, Resolved, TrackingSettings, Training};
use codex_provenance::text::counted;
use codex_reports::TrainingState;
use serde_json::json;

use super::ProofError;
use crate::{
    artifacts::segments::{Segment, segments},
    atomic_fs::{self, FileError},
    reporting::{self, Reporter},
    training::{
        Base, Session, TrainError,
        attempts::newest_note,
        checkpoint::{ValidCheckpoint, newest},
        data::Places,
        listing::some_tensors,
        records::{LEDGER, STATES},
        schedule::{Curriculum, executed_steps},
        state::differing_names,
    },
};

/// Number of kills of one proof.
const KILLS: u64 = 3;
/// Number of tries if the run ends before all kills.
const TRIES: u32 = 5;
/// The most bytes of a file of rows: a few steps.
const LEDGER_SIZE: u64 = 4096;
/// Interval between two checks of the progress of a child.
const POLL: Duration = Duration::from_millis(1);

/// A proof, and where it is made.
pub(crate) struct ResumeProof<'a> {
    /// Configuration of the run.
    pub(crate) resolved: &'a Resolved<Training>,
    /// Model that the run starts from.
    pub(crate) base: Option<&'a Base>,
    /// Files of data by name.
    pub(crate) files: &'a [(String, PathBuf)],
    /// Directory of both runs; emptied first, and removed when the proof holds.
    pub(crate) directory: PathBuf,
    /// Number of steps of both runs.
    pub(crate) steps: u64,
}

impl ResumeProof<'_> {
    /// Trains once without and once with kills, on different numbers of threads, and compares everything. Returns a summary.
    ///
    /// # Errors
    /// [`ProofError::NotReproduced`] with everything that differs; [`ProofError::Incomplete`] if there was nothing to compare.
    pub(crate) fn run(&self) -> Result<serde_json::Value, TrainError> {
        let steps = self.steps.min(self.available_steps()?);
        if steps < 2 {
            return Err(TrainError::Arguments(format!(
                "a run of {} is too short to be killed between two steps: {}",
                counted(steps, "step"),
                self.advice(steps)
            )));
        }
        atomic_fs::remove_directory(&self.directory)?;
        atomic_fs::make_directory(&self.directory)?;
        let mut spec = self.resolved.spec().clone();
        // The runs of the proof are no runs of a team.
        spec.settings.tracking = TrackingSettings::default();
        let training = &mut spec.settings.training;
        training.stop_after = Some(steps);
        // All steps are compared, however little the model learns in them.
        training.early_stop_patience = None;
        training.checkpoint_every = (steps / 5).max(1);
        training.keep_last = usize::try_from(steps).unwrap_or(1000).min(1000);
        training.state_digest_every = Some(1);
        // Two runs with keys of their own would differ.
        training.privacy.randomness = Randomness::Seed;
        let short = Resolved::new(spec)?;
        let config = self.directory.join("config.yaml");
        atomic_fs::write(&config, short.to_yaml()?.as_bytes())?;

        let threads = rayon::current_num_threads();
        let (straight, killed) = (self.directory.join("straight"), self.directory.join("killed"));
        Self::finish(self.start(&config, &straight, threads)?, "the uninterrupted run", &straight)?;
        let mut kills = Vec::new();
        for again in 0..TRIES {
            atomic_fs::remove_directory(&killed)?;
            kills = self.kill(&config, &killed, steps, threads, again)?;
            if kills.len() as u64 == KILLS {
                break;
            }
        }
        if kills.is_empty() {
            return Err(ProofError::Incomplete(format!(
                "the run of {} ended each time before it could be killed: {}",
                counted(steps, "step"),
                self.advice(steps)
            ))
            .into());
        }
        Self::finish(self.start(&config, &killed, threads)?, "the resumed run", &killed)?;
        let (digest, comparison) = Self::compare(&straight, &killed, steps)?;
        if !comparison.is_empty() {
            return Err(ProofError::NotReproduced { what: comparison.join("; "), kept: self.directory.clone() }.into());
        }
        atomic_fs::remove_directory(&self.directory)?;
        Ok(json!({
            "proved": true,
            "steps": steps,
            "killedInStep": kills,
            "threads": [threads, 1],
            "stateDigest": digest,
            "configDigest": self.resolved.digest(),
        }))
    }

    /// Returns the number of steps that the configuration yields with this data.
    fn available_steps(&self) -> Result<u64, TrainError> {
        let reporter = Reporter::<TrainingState>::nowhere();
        let session = Session {
            base: self.base,
            ..Session::new(self.resolved, self.files, &self.directory, &reporter, &|| false)
        };
        let (model, tokenizer) = session.model()?;
        let dataset = session.read_data(&Places::default(), session.encoder(&model, &tokenizer))?;
        let settings = &self.resolved.spec().settings;
        let steps = executed_steps(&settings.training, dataset.records());
        // A curriculum ends once its last phase is completed, which takes at least these steps.
        let phases = Curriculum::of(settings).map(|curriculum| curriculum.phases.iter().map(|phase| phase.steps).sum());
        Ok(phases.map_or(steps, |phases: u64| phases.min(steps)))
    }

    /// Returns how to get more steps.
    fn advice(&self, steps: u64) -> &'static str {
        if steps == self.steps {
            "use more --prove-steps"
        } else {
            "raise the setting that ends the run: training.max_steps, training.max_epochs or training.stop_after"
        }
    }

    /// Starts a run and kills it, several times. Returns the steps in which it was killed, fewer than [`KILLS`] if it ended
    /// before.
    fn kill(
        &self,
        config: &Path,
        output: &Path,
        steps: u64,
        threads: usize,
        again: u32,
    ) -> Result<Vec<u64>, TrainError> {
        let mut kills = Vec::new();
        for round in 1..=KILLS {
            // The kill must fall somewhere within a step, so the pause after the awaited step differs each time. It is shorter in
            // later tries, in case it was too long for the remaining steps.
            let wanted = (steps * round / (KILLS + 1)).max(1);
            let pause = Duration::from_millis((7 * round) >> (2 * again));
            let child = self.start(config, output, if round % 2 == 0 { threads } else { 1 })?;
            match Self::kill_after(child, output, wanted, pause)?.filter(|step| *step <= steps) {
                Some(step) => kills.push(step),
                None => break,
            }
        }
        Ok(kills)
    }

    fn start(&self, config: &Path, output: &Path, threads: usize) -> Result<Child, TrainError> {
        let program = std::env::current_exe().map_err(TrainError::System)?;
        let log = output.with_extension("log");
        let log_file = fs::File::options().append(true).create(true).open(&log);
        let log_file = log_file.map_err(FileError::of("creating", &log))?;
        let mut command = Command::new(program);
        command.arg("train").arg("--config").arg(config).arg("--output").arg(output);
        // Small files, so that the proof covers their rotation.
        command.arg("--ledger-size").arg(LEDGER_SIZE.to_string());
        if let Some(base) = self.base {
            command.arg("--base").arg(base.path()).arg("--base-digest").arg(base.digest().to_string());
        }
        for (name, path) in self.files {
            let mut file = std::ffi::OsString::from(format!("{name}="));
            file.push(path);
            command.arg("--data").arg(file);
        }
        // The children are not the run of the pod and must not report as such.
        for variable in reporting::REQUIRED {
            command.env_remove(variable);
        }
        command.env("RAYON_NUM_THREADS", threads.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log_file);
        command.spawn().map_err(TrainError::System)
    }

    fn finish(mut child: Child, what: &str, output: &Path) -> Result<(), TrainError> {
        Self::succeeded(child.wait().map_err(TrainError::System)?, what, output)
    }

    fn succeeded(status: ExitStatus, what: &str, output: &Path) -> Result<(), TrainError> {
        if status.success() {
            return Ok(());
        }
        let log = output.with_extension("log");
        let text = fs::read_to_string(&log).unwrap_or_default();
        let last = text.lines().last().unwrap_or("no output").to_owned();
        Err(ProofError::Incomplete(format!("{what} ended with {status}: {last} (full log: {})", log.display())).into())
    }

    /// Kills a child some time after it has done `steps` steps of the run. Returns the step it was in; `None` if it ended
    /// before.
    fn kill_after(mut child: Child, output: &Path, steps: u64, pause: Duration) -> Result<Option<u64>, TrainError> {
        while child.try_wait().map_err(TrainError::System)?.is_none() {
            if newest_note(&output.join("writers")).is_some_and(|note| note.step > steps) {
                break;
            }
            std::thread::sleep(POLL);
        }
        let until = Instant::now() + pause;
        while Instant::now() < until {
            std::thread::sleep(POLL);
        }
        child.kill().map_err(TrainError::System)?;
        let status = child.wait().map_err(TrainError::System)?;
        if status.signal() == Some(9) {
            return Ok(newest_note(&output.join("writers")).map(|note| note.step));
        }
        Self::succeeded(status, "the run to be killed", output)?;
        Ok(None)
    }

    /// Returns the names and bytes of the files of rows called `name`, the oldest first.
    fn files(output: &Path, name: &str) -> Result<Vec<(String, Vec<u8>)>, FileError> {
        let path = output.join("artifacts").join(name);
        let read = |Segment { path, number }: Segment| {
            let name = number.map_or_else(|| name.to_owned(), |number| format!("{name}.{number}"));
            Ok((name, atomic_fs::read(&path)?))
        };
        segments(&path).map_err(FileError::of("listing", &path))?.into_iter().map(read).collect()
    }

    /// Returns the digest of the last state, and everything in which the runs differ.
    fn compare(straight: &Path, killed: &Path, steps: u64) -> Result<(String, Vec<String>), TrainError> {
        let last = |output: &Path| -> Result<ValidCheckpoint, TrainError> {
            let found = newest(&output.join("checkpoints"), u64::MAX, |notice| tracing::warn!("{notice}"))?;
            let found = found.filter(|found| found.checkpoint.step == steps);
            let missing = || ProofError::Incomplete(format!("{} has no checkpoint of step {steps}", output.display()));
            Ok(found.ok_or_else(missing)?)
        };
        let (one, two) = (last(straight)?, last(killed)?);
        let mut differences = Vec::new();
        if one.info.state_digest != two.info.state_digest {
            let tensors = differing_names(&one.info.tensors, &two.info.tensors);
            differences.push(format!("the state of step {steps}, in {}", some_tensors(&tensors)));
        }
        for name in [LEDGER, STATES] {
            let (one, two) = (Self::files(straight, name)?, Self::files(killed, name)?);
            match one.iter().zip(&two).find(|(one, two)| one != two) {
                Some(((file, one), (other, two))) if file == other => {
                    let line = one.split(|byte| *byte == b'\n').zip(two.split(|byte| *byte == b'\n'));
                    let line = line.take_while(|(one, two)| one == two).count() + 1;
                    differences.push(format!("artifacts/{file}, from line {line} on"));
                }
                None if one.len() == two.len() => {}
                _ => differences.push(format!(
                    "artifacts/{name}, in {} and {}",
                    counted(one.len(), "file"),
                    counted(two.len(), "file")
                )),
            }
        }
        let model = |output: &Path| atomic_fs::read(&output.join("model/model.safetensors"));
        if model(straight)? != model(killed)? {
            differences.push("model/model.safetensors".to_owned());
        }
        Ok((one.info.state_digest.to_string(), differences))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Epochs over little data yield fewer steps than requested, and the message says how to get more.
    #[test]
    fn steps_are_limited_by_the_data() {
        use crate::training::test_support::speck;
        let proof = |overrides: &[&str], steps: u64| {
            let resolved = speck(overrides);
            let directory = tempfile::tempdir().unwrap();
            let directory = directory.path().join("prove-resume");
            let proof = ResumeProof { resolved: &resolved, base: None, files: &[], directory, steps };
            (proof.available_steps().unwrap(), proof.run().unwrap_err().to_string())
        };
        // 25 records in steps of 6.
        let short = ["training.max_epochs=1", "training.batch_size=25", "training.warmup_steps=0"];
        let (there_are, said) = proof(&short, 40);
        assert_eq!(there_are, 1);
        assert!(said.starts_with("a run of 1 step is too short") && said.contains("training.max_epochs"), "{said}");
        let (there_are, said) = proof(&["training.max_epochs=3"], 1);
        assert_eq!(there_are, 15);
        assert!(said.ends_with("use more --prove-steps"), "{said}");
    }

    /// Two runs that differ on purpose.
    #[test]
    fn a_difference_is_named() {
        use crate::training::test_support::{attempt, both, resolved};
        let directory = tempfile::tempdir().unwrap();
        let run = |seed: &str, name: &str| {
            let run = resolved(&["training.stop_after=3", "training.checkpoint_every=3", seed], both());
            let output = directory.path().join(name);
            attempt(&run, &output, false).outcome.unwrap();
            output
        };
        let one = run("training.learning_rate=0.01", "one");
        let (same, other) = (run("training.learning_rate=0.01", "same"), run("training.learning_rate=0.02", "other"));
        assert_eq!(ResumeProof::compare(&one, &same, 3).unwrap().1, [""; 0]);
        let (_, differences) = ResumeProof::compare(&one, &other, 3).unwrap();
        assert!(
            differences[0].contains("in parameters/model.embed_tokens.weight, ") && differences[0].ends_with(" more"),
            "{differences:?}"
        );
        assert!(
            differences.iter().any(|line| line.starts_with("artifacts/ledger.ndjson, from line 2")),
            "{differences:?}"
        );
        assert!(ResumeProof::compare(&one, &same, 4).unwrap_err().to_string().contains("no checkpoint of step 4"));
    }
}
