//! `codex tokenizer train`. Reads and writes files.

use std::{collections::BTreeMap, path::PathBuf};

use codex_provenance::Sha256;
use tokenizers::{
    AddedToken, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Tokenizer as Library, Trainer as _,
    models::{
        bpe::{BPE, BpeTrainer},
        unigram::{Unigram, UnigramTrainer},
        wordlevel::{WordLevel, WordLevelTrainer},
    },
    pre_tokenizers::{
        byte_level::ByteLevel,
        metaspace::{Metaspace, PrependScheme},
        whitespace::WhitespaceSplit,
    },
};

use super::{
    TokenizingError, lines_of,
    manifest::{Manifest, NAME},
};
use crate::{atomic_fs, text::Tokenizer};

/// The token for what a vocabulary does not have.
const UNKNOWN: &str = "<unk>";

/// A kind of tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    /// Byte-level byte-pair encoding: gives back every text.
    Bpe,
    /// Unigram language model over text with `▁` for spaces, as in `SentencePiece`.
    Unigram,
    /// Whole words between white space.
    Whitespace,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Bpe => "bpe",
            Self::Unigram => "unigram",
            Self::Whitespace => "whitespace",
        }
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Train {
    /// What the tokens are.
    #[arg(long, value_enum, default_value = "bpe")]
    pub(super) kind: Kind,
    /// Text files; every line is a text.
    #[arg(long, value_name = "FILE", required = true)]
    pub(super) data: Vec<PathBuf>,
    /// The most tokens, special ones included.
    #[arg(long, value_name = "COUNT", default_value_t = 32_000, value_parser = crate::arguments::whole::<usize>(8..=1 << 22))]
    pub(super) vocab_size: usize,
    /// Number of times that a pair or word must occur to become a token; not for unigram.
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = crate::arguments::whole::<u64>(1..=1 << 40))]
    pub(super) min_frequency: u64,
    /// Share of all characters that the alphabet of a unigram tokenizer covers; the rarest are unknown.
    #[arg(long, value_name = "SHARE", default_value_t = 0.9995, value_parser = crate::arguments::number("write a number above 0, at most 1"))]
    pub(super) character_coverage: f64,
    /// A special token, such as `<|im_end|>`. May be repeated.
    #[arg(long, value_name = "TOKEN", default_values_t = ["<|endoftext|>".to_owned()])]
    pub(super) special: Vec<String>,
    /// The directory to write, which must not exist yet.
    #[arg(long, value_name = "DIR")]
    pub(super) output: PathBuf,
}

fn failed(error: impl std::fmt::Display) -> TokenizingError {
    TokenizingError::Training(error.to_string().replace('\n', " "))
}

