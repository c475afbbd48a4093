//! The training data: read and hashed once, tokenised, and addressed by index. Reads files; everything else is pure.
//!
//! Which records a step sees follows from (seed, step) alone. Sources are mixed with equal weight; within a source every
//! pass over it is a permutation of its own, or the order of the file where that is asked for.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use codex_configs::{Data, Format, Synthetic, Training, VALIDATION};
use codex_engine::Packed;
use codex_provenance::{DataDigest, Sha256};
use codex_reports::DataFile;
use rayon::prelude::*;
use sha2::Digest as _;

use super::TrainError;
use crate::{
    atomic_fs,
    tasks::{Split, Task, answer, materialise, parse_records, training_lines},
    tokenizer::{Tokenizer, TokenizerError},
};

/// All data of a run.
#[derive(Debug)]
pub(super) struct Dataset {
    sources: Vec<Source>,
    seed: u64,
    shuffle: bool,
}

/// One file: its identity, and its records as token ids one after another.
#[derive(Debug)]
pub(super) struct Source {
    file: DataFile,
    ids: Vec<u16>,
    /// Where each record begins, and where the last one ends.
    offsets: Vec<usize>,
    /// How many ids of each record are its prompt.
    prompts: Vec<u32>,
}

/// How long records are: what a batch may become. A record of `n` tokens has `n - 1` rows, for its last one predicts nothing.
#[derive(Clone, Debug)]
pub(super) enum Lengths<'a> {
    /// Of records that are drawn at random, from sources that are drawn from alike.
    Drawn {
        /// Mean rows.
        mean: f64,
        /// Their standard deviation.
        deviation: f64,
        /// Rows of the longest record.
        longest: usize,
    },
    /// Of records that are taken as they lie, from these sources in turn.
    AsTheyLie(&'a [Source]),
}

impl Lengths<'_> {
    /// Of records that are drawn from `sources` at random.
    fn drawn(sources: &[Source]) -> Self {
        let (mut mean, mut square, mut longest, mut count) = (0.0, 0.0, 0, 0.0_f64);
        for source in sources {
            let records = source.len() as f64;
            for rows in source.rows() {
                mean += rows as f64 / records;
                square += (rows as f64).powi(2) / records;
                longest = longest.max(rows);
            }
            count += 1.0;
        }
        (mean, square) = (mean / count.max(1.0), square / count.max(1.0));
        Self::Drawn { mean, deviation: (square - mean * mean).max(0.0).sqrt(), longest }
    }

    /// Rows of the longest record.
    pub(super) fn longest(&self) -> usize {
        match self {
            Self::Drawn { longest, .. } => *longest,
            Self::AsTheyLie(sources) => sources.iter().flat_map(Source::rows).max().unwrap_or(0),
        }
    }

    /// The rows of a batch that no batch exceeds; of those drawn at random, not one in a hundred thousand.
    pub(super) fn rows(&self, batch: usize) -> usize {
        match self {
            Self::Drawn { mean, deviation, longest } => {
                let count = batch as f64;
                let rows = (count * mean + 4.3 * deviation * count.sqrt()).ceil();
                (rows as usize).min(batch.saturating_mul(*longest))
            }
            Self::AsTheyLie(sources) => {
                let each = batch.div_ceil(sources.len().max(1));
                sources.iter().map(|source| source.most_rows(each)).sum()
            }
        }
    }
}

/// Synthetic records that are made between two looks at the signal.
const MADE_AT_ONCE: u64 = 4096;

/// Asked between two pieces of work that may take long: whether the attempt should end.
pub(super) type Stop<'a> = &'a (dyn Fn() -> bool + Sync);

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Address {
    source: usize,
    record: usize,
}

