//! The files of a model in the shape of Hugging Face: `config.json`, `generation_config.json`, `model.safetensors`,
//! `tokenizer.json`, `tokenizer_config.json`. Nothing in them holds a time, a machine or a ring. Pure, but for
//! [`open`] and [`read_parameters`].

use std::{collections::HashMap, path::Path};

use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;

use super::{
    files::{CONFIG, GENERATION, ModelError, ModelFiles, WEIGHTS, read_some},
    stored::{Place, Stored},
    weights::bytes,
};
use crate::text::{PAD, Tokenizer, UNKNOWN};
use codex_engine::{Layout, ModelConfig, Precision};

/// Returns the files of a model. `parameters` are in the order of [`Layout::of`].
///
/// # Errors
/// When the weights cannot be encoded.
pub fn describe(config: &ModelConfig, parameters: &[f32], tokenizer: &Tokenizer) -> Result<ModelFiles, ModelError> {
    let ends = match config.eos_token_ids.as_slice() {
        [end] => json!(end),
        ends => json!(ends),
    };
    let generation = json!({
        "do_sample": false,
        "eos_token_id": ends,
        "max_length": config.max_position_embeddings,
        "pad_token_id": config.pad_token_id,
    });
    let characters = json!({
        "clean_up_tokenization_spaces": false,
        "eos_token": crate::tasks::END.to_string(),
        "model_max_length": config.max_position_embeddings,
        "pad_token": PAD,
        "padding_side": "left",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNKNOWN,
    });
    let layout = Layout::of(config);
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = layout
        .tensors()
        .iter()
        .map(|tensor| (tensor.name.clone(), tensor.shape.clone(), bytes(&parameters[tensor.range.clone()])))
        .collect();
    let mut files = tokenizer.files()?;
    if tokenizer.is_characters() {
        files.insert("tokenizer_config.json".to_owned(), pretty(&characters)?);
    }
    files.extend([
        (CONFIG.to_owned(), pretty(config)?),
        (GENERATION.to_owned(), pretty(&generation)?),
        (WEIGHTS.to_owned(), encode(&tensors, WEIGHTS)?),
    ]);
    Ok(files)
}

/// Returns tensors, given as (name, shape, bytes), as the safetensors file of this name.
pub(super) fn encode(tensors: &[(String, Vec<usize>, Vec<u8>)], file: &str) -> Result<Vec<u8>, ModelError> {
    let views: Result<Vec<(&str, TensorView)>, _> = tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect();
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let encoded = views.and_then(|views| safetensors::serialize(views, Some(metadata)));
    encoded.map_err(|error| ModelError::weights(file, &error))
}

/// Returns a value as indented JSON with a final line feed.
pub(super) fn pretty(value: &impl serde::Serialize) -> Result<Vec<u8>, ModelError> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|source| ModelError::Json { file: CONFIG, source })?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// A loaded model: configuration, tokenizer, and parameters in the order of [`Layout::of`].
#[cfg(test)]
pub(super) struct Loaded {
    pub(super) config: ModelConfig,
    pub(super) tokenizer: Tokenizer,
    pub(super) parameters: Vec<f32>,
}

/// Loads a model from its files.
#[cfg(test)]
pub(super) fn load(files: &ModelFiles) -> Result<Loaded, ModelError> {
    let (config, tokenizer) = describe_files(files)?;
    let parameters = super::weights::parameters(files, &Layout::of(&config))?;
    fits(&tokenizer, &config)?;
    Ok(Loaded { config, tokenizer, parameters })
}

/// A model directory whose weights are open, but not read.
pub(crate) struct Opened {
    pub(crate) config: ModelConfig,
    pub(crate) tokenizer: Tokenizer,
    pub(super) weights: Stored<Place>,
}

impl Opened {
    /// Returns the precision that keeps the weights.
    pub(crate) fn precision(&self) -> Precision {
        self.weights.precision()
    }
}

/// Opens a model directory. Weights that do not fit the configuration are refused before a tokenizer that does not.
///
/// # Errors
/// When a file is missing or invalid, or the files do not belong together. Values of weights are not checked.
pub(crate) fn open(path: &Path) -> Result<Opened, ModelError> {
    let is_weights = |name: &str| Path::new(name).extension().is_some_and(|extension| extension == "safetensors");
    let described = read_some(path, |name| !is_weights(name))?;
    let (config, tokenizer) = describe_files(&described)?;
    let weights = Stored::open(path, &Layout::of(&config))?;
    fits(&tokenizer, &config)?;
    Ok(Opened { config, tokenizer, weights })
}

/// Returns the configuration of a model directory whose weights fit it. The directory needs no tokenizer.
///
/// # Errors
/// When a file is missing or invalid, or the weights are those of another shape. Values of weights are not checked.
pub(crate) fn check_weights(path: &Path) -> Result<ModelConfig, ModelError> {
    let described = read_some(path, |name| name == CONFIG)?;
    let config = ModelConfig::parse(described.get(CONFIG).ok_or_else(|| ModelError::Missing(CONFIG.to_owned()))?)?;
    Stored::open(path, &Layout::of(&config))?;
    Ok(config)
}

