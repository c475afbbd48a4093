//! `model.safetensors` from a file's tensors, in bf16, a few rows at a time. Reads and writes files.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufWriter, Write as _},
    ops::Range,
    path::Path,
};

use codex_engine::{Layout, ModelConfig};
use serde_json::{Map, json};

use super::{ImportError, gguf::Gguf};
use crate::atomic_fs::FileError;

/// Values that are held at once, about.
const CHUNK: usize = 1 << 22;
/// The names of a block's tensors: in a GGUF file, and in Hugging Face's.
const BLOCK: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Returns the GGUF name of a tensor; `None` if it has none.
fn stored_name(name: &str) -> Option<String> {
    let outer = match name {
        "model.embed_tokens.weight" => "token_embd.weight",
        "model.norm.weight" => "output_norm.weight",
        "lm_head.weight" => "output.weight",
        _ => "",
    };
    if !outer.is_empty() {
        return Some(outer.to_owned());
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let part = part.strip_suffix(".weight")?;
    let (short, _) = BLOCK.iter().find(|(_, long)| *long == part)?;
    Some(format!("blk.{layer}.{short}.weight"))
}

/// Writes the weights.
///
/// # Errors
/// A tensor is missing, has another shape, cannot be read, or has no place in the model; or the file cannot be written.
pub(super) fn write(gguf: &Gguf, config: &ModelConfig, layout: &Layout, path: &Path) -> Result<(), ImportError> {
    let mut stored = Vec::new();
    for tensor in layout.tensors() {
        let name = stored_name(&tensor.name).ok_or_else(|| ImportError::Missing(tensor.name.clone()))?;
        let found = gguf.shape(&name).ok_or_else(|| ImportError::Missing(name.clone()))?;
        if found != tensor.shape {
            return Err(ImportError::Shape { name, found: found.to_vec(), expected: tensor.shape.clone() });
        }
        stored.push(name);
    }
    let known: BTreeSet<&str> = stored.iter().map(String::as_str).chain(["rope_freqs.weight"]).collect();
    if let Some(unused) = gguf.tensors().find(|name| !known.contains(name)) {
        return Err(ImportError::Unused(unused.to_owned()));
    }
    let failed = |action| FileError::of(action, path);
    let mut file = BufWriter::new(File::create(path).map_err(failed("creating"))?);
    let header = header(layout);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed("writing"))?;
    file.write_all(&header).map_err(failed("writing"))?;
    for (tensor, name) in layout.tensors().iter().zip(&stored) {
        let width = tensor.shape.last().copied().unwrap_or(1).max(1);
        let rows = tensor.count() / width;
        let interleaved = name.ends_with(".attn_q.weight") || name.ends_with(".attn_k.weight");
        let head = if interleaved { config.head_dim } else { 1 };
        let step = (CHUNK / width).max(1).next_multiple_of(head);
        for start in (0..rows).step_by(step) {
            let values = read(gguf, name, start..rows.min(start + step), width, head)?;
            let bytes: Vec<u8> = values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect();
            file.write_all(&bytes).map_err(failed("writing"))?;
        }
    }
    let file = file.into_inner().map_err(std::io::IntoInnerError::into_error).map_err(failed("writing"))?;
    Ok(file.sync_all().map_err(failed("syncing"))?)
}

/// Reads rows, and puts the halves of each head apart if heads are `head` rows high: row 2i + h of a stored head is row i of its
/// half h.
fn read(gguf: &Gguf, name: &str, rows: Range<usize>, width: usize, head: usize) -> Result<Vec<f32>, ImportError> {
    let values = gguf.rows(name, rows)?;
    if head == 1 {
        return Ok(values);
    }
    let mut apart = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head * width) {
        for half in 0..2 {
            apart.extend(head.chunks_exact(width).skip(half).step_by(2).flatten());
        }
    }
    Ok(apart)
}

/// Returns the header of a file with all tensors in bf16, padded to 8 bytes.
fn header(layout: &Layout) -> Vec<u8> {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    for tensor in layout.tensors() {
        let offsets = [2 * tensor.range.start, 2 * tensor.range.end];
        entries.insert(tensor.name.clone(), json!({"dtype": "BF16", "shape": tensor.shape, "data_offsets": offsets}));
    }
    entries.sort_keys();
    let mut header = serde_json::Value::Object(entries).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    header
}
