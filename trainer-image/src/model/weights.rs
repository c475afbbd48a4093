//! Reads weights as Hugging Face's libraries store them: safetensors in one file or in shards with an index, in F32, F16 or
//! BF16, for both model families. Pure.

use std::collections::BTreeMap;

use codex_engine::Layout;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::Deserialize;

use super::{
    files::{ModelError, ModelFiles, WEIGHTS},
    stored::Stored,
};

/// The index of sharded weights.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// The prefix that some GPT-2 files omit.
const PREFIX: &str = "transformer.";
/// Suffixes of constant buffers that some libraries save.
pub(super) const BUFFERS: [&str; 3] = [".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"];
/// The output projection, which equals the embedding when the two are tied.
pub(crate) const HEAD: &str = "lm_head.weight";

/// The files of sharded weights.
#[derive(Deserialize)]
pub(super) struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Index {
    /// Returns the names of all files, in order.
    pub(super) fn files(self) -> Vec<String> {
        let mut names: Vec<String> = self.weight_map.into_values().collect();
        names.sort();
        names.dedup();
        names
    }
}

/// Returns the names of the files that an index of sharded weights lists, in order.
///
/// # Errors
/// The index is not JSON with a `weight_map`.
pub(crate) fn shards(index: &[u8]) -> Result<Vec<String>, serde_json::Error> {
    Ok(codex_json::from_slice::<Index>(index)?.files())
}

/// Returns the parameters of a model in the order of `layout`, in f32.
///
/// # Errors
/// When a file or tensor is missing or invalid, a tensor has another shape, an unsupported type or a value that is not finite,
/// or the model has no place for it.
#[cfg(test)]
pub(crate) fn parameters(files: &ModelFiles, layout: &Layout) -> Result<Vec<f32>, ModelError> {
    let mut parameters = vec![0.0; layout.size()];
    held(files, layout)?.read(0..layout.size(), &mut parameters)?;
    Ok(parameters)
}

/// Returns the weights of a model whose files are in memory.
///
/// # Errors
/// When a file or tensor is missing or invalid, a tensor has another shape or an unsupported type, or the model has no place for
/// it. Values are not read yet.
pub(super) fn held<'a>(files: &'a ModelFiles, layout: &Layout) -> Result<Stored<TensorView<'a>>, ModelError> {
    Stored::of(tensors(files)?, layout)
}

/// Returns a tensor's name without the prefix that some files omit.
pub(crate) fn short(name: &str) -> &str {
    name.strip_prefix(PREFIX).unwrap_or(name)
}

/// Returns the names of the files with weights.
pub(super) fn weight_files(files: &ModelFiles) -> Result<Vec<String>, ModelError> {
    let mut names = vec![WEIGHTS.to_owned()];
    if let (None, Some(index)) = (files.get(WEIGHTS), files.get(INDEX)) {
        let index: Index = codex_json::from_slice(index).map_err(|source| ModelError::Json { file: INDEX, source })?;
        names = index.files();
    }
    Ok(names)
}

/// Returns the tensors of all files by their short names.
fn tensors(files: &ModelFiles) -> Result<BTreeMap<String, TensorView<'_>>, ModelError> {
    let mut all = BTreeMap::new();
    for file in weight_files(files)? {
        let bytes = files.get(&file).ok_or_else(|| ModelError::Missing(file.clone()))?;
        let shard = SafeTensors::deserialize(bytes).map_err(|error| ModelError::weights(&file, &error))?;
        for (name, tensor) in shard.tensors() {
            if all.insert(short(&name).to_owned(), tensor).is_some() {
                return Err(ModelError::WeightRepeated { file, name });
            }
        }
    }
    Ok(all)
}

/// Returns the bytes of a value; `None` if its type is not supported.
pub(crate) fn width(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F32 => Some(4),
        Dtype::F16 | Dtype::BF16 => Some(2),
        _ => None,
    }
}

