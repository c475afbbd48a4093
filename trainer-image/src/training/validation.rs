//! Evaluation while training: the loss on held-out records, the same ones in the same order each time, and some of their prompts
//! answered for a person to read. Reads files; everything else is pure.
//!
//! Held out is the data named `validation`, which is never trained on; where there is none, what each synthetic task keeps for it.
//! Synthetic data of that name is what its task holds out, as an evaluation's is.

use std::path::PathBuf;

use codex_configs::{Synthetic, Training, VALIDATION};
use codex_engine::{Engine, Packed};
use codex_provenance::{DataDigest, Sha256};
use codex_reports::DataFile;

use super::{
    TrainError,
    data::{Source, Stop, read_file},
};
use crate::{
    model::Generator,
    tasks::{self, Record, Split, TaskError, materialise, parse_records},
    tokenizer::Tokenizer,
};

/// Held-out records.
#[derive(Debug)]
pub(super) struct Validation {
    /// The digest of the data named `validation`, where that is what is held out.
    file: Option<DataDigest>,
    lengths: HeldOut,
    batches: Vec<Packed>,
    targets: usize,
    samples: Vec<Record>,
    max_new_tokens: usize,
}

/// The rows of held-out records by source; see [`Lengths`](super::data::Lengths).
#[derive(Clone, Debug)]
pub(super) struct HeldOut(Vec<Vec<usize>>);

impl HeldOut {
    /// Rows of the longest record.
    pub(super) fn longest(&self) -> usize {
        self.0.iter().flatten().max().copied().unwrap_or(0)
    }

    /// The rows of the largest batch: batches are so many neighbours of one source.
    pub(super) fn rows(&self, batch: usize) -> usize {
        let batches = self.0.iter().flat_map(|rows| rows.chunks(batch.max(1)));
        batches.map(|rows| rows.iter().sum()).max().unwrap_or(0)
    }
}

/// A prompt and what the model makes of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    /// What was asked.
    pub(super) prompt: String,
    /// What the model wrote, or why it wrote nothing.
    pub(super) written: Result<String, String>,
    /// The record's response.
    pub(super) response: String,
    /// Whether the answers are the same; none where the record has no answer.
    pub(super) correct: Option<bool>,
}

impl std::fmt::Display for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mark = match self.correct {
            Some(true) => "right",
            Some(false) => "wrong",
            None => "-",
        };
        match &self.written {
            Ok(text) => write!(f, "{mark:<5}  {}  {text}", self.prompt),
            Err(error) => write!(f, "{mark:<5}  {}  ({error})", self.prompt),
        }
    }
}

impl Validation {
    /// Reads the held-out records of a run; none where it does not look at any. `seen` hears of a file as soon as it was hashed.
    ///
    /// # Errors
    /// When a file cannot be read, hashes to something else, or holds a record that cannot be learnt.
    pub(super) fn read(
        training: &Training,
        files: &[(String, PathBuf)],
        tokenizer: &Tokenizer,
        stop: Stop,
        mut seen: impl FnMut(DataFile),
    ) -> Result<Option<Self>, TrainError> {
        let settings = &training.settings.training;
        if settings.eval_every.is_none() {
            return Ok(None);
        }
        let (mut batches, mut samples) = (Vec::new(), Vec::new());
        let mut file = None;
        let held_out = held_out(training, files, tokenizer, stop, |read| {
            file = Some(read.sha256);
            seen(read);
        })?;
        let mut lengths = Vec::new();
        for (source, records) in held_out {
            let count = source.len().min(records.len());
            lengths.push(source.rows().take(count).collect());
            let starts = (0..count).step_by(settings.batch_size);
            batches.extend(starts.map(|start| source.pack(start..count.min(start + settings.batch_size))));
            samples.push(records.into_iter());
        }
        Ok(Some(Self {
            file,
            lengths: HeldOut(lengths),
            targets: batches.iter().map(|batch| batch.targets.len()).sum(),
            batches,
            samples: in_turn(samples, settings.eval_samples),
            max_new_tokens: settings.eval_max_new_tokens,
        }))
    }

    /// The digest of the data named `validation`, where that is what is held out.
    pub(super) fn file(&self) -> Option<DataDigest> {
        self.file
    }

