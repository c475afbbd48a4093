//! The configuration of a model and its validation. Pure.

/// Head widths that the kernels are compiled for. candle computes models with others.
pub const HEAD_WIDTHS: [usize; 12] = [16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256];

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
    /// Scaling of the rotary frequencies for contexts longer than the pretrained one.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether queries, keys and values have biases, as in Qwen2.
    pub qkv_bias: bool,
    /// Whether each head of queries and keys is normalized, as in Qwen3.
    pub qk_norm: bool,
    /// Whether the output projection shares the embedding's weight.
    pub tie_word_embeddings: bool,
    /// Token id that begins a sequence. `None` if a sequence begins with its prompt.
    pub bos_token_id: Option<u32>,
    /// Token ids that end a response; at least one.
    pub eos_token_ids: Vec<u32>,
    /// Token id used for padding.
    pub pad_token_id: Option<u32>,
}

/// Scaling of the rotary frequencies, as in `rope_scaling` of `config.json`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Divides all frequencies by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3.1's: divides low frequencies by a factor, keeps high ones, and interpolates between them.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Wavelengths above the original context divided by this are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below the original context divided by this are high frequencies.
        high_freq_factor: f64,
        /// The context that the model was pretrained with.
        original_context: usize,
    },
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
    /// The head width of a new model is not one of the kernels'.
    #[error(
        "model.hidden_size {hidden} with model.num_attention_heads {heads} gives an unsupported head width: hidden_size / \
         num_attention_heads must be a multiple of 16 up to 128, or 160, 192, 224 or 256"
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
    /// Returns the configuration of a new Llama of `shape` over a vocabulary. The kernels know its shape.
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
            rope_scaling: None,
            qkv_bias: false,
            qk_norm: false,
            tie_word_embeddings: true,
            bos_token_id: None,
            eos_token_ids: vec![vocabulary.end],
            pad_token_id: Some(vocabulary.pad),
        };
        let hidden = shape.hidden_size;
        if hidden > 0 && heads > 0 && (!HEAD_WIDTHS.contains(&config.head_dim) || !hidden.is_multiple_of(heads)) {
            return Err(ConfigError::Heads { hidden, heads });
        }
        config.validate()?;
        Ok(config)
    }

    /// Checks that an engine implements this configuration.
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
        let derived = hidden.checked_div(heads).unwrap_or(0);
        if !self.rope_theta.is_finite() || self.rope_theta <= 1.0 {
            return Err(ConfigError::Theta(self.rope_theta));
        }
        // Rotary positions turn pairs of elements.
        if self.head_dim == 0
            || self.head_dim > 1 << 12
            || (!self.head_dim.is_multiple_of(2) && self.family == Family::Llama)
        {
            return unsupported("head_dim", &self.head_dim, "use an even number up to 4096");
        }
        if self.family == Family::Gpt2 && (self.head_dim != derived || !hidden.is_multiple_of(heads)) {
            return unsupported("head_dim", &self.head_dim, "it must be n_embd / n_head");
        }
        match self.rope_scaling {
            None => {}
            Some(RopeScaling::Linear { factor }) if factor.is_finite() && factor >= 1.0 => {}
            Some(RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_context })
                if factor.is_finite()
                    && factor >= 1.0
                    && low > 0.0
                    && high > low
                    && high.is_finite()
                    && original_context > 0 => {}
            Some(_) => {
                let right = "use a factor of at least 1 and 0 < low_freq_factor < high_freq_factor";
                return unsupported("rope_scaling", &"out of range", right);
            }
        }
        if heads % self.num_key_value_heads != 0 {
            let shared = self.num_key_value_heads;
            return unsupported("num_key_value_heads", &shared, "it must divide num_attention_heads");
        }
        Ok(())
    }

    /// Returns the angle per position of each pair of a head's elements, or nothing if positions are learned.
    pub(crate) fn inverse_frequencies(&self) -> Vec<f64> {
        let Family::Llama = self.family else { return Vec::new() };
        let width = self.head_dim as f64;
        let frequencies = (0..self.head_dim / 2).map(|pair| self.rope_theta.powf(-2.0 * pair as f64 / width));
        frequencies
            .map(|frequency| match self.rope_scaling {
                None => frequency,
                Some(RopeScaling::Linear { factor }) => frequency / factor,
                Some(RopeScaling::Llama3 {
                    factor,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_context,
                }) => {
                    let turns = original_context as f64 * frequency / std::f64::consts::TAU;
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - kept) * frequency / factor + kept * frequency
                }
            })
            .collect()
    }

    /// Returns the number of trainable parameters.
    pub fn parameters(&self) -> usize {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (queries, keys) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let embedding = self.vocab_size * hidden;
        match self.family {
            Family::Llama => {
                let biases = if self.qkv_bias { queries + 2 * keys } else { 0 };
                let norms = 2 * hidden + if self.qk_norm { 2 * self.head_dim } else { 0 };
                let block = 2 * queries * hidden + 2 * keys * hidden + 3 * hidden * inner + biases + norms;
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
