//! `codex checkpoint-smoke`: whether a volume can be trusted with checkpoints, and how fast it takes them. Writes, reads and
//! removes files in the directory that it is given.
//!
//! What is written are real checkpoints of the configured model, through the code that training uses: hashed while written,
//! synced, renamed, read back past the page cache, compared, one of them damaged and refused.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::ErrorKind,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use codex_configs::{Training, compose_training};
use codex_engine::Layout;
use codex_reports::exit;
use rustix::fs::{Advice, fadvise, statvfs};

use super::{
    TrainError,
    checkpoint::{self, Found, Identity, Store},
    default_data, memory,
    origin::Origin,
    requirement,
    retention::Retention,
    session::model_config,
    state::{self, State},
};
use crate::{
    atomic_fs::{self, FileError},
    error::CommandError,
    tokenizer::Tokenizer,
};

/// Check that a directory's volume keeps checkpoints, and how fast.
#[derive(Debug, clap::Args)]
pub struct CheckpointSmoke {
    /// The directory, such as the output of a run to come; only a directory of its own in it is touched.
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
    /// The template whose model is written.
    #[arg(long, default_value = "cot-starter")]
    template: String,
    /// Change a key of the template, such as `model.hidden_size=512`.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// How many checkpoints are written.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(2..=1000))]
    rounds: u64,
    /// Seconds from SIGTERM to SIGKILL that a checkpoint has to fit into.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    grace: u64,
}

/// Why a volume cannot be trusted with checkpoints.
#[derive(Debug, thiserror::Error)]
pub enum SmokeError {
    /// A checkpoint that reads back as something else.
    #[error(
        "checkpoint {step} was written with digest {written} and reads back as {found}: the volume does not keep what it is given"
    )]
    Differs {
        /// Which.
        step: u64,
        /// Its digest as it was written.
        written: String,
        /// What there is, in words.
        found: String,
    },
    /// Damage that went unseen.
    #[error("a checkpoint with a changed byte was taken for whole")]
    Unseen,
    /// Two writers who both had their way.
    #[error(
        "a file was created twice: the volume does not keep two writers apart (O_EXCL); use another one, or never run two pods on it"
    )]
    Shared,
    /// A checkpoint that takes too long.
    #[error(
        "the slowest checkpoint took {slowest:.1} s, but a pod has {grace} s from SIGTERM to SIGKILL: use a faster volume or a smaller model"
    )]
    Slow {
        /// The slowest one, in seconds.
        slowest: f64,
        /// What there is.
        grace: u64,
    },
}

impl CheckpointSmoke {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        atomic_fs::make_directory(&self.directory).map_err(TrainError::from)?;
        let place = self.directory.join(format!(".checkpoint-smoke-{}", std::process::id()));
        let checked = self.check(&place);
        let removed = atomic_fs::remove_directory(&place).map_err(TrainError::from);
        checked.and(removed)?;
        Ok(exit::FINISHED)
    }

    fn check(&self, place: &Path) -> Result<(), TrainError> {
        let run = compose_training(&self.template, &self.set, None, 1, default_data(&self.template).collect())
            .map_err(|why| why.on_command_line(&self.set))?;
        let training: &Training = run.spec();
        let tokenizer = Tokenizer::characters().map_err(crate::model::ModelError::from)?;
        let config = model_config(training, &tokenizer)?;
        let layout = std::sync::Arc::new(Layout::of(&config));
        let settings = &training.settings.training;
        requirement::before_data(&config, memory::limit(Path::new("/")).as_ref())?;
        let state = State::new(config, training.seed, state::settings(settings))?;

        let volume = statvfs(&self.directory)
            .map_err(std::io::Error::from)
            .map_err(FileError::of("looking at", &self.directory))?;
        say(&format!("{} has {} free", self.directory.display(), mebibytes(volume.f_bavail * volume.f_frsize)))?;

        atomic_fs::make_directory(place)?;
        exclusive(&place.join("claim"))?;
        say("ok  a name goes to one of two writers")?;
        in_place(&place.join("note"))?;
        say("ok  a file is changed in place and read back")?;

        let identity =
            Identity { config_digest: run.digest(), settings: serde_json::Value::Null, seed: 1, data: BTreeMap::new() };
        let directory = place.join("checkpoints");
        let mut store =
            Store::open(directory.clone(), identity, Retention::of(settings, settings.max_steps).newest(2))?;
        let (mut took, mut size, mut digests) = (Vec::new(), 0, None);
        for round in 1..=self.rounds {
            let mut snapshot = state.snapshot(None);
            snapshot.step = round;
            let its = snapshot.digests();
            let written = store.save(&snapshot, &its, BTreeMap::new(), &Origin::here(settings))?;
            took.push(written.took);
            size = written.size;
            digests = Some((round, its.whole));
        }
        let (slowest, total) = (took.iter().max().copied().unwrap_or_default(), took.iter().sum::<Duration>());
        say(&format!(
            "ok  {} checkpoints of {} each: hashed, written, synced, renamed in {} on average, {} at most ({}/s)",
            self.rounds,
            mebibytes(size),
            milliseconds(total / u32::try_from(self.rounds).unwrap_or(1)),
            milliseconds(slowest),
            mebibytes((size as f64 * self.rounds as f64 / total.as_secs_f64().max(1e-9)) as u64),
        ))?;

        if let Some((step, written)) = digests {
            let began = Instant::now();
            let found = Self::newest(&directory)?;
            let read = match &found {
                Some(found) if found.checkpoint.step == step => Some(found.read(&layout)?.digests().whole),
                _ => None,
            };
            if read != Some(written) {
                let found = read.map_or_else(|| "none that is whole".to_owned(), |digest| digest.to_string());
                return Err(SmokeError::Differs { step, written: written.to_string(), found }.into());
            }
            let took = began.elapsed();
            say(&format!(
                "ok  the newest reads back with the same digest, from the volume, in {}",
                milliseconds(took)
            ))?;
            damage(&directory.join(checkpoint::name_of(step)).join(checkpoint::STATE))?;
            match Self::newest(&directory)? {
                Some(found) if found.checkpoint.step + 1 == step => {}
                _ => return Err(SmokeError::Unseen.into()),
            }
            say("ok  with a byte of it changed, it is refused and the one before is taken")?;
        }
        if slowest >= Duration::from_secs(self.grace) {
            return Err(SmokeError::Slow { slowest: slowest.as_secs_f64(), grace: self.grace }.into());
        }
        say(&format!(
            "ok  a checkpoint fits {:.0} times into a grace period of {} s",
            self.grace as f64 / slowest.as_secs_f64().max(1e-3),
            self.grace
        ))
    }

    /// The newest whole checkpoint, as it is on the volume and not in the page cache, as far as the system obeys.
    fn newest(directory: &Path) -> Result<Option<Found>, TrainError> {
        for (_, path) in checkpoint::scan(directory)? {
            for entry in fs::read_dir(&path).map_err(FileError::of("reading directory", &path))? {
                let path = entry.map_err(FileError::of("reading directory", &path))?.path();
                let file = File::open(&path).map_err(FileError::of("opening", &path))?;
                fadvise(&file, 0, None, Advice::DontNeed)
                    .map_err(std::io::Error::from)
                    .map_err(FileError::of("dropping the cache of", &path))?;
            }
        }
        checkpoint::newest(directory, u64::MAX, |_| ())
    }
}

