//! `codex quantize`: writes a model whose weights have eight bits. Reads and writes files.
//!
//! The numbers stay bf16 numbers, so that the directory is a model like any other: with a digest of its own, judged, signed and
//! served as what it is. A decoder notices that they fit into eight bits (see the engine's `cpu/eight.rs`).

use std::{
    fs,
    path::{Path, PathBuf},
};

use codex_engine::{Layout, Precision, round_to_eight_bits};
use codex_provenance::oms::SIGNATURE;

use crate::{
    atomic_fs,
    error::CommandError,
    model::{HEAD, ModelError, open, read_directory, rewrite, short},
    overlap::{self, Named, Overlap},
};

/// Write a model whose weights have eight bits, which a decoder holds in half the memory.
#[derive(Debug, clap::Args)]
pub struct Quantize {
    /// Directory of a model in Hugging Face's form, with weights in bf16.
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The directory to write, which must not exist yet.
    #[arg(value_name = "DIR")]
    output: PathBuf,
}

/// A model cannot be quantized.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    /// The output exists.
    #[error("{0:?} exists: name a directory that does not exist yet")]
    Exists(PathBuf),
    /// The output is inside the model.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// The weights are not bf16.
    #[error("the weights of {0:?} are not all in bf16: eight bits only help a decoder in bf16")]
    Precision(PathBuf),
    /// The model cannot be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The output cannot be written.
    #[error(transparent)]
    File(#[from] atomic_fs::FileError),
}

impl From<QuantizeError> for CommandError {
    fn from(error: QuantizeError) -> Self {
        match error {
            QuantizeError::File(error) | QuantizeError::Model(ModelError::File(error)) => error.into(),
            error => Self::bad_input(error),
        }
    }
}

impl Quantize {
    pub(crate) fn run(self) -> Result<i32, CommandError> {
        let Quantized { weights, error } = quantize(&self.model, &self.output)?;
        atomic_fs::say(&format!(
            "{}: {weights} weights have eight bits; they differ by {error:.2e} of their size on average",
            self.output.display()
        ))?;
        Ok(codex_reports::exit::FINISHED)
    }
}

/// What was quantized.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantized {
    /// Weights of linear layers.
    pub weights: usize,
    /// The root of the squared differences' sum, over that of the squared weights.
    pub error: f64,
}

/// Writes the quantized model into a new directory. Files without weights are copied, but for a signature.
///
/// # Errors
/// The model is not supported, not in bf16 or has weights that are not finite; or the directory exists, is inside the model or cannot be
/// written.
/// Nothing is left in its place then.
pub fn quantize(model: &Path, output: &Path) -> Result<Quantized, QuantizeError> {
    if fs::symlink_metadata(output).is_ok() {
        return Err(QuantizeError::Exists(output.to_owned()));
    }
    overlap::check(&[Named::new("DIR", output)], &[Named::new("MODEL", model)])?;
    let opened = open(model)?;
    if opened.precision() != Precision::Bf16 {
        return Err(QuantizeError::Precision(model.to_owned()));
    }
    let config = opened.config;
    let layout = Layout::of(&config);
    let mut files = read_directory(model)?;
    // It signs the other bytes.
    files.remove(SIGNATURE);
    let (mut weights, mut difference, mut size) = (0, 0.0_f64, 0.0_f64);
    rewrite(&mut files, |name, values| {
        let mut tensors = layout.tensors().iter();
        // A tied output projection may be stored as a copy of the embedding, which is the first tensor.
        let found = tensors.find(|tensor| short(&tensor.name) == short(name));
        let copied = || layout.tensors().first().filter(|_| name == HEAD);
        let Some(tensor) = found.or_else(copied) else { return false };
        let before = values.to_vec();
        if !before.iter().all(|value| value.is_finite()) {
            // As changed as it is, it is refused by name.
            return true;
        }
        let rounded = round_to_eight_bits(&config, tensor, values);
        if rounded {
            weights += values.len();
            for (old, new) in before.iter().zip(&*values) {
                difference += f64::from(old - new).powi(2);
                size += f64::from(*old).powi(2);
            }
        }
        rounded
    })?;
    atomic_fs::create_directory(output, |partial| {
        for (name, bytes) in &files {
            atomic_fs::make_parents(&partial.join(name))?;
            atomic_fs::write(&partial.join(name), bytes)?;
        }
        Ok::<_, QuantizeError>(())
    })?;
    Ok(Quantized { weights, error: if size > 0.0 { (difference / size).sqrt() } else { 0.0 } })
}

#[cfg(test)]
mod tests {
    use codex_configs::Device;
    use safetensors::{Dtype, SafeTensors, tensor::TensorView};

    use super::*;
    use crate::model::{Generator, parameters};

    fn trained() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/fixtures/trained")
    }

    /// Writes the trained model with weights in bf16.
    fn in_bf16(to: &Path) {
        let mut files = read_directory(&trained()).unwrap();
        let stored = files.remove("model.safetensors").unwrap();
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = SafeTensors::deserialize(&stored)
            .unwrap()
            .tensors()
            .into_iter()
            .map(|(name, view)| {
                let numbers = view.data().as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four));
                let halves = numbers.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect();
                (name, view.shape().to_vec(), halves)
            })
            .collect();
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| (name, TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap()));
        files.insert("model.safetensors".to_owned(), safetensors::serialize(views, None).unwrap());
        atomic_fs::write_directory(to, &files).unwrap();
    }

    #[test]
    fn a_quantized_model_is_near_and_quantizes_to_itself() {
        let root = tempfile::tempdir().unwrap();
        let [model, once, twice] = ["model", "once", "twice"].map(|name| root.path().join(name));
        in_bf16(&model);
        fs::write(model.join(SIGNATURE), "of the other bytes").unwrap();
        let Quantized { weights, error } = quantize(&model, &once).unwrap();
        assert!(weights > 0 && error > 0.0 && error < 0.02, "{error}");
        assert!(quantize(&once, &twice).unwrap().error == 0.0);
        assert!(read_directory(&once).unwrap() == read_directory(&twice).unwrap());
        assert!(!once.join(SIGNATURE).exists());
        let layout = Layout::of(&open(&once).unwrap().config);
        let [before, after] = [&model, &once].map(|path| parameters(&read_directory(path).unwrap(), &layout).unwrap());
        for tensor in layout.tensors() {
            let same = before[tensor.range.clone()] == after[tensor.range.clone()];
            assert_eq!(same, tensor.name.contains("norm"), "{}", tensor.name);
        }
        let mut generator = Generator::load_directory(&once, 1, Device::Cpu).unwrap();
        assert!(generator.complete(&["12+34:"], 8, |_| ()).remove(0).is_ok());
    }

    #[test]
    fn what_cannot_be_quantized_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let output = root.path().join("eight");
        let refused = |model: &Path, output: &Path| quantize(model, output).unwrap_err().to_string();
        assert!(
            refused(&trained(), &output).ends_with("are not all in bf16: eight bits only help a decoder in bf16"),
            "{}",
            refused(&trained(), &output)
        );
        assert!(refused(&trained(), root.path()).ends_with("exists: name a directory that does not exist yet"));
        assert!(refused(&trained(), &trained().join("eight")).contains("is inside MODEL"));
        assert!(refused(&root.path().join("none"), &output).contains("none"));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
