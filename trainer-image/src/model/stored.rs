//! Weights of which any range can be read: in files, safetensors in one file or in shards, or in memory. Reads files. Files that
//! were hashed give only the bytes that were hashed.
//!
//! A decoder asks for small ranges of parameters, so that loading needs little memory beside the decoder's own.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use codex_engine::{Layout, Precision};
use codex_provenance::sealed::{Held, PIECE, Sealed};
use safetensors::{Dtype, tensor::TensorView};
use serde::Deserialize;

use super::{
    files::{ModelError, WEIGHTS},
    weights::{BUFFERS, HEAD, INDEX, Index, convert, short, width},
};
use crate::atomic_fs::{self, FileError};

/// The longest header of a file of weights in bytes, as in `safetensors`.
const MAX_HEADER: u64 = 100_000_000;
/// Values that are compared at once.
const CHUNK: usize = 1 << 20;
/// Bytes that are read at once: they stay in the cache until they are converted. Reads end at a multiple of it, so that hashed files are
/// read in whole pieces, without a copy.
const READ: usize = 4 * PIECE;

/// The values of a tensor, in memory or in a file.
pub(super) trait Values {
    /// Returns the type of the values.
    fn dtype(&self) -> Dtype;

    /// Returns the shape.
    fn shape(&self) -> &[usize];

    /// Reads values from the `first` on.
    ///
    /// # Errors
    /// When the file cannot be read.
    fn read(&self, first: usize, to: &mut [f32]) -> Result<(), ModelError>;
}

/// The weights of a model, from which any range of parameters can be read.
#[derive(Debug)]
pub(super) struct Stored<V> {
    /// In the order of the layout.
    tensors: Vec<Part<V>>,
}

/// A tensor of the layout.
#[derive(Debug)]
struct Part<V> {
    name: String,
    /// Its range among the parameters.
    range: Range<usize>,
    values: V,
}

/// The place of a tensor's bytes in a file.
#[derive(Clone, Debug)]
pub(super) struct Place {
    file: Arc<Source>,
    start: u64,
    dtype: Dtype,
    shape: Vec<usize>,
}

/// A file of weights.
#[derive(Debug)]
enum Source {
    /// A file as it is.
    Open(PathBuf, File),
    /// A file that was hashed.
    Sealed(Arc<Sealed>),
    /// Bytes in memory.
    Memory(Vec<u8>),
}

impl Source {
    /// Opens a file of a directory.
    fn open(directory: &Path, name: &str) -> Result<Self, ModelError> {
        let path = directory.join(name);
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ModelError::Missing(name.to_owned())),
            opened => {
                let file = opened.map_err(FileError::of("opening", &path))?;
                Ok(Self::Open(path, file))
            }
        }
    }

    fn size(&self) -> Result<u64, FileError> {
        match self {
            Self::Open(path, file) => Ok(file.metadata().map_err(FileError::of("reading", path))?.len()),
            Self::Sealed(sealed) => Ok(sealed.size()),
            Self::Memory(bytes) => Ok(bytes.len() as u64),
        }
    }

    /// Reads exactly as many bytes as `to` has.
    fn read(&self, to: &mut [u8], offset: u64) -> Result<(), FileError> {
        match self {
            Self::Open(path, file) => file.read_exact_at(to, offset).map_err(FileError::of("reading", path)),
            Self::Sealed(sealed) => sealed.read_at(to, offset).map_err(FileError::of("reading", sealed.path())),
            Self::Memory(bytes) => {
                let there = bytes.get(offset as usize..).and_then(|rest| rest.get(..to.len()));
                let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
                to.copy_from_slice(there.ok_or_else(cut).map_err(FileError::of("reading", Path::new(WEIGHTS)))?);
                Ok(())
            }
        }
    }
}

/// An entry of a file's header.
#[derive(Deserialize)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

impl Stored<Place> {
    /// Opens the weights of a directory and checks that they are those of `layout`.
    ///
    /// # Errors
    /// A file is missing or damaged, and as [`of`](Self::of).
    pub(super) fn open(directory: &Path, layout: &Layout) -> Result<Self, ModelError> {
        let index = if !directory.join(WEIGHTS).exists() && directory.join(INDEX).exists() {
            Some(atomic_fs::read(&directory.join(INDEX))?)
        } else {
            None
        };
        Self::of(tensors(index.as_deref(), |name| Source::open(directory, name))?, layout)
    }

