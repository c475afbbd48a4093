//! Weights as Hugging Face's libraries store them: safetensors in one file or in shards with an index, in f32, f16 or bf16, of both
//! families that the engine computes. Pure.

use std::collections::HashMap;

use codex_engine::Layout;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::Deserialize;

use super::files::{ModelError, ModelFiles, WEIGHTS};

/// Which shard each weight is in.
const INDEX: &str = "model.safetensors.index.json";
/// What some files of GPT-2 leave out in front of their names.
const PREFIX: &str = "transformer.";

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// The parameters of a model, laid out as `layout` says, in f32.
///
/// # Errors
/// When a file or a weight is missing, or a weight has another shape or a type that is not computed with.
pub(crate) fn parameters(files: &ModelFiles, layout: &Layout) -> Result<Vec<f32>, ModelError> {
    let shards = shards(files)?;
    let mut parameters = Vec::with_capacity(layout.size());
    for part in layout.tensors() {
        let short = part.name.strip_prefix(PREFIX).unwrap_or(&part.name);
        let stored =
            shards.iter().find_map(|(_, shard)| shard.tensor(&part.name).or_else(|_| shard.tensor(short)).ok());
        let tensor = stored.ok_or_else(|| ModelError::WeightMissing(part.name.clone()))?;
        let wrong = || ModelError::Weight {
            name: part.name.clone(),
            found: format!("{:?} {:?}", tensor.dtype(), tensor.shape()),
            expected: format!("F32, F16 or BF16 {:?}", part.shape),
        };
        if tensor.shape() != part.shape {
            return Err(wrong());
        }
        extend(&mut parameters, &tensor).ok_or_else(wrong)?;
    }
    Ok(parameters)
}

/// The files of weights, opened; one, or those that an index names.
fn shards(files: &ModelFiles) -> Result<Vec<(String, SafeTensors<'_>)>, ModelError> {
    let mut names = vec![WEIGHTS.to_owned()];
    if let (None, Some(index)) = (files.get(WEIGHTS), files.get(INDEX)) {
        let index: Index = codex_json::from_slice(index).map_err(|source| ModelError::Json { file: INDEX, source })?;
        names = index.weight_map.into_values().collect();
        names.sort();
        names.dedup();
    }
    let open = |name: String| {
        let bytes = files.get(&name).ok_or_else(|| ModelError::Missing(name.clone()))?;
        let opened = SafeTensors::deserialize(bytes);
        opened.map(|shard| (name.clone(), shard)).map_err(|source| ModelError::Weights { file: name, source })
    };
    names.into_iter().map(open).collect()
}

/// Appends a tensor's numbers as f32; none of another type.
fn extend(numbers: &mut Vec<f32>, tensor: &TensorView<'_>) -> Option<()> {
    let halves = || tensor.data().chunks_exact(2).map(|two| u16::from_le_bytes([two[0], two[1]]));
    match tensor.dtype() {
        Dtype::F32 => numbers
            .extend(tensor.data().chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))),
        Dtype::F16 => numbers.extend(halves().map(|bits| half::f16::from_bits(bits).to_f32())),
        Dtype::BF16 => numbers.extend(halves().map(|bits| half::bf16::from_bits(bits).to_f32())),
        _ => return None,
    }
    Some(())
}

/// Floats as little-endian bytes.
pub(crate) fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path, sync::Arc};

    use codex_engine::{EngineState, ModelConfig, Packed, Settings, engine};

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
    fn models_that_transformers_saved_lose_what_they_do_there() {
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
    fn what_is_missing_or_of_another_shape_is_named() {
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
        assert_eq!(refused(&files, &deep), "model.safetensors: there is no model.layers.1.input_layernorm.weight");
        files.remove("model-00002-of-00004.safetensors");
        assert_eq!(refused(&files, &config), "the model has no file model-00002-of-00004.safetensors");
    }
}