/// Converts the bytes of values of a supported type.
pub(crate) fn convert(dtype: Dtype, bytes: &[u8], to: &mut [f32]) {
    let stored = match dtype {
        Dtype::F16 => codex_engine::StoredType::F16,
        Dtype::BF16 => codex_engine::StoredType::Bf16,
        _ => codex_engine::StoredType::F32,
    };
    codex_engine::widen(stored, bytes, to);
}

/// Returns numbers as little-endian bytes.
pub(crate) fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path, sync::Arc};

    use codex_engine::{EngineState, ModelConfig, Packed, Settings, engine};

    use proptest::prelude::*;

    use super::*;
    use crate::model::files::read_directory;

    #[derive(Deserialize)]
    struct Losses {
        tokens: Vec<u32>,
        losses: BTreeMap<String, f64>,
    }

    fn fixture(name: &str) -> ModelFiles {
        read_directory(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/fixtures").join(name)).unwrap()
    }

    fn loss(files: &ModelFiles, tokens: &[u32]) -> f64 {
        let config = ModelConfig::parse(&files["config.json"]).unwrap();
        let layout = Arc::new(Layout::of(&config));
        let state = EngineState::new(layout.clone(), parameters(files, &layout).unwrap());
        let mut engine = engine(config, state, Settings::default()).unwrap();
        engine.loss(&Packed::new([(tokens, 1)])).unwrap()
    }

    #[test]
    fn models_that_transformers_saved_have_its_losses() {
        let Losses { tokens, losses } = serde_json::from_slice(include_bytes!("fixtures/losses.json")).unwrap();
        assert_eq!(losses.len(), 3);
        for (name, expected) in losses {
            let found = loss(&fixture(&name), &tokens);
            assert!((found - expected).abs() < 1e-4 * expected, "{name}: {found} {expected}");
        }
    }

    #[test]
    fn names_without_their_prefix_are_found() {
        let mut files = fixture("gpt2-f32");
        let Losses { tokens, losses } = serde_json::from_slice(include_bytes!("fixtures/losses.json")).unwrap();
        let weights = files.remove(WEIGHTS).unwrap();
        let stored = SafeTensors::deserialize(&weights).unwrap();
        let short: Vec<(String, TensorView)> = stored
            .tensors()
            .into_iter()
            .map(|(name, tensor)| (name.strip_prefix(PREFIX).unwrap().to_owned(), tensor))
            .collect();
        files.insert(WEIGHTS.to_owned(), safetensors::serialize(short, None).unwrap());
        assert!((loss(&files, &tokens) - losses["gpt2-f32"]).abs() < 1e-2);
    }

    #[test]
    fn missing_tensors_and_other_shapes_are_named() {
        let refused = |files: &ModelFiles, config: &str| {
            let config = ModelConfig::parse(config.as_bytes()).unwrap();
            parameters(files, &Layout::of(&config)).unwrap_err().to_string()
        };
        let mut files = fixture("llama-f16-sharded");
        let config = String::from_utf8(files["config.json"].clone()).unwrap();
        let wide = config.replace("\"vocab_size\": 37", "\"vocab_size\": 38");
        assert_eq!(
            refused(&files, &wide),
            "model.safetensors: model.embed_tokens.weight is F16 [37, 32], but config.json asks for F32, F16 or BF16 [38, 32]"
        );
        let deep = config.replace("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 2");
        assert_eq!(refused(&files, &deep), "model.safetensors: model.layers.1.input_layernorm.weight is missing");
        files.remove("model-00002-of-00004.safetensors");
        assert_eq!(refused(&files, &config), "the model has no file model-00002-of-00004.safetensors");
    }

    /// Appends the values of a tensor as f32; `None` if its type is not supported.
    fn extend(numbers: &mut Vec<f32>, tensor: &TensorView<'_>) -> Option<()> {
        let width = width(tensor.dtype())?;
        let first = numbers.len();
        numbers.resize(first + tensor.data().len() / width, 0.0);
        convert(tensor.dtype(), tensor.data(), &mut numbers[first..]);
        Some(())
    }

    /// Shapes and values by name.
    type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

    /// Changes the tensors of a file.
    fn changed(file: &[u8], change: impl FnOnce(&mut Tensors)) -> Vec<u8> {
        let stored = SafeTensors::deserialize(file).unwrap();
        let mut tensors = BTreeMap::new();
        for (name, tensor) in stored.tensors() {
            let mut numbers = Vec::new();
            extend(&mut numbers, &tensor).unwrap();
            tensors.insert(name, (tensor.shape().to_vec(), numbers));
        }
        change(&mut tensors);
        let tensors: Vec<_> = tensors.into_iter().map(|(name, (shape, it))| (name, shape, bytes(&it))).collect();
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }

    fn read(files: &ModelFiles) -> Result<Vec<f32>, ModelError> {
        parameters(files, &Layout::of(&ModelConfig::parse(&files["config.json"]).unwrap()))
    }

    #[test]
    fn tensors_without_a_place_in_the_model_are_refused() {
        let files = fixture("trained");
        let right = read(&files).unwrap();
        let with = |change: &dyn Fn(&mut Tensors)| {
            let mut files = files.clone();
            files.insert(WEIGHTS.to_owned(), changed(&files[WEIGHTS], change));
            read(&files)
        };
        let embedding = "model.embed_tokens.weight";
        let tied = with(&|tensors| drop(tensors.insert(HEAD.to_owned(), tensors[embedding].clone()))).unwrap();
        assert_eq!(tied, right, "a copy of the tied embedding is harmless");
        let buffer = "model.layers.0.self_attn.rotary_emb.inv_freq";
        assert_eq!(with(&|tensors| drop(tensors.insert(buffer.to_owned(), (vec![1], vec![1.0])))).unwrap(), right);
        let refused = with(&|tensors| {
            let (shape, mut numbers) = tensors[embedding].clone();
            numbers[0] += 1.0;
            tensors.insert(HEAD.to_owned(), (shape, numbers));
        });
        let told = "model.safetensors: config.json has no place for lm_head.weight";
        assert_eq!(refused.unwrap_err().to_string(), told);
        let more = "model.layers.1.input_layernorm.weight";
        let refused = with(&|tensors| drop(tensors.insert(more.to_owned(), (vec![32], vec![1.0; 32]))));
        assert_eq!(refused.unwrap_err().to_string(), format!("model.safetensors: config.json has no place for {more}"));
        let refused = with(&|tensors| {
            if let Some((_, numbers)) = tensors.get_mut("model.norm.weight") {
                numbers[3] = f32::NAN;
            }
        });
        let told = "model.safetensors: model.norm.weight is not finite: value 3 is NaN";
        assert_eq!(refused.unwrap_err().to_string(), told);
    }

    #[test]
    fn a_tensor_in_two_shards_is_refused() {
        let mut files = fixture("llama-f16-sharded");
        let (first, last) = ("model-00001-of-00004.safetensors", "model-00004-of-00004.safetensors");
        files.insert(last.to_owned(), files[first].clone());
        let told = read(&files).unwrap_err().to_string();
        assert!(told.starts_with(&format!("{last}: ")) && told.ends_with(" is in another file, too"), "{told}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_index_is_read_or_refused(index: Vec<u8>) {
            let mut files = fixture("llama-f16-sharded");
            files.insert(INDEX.to_owned(), index);
            prop_assert!(read(&files).is_err());
        }

        /// An index with changed bytes is refused, or names the same files: then the parameters are the same.
        #[test]
        fn a_changed_index_gives_the_same_parameters_or_is_refused(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut in prop::option::of(0_usize..1100),
        ) {
            let mut files = fixture("llama-f16-sharded");
            let right = read(&files).unwrap();
            let mut index = files[INDEX].clone();
            for (at, byte) in changes {
                let at = at.index(index.len());
                index[at] = byte;
            }
            index.truncate(cut.unwrap_or(index.len()));
            files.insert(INDEX.to_owned(), index);
            match read(&files) {
                Ok(read) => prop_assert_eq!(read, right),
                Err(error) => prop_assert!(!error.to_string().contains('\n'), "{error}"),
            }
        }
    }
}