/// Two writers want one name: only the first gets it.
fn exclusive(path: &Path) -> Result<(), TrainError> {
    let create = || OpenOptions::new().write(true).create_new(true).open(path);
    create().map_err(FileError::of("creating", path))?;
    match create() {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(FileError::of("creating", path)(error).into()),
        Ok(_) => Err(SmokeError::Shared.into()),
    }
}

/// A file that is changed in place, as an attempt's note is.
fn in_place(path: &Path) -> Result<(), TrainError> {
    atomic_fs::write(path, b"00000000")?;
    let file = OpenOptions::new().write(true).open(path).map_err(FileError::of("opening", path))?;
    file.write_all_at(b"42", 3).and_then(|()| file.sync_all()).map_err(FileError::of("writing", path))?;
    let found = atomic_fs::read(path)?;
    if found != b"00042000" {
        let found = String::from_utf8_lossy(&found).into_owned();
        return Err(SmokeError::Differs { step: 0, written: "00042000".to_owned(), found }.into());
    }
    Ok(())
}

/// Changes one byte in the middle of a file.
fn damage(path: &Path) -> Result<(), TrainError> {
    let changing = || FileError::of("changing", path);
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(changing())?;
    let middle = file.metadata().map_err(changing())?.len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).map_err(changing())?;
    file.write_all_at(&[!byte[0]], middle).and_then(|()| file.sync_all()).map_err(changing())?;
    Ok(())
}

fn say(line: &str) -> Result<(), TrainError> {
    Ok(atomic_fs::say(line)?)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", 1e3 * time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn smoke(directory: &Path, grace: u64) -> CheckpointSmoke {
        let set = ["model.hidden_size=32", "model.num_attention_heads=2"].map(str::to_owned).to_vec();
        CheckpointSmoke { directory: directory.to_owned(), template: "cot-starter".to_owned(), set, rounds: 3, grace }
    }

    #[test]
    fn a_sound_volume_passes_and_is_left_as_it_was() {
        let volume = tempfile::tempdir().unwrap();
        assert_eq!(smoke(volume.path(), 3600).run().unwrap(), exit::FINISHED);
        assert_eq!(fs::read_dir(volume.path()).unwrap().count(), 0);
        let fresh = volume.path().join("not/there/yet");
        smoke(&fresh, 3600).run().unwrap();
        assert_eq!(fs::read_dir(fresh).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_directory_is_said() {
        let volume = tempfile::tempdir().unwrap();
        let file = volume.path().join("file");
        fs::write(&file, "").unwrap();
        let error = smoke(&file, 3600).run().unwrap_err();
        assert!(error.sentence().contains("file") && error.exit == exit::FAILED, "{}", error.sentence());
        let mut unknown = smoke(volume.path(), 1);
        unknown.template = "nothing".to_owned();
        let error = unknown.run().unwrap_err();
        assert_eq!(error.exit, exit::BAD_INPUT);
        assert_eq!(fs::read_dir(volume.path()).unwrap().count(), 1);
    }
}
