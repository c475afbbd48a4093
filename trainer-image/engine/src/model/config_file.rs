//! `config.json` as Hugging Face's `LlamaForCausalLM` and `GPT2LMHeadModel` read and write it. Pure.

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::{ConfigError, Family, ModelConfig, config::unsupported};

impl ModelConfig {
    /// Parses a `config.json`. Missing keys have the defaults of `transformers`.
    ///
    /// # Errors
    /// The file is not JSON, lacks a number, or asks for something that is not implemented.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        /// The key that selects the architecture.
        #[derive(Deserialize)]
        struct ModelType {
            model_type: String,
        }
        let config = match codex_json::from_slice::<ModelType>(bytes)?.model_type.as_str() {
            "llama" => codex_json::from_slice::<LlamaFile>(bytes)?.config()?,
            "gpt2" => codex_json::from_slice::<Gpt2File>(bytes)?.config()?,
            other => return unsupported("model_type", &other, "use llama or gpt2"),
        };
        config.validate()?;
        Ok(config)
    }
}

impl Serialize for ModelConfig {
    /// Serializes as the model's `config.json`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.family {
            Family::Llama => LlamaFile::of(self).serialize(serializer),
            Family::Gpt2 => Gpt2File::of(self).serialize(serializer),
        }
    }
}

/// `eos_token_id`: one id, or a list, of which the first one is used.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum EosTokenId {
    One(u32),
    Several(Vec<u32>),
}

impl EosTokenId {
    fn first(this: Option<&Self>) -> Result<u32, ConfigError> {
        match this {
            Some(Self::One(id)) => Ok(*id),
            Some(Self::Several(ids)) if !ids.is_empty() => Ok(ids[0]),
            Some(Self::Several(_)) => unsupported("eos_token_id", &[0; 0], "use the id that ends a response"),
            None => unsupported("eos_token_id", &None::<u32>, "use the id that ends a response"),
        }
    }
}

/// `config.json` of a `LlamaForCausalLM`.
#[derive(Serialize, Deserialize)]
struct LlamaFile {
    #[serde(default)]
    architectures: Vec<String>,
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    #[serde(default = "llama_eps")]
    rms_norm_eps: f64,
    /// Base of the rotary frequencies, where older versions of `transformers` read it.
    rope_theta: Option<f64>,
    /// The same base, where newer versions read it.
    rope_parameters: Option<RopeParameters>,
    #[serde(skip_serializing)]
    rope_scaling: Option<Value>,
    hidden_act: String,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    bos_token_id: Option<u32>,
    eos_token_id: Option<EosTokenId>,
    pad_token_id: Option<u32>,
    #[serde(default = "float32", skip_deserializing)]
    dtype: &'static str,
}

fn llama_eps() -> f64 {
    1e-6
}

fn float32() -> &'static str {
    "float32"
}

/// `rope_parameters` of `config.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct RopeParameters {
    rope_type: String,
    rope_theta: Option<f64>,
}

impl LlamaFile {
    fn of(config: &ModelConfig) -> Self {
        let theta = Some(config.rope_theta);
        Self {
            architectures: vec!["LlamaForCausalLM".to_owned()],
            model_type: "llama".to_owned(),
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: Some(config.num_key_value_heads),
            head_dim: Some(config.head_dim),
            max_position_embeddings: config.max_position_embeddings,
            rms_norm_eps: config.norm_eps,
            rope_theta: theta,
            rope_parameters: Some(RopeParameters { rope_type: "default".to_owned(), rope_theta: theta }),
            rope_scaling: None,
            hidden_act: "silu".to_owned(),
            tie_word_embeddings: config.tie_word_embeddings,
            attention_bias: false,
            mlp_bias: false,
            bos_token_id: config.bos_token_id,
            eos_token_id: Some(EosTokenId::One(config.eos_token_id)),
            pad_token_id: config.pad_token_id,
            dtype: float32(),
        }
    }