    /// How long the held-out records are.
    pub(super) fn lengths(&self) -> HeldOut {
        self.lengths.clone()
    }

    /// The mean cross-entropy per target token in nats. Not interrupted: a step is either evaluated or was not taken.
    ///
    /// # Errors
    /// When the engine refuses a batch.
    pub(super) fn loss(&self, engine: &mut dyn Engine) -> Result<f64, TrainError> {
        let mut sum = 0.0;
        for batch in &self.batches {
            sum += engine.loss(batch)?;
        }
        Ok(sum / self.targets.max(1) as f64)
    }

    /// What the model as it is now answers to the first prompts.
    pub(super) fn samples(&self, engine: &dyn Engine, tokenizer: &Tokenizer) -> Result<Vec<Sample>, TrainError> {
        if self.samples.is_empty() {
            return Ok(Vec::new());
        }
        let mut generator =
            Generator::new(engine.config(), &engine.parameters(), tokenizer.clone(), self.samples.len())?;
        let prompts: Vec<&str> = self.samples.iter().map(|record| record.prompt.as_str()).collect();
        let written = generator.complete(&prompts, self.max_new_tokens, |_| ());
        let samples = self.samples.iter().zip(written).map(|(record, written)| {
            let written = written.map(|done| done.text).map_err(|error| crate::error::chain(&error));
            let found = written.as_deref().ok().and_then(tasks::answer);
            Sample {
                correct: tasks::answer(&record.response).map(|expected| found == Some(expected)),
                prompt: record.prompt.clone(),
                response: record.response.clone(),
                written,
            }
        });
        Ok(samples.collect())
    }
}

/// Each held-out source with those of its records that are looked at.
fn held_out(
    training: &Training,
    files: &[(String, PathBuf)],
    tokenizer: &Tokenizer,
    stop: Stop,
    mut seen: impl FnMut(DataFile),
) -> Result<Vec<(Source, Vec<Record>)>, TrainError> {
    let wanted = training.settings.training.eval_records;
    let parse = |file: DataFile, label: &str, bytes: &[u8], wanted: usize| {
        let source = Source::parse(file, label, bytes, training, tokenizer, stop)?;
        let mut records = parse_records(label, bytes)?;
        records.truncate(wanted);
        Ok((source, records))
    };
    if let Some(data) = training.data.iter().find(|data| data.name == VALIDATION) {
        let (mut file, label, bytes) = read_file(data, Split::HeldOut, files, stop, &mut seen)?;
        let parsed: Result<_, TrainError> = parse(file.clone(), &label, &bytes, wanted);
        let (source, records) = parsed?;
        file.records = Some(source.len() as u64);
        seen(file);
        return Ok(vec![(source, records)]);
    }
    let synthetic: Vec<_> = training.data.iter().filter_map(|data| Some((data, data.synthetic.as_ref()?))).collect();
    let sources = synthetic.len();
    let each = wanted.div_ceil(sources.max(1));
    let made = synthetic.into_iter().map(|(data, Synthetic { task, seed, .. })| {
        let bytes = materialise(task.parse()?, Split::HeldOut, *seed, each).map_err(|error| match error {
            TaskError::TooMany { task, found, .. } => TrainError::Arguments(format!(
                "training.eval_records is {wanted}, {each} of each synthetic task, but {task} holds out about {found} \
                 problems: write at most {}",
                found * sources
            )),
            error => error.into(),
        })?;
        let sha256 = DataDigest(Sha256::of(&bytes));
        let file = DataFile { name: data.name.clone(), sha256, size: bytes.len() as u64, records: None };
        parse(file, &format!("held-out {}", data.name), &bytes, each)
    });
    made.collect()
}

