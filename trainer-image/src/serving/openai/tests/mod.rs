//! The OpenAI-shaped API over HTTP, with small untrained models.

mod chats;
mod completions;
mod reasoning;
mod structure;

use std::{collections::BTreeMap, path::Path, time::Duration};

use codex_engine::{Layout, LogProbabilities, ModelConfig, Shape, Vocabulary, initial};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    model::{Generator, describe},
    serving::{
        Granted,
        tests::{Case, Running, request},
    },
    text::{Message, Role, Tokenizer},
};

/// Makes a model with a chat template that rarely yields its end token.
pub(crate) fn chat_model(name: &str) -> BTreeMap<String, Vec<u8>> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/text/fixtures").join(name);
    let tokenizer = Tokenizer::load(&fixtures).unwrap();
    let shape = Shape {
        hidden_size: 48,
        intermediate_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 3,
        max_position_embeddings: 1024,
        rope_theta: 10_000.0,
    };
    let end = tokenizer.ends()[0];
    let config = ModelConfig::new(shape, Vocabulary { size: tokenizer.vocabulary(), end, pad: end }).unwrap();
    let parameters = initial(&config, &Layout::of(&config), 5);
    let mut files = describe(&config, &parameters, &tokenizer).unwrap();
    // The description of a model of characters is written anew from those of the fixture.
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        if let Ok(bytes) = std::fs::read(fixtures.join(name)) {
            files.insert(name.to_owned(), bytes);
        }
    }
    files
}

/// A chat template with tools, in the style of Hermes.
const TOOLS: &str = r#"{% if tools %}<|im_start|>system
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools><|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"#;

async fn post(server: &Running, path: &str, body: Value) -> (u16, Value) {
    let (status, _, body) = request(server.address, path, Some(body.to_string())).await.unwrap();
    (status, serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body}")))
}

/// Returns the data of the events of a stream.
async fn events(server: &Running, path: &str, body: Value) -> Vec<String> {
    let (status, _, body) = request(server.address, path, Some(body.to_string())).await.unwrap();
    assert_eq!(status, 200, "{body}");
    body.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect()
}

/// A schema whose texts are so short that every model completes one.
fn short_schema() -> Value {
    json!({
        "type": "object",
        "properties": { "sure": { "type": "boolean" }, "answer": { "enum": ["yes", "no"] } },
        "required": ["sure", "answer"],
        "additionalProperties": false,
    })
}

fn follows_the_short_schema(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|why| panic!("{why}: {text:?}"));
    let fields = value.as_object().unwrap();
    assert_eq!(fields.keys().collect::<Vec<_>>(), ["sure", "answer"], "{text}");
    assert!(fields["sure"].is_boolean() && (fields["answer"] == "yes" || fields["answer"] == "no"), "{text}");
}