impl Dataset {
    /// Reads the data of a run: `files` gives the path of each that is not made here. Synthetic data is also written to
    /// `keep`, where there is such a place, so that what was trained on can be looked at. `seen` hears of every file as soon
    /// as it was hashed, before it is refused.
    ///
    /// # Errors
    /// When a file cannot be read, hashes to something else, or holds a record that cannot be learnt, and
    /// [`TrainError::Interrupted`] soon after `stop` says so.
    pub(super) fn read(
        training: &Training,
        files: &[(String, PathBuf)],
        keep: Option<&Path>,
        tokenizer: &Tokenizer,
        stop: Stop,
        mut seen: impl FnMut(DataFile),
    ) -> Result<Self, TrainError> {
        let mut sources = Vec::new();
        for data in training.data.iter().filter(|data| data.name != VALIDATION) {
            let (mut file, label, bytes) = read_file(data, Split::Train, files, stop, &mut seen)?;
            let sha256 = file.sha256;
            if let (Some(keep), true) = (keep, data.synthetic.is_some()) {
                let path = keep.join(format!("{}.jsonl", data.name));
                if atomic_fs::read(&path).ok().map(Sha256::of) != Some(sha256.0) {
                    atomic_fs::write(&path, &bytes)?;
                }
            }
            let mut source = Source::parse(file.clone(), &label, &bytes, training, tokenizer, stop)?;
            file.records = Some(source.prompts.len() as u64);
            seen(file.clone());
            source.file = file;
            sources.push(source);
        }
        let records = sources.iter().map(|source| source.prompts.len()).sum();
        let batch = training.settings.training.batch_size;
        if batch > records {
            return Err(TrainError::Batch { batch, records });
        }
        Ok(Self { sources, seed: training.seed, shuffle: training.settings.training.shuffle })
    }

    /// The files as they were read.
    pub(super) fn files(&self) -> impl Iterator<Item = &DataFile> {
        self.sources.iter().map(|source| &source.file)
    }

    /// How many records there are.
    pub(super) fn records(&self) -> u64 {
        self.sources.iter().map(|source| source.len() as u64).sum()
    }

    /// The records of `count` examples from `first` on, counted over the whole run.
    pub(super) fn examples(&self, first: u64, count: u64) -> Vec<Address> {
        (first..first + count).map(|example| self.address(example)).collect()
    }

    /// The record that is seen as number `example`.
    fn address(&self, example: u64) -> Address {
        let count = self.sources.len() as u64;
        let (source, draw) = ((example % count) as usize, example / count);
        let records = self.sources[source].prompts.len() as u64;
        let (pass, position) = (draw / records, draw % records);
        let record = if self.shuffle { permute(position, records, key(self.seed, source, pass)) } else { position };
        Address { source, record: record as usize }
    }

    /// Packs records for the model.
    pub(super) fn pack(&self, addresses: &[Address]) -> Packed {
        let records: Vec<(Vec<u32>, usize)> = addresses
            .iter()
            .map(|Address { source, record }| {
                let source = &self.sources[*source];
                let ids = &source.ids[source.offsets[*record]..source.offsets[record + 1]];
                (ids.iter().copied().map(u32::from).collect(), source.prompts[*record] as usize)
            })
            .collect();
        Packed::new(records.iter().map(|(ids, prompt)| (ids.as_slice(), *prompt)))
    }

    /// The digest of what a step sees: name, number and tokens of every record, in order.
    pub(super) fn digest(&self, addresses: &[Address]) -> Sha256 {
        let mut hasher = sha2::Sha256::new();
        hasher.update(b"codex records 2\0");
        for Address { source, record } in addresses {
            let source = &self.sources[*source];
            let ids = &source.ids[source.offsets[*record]..source.offsets[record + 1]];
            hasher.update(source.file.name.as_bytes());
            hasher.update([0]);
            hasher.update((*record as u64).to_le_bytes());
            hasher.update((ids.len() as u64).to_le_bytes());
            hasher.update(source.prompts[*record].to_le_bytes());
            let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            hasher.update(bytes);
        }
        Sha256::finish(hasher)
    }

