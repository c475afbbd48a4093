//! All training data of a run, and the record that each example of the run sees. Reads files, and writes token caches.
//!
//! The records of a step depend only on the seed and the step, and are found without those before. Within a source every pass is
//! a permutation of its own, or the order of the file without `training.shuffle`.

use std::{collections::BTreeMap, fs::File, ops::ControlFlow, path::PathBuf};

use codex_configs::{AugmentationSettings, Data, PLUGIN_FILTER, PLUGIN_REWARD, TraceMode, Training};
use codex_engine::Packed;
use codex_provenance::Sha256;
use codex_reports::DataFile;
use sha2::Digest as _;

use super::{
    Caches, DataError, RecordLengths,
    augmentation::{Augmenter, unit},
    encoder::{Encoded, Encoder, pack},
    input::Input,
    mix::Mix,
    permutation::{permutation_key, permute},
    phases::{Phases, hash},
    records::{Counts, Limits, Treatment},
    safety::Screen,
    selection::{Selection, Wanted, select},
    source::Source,
    token_store::TokenStore,
    tool_spans::ToolSpans,
};
use crate::{
    artifacts::{
        data_report::{AugmentationReport, DataReport, SourceReport},
        metadata::SafetyReport,
    },
    atomic_fs,
    plugins::{Kind, Plugin},
    signals::Stop,
    tasks::Split,
    text::Tokenizer,
    training::{listing::some_of, objective::Pair},
};

/// All training data of a run.
#[derive(Debug)]
pub(crate) struct Dataset {
    pub(super) sources: Vec<Source>,
    pub(super) mix: Mix,
    pub(super) seed: u64,
    pub(super) shuffle: bool,
    /// Records of the phases of a curriculum.
    pub(super) phases: Phases,
    /// Directory of temporary files.
    pub(super) scratch: PathBuf,
    /// Log-probabilities under the reference of each record by source; empty unless preferences are trained.
    reference: Vec<Vec<Pair>>,
    /// What finds tokens of tool calls; `None` if nothing asks for it.
    tools: Option<ToolSpans>,
    /// Files of plugins and of safety rules.
    others: Vec<DataFile>,
    /// The plugin that rewards sampled answers.
    reward: Option<Plugin>,
    /// Changed versions of prompts, if examples draw among them.
    augmentation: Option<AugmentationSettings>,
    /// The safety rules that the records were checked by.
    pub(super) safety: Option<Screen>,
}

/// Where the data of a run is written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    /// Directory of copies of synthetic data, for inspection.
    pub(crate) synthetic: Option<PathBuf>,
    /// Token caches.
    pub(crate) caches: Caches,
}

/// Source and index of a record, and which version of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Address {
    source: usize,
    record: u64,
    /// Number of the version with a changed prompt, from 1; 0 is the record as it is.
    variant: u32,
}

/// Stands for an example of no phase.
const NO_PHASE: u64 = u64::MAX;

impl Address {
    pub(super) fn new(source: usize, record: u64) -> Self {
        Self { source, record, variant: 0 }
    }

    pub(super) fn source(self) -> usize {
        self.source
    }

    pub(super) fn record(self) -> u64 {
        self.record
    }
}

/// Checks that data can be read and that its first record can be trained on, without hashing or reading all of it. Returns the response
/// of the record, if it has one. Synthetic data is not made.
///
/// # Errors
/// When the file is missing or not of its format, or the record cannot be trained on.
pub(crate) fn check_first_record(
    data: &Data,
    files: &[(String, PathBuf)],
    encoder: Encoder,
) -> Result<Option<String>, DataError> {
    let given = files.iter().find(|(name, _)| *name == data.name);
    let path = match (&data.synthetic, given) {
        (None, Some((_, path))) => path,
        (Some(_), None) => return Ok(None),
        (None, None) => return Err(DataError::NoFile(data.name.clone())),
        (Some(_), Some(_)) => return Err(DataError::Synthetic(data.name.clone())),
    };
    File::open(path).map_err(|source| atomic_fs::named::<DataError>(&format!("data {}", data.name), path, source))?;
    let mut first = None;
    encoder.each_record(&Input::unhashed(&data.name, path), |example| {
        first = Some(example);
        Ok(ControlFlow::Break(()))
    })?;
    let Some(example) = first else { return Ok(None) };
    let response = encoder.question(&example).map(|question| question.response);
    encoder.encode(&data.name, &[(0, example)], None, &|| false)?;
    Ok(response)
}