    fn config(self) -> Result<ModelConfig, ConfigError> {
        if self.attention_bias || self.mlp_bias || self.hidden_act != "silu" {
            let value = (self.attention_bias, self.mlp_bias, &self.hidden_act);
            return unsupported("(attention_bias, mlp_bias, hidden_act)", &value, "use (false, false, silu)");
        }
        let parameters = self.rope_parameters.as_ref();
        let inner = parameters.and_then(|parameters| parameters.rope_theta);
        if parameters.is_some_and(|parameters| parameters.rope_type != "default")
            || matches!((self.rope_theta, inner), (Some(a), Some(b)) if a.to_bits() != b.to_bits())
        {
            return unsupported("rope_parameters", &parameters, "it must say default and repeat rope_theta");
        }
        if let Some(scaling) = self.rope_scaling.filter(|scaling| !scaling.is_null()) {
            return unsupported("rope_scaling", &scaling, "leave it out");
        }
        Ok(ModelConfig {
            family: Family::Llama,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim: self
                .head_dim
                .unwrap_or_else(|| self.hidden_size.checked_div(self.num_attention_heads).unwrap_or(0)),
            max_position_embeddings: self.max_position_embeddings,
            norm_eps: self.rms_norm_eps,
            rope_theta: self.rope_theta.or(inner).unwrap_or(10_000.0),
            tie_word_embeddings: self.tie_word_embeddings,
            bos_token_id: self.bos_token_id,
            eos_token_id: EosTokenId::first(self.eos_token_id.as_ref())?,
            pad_token_id: self.pad_token_id,
        })
    }
}

/// `config.json` of a `GPT2LMHeadModel`.
#[derive(Serialize, Deserialize)]
struct Gpt2File {
    #[serde(default)]
    architectures: Vec<String>,
    model_type: String,
    vocab_size: usize,
    n_embd: usize,
    n_head: usize,
    n_inner: Option<usize>,
    n_layer: usize,
    n_positions: usize,
    #[serde(default = "gelu_new")]
    activation_function: String,
    #[serde(default = "gpt2_eps")]
    layer_norm_epsilon: f64,
    #[serde(default = "yes")]
    scale_attn_weights: bool,
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    bos_token_id: Option<u32>,
    eos_token_id: Option<EosTokenId>,
    pad_token_id: Option<u32>,
    #[serde(default = "float32", skip_deserializing)]
    dtype: &'static str,
}

fn gelu_new() -> String {
    "gelu_new".to_owned()
}

fn gpt2_eps() -> f64 {
    1e-5
}

fn yes() -> bool {
    true
}

impl Gpt2File {
    fn of(config: &ModelConfig) -> Self {
        Self {
            architectures: vec!["GPT2LMHeadModel".to_owned()],
            model_type: "gpt2".to_owned(),
            vocab_size: config.vocab_size,
            n_embd: config.hidden_size,
            n_head: config.num_attention_heads,
            n_inner: Some(config.intermediate_size),
            n_layer: config.num_hidden_layers,
            n_positions: config.max_position_embeddings,
            activation_function: gelu_new(),
            layer_norm_epsilon: config.norm_eps,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            tie_word_embeddings: true,
            bos_token_id: config.bos_token_id,
            eos_token_id: Some(EosTokenId::One(config.eos_token_id)),
            pad_token_id: config.pad_token_id,
            dtype: float32(),
        }
    }

