//! The shape of a model, and `config.json` in the shape of Hugging Face's `LlamaForCausalLM` and `GPT2LMHeadModel`. Pure.

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::attention::HEAD_WIDTHS;

/// How the blocks of a model are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `RMSNorm`, rotary positions, SwiGLU, no biases.
    Llama,
    /// `LayerNorm`, learnt positions, GELU, biases.
    Gpt2,
}

/// The shape of a model: what its `config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// How its blocks are built.
    pub family: Family,
    /// Ids that the embedding has rows for.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Decoder blocks.
    pub num_hidden_layers: usize,
    /// Heads of queries.
    pub num_attention_heads: usize,
    /// Heads of keys and of values; each serves as many heads of queries.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens that fit.
    pub max_position_embeddings: usize,
    /// What is added under the root of a norm.
    pub norm_eps: f64,
    /// The base of the rotary frequencies; without a meaning where positions are learnt.
    pub rope_theta: f64,
    /// Whether the output projection is the embedding.
    pub tie_word_embeddings: bool,
    /// None: a sequence begins with its prompt.
    pub bos_token_id: Option<u32>,
    /// The id that ends a response.
    pub eos_token_id: u32,
    /// The id that fills what is not there.
    pub pad_token_id: Option<u32>,
}

/// The numbers that a person chooses; everything else of [`ModelConfig`] follows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Decoder blocks.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Tokens that fit.
    pub max_position_embeddings: usize,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
}

/// What a model has to know of its tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    /// How many ids there are.
    pub size: usize,
    /// The id that ends a response.
    pub end: u32,
    /// The id that fills what is not there.
    pub pad: u32,
}

/// A shape that cannot be computed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A number that must not be 0.
    #[error("model.{field} is 0: use at least 1")]
    Zero {
        /// Which.
        field: &'static str,
    },
    /// A number that no model has.
    #[error("model.{field} is {value}: use at most {most}")]
    Large {
        /// Which.
        field: &'static str,
        /// What it is.
        value: usize,
        /// The most that is taken.
        most: usize,
    },
    /// Heads of unequal or unsupported width.
    #[error(
        "model.hidden_size {hidden} with model.num_attention_heads {heads} gives no supported head width: hidden_size / \
         num_attention_heads must be a multiple of 16 up to 128"
    )]
    Heads {
        /// `hidden_size`
        hidden: usize,
        /// `num_attention_heads`
        heads: usize,
    },
    /// A base of rotary frequencies that gives none.
    #[error("model.rope_theta {0} is no base of rotary frequencies: use a finite number above 1, such as 10000")]
    Theta(f64),
    /// A model that is loaded and has what is not computed here.
    #[error("config.json: {field} is {value}, which is not supported: {right}")]
    Unsupported {
        /// Which key.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What would be right.
        right: &'static str,
    },
    /// A file that is no JSON of the right shape.
    #[error("config.json cannot be read")]
    Json(#[from] serde_json::Error),
}

fn unsupported<T>(field: &'static str, value: &dyn std::fmt::Debug, right: &'static str) -> Result<T, ConfigError> {
    Err(ConfigError::Unsupported { field, value: format!("{value:?}"), right })
}

impl ModelConfig {
    /// The whole configuration of a Llama of `shape` over a vocabulary.
    ///
    /// # Errors
    /// When the shape cannot be computed.
    pub fn new(shape: Shape, vocabulary: Vocabulary) -> Result<Self, ConfigError> {
        let heads = shape.num_attention_heads;
        let config = Self {
            family: Family::Llama,
            vocab_size: vocabulary.size,
            hidden_size: shape.hidden_size,
            intermediate_size: shape.intermediate_size,
            num_hidden_layers: shape.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: heads,
            head_dim: shape.hidden_size.checked_div(heads).unwrap_or(0),
            max_position_embeddings: shape.max_position_embeddings,
            norm_eps: 1e-5,
            rope_theta: shape.rope_theta,
            tie_word_embeddings: true,
            bos_token_id: None,
            eos_token_id: vocabulary.end,
            pad_token_id: Some(vocabulary.pad),
        };
        config.validate()?;
        Ok(config)
    }

