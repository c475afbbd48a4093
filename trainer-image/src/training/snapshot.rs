//! All state of a run as one value of named tensors: its digest, and its form as a safetensors file. Pure, but for the
//! readers and writers that it is given.
//!
//! A file holds `parameters/NAME`, `first/NAME` and `second/NAME` for every tensor of the model, and what else changes from
//! step to step as one-dimensional tensors of `F64` or `U64`. It is what `safetensors::serialize` would write, but is
//! neither built nor read as one piece: a state can be larger than the memory that is left.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Seek, SeekFrom, Write},
    sync::Arc,
};

use codex_engine::{EngineState, Layout};
use codex_provenance::Sha256;
use safetensors::{
    Dtype, SafeTensorError,
    tensor::{Metadata, TensorInfo},
};
use sha2::Digest as _;

/// What a run remembers beside the engine's vectors, by name.
pub(super) type Rest = BTreeMap<String, Column>;

/// A column of numbers.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Column {
    /// Real numbers.
    F64(Vec<f64>),
    /// Counts.
    U64(Vec<u64>),
}

/// All state of a run after `step` steps.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Snapshot {
    /// Optimiser steps done.
    pub(super) step: u64,
    /// Parameters and moments.
    pub(super) engine: EngineState,
    /// Everything else.
    pub(super) rest: Rest,
}

/// The digest of a state and of each tensor in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Digests {
    /// Over the step and all tensors.
    pub(super) whole: Sha256,
    /// Over the name, type, shape and bytes of each.
    pub(super) tensors: BTreeMap<String, Sha256>,
}

/// A file that holds no state of this model.
#[derive(Debug, thiserror::Error)]
pub(super) enum SnapshotError {
    /// The file system refused, or the file ends early.
    #[error("cannot be read")]
    Read(#[source] io::Error),
    /// A header that cannot be.
    #[error("has a header of {length} bytes in a file of {size}: it is damaged")]
    HeaderLength {
        /// What the file says.
        length: u64,
        /// How long the file is.
        size: u64,
    },
    /// A header that is no JSON of the right shape.
    #[error("has a header that cannot be read")]
    Header(#[source] serde_json::Error),
    /// Tensors that do not lie side by side.
    #[error("has a header that cannot be true")]
    Tensors(#[from] SafeTensorError),
    /// More or less data than the header says.
    #[error("has {found} bytes of data, but its header speaks of {expected}: it is damaged")]
    Size {
        /// What there is.
        found: u64,
        /// What the header says.
        expected: u64,
    },
    /// A tensor that the model needs.
    #[error("lacks the tensor {0}")]
    Missing(String),
    /// A tensor of another type or shape.
    #[error("has {name} as {found}, but the model asks for {expected}")]
    Shape {
        /// The tensor.
        name: String,
        /// What it is.
        found: String,
        /// What it must be.
        expected: String,
    },
    /// Tensors that nobody asks for.
    #[error("holds tensors that this model does not have: {0}")]
    Unknown(String),
}

/// The numbers of one tensor.
#[derive(Clone, Copy)]
enum Numbers<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
    U64(&'a [u64]),
}

/// One tensor of a state.
struct Leaf<'a> {
    name: String,
    shape: Vec<usize>,
    numbers: Numbers<'a>,
}

const PARAMETERS: &str = "parameters";
const FIRST: &str = "first";
const SECOND: &str = "second";
/// Numbers that are turned into bytes at once.
const PIECE: usize = 1 << 14;
/// The most bytes of a header; safetensors' own limit is the same.
const MAX_HEADER: u64 = 100_000_000;

fn pieces<const N: usize, T: Copy>(
    numbers: &[T],
    bytes: impl Fn(T) -> [u8; N],
    sink: &mut impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; N * PIECE.min(numbers.len())];
    for piece in numbers.chunks(PIECE) {
        let buffer = &mut buffer[..N * piece.len()];
        for (out, number) in buffer.chunks_exact_mut(N).zip(piece) {
            out.copy_from_slice(&bytes(*number));
        }
        sink(buffer)?;
    }
    Ok(())
}

impl Leaf<'_> {
    fn dtype(&self) -> Dtype {
        match self.numbers {
            Numbers::F32(_) => Dtype::F32,
            Numbers::F64(_) => Dtype::F64,
            Numbers::U64(_) => Dtype::U64,
        }
    }

    fn size(&self) -> usize {
        match self.numbers {
            Numbers::F32(numbers) => size_of_val(numbers),
            Numbers::F64(numbers) => size_of_val(numbers),
            Numbers::U64(numbers) => size_of_val(numbers),
        }
    }

