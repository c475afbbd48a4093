//! The configuration of a model and its validation. Pure.

/// Head widths that attention is compiled for.
pub const HEAD_WIDTHS: [usize; 8] = [16, 32, 48, 64, 80, 96, 112, 128];

/// The architecture of a model's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `RMSNorm`, rotary positions, SwiGLU, no biases.
    Llama,
    /// `LayerNorm`, learned positions, GELU, biases.
    Gpt2,
}

/// The configuration of a model, as in its `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Architecture of the blocks.
    pub family: Family,
    /// Size of the vocabulary: rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Number of decoder blocks.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key-value heads. Each serves `num_attention_heads / num_key_value_heads` query heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Length of the context in tokens.
    pub max_position_embeddings: usize,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Base of the rotary frequencies. Unused with learned positions.
    pub rope_theta: f64,
    /// Whether the output projection shares the embedding's weight.
    pub tie_word_embeddings: bool,
    /// Token id that begins a sequence. `None` if a sequence begins with its prompt.
    pub bos_token_id: Option<u32>,
    /// Token id that ends a response.
    pub eos_token_id: u32,
    /// Token id used for padding.
    pub pad_token_id: Option<u32>,
}

/// The configurable dimensions of a model that is trained from scratch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Number of decoder blocks.
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Length of the context in tokens.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
}

/// The facts about a tokenizer that a model needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    /// Number of token ids.
    pub size: usize,
    /// Token id that ends a response.
    pub end: u32,
    /// Token id used for padding.
    pub pad: u32,
}

/// The reasons for which a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A dimension is 0.
    #[error("model.{field} is 0: use at least 1")]
    Zero {
        /// Name of the field.
        field: &'static str,
    },
    /// A dimension exceeds its maximum.
    #[error("model.{field} is {value}: use at most {most}")]
    Large {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: usize,
        /// The maximum.
        most: usize,
    },
    /// The head width is not a supported one.
    #[error(
        "model.hidden_size {hidden} with model.num_attention_heads {heads} gives an unsupported head width: hidden_size / \
         num_attention_heads must be a multiple of 16 up to 128"
    )]
    Heads {
        /// `hidden_size`
        hidden: usize,
        /// `num_attention_heads`
        heads: usize,
    },
    /// The base of the rotary frequencies is not a finite number above 1.
    #[error("model.rope_theta is {0}: use a finite number above 1, such as 10000")]
    Theta(f64),
    /// `config.json` asks for something that the engine does not implement.
    #[error("config.json: {field} is {value}, which is not supported: {right}")]
    Unsupported {
        /// Name of the key.
        field: &'static str,
        /// Its value.
        value: String,
        /// The supported values.
        right: &'static str,
    },
    /// The file is not JSON of the expected shape.
    #[error("config.json cannot be read")]
    Json(#[from] serde_json::Error),
}

pub(super) fn unsupported<T>(
    field: &'static str,
    value: &dyn std::fmt::Debug,
    right: &'static str,
) -> Result<T, ConfigError> {
    Err(ConfigError::Unsupported { field, value: format!("{value:?}"), right })
}

impl ModelConfig {
    /// Returns the configuration of a Llama of `shape` over a vocabulary.
    ///
    /// # Errors
    /// The shape is invalid.
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

    /// Checks that the engine implements this configuration.
    ///
    /// # Errors
    /// The first invalid field, in one sentence.
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

    /// Checks that generation implements this configuration; training implements more.
    ///
    /// # Errors
    /// The first unsupported field, in one sentence.
    pub fn generates(&self) -> Result<(), ConfigError> {
        if self.family != Family::Llama {
            return unsupported("model_type", &"gpt2", "it can be trained, but generation does not support it yet");
        }
        if self.num_key_value_heads != self.num_attention_heads {
            let right = "generation requires num_attention_heads";
            return unsupported("num_key_value_heads", &self.num_key_value_heads, right);
        }
        if !self.tie_word_embeddings {
            return unsupported("tie_word_embeddings", &false, "generation requires true");
        }
        Ok(())
    }

    /// Returns the number of trainable parameters.
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
