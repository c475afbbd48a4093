//! The files of a LoRA adapter as PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`. Pure.

use codex_engine::{Layout, Lora};
use serde_json::json;

use super::{
    directory::{encode, pretty},
    files::{ModelError, ModelFiles},
    weights::bytes,
};

/// The configuration of an adapter.
pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The weights of an adapter.
pub(crate) const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

/// Returns the files of an adapter. `parameters` are in the order of `layout`, which is [`Lora::layout`].
///
/// # Errors
/// When the weights cannot be encoded.
pub(crate) fn describe_adapter(lora: &Lora, layout: &Layout, parameters: &[f32]) -> Result<ModelFiles, ModelError> {
    let whole = lora.alpha.fract().abs() < f64::EPSILON;
    let alpha = if whole { json!(lora.alpha as u64) } else { json!(lora.alpha) };
    let targets: Vec<&str> = lora.targets.iter().map(|target| target.name()).collect();
    let config = json!({
        "base_model_name_or_path": null,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": alpha,
        "lora_dropout": lora.dropout,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": lora.rank,
        "revision": null,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": false,
    });
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = layout
        .tensors()
        .iter()
        .map(|tensor| (tensor.name.clone(), tensor.shape.clone(), bytes(&parameters[tensor.range.clone()])))
        .collect();
    Ok(ModelFiles::from([
        (ADAPTER_CONFIG.to_owned(), pretty(&config)?),
        (ADAPTER_WEIGHTS.to_owned(), encode(&tensors, ADAPTER_WEIGHTS)?),
    ]))
}