    /// Hands the little-endian bytes over, piece by piece.
    fn bytes(&self, mut sink: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        match self.numbers {
            Numbers::F32(numbers) => pieces(numbers, f32::to_le_bytes, &mut sink),
            Numbers::F64(numbers) => pieces(numbers, f64::to_le_bytes, &mut sink),
            Numbers::U64(numbers) => pieces(numbers, u64::to_le_bytes, &mut sink),
        }
    }

    fn digest(&self) -> Sha256 {
        let mut hasher = tensor_hasher(&self.name, self.dtype(), &self.shape);
        let hashed = self.bytes(|bytes| {
            hasher.update(bytes);
            Ok(())
        });
        debug_assert!(hashed.is_ok(), "hashing does no I/O");
        Sha256::finish(hasher)
    }
}

/// A hasher that has seen what a tensor is, but for its bytes.
fn tensor_hasher(name: &str, dtype: Dtype, shape: &[usize]) -> sha2::Sha256 {
    let mut hasher = sha2::Sha256::new();
    hasher.update(format!("codex tensor 1\0{name}\0{dtype}\0"));
    hasher.update((shape.len() as u64).to_le_bytes());
    for extent in shape {
        hasher.update((*extent as u64).to_le_bytes());
    }
    hasher
}

impl Digests {
    fn of(step: u64, tensors: BTreeMap<String, Sha256>) -> Self {
        let mut hasher = sha2::Sha256::new();
        hasher.update(b"codex state 1\0");
        hasher.update(step.to_le_bytes());
        for (name, digest) in &tensors {
            hasher.update(name.as_bytes());
            hasher.update([0]);
            hasher.update(digest.bytes());
        }
        Self { whole: Sha256::finish(hasher), tensors }
    }
}

impl Snapshot {
    /// The tensors as they lie in the file: wide numbers first, so that all are aligned; then by name.
    fn leaves(&self) -> Vec<Leaf<'_>> {
        let EngineState { layout, parameters, first, second } = &self.engine;
        let mut leaves = Vec::new();
        for (group, vector) in [(PARAMETERS, parameters), (FIRST, first), (SECOND, second)] {
            leaves.extend(layout.tensors().iter().map(|tensor| Leaf {
                name: format!("{group}/{}", tensor.name),
                shape: tensor.shape.clone(),
                numbers: Numbers::F32(&vector[tensor.range.clone()]),
            }));
        }
        leaves.extend(self.rest.iter().map(|(name, column)| {
            let (length, numbers) = match column {
                Column::F64(numbers) => (numbers.len(), Numbers::F64(numbers)),
                Column::U64(numbers) => (numbers.len(), Numbers::U64(numbers)),
            };
            Leaf { name: name.clone(), shape: vec![length], numbers }
        }));
        leaves.sort_by(|a, b| b.dtype().cmp(&a.dtype()).then_with(|| a.name.cmp(&b.name)));
        leaves
    }

    /// The digest of the whole and of each tensor.
    pub(super) fn digests(&self) -> Digests {
        Digests::of(self.step, self.leaves().into_iter().map(|leaf| (leaf.name.clone(), leaf.digest())).collect())
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub(super) fn write(&self, mut out: impl Write) -> io::Result<()> {
        let leaves = self.leaves();
        let mut offset = 0;
        let infos = leaves.iter().map(|leaf| {
            let start = offset;
            offset += leaf.size();
            let info = TensorInfo { dtype: leaf.dtype(), shape: leaf.shape.clone(), data_offsets: (start, offset) };
            (leaf.name.clone(), info)
        });
        let metadata = Metadata::new(None, infos.collect()).map_err(io::Error::other)?;
        let mut header = serde_json::to_vec(&metadata)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for leaf in &leaves {
            leaf.bytes(|bytes| out.write_all(bytes))?;
        }
        Ok(())
    }

    /// Reads what [`write`](Self::write) wrote of a model of `layout`, and the digests of what was read.
    ///
    /// # Errors
    /// [`SnapshotError`] for every file that holds something else.
    pub(super) fn read(
        step: u64,
        layout: &Arc<Layout>,
        source: impl Read + Seek,
    ) -> Result<(Self, Digests), SnapshotError> {
        let mut reader = Reader::open(source)?;
        let mut read = |group: &str| -> Result<Vec<f32>, SnapshotError> {
            let mut numbers = vec![0.0; layout.size()];
            for tensor in layout.tensors() {
                let name = format!("{group}/{}", tensor.name);
                reader.floats(name, &tensor.shape, &mut numbers[tensor.range.clone()])?;
            }
            Ok(numbers)
        };
        let (parameters, first, second) = (read(PARAMETERS)?, read(FIRST)?, read(SECOND)?);
        let rest = reader.columns()?;
        let engine = EngineState { layout: layout.clone(), parameters, first, second };
        Ok((Self { step, engine, rest }, Digests::of(step, reader.digests)))
    }
}