impl Dataset {
    /// Reads the training data of a run. `files` has the path of each file that is not synthetic. `seen` is called for every file
    /// as soon as it is hashed, before it can be refused.
    ///
    /// # Errors
    /// When a file cannot be read, has another digest, or holds a record that cannot be trained on, and
    /// [`DataError::Interrupted`] soon after `stop` returns true.
    pub(crate) fn read(
        training: &Training,
        files: &[(String, PathBuf)],
        places: &Places,
        encoder: Encoder,
        stop: Stop,
        mut seen: impl FnMut(DataFile),
    ) -> Result<Self, DataError> {
        let scratch = places.caches.scratch();
        let (mut inputs, mut stores) = (Vec::new(), Vec::new());
        let (mut filter, mut reward) = (None, None);
        let (mut others, mut variants) = (Vec::new(), Vec::new());
        let augmentation =
            Some(&training.settings.data.augmentation).filter(|augmentation| augmentation.probability > 0.0);
        for (name, kind, plugin) in
            [(PLUGIN_FILTER, Kind::Filter, &mut filter), (PLUGIN_REWARD, Kind::Reward, &mut reward)]
        {
            let Some(data) = training.data.iter().find(|data| data.name == name) else { continue };
            let input = Input::open(data, Split::Train, files, stop, &mut seen)?;
            *plugin = Some(input.plugin(kind)?);
            others.push(input.file);
        }
        let filtered_by = filter.as_ref().zip(others.first()).map(|(plugin, file)| (plugin, file.sha256));
        let safety = Screen::of(training, files, stop, &mut seen)?;
        for data in training.data.iter().filter(|data| data.is_trained_on()) {
            let mut input = Input::open(data, Split::Train, files, stop, &mut seen)?.with_scratch(&scratch);
            if let (Some(keep), true) = (&places.synthetic, data.synthetic.is_some()) {
                input.keep(&keep.join(format!("{}.jsonl", data.name)))?;
            }
            let tokens = |augmenter| {
                let treatment = Treatment { safety: safety.as_ref(), filter: filtered_by, augmenter };
                TokenStore::of(&input, encoder, treatment, &places.caches, Limits::default(), stop)
            };
            let store = tokens(None)?;
            let changed = match augmentation {
                None => Vec::new(),
                Some(settings) => (1..=settings.variants)
                    .map(|variant| tokens(Some(Augmenter { settings, seed: training.seed, variant })))
                    .collect::<Result<_, _>>()?,
            };
            input.file.records = Some(store.counts.seen);
            seen(input.file.clone());
            inputs.push(input);
            stores.push(store);
            variants.push(changed);
        }
        let settings = &training.settings.data;
        let wanted = Wanted {
            deduplicate: settings.deduplicate,
            validation: &settings.validation,
            listed: training.settings.training.eval_records.div_ceil(stores.len().max(1)),
        };
        let selections = select(&stores.iter().collect::<Vec<_>>(), wanted, &scratch, stop)?;
        let mut sources = Vec::new();
        for (((input, store), selection), variants) in inputs.into_iter().zip(stores).zip(selections).zip(variants) {
            if selection.sums.records == 0 {
                let (name, counts) = (input.file.name, store.counts);
                let Selection { duplicates, held, .. } = selection;
                let Counts { seen, foreign, blocked, filtered, .. } = counts;
                return Err(DataError::NoneLeft { name, seen, foreign, blocked, filtered, duplicates, held });
            }
            sources.push(Source::new((input, store), selection, variants)?);
        }
        let mix = Mix::new(sources.iter().map(Source::name), settings.weights.as_ref());
        let (seed, shuffle) = (training.seed, training.settings.training.shuffle);
        let phases = Phases::select(training, &sources, &scratch, stop)?;
        let supervision = training.settings.training.tool_supervision();
        let adapter = training.settings.training.reasoning.tool_adapter.enabled;
        let adapts = adapter && training.settings.trace_mode() != TraceMode::Disabled;
        let tools = (supervision.is_some() || adapts).then(|| ToolSpans::new(encoder.tokenizer, supervision));
        let (reference, augmentation) = (Vec::new(), augmentation.cloned());
        others.extend(safety.as_ref().and_then(|safety| safety.file.clone()));
        let dataset = Self {
            sources,
            mix,
            seed,
            shuffle,
            phases,
            scratch,
            reference,
            tools,
            others,
            reward,
            augmentation,
            safety,
        };
        let (batch, records) = (training.settings.training.batch_size, dataset.records() as usize);
        if batch > records {
            return Err(DataError::Batch { batch, records });
        }
        Ok(dataset)
    }

