//! `config.json` as Hugging Face's `LlamaForCausalLM` and `GPT2LMHeadModel` read and write it. Pure.

use serde::{Deserialize, Serialize, Serializer};

use super::{ConfigError, Family, ModelConfig, RopeScaling, config::unsupported};

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
            "llama" | "mistral" | "qwen2" | "qwen3" => codex_json::from_slice::<LlamaFile>(bytes)?.config()?,
            "gpt2" => codex_json::from_slice::<Gpt2File>(bytes)?.config()?,
            other => return unsupported("model_type", &other, "use llama, mistral, qwen2, qwen3 or gpt2"),
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

/// `eos_token_id`: one id or a list.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum EosTokenId {
    One(u32),
    Several(Vec<u32>),
}

impl EosTokenId {
    fn of(ids: &[u32]) -> Self {
        match ids {
            [id] => Self::One(*id),
            ids => Self::Several(ids.to_vec()),
        }
    }

    fn ids(this: Option<Self>) -> Result<Vec<u32>, ConfigError> {
        match this {
            Some(Self::One(id)) => Ok(vec![id]),
            Some(Self::Several(ids)) if !ids.is_empty() => Ok(ids),
            Some(Self::Several(_)) => unsupported("eos_token_id", &[0; 0], "use the id that ends a response"),
            None => unsupported("eos_token_id", &"missing", "use the id that ends a response"),
        }
    }
}

/// `config.json` of a `LlamaForCausalLM`, `MistralForCausalLM`, `Qwen2ForCausalLM` or `Qwen3ForCausalLM`.
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
    /// The scaling, where older versions of `transformers` read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    rope_scaling: Option<RopeParameters>,
    hidden_act: String,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default, skip_serializing)]
    use_sliding_window: Option<bool>,
    #[serde(default, skip_serializing)]
    sliding_window: Option<usize>,
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

/// `rope_parameters` or `rope_scaling` of `config.json`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct RopeParameters {
    #[serde(skip_serializing_if = "Option::is_none")]
    rope_type: Option<String>,
    /// The older name of `rope_type`; some versions write both.
    #[serde(rename = "type", skip_serializing)]
    older_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rope_theta: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    factor: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    low_freq_factor: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    high_freq_factor: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    original_max_position_embeddings: Option<usize>,
}

impl RopeParameters {
    fn of(scaling: Option<RopeScaling>) -> Self {
        let named = |name: &str| Self { rope_type: Some(name.to_owned()), ..Self::default() };
        match scaling {
            None => named("default"),
            Some(RopeScaling::Linear { factor }) => Self { factor: Some(factor), ..named("linear") },
            Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context }) => Self {
                factor: Some(factor),
                low_freq_factor: Some(low_freq_factor),
                high_freq_factor: Some(high_freq_factor),
                original_max_position_embeddings: Some(original_context),
                ..named("llama3")
            },
        }
    }

    fn scaling(&self, field: &'static str) -> Result<Option<RopeScaling>, ConfigError> {
        let missing = |key: &'static str| ConfigError::Unsupported {
            field,
            value: format!("without {key}"),
            right: "write it as transformers does",
        };
        let factor = || self.factor.ok_or_else(|| missing("factor"));
        let kind = match (&self.rope_type, &self.older_type) {
            (Some(kind), Some(older)) if kind != older => {
                return unsupported(field, &(kind, older), "rope_type and type must be equal");
            }
            (kind, older) => kind.as_deref().or(older.as_deref()),
        };
        match kind {
            None | Some("default") => Ok(None),
            Some("linear") => Ok(Some(RopeScaling::Linear { factor: factor()? })),
            Some("llama3") => Ok(Some(RopeScaling::Llama3 {
                factor: factor()?,
                low_freq_factor: self.low_freq_factor.ok_or_else(|| missing("low_freq_factor"))?,
                high_freq_factor: self.high_freq_factor.ok_or_else(|| missing("high_freq_factor"))?,
                original_context: self
                    .original_max_position_embeddings
                    .ok_or_else(|| missing("original_max_position_embeddings"))?,
            })),
            Some(other) => unsupported(field, &other, "use default, linear or llama3"),
        }
    }
}

