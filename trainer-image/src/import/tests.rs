//! Imports of small files that candle writes, with the tokenizer of a fixture.

use std::path::{Path, PathBuf};

use candle_core::{
    Device, Tensor,
    quantized::{
        GgmlDType, QTensor,
        gguf_file::{Value, write},
    },
};
use codex_engine::{Layout, ModelConfig};
use proptest::prelude::*;

use super::*;
use crate::model::read_directory;

const HIDDEN: usize = 256;
const HEADS: usize = 4;
const KEYS: usize = 2;
const WIDTH: usize = HIDDEN / HEADS;

fn fixture(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/text/fixtures").join(family)
}

/// The tokens of the fixture in the order of their ids, and its merges.
fn vocabulary(family: &str) -> (Vec<String>, Vec<String>) {
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture(family).join("tokenizer.json")).unwrap()).unwrap();
    let mut tokens: Vec<(String, u64)> = json["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(token, id)| (token.clone(), id.as_u64().unwrap()))
        .collect();
    let added = json["added_tokens"].as_array().unwrap();
    tokens.extend(added.iter().map(|it| (it["content"].as_str().unwrap().to_owned(), it["id"].as_u64().unwrap())));
    tokens.sort_by_key(|(_, id)| *id);
    tokens.dedup();
    let merges = json["model"]["merges"].as_array().unwrap();
    let merges = merges.iter().map(|pair| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()));
    (tokens.into_iter().map(|(token, _)| token).collect(), merges.collect())
}

/// Numbers between -1 and 1.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|at| ((at * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
}

/// The tensors of Hugging Face's model: name there, name in the file, rows, width.
fn tensors(tokens: usize) -> Vec<(&'static str, &'static str, usize, usize)> {
    vec![
        ("model.embed_tokens.weight", "token_embd.weight", tokens, HIDDEN),
        ("model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight", 1, HIDDEN),
        ("model.layers.0.self_attn.q_proj.weight", "blk.0.attn_q.weight", HEADS * WIDTH, HIDDEN),
        ("model.layers.0.self_attn.k_proj.weight", "blk.0.attn_k.weight", KEYS * WIDTH, HIDDEN),
        ("model.layers.0.self_attn.v_proj.weight", "blk.0.attn_v.weight", KEYS * WIDTH, HIDDEN),
        ("model.layers.0.self_attn.o_proj.weight", "blk.0.attn_output.weight", HIDDEN, HEADS * WIDTH),
        ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight", 1, HIDDEN),
        ("model.layers.0.mlp.gate_proj.weight", "blk.0.ffn_gate.weight", 512, HIDDEN),
        ("model.layers.0.mlp.up_proj.weight", "blk.0.ffn_up.weight", 512, HIDDEN),
        ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight", HIDDEN, 512),
        ("model.norm.weight", "output_norm.weight", 1, HIDDEN),
    ]
}

/// Interleaves the halves of each head, as llama.cpp's converter does.
fn interleave(values: &[f32], width: usize) -> Vec<f32> {
    let row = |at: usize| &values[at * width..(at + 1) * width];
    let rows = values.len() / width;
    (0..rows).flat_map(|at| row(at / WIDTH * WIDTH + at % 2 * (WIDTH / 2) + at % WIDTH / 2)).copied().collect()
}

/// Returns a file whose matrices have this type, after `change`.
fn file(dtype: GgmlDType, change: impl FnOnce(&mut Vec<(String, Value)>)) -> Vec<u8> {
    file_of("smollm2", dtype, change)
}