    /// Yields all records that are trained on.
    pub(crate) fn all(&self) -> impl Iterator<Item = Address> {
        let sources = self.sources.iter().enumerate();
        sources.flat_map(|(source, records)| (0..records.len()).map(move |record| Address::new(source, record)))
    }

    /// Returns the digest of a record's tokens, under which its log-probabilities are kept.
    ///
    /// # Errors
    /// When its tokens cannot be read.
    pub(crate) fn key(&self, address: Address) -> Result<Sha256, DataError> {
        Ok(self.sources[address.source].record(address.record)?.key())
    }

    /// Sets the log-probabilities under the reference, each in nats, from those that are known by the digest of a record's tokens.
    /// Records without any get NaN: they are in no step.
    ///
    /// # Errors
    /// When the tokens of a record cannot be read.
    pub(crate) fn set_reference(&mut self, known: impl Fn(&Sha256) -> Option<Pair>) -> Result<(), DataError> {
        let of = |source: &Source| {
            let pair = |record| Ok(known(&source.record(record)?.key()).unwrap_or([f64::NAN; 2]));
            (0..source.len()).map(pair).collect()
        };
        self.reference = self.sources.iter().map(of).collect::<Result<_, DataError>>()?;
        Ok(())
    }

    /// Returns the log-probabilities of records under the reference, NaN for those that have none.
    pub(crate) fn reference(&self, addresses: &[Address]) -> Vec<Pair> {
        let find = |at: &Address| self.reference.get(at.source).and_then(|source| source.get(at.record as usize));
        addresses.iter().map(|address| find(address).copied().unwrap_or([f64::NAN; 2])).collect()
    }

    /// Files that were read, those of plugins and of safety rules included.
    pub(crate) fn files(&self) -> impl Iterator<Item = &DataFile> {
        self.sources.iter().map(|source| &source.input.file).chain(&self.others)
    }

    /// Returns the plugin that rewards sampled answers.
    pub(crate) fn reward(&self) -> Option<&Plugin> {
        self.reward.as_ref()
    }

    /// Returns what is trained on.
    pub(crate) fn report(&self) -> DataReport {
        let source = |(source, share): (&Source, f64)| {
            let (file, selection) = (&source.input.file, &source.selection);
            let counts = &source.store.counts;
            SourceReport {
                name: file.name.clone(),
                sha256: file.sha256,
                size: file.size,
                records: counts.seen,
                other_languages: counts.foreign,
                blocked: counts.blocked,
                redacted: counts.redacted,
                filtered: counts.filtered,
                duplicates: selection.duplicates,
                held_out: selection.held,
                trained: selection.sums.records,
                tokens: selection.sums.tokens,
                longest: selection.sums.most_tokens,
                share,
            }
        };
        let augmentation = self.augmentation.as_ref().map(|settings| AugmentationReport {
            probability: settings.probability,
            rate: settings.rate,
            variants: settings.variants,
            kinds: settings.kinds.iter().map(|kind| kind.name().to_owned()).collect(),
        });
        DataReport { sources: self.sources.iter().zip(self.mix.shares()).map(source).collect(), augmentation }
    }

    /// Returns what the safety rules did with the records; `None` without rules.
    pub(crate) fn safety_report(&self) -> Option<SafetyReport> {
        let Screen { file, settings, .. } = self.safety.as_ref()?;
        let all = || self.sources.iter().map(|source| &source.store.counts);
        let mut rules = BTreeMap::<String, u64>::new();
        for (rule, records) in all().flat_map(|counts| &counts.rules) {
            *rules.entry(rule.clone()).or_default() += records;
        }
        Some(SafetyReport {
            file: file.as_ref().map(|file| file.sha256),
            block: settings.block.clone(),
            redact: settings.redact.clone(),
            blocked: all().map(|counts| counts.blocked).sum(),
            redacted: all().map(|counts| counts.redacted).sum(),
            rules,
        })
    }

