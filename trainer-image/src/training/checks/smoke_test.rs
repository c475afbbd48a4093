//! `codex checkpoint-smoke`: checks that a volume keeps checkpoints, and measures how fast it writes them. Writes, reads and removes
//! files in the given directory.
//!
//! It writes real checkpoints of the configured model with the code of training: hashed while written, synced and renamed. They
//! are read back past the page cache and compared, and one of them is damaged and must be refused.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::ErrorKind,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use codex_configs::Training;
use codex_engine::Layout;
use codex_reports::exit;
use rustix::fs::{Advice, fadvise, statvfs};

use super::SmokeError;
use crate::{
    atomic_fs::{self, FileError},
    composing::{self, Template},
    error::CommandError,
    model::ModelError,
    text::Tokenizer,
    training::{
        TrainError,
        arguments::default_data,
        base::TrainedModel,
        checkpoint::{CheckpointStore, Origin, Retention, RunIdentity, STATE, ValidCheckpoint, name_of, newest, scan},
        resources::{check_model_size, memory_limit},
        run::model_config,
        state::{State, engine_settings},
    },
};

/// Check that a volume keeps checkpoints, and measure how fast it writes them.
#[derive(Debug, clap::Args)]
pub struct CheckpointSmoke {
    /// Directory on the volume, such as the output of a future run. Only a temporary subdirectory is written and removed.
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
    /// Template of the model that is written: an included one, or a file such as ours.yaml.
    #[arg(long, default_value = "cot-starter")]
    template: String,
    /// Override a key of the template, such as `model.hidden_size=512`.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Number of checkpoints to write.
    #[arg(long, default_value_t = 5, value_parser = crate::arguments::whole::<u64>(2..=1000))]
    rounds: u64,
    /// Seconds from SIGTERM to SIGKILL. A checkpoint must take less.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = crate::arguments::whole::<u64>(1..=u64::MAX))]
    grace: u64,
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
        let template = Template::read::<TrainError>(&self.template)?;
        let data = default_data(&template.name).collect();
        let run = composing::compose(Some(&template), &self.set, 1, data)?;
        let training: &Training = run.spec();
        let tokenizer = Tokenizer::characters().map_err(ModelError::from)?;
        let config = model_config(training, &tokenizer)?;
        let layout = std::sync::Arc::new(Layout::of(&config));
        let settings = &training.settings.training;
        check_model_size(&TrainedModel::whole(config.clone()), settings, memory_limit(Path::new("/")).as_ref())?;
        let state = State::new(config, training.seed, engine_settings(settings))?;

        let volume = statvfs(&self.directory)
            .map_err(std::io::Error::from)
            .map_err(FileError::of("reading the free space of", &self.directory))?;
        say(&format!("{} has {} free", self.directory.display(), mebibytes(volume.f_bavail * volume.f_frsize)))?;

        atomic_fs::make_directory(place)?;
        exclusive(&place.join("claim"))?;
        say("ok  exclusive creation: of two writers one creates a file")?;
        in_place(&place.join("note"))?;
        say("ok  in-place writes: a file is modified and read back")?;

        let identity = RunIdentity {
            config_digest: run.digest(),
            settings: serde_json::Value::Null,
            base: None,
            seed: 1,
            data: BTreeMap::new(),
        };
        let directory = place.join("checkpoints");
        let mut store =
            CheckpointStore::open(directory.clone(), identity, Retention::of(settings, settings.max_steps).newest(2))?;
        let (mut took, mut size, mut digests) = (Vec::new(), 0, None);
        for round in 1..=self.rounds {
            let mut snapshot = state.snapshot(None)?;
            snapshot.step = round;
            let its = snapshot.digests();
            let written = store.save(&snapshot, &its, BTreeMap::new(), &Origin::here(engine_settings(settings)))?;
            took.push(written.took);
            size = written.size;
            digests = Some((round, its.whole));
        }
        let (slowest, total) = (took.iter().max().copied().unwrap_or_default(), took.iter().sum::<Duration>());
        say(&format!(
            "ok  {} checkpoints of {} each: written, synced and renamed in {} on average, {} at most ({}/s)",
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
                let found = read.map_or_else(|| "no valid checkpoint".to_owned(), |digest| digest.to_string());
                return Err(SmokeError::Differs { step, written: written.to_string(), found }.into());
            }
            let took = began.elapsed();
            say(&format!(
                "ok  the newest checkpoint reads back from the volume with the same digest in {}",
                milliseconds(took)
            ))?;
            damage(&directory.join(name_of(step)).join(STATE))?;
            match Self::newest(&directory)? {
                Some(found) if found.checkpoint.step + 1 == step => {}
                _ => return Err(SmokeError::Unseen.into()),
            }
            say("ok  with one modified byte it is refused, and the previous one is used")?;
        }
        if slowest >= Duration::from_secs(self.grace) {
            return Err(SmokeError::Slow { slowest: slowest.as_secs_f64(), grace: self.grace }.into());
        }
        say(&format!(
            "ok  the slowest checkpoint fits {:.0} times into the grace period of {} s",
            self.grace as f64 / slowest.as_secs_f64().max(1e-3),
            self.grace
        ))
    }

    /// Returns the newest valid checkpoint, read from the volume instead of the page cache as far as the system permits.
    fn newest(directory: &Path) -> Result<Option<ValidCheckpoint>, TrainError> {
        for (_, path) in scan(directory)? {
            for entry in fs::read_dir(&path).map_err(FileError::of("reading directory", &path))? {
                let path = entry.map_err(FileError::of("reading directory", &path))?.path();
                let file = File::open(&path).map_err(FileError::of("opening", &path))?;
                fadvise(&file, 0, None, Advice::DontNeed)
                    .map_err(std::io::Error::from)
                    .map_err(FileError::of("dropping the cache of", &path))?;
            }
        }
        Ok(newest(directory, u64::MAX, |_| ())?)
    }
}

/// Checks that a file can be created exclusively.
fn exclusive(path: &Path) -> Result<(), TrainError> {
    let create = || OpenOptions::new().write(true).create_new(true).open(path);
    create().map_err(FileError::of("creating", path))?;
    match create() {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(FileError::of("creating", path)(error).into()),
        Ok(_) => Err(SmokeError::Shared.into()),
    }
}

/// Checks that a file can be modified in place, as the note of an attempt is.
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

/// Modifies one byte in the middle of a file.
fn damage(path: &Path) -> Result<(), TrainError> {
    let changing = || FileError::of("modifying", path);
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
    fn a_good_volume_passes_and_is_left_unchanged() {
        let volume = tempfile::tempdir().unwrap();
        assert_eq!(smoke(volume.path(), 3600).run().unwrap(), exit::FINISHED);
        assert_eq!(fs::read_dir(volume.path()).unwrap().count(), 0);
        let fresh = volume.path().join("not/there/yet");
        smoke(&fresh, 3600).run().unwrap();
        assert_eq!(fs::read_dir(fresh).unwrap().count(), 0);
    }

    #[test]
    fn a_file_in_place_of_the_directory_is_refused() {
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