/// Returns a file with the tokenizer of a family.
fn file_of(family: &str, dtype: GgmlDType, change: impl FnOnce(&mut Vec<(String, Value)>)) -> Vec<u8> {
    let (tokens, merges) = vocabulary(family);
    let id = |token: &str| Value::U32(tokens.iter().position(|known| known == token).unwrap() as u32);
    let [begin, end] = match family {
        "llama3" => ["<|begin_of_text|>", "<|eot_id|>"],
        _ => ["<|im_start|>", "<|im_end|>"],
    };
    let texts = |all: &[String]| Value::Array(all.iter().map(|text| Value::String(text.clone())).collect());
    let kinds = tokens.iter().map(|token| Value::I32(if token.starts_with("<|") { 3 } else { 1 })).collect();
    let template = std::fs::read_to_string(fixture("templates").join(format!("{family}.jinja"))).unwrap();
    let mut metadata: Vec<(String, Value)> = [
        ("general.architecture", Value::String("llama".to_owned())),
        ("llama.block_count", Value::U32(1)),
        ("llama.context_length", Value::U32(128)),
        ("llama.embedding_length", Value::U32(HIDDEN as u32)),
        ("llama.feed_forward_length", Value::U32(512)),
        ("llama.attention.head_count", Value::U32(HEADS as u32)),
        ("llama.attention.head_count_kv", Value::U32(KEYS as u32)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.rope.freq_base", Value::F32(100_000.0)),
        ("tokenizer.ggml.model", Value::String("gpt2".to_owned())),
        ("tokenizer.ggml.pre", Value::String("smollm".to_owned())),
        ("tokenizer.ggml.bos_token_id", id(begin)),
        ("tokenizer.ggml.eos_token_id", id(end)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
        ("tokenizer.chat_template", Value::String(template)),
        ("tokenizer.ggml.tokens", texts(&tokens)),
        ("tokenizer.ggml.merges", texts(&merges)),
        ("tokenizer.ggml.token_type", Value::Array(kinds)),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    change(&mut metadata);
    written(&metadata, tokens.len(), dtype)
}

/// Returns a file with the metadata of the shape, for a vocabulary of this size, after `change`.
fn file_with_tokens(tokens: usize, dtype: GgmlDType, change: impl FnOnce(&mut Vec<(String, Value)>)) -> Vec<u8> {
    let mut metadata = Vec::new();
    file_of("smollm2", dtype, |all| metadata.clone_from(all));
    change(&mut metadata);
    written(&metadata, tokens, dtype)
}

fn written(metadata: &[(String, Value)], tokens: usize, dtype: GgmlDType) -> Vec<u8> {
    let stored: Vec<(&str, QTensor)> = tensors(tokens)
        .into_iter()
        .enumerate()
        .map(|(seed, (_, name, rows, width))| {
            let mut values = numbers(rows * width, seed);
            if name.contains("attn_q") || name.contains("attn_k") {
                values = interleave(&values, width);
            }
            let tensor = Tensor::from_vec(values, (rows, width), &Device::Cpu).unwrap();
            let (tensor, dtype) =
                if rows == 1 { (tensor.flatten_all().unwrap(), GgmlDType::F32) } else { (tensor, dtype) };
            (name, QTensor::quantize(&tensor, dtype).unwrap())
        })
        .collect();
    let mut bytes = std::io::Cursor::new(Vec::new());
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> = stored.iter().map(|(name, tensor)| (*name, tensor)).collect();
    write(&mut bytes, &metadata, &tensors).unwrap();
    bytes.into_inner()
}

/// Imports a file. On success the directory is `out` in the returned one.
fn imported(bytes: &[u8]) -> (tempfile::TempDir, Result<(usize, usize), ImportError>) {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("source.gguf");
    std::fs::write(&source, bytes).unwrap();
    let result = import(&source, &place.path().join("out"));
    (place, result)
}

fn set(key: &'static str, value: Value) -> impl FnOnce(&mut Vec<(String, Value)>) {
    move |metadata| {
        metadata.retain(|(known, _)| known != key);
        metadata.push((key.to_owned(), value));
    }
}

#[test]
fn weights_of_every_type_are_those_that_were_stored() {
    // The largest error of a value in steps of the block's range, which is 2.
    for (dtype, most) in [
        (GgmlDType::F32, 0.004),
        (GgmlDType::F16, 0.005),
        (GgmlDType::BF16, 0.008),
        (GgmlDType::Q8_0, 0.013),
        (GgmlDType::Q6K, 0.05),
        (GgmlDType::Q5_0, 0.09),
        (GgmlDType::Q5_1, 0.06),
        (GgmlDType::Q5K, 0.09),
        (GgmlDType::Q4_0, 0.16),
        (GgmlDType::Q4_1, 0.09),
        (GgmlDType::Q4K, 0.16),
    ] {
        let (place, result) = imported(&file(dtype, |_| ()));
        let (parameters, tokens) = result.unwrap();
        let files = read_directory(&place.path().join("out")).unwrap();
        let config = ModelConfig::parse(&files["config.json"]).unwrap();
        let layout = Layout::of(&config);
        assert_eq!((parameters, tokens), (layout.size(), vocabulary("smollm2").0.len()));
        let found = crate::model::parameters(&files, &layout).unwrap();
        for (seed, (name, _, rows, width)) in tensors(tokens).into_iter().enumerate() {
            let range = layout.find(name).unwrap().range.clone();
            let stored = numbers(rows * width, seed);
            let worst = found[range].iter().zip(&stored).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= most, "{dtype:?} {name}: {worst}");
        }
    }
}

#[test]
fn the_configuration_is_rebuilt() {
    let (place, result) = imported(&file(GgmlDType::Q8_0, |_| ()));
    result.unwrap();
    let files = read_directory(&place.path().join("out")).unwrap();
    let config = ModelConfig::parse(&files["config.json"]).unwrap();
    assert_eq!((config.num_key_value_heads, config.head_dim, config.tie_word_embeddings), (KEYS, WIDTH, true));
    assert!((config.norm_eps - 1e-5).abs() < 1e-18 && (config.rope_theta - 1e5).abs() < 1e-9);
    let generator = crate::model::Generator::load(&files, 1, codex_configs::Device::Cpu);
    assert!(generator.is_ok(), "{:?}", generator.err());
}

#[test]
fn tokens_are_those_of_the_tokenizer_json() {
    use crate::text::{Message, Role};
    for (family, pre) in [("smollm2", "smollm"), ("llama3", "llama-bpe"), ("qwen2", "qwen2")] {
        let (place, result) = imported(&file_of(family, GgmlDType::Q8_0, |metadata| {
            set("tokenizer.ggml.pre", Value::String(pre.to_owned()))(metadata);
            // Llama 3's files do not have the key.
            if family == "llama3" {
                metadata.retain(|(key, _)| key != "tokenizer.ggml.add_bos_token");
            }
        }));
        result.unwrap();
        let [found, expected] =
            [place.path().join("out"), fixture(family)].map(|directory| Tokenizer::load(&directory).unwrap());
        let texts =
            ["The capital of France is Paris.", "na\u{ef}ve  cafe\u{301}\n\n\u{1f980}", "<|im_end|> it's", "1 + 2"];
        for text in texts {
            assert_eq!(found.encode(text).unwrap(), expected.encode(text).unwrap(), "{family}: {text}");
        }
        let question = [Message { role: Role::User, content: "What is it?".to_owned() }];
        assert_eq!(found.encode_chat(&question).unwrap(), expected.encode_chat(&question).unwrap(), "{family}");
        assert_eq!(found.ends()[0], expected.ends()[0], "{family}");
    }
}

#[test]
fn what_is_not_supported_is_named() {
    let text = |text: &str| Value::String(text.to_owned());
    for (key, value, told) in [
        ("general.architecture", text("mamba"), "general.architecture is mamba, which is not supported: use llama"),
        ("llama.expert_count", Value::U32(8), "llama.expert_count is 8"),
        ("llama.rope.dimension_count", Value::U32(32), "llama.rope.dimension_count is 32"),
        ("llama.rope.scaling.type", text("yarn"), "llama.rope.scaling.type is yarn"),
        ("tokenizer.ggml.model", text("llama"), "the metadata has no list of numbers tokenizer.ggml.scores"),
        (
            "tokenizer.ggml.model",
            text("t5"),
            "tokenizer.ggml.model is t5, which is not supported: use a byte-level BPE",
        ),
        ("tokenizer.ggml.pre", text("tekken"), "tokenizer.ggml.pre is tekken"),
        ("llama.block_count", Value::U32(2), "tensor blk.1.attn_norm.weight is missing"),
        ("llama.feed_forward_length", Value::U32(256), "tensor blk.0.ffn_gate.weight is [512, 256], but"),
        ("tokenizer.ggml.eos_token_id", Value::U32(99_999), "tokenizer.ggml.eos_token_id"),
        ("general.alignment", Value::U32(0), "general.alignment is 0"),
    ] {
        let (place, result) = imported(&file(GgmlDType::Q8_0, set(key, value)));
        let refused = CommandError::from(result.unwrap_err());
        assert_eq!(refused.exit, codex_reports::exit::BAD_INPUT);
        assert!(refused.sentence().contains(told), "{key}: {}", refused.sentence());
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1, "{key}: nothing is left");
    }
    let (_place, result) = imported(&file(GgmlDType::Q3K, |_| ()));
    let told = result.unwrap_err().to_string();
    assert!(told.contains("Q3K, which is not supported: use F32"), "{told}");
    let place = tempfile::tempdir().unwrap();
    let refused = import(&place.path().join("x.gguf"), place.path()).unwrap_err();
    assert!(matches!(refused, ImportError::Exists(_)));
}

type Metadata = Vec<(String, Value)>;

/// A vocabulary of SentencePiece, and what the library itself makes of texts.
#[derive(serde::Deserialize)]
struct Pieces {
    add_space_prefix: bool,
    tokens: Vec<String>,
    scores: Vec<f32>,
    types: Vec<i32>,
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

fn pieces() -> Vec<Pieces> {
    #[derive(serde::Deserialize)]
    struct Fixture {
        models: Vec<Pieces>,
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/import/fixtures/spm.json");
    serde_json::from_slice::<Fixture>(&std::fs::read(path).unwrap()).unwrap().models
}

/// Returns a file with this vocabulary, after `change`.
fn file_with(pieces: &Pieces, change: impl FnOnce(&mut Vec<(String, Value)>)) -> Vec<u8> {
    let texts = pieces.tokens.iter().map(|text| Value::String(text.clone())).collect();
    let metadata = [
        ("tokenizer.ggml.model", Value::String("llama".to_owned())),
        ("tokenizer.ggml.tokens", Value::Array(texts)),
        ("tokenizer.ggml.scores", Value::Array(pieces.scores.iter().map(|score| Value::F32(*score)).collect())),
        ("tokenizer.ggml.token_type", Value::Array(pieces.types.iter().map(|kind| Value::I32(*kind)).collect())),
        ("tokenizer.ggml.unknown_token_id", Value::U32(0)),
        ("tokenizer.ggml.bos_token_id", Value::U32(1)),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(true)),
        ("tokenizer.ggml.add_space_prefix", Value::Bool(pieces.add_space_prefix)),
    ];
    file_with_tokens(pieces.tokens.len(), GgmlDType::Q8_0, |all| {
        all.retain(|(key, _)| !key.starts_with("tokenizer.ggml."));
        all.extend(metadata.map(|(key, value)| (key.to_owned(), value)));
        change(all);
    })
}

#[test]
fn pieces_are_those_of_the_sentencepiece_library() {
    for pieces in pieces() {
        let (place, result) = imported(&file_with(&pieces, |_| ()));
        result.unwrap();
        let tokenizer = Tokenizer::load(&place.path().join("out")).unwrap();
        assert_eq!(tokenizer.vocabulary(), pieces.tokens.len());
        for Case { text, ids, decoded } in &pieces.cases {
            assert_eq!(&tokenizer.encode_more(text).unwrap(), ids, "{text:?}");
            let framed = [&[1], &ids[..]].concat();
            assert_eq!(tokenizer.encode(text).unwrap(), framed, "{text:?}");
            assert_eq!(&tokenizer.decode(ids).unwrap(), decoded, "{text:?}");
            let mut stream = tokenizer.stream();
            let mut told = String::new();
            for id in ids {
                told += &stream.push(*id).unwrap();
            }
            told += &stream.finish().unwrap();
            assert_eq!(&told, decoded, "{text:?}");
        }
        assert_eq!(tokenizer.ends(), [2]);
        assert_eq!(tokenizer.specials(), [0, 1, 2]);
    }
}

#[test]
fn flags_of_pieces_are_respected_and_have_the_defaults_of_llama_cpp() {
    let pieces = &pieces()[0];
    let ids = |change: &dyn Fn(&mut Metadata)| {
        let (place, result) = imported(&file_with(pieces, |metadata| change(metadata)));
        result.unwrap();
        Tokenizer::load(&place.path().join("out")).unwrap().encode("x").unwrap()
    };
    let with = |key: &'static str, value: bool| ids(&move |metadata| set(key, Value::Bool(value))(metadata));
    let own = &pieces.cases.iter().find(|case| case.text == "x").unwrap().ids[..];
    assert_eq!(ids(&|metadata| metadata.retain(|(key, _)| !key.contains(".add_"))), [&[1], own].concat());
    assert_eq!(with("tokenizer.ggml.add_bos_token", false), own);
    assert_eq!(with("tokenizer.ggml.add_eos_token", true), [&[1], own, &[2]].concat());
    let bare = with("tokenizer.ggml.add_space_prefix", false);
    assert_ne!(bare, [&[1], own].concat());
    assert_eq!(ids(&|metadata| metadata.retain(|(key, _)| !key.contains("unknown"))), [&[1], own].concat());
}

#[test]
fn pieces_that_do_not_belong_together_are_refused() {
    let pieces = &pieces()[0];
    let texts = |all: Vec<String>| Value::Array(all.into_iter().map(Value::String).collect());
    let floats = |all: Vec<f32>| Value::Array(all.into_iter().map(Value::F32).collect());
    let mut doubled = pieces.tokens.clone();
    doubled[300] = doubled[301].clone();
    let mut odd = pieces.scores.clone();
    odd[9] = f32::NAN;
    let tokens = pieces.tokens.len();
    for (key, value, told) in [
        ("tokenizer.ggml.scores", floats(vec![0.0; 3]), format!("a list of 3 for {tokens} tokens")),
        ("tokenizer.ggml.scores", floats(odd), "a list with NaN".to_owned()),
        ("tokenizer.ggml.token_type", Value::Array(vec![Value::I32(1)]), format!("a list of 1 for {tokens} tokens")),
        ("tokenizer.ggml.tokens", texts(doubled), "tokenizer.ggml.tokens is not unique".to_owned()),
    ] {
        let (_place, result) = imported(&file_with(pieces, set(key, value)));
        let refused = CommandError::from(result.unwrap_err());
        assert!(refused.exit == codex_reports::exit::BAD_INPUT, "{key}");
        assert!(refused.sentence().contains(&told), "{key}: {}", refused.sentence());
    }
    let mut without = pieces.types.clone();
    without[3..259].fill(1);
    let (_place, result) = imported(&file_with(pieces, |metadata| {
        set("tokenizer.ggml.token_type", Value::Array(without.into_iter().map(Value::I32).collect()))(metadata);
        set("tokenizer.ggml.unknown_token_id", Value::U32(99_999))(metadata);
    }));
    let told = result.unwrap_err().to_string();
    assert!(told.contains("without <0x00>") && told.contains("or an unknown token"), "{told}");
}

pub(crate) static FILE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| file(GgmlDType::Q8_0, |_| ()));

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// A damaged file is refused in one sentence and leaves nothing, or it is imported.
    #[test]
    fn a_damaged_file_is_refused_or_imported(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = FILE.clone();
        // Most of the file is weights; the header is what matters.
        for (at, byte) in changes {
            let at = at.index(14_000);
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            let cut = cut.index(bytes.len());
            bytes.truncate(cut);
        }
        let (place, result) = imported(&bytes);
        if let Err(error) = result {
            let told = CommandError::from(error).sentence();
            prop_assert!(!told.contains('\n'), "{told}");
            prop_assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1, "nothing is left");
        }
    }
}