    /// Number of records that are trained on.
    pub(crate) fn records(&self) -> u64 {
        self.sources.iter().map(Source::len).sum()
    }

    /// Returns the records of `count` examples from `first` on, counted over the whole run.
    pub(crate) fn examples(&self, first: u64, count: u64) -> Vec<Address> {
        (first..first + count).map(|example| self.address(example)).collect()
    }

    /// Returns the records with these numbers, which count those of all sources, one source after another.
    pub(crate) fn numbered(&self, numbers: &[u64]) -> Vec<Address> {
        let mut sources = self.sources.iter().enumerate();
        let (mut before, mut current) = (0, sources.next());
        let mut find = |number: u64| loop {
            let (source, records) = current?;
            if number < before + records.len() {
                return Some(Address::new(source, number - before));
            }
            before += records.len();
            current = sources.next();
        };
        debug_assert!(numbers.is_sorted());
        numbers.iter().filter_map(|number| find(*number)).collect()
    }

    /// Returns the record of one example.
    fn address(&self, example: u64) -> Address {
        let (source, draw) = self.mix.draw(example);
        let records = self.sources[source].len();
        let (pass, position) = (draw / records, draw % records);
        let record =
            if self.shuffle { permute(position, records, permutation_key(self.seed, source, pass)) } else { position };
        self.drawn(Address::new(source, record), NO_PHASE, example)
    }

    /// Returns the version of a record that an example sees: as it is, or one of those with a changed prompt. `phase` is that of a
    /// curriculum whose own examples `example` counts.
    pub(super) fn drawn(&self, address: Address, phase: u64, example: u64) -> Address {
        let Some(settings) = &self.augmentation else { return address };
        let draw = |purpose| hash(purpose, &[self.seed, phase, example]);
        if unit(draw(b"codex augmented 1\0")) >= settings.probability {
            return address;
        }
        let variant = draw(b"codex augmented version 1\0") % u64::from(settings.variants);
        Address { variant: 1 + variant as u32, ..address }
    }

    /// Packs records for the model.
    ///
    /// # Errors
    /// When their tokens cannot be read.
    pub(crate) fn pack(&self, addresses: &[Address]) -> Result<Packed, DataError> {
        let records = addresses.iter().map(|at| self.tokens(*at));
        Ok(pack(&records.collect::<Result<Vec<_>, _>>()?))
    }

    fn tokens(&self, address: Address) -> Result<Encoded, DataError> {
        self.sources[address.source].version(address.record, address.variant)
    }

    /// Returns what finds tokens of tool calls, if the run asks for it.
    pub(crate) fn tool_spans(&self) -> Option<&ToolSpans> {
        self.tools.as_ref()
    }

    /// Computes the digest of the records of a step: name, number and tokens of each, in order.
    ///
    /// # Errors
    /// When their tokens cannot be read.
    pub(crate) fn digest(&self, addresses: &[Address]) -> Result<Sha256, DataError> {
        let mut hasher = sha2::Sha256::new();
        hasher.update(b"codex records 3\0");
        for address in addresses {
            hasher.update(self.sources[address.source].name().as_bytes());
            hasher.update([0]);
            hasher.update(address.record.to_le_bytes());
            for (ids, mask) in self.tokens(*address)?.sequences() {
                hasher.update((ids.len() as u64).to_le_bytes());
                hasher.update(mask.iter().map(|target| u8::from(*target)).collect::<Vec<u8>>());
                let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
                hasher.update(bytes);
            }
        }
        Ok(Sha256::finish(hasher))
    }

    /// Rows of the longest record.
    pub(super) fn longest(&self) -> usize {
        self.sources.iter().map(|source| source.selection.sums.longest as usize).max().unwrap_or(0)
    }

