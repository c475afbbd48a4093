//! `adapter_config.json` of PEFT. Pure.

use std::collections::BTreeMap;

use codex_engine::Layout;
use regex::Regex;
use serde::Deserialize;
use serde_json::Value;

use super::error::AdapterError;

/// Keys that say nothing about the merged weights: where the adapter comes from, and how it was initialized and trained.
const SILENT: [&str; 18] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "init_lora_weights",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "fan_in_fan_out",
];

/// The settings that decide how an adapter is merged.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    /// Rank of every pair of matrices.
    pub(super) rank: usize,
    /// Factor of `B A`.
    pub(super) scale: f32,
    targets: Targets,
    /// Layers that have adapters; `None` for all.
    layers: Option<Vec<usize>>,
}

/// The modules that have adapters.
#[derive(Debug)]
enum Targets {
    /// Every linear layer but the output projection.
    AllLinear,
    /// Modules whose name is one of these or ends in `.` and one of these.
    Names(Vec<String>),
    /// Modules whose whole name matches.
    Pattern(Box<Regex>),
}

/// The keys that are read. All others must not change weights.
#[derive(Deserialize)]
struct Keys {
    peft_type: Value,
    r: Value,
    lora_alpha: Value,
    target_modules: Value,
    #[serde(default)]
    use_rslora: Value,
    #[serde(default)]
    bias: Value,
    #[serde(default)]
    layers_to_transform: Value,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

fn refuse(key: &str, value: &Value, right: &'static str) -> AdapterError {
    AdapterError::Key { key: key.to_owned(), value: value.to_string(), right }
}

impl AdapterConfig {
    /// Reads the configuration.
    ///
    /// # Errors
    /// It is not JSON, lacks a key, or asks for something that is not supported.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, AdapterError> {
        let keys: Keys = codex_json::from_slice(bytes).map_err(AdapterError::Json)?;
        if keys.peft_type != "LORA" {
            return Err(refuse("peft_type", &keys.peft_type, "only LORA is"));
        }
        for (key, value) in &keys.others {
            check_other(key, value)?;
        }
        if !matches!(keys.bias.as_str(), None | Some("none")) {
            return Err(refuse(
                "bias",
                &keys.bias,
                "only none is, because other biases are trained weights of the base",
            ));
        }
        let rank = keys.r.as_u64().filter(|rank| (1..=65_536).contains(rank));
        let rank = rank.ok_or_else(|| refuse("r", &keys.r, "write a whole number from 1 to 65536"))? as usize;
        let alpha = keys.lora_alpha.as_f64().filter(|alpha| alpha.is_finite());
        let alpha = alpha.ok_or_else(|| refuse("lora_alpha", &keys.lora_alpha, "write a number"))?;
        let root = match &keys.use_rslora {
            Value::Null | Value::Bool(false) => false,
            Value::Bool(true) => true,
            other => return Err(refuse("use_rslora", other, "write true or false")),
        };
        let divisor = if root { (rank as f64).sqrt() } else { rank as f64 };
        Ok(Self {
            rank,
            scale: (alpha / divisor) as f32,
            targets: Targets::of(&keys.target_modules)?,
            layers: layers(&keys.layers_to_transform)?,
        })
    }

