//! All training data of a run, and the record that each example of the run sees. Reads files; everything else is pure.
//!
//! The records of a step depend only on the seed and the step. Sources have equal weight. Within a source every pass is a
//! permutation of its own, or the order of the file without `training.shuffle`.

use std::path::{Path, PathBuf};

use codex_configs::{Training, VALIDATION};
use codex_engine::Packed;
use codex_provenance::Sha256;
use codex_reports::DataFile;
use sha2::Digest as _;

use super::{
    DataError, RecordLengths, Stop,
    encoder::Encoder,
    files::read_file,
    permutation::{permutation_key, permute},
    source::Source,
};
use crate::{
    atomic_fs,
    tasks::Split,
    text::{Tokenizer, TokenizerError},
    training::{listing::some_of, objective::Pair},
};

/// All training data of a run.
#[derive(Debug)]
pub(crate) struct Dataset {
    sources: Vec<Source>,
    seed: u64,
    shuffle: bool,
    /// Log-probabilities under the reference of each record by source; empty unless preferences are trained.
    reference: Vec<Vec<Pair>>,
}

/// Source and index of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Address {
    source: usize,
    record: usize,
}

impl Dataset {
    /// Reads the training data of a run. `files` has the path of each file that is not synthetic. Synthetic data is also
    /// written to the directory `keep`, if given, for inspection. `seen` is called for every file as soon as it is hashed,
    /// before it can be refused.
    ///
    /// # Errors
    /// When a file cannot be read, has another digest, or holds a record that cannot be trained on, and
    /// [`DataError::Interrupted`] soon after `stop` returns true.
    pub(crate) fn read(
        training: &Training,
        files: &[(String, PathBuf)],
        keep: Option<&Path>,
        encoder: Encoder,
        stop: Stop,
        mut seen: impl FnMut(DataFile),
    ) -> Result<Self, DataError> {
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
            let mut source = Source::parse(file.clone(), &label, &bytes, encoder, stop)?;
            file.records = Some(source.len() as u64);
            seen(file.clone());
            source.file = file;
            sources.push(source);
        }
        let records = sources.iter().map(Source::len).sum();
        let batch = training.settings.training.batch_size;
        if batch > records {
            return Err(DataError::Batch { batch, records });
        }
        Ok(Self { sources, seed: training.seed, shuffle: training.settings.training.shuffle, reference: Vec::new() })
    }

    /// Yields all records.
    pub(crate) fn all(&self) -> impl Iterator<Item = Address> {
        let sources = self.sources.iter().enumerate();
        sources.flat_map(|(source, records)| (0..records.len()).map(move |record| Address { source, record }))
    }

    /// Returns the digest of a record's tokens, under which its log-probabilities are kept.
    pub(crate) fn key(&self, address: Address) -> Sha256 {
        self.sources[address.source].key(address.record)
    }

    /// Sets the log-probabilities under the reference. Records without any get NaN: they are in no step.
    pub(crate) fn set_reference(&mut self, known: impl Fn(&Sha256) -> Option<Pair>) {
        let of = |source: &Source| {
            (0..source.len()).map(|record| known(&source.key(record)).unwrap_or([f64::NAN; 2])).collect()
        };
        self.reference = self.sources.iter().map(of).collect();
    }

    /// Returns the log-probabilities of records under the reference.
    pub(crate) fn reference(&self, addresses: &[Address]) -> Vec<Pair> {
        let find = |at: &Address| self.reference.get(at.source).and_then(|source| source.get(at.record));
        addresses.iter().map(|address| find(address).copied().unwrap_or([f64::NAN; 2])).collect()
    }

    /// Files that were read.
    pub(crate) fn files(&self) -> impl Iterator<Item = &DataFile> {
        self.sources.iter().map(|source| &source.file)
    }

    /// Number of records.
    pub(crate) fn records(&self) -> u64 {
        self.sources.iter().map(|source| source.len() as u64).sum()
    }

    /// Returns the records of `count` examples from `first` on, counted over the whole run.
    pub(crate) fn examples(&self, first: u64, count: u64) -> Vec<Address> {
        (first..first + count).map(|example| self.address(example)).collect()
    }

    /// Returns the record of one example.
    fn address(&self, example: u64) -> Address {
        let count = self.sources.len() as u64;
        let (source, draw) = ((example % count) as usize, example / count);
        let records = self.sources[source].len() as u64;
        let (pass, position) = (draw / records, draw % records);
        let record =
            if self.shuffle { permute(position, records, permutation_key(self.seed, source, pass)) } else { position };
        Address { source, record: record as usize }
    }

    /// Packs records for the model.
    pub(crate) fn pack(&self, addresses: &[Address]) -> Packed {
        Packed::masked(addresses.iter().flat_map(|Address { source, record }| self.sources[*source].record(*record)))
    }

    /// Computes the digest of the records of a step: name, number and tokens of each, in order.
    pub(crate) fn digest(&self, addresses: &[Address]) -> Sha256 {
        let mut hasher = sha2::Sha256::new();
        hasher.update(b"codex records 3\0");
        for Address { source, record } in addresses {
            let source = &self.sources[*source];
            hasher.update(source.file.name.as_bytes());
            hasher.update([0]);
            hasher.update((*record as u64).to_le_bytes());
            for (ids, mask) in source.record(*record) {
                hasher.update((ids.len() as u64).to_le_bytes());
                hasher.update(mask.iter().map(|target| u8::from(*target)).collect::<Vec<u8>>());
                let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
                hasher.update(bytes);
            }
        }
        Sha256::finish(hasher)
    }

    /// Lengths of the records, for the size of batches.
    pub(crate) fn lengths(&self) -> RecordLengths<'_> {
        if self.shuffle { RecordLengths::shuffled(&self.sources) } else { RecordLengths::InOrder(&self.sources) }
    }

    /// Decodes a record, prompt and response together; of a preference, the rejected one follows on a line of its own.
    ///
    /// # Errors
    /// When the tokenizer rejects the ids.
    pub(crate) fn text(&self, address: Address, tokenizer: &Tokenizer) -> Result<String, TokenizerError> {
        let Address { source, record } = address;
        let source = &self.sources[source];
        let texts: Result<Vec<String>, _> = source.record(record).map(|(ids, _)| tokenizer.decode(ids)).collect();
        Ok(texts?.join("\nrejected: "))
    }

    /// Returns the tokens before the last response of a record, and the text of that response.
    ///
    /// # Errors
    /// When the tokenizer rejects the ids.
    pub(crate) fn question(&self, address: Address, tokenizer: &Tokenizer) -> Result<(Vec<u32>, String), TokenizerError> {
        let Address { source, record } = address;
        let Some((ids, mask)) = self.sources[source].record(record).next() else { return Ok((Vec::new(), String::new())) };
        let end = mask.iter().rposition(|target| *target).map_or(0, |last| last + 1);
        let start = mask[..end].iter().rposition(|target| !*target).map_or(0, |before| before + 1);
        Ok((ids[..start].to_vec(), tokenizer.decode(&ids[start..end])?))
    }

    /// Lists addresses as `name[record]`, with records counted from 1; only the first few of many.
    pub(crate) fn describe(&self, addresses: &[Address]) -> String {
        let names: Vec<String> =
            addresses.iter().map(|at| format!("{}[{}]", self.sources[at.source].file.name, at.record + 1)).collect();
        some_of(&names, " ")
    }
}

