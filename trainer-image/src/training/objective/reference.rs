//! Log-probabilities of preferences under the model that a run starts from. They are computed once and kept in the run's directory,
//! so that an attempt that resumes compares with the same numbers. Does I/O.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use codex_configs::Dtype;
use codex_engine::{Engine, Packed};
use codex_provenance::{ModelDigest, Sha256};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use super::Pair;
use crate::{
    atomic_fs::{self, FileError},
    training::TrainError,
};

/// The directory of the cache below that of the run.
const DIRECTORY: &str = "reference";

/// Log-probabilities by the digest of a record's tokens.
#[derive(Debug)]
pub(crate) struct ReferenceCache {
    path: PathBuf,
    known: BTreeMap<Sha256, Pair>,
}

/// The file. Numbers are the bits of an `f64` in hexadecimal, so that they are read as they were computed.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Content {
    base: ModelDigest,
    dtype: Dtype,
    pairs: BTreeMap<Sha256, [String; 2]>,
    /// SHA-256 over all pairs.
    digest: Sha256,
}

/// Returns the digest of pairs.
fn digest(pairs: &BTreeMap<Sha256, Pair>) -> Sha256 {
    let mut hasher = sha2::Sha256::new();
    hasher.update(b"codex reference 1\0");
    for (key, pair) in pairs {
        hasher.update(key.bytes());
        for number in pair {
            hasher.update(number.to_bits().to_le_bytes());
        }
    }
    Sha256::finish(hasher)
}

impl ReferenceCache {
    /// Opens the cache of a run for the model with this digest and this type of activations. A file that is damaged counts as
    /// absent: what it held is computed again. The second value is a notice about it.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn open(run: &Path, base: ModelDigest, dtype: Dtype) -> Result<(Self, Option<String>), FileError> {
        let name = match dtype {
            Dtype::Fp32 => "fp32",
            Dtype::Bf16 => "bf16",
            Dtype::Fp16 => "fp16",
        };
        let path = run.join(DIRECTORY).join(format!("{}-{name}.json", base.short()));
        let (mut known, mut notice) = (BTreeMap::new(), None);
        match atomic_fs::read(&path) {
            Ok(bytes) => match parse(&bytes, base, dtype) {
                Some(pairs) => known = pairs,
                None => {
                    notice = Some(format!(
                        "{} is damaged: the log-probabilities of the reference are computed again",
                        path.display()
                    ));
                }
            },
            Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok((Self { path, known }, notice))
    }

    /// Returns the log-probabilities of a record.
    pub(crate) fn get(&self, key: &Sha256) -> Option<Pair> {
        self.known.get(key).copied()
    }

    /// Computes the log-probabilities of batches, given with the keys of their records. Returns false if `stop` returned true
    /// before a batch.
    ///
    /// # Errors
    /// When a batch cannot be read, or the engine rejects it.
    pub(crate) fn compute(
        &mut self,
        engine: &mut dyn Engine,
        batches: impl Iterator<Item = Result<(Vec<Sha256>, Packed), TrainError>>,
        stop: &dyn Fn() -> bool,
    ) -> Result<bool, TrainError> {
        for batch in batches {
            if stop() {
                return Ok(false);
            }
            let (keys, batch) = batch?;
            let losses = engine.losses(&batch)?;
            self.known.extend(keys.into_iter().zip(losses.chunks_exact(2)).map(|(key, it)| (key, [-it[0], -it[1]])));
        }
        Ok(true)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When a file operation fails.
    pub(crate) fn save(&self, base: ModelDigest, dtype: Dtype) -> Result<(), FileError> {
        let hexadecimal = |pair: &Pair| pair.map(|number| format!("{:016x}", number.to_bits()));
        let pairs = self.known.iter().map(|(key, pair)| (*key, hexadecimal(pair))).collect();
        let content = Content { base, dtype, pairs, digest: digest(&self.known) };
        atomic_fs::make_parents(&self.path)?;
        atomic_fs::write_json(&self.path, &content).map(drop)
    }
}

/// Returns the pairs of a file; `None` if it is damaged or of another model.
fn parse(bytes: &[u8], base: ModelDigest, dtype: Dtype) -> Option<BTreeMap<Sha256, Pair>> {
    let content: Content = codex_json::from_slice(bytes).ok()?;
    let number = |text: &String| u64::from_str_radix(text, 16).ok().map(f64::from_bits);
    let pairs: Option<BTreeMap<Sha256, Pair>> =
        content.pairs.iter().map(|(key, [a, b])| Some((*key, [number(a)?, number(b)?]))).collect();
    pairs.filter(|pairs| content.base == base && content.dtype == dtype && digest(pairs) == content.digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_they_were_and_damage_is_noticed() {
        let place = tempfile::tempdir().unwrap();
        let base = ModelDigest(Sha256::of("base"));
        let open = |dtype| ReferenceCache::open(place.path(), base, dtype).unwrap();
        let (mut cache, notice) = open(Dtype::Fp32);
        assert!(cache.known.is_empty() && notice.is_none());
        let pairs = [[-0.1, -1e300], [f64::NEG_INFINITY, -1.0 / 3.0]];
        for (at, pair) in pairs.iter().enumerate() {
            cache.known.insert(Sha256::of([at as u8]), *pair);
        }
        cache.save(base, Dtype::Fp32).unwrap();
        let (read, notice) = open(Dtype::Fp32);
        assert_eq!((read.known, notice), (cache.known.clone(), None));
        assert!(open(Dtype::Bf16).0.known.is_empty());
        let text = std::fs::read_to_string(&cache.path).unwrap();
        let bits = format!("{:016x}", (-0.1_f64).to_bits());
        std::fs::write(&cache.path, text.replace(&bits, &format!("{:016x}", (-0.2_f64).to_bits()))).unwrap();
        let (read, notice) = open(Dtype::Fp32);
        assert!(read.known.is_empty() && notice.unwrap().contains("is damaged"));
    }
}