impl Train {
    pub(super) fn run(&self) -> Result<String, TokenizingError> {
        if std::fs::symlink_metadata(&self.output).is_ok() {
            return Err(TokenizingError::Exists(self.output.clone()));
        }
        if !(self.character_coverage > 0.0 && self.character_coverage <= 1.0) {
            return Err(failed(format!(
                "--character-coverage {}: use a number above 0, at most 1",
                self.character_coverage
            )));
        }
        let (mut lines, mut digests) = (Vec::new(), Vec::new());
        for path in &self.data {
            let text = lines_of(path)?;
            digests.push(Sha256::of(&text));
            lines.extend(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned));
        }
        if lines.is_empty() {
            return Err(TokenizingError::Empty);
        }
        let mut json = self.train(&lines)?.to_string(true).map_err(failed)?.into_bytes();
        json.push(b'\n');
        let read = Tokenizer::from_files(&[("tokenizer.json".to_owned(), json.clone())].into())?;
        let specials = read.specials().into_iter().filter_map(|id| read.token(id)).collect();
        let manifest = Manifest::new(self.kind.name(), read.vocabulary(), specials, digests, &json);
        atomic_fs::create_directory(&self.output, |partial| {
            atomic_fs::write(&partial.join("tokenizer.json"), &json)?;
            atomic_fs::write_json(&partial.join(NAME), &manifest)?;
            Ok::<_, TokenizingError>(())
        })?;
        Ok(format!("{}: {} tokens", self.output.display(), read.vocabulary()))
    }

    /// Trains on one thread: sums in another order would give other bytes.
    fn train(&self, lines: &[String]) -> Result<Library, TokenizingError> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(failed)?;
        pool.install(|| match self.kind {
            Kind::Bpe => self.bpe(lines),
            Kind::Unigram => self.unigram(lines),
            Kind::Whitespace => self.whitespace(lines),
        })
    }

    /// Returns the special tokens, with that for unknown text first if the kind has one.
    fn specials(&self) -> Vec<AddedToken> {
        let unknown = (self.kind != Kind::Bpe && !self.special.iter().any(|token| token == UNKNOWN)).then_some(UNKNOWN);
        let all = unknown.into_iter().chain(self.special.iter().map(String::as_str));
        all.map(|token| AddedToken::from(token, true)).collect()
    }

    fn fits(&self, alphabet: usize) -> Result<(), TokenizingError> {
        let needed = alphabet + self.specials().len();
        if self.vocab_size < needed { Err(TokenizingError::Small { size: self.vocab_size, needed }) } else { Ok(()) }
    }

    fn bpe(&self, lines: &[String]) -> Result<Library, TokenizingError> {
        let alphabet = ByteLevel::alphabet();
        self.fits(alphabet.len())?;
        let mut trainer = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(self.vocab_size)
            .min_frequency(self.min_frequency)
            .initial_alphabet(alphabet.into_iter().collect())
            .special_tokens(self.specials())
            .build();
        let words = words(&ByteLevel::new(false, true, true), lines)?;
        trainer.feed(repeated(&words), |word| Ok(vec![word.to_owned()])).map_err(failed)?;
        let mut model = BPE::default();
        let specials = trainer.train(&mut model).map_err(failed)?;
        let mut tokenizer = Library::new(model);
        tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
        tokenizer.with_decoder(Some(ByteLevel::default()));
        tokenizer.add_special_tokens(specials).map_err(failed)?;
        Ok(tokenizer)
    }

    fn unigram(&self, lines: &[String]) -> Result<Library, TokenizingError> {
        let pieces = Metaspace::new('\u{2581}', PrependScheme::Always, true);
        let mut words = words(&pieces, lines)?;
        let alphabet = covered(&words, self.character_coverage);
        self.fits(alphabet.len())?;
        words.retain(|word, _| word.chars().all(|character| alphabet.contains(&character)));
        let trainer = UnigramTrainer::builder()
            .show_progress(false)
            .vocab_size(self.vocab_size as u32)
            .special_tokens(self.specials())
            .unk_token(Some(UNKNOWN.to_owned()))
            .build()
            .map_err(failed)?;
        let sentences = words.iter().map(|(word, count)| (word.clone(), u32::try_from(*count).unwrap_or(u32::MAX)));
        let mut model = Unigram::default();
        let specials = trainer.do_train(sentences.collect(), &mut model).map_err(failed)?;
        let model = reproducible(&model, specials.len(), &alphabet)?;
        let mut tokenizer = Library::new(model);
        tokenizer.with_pre_tokenizer(Some(pieces.clone()));
        tokenizer.with_decoder(Some(pieces));
        tokenizer.add_special_tokens(specials).map_err(failed)?;
        Ok(tokenizer)
    }

    fn whitespace(&self, lines: &[String]) -> Result<Library, TokenizingError> {
        self.fits(1)?;
        let mut trainer = WordLevelTrainer::builder()
            .show_progress(false)
            .vocab_size(self.vocab_size)
            .min_frequency(self.min_frequency)
            .special_tokens(self.specials())
            .build()
            .map_err(failed)?;
        let words = words(&WhitespaceSplit, lines)?;
        trainer.feed(repeated(&words), |word| Ok(vec![word.to_owned()])).map_err(failed)?;
        let mut model = WordLevel::builder().unk_token(UNKNOWN.to_owned()).build().map_err(failed)?;
        let specials = trainer.train(&mut model).map_err(failed)?;
        let mut tokenizer = Library::new(model);
        tokenizer.with_pre_tokenizer(Some(WhitespaceSplit));
        tokenizer.add_special_tokens(specials).map_err(failed)?;
        Ok(tokenizer)
    }
}