    /// How long the records are that batches are made of.
    pub(super) fn lengths(&self) -> Lengths<'_> {
        if self.shuffle { Lengths::drawn(&self.sources) } else { Lengths::AsTheyLie(&self.sources) }
    }

    /// The text of a record, prompt and response together.
    ///
    /// # Errors
    /// When the tokenizer refuses the ids.
    pub(super) fn text(&self, address: Address, tokenizer: &Tokenizer) -> Result<String, TokenizerError> {
        let Address { source, record } = address;
        let source = &self.sources[source];
        let ids = &source.ids[source.offsets[record]..source.offsets[record + 1]];
        tokenizer.decode(&ids.iter().copied().map(u32::from).collect::<Vec<_>>())
    }

    /// `name[record]` of each address, records counted from 1.
    pub(super) fn describe(&self, addresses: &[Address]) -> String {
        let names = addresses.iter().map(|at| format!("{}[{}]", self.sources[at.source].file.name, at.record + 1));
        names.collect::<Vec<_>>().join(" ")
    }
}

/// One file, the name that errors call it by, and its bytes, which hash to what the run asks for; synthetic records are those of
/// `split`. `seen` hears of it before it is refused.
pub(super) fn read_file(
    data: &Data,
    split: Split,
    files: &[(String, PathBuf)],
    stop: Stop,
    seen: &mut impl FnMut(DataFile),
) -> Result<(DataFile, String, Vec<u8>), TrainError> {
    let (bytes, label) = bytes_of(data, split, files, stop)?;
    let sha256 = DataDigest(Sha256::of(&bytes));
    let file = DataFile { name: data.name.clone(), sha256, size: bytes.len() as u64, records: None };
    seen(file.clone());
    match data.sha256.filter(|expected| *expected != sha256) {
        Some(expected) => Err(TrainError::DataMismatch { name: data.name.clone(), found: sha256, expected }),
        None => Ok((file, label, bytes)),
    }
}

/// The bytes of one file, and the name that errors call it by.
fn bytes_of(
    data: &Data,
    split: Split,
    files: &[(String, PathBuf)],
    stop: Stop,
) -> Result<(Vec<u8>, String), TrainError> {
    let given = files.iter().find(|(name, _)| *name == data.name);
    match (&data.synthetic, given) {
        (None, Some((name, path))) => {
            Ok((atomic_fs::read_named::<TrainError>(&format!("data {name}"), path)?, path.display().to_string()))
        }
        (Some(synthetic), None) => Ok((make(synthetic, split, stop)?, data.name.clone())),
        (None, None) => Err(TrainError::Arguments(format!("data {0} has no file: pass --data {0}=FILE", data.name))),
        (Some(_), Some(_)) => Err(TrainError::Arguments(format!(
            "data {0} is synthetic in the configuration: leave --data {0}=… out",
            data.name
        ))),
    }
}

/// Synthetic data; what is trained on is made piece by piece.
fn make(synthetic: &Synthetic, split: Split, stop: Stop) -> Result<Vec<u8>, TrainError> {
    let task: Task = synthetic.task.parse()?;
    if split == Split::HeldOut {
        return Ok(materialise(task, split, synthetic.seed, synthetic.count as usize)?);
    }
    let mut bytes = Vec::new();
    for start in (0..synthetic.count).step_by(MADE_AT_ONCE as usize) {
        if stop() {
            return Err(TrainError::Interrupted);
        }
        let range: Range<u64> = start..synthetic.count.min(start + MADE_AT_ONCE);
        bytes.extend(training_lines(task, synthetic.seed, range)?);
    }
    Ok(bytes)
}

impl Source {
    /// How many records there are.
    pub(super) fn len(&self) -> usize {
        self.prompts.len()
    }

    /// The rows of each record; see [`Lengths`].
    pub(super) fn rows(&self) -> impl Iterator<Item = usize> + Clone {
        self.offsets.windows(2).map(|bounds| (bounds[1] - bounds[0]).saturating_sub(1))
    }