    /// Returns the modules of a model that have adapters, with their shapes [outputs, inputs] as stored.
    ///
    /// # Errors
    /// There is none, or one of them cannot have an adapter.
    pub(super) fn modules<'a>(&self, layout: &'a Layout) -> Result<BTreeMap<&'a str, [usize; 2]>, AdapterError> {
        let mut chosen = BTreeMap::new();
        let mut known: Vec<&str> = Vec::new();
        for tensor in layout.tensors() {
            let (Some(module), [rows, columns]) = (tensor.name.strip_suffix(".weight"), tensor.shape.as_slice()) else {
                continue;
            };
            if module.contains("embed") || module.ends_with("wte") || module.ends_with("wpe") {
                continue;
            }
            let last = module.rsplit('.').next().unwrap_or(module);
            if !known.contains(&last) {
                known.push(last);
            }
            let layer = module.split('.').find_map(|part| part.parse::<usize>().ok());
            let among = self.layers.as_ref().is_none_or(|layers| layer.is_some_and(|layer| layers.contains(&layer)));
            if among && self.targets.has(module) {
                chosen.insert(module, [*rows, *columns]);
            }
        }
        if self.targets.names("lm_head") && !chosen.contains_key("lm_head") && !known.contains(&"lm_head") {
            return Err(AdapterError::TiedHead);
        }
        if chosen.is_empty() {
            return Err(AdapterError::NoTarget { targets: self.targets.to_string(), known: known.join(", ") });
        }
        Ok(chosen)
    }
}

/// Refuses keys that change the merged weights in a way that is not supported.
fn check_other(key: &str, value: &Value) -> Result<(), AdapterError> {
    let neutral = match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    let right = match key {
        // PEFT takes it from the layer: Conv1D stores its weight transposed, Linear does not.
        "fan_in_fan_out" if !value.is_boolean() && !value.is_null() => "write true or false",
        _ if neutral || SILENT.contains(&key) => return Ok(()),
        "modules_to_save" => "only null is, because whole modules beside the adapter are not merged",
        "rank_pattern" | "alpha_pattern" => "only {} is: train with one rank and one alpha",
        "exclude_modules" => "only null is: name the modules in target_modules",
        "layer_replication" => "only null is, because a model with repeated layers is another model",
        "lora_bias" => "only false is",
        "use_dora" => "only false is, because DoRA's magnitudes are not merged",
        _ => "the key is unknown; only null, false and empty values of unknown keys are",
    };
    Err(refuse(key, value, right))
}

/// Reads `layers_to_transform`: null, a number or a list of numbers.
fn layers(value: &Value) -> Result<Option<Vec<usize>>, AdapterError> {
    let number = |value: &Value| value.as_u64().and_then(|layer| usize::try_from(layer).ok());
    let read = match value {
        Value::Null => return Ok(None),
        Value::Array(layers) => layers.iter().map(number).collect(),
        one => number(one).map(|layer| vec![layer]),
    };
    read.map(Some).ok_or_else(|| refuse("layers_to_transform", value, "write null, or a list of whole numbers"))
}

impl Targets {
    fn of(value: &Value) -> Result<Self, AdapterError> {
        let right = "write a list of names, such as [\"q_proj\", \"v_proj\"], a regular expression, or \"all-linear\"";
        match value {
            Value::String(text) if text == "all-linear" => Ok(Self::AllLinear),
            Value::String(pattern) => {
                let whole = Regex::new(&format!("^(?:{pattern})$"));
                whole
                    .map(|regex| Self::Pattern(Box::new(regex)))
                    .map_err(|error| AdapterError::Pattern(Box::new(error)))
            }
            Value::Array(names) => {
                let names: Option<Vec<String>> = names.iter().map(|name| name.as_str().map(str::to_owned)).collect();
                names
                    .filter(|names| !names.is_empty())
                    .map(Self::Names)
                    .ok_or_else(|| refuse("target_modules", value, right))
            }
            other => Err(refuse("target_modules", other, right)),
        }
    }

    fn has(&self, module: &str) -> bool {
        match self {
            Self::AllLinear => module != "lm_head",
            Self::Pattern(regex) => regex.is_match(module),
            Self::Names(_) => self.names(module),
        }
    }

    /// Returns whether a list names the module.
    fn names(&self, module: &str) -> bool {
        let Self::Names(names) = self else { return false };
        let ends = |name: &String| {
            module.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        names.iter().any(ends)
    }
}

impl std::fmt::Display for Targets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AllLinear => f.write_str("all-linear"),
            Self::Names(names) => f.write_str(&names.join(", ")),
            Self::Pattern(regex) => f.write_str(regex.as_str()),
        }
    }
}