#[cfg(test)]
impl Dataset {
    /// Creates a dataset of these sources.
    pub(super) fn of(sources: Vec<Source>, seed: u64, shuffle: bool) -> Self {
        Self { sources, seed, shuffle, reference: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use codex_provenance::DataDigest;

    use super::*;
    use crate::training::test_support::encoder;

    /// The prompt has more tokens than 16 bits can count.
    #[test]
    fn a_long_prompt_is_not_cut() {
        let training = crate::training::test_support::resolved(
            &["model.max_position_embeddings=131072"],
            vec![crate::training::test_support::synthetic("arithmetic", 100)],
        );
        let (prompt, response) = ("1".repeat(70_000), "2+2=4 #4$");
        let line = serde_json::json!({
            "prompt": prompt, "response": response, "difficulty": "easy", "category": "addition",
        });
        let file = DataFile { name: "a".to_owned(), sha256: DataDigest(Sha256::of(b"")), size: 0, records: None };
        let tokenizer = Tokenizer::characters().unwrap();
        let source =
            Source::parse(file, "a", line.to_string().as_bytes(), encoder(&training, &tokenizer), &|| false).unwrap();
        let packed = source.pack(0..1);
        assert_eq!((packed.tokens.len() / 1000, packed.targets.len()), (70, response.len()));
        let dataset = Dataset::of(vec![source], 1, true);
        assert_eq!(dataset.pack(&dataset.examples(0, 1)).targets.len(), response.len());
    }

    #[test]
    fn without_shuffling_records_are_seen_in_file_order() {
        let dataset = Dataset::of(vec![Source::of_lengths("a", &[1; 3]), Source::of_lengths("b", &[1; 2])], 1, false);
        assert_eq!(dataset.describe(&dataset.examples(0, 8)), "a[1] b[1] a[2] b[2] a[3] b[1] a[1] b[2]");
    }
}