    /// The most rows of so many neighbours; after the last record comes the first again.
    fn most_rows(&self, count: usize) -> usize {
        let (times, rest) = (count / self.len().max(1), count % self.len().max(1));
        let mut here: usize = self.rows().take(rest).sum();
        let mut most = here;
        for (first, next) in self.rows().zip(self.rows().cycle().skip(rest)) {
            here = here + next - first;
            most = most.max(here);
        }
        times * self.rows().sum::<usize>() + most
    }

    /// Packs records that lie side by side for the model.
    pub(super) fn pack(&self, records: Range<usize>) -> Packed {
        let ids = |record: usize| &self.ids[self.offsets[record]..self.offsets[record + 1]];
        let records = records.map(|record| {
            let ids: Vec<u32> = ids(record).iter().copied().map(u32::from).collect();
            (ids, self.prompts[record] as usize)
        });
        let records: Vec<_> = records.collect();
        Packed::new(records.iter().map(|(ids, prompt)| (ids.as_slice(), *prompt)))
    }

    /// Tokenises the records of a file.
    ///
    /// # Errors
    /// When one cannot be learnt, and [`TrainError::Interrupted`] soon after `stop` says so.
    pub(super) fn parse(
        file: DataFile,
        label: &str,
        bytes: &[u8],
        training: &Training,
        tokenizer: &Tokenizer,
        stop: Stop,
    ) -> Result<Self, TrainError> {
        let records = parse_records(label, bytes)?;
        let context = training.settings.model.max_position_embeddings;
        let format = training.settings.response.format;
        let encoded: Vec<(Vec<u16>, u32)> = records
            .par_iter()
            .enumerate()
            .map(|(index, record)| {
                if stop() {
                    return Err(TrainError::Interrupted);
                }
                let (name, number) = (|| file.name.clone(), index + 1);
                let encode = |text: &str| {
                    tokenizer.encode(text).map_err(|source| TrainError::Text { name: name(), record: number, source })
                };
                let mut ids = encode(&record.prompt)?;
                let prompt = ids.len();
                match format {
                    Format::Steps => ids.extend(encode(&record.response)?),
                    Format::Answer => {
                        let answer = answer(&record.response)
                            .ok_or_else(|| TrainError::Answerless { name: name(), record: number })?;
                        ids.extend(encode(&format!("#{answer}$"))?);
                    }
                }
                if ids.len() > context {
                    return Err(TrainError::TooLong { name: name(), record: number, tokens: ids.len(), context });
                }
                Ok((ids.into_iter().map(|id| id as u16).collect(), prompt as u32))
            })
            .collect::<Result<_, TrainError>>()?;
        let mut source = Self { file, ids: Vec::new(), offsets: vec![0], prompts: Vec::new() };
        for (ids, prompt) in encoded {
            source.ids.extend(ids);
            source.offsets.push(source.ids.len());
            source.prompts.push(prompt);
        }
        Ok(source)
    }
}

/// Names the permutation of one pass over one source.
fn key(seed: u64, source: usize, pass: u64) -> u64 {
    let mut hasher = sha2::Sha256::new();
    hasher.update(b"codex order 1\0");
    for number in [seed, source as u64, pass] {
        hasher.update(number.to_le_bytes());
    }
    let digest: [u8; 32] = hasher.finalize().into();
    digest.iter().take(8).fold(0, |key, byte| key << 8 | u64::from(*byte))
}

/// The place of `index` in a permutation of 0..`count` that `key` names: a Feistel network over the next power of four,
/// walked until it lands inside. Constant time in the mean.
fn permute(index: u64, count: u64, key: u64) -> u64 {
    let half = (64 - count.leading_zeros()).div_ceil(2).max(1);
    let mask = (1_u64 << half) - 1;
    let mut at = index;
    loop {
        let (mut left, mut right) = (at >> half, at & mask);
        for round in 0..4 {
            (left, right) = (right, left ^ (mix(right ^ key.rotate_left(16 * round)) & mask));
        }
        at = left << half | right;
        if at < count {
            return at;
        }
    }
}

