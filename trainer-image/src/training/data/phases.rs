//! The records of each phase of a curriculum, and the examples of earlier phases that a later one replays. Does I/O in temporary
//! files; in memory is the table of replayed examples of one phase if they are balanced by difficulty.
//!
//! Which record an example of a phase is depends on the seed, the phase and the example's number alone. Which examples are kept for
//! replay also depends on the steps at which phases began, so nothing of it is stored in a checkpoint.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    ops::ControlFlow,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use codex_configs::{DIFFICULTIES, DataSettings, Phase, ReplaySampling, Training};
use sha2::Digest as _;

use super::{
    DataError, RecordLengths,
    dataset::{Address, Dataset},
    formats::each_row,
    input::Input,
    mix::Mix,
    permutation::permute,
    scratch::{failed, scratch_file},
    source::Source,
    token_store::Sums,
};
use crate::{
    signals::Stop,
    training::schedule::{Curriculum, Slot},
};

/// Stands for a record without a known difficulty.
const UNLABELLED: u8 = u8::MAX;
/// Records between two checks of the stop flag.
const UNCHECKED: u32 = 1 << 16;

/// The records of all phases of a run.
#[derive(Debug, Default)]
pub(super) struct Phases {
    records: Vec<PhaseRecords>,
    /// The difficulty of each record of each source, a byte for each, if replay needs them.
    difficulties: Vec<File>,
    /// The table of the latest phase that replays by difficulty.
    balanced: Mutex<Option<Balanced>>,
}

/// The records of a phase.
#[derive(Debug)]
struct PhaseRecords {
    parts: Vec<Part>,
    mix: Mix,
}

/// The records of a source that a phase trains on.
#[derive(Debug)]
struct Part {
    source: usize,
    /// Their numbers in the source, four bytes each, in ascending order; `None` for all.
    chosen: Option<File>,
    sums: Sums,
}

/// The kept examples of a phase by difficulty.
#[derive(Clone, Debug)]
struct Balanced {
    /// Steps before each phase up to the one that replays.
    firsts: Vec<u64>,
    /// Numbers of the kept examples of each difficulty that there is.
    classes: Arc<Vec<Vec<u64>>>,
}

/// The labels of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Labels {
    pub(super) difficulty: Option<String>,
    pub(super) category: Option<String>,
}

impl Labels {
    /// Whether a phase selects a record with these labels.
    pub(super) fn are_of(&self, phase: &Phase) -> bool {
        phase.dataset.selects(self.difficulty.as_deref(), self.category.as_deref())
    }
}

/// Reads the labels of the records of an input, each with its number from 0, until `each` breaks.
///
/// # Errors
/// When the input cannot be read; the errors of `each`.
pub(super) fn each_label(
    input: &Input,
    settings: &DataSettings,
    mut each: impl FnMut(u32, Labels) -> Result<ControlFlow<()>, DataError>,
) -> Result<(), DataError> {
    let mut number = 0;
    each_row(input, settings.format, &settings.fields.text, &mut |_, row| {
        let label = |name: &str| row.get(name).and_then(serde_json::Value::as_str).map(str::to_owned);
        let labels = Labels { difficulty: label("difficulty"), category: label("category") };
        number += 1;
        each(number - 1, labels)
    })
}