impl LlamaFile {
    fn of(config: &ModelConfig) -> Self {
        let theta = Some(config.rope_theta);
        let (architecture, model_type) = match (config.qkv_bias, config.qk_norm) {
            (_, true) => ("Qwen3ForCausalLM", "qwen3"),
            (true, false) => ("Qwen2ForCausalLM", "qwen2"),
            (false, false) => ("LlamaForCausalLM", "llama"),
        };
        Self {
            architectures: vec![architecture.to_owned()],
            model_type: model_type.to_owned(),
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
            rope_parameters: Some(RopeParameters { rope_theta: theta, ..RopeParameters::of(config.rope_scaling) }),
            rope_scaling: config.rope_scaling.map(|scaling| RopeParameters::of(Some(scaling))),
            hidden_act: "silu".to_owned(),
            tie_word_embeddings: config.tie_word_embeddings,
            attention_bias: false,
            mlp_bias: false,
            use_sliding_window: None,
            sliding_window: None,
            bos_token_id: config.bos_token_id,
            eos_token_id: Some(EosTokenId::of(&config.eos_token_ids)),
            pad_token_id: config.pad_token_id,
            dtype: float32(),
        }
    }

    fn config(self) -> Result<ModelConfig, ConfigError> {
        if self.attention_bias || self.mlp_bias || self.hidden_act != "silu" {
            let value = (self.attention_bias, self.mlp_bias, &self.hidden_act);
            return unsupported("(attention_bias, mlp_bias, hidden_act)", &value, "use (false, false, silu)");
        }
        let kind = self.model_type.as_str();
        let windowed = match kind {
            "mistral" => self.sliding_window.is_some(),
            _ => self.use_sliding_window == Some(true),
        };
        if windowed && self.sliding_window.is_none_or(|window| window < self.max_position_embeddings) {
            return unsupported(
                "sliding_window",
                &self.sliding_window.unwrap_or(0),
                "only full attention is supported",
            );
        }
        let theta = self.rope_parameters.as_ref().and_then(|parameters| parameters.rope_theta);
        if let (Some(outer), Some(inner)) = (self.rope_theta, theta)
            && outer.to_bits() != inner.to_bits()
        {
            return unsupported("rope_theta", &outer, "it must equal rope_parameters.rope_theta");
        }
        let parsed =
            |field, parameters: Option<&RopeParameters>| parameters.map(|found| found.scaling(field)).transpose();
        let newer = parsed("rope_parameters", self.rope_parameters.as_ref())?;
        let older = parsed("rope_scaling", self.rope_scaling.as_ref())?;
        let rope_scaling = match (newer, older) {
            (Some(newer), Some(older)) if newer != older => {
                return unsupported("rope_scaling", &"another scaling", "it must equal rope_parameters");
            }
            (Some(scaling), _) | (None, Some(scaling)) => scaling,
            (None, None) => None,
        };
        let width = || self.hidden_size.checked_div(self.num_attention_heads).unwrap_or(0);
        let head_dim = self.head_dim.unwrap_or_else(|| if kind == "qwen3" { 128 } else { width() });
        let Some(kv_heads) = self.num_key_value_heads.or((kind == "llama").then_some(self.num_attention_heads)) else {
            return unsupported("num_key_value_heads", &"missing", "write it");
        };
        Ok(ModelConfig {
            family: Family::Llama,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: kv_heads,
            head_dim,
            max_position_embeddings: self.max_position_embeddings,
            norm_eps: self.rms_norm_eps,
            rope_theta: self.rope_theta.or(theta).unwrap_or(10_000.0),
            rope_scaling,
            qkv_bias: kind == "qwen2",
            qk_norm: kind == "qwen3",
            tie_word_embeddings: self.tie_word_embeddings,
            bos_token_id: self.bos_token_id,
            eos_token_ids: EosTokenId::ids(self.eos_token_id)?,
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
            eos_token_id: Some(EosTokenId::of(&config.eos_token_ids)),
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
            rope_scaling: None,
            qkv_bias: false,
            qk_norm: false,
            tie_word_embeddings: true,
            bos_token_id: self.bos_token_id,
            eos_token_ids: EosTokenId::ids(self.eos_token_id)?,
            pad_token_id: self.pad_token_id,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tests::{gpt2, shapes, tiny};

    #[test]
    fn a_written_configuration_is_read_back() {
        for config in shapes() {
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
        assert_eq!((config.num_key_value_heads, config.head_dim, config.eos_token_ids), (2, 16, vec![2, 3]));
        assert!(!config.tie_word_embeddings && (config.rope_theta - 500_000.0).abs() < 1e-9);
        let gpt2 = r#"{"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_head": 12, "n_layer": 12,
            "n_positions": 1024, "n_ctx": 1024, "resid_pdrop": 0.1, "bos_token_id": 50256, "eos_token_id": 50256}"#;
        let config = ModelConfig::parse(gpt2.as_bytes()).unwrap();
        assert_eq!((config.intermediate_size, config.head_dim, config.parameters()), (3072, 64, 124_439_808));
    }

    #[test]
    fn other_families_are_parsed() {
        let parse = |text: &str| ModelConfig::parse(text.as_bytes()).unwrap();
        let shape = r#""vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "hidden_act": "silu",
            "eos_token_id": 2"#;
        let qwen2 =
            parse(&format!(r#"{{"model_type": "qwen2", {shape}, "sliding_window": 32, "use_sliding_window": false}}"#));
        assert!(qwen2.qkv_bias && !qwen2.qk_norm && qwen2.head_dim == 16);
        let qwen3 = parse(&format!(r#"{{"model_type": "qwen3", {shape}}}"#));
        assert!(!qwen3.qkv_bias && qwen3.qk_norm && qwen3.head_dim == 128);
        let mistral = parse(&format!(r#"{{"model_type": "mistral", {shape}, "sliding_window": null}}"#));
        assert!(!mistral.qkv_bias && !mistral.qk_norm && mistral.rope_scaling.is_none());
        let old = parse(&format!(
            r#"{{"model_type": "llama", {shape}, "rope_theta": 500000.0, "rope_scaling": {{"type": "linear", "factor": 4.0}}}}"#
        ));
        assert_eq!(old.rope_scaling, Some(RopeScaling::Linear { factor: 4.0 }));
        let both = |older: &str| {
            let scaling = format!(r#"{{"type": "{older}", "rope_type": "linear", "factor": 4.0}}"#);
            ModelConfig::parse(format!(r#"{{"model_type": "llama", {shape}, "rope_scaling": {scaling}}}"#).as_bytes())
        };
        assert_eq!(both("linear").unwrap().rope_scaling, old.rope_scaling);
        assert!(both("llama3").unwrap_err().to_string().contains("rope_type and type must be equal"));
    }

    #[test]
    fn several_end_tokens_are_kept() {
        for ids in [vec![7], vec![7, 3]] {
            let config = ModelConfig { eos_token_ids: ids, ..tiny() };
            assert_eq!(ModelConfig::parse(&serde_json::to_vec(&config).unwrap()).unwrap(), config);
        }
        let text = serde_json::to_string(&ModelConfig { eos_token_ids: vec![7, 3], ..tiny() }).unwrap();
        assert!(ModelConfig::parse(text.replace("[7,3]", "[]").as_bytes()).is_err());
    }

    /// Expected values follow `_compute_llama3_parameters` of `transformers`.
    #[test]
    fn llama3_scaling_keeps_high_frequencies() {
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
        let plain = ModelConfig { head_dim: 128, rope_theta: 500_000.0, ..tiny() };
        let scaled = ModelConfig { rope_scaling: Some(scaling), ..plain.clone() }.inverse_frequencies();
        let plain = plain.inverse_frequencies();
        for (pair, (plain, scaled)) in plain.iter().zip(&scaled).enumerate() {
            let wavelength = std::f64::consts::TAU / plain;
            let expected = if wavelength < 2048.0 {
                *plain
            } else if wavelength > 8192.0 {
                plain / 8.0
            } else {
                let smooth = (8192.0 / wavelength - 1.0) / 3.0;
                (1.0 - smooth) * plain / 8.0 + smooth * plain
            };
            assert!((scaled - expected).abs() < 1e-12 * expected, "{pair}");
        }
        assert!((scaled[0] - 1.0).abs() < 1e-12 && (scaled[63] - plain[63] / 8.0).abs() < 1e-12);
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
        assert!(
            said("\"head_dim\":16", "\"head_dim\":7")
                .contains("head_dim is 7, which is not supported: use an even number")
        );
        let heads = "\"num_attention_heads\":2,\"num_key_value_heads\":2,\"head_dim\":16";
        let changed = "\"num_attention_heads\":10,\"num_key_value_heads\":10";
        assert!(said(heads, changed).contains("head_dim is 3"));
        assert!(said("\"rope_theta\":10000.0", "\"rope_theta\":1.0").contains("rope_theta is 1"));
        assert!(said("\"rope_type\":\"default\"", "\"rope_type\":\"linear\"").contains("without factor"));
        assert!(said("\"rope_type\":\"default\"", "\"rope_type\":\"yarn\"").contains("rope_parameters is \"yarn\""));
        assert!(said("\"llama\"", "\"mistral\",\"sliding_window\":32").contains("sliding_window is 32"));
    }
}