    fn config(self) -> Result<ModelConfig, ConfigError> {
        if self.activation_function != "gelu_new" {
            return unsupported("activation_function", &self.activation_function, "use gelu_new");
        }
        if !self.scale_attn_weights || self.scale_attn_by_inverse_layer_idx || !self.tie_word_embeddings {
            let value = (self.scale_attn_weights, self.scale_attn_by_inverse_layer_idx, self.tie_word_embeddings);
            return unsupported(
                "(scale_attn_weights, scale_attn_by_inverse_layer_idx, tie_word_embeddings)",
                &value,
                "use (true, false, true)",
            );
        }
        Ok(ModelConfig {
            family: Family::Gpt2,
            vocab_size: self.vocab_size,
            hidden_size: self.n_embd,
            intermediate_size: self.n_inner.unwrap_or_else(|| self.n_embd.saturating_mul(4)),
            num_hidden_layers: self.n_layer,
            num_attention_heads: self.n_head,
            num_key_value_heads: self.n_head,
            head_dim: self.n_embd.checked_div(self.n_head).unwrap_or(0),
            max_position_embeddings: self.n_positions,
            norm_eps: self.layer_norm_epsilon,
            rope_theta: 10_000.0,
            tie_word_embeddings: true,
            bos_token_id: self.bos_token_id,
            eos_token_id: EosTokenId::first(self.eos_token_id.as_ref())?,
            pad_token_id: self.pad_token_id,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tests::{gpt2, tiny};

    #[test]
    fn a_written_configuration_is_read_back() {
        for config in [tiny(), gpt2()] {
            let bytes = serde_json::to_vec(&config).unwrap();
            assert_eq!(ModelConfig::parse(&bytes).unwrap(), config);
        }
    }

    #[test]
    fn files_of_transformers_are_parsed() {
        let llama = r#"{"model_type": "llama", "vocab_size": 32000, "hidden_size": 64, "intermediate_size": 172,
            "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
            "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": [2, 3], "rope_scaling": null, "dtype": "bfloat16",
            "use_cache": true, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}"#;
        let config = ModelConfig::parse(llama.as_bytes()).unwrap();
        assert_eq!((config.num_key_value_heads, config.head_dim, config.eos_token_id), (2, 16, 2));
        assert!(!config.tie_word_embeddings && (config.rope_theta - 500_000.0).abs() < 1e-9);
        let gpt2 = r#"{"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_head": 12, "n_layer": 12,
            "n_positions": 1024, "n_ctx": 1024, "resid_pdrop": 0.1, "bos_token_id": 50256, "eos_token_id": 50256}"#;
        let config = ModelConfig::parse(gpt2.as_bytes()).unwrap();
        assert_eq!((config.intermediate_size, config.head_dim, config.parameters()), (3072, 64, 124_439_808));
    }

    proptest! {
        /// Replaces any value of a valid file: the file is parsed, or refused in one sentence.
        #[test]
        fn changed_values_are_parsed_or_refused(which in 0_usize..40, by in "-?[0-9]{1,20}|null|true|\"a\"|\\[\\]|\\{\\}|[0-9]e[0-9]{2}") {
            for config in [tiny(), gpt2()] {
                let text = serde_json::to_string(&config).unwrap();
                let pieces: Vec<&str> = text.split(':').collect();
                let at = 1 + which % (pieces.len() - 1);
                let end = pieces[at].find([',', '}']).unwrap_or(pieces[at].len());
                let value = format!("{by}{}", &pieces[at][end..]);
                let changed: Vec<&str> =
                    pieces.iter().enumerate().map(|(index, piece)| if index == at { &value } else { *piece }).collect();
                match ModelConfig::parse(changed.join(":").as_bytes()) {
                    Ok(config) => prop_assert!(config.parameters() > 0),
                    Err(error) => prop_assert!(!error.to_string().contains('\n')),
                }
            }
        }

        #[test]
        fn random_bytes_are_refused(bytes: Vec<u8>) {
            prop_assert!(ModelConfig::parse(&bytes).is_err());
        }
    }

    #[test]
    fn unsupported_values_are_named() {
        let said = |from: &str, to: &str| {
            let text = serde_json::to_string(&tiny()).unwrap();
            assert!(text.contains(from), "{text}");
            ModelConfig::parse(text.replace(from, to).as_bytes()).unwrap_err().to_string()
        };
        assert!(said("\"llama\"", "\"mamba\"").contains("model_type is \"mamba\""));
        assert!(said("\"silu\"", "\"relu\"").contains("relu"));
        assert!(said("\"head_dim\":16", "\"head_dim\":8").contains("head_dim is 8"));
        assert!(said("\"num_attention_heads\":2", "\"num_attention_heads\":3").contains("must be a multiple of 16"));
        assert!(said("\"rope_theta\":10000.0", "\"rope_theta\":1.0").contains("rope_theta is 1"));
        assert!(said("\"rope_type\":\"default\"", "\"rope_type\":\"linear\"").contains("rope_parameters"));
    }
}