/// The finaliser of `SplitMix64`.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_pass_sees_every_record_once(count in 1_u64..3000, key: u64) {
            let mut seen = vec![false; count as usize];
            for index in 0..count {
                let at = permute(index, count, key) as usize;
                prop_assert!(!seen[at]);
                seen[at] = true;
            }
        }
    }

    /// Longer than 16 bits can count.
    #[test]
    fn a_long_prompt_is_not_cut() {
        let training = crate::training::tests::resolved(
            &["model.max_position_embeddings=131072"],
            vec![crate::training::tests::synthetic("arithmetic", 100)],
        );
        let (prompt, response) = ("1".repeat(70_000), "2+2=4 #4$");
        let line = serde_json::json!({
            "prompt": prompt, "response": response, "difficulty": "easy", "category": "addition",
        });
        let file = DataFile { name: "a".to_owned(), sha256: DataDigest(Sha256::of(b"")), size: 0, records: None };
        let tokenizer = Tokenizer::characters().unwrap();
        let source =
            Source::parse(file, "a", line.to_string().as_bytes(), training.spec(), &tokenizer, &|| false).unwrap();
        let packed = source.pack(0..1);
        assert_eq!((packed.tokens.len() / 1000, packed.targets.len()), (70, response.len()));
        let dataset = Dataset { sources: vec![source], seed: 1, shuffle: true };
        assert_eq!(dataset.pack(&dataset.examples(0, 1)).targets.len(), response.len());
    }

    /// A source with records of so many tokens.
    fn source(name: &str, lengths: &[usize]) -> Source {
        let ends = lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        Source {
            file: DataFile { name: name.to_owned(), sha256: DataDigest(Sha256::of(b"")), size: 0, records: None },
            ids: vec![0; lengths.iter().sum()],
            offsets: std::iter::once(0).chain(ends).collect(),
            prompts: vec![1; lengths.len()],
        }
    }

    proptest! {
        #[test]
        fn no_batch_of_a_curriculum_is_larger_than_was_reckoned(
            first in prop::collection::vec(2_usize..50, 1..30),
            second in prop::collection::vec(2_usize..50, 1..30),
            batch in 1_usize..40,
        ) {
            for sources in [vec![source("a", &first)], vec![source("a", &first), source("b", &second)]] {
                let alone = sources.len() == 1;
                let dataset = Dataset { sources, seed: 1, shuffle: false };
                let packed = |start: u64| dataset.pack(&dataset.examples(start, batch as u64)).tokens.len();
                let most = (0..120).map(packed).max().unwrap();
                let reckoned = dataset.lengths().rows(batch);
                prop_assert!(most <= reckoned, "{most} {reckoned}");
                prop_assert!(!alone || most == reckoned || batch > first.len(), "{most} {reckoned}");
            }
        }
    }

    #[test]
    fn the_long_end_of_a_curriculum_counts() {
        let lengths: Vec<usize> = [[30; 95].as_slice(), &[600; 5]].concat();
        let of = |shuffle| Dataset { sources: vec![source("a", &lengths)], seed: 1, shuffle };
        let (ordered, shuffled) = (of(false), of(true));
        assert_eq!([5, 8].map(|batch| ordered.lengths().rows(batch)), [5 * 599, 5 * 599 + 3 * 29]);
        assert!((500..5 * 599).contains(&shuffled.lengths().rows(5)), "{}", shuffled.lengths().rows(5));
        assert_eq!(ordered.lengths().longest(), 599);
    }

    #[test]
    fn a_curriculum_is_seen_in_its_order() {
        let dataset = Dataset { sources: vec![source("a", &[1; 3]), source("b", &[1; 2])], seed: 1, shuffle: false };
        assert_eq!(dataset.describe(&dataset.examples(0, 8)), "a[1] b[1] a[2] b[2] a[3] b[1] a[1] b[2]");
    }

    #[test]
    fn passes_differ() {
        let order = |pass| (0..100).map(|i| permute(i, 100, key(1, 0, pass))).collect::<Vec<_>>();
        assert_ne!(order(0), order(1));
        assert_ne!(order(0), (0..100).collect::<Vec<_>>());
    }
}