    /// Reads a `config.json`. What it leaves out is what `transformers` takes for it.
    ///
    /// # Errors
    /// When it is no JSON, lacks a number, or asks for what is not computed here.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        /// What says which of the two it is.
        #[derive(Deserialize)]
        struct Which {
            model_type: String,
        }
        let config = match serde_json::from_slice::<Which>(bytes)?.model_type.as_str() {
            "llama" => serde_json::from_slice::<LlamaFile>(bytes)?.config()?,
            "gpt2" => serde_json::from_slice::<Gpt2File>(bytes)?.config()?,
            other => return unsupported("model_type", &other, "use llama or gpt2"),
        };
        config.validate()?;
        Ok(config)
    }

    /// Whether the model can be computed here.
    ///
    /// # Errors
    /// One sentence about the first field that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, value, most) in [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, 1 << 20),
            ("intermediate_size", self.intermediate_size, 1 << 20),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 12),
            ("num_attention_heads", self.num_attention_heads, 1 << 16),
            ("num_key_value_heads", self.num_key_value_heads, 1 << 16),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 20),
        ] {
            if value == 0 {
                return Err(ConfigError::Zero { field });
            }
            if value > most {
                return Err(ConfigError::Large { field, value, most });
            }
        }
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        if hidden % heads != 0 || !HEAD_WIDTHS.contains(&(hidden / heads)) {
            return Err(ConfigError::Heads { hidden, heads });
        }
        if !self.rope_theta.is_finite() || self.rope_theta <= 1.0 {
            return Err(ConfigError::Theta(self.rope_theta));
        }
        if self.head_dim != hidden / heads {
            return unsupported("head_dim", &self.head_dim, "it must be hidden_size / num_attention_heads");
        }
        if heads % self.num_key_value_heads != 0 {
            let shared = self.num_key_value_heads;
            return unsupported("num_key_value_heads", &shared, "it must divide num_attention_heads");
        }
        Ok(())
    }

    /// Whether text can be generated here: training computes more shapes than generation does.
    ///
    /// # Errors
    /// One sentence about the first field that is wrong.
    pub fn generates(&self) -> Result<(), ConfigError> {
        if self.family != Family::Llama {
            return unsupported(
                "model_type",
                &"gpt2",
                "the engine computes such a model, but none is generated with yet",
            );
        }
        if self.num_key_value_heads != self.num_attention_heads {
            let right = "it must equal num_attention_heads where the model is served";
            return unsupported("num_key_value_heads", &self.num_key_value_heads, right);
        }
        if !self.tie_word_embeddings {
            return unsupported("tie_word_embeddings", &false, "it must be true where the model is served");
        }
        Ok(())
    }

    /// The numbers that training chooses.
    pub fn parameters(&self) -> usize {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let keys = self.num_key_value_heads * self.head_dim;
        let embedding = self.vocab_size * hidden;
        match self.family {
            Family::Llama => {
                let block = 2 * hidden * hidden + 2 * keys * hidden + 3 * hidden * inner + 2 * hidden;
                let head = if self.tie_word_embeddings { 0 } else { embedding };
                embedding + self.num_hidden_layers * block + hidden + head
            }
            Family::Gpt2 => {
                let block = 4 * hidden * hidden + 2 * hidden * inner + 9 * hidden + inner;
                embedding + self.max_position_embeddings * hidden + self.num_hidden_layers * block + 2 * hidden
            }
        }
    }
}

impl Serialize for ModelConfig {
    /// As its `config.json`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.family {
            Family::Llama => LlamaFile::of(self).serialize(serializer),
            Family::Gpt2 => Gpt2File::of(self).serialize(serializer),
        }
    }
}

/// `eos_token_id`: one id, or several, of which the first counts.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum End {
    One(u32),
    Several(Vec<u32>),
}

impl End {
    fn first(this: Option<&Self>) -> Result<u32, ConfigError> {
        match this {
            Some(Self::One(id)) => Ok(*id),
            Some(Self::Several(ids)) if !ids.is_empty() => Ok(ids[0]),
            other => unsupported("eos_token_id", &other, "use the id that ends a response"),
        }
    }
}

/// `config.json` of a Llama.
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
    /// The base of the rotary frequencies, where older readers look for it.
    rope_theta: Option<f64>,
    /// The same base, where newer readers look for it.
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
    eos_token_id: Option<End>,
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
            eos_token_id: Some(End::One(config.eos_token_id)),
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
            eos_token_id: End::first(self.eos_token_id.as_ref())?,
            pad_token_id: self.pad_token_id,
        })
    }
}

/// `config.json` of a GPT-2.
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
    eos_token_id: Option<End>,
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
            eos_token_id: Some(End::One(config.eos_token_id)),
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
            eos_token_id: End::first(self.eos_token_id.as_ref())?,
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
    fn what_is_written_is_read() {
        for config in [tiny(), gpt2()] {
            let bytes = serde_json::to_vec(&config).unwrap();
            assert_eq!(ModelConfig::parse(&bytes).unwrap(), config);
        }
    }

    #[test]
    fn a_file_of_transformers_is_read() {
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
        /// Whatever a number is replaced by, the file is read or refused in one sentence.
        #[test]
        fn any_numbers_are_read_or_refused(which in 0_usize..40, by in "-?[0-9]{1,20}|null|true|\"a\"|\\[\\]|\\{\\}|[0-9]e[0-9]{2}") {
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
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            prop_assert!(ModelConfig::parse(&bytes).is_err());
        }
    }

    #[test]
    fn what_is_not_computed_is_named() {
        let said = |from: &str, to: &str| {
            let text = serde_json::to_string(&tiny()).unwrap();
            assert!(text.contains(from), "{text}");
            ModelConfig::parse(text.replace(from, to).as_bytes()).unwrap_err().to_string()
        };
        assert!(said("\"llama\"", "\"mamba\"").contains("model_type is \"mamba\""));
        assert!(said("\"silu\"", "\"relu\"").contains("relu"));
        assert!(said("\"head_dim\":16", "\"head_dim\":8").contains("head_dim is 8"));
        assert!(said("\"num_attention_heads\":2", "\"num_attention_heads\":3").contains("must be a multiple of 16"));
        assert!(said("\"rope_theta\":10000.0", "\"rope_theta\":1.0").contains("rope_theta 1"));
        assert!(said("\"rope_type\":\"default\"", "\"rope_type\":\"linear\"").contains("rope_parameters"));
    }
}