    /// As [`open`](Self::open), for files that were hashed: it reads exactly those bytes.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(super) fn held(held: Held, layout: &Layout) -> Result<Self, ModelError> {
        let Held { mut files, mut sealed } = held;
        let whole = files.contains_key(WEIGHTS) || sealed.contains_key(WEIGHTS);
        let index = files.remove(INDEX).filter(|_| !whole);
        let all = tensors(index.as_deref(), |name| {
            let file = sealed.remove(name).map(Source::Sealed);
            file.or_else(|| files.remove(name).map(Source::Memory)).ok_or_else(|| ModelError::Missing(name.to_owned()))
        });
        Self::of(all?, layout)
    }
}

impl<V: Values> Stored<V> {
    /// Checks that tensors, by their short names, are those of `layout`.
    ///
    /// # Errors
    /// When a tensor is missing, has another shape or an unsupported type, or the model has no place for it.
    pub(super) fn of(mut stored: BTreeMap<String, V>, layout: &Layout) -> Result<Self, ModelError> {
        let mut tensors = Vec::new();
        for part in layout.tensors() {
            let values =
                stored.remove(short(&part.name)).ok_or_else(|| ModelError::WeightMissing(part.name.clone()))?;
            if values.shape() != part.shape || width(values.dtype()).is_none() {
                return Err(ModelError::Weight {
                    name: part.name.clone(),
                    found: format!("{:?} {:?}", values.dtype(), values.shape()),
                    expected: format!("F32, F16 or BF16 {:?}", part.shape),
                });
            }
            tensors.push(Part { name: part.name.clone(), range: part.range.clone(), values });
        }
        let this = Self { tensors };
        for (name, values) in stored {
            let copied = name == HEAD && this.is_embedding(&values)?;
            if !copied && !BUFFERS.iter().any(|buffer| name.ends_with(buffer)) {
                return Err(ModelError::WeightUnused(name));
            }
        }
        Ok(this)
    }

    /// Returns the precision that keeps these weights: `bf16` if all of them are.
    pub(super) fn precision(&self) -> Precision {
        if self.tensors.iter().all(|part| part.values.dtype() == Dtype::BF16) {
            Precision::Bf16
        } else {
            Precision::F32
        }
    }

    /// Reads a range of parameters in the order of the layout.
    ///
    /// # Errors
    /// When a file cannot be read, or a value is not finite.
    pub(super) fn read(&self, range: Range<usize>, to: &mut [f32]) -> Result<(), ModelError> {
        let first = self.tensors.partition_point(|part| part.range.end <= range.start);
        let mut done = 0;
        for part in &self.tensors[first..] {
            if done == to.len() {
                break;
            }
            let start = range.start + done - part.range.start;
            let count = (part.range.len() - start).min(to.len() - done);
            let here = &mut to[done..done + count];
            part.values.read(start, here)?;
            if let Some(at) = codex_engine::first_not_finite(here) {
                return Err(ModelError::NotFinite { name: part.name.clone(), at: start + at, value: here[at] });
            }
            done += count;
        }
        Ok(())
    }