/// Counts the words into which a pre-tokenizer splits lines.
fn words(pieces: &impl PreTokenizer, lines: &[String]) -> Result<BTreeMap<String, u64>, TokenizingError> {
    let mut words = BTreeMap::new();
    for line in lines {
        let mut split = PreTokenizedString::from(line.as_str());
        pieces.pre_tokenize(&mut split).map_err(failed)?;
        for (word, ..) in split.get_splits(OffsetReferential::Original, OffsetType::None) {
            *words.entry(word.to_owned()).or_default() += 1;
        }
    }
    Ok(words)
}

/// Yields every word as often as it occurs.
fn repeated(words: &BTreeMap<String, u64>) -> impl Iterator<Item = &str> + Send {
    words.iter().flat_map(|(word, count)| std::iter::repeat_n(word.as_str(), *count as usize))
}

/// Returns a unigram model whose pieces have a fixed order. The trainer gives characters that no piece kept scores just above the
/// lowest, in the random order of a hash table: here the most frequent ones get the highest.
fn reproducible(model: &Unigram, specials: usize, alphabet: &[char]) -> Result<Unigram, TokenizingError> {
    /// The distance between two such scores.
    const STEP: f64 = 0.0001;
    let mut pieces: Vec<(String, f64)> = model.iter().cloned().collect();
    let specials: Vec<(String, f64)> = pieces.drain(..specials.min(pieces.len())).collect();
    let lowest = pieces.iter().map(|(_, score)| *score).fold(f64::INFINITY, f64::min);
    let limit = lowest + STEP * (alphabet.len() + 1) as f64;
    let rank: BTreeMap<String, usize> = alphabet.iter().map(char::to_string).zip(0..).collect();
    let (mut low, mut rest): (Vec<_>, Vec<_>) =
        pieces.into_iter().partition(|(piece, score)| *score <= limit && rank.contains_key(piece));
    let mut scores: Vec<f64> = low.iter().map(|(_, score)| *score).collect();
    scores.sort_by(|a, b| b.total_cmp(a));
    low.sort_by_key(|(piece, _)| rank.get(piece).copied());
    rest.extend(low.into_iter().zip(scores).map(|((piece, _), score)| (piece, score)));
    rest.sort_by(|(piece, score), (other, other_score)| other_score.total_cmp(score).then_with(|| piece.cmp(other)));
    let unknown = specials.iter().position(|(token, _)| token == UNKNOWN);
    Unigram::from(specials.into_iter().chain(rest).collect(), unknown, false).map_err(failed)
}

/// Returns the most frequent characters that together are this share of all.
fn covered(words: &BTreeMap<String, u64>, share: f64) -> Vec<char> {
    let mut counts: BTreeMap<char, u64> = BTreeMap::new();
    for (word, count) in words {
        for character in word.chars() {
            *counts.entry(character).or_default() += count;
        }
    }
    let total: u64 = counts.values().sum();
    let mut order: Vec<(char, u64)> = counts.into_iter().collect();
    order.sort_by_key(|(character, count)| (std::cmp::Reverse(*count), *character));
    let (mut reached, wanted) = (0, share * total as f64);
    let mut kept = Vec::new();
    for (character, count) in order {
        if reached as f64 >= wanted {
            break;
        }
        reached += count;
        kept.push(character);
    }
    kept
}
