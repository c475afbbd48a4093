//! Replaces weights in the files of a model. Everything else stays byte for byte: other files, the header, the order and type of
//! the tensors. Pure.

use safetensors::{Dtype, SafeTensors};

use super::{
    files::{ModelError, ModelFiles},
    weights::{convert, weight_files, width},
};

/// Replaces the values of tensors. `change` gets the name and the values of every tensor of a floating-point type, and returns
/// whether it changed them. Values are rounded to the type of the file.
///
/// # Errors
/// When a file cannot be read, or a changed value is not finite in the type of the file.
pub(crate) fn rewrite(
    files: &mut ModelFiles,
    mut change: impl FnMut(&str, &mut [f32]) -> bool,
) -> Result<(), ModelError> {
    for file in weight_files(files)? {
        let bytes = files.get_mut(&file).ok_or_else(|| ModelError::Missing(file.clone()))?;
        let unreadable = |error| ModelError::weights(&file, &error);
        let (length, metadata) = SafeTensors::read_metadata(bytes).map_err(unreadable)?;
        // The header follows its length in 8 bytes.
        let data = bytes.get_mut(8 + length..).unwrap_or_default();
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let Some(stored) = data.get_mut(start..end) else { continue };
            let Some(mut values) = read(info.dtype, stored) else { continue };
            if !change(&name, &mut values) {
                continue;
            }
            let failed = write(info.dtype, &values, stored);
            if let Some(at) = failed {
                return Err(ModelError::NotFinite { name, at, value: values[at] });
            }
        }
    }
    Ok(())
}

/// Returns the values of a tensor; `None` if its type is not one of weights.
fn read(dtype: Dtype, stored: &[u8]) -> Option<Vec<f32>> {
    let mut values = vec![0.0; stored.len() / width(dtype)?];
    convert(dtype, stored, &mut values);
    Some(values)
}

/// Writes the values of a tensor, rounded to its type. Returns the index of the first one that is not finite in it.
fn write(dtype: Dtype, values: &[f32], stored: &mut [u8]) -> Option<usize> {
    let mut failed = None;
    let mut check = |at: usize, finite: bool| {
        if !finite && failed.is_none() {
            failed = Some(at);
        }
    };
    if dtype == Dtype::F32 {
        for (at, (to, value)) in stored.as_chunks_mut::<4>().0.iter_mut().zip(values).enumerate() {
            check(at, value.is_finite());
            *to = value.to_le_bytes();
        }
        return failed;
    }
    for (at, (to, value)) in stored.as_chunks_mut::<2>().0.iter_mut().zip(values).enumerate() {
        let (bits, finite) = if dtype == Dtype::F16 {
            let rounded = half::f16::from_f32(*value);
            (rounded.to_bits(), rounded.is_finite())
        } else {
            let rounded = half::bf16::from_f32(*value);
            (rounded.to_bits(), rounded.is_finite())
        };
        check(at, finite);
        *to = bits.to_le_bytes();
    }
    failed
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use codex_engine::{Layout, ModelConfig};

    use super::*;
    use crate::model::{files::read_directory, weights::parameters};

    #[test]
    fn only_the_changed_tensor_changes() {
        for name in ["llama-f16-sharded", "gpt2-f32"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/fixtures").join(name);
            let before = read_directory(&path).unwrap();
            let mut after = before.clone();
            rewrite(&mut after, |_, _| false).unwrap();
            assert!(after == before);
            let config = ModelConfig::parse(&before["config.json"]).unwrap();
            let layout = Layout::of(&config);
            let changed = layout.tensors().last().unwrap();
            rewrite(&mut after, |name, values| {
                let found = changed.name.ends_with(name);
                if found {
                    values.fill(0.25);
                }
                found
            })
            .unwrap();
            let (old, new) = (parameters(&before, &layout).unwrap(), parameters(&after, &layout).unwrap());
            assert!(new[changed.range.clone()].iter().all(|value| (value - 0.25).abs() < f32::EPSILON));
            assert!(old[..changed.range.start] == new[..changed.range.start]);
        }
    }

    #[test]
    fn values_outside_the_type_are_named() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/fixtures/llama-f16-sharded");
        let mut files = read_directory(&path).unwrap();
        let change = |name: &str, values: &mut [f32]| {
            values[3] = 1e6;
            name == "model.norm.weight"
        };
        let said = rewrite(&mut files, change).unwrap_err().to_string();
        assert_eq!(said, "model.safetensors: model.norm.weight is not finite: value 3 is 1000000");
    }
}