    /// Returns whether a tensor equals the embedding: some libraries save the tied output projection as a copy.
    fn is_embedding(&self, values: &V) -> Result<bool, ModelError> {
        let Some(embedding) = self.tensors.first().filter(|part| part.values.shape() == values.shape()) else {
            return Ok(false);
        };
        if width(values.dtype()).is_none() {
            return Ok(false);
        }
        let size = embedding.range.len();
        let (mut one, mut two) = (vec![0.0; CHUNK.min(size)], vec![0.0; CHUNK.min(size)]);
        for start in (0..size).step_by(CHUNK) {
            let count = CHUNK.min(size - start);
            embedding.values.read(start, &mut one[..count])?;
            values.read(start, &mut two[..count])?;
            if one[..count] != two[..count] {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Values for TensorView<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype()
    }

    fn shape(&self) -> &[usize] {
        self.shape()
    }

    fn read(&self, first: usize, to: &mut [f32]) -> Result<(), ModelError> {
        let width = width(self.dtype()).unwrap_or(4);
        convert(self.dtype(), &self.data()[width * first..width * (first + to.len())], to);
        Ok(())
    }
}

impl Values for Place {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn read(&self, first: usize, to: &mut [f32]) -> Result<(), ModelError> {
        let width = width(self.dtype).unwrap_or(4);
        let mut bytes = vec![0; READ.min(width * to.len())];
        let (mut offset, mut rest) = (self.start + (width * first) as u64, to);
        while !rest.is_empty() {
            let room = READ - (offset % READ as u64) as usize;
            // The bytes of a value may lie in two pieces.
            let count = (room / width).clamp(1, rest.len());
            let (now, after) = rest.split_at_mut(count);
            let bytes = &mut bytes[..width * count];
            self.file.read(bytes, offset)?;
            convert(self.dtype, bytes, now);
            (offset, rest) = (offset + bytes.len() as u64, after);
        }
        Ok(())
    }
}

/// Returns the places of the tensors of all files by their short names. With an index, these are the files that it names.
fn tensors(
    index: Option<&[u8]>,
    mut open: impl FnMut(&str) -> Result<Source, ModelError>,
) -> Result<BTreeMap<String, Place>, ModelError> {
    let mut names = vec![WEIGHTS.to_owned()];
    if let Some(index) = index {
        let index: Index = codex_json::from_slice(index).map_err(|source| ModelError::Json { file: INDEX, source })?;
        names = index.files();
    }
    let mut all = BTreeMap::new();
    for name in names {
        // The index is part of the model: it must not name files elsewhere.
        if Path::new(&name).file_name().is_none_or(|file| file != name.as_str()) {
            return Err(ModelError::Missing(name));
        }
        for (tensor, place) in header(open(&name)?, &name)? {
            if all.insert(short(&tensor).to_owned(), place).is_some() {
                return Err(ModelError::WeightRepeated { file: name, name: tensor });
            }
        }
    }
    Ok(all)
}

/// Reads the header of a file.
fn header(file: Source, name: &str) -> Result<Vec<(String, Place)>, ModelError> {
    let size = file.size()?;
    let damaged = |why: String| ModelError::Header { file: name.to_owned(), why };
    let mut length = [0; 8];
    if size < 8 {
        return Err(damaged(format!("it has {size} bytes")));
    }
    file.read(&mut length, 0)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || length > size - 8 {
        return Err(damaged(format!("its header claims more bytes than the file has, which are {size}")));
    }
    let mut bytes = vec![0; length as usize];
    file.read(&mut bytes, 8)?;
    let entries: BTreeMap<String, serde_json::Value> =
        codex_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    let file = Arc::new(file);
    let data = 8 + length;
    let mut tensors = Vec::new();
    for (tensor, entry) in entries {
        if tensor == "__metadata__" {
            continue;
        }
        let entry: Entry = codex_json::from_value(entry).map_err(|error| damaged(format!("{tensor}: {error}")))?;
        let Entry { dtype, shape, data_offsets: (start, end) } = entry;
        let count = shape.iter().try_fold(1_usize, |count, size| count.checked_mul(*size));
        let expected = count.and_then(|count| count.checked_mul(dtype.bitsize())).map(|bits| (bits / 8) as u64);
        if end > size - data || Some(end.wrapping_sub(start)) != expected || start > end {
            return Err(damaged(format!(
                "{tensor} lies at {start} to {end}, which does not fit its shape or the file"
            )));
        }
        tensors.push((tensor, Place { file: Arc::clone(&file), start: data + start, dtype, shape }));
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use codex_engine::ModelConfig;
    use proptest::prelude::*;

    use super::*;
    use crate::model::{files::read_directory, weights};

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/fixtures").join(name)
    }

    fn layout(name: &str) -> Layout {
        Layout::of(&ModelConfig::parse(&std::fs::read(fixture(name).join("config.json")).unwrap()).unwrap())
    }

    #[test]
    fn any_range_is_what_the_files_hold() {
        for name in ["llama-f16-sharded", "gpt2-f32", "trained"] {
            let layout = layout(name);
            let all = weights::parameters(&read_directory(&fixture(name)).unwrap(), &layout).unwrap();
            let stored = Stored::open(&fixture(name), &layout).unwrap();
            for step in [all.len(), 1000, 37] {
                for start in (0..all.len()).step_by(step.max(all.len() / 20)) {
                    let end = all.len().min(start + step);
                    let mut found = vec![0.0; end - start];
                    stored.read(start..end, &mut found).unwrap();
                    assert!(found == all[start..end], "{name} {start}..{end}");
                }
            }
            assert_eq!(stored.precision(), Precision::F32);
        }
    }

    /// The files of a fixture: its weights hashed, or all of them in memory.
    fn held(path: &Path, sealed: bool) -> Held {
        let entries = codex_provenance::files::walk(path, &std::collections::BTreeSet::new()).unwrap();
        let (manifest, held) =
            codex_provenance::manifest::Manifest::hold(&entries, |name| !sealed || !name.ends_with(".safetensors"))
                .unwrap();
        assert_eq!(held.sealed.is_empty(), !sealed);
        assert_eq!(manifest, codex_provenance::manifest::Manifest::of_dir(path).unwrap());
        held
    }

    #[test]
    fn hashed_files_give_the_same_weights() {
        for name in ["llama-f16-sharded", "gpt2-f32", "trained"] {
            let layout = layout(name);
            let all = weights::parameters(&read_directory(&fixture(name)).unwrap(), &layout).unwrap();
            for sealed in [false, true] {
                let stored = Stored::held(held(&fixture(name), sealed), &layout).unwrap();
                let mut found = vec![0.0; all.len()];
                stored.read(0..all.len(), &mut found).unwrap();
                assert!(found == all, "{name}");
            }
        }
        let mut without = held(&fixture("trained"), true);
        without.sealed.clear();
        let refused = Stored::held(without, &layout("trained")).unwrap_err();
        assert!(matches!(refused, ModelError::Missing(_)), "{refused}");
    }

    /// Also where values begin at an odd byte, so that one lies in two pieces.
    #[test]
    fn values_across_pieces_are_what_the_file_holds() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(WEIGHTS);
        let bytes: Vec<u8> = (0..2 * READ + 3 * PIECE).map(|at| (at / 3 + at / PIECE) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let open = || Source::Open(path.clone(), File::open(&path).unwrap());
        let sealed = || Source::Sealed(Arc::new(Sealed::open(&path, u64::MAX).unwrap()));
        for (file, dtype) in
            [(open(), Dtype::F32), (sealed(), Dtype::F32), (open(), Dtype::BF16), (sealed(), Dtype::BF16)]
        {
            let (file, width) = (Arc::new(file), width(dtype).unwrap());
            for start in [0, 8, 7, PIECE - 1, READ - 3] {
                let count = (bytes.len() - start) / width;
                let mut expected = vec![0.0; count];
                convert(dtype, &bytes[start..], &mut expected);
                let place = Place { file: Arc::clone(&file), start: start as u64, dtype, shape: vec![count] };
                for range in [0..count, 1..count - 1, READ / width - 2..READ / width + 2, 5..5] {
                    let mut found = vec![0.0; range.len()];
                    place.read(range.start, &mut found).unwrap();
                    let same = found.iter().zip(&expected[range.clone()]).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{dtype:?} from {start}, {range:?}");
                }
            }
        }
    }

    #[test]
    fn weights_that_change_after_they_were_hashed_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        for (name, bytes) in read_directory(&fixture("trained")).unwrap() {
            std::fs::write(directory.path().join(name), bytes).unwrap();
        }
        let layout = layout("trained");
        let held = held(directory.path(), true);
        let path = directory.path().join(WEIGHTS);
        let size = std::fs::metadata(&path).unwrap().len();
        File::options().write(true).open(&path).unwrap().write_all_at(&[0x7f], size - 1).unwrap();
        let refused = crate::error::chain(&Stored::held(held, &layout).unwrap_err());
        assert!(refused.contains("changed after they were first read") && refused.contains(WEIGHTS), "{refused}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// A damaged header is refused in one sentence, or leaves every tensor in its place and shape.
        #[test]
        fn a_damaged_header_is_read_or_refused(
            changes in prop::collection::vec((0_usize..1200, any::<u8>()), 1..8), cut in prop::option::of(0_usize..3000),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let mut bytes = std::fs::read(fixture("trained").join(WEIGHTS)).unwrap();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            bytes.truncate(cut.unwrap_or(bytes.len()));
            std::fs::write(directory.path().join(WEIGHTS), bytes).unwrap();
            let layout = layout("trained");
            match Stored::open(directory.path(), &layout) {
                Ok(stored) => {
                    let mut all = vec![0.0; layout.size()];
                    let _ = stored.read(0..all.len(), &mut all);
                }
                Err(error) => {
                    let said = error.to_string();
                    prop_assert!(said.contains(WEIGHTS) && !said.contains('\n'), "{said}");
                }
            }
        }
    }

    #[test]
    fn an_index_cannot_name_files_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["/etc/passwd", "../x", "a/b", ""] {
            let index = serde_json::json!({"weight_map": {"a": name}}).to_string();
            std::fs::write(directory.path().join(INDEX), index).unwrap();
            let refused = Stored::open(directory.path(), &layout("trained")).unwrap_err();
            assert!(matches!(refused, ModelError::Missing(_)), "{name}: {refused}");
        }
    }
}