/// Reads tensors of a file by name.
struct Reader<R> {
    source: R,
    /// Where the data begins.
    start: u64,
    metadata: Metadata,
    /// Of what was read so far.
    digests: BTreeMap<String, Sha256>,
}

impl<R: Read + Seek> Reader<R> {
    fn open(mut source: R) -> Result<Self, SnapshotError> {
        let size = source.seek(SeekFrom::End(0)).map_err(SnapshotError::Read)?;
        source.rewind().map_err(SnapshotError::Read)?;
        let mut length = [0; 8];
        source.read_exact(&mut length).map_err(SnapshotError::Read)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER.min(size - 8) {
            return Err(SnapshotError::HeaderLength { length, size });
        }
        let mut header = vec![0; length as usize];
        source.read_exact(&mut header).map_err(SnapshotError::Read)?;
        // `Metadata` deserialises through its own check that tensors lie side by side and are as large as their shapes.
        let metadata: Metadata = serde_json::from_slice(&header).map_err(SnapshotError::Header)?;
        let (found, expected) = (size - 8 - length, metadata.data_len() as u64);
        if found != expected {
            return Err(SnapshotError::Size { found, expected });
        }
        Ok(Self { source, start: 8 + length, metadata, digests: BTreeMap::new() })
    }

    /// Reads the bytes of a tensor, piece by piece, and keeps its digest.
    fn bytes(&mut self, name: &str, mut sink: impl FnMut(&[u8])) -> Result<(), SnapshotError> {
        let info = self.metadata.info(name).ok_or_else(|| SnapshotError::Missing(name.to_owned()))?;
        let (start, end) = info.data_offsets;
        let mut hasher = tensor_hasher(name, info.dtype, &info.shape);
        self.source.seek(SeekFrom::Start(self.start + start as u64)).map_err(SnapshotError::Read)?;
        let mut left = end - start;
        let mut buffer = vec![0; left.min(8 * PIECE)];
        while left > 0 {
            let piece = &mut buffer[..left.min(8 * PIECE)];
            self.source.read_exact(piece).map_err(SnapshotError::Read)?;
            hasher.update(&*piece);
            sink(piece);
            left -= piece.len();
        }
        self.digests.insert(name.to_owned(), Sha256::finish(hasher));
        Ok(())
    }

    fn floats(&mut self, name: String, shape: &[usize], into: &mut [f32]) -> Result<(), SnapshotError> {
        let info = self.metadata.info(&name).ok_or_else(|| SnapshotError::Missing(name.clone()))?;
        if info.dtype != Dtype::F32 || info.shape != shape {
            let found = format!("{} {:?}", info.dtype, info.shape);
            return Err(SnapshotError::Shape { name, found, expected: format!("F32 {shape:?}") });
        }
        let mut into = into.iter_mut();
        self.bytes(&name, |piece| {
            for (bytes, number) in piece.as_chunks().0.iter().zip(&mut into) {
                *number = f32::from_le_bytes(*bytes);
            }
        })
    }

