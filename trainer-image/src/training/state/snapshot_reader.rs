//! Reading of snapshots: a safetensors file is read tensor by tensor, checked against the layout of the model and hashed. Pure,
//! except for the given readers.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Seek, SeekFrom},
    sync::Arc,
};

use codex_engine::{EightBit, EngineState, Layout, Moments, TensorNumbersMut};
use codex_provenance::Sha256;
use safetensors::{Dtype, SafeTensorError, tensor::Metadata};
use sha2::Digest as _;

use super::snapshot::{
    AVERAGE, Column, Columns, Digests, FIRST, FIRST_SCALE, PARAMETERS, PIECE, SECOND, SECOND_SCALE, Snapshot,
    tensor_hasher,
};

/// Maximum size of a header in bytes; the limit of safetensors itself.
const MAX_HEADER: u64 = 100_000_000;

/// A file that does not hold a state of this model.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    /// Reading failed, or the file ends early.
    #[error("cannot be read")]
    Read(#[source] io::Error),
    /// The length of the header is impossible.
    #[error("is damaged: its header claims more bytes than the file has, which are {size}")]
    HeaderLength {
        /// Size of the file.
        size: u64,
    },
    /// The header is not valid JSON of the right shape.
    #[error("has an invalid header")]
    Header(#[source] serde_json::Error),
    /// The tensors overlap or leave gaps.
    #[error("has a header with inconsistent tensors")]
    Tensors(#[from] SafeTensorError),
    /// The amount of data differs from the header.
    #[error("is damaged: it has {found} bytes of data, but its header lists {expected}")]
    Size {
        /// Bytes of data.
        found: u64,
        /// Bytes according to the header.
        expected: u64,
    },
    /// A tensor of the model is missing.
    #[error("lacks the tensor {0}")]
    Missing(String),
    /// A tensor has another type or shape.
    #[error("has {name} as {found}, but the model expects {expected}")]
    Shape {
        /// Name of the tensor.
        name: String,
        /// Type and shape in the file.
        found: String,
        /// Type and shape of the model.
        expected: String,
    },
    /// The file has tensors that the model does not have.
    #[error("has tensors that this model does not have: {0}")]
    Unknown(String),
}

impl Snapshot {
    /// Reads a file that [`write`](Self::write) wrote for a model of `layout`, and computes its digests.
    ///
    /// # Errors
    /// [`SnapshotError`] for any other file.
    pub(crate) fn read(
        step: u64,
        layout: &Arc<Layout>,
        source: impl Read + Seek,
    ) -> Result<(Self, Digests), SnapshotError> {
        let mut reader = Reader::open(source)?;
        let averaged = layout
            .tensors()
            .first()
            .is_some_and(|tensor| reader.metadata.info(&format!("{AVERAGE}/{}", tensor.name)).is_some());
        let parameters = reader.vector(layout, PARAMETERS)?;
        let is_coded =
            |name: &str| reader.metadata.info(&format!("{FIRST}/{name}")).is_some_and(|info| info.dtype == Dtype::U8);
        let moments = if layout.tensors().iter().any(|tensor| is_coded(&tensor.name)) {
            let mut moments = Moments::zero_in_eight_bits(layout);
            if let Moments::EightBit { first, second } = &mut moments {
                reader.coded(layout, first, [FIRST, FIRST_SCALE])?;
                reader.coded(layout, second, [SECOND, SECOND_SCALE])?;
            }
            moments
        } else {
            Moments::F32 { first: reader.vector(layout, FIRST)?, second: reader.vector(layout, SECOND)? }
        };
        let average = averaged.then(|| reader.vector(layout, AVERAGE)).transpose()?;
        let rest = reader.columns()?;
        let engine = EngineState { layout: layout.clone(), parameters, moments, average };
        Ok((Self { step, engine, rest }, Digests::of(step, reader.digests)))
    }
}

/// Reads tensors of a file by name and collects their digests.
struct Reader<R> {
    source: R,
    /// Offset of the data.
    start: u64,
    metadata: Metadata,
    /// Digests of the tensors read so far.
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
            return Err(SnapshotError::HeaderLength { size });
        }
        let mut header = vec![0; length as usize];
        source.read_exact(&mut header).map_err(SnapshotError::Read)?;
        // Deserializing `Metadata` checks that tensors are contiguous and match their shapes.
        let metadata: Metadata = codex_json::from_slice(&header).map_err(SnapshotError::Header)?;
        let (found, expected) = (size - 8 - length, metadata.data_len() as u64);
        if found != expected {
            return Err(SnapshotError::Size { found, expected });
        }
        Ok(Self { source, start: 8 + length, metadata, digests: BTreeMap::new() })
    }

    /// Reads the bytes of a tensor, piece by piece, and records its digest.
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

    /// Reads a group of tensors, one number for each parameter.
    fn vector(&mut self, layout: &Layout, group: &str) -> Result<Vec<f32>, SnapshotError> {
        let mut numbers = vec![0.0; layout.size()];
        for tensor in layout.tensors() {
            let name = format!("{group}/{}", tensor.name);
            self.floats(&name, &tensor.shape, &mut numbers[tensor.range.clone()])?;
        }
        Ok(numbers)
    }

    /// Reads moments in eight bits.
    fn coded(&mut self, layout: &Layout, into: &mut EightBit, [group, scale]: [&str; 2]) -> Result<(), SnapshotError> {
        for (tensor, numbers) in layout.tensors().iter().zip(into.tensors_mut(layout)) {
            let name = format!("{group}/{}", tensor.name);
            match numbers {
                TensorNumbersMut::Small(small) => self.floats(&name, &tensor.shape, small)?,
                TensorNumbersMut::Coded(codes, scales) => {
                    self.expect(&name, Dtype::U8, &tensor.shape)?;
                    let mut codes = codes.iter_mut();
                    self.bytes(&name, |piece| {
                        codes.by_ref().zip(piece).for_each(|(code, byte)| *code = *byte);
                    })?;
                    self.floats(&format!("{scale}/{}", tensor.name), &[scales.len()], scales)?;
                }
            }
        }
        Ok(())
    }

    /// Checks the type and the shape of a tensor.
    fn expect(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<(), SnapshotError> {
        let info = self.metadata.info(name).ok_or_else(|| SnapshotError::Missing(name.to_owned()))?;
        if info.dtype == dtype && info.shape == shape {
            return Ok(());
        }
        let found = format!("{} {:?}", info.dtype, info.shape);
        Err(SnapshotError::Shape { name: name.to_owned(), found, expected: format!("{dtype} {shape:?}") })
    }

    fn floats(&mut self, name: &str, shape: &[usize], into: &mut [f32]) -> Result<(), SnapshotError> {
        self.expect(name, Dtype::F32, shape)?;
        let mut into = into.iter_mut();
        self.bytes(name, |piece| {
            for (bytes, number) in piece.as_chunks().0.iter().zip(&mut into) {
                *number = f32::from_le_bytes(*bytes);
            }
        })
    }

    /// Reads all tensors that were not read yet.
    fn columns(&mut self) -> Result<Columns, SnapshotError> {
        let left = self.metadata.offset_keys().into_iter().filter(|name| !self.digests.contains_key(name));
        let (mut rest, mut unknown) = (Columns::new(), BTreeSet::new());
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
    use std::io::{Cursor, Write as _};

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
        let moments = Moments::F32 { first, second };
        let rest = Columns::from([
            ("spikes/loss".to_owned(), Column::F64(vec![1.5, f64::INFINITY, -0.0])),
            ("counters".to_owned(), Column::U64(vec![u64::MAX, 0])),
            ("empty".to_owned(), Column::F64(Vec::new())),
        ]);
        Snapshot { step: 7, engine: EngineState { layout, parameters, moments, average: None }, rest }
    }

    fn file(snapshot: &Snapshot) -> Vec<u8> {
        let mut bytes = Vec::new();
        snapshot.write(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_file_equals_that_of_safetensors_and_reads_back_with_the_same_digests() {
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
    fn moments_in_eight_bits_read_back_with_the_same_digests() {
        let shapes = [("model.a.weight", vec![70, 70]), ("model.norm.weight", vec![9]), ("model.b.weight", vec![4096])];
        let layout = Arc::new(Layout::new(shapes.map(|(name, shape)| (name.to_owned(), shape))));
        let parameters: Vec<f32> = (0..layout.size()).map(|at| at as f32).collect();
        let mut moments = Moments::zero_in_eight_bits(&layout);
        let Moments::EightBit { first, second } = &mut moments else { panic!("eight bits") };
        for (moments, salt) in [(first, 3), (second, 5)] {
            for numbers in moments.tensors_mut(&layout) {
                match numbers {
                    TensorNumbersMut::Small(small) => small.fill(salt as f32),
                    TensorNumbersMut::Coded(codes, scales) => {
                        codes.iter_mut().zip(0_usize..).for_each(|(code, at)| *code = (at * salt % 256) as u8);
                        scales.iter_mut().zip(1_u8..).for_each(|(scale, at)| *scale = f32::from(at) * 0.5);
                    }
                }
            }
        }
        let engine = EngineState { layout: layout.clone(), parameters, moments, average: None };
        let snapshot = Snapshot { step: 3, engine, rest: Columns::new() };
        let bytes = file(&snapshot);
        let (read, digests) = Snapshot::read(3, &layout, Cursor::new(&bytes)).unwrap();
        assert!(read == snapshot && digests == snapshot.digests());
        let names: Vec<&String> = digests.tensors.keys().filter(|name| name.contains("scale")).collect();
        assert_eq!(names.len(), 4, "{names:?}");
        let views = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(views.tensor("second/model.a.weight").unwrap().dtype(), Dtype::U8);
        assert_eq!(views.tensor("first/model.norm.weight").unwrap().dtype(), Dtype::F32);
        assert_eq!(views.tensor("first.scale/model.a.weight").unwrap().shape(), [20]);
    }

    #[test]
    fn a_difference_names_its_tensor() {
        let (a, mut b) = (snapshot(), snapshot());
        let Moments::F32 { second, .. } = &mut b.engine.moments else { panic!("f32") };
        second[16] = f32::from_bits(second[16].to_bits() ^ 1);
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
        assert!(said(&[("model.a.weight", b)]).contains("F32 [7], but the model expects F32 [3, 5]"));
        assert!(said(&[("model.a.weight", a), ("model.b.weight", b)]).contains("first/model.norm.weight"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Any mutated file is read as a state or refused, and a state that differs has another digest.
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

    /// Some bytes of the header can change without changing its meaning (white space, an escape).
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