/// Reads all parameters of a model directory in f32, in the order of `layout`.
///
/// # Errors
/// When a file or tensor is missing or invalid, or a value is not finite.
pub(crate) fn read_parameters(path: &Path, layout: &Layout) -> Result<Vec<f32>, ModelError> {
    let mut parameters = vec![0.0; layout.size()];
    Stored::open(path, layout)?.read(0..layout.size(), &mut parameters)?;
    Ok(parameters)
}

/// Checks that the model has an embedding for every token.
pub(super) fn fits(tokenizer: &Tokenizer, config: &ModelConfig) -> Result<(), ModelError> {
    let (tokens, size) = (tokenizer.vocabulary(), config.vocab_size);
    if tokens > size { Err(ModelError::Vocabulary { tokens, size }) } else { Ok(()) }
}

/// Reads the configuration and the tokenizer from the files of a model. The configuration has the end tokens of all files.
pub(super) fn describe_files(files: &ModelFiles) -> Result<(ModelConfig, Tokenizer), ModelError> {
    let file = |name: &'static str| files.get(name).ok_or_else(|| ModelError::Missing(name.to_owned()));
    let mut config = ModelConfig::parse(file(CONFIG)?)?;
    let size = config.vocab_size;
    let outside = |ids: &[u32]| ids.iter().copied().find(|id| *id as usize >= size);
    for (field, id) in
        [("eos_token_id", outside(&config.eos_token_ids)), ("pad_token_id", outside(config.pad_token_id.as_slice()))]
    {
        if let Some(id) = id {
            return Err(ModelError::TokenId { file: CONFIG, field, id, size });
        }
    }
    let tokenizer = Tokenizer::from_files(files)?;
    if !tokenizer.is_characters() {
        // With those of generation_config.json and tokenizer_config.json.
        let ends = tokenizer.ends();
        if let Some(id) = outside(&ends) {
            return Err(ModelError::TokenId { file: GENERATION, field: "eos_token_id", id, size });
        }
        config.eos_token_ids = ends;
    }
    Ok((config, tokenizer))
}

#[cfg(test)]
mod tests {
    use codex_engine::{Shape, initial};
    use proptest::prelude::*;

    use super::*;

    fn files() -> ModelFiles {
        let shape = Shape {
            hidden_size: 16,
            intermediate_size: 16,
            num_hidden_layers: 1,
            num_attention_heads: 1,
            max_position_embeddings: 16,
            rope_theta: 10_000.0,
        };
        let tokenizer = Tokenizer::characters().unwrap();
        let config = ModelConfig::new(shape, tokenizer.for_model().unwrap()).unwrap();
        describe(&config, &initial(&config, &Layout::of(&config), 1), &tokenizer).unwrap()
    }

    /// Loads the weights, or checks that the error names their file.
    fn read_or_refuse(weights: Vec<u8>) -> Result<(), TestCaseError> {
        let mut files = files();
        files.insert(WEIGHTS.to_owned(), weights);
        if let Err(error) = load(&files) {
            let said = error.to_string();
            prop_assert!(said.contains(WEIGHTS) && !said.contains('\n'), "{said}");
        }
        Ok(())
    }

    #[test]
    fn special_tokens_outside_the_vocabulary_are_refused() {
        for (field, id) in [("eos_token_id", 7), ("pad_token_id", 0)] {
            let mut files = files();
            let config = String::from_utf8(files[CONFIG].clone()).unwrap();
            let changed = config.replace(&format!("\"{field}\": {id}"), &format!("\"{field}\": 98"));
            assert_ne!(changed, config);
            files.insert(CONFIG.to_owned(), changed.into_bytes());
            let told = load(&files).err().unwrap().to_string();
            assert_eq!(told, format!("config.json: {field} 98 is out of range; the vocabulary has 98 tokens"));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            read_or_refuse(bytes)?;
        }

        /// Changes bytes of the header (length, JSON, offsets), and truncates the file.
        #[test]
        fn a_damaged_header_is_read_or_refused(
            changes in proptest::collection::vec((0_usize..1200, any::<u8>()), 1..8), cut in proptest::option::of(0_usize..3000),
        ) {
            let mut weights = files().remove(WEIGHTS).unwrap();
            for (at, byte) in changes {
                weights[at] = byte;
            }
            weights.truncate(cut.unwrap_or(weights.len()));
            read_or_refuse(weights)?;
        }

        /// Changes numbers in the header.
        #[test]
        fn foreign_offsets_are_refused(which in 0_usize..30, by in any::<u64>()) {
            let weights = files().remove(WEIGHTS).unwrap();
            let length = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
            let header = std::str::from_utf8(&weights[8..8 + length]).unwrap();
            let numbers: Vec<(usize, &str)> = header.match_indices(|c: char| c.is_ascii_digit()).collect();
            let (at, _) = numbers[which * numbers.len() / 30];
            let changed = format!("{}{by}{}", &header[..at], &header[at + 1..]);
            let mut bytes = (changed.len() as u64).to_le_bytes().to_vec();
            bytes.extend(changed.as_bytes());
            bytes.extend(&weights[8 + length..]);
            read_or_refuse(bytes)?;
        }
    }
}