    /// Lengths of the records, for the size of batches.
    pub(crate) fn lengths(&self) -> RecordLengths<'_> {
        if self.shuffle { RecordLengths::shuffled(self) } else { RecordLengths::InOrder(self) }
    }

    /// Decodes a record, prompt and response together; of a preference, the rejected one follows on a line of its own.
    ///
    /// # Errors
    /// When its tokens cannot be read, or the tokenizer rejects them.
    pub(crate) fn text(&self, address: Address, tokenizer: &Tokenizer) -> Result<String, DataError> {
        let record = self.tokens(address)?;
        let texts: Result<Vec<String>, _> = record.sequences().map(|(ids, _)| tokenizer.decode(ids)).collect();
        Ok(texts.map_err(|source| DataError::Tokenizer { source })?.join("\nrejected: "))
    }

    /// Returns the tokens before the last response of a record, and the text of that response.
    ///
    /// # Errors
    /// When its tokens cannot be read, or the tokenizer rejects them.
    pub(crate) fn question(&self, address: Address, tokenizer: &Tokenizer) -> Result<(Vec<u32>, String), DataError> {
        let record = self.tokens(address)?;
        let Some((ids, mask)) = record.sequences().next() else { return Ok((Vec::new(), String::new())) };
        let end = mask.iter().rposition(|target| *target).map_or(0, |last| last + 1);
        let start = mask[..end].iter().rposition(|target| !*target).map_or(0, |before| before + 1);
        let text = tokenizer.decode(&ids[start..end]).map_err(|source| DataError::Tokenizer { source })?;
        Ok((ids[..start].to_vec(), text))
    }

    /// Lists addresses as `name[record]`, with the records of a file counted from 1; only the first few of many.
    ///
    /// # Errors
    /// When the number of a record cannot be read.
    pub(crate) fn describe(&self, addresses: &[Address]) -> Result<String, DataError> {
        let name = |at: &Address| {
            let source = &self.sources[at.source];
            Ok(format!("{}[{}]", source.name(), source.number(at.record)? + 1))
        };
        let names: Vec<String> = addresses.iter().map(name).collect::<Result<_, DataError>>()?;
        Ok(some_of(&names, " "))
    }
}

#[cfg(test)]
impl Dataset {
    /// Creates a dataset of these sources.
    pub(super) fn of(sources: Vec<Source>, seed: u64, shuffle: bool) -> Self {
        let mix = Mix::new(sources.iter().map(Source::name), None);
        let (phases, scratch) = (Phases::default(), std::env::temp_dir());
        let (reference, others) = (Vec::new(), Vec::new());
        Self {
            sources,
            mix,
            seed,
            shuffle,
            phases,
            scratch,
            reference,
            tools: None,
            others,
            reward: None,
            augmentation: None,
            safety: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::test_support::{encoder, resolved, synthetic};

    /// The prompt has more tokens than 16 bits can count.
    #[test]
    fn a_long_prompt_is_not_cut() {
        let training = resolved(&["model.max_position_embeddings=131072"], vec![synthetic("arithmetic", 100)]);
        let (prompt, response) = ("1".repeat(70_000), "2+2=4 #4$");
        let line = serde_json::json!({
            "prompt": prompt, "response": response, "difficulty": "easy", "category": "addition",
        });
        let input = Input::of_bytes("a", "a", line.to_string().as_bytes());
        let tokenizer = Tokenizer::characters().unwrap();
        let encoder = encoder(&training, &tokenizer);
        let store =
            TokenStore::of(&input, encoder, Treatment::default(), &Caches::default(), Limits::default(), &|| false)
                .unwrap();
        let selection = Selection::all(&store);
        let source = Source::new((input, store), selection, Vec::new()).unwrap();
        let dataset = Dataset::of(vec![source], 1, true);
        let packed = dataset.pack(&dataset.examples(0, 1)).unwrap();
        assert_eq!((packed.tokens.len() / 1000, packed.targets.len()), (70, response.len()));
    }

    #[test]
    fn without_shuffling_records_are_seen_in_file_order() {
        let dataset = Dataset::of(vec![Source::of_lengths("a", &[1; 3]), Source::of_lengths("b", &[1; 2])], 1, false);
        assert_eq!(dataset.describe(&dataset.examples(0, 8)).unwrap(), "a[1] b[1] a[2] b[2] a[3] b[1] a[1] b[2]");
    }
}
