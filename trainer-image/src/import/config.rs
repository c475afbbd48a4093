//! `config.json` and `generation_config.json` from the metadata. Pure.

use std::collections::BTreeMap;

use codex_engine::{Family, ModelConfig, RopeScaling};
use serde_json::json;

use super::{ImportError, gguf::Gguf};

/// Returns the configuration of the model.
///
/// # Errors
/// The file is not of the llama architecture, a key is missing, or the model has something that is not supported.
pub(super) fn of(gguf: &Gguf) -> Result<ModelConfig, ImportError> {
    let architecture = gguf.text("general.architecture").unwrap_or("missing");
    if architecture != "llama" {
        return Err(ImportError::unsupported("general.architecture", architecture, "use llama"));
    }
    let required = |key: &str| gguf.required(&format!("llama.{key}"));
    let number = |key: &str| gguf.number(&format!("llama.{key}")).map(|number| number as usize);
    if let Some(experts) = number("expert_count").filter(|count| *count > 0) {
        return Err(ImportError::unsupported("llama.expert_count", experts, "mixtures of experts are not supported"));
    }
    let (hidden, heads) = (required("embedding_length")?, required("attention.head_count")?);
    let head_dim = number("attention.key_length").unwrap_or_else(|| hidden.checked_div(heads).unwrap_or(0));
    for key in ["attention.value_length", "rope.dimension_count"] {
        if let Some(width) = number(key).filter(|width| *width != head_dim) {
            return Err(ImportError::unsupported(&format!("llama.{key}"), width, "it must be the width of a head"));
        }
    }
    let vocabulary = gguf.shape("token_embd.weight").and_then(|shape| shape.first().copied());
    let vocab_size = vocabulary.ok_or_else(|| ImportError::Missing("token_embd.weight".to_owned()))?;
    let id = |name: &str| {
        let id = gguf.number(&format!("tokenizer.ggml.{name}_token_id"));
        id.and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < vocab_size)
    };
    let eos = id("eos").ok_or_else(|| ImportError::Key {
        key: "tokenizer.ggml.eos_token_id".to_owned(),
        what: "token id inside the vocabulary",
    })?;
    let mut eos_token_ids = vec![eos];
    eos_token_ids.extend(["eot", "eom"].into_iter().filter_map(id).filter(|other| *other != eos));
    let rope_theta = gguf.decimal("llama.rope.freq_base").unwrap_or(10_000.0);
    let config = ModelConfig {
        family: Family::Llama,
        vocab_size,
        hidden_size: hidden,
        intermediate_size: required("feed_forward_length")?,
        num_hidden_layers: required("block_count")?,
        num_attention_heads: heads,
        num_key_value_heads: number("attention.head_count_kv").unwrap_or(heads),
        head_dim,
        max_position_embeddings: required("context_length")?,
        norm_eps: gguf.decimal("llama.attention.layer_norm_rms_epsilon").ok_or_else(|| ImportError::Key {
            key: "llama.attention.layer_norm_rms_epsilon".to_owned(),
            what: "number",
        })?,
        rope_theta,
        rope_scaling: scaling(gguf, head_dim, rope_theta)?,
        qkv_bias: false,
        qk_norm: false,
        tie_word_embeddings: gguf.shape("output.weight").is_none(),
        bos_token_id: id("bos"),
        eos_token_ids,
        pad_token_id: id("padding"),
    };
    config.validate()?;
    Ok(config)
}

/// Returns the scaling of the rotary frequencies: linear from the metadata, or Llama 3's, which the file has as a factor for each
/// frequency.
fn scaling(gguf: &Gguf, head_dim: usize, theta: f64) -> Result<Option<RopeScaling>, ImportError> {
    const FACTORS: &str = "rope_freqs.weight";
    let kind = "llama.rope.scaling.type";
    match gguf.text(kind) {
        None | Some("none") => {}
        Some("linear") => {
            let factor = gguf.decimal("llama.rope.scaling.factor").unwrap_or(1.0);
            return Ok(Some(RopeScaling::Linear { factor }));
        }
        Some(other) => return Err(ImportError::unsupported(kind, other, "use none or linear")),
    }
    if gguf.shape(FACTORS).is_none() {
        return Ok(None);
    }
    if gguf.shape(FACTORS) != Some(&[head_dim / 2]) {
        return Err(ImportError::unsupported(
            FACTORS,
            format!("{:?}", gguf.shape(FACTORS)),
            "it must have a value for each pair",
        ));
    }
    let found = gguf.rows(FACTORS, 0..1)?;
    let factor = f64::from(found.iter().copied().fold(1.0, f32::max));
    // The constants of Llama 3.1 and 3.2; files do not have them.
    let (low, high, original_context) = (1.0, 4.0, 8192);
    let expected = (0..head_dim / 2).map(|pair| {
        let frequency = theta.powf(-2.0 * pair as f64 / head_dim as f64);
        let turns = f64::from(original_context) * frequency / std::f64::consts::TAU;
        let kept: f64 = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        1.0 / ((1.0 - kept) / factor + kept)
    });
    if !found.iter().zip(expected).all(|(found, expected)| (f64::from(*found) / expected - 1.0).abs() < 1e-3) {
        return Err(ImportError::unsupported(FACTORS, "not Llama 3's", "use the scaling of Llama 3.1 or 3.2, or none"));
    }
    let original_context = original_context as usize;
    Ok(Some(RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_context }))
}

/// Returns `config.json` and `generation_config.json`.
///
/// # Errors
/// When they cannot be encoded.
pub(super) fn files(config: &ModelConfig) -> Result<BTreeMap<String, Vec<u8>>, ImportError> {
    let failed = |source| crate::text::TokenizerError::Json { file: "config.json", source };
    let mut written = serde_json::to_value(config).map_err(failed)?;
    written["dtype"] = json!("bfloat16");
    let ends = written["eos_token_id"].clone();
    let generation = json!({
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ends,
        "pad_token_id": config.pad_token_id,
    });
    let pretty = |value: &serde_json::Value| {
        let mut value = value.clone();
        value.sort_all_objects();
        let mut bytes = serde_json::to_vec_pretty(&value).map_err(failed)?;
        bytes.push(b'\n');
        Ok::<_, ImportError>(bytes)
    };
    Ok(BTreeMap::from([
        ("config.json".to_owned(), pretty(&written)?),
        ("generation_config.json".to_owned(), pretty(&generation)?),
    ]))
}