/// Returns a number that is a hash of these, for this purpose.
pub(super) fn hash(purpose: &[u8], numbers: &[u64]) -> u64 {
    let mut hasher = sha2::Sha256::new();
    hasher.update(purpose);
    for number in numbers {
        hasher.update(number.to_le_bytes());
    }
    let digest: [u8; 32] = hasher.finalize().into();
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Records of a source that are being selected for a phase.
struct Selecting {
    phase: usize,
    file: BufWriter<File>,
    sums: Sums,
}

impl Phases {
    /// Selects the records of each phase of a configuration. Temporary files are in `scratch`.
    ///
    /// # Errors
    /// When a phase has no records or fewer than a batch, an input cannot be read, a file operation fails, and
    /// [`DataError::Interrupted`] soon after `stop` returns true.
    pub(super) fn select(
        training: &Training,
        sources: &[Source],
        scratch: &Path,
        stop: Stop,
    ) -> Result<Self, DataError> {
        let Some(curriculum) = Curriculum::of(&training.settings) else { return Ok(Self::default()) };
        let settings = &training.settings.data;
        let by_difficulty =
            settings.replay.sampling == ReplaySampling::DifficultyBalanced && settings.replay.ratio > 0.0;
        let mut parts: Vec<Vec<Part>> = curriculum.phases.iter().map(|_| Vec::new()).collect();
        let mut difficulties = Vec::new();
        for (index, source) in sources.iter().enumerate() {
            let Some(data) = training.data.iter().find(|data| data.name == source.name()) else { continue };
            let mut selecting = Vec::new();
            for (number, phase) in curriculum.phases.iter().enumerate().filter(|(_, phase)| phase.dataset.takes(data)) {
                if phase.dataset.is_labelled() {
                    let file = BufWriter::with_capacity(1 << 16, scratch_file(scratch)?);
                    selecting.push(Selecting { phase: number, file, sums: Sums::default() });
                } else {
                    parts[number].push(Part { source: index, chosen: None, sums: source.selection.sums });
                }
            }
            let mut labels = by_difficulty.then(|| scratch_file(scratch).map(BufWriter::new)).transpose()?;
            if labels.is_some() || !selecting.is_empty() {
                read_labels(source, settings, curriculum.phases, &mut selecting, labels.as_mut(), stop)?;
            }
            for Selecting { phase, file, sums } in selecting.into_iter().filter(|it| it.sums.records > 0) {
                let chosen = file.into_inner().map_err(io::IntoInnerError::into_error).map_err(failed())?;
                parts[phase].push(Part { source: index, chosen: Some(chosen), sums });
            }
            if let Some(file) = labels {
                difficulties.push(file.into_inner().map_err(io::IntoInnerError::into_error).map_err(failed())?);
            }
        }
        let mut all = Vec::new();
        for (number, (parts, phase)) in parts.into_iter().zip(curriculum.phases).enumerate() {
            let records: u64 = parts.iter().map(|part| part.sums.records).sum();
            let batch = curriculum.batch(number);
            if records == 0 {
                return Err(DataError::EmptyPhase { phase: phase.id.clone(), labels: labels_of(phase) });
            }
            if batch as u64 > records {
                return Err(DataError::PhaseBatch { phase: phase.id.clone(), batch, records });
            }
            let mix = Mix::new(parts.iter().map(|part| sources[part.source].name()), settings.weights.as_ref());
            all.push(PhaseRecords { parts, mix });
        }
        Ok(Self { records: all, difficulties, balanced: Mutex::default() })
    }
}

/// Returns what a phase selects records by, for a message.
fn labels_of(phase: &Phase) -> String {
    let list = |name: &str, words: &[String]| (!words.is_empty()).then(|| format!("{name} {}", words.join(" or ")));
    let dataset = &phase.dataset;
    let all = [list("difficulty", &dataset.difficulties), list("category", &dataset.categories)];
    all.into_iter().flatten().collect::<Vec<_>>().join(" and ")
}

/// Reads the labels of the records of a source that are trained on, and hands the records to the phases that select them.
fn read_labels(
    source: &Source,
    settings: &DataSettings,
    phases: &[Phase],
    selecting: &mut [Selecting],
    mut difficulties: Option<&mut BufWriter<File>>,
    stop: Stop,
) -> Result<(), DataError> {
    let mut entries = source.selection.entries(&source.store).zip(source.rows()).zip(0_u32..);
    let mut next = entries.next();
    each_label(&source.input, settings, |number, labels| {
        if number % UNCHECKED == UNCHECKED - 1 && stop() {
            return Err(DataError::Interrupted);
        }
        let ((entry, rows), record) = match next.take() {
            None => return Ok(ControlFlow::Continue(())),
            Some(((entry, rows), record)) => ((entry?, rows?), record),
        };
        if entry.number != number {
            next = Some(((Ok(entry), Ok(rows)), record));
            return Ok(ControlFlow::Continue(()));
        }
        next = entries.next();
        for Selecting { phase, file, sums } in selecting.iter_mut() {
            if labels.are_of(&phases[*phase]) {
                sums.add_as(&entry, rows);
                file.write_all(&record.to_le_bytes()).map_err(failed())?;
            }
        }
        if let Some(file) = &mut difficulties {
            let class = DIFFICULTIES.iter().position(|known| labels.difficulty.as_deref() == Some(known));
            file.write_all(&[class.map_or(UNLABELLED, |class| class as u8)]).map_err(failed())?;
        }
        Ok(ControlFlow::Continue(()))
    })
}

impl Dataset {
    /// Returns the records of the step after `done` steps, and the number of the step's first example, counted over the whole run.
    /// `firsts` has the number of steps before each phase that has begun.
    ///
    /// # Errors
    /// When the number of a record cannot be read.
    pub(crate) fn of_phase(
        &self,
        curriculum: &Curriculum,
        firsts: &[u64],
        done: u64,
    ) -> Result<(u64, Vec<Address>), DataError> {
        let place = curriculum.place(firsts, done);
        let slots = curriculum.slots(place).map(|slot| match slot {
            Slot::Own(number) => self.own(place.phase, number),
            Slot::Replayed(number) => self.replayed(curriculum, firsts, place.phase, number),
        });
        Ok((curriculum.first_example(firsts, place), slots.collect::<Result<_, _>>()?))
    }

    /// Returns the record of an own example of a phase.
    fn own(&self, phase: usize, number: u64) -> Result<Address, DataError> {
        let PhaseRecords { parts, mix } = &self.phases.records[phase];
        let (part, draw) = mix.draw(number);
        let Part { source, chosen, sums } = &parts[part];
        let (pass, position) = (draw / sums.records, draw % sums.records);
        let at = if self.shuffle {
            let key = hash(b"codex phase order 1\0", &[self.seed, phase as u64, *source as u64, pass]);
            permute(position, sums.records, key)
        } else {
            position
        };
        let record = match chosen {
            None => at,
            Some(file) => {
                let mut bytes = [0; 4];
                file.read_exact_at(&mut bytes, at * 4).map_err(failed())?;
                u64::from(u32::from_le_bytes(bytes))
            }
        };
        Ok(self.drawn(Address::new(*source, record), phase as u64, number))
    }

    /// Returns the record of an example that is kept for replay in a phase, by its number among those that are kept. The earlier
    /// phases take turns.
    fn kept(&self, curriculum: &Curriculum, firsts: &[u64], phase: usize, number: u64) -> Result<Address, DataError> {
        let earlier = (number % phase as u64) as usize;
        let own = curriculum.own_examples(earlier, firsts[earlier + 1] - firsts[earlier]);
        self.own(earlier, hash(b"codex replay 1\0", &[self.seed, phase as u64, number]) % own.max(1))
    }

    /// Returns the record of a replayed example of a phase.
    fn replayed(
        &self,
        curriculum: &Curriculum,
        firsts: &[u64],
        phase: usize,
        number: u64,
    ) -> Result<Address, DataError> {
        let draw = |class: u64, number: u64, count: u64| {
            let key = hash(b"codex replay order 1\0", &[self.seed, phase as u64, class, number / count]);
            permute(number % count, count, key)
        };
        let kept = match curriculum.replay().sampling {
            ReplaySampling::Uniform => draw(0, number, curriculum.replay().buffer),
            ReplaySampling::DifficultyBalanced => {
                let classes = self.balanced(curriculum, firsts, phase)?;
                let (class, number) = (number % classes.len() as u64, number / classes.len() as u64);
                let kept = &classes[class as usize];
                kept[draw(class, number, kept.len() as u64) as usize]
            }
        };
        self.kept(curriculum, firsts, phase, kept)
    }

    /// Returns the numbers of the examples that are kept for replay in a phase, by difficulty.
    fn balanced(&self, curriculum: &Curriculum, firsts: &[u64], phase: usize) -> Result<Arc<Vec<Vec<u64>>>, DataError> {
        let firsts = &firsts[..=phase];
        let mut known = self.phases.balanced.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.as_ref().filter(|known| known.firsts == firsts) {
            return Ok(Arc::clone(&known.classes));
        }
        let mut classes = vec![Vec::new(); DIFFICULTIES.len() + 1];
        for number in 0..curriculum.replay().buffer {
            let address = self.kept(curriculum, firsts, phase, number)?;
            let mut class = [UNLABELLED];
            self.phases.difficulties[address.source()].read_exact_at(&mut class, address.record()).map_err(failed())?;
            classes[usize::from(class[0]).min(DIFFICULTIES.len())].push(number);
        }
        classes.retain(|class| !class.is_empty());
        let classes = Arc::new(classes);
        *known = Some(Balanced { firsts: firsts.to_vec(), classes: Arc::clone(&classes) });
        Ok(classes)
    }

    /// Lengths of the records of a phase and of those that it may replay, for the size of its batches.
    pub(crate) fn phase_lengths(&self, curriculum: &Curriculum, phase: usize) -> RecordLengths<'_> {
        let (mut mean, mut square, mut longest) = self.phases.records[phase].moments();
        let ratio = curriculum.replay().ratio;
        if phase > 0 && ratio > 0.0 {
            let earlier = self.phases.records[..phase].iter().map(PhaseRecords::moments);
            let most = earlier.fold((0.0_f64, 0.0_f64, 0), |most, (mean, square, longest)| {
                (most.0.max(mean), most.1.max(square), most.2.max(longest))
            });
            longest = longest.max(most.2);
            // A difficulty may have longer records than its phase on average.
            let balanced = curriculum.replay().sampling == ReplaySampling::DifficultyBalanced;
            let most = if balanced { (longest as f64, (longest * longest) as f64) } else { (most.0, most.1) };
            mean = (1.0 - ratio) * mean + ratio * most.0;
            square = (1.0 - ratio) * square + ratio * most.1;
        }
        if !self.shuffle {
            // Neighbours in a file may all be long.
            mean = longest as f64;
            square = mean * mean;
        }
        RecordLengths::Shuffled { mean, deviation: (square - mean * mean).max(0.0).sqrt(), longest }
    }
}

impl PhaseRecords {
    /// Returns the mean of the records' rows, that of their squares, and the rows of the longest record.
    fn moments(&self) -> (f64, f64, usize) {
        let (mut mean, mut square, mut longest) = (0.0, 0.0, 0);
        for (part, share) in self.parts.iter().zip(self.mix.shares()) {
            let records = part.sums.records.max(1) as f64;
            mean += share * part.sums.rows as f64 / records;
            square += share * part.sums.squares as f64 / records;
            longest = longest.max(part.sums.longest as usize);
        }
        (mean, square, longest)
    }
}
