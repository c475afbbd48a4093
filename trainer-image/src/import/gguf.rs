//! A GGUF file: its metadata, and its tensors, which stay in the file until they are needed. Reads files.
//!
//! candle reads the header and dequantizes. What it does not bound is checked here: the size of the header, the alignment, and
//! the number of a tensor's elements.

use std::{
    fs::File,
    io::{Cursor, Read as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use candle_core::{
    Device,
    quantized::{
        GgmlDType,
        ggml_file::qtensor_from_ggml,
        gguf_file::{Content, TensorInfo, Value},
    },
};

use super::ImportError;

/// The longest header in bytes: metadata and the list of tensors.
const MAX_HEADER: u64 = 32 << 20;
/// The types that are dequantized.
const TYPES: [GgmlDType; 11] = [
    GgmlDType::F32,
    GgmlDType::F16,
    GgmlDType::BF16,
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];

/// An open file.
#[derive(Debug)]
pub(super) struct Gguf {
    path: PathBuf,
    file: File,
    size: u64,
    content: Content,
}

impl Gguf {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or has a header that is too long.
    pub(super) fn open(path: &Path) -> Result<Self, ImportError> {
        let io = |error| crate::atomic_fs::FileError::of("reading", path)(error);
        let damaged = |why: String| ImportError::Damaged { file: path.to_owned(), why };
        let file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let mut header = Vec::new();
        (&file).take(MAX_HEADER).read_to_end(&mut header).map_err(io)?;
        // The reader would quote the first bytes of another file.
        if !header.starts_with(b"GGUF") {
            return Err(damaged("it does not begin with GGUF".to_owned()));
        }
        if has_no_alignment(&header) {
            return Err(damaged("general.alignment is 0".to_owned()));
        }
        let mut cursor = Cursor::new(header);
        let content = Content::read(&mut cursor).map_err(|error| {
            let why = error.to_string().lines().next().unwrap_or_default().to_owned();
            let cut = if size > MAX_HEADER { " (headers above 32 MiB are not supported)" } else { "" };
            damaged(format!("{why}{cut}"))
        })?;
        for (name, info) in &content.tensor_infos {
            let count = info.shape.dims().iter().try_fold(1_usize, |count, size| count.checked_mul(*size));
            if count.is_none_or(|count| count as u64 > size.saturating_mul(8)) {
                return Err(damaged(format!("tensor {name} has the shape {:?}", info.shape.dims())));
            }
        }
        Ok(Self { path: path.to_owned(), file, size, content })
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    /// Returns a text of the metadata; `None` if there is none.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.value(key).and_then(|value| value.to_string().ok()).map(String::as_str)
    }

    /// Returns a whole number of the metadata; `None` if there is none.
    pub(super) fn number(&self, key: &str) -> Option<u64> {
        match self.value(key)? {
            Value::I32(number) => u64::try_from(*number).ok(),
            Value::I64(number) => u64::try_from(*number).ok(),
            value => value.to_u64().ok(),
        }
    }

    /// Returns a whole number that the file must have.
    ///
    /// # Errors
    /// The key is missing or has another type.
    pub(super) fn required(&self, key: &str) -> Result<usize, ImportError> {
        let number = self.number(key).and_then(|number| usize::try_from(number).ok());
        number.ok_or_else(|| ImportError::Key { key: key.to_owned(), what: "number" })
    }

    /// Returns a number with a fraction; `None` if there is none. The shortest decimal that gives the stored number is meant.
    pub(super) fn decimal(&self, key: &str) -> Option<f64> {
        match self.value(key)? {
            Value::F32(number) => number.to_string().parse().ok(),
            value => value.to_f64().ok(),
        }
    }

    /// Returns whether a flag is set; `None` if there is none.
    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        self.value(key)?.to_bool().ok()
    }

    /// Returns a list of texts.
    ///
    /// # Errors
    /// The key is missing or has another type.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<&str>, ImportError> {
        let wrong = || ImportError::Key { key: key.to_owned(), what: "list of texts" };
        let list = self.value(key).and_then(|value| value.to_vec().ok()).ok_or_else(wrong)?;
        list.iter().map(|text| text.to_string().map(String::as_str).map_err(|_| wrong())).collect()
    }

    /// Returns a list of whole numbers.
    ///
    /// # Errors
    /// The key is missing or has another type.
    pub(super) fn numbers(&self, key: &str) -> Result<Vec<i64>, ImportError> {
        let wrong = || ImportError::Key { key: key.to_owned(), what: "list of numbers" };
        let list = self.value(key).and_then(|value| value.to_vec().ok()).ok_or_else(wrong)?;
        let number = |value: &Value| match value {
            Value::I32(number) => Some(i64::from(*number)),
            Value::U32(number) => Some(i64::from(*number)),
            Value::I8(number) => Some(i64::from(*number)),
            Value::U8(number) => Some(i64::from(*number)),
            _ => None,
        };
        list.iter().map(|value| number(value).ok_or_else(wrong)).collect()
    }

    /// Returns a list of numbers with fractions.
    ///
    /// # Errors
    /// The key is missing or has another type.
    pub(super) fn decimals(&self, key: &str) -> Result<Vec<f64>, ImportError> {
        let wrong = || ImportError::Key { key: key.to_owned(), what: "list of numbers" };
        let list = self.value(key).and_then(|value| value.to_vec().ok()).ok_or_else(wrong)?;
        let number = |value: &Value| match value {
            Value::F32(number) => Some(f64::from(*number)),
            Value::F64(number) => Some(*number),
            _ => None,
        };
        list.iter().map(|value| number(value).ok_or_else(wrong)).collect()
    }

    /// Yields the names of all tensors.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &str> {
        self.content.tensor_infos.keys().map(String::as_str)
    }

    /// Returns the shape of a tensor: [outputs, inputs] or [width].
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(self.content.tensor_infos.get(name)?.shape.dims())
    }

    /// Reads rows of a tensor as f32. A tensor of one dimension is one row.
    ///
    /// # Errors
    /// The tensor is missing, has an unsupported type, lies outside the file, or has a value that is not finite.
    pub(super) fn rows(&self, name: &str, rows: std::ops::Range<usize>) -> Result<Vec<f32>, ImportError> {
        let damaged = |why: String| ImportError::Damaged { file: self.path.clone(), why };
        let TensorInfo { ggml_dtype, shape, offset } =
            self.content.tensor_infos.get(name).ok_or_else(|| ImportError::Missing(name.to_owned()))?;
        if !TYPES.contains(ggml_dtype) {
            let right = "use F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K";
            return Err(ImportError::unsupported(
                &format!("the type of tensor {name}"),
                format!("{ggml_dtype:?}"),
                right,
            ));
        }
        let width = shape.dims().last().copied().unwrap_or(1);
        let block = ggml_dtype.block_size();
        if width == 0 || width % block != 0 {
            return Err(damaged(format!("rows of tensor {name} have {width} values, not a multiple of {block}")));
        }
        let row = width / block * ggml_dtype.type_size();
        let place = |row_number: usize| {
            let inside = (row_number as u64).checked_mul(row as u64)?;
            self.content.tensor_data_offset.checked_add(*offset)?.checked_add(inside)
        };
        let outside = || damaged(format!("tensor {name} lies outside the file"));
        let (start, end) = (place(rows.start).ok_or_else(outside)?, place(rows.end).ok_or_else(outside)?);
        if end > self.size || start > end {
            return Err(outside());
        }
        let mut bytes = vec![0; (end - start) as usize];
        self.file.read_exact_at(&mut bytes, start).map_err(crate::atomic_fs::FileError::of("reading", &self.path))?;
        let dequantized = qtensor_from_ggml(*ggml_dtype, &bytes, vec![rows.len() * width], &Device::Cpu)
            .and_then(|tensor| tensor.dequantize(&Device::Cpu)?.to_vec1::<f32>())
            .map_err(|error| {
                damaged(format!("tensor {name}: {}", error.to_string().lines().next().unwrap_or_default()))
            })?;
        if dequantized.iter().any(|value| !value.is_finite()) {
            return Err(ImportError::NotFinite(name.to_owned()));
        }
        Ok(dequantized)
    }
}

/// Returns whether the header sets the alignment of tensors to 0, by which candle would divide.
fn has_no_alignment(header: &[u8]) -> bool {
    const KEY: &[u8] = b"general.alignment";
    header.windows(KEY.len()).enumerate().filter(|(_, window)| *window == KEY).any(|(at, _)| {
        // The type of the value, then the value, of which a whole number's lowest bytes come first.
        let value = &header[at + KEY.len()..];
        value.len() > 5 && value[4..].iter().take(2).all(|byte| *byte == 0)
    })
}
