//! The tensors of an adapter, and the modules of a base to which they are added. Pure.

use std::collections::BTreeMap;

use codex_engine::{Layout, add_low_rank};
use safetensors::{SafeTensors, tensor::TensorView};

use super::{config::AdapterConfig, error::AdapterError};
use crate::model::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, ModelFiles, convert, short, width};

/// What PEFT puts before the name of a module.
const PREFIX: &str = "base_model.model.";

/// An adapter that fits its base.
#[derive(Debug)]
pub(super) struct Adapter {
    scale: f32,
    /// By the short name of the weight.
    pairs: BTreeMap<String, Pair>,
}

/// The two matrices of a module.
#[derive(Debug)]
struct Pair {
    /// [rank, inputs].
    a: Vec<f32>,
    /// [outputs, rank].
    b: Vec<f32>,
    inputs: usize,
    outputs: usize,
    /// Whether the weight is stored [inputs, outputs], as in GPT-2.
    transposed: bool,
}

impl Adapter {
    /// Reads an adapter from its files, and checks that it is one of a model with this layout.
    ///
    /// # Errors
    /// A file or tensor is missing, invalid or not supported, or does not fit the model.
    pub(super) fn read(files: &ModelFiles, layout: &Layout) -> Result<Self, AdapterError> {
        let config = AdapterConfig::parse(files.get(ADAPTER_CONFIG).ok_or(AdapterError::Missing(ADAPTER_CONFIG))?)?;
        let modules = config.modules(layout)?;
        let bytes = files.get(ADAPTER_WEIGHTS).ok_or(AdapterError::Missing(ADAPTER_WEIGHTS))?;
        let stored = SafeTensors::deserialize(bytes).map_err(|error| AdapterError::Weights(header(&error)))?;
        let mut tensors: BTreeMap<String, TensorView> = stored.tensors().into_iter().collect();
        let mut pairs = BTreeMap::new();
        // GPT-2 keeps its matrices as [inputs, outputs]; its output projection is the embedding.
        let transposed = layout.tensors().first().is_some_and(|tensor| tensor.name.starts_with("transformer."));
        for (module, [rows, columns]) in modules {
            let [outputs, inputs] = if transposed { [columns, rows] } else { [rows, columns] };
            let mut take = |part: &str, expected: [usize; 2]| {
                let name = format!("{PREFIX}{module}.{part}.weight");
                match tensors.remove(&name) {
                    Some(tensor) => values(&name, &tensor, expected),
                    None => Err(AdapterError::TensorMissing(name)),
                }
            };
            let (a, b) = (take("lora_A", [config.rank, inputs])?, take("lora_B", [outputs, config.rank])?);
            pairs.insert(short(&format!("{module}.weight")).to_owned(), Pair { a, b, inputs, outputs, transposed });
        }
        match tensors.into_keys().next() {
            Some(unused) => Err(AdapterError::TensorUnused(unused)),
            None => Ok(Self { scale: config.scale, pairs }),
        }
    }

    /// Adds the adapter of a tensor of the base to its weight. Returns whether the tensor has one.
    pub(super) fn merge(&self, name: &str, weight: &mut [f32]) -> bool {
        let Some(Pair { a, b, inputs, outputs, transposed }) = self.pairs.get(short(name)) else { return false };
        if !transposed {
            add_low_rank(weight, a, b, *inputs, self.scale);
            return true;
        }
        let mut rows = vec![0.0; weight.len()];
        transpose(weight, *outputs, &mut rows);
        add_low_rank(&mut rows, a, b, *inputs, self.scale);
        transpose(&rows, *inputs, weight);
        true
    }
}

/// Transposes a matrix with rows of `width`.
fn transpose(from: &[f32], width: usize, to: &mut [f32]) {
    let height = from.len() / width;
    for (row, values) in from.chunks_exact(width).enumerate() {
        for (column, value) in values.iter().enumerate() {
            to[column * height + row] = *value;
        }
    }
}

/// Returns the values of a tensor.
fn values(name: &str, tensor: &TensorView, expected: [usize; 2]) -> Result<Vec<f32>, AdapterError> {
    let Some(bytes) = width(tensor.dtype()).filter(|_| tensor.shape() == expected) else {
        let (name, found) = (name.to_owned(), format!("{:?} {:?}", tensor.dtype(), tensor.shape()));
        return Err(AdapterError::Tensor { name, found, expected });
    };
    let mut values = vec![0.0; tensor.data().len() / bytes];
    convert(tensor.dtype(), tensor.data(), &mut values);
    match values.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(AdapterError::NotFinite { name: name.to_owned(), at, value: values[at] }),
        None => Ok(values),
    }
}

/// Returns what is wrong with the header, without a quotation of the file.
fn header(error: &safetensors::SafeTensorError) -> String {
    match error {
        safetensors::SafeTensorError::InvalidHeaderDeserialization(_) => {
            "its header is not that of a safetensors file".to_owned()
        }
        other => other.to_string(),
    }
}