    /// Everything that was not read yet.
    fn columns(&mut self) -> Result<Rest, SnapshotError> {
        let left = self.metadata.offset_keys().into_iter().filter(|name| !self.digests.contains_key(name));
        let (mut rest, mut unknown) = (Rest::new(), BTreeSet::new());
        for name in left.collect::<Vec<_>>() {
            let Some(info) = self.metadata.info(&name) else { continue };
            let column = match (info.dtype, info.shape.len()) {
                (Dtype::F64, 1) => {
                    let mut numbers = Vec::with_capacity(info.shape[0]);
                    self.bytes(&name, |piece| {
                        numbers.extend(piece.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)));
                    })?;
                    Column::F64(numbers)
                }
                (Dtype::U64, 1) => {
                    let mut numbers = Vec::with_capacity(info.shape[0]);
                    self.bytes(&name, |piece| {
                        numbers.extend(piece.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)));
                    })?;
                    Column::U64(numbers)
                }
                _ => {
                    unknown.insert(name);
                    continue;
                }
            };
            rest.insert(name, column);
        }
        if unknown.is_empty() {
            return Ok(rest);
        }
        Err(SnapshotError::Unknown(unknown.into_iter().collect::<Vec<_>>().join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;
    use safetensors::tensor::TensorView;

    use super::*;

    fn layout() -> Arc<Layout> {
        let tensors = [("model.b.weight", vec![3, 5]), ("model.a.weight", vec![7]), ("model.norm.weight", vec![1])];
        Arc::new(Layout::new(tensors.map(|(name, shape)| (name.to_owned(), shape))))
    }

    fn snapshot() -> Snapshot {
        let layout = layout();
        let numbers = |by: f32| (0..layout.size()).map(|x| x as f32 * by).collect::<Vec<_>>();
        let (parameters, first, second) = (numbers(0.25), numbers(-1e-20), numbers(f32::NAN));
        let rest = Rest::from([
            ("spikes/loss".to_owned(), Column::F64(vec![1.5, f64::INFINITY, -0.0])),
            ("counters".to_owned(), Column::U64(vec![u64::MAX, 0])),
            ("empty".to_owned(), Column::F64(Vec::new())),
        ]);
        Snapshot { step: 7, engine: EngineState { layout, parameters, first, second }, rest }
    }

    fn file(snapshot: &Snapshot) -> Vec<u8> {
        let mut bytes = Vec::new();
        snapshot.write(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_file_is_what_safetensors_writes_and_reads_back_with_the_same_digests() {
        let snapshot = snapshot();
        let bytes = file(&snapshot);
        let leaves = snapshot.leaves();
        let data: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = leaves
            .iter()
            .map(|leaf| {
                let mut bytes = Vec::new();
                leaf.bytes(|piece| bytes.write_all(piece)).unwrap();
                (leaf.name.clone(), leaf.dtype(), leaf.shape.clone(), bytes)
            })
            .collect();
        let views = data
            .iter()
            .map(|(name, dtype, shape, bytes)| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
        assert!(bytes == safetensors::serialize(views, None).unwrap());
        let (read, digests) = Snapshot::read(7, &layout(), Cursor::new(&bytes)).unwrap();
        assert!(file(&read) == bytes, "NaN keeps its bits");
        assert_eq!(digests, snapshot.digests());
    }

    #[test]
    fn a_difference_names_its_tensor() {
        let (a, mut b) = (snapshot(), snapshot());
        b.engine.second[16] = f32::from_bits(b.engine.second[16].to_bits() ^ 1);
        let (a, b) = (a.digests(), b.digests());
        assert_ne!(a.whole, b.whole);
        let differing: Vec<_> = a.tensors.iter().filter(|(name, digest)| b.tensors[*name] != **digest).collect();
        assert_eq!(differing.len(), 1);
        assert_eq!(differing[0].0, "second/model.a.weight");
        let mut later = snapshot();
        later.step += 1;
        assert_ne!(later.digests().whole, a.whole, "the step is part of the state");
    }

    #[test]
    fn another_model_s_file_is_refused() {
        let bytes = file(&snapshot());
        let said = |tensors: &[(&str, &[usize])]| {
            let layout = Layout::new(tensors.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())));
            Snapshot::read(7, &Arc::new(layout), Cursor::new(&bytes)).unwrap_err().to_string()
        };
        let (a, b): (&[usize], &[usize]) = (&[7], &[3, 5]);
        assert_eq!(said(&[("model.c.weight", a)]), "lacks the tensor parameters/model.c.weight");
        assert!(said(&[("model.a.weight", b)]).contains("F32 [7], but the model asks for F32 [3, 5]"));
        assert!(said(&[("model.a.weight", a), ("model.b.weight", b)]).contains("first/model.norm.weight"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Whatever happens to a file's bytes, it is read as a state or refused; and what is read is what was written, or
        /// has another digest.
        #[test]
        fn mutated_bytes_never_panic(
            cut in 0_usize..2000,
            changes in prop::collection::vec((0_usize..2000, any::<u8>()), 0..4),
        ) {
            let snapshot = snapshot();
            let whole = file(&snapshot);
            let mut bytes = whole.clone();
            for (at, value) in changes {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            bytes.truncate(bytes.len() - cut % 40 * usize::from(cut > 1000));
            if let Ok((_, digests)) = Snapshot::read(7, &layout(), Cursor::new(&bytes)) {
                prop_assert_eq!(digests == snapshot.digests(), bytes == whole || same_data(&bytes, &whole));
            }
        }

        #[test]
        fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), json in "\\{\\PC{0,80}\\}") {
            prop_assert!(Snapshot::read(7, &layout(), Cursor::new(&bytes)).is_err());
            let framed = [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &bytes].concat();
            prop_assert!(Snapshot::read(7, &layout(), Cursor::new(&framed)).is_err());
        }
    }

    /// A byte of the header may change without a change of meaning (white space, an escape).
    fn same_data(a: &[u8], b: &[u8]) -> bool {
        let tensors = |bytes: &[u8]| {
            let read = safetensors::SafeTensors::deserialize(bytes).unwrap();
            let mut tensors: Vec<_> = read
                .iter()
                .map(|(name, view)| (name.to_owned(), view.dtype(), view.shape().to_vec(), view.data().to_vec()))
                .collect();
            tensors.sort();
            tensors
        };
        tensors(a) == tensors(b)
    }
}