/// The first of each source, then the second of each, and so on, `count` in all.
fn in_turn(mut sources: Vec<impl Iterator<Item = Record>>, count: usize) -> Vec<Record> {
    let mut records = Vec::new();
    while records.len() < count {
        let before = records.len();
        records.extend(sources.iter_mut().filter_map(Iterator::next));
        if records.len() == before {
            break;
        }
    }
    records.truncate(count);
    records
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use codex_configs::{Data, Resolved, compose_training};
    use codex_reports::Stage;

    use super::*;
    use crate::{
        artifacts::ledger::{Ledger, locate},
        training::{
            TrainError, replay,
            tests::{attempt, both, finished, killed_at, remains, resolved, scratch, speck, synthetic, with_files},
        },
    };

    /// Held-out losses by step, as the metrics ledger has them.
    fn losses(output: &Path) -> Vec<(u64, f64)> {
        let rows = Ledger::read(&locate(output)).unwrap().rows;
        rows.into_iter().filter(|row| row.split == "val").map(|row| (row.step, row.value)).collect()
    }

    #[test]
    fn looking_changes_no_weight_and_is_the_same_after_a_kill() {
        let evaluating = ["training.eval_every=3", "training.eval_records=7", "training.checkpoint_every=3"];
        let run = speck(&evaluating);
        let place = || tempfile::tempdir_in(scratch()).unwrap();
        let (whole, blind) = (place(), place());
        let straight = attempt(&run, whole.path(), false);
        let model = finished(&straight);
        assert_eq!(finished(&attempt(&speck(&["training.checkpoint_every=3"]), blind.path(), false)), model);
        let seen = losses(whole.path());
        assert_eq!(seen.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [3, 6, 9, 12]);
        assert_eq!(straight.state.progress.unwrap().val_loss, Some(seen[3].1));
        let (about, files) = remains(whole.path());
        assert_eq!(about.metrics["val_loss"].to_bits(), seen[3].1.to_bits());

        for look in (1..60).step_by(4) {
            let output = place();
            let killed = killed_at(&run, output.path(), look);
            assert_eq!(finished(&attempt(&run, output.path(), false)), model);
            assert_eq!(remains(output.path()), (about.clone(), files.clone()), "{look} {killed}");
            assert_eq!(losses(output.path()), seen);
        }

        // Who goes through the run again comes to the recorded states, the looks among them.
        let past = replay::Past::open(whole.path()).unwrap();
        let rerun = past.rerun(&[]).unwrap();
        let mut state = rerun.state(None).unwrap();
        while state.step < 12 {
            rerun.step(&mut state).unwrap();
        }
        assert_eq!(state.snapshot(None).digests().whole, about.state_digest);
    }

    #[test]
    fn training_ends_when_patience_does_and_stays_ended() {
        // The loss falls, so that its greatest value is the first.
        let run = resolved(
            &[
                "training.eval_every=20",
                "training.eval_records=30",
                "training.eval_samples=2",
                "training.metric_mode=max",
                "training.early_stop_patience=2",
            ],
            both(),
        );
        let output = tempfile::tempdir().unwrap();
        let ended = attempt(&run, output.path(), false);
        let model = finished(&ended);
        assert_eq!((ended.state.stage, ended.state.steps_executed), (Stage::Finished, 60));
        let seen = losses(output.path());
        assert!(seen.len() == 3 && seen[1].1 < seen[0].1 && seen[2].1 < seen[0].1, "{seen:?}");
        let notice = ended.state.notices.last().unwrap();
        assert!(
            notice.starts_with("training ended early at step 60: in 2 evaluations val_loss was no better than")
                && notice.ends_with("of step 20"),
            "{notice}"
        );
        let again = attempt(&run, output.path(), false);
        assert_eq!((finished(&again), again.state.steps_executed), (model, 60));
    }

    fn with_validation(output: &Path, bytes: &[u8], sha256: Option<DataDigest>) -> crate::training::tests::Attempt {
        let path = output.join("held-out.jsonl");
        fs::write(&path, bytes).unwrap();
        let sha256 = sha256.unwrap_or(DataDigest(Sha256::of(bytes)));
        let run: Resolved<Training> = compose_training(
            "cot-starter",
            &["training.stop_after=2", "training.eval_every=2", "training.batch_size=8"].map(str::to_owned),
            None,
            1,
            vec![
                synthetic("arithmetic", 40),
                Data { name: VALIDATION.to_owned(), sha256: Some(sha256), synthetic: None },
            ],
        )
        .unwrap();
        with_files(&run, &[(VALIDATION.to_owned(), path)], &output.join("run"), &|| false)
    }

    #[test]
    fn records_of_ones_own_are_pinned_reported_and_not_trained_on() {
        let records = materialise("arithmetic".parse().unwrap(), Split::HeldOut, 9, 12).unwrap();
        let output = tempfile::tempdir().unwrap();
        let ended = with_validation(output.path(), &records, None);
        finished(&ended);
        let named: Vec<_> = ended.state.data.iter().map(|file| (file.name.as_str(), file.records)).collect();
        assert_eq!(named, [("arithmetic", Some(40)), (VALIDATION, Some(12))]);
        let artifacts = output.path().join("run/artifacts");
        let checksums: serde_json::Value =
            serde_json::from_slice(&fs::read(artifacts.join("dataset_checksums.json")).unwrap()).unwrap();
        assert_eq!(checksums[VALIDATION], DataDigest(Sha256::of(&records)).to_string());
        assert_eq!(losses(&output.path().join("run")).len(), 1);
        assert!(!artifacts.join("data/validation.jsonl").exists());

        let output = tempfile::tempdir().unwrap();
        let refused = with_validation(output.path(), &records, Some(DataDigest(Sha256::of("other"))));
        assert!(matches!(refused.outcome, Err(TrainError::DataMismatch { name, .. }) if name == VALIDATION));
        let output = tempfile::tempdir().unwrap();
        let refused = with_validation(output.path(), b"{}\n", None);
        assert!(refused.outcome.unwrap_err().to_string().contains("held-out.jsonl:1: invalid record"));
    }

    #[test]
    fn synthetic_records_of_that_name_are_what_their_task_holds_out() {
        let held_out = Data { name: VALIDATION.to_owned(), ..synthetic("arithmetic", 12) };
        let run =
            resolved(&["training.stop_after=1", "training.eval_every=1"], vec![synthetic("arithmetic", 40), held_out]);
        let output = tempfile::tempdir().unwrap();
        let ended = attempt(&run, output.path(), false);
        finished(&ended);
        let expected = materialise("arithmetic".parse().unwrap(), Split::HeldOut, 1, 12).unwrap();
        let found = ended.state.data.iter().find(|file| file.name == VALIDATION).unwrap();
        assert_eq!((found.sha256, found.records), (DataDigest(Sha256::of(&expected)), Some(12)));

        let many =
            resolved(&["training.eval_every=1", "training.eval_records=100000"], vec![synthetic("multiplication", 40)]);
        let refused = attempt(&many, tempfile::tempdir().unwrap().path(), false).outcome.unwrap_err().to_string();
        assert!(
            refused.starts_with(
                "training.eval_records is 100000, 100000 of each synthetic task, but multiplication holds out"
            ) && refused.contains("write at most"),
            "{refused}"
        );
    }

    #[test]
    fn batches_of_held_out_records_are_neighbours() {
        let lengths = HeldOut(vec![vec![5, 5, 9, 9, 1], vec![12]]);
        assert_eq!([1, 2, 3, 5].map(|batch| lengths.rows(batch)), [12, 18, 19, 29]);
        assert_eq!((lengths.longest(), HeldOut(vec![]).rows(4)), (12, 0));
    }

    #[test]
    fn samples_are_the_first_of_each_source_in_turn_with_their_marks() {
        let run = resolved(&["training.eval_every=1", "training.eval_samples=4", "training.eval_records=9"], both());
        let tokenizer = Tokenizer::characters().unwrap();
        let read = || Validation::read(run.spec(), &[], &tokenizer, &|| false, |_| ()).unwrap().unwrap();
        let validation = read();
        assert_eq!(validation.samples, read().samples);
        assert_eq!(validation.batches.iter().map(|batch| batch.cu_seqlens.len() - 1).sum::<usize>(), 10);
        let config = crate::training::session::model_config(run.spec(), &tokenizer).unwrap();
        let state = crate::training::state::State::new(config, 1, codex_engine::Settings::default()).unwrap();
        let samples = validation.samples(state.engine.as_ref(), &tokenizer).unwrap();
        assert_eq!(samples.len(), 4);
        assert!(samples[0].prompt.ends_with(':') && samples[1].prompt.contains(' '), "{samples:?}");
        for sample in &samples {
            assert_eq!(sample.correct, Some(false));
            assert!(sample.to_string().starts_with(&format!("wrong  {}", sample.prompt)), "{sample}");
        }
    }
}
