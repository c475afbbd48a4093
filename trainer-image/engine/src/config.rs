//! `config.json` in the shape of Hugging Face's `LlamaForCausalLM`. Pure.

use serde::{Deserialize, Serialize};

/// The shape of a model: what `config.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// `["LlamaForCausalLM"]`
    pub architectures: Vec<String>,
    /// `llama`
    pub model_type: String,
    /// Ids that the embedding has rows for.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Decoder blocks.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Heads that keys and values have; as many as queries here.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens that fit.
    pub max_position_embeddings: usize,
    /// What is added under the root of `RMSNorm`.
    pub rms_norm_eps: f64,
    /// The base of the rotary frequencies, where older readers look for it.
    pub rope_theta: f64,
    /// The same base, where newer readers look for it.
    pub rope_parameters: RopeParameters,
    /// `silu`
    pub hidden_act: String,
    /// Whether the output projection is the embedding.
    pub tie_word_embeddings: bool,
    /// False: no projection has a bias.
    pub attention_bias: bool,
    /// False: no projection has a bias.
    pub mlp_bias: bool,
    /// None: a sequence begins with its prompt.
    pub bos_token_id: Option<u32>,
    /// The id that ends a response.
    pub eos_token_id: u32,
    /// The id that fills what is not there.
    pub pad_token_id: Option<u32>,
    /// `float32`
    pub dtype: String,
}

/// `rope_parameters` of `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RopeParameters {
    /// `default`
    pub rope_type: String,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
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
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A number that must not be 0.
    #[error("model.{field} is 0: use at least 1")]
    Zero {
        /// Which.
        field: &'static str,
    },
    /// Heads of unequal or unsupported width.
    #[error(
        "model.hidden_size {hidden} with model.num_attention_heads {heads} gives no supported head width: hidden_size / \
         num_attention_heads must be 16, 32, 64 or 128"
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
}

/// Widths of a head that attention is compiled for.
pub(crate) const HEAD_WIDTHS: [usize; 4] = [16, 32, 64, 128];

impl ModelConfig {
    /// The whole configuration of a model of `shape` over a vocabulary.
    ///
    /// # Errors
    /// When the shape cannot be computed.
    pub fn new(shape: Shape, vocabulary: Vocabulary) -> Result<Self, ConfigError> {
        let heads = shape.num_attention_heads;
        let config = Self {
            architectures: vec!["LlamaForCausalLM".to_owned()],
            model_type: "llama".to_owned(),
            vocab_size: vocabulary.size,
            hidden_size: shape.hidden_size,
            intermediate_size: shape.intermediate_size,
            num_hidden_layers: shape.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: heads,
            head_dim: shape.hidden_size.checked_div(heads).unwrap_or(0),
            max_position_embeddings: shape.max_position_embeddings,
            rms_norm_eps: 1e-5,
            rope_theta: shape.rope_theta,
            rope_parameters: RopeParameters { rope_type: "default".to_owned(), rope_theta: shape.rope_theta },
            hidden_act: "silu".to_owned(),
            tie_word_embeddings: true,
            attention_bias: false,
            mlp_bias: false,
            bos_token_id: None,
            eos_token_id: vocabulary.end,
            pad_token_id: Some(vocabulary.pad),
            dtype: "float32".to_owned(),
        };
        config.validate()?;
        Ok(config)
    }

    /// Whether the model can be computed here.
    ///
    /// # Errors
    /// One sentence about the first field that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if value == 0 {
                return Err(ConfigError::Zero { field });
            }
        }
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        if hidden % heads != 0 || !HEAD_WIDTHS.contains(&(hidden / heads)) {
            return Err(ConfigError::Heads { hidden, heads });
        }
        if !self.rope_theta.is_finite() || self.rope_theta <= 1.0 {
            return Err(ConfigError::Theta(self.rope_theta));
        }
        let unsupported = |field, value: &dyn std::fmt::Debug, right| {
            Err(ConfigError::Unsupported { field, value: format!("{value:?}"), right })
        };
        if self.model_type != "llama" {
            return unsupported("model_type", &self.model_type, "use llama");
        }
        if self.head_dim != hidden / heads {
            return unsupported("head_dim", &self.head_dim, "it must be hidden_size / num_attention_heads");
        }
        if self.num_key_value_heads != heads {
            return unsupported("num_key_value_heads", &self.num_key_value_heads, "it must equal num_attention_heads");
        }
        if !self.tie_word_embeddings || self.attention_bias || self.mlp_bias || self.hidden_act != "silu" {
            let value = (self.tie_word_embeddings, self.attention_bias, self.mlp_bias, &self.hidden_act);
            return unsupported(
                "(tie_word_embeddings, attention_bias, mlp_bias, hidden_act)",
                &value,
                "use (true, false, false, silu)",
            );
        }
        if self.rope_parameters.rope_theta.to_bits() != self.rope_theta.to_bits()
            || self.rope_parameters.rope_type != "default"
        {
            return unsupported("rope_parameters", &self.rope_parameters, "it must say default and repeat rope_theta");
        }
        Ok(())
    }

    /// The numbers that training chooses.
    pub fn parameters(&self) -> usize {
        let block = 4 * self.hidden_size * self.hidden_size
            + 3 * self.hidden_size * self.intermediate_size
            + 2 * self.hidden_size;
        self.vocab_size * self.hidden_size + self.num_hidden_layers * block + self.hidden_size
    }
}
