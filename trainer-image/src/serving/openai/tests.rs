//! The OpenAI-shaped API over HTTP, with small untrained models.

use std::{collections::BTreeMap, path::Path, time::Duration};

use codex_engine::{Layout, ModelConfig, Shape, Vocabulary, initial};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    model::{Generator, describe},
    serving::tests::{Case, Running, request},
    text::{Message, Role, Tokenizer},
};

/// Makes a model with a chat template that rarely yields its end token.
fn chat_model() -> BTreeMap<String, Vec<u8>> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/text/fixtures/smollm2");
    let tokenizer = Tokenizer::load(&fixtures).unwrap();
    let shape = Shape {
        hidden_size: 48,
        intermediate_size: 64,
        num_hidden_layers: 2,
        num_attention_heads: 3,
        max_position_embeddings: 256,
        rope_theta: 10_000.0,
    };
    let end = tokenizer.ends()[0];
    let config = ModelConfig::new(shape, Vocabulary { size: tokenizer.vocabulary(), end, pad: end }).unwrap();
    let parameters = initial(&config, &Layout::of(&config), 5);
    let mut files = describe(&config, &parameters, &tokenizer).unwrap();
    // The description of a model of characters is written anew from those of the fixture.
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        files.insert(name.to_owned(), std::fs::read(fixtures.join(name)).unwrap());
    }
    files
}

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

#[tokio::test(flavor = "multi_thread")]
async fn the_model_is_described_with_its_promotion() {
    let case = Case::new(64);
    let server = case.ready().await;
    let (status, body) = server.get("/v1/models").await;
    let listed: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &listed["object"]), (200, &json!("list")));
    let model = &listed["data"][0];
    assert_eq!((&model["id"], &model["object"], &model["max_model_len"]), (&json!("cot"), &json!("model"), &json!(64)));
    assert_eq!(model["model_digest"], case.expected.model_digest.to_string());
    assert_eq!((&model["ring"], &model["owned_by"]), (&json!("0D_base_"), &json!("team")));
    assert_eq!(model["evaluations"][0]["gates"][0]["metric"], "exact_match");
    assert_eq!(serde_json::from_str::<Value>(&server.get("/v1/models/cot").await.1).unwrap(), *model);
    let (status, body) = server.get("/v1/models/gpt-4").await;
    assert!(status == 404 && body.contains("model_not_found") && body.contains("use \\\"cot\\\""), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_are_those_of_infer_whole_and_streamed() {
    let case = Case::new(64);
    let server = case.ready().await;
    let (_, expected) = post(&server, "/infer", json!({ "prompt": "347+86:", "max_new_tokens": 9 })).await;
    let asked = json!({ "model": "cot", "prompt": "347+86:", "max_tokens": 9, "user": "ignored" });
    let (status, reply) = post(&server, "/v1/completions", asked.clone()).await;
    assert_eq!(status, 200, "{reply}");
    assert_eq!(reply["choices"][0]["text"], expected["completion"]);
    assert_eq!(
        (&reply["object"], &reply["choices"][0]["finish_reason"]),
        (&json!("text_completion"), &json!("length"))
    );
    assert_eq!(reply["usage"], json!({ "prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16 }));
    assert!(case.expected.model_digest.to_string().starts_with(reply["system_fingerprint"].as_str().unwrap()));

    let mut streamed = asked.clone();
    streamed["stream"] = true.into();
    streamed["stream_options"] = json!({ "include_usage": true });
    let mut events = events(&server, "/v1/completions", streamed).await;
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let mut parts: Vec<Value> = events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    assert_eq!(parts.pop().unwrap()["usage"], reply["usage"]);
    assert_eq!(parts.last().unwrap()["choices"][0]["finish_reason"], "length");
    let text: String = parts.iter().map(|part| part["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(reply["choices"][0]["text"], text);

    // A text in `stop` ends the response before it.
    let stop = text.chars().nth(3).unwrap().to_string();
    let mut stopped = asked.clone();
    stopped["stop"] = json!([stop]);
    let (_, reply) = post(&server, "/v1/completions", stopped).await;
    assert_eq!(reply["choices"][0]["text"], text.split(&stop).next().unwrap());
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");

    // Token ids are a prompt, too, and a seed repeats what was drawn.
    let drawn = json!({ "prompt": [5, 6, 7], "max_tokens": 20, "temperature": 2.0, "seed": 7 });
    let one = post(&server, "/v1/completions", drawn.clone()).await.1;
    let other = post(&server, "/v1/completions", drawn).await.1;
    assert_eq!(one["choices"], other["choices"]);
    let seed = json!({ "prompt": [5, 6, 7], "max_tokens": 20, "temperature": 2.0, "seed": 8 });
    assert_ne!(one["choices"], post(&server, "/v1/completions", seed).await.1["choices"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn chats_are_answered_by_the_template() {
    let files = chat_model();
    let case = Case::of(files.clone());
    let server = case.ready().await;
    let mut generator = Generator::load(&files, 1, codex_configs::Device::Cpu).unwrap();
    let message = |role, content: &str| Message { role, content: content.to_owned() };
    let ids = generator
        .tokenizer()
        .encode_chat(&[message(Role::System, "Be brief."), message(Role::User, "What is 2 + 2?")])
        .unwrap();
    generator.prefill(0, &ids).unwrap();
    let tokens: Vec<u32> = (0..8).map(|_| generator.step().unwrap()[0].token).collect();
    let expected = generator.tokenizer().decode(&tokens).unwrap();

    let parts = json!([{ "type": "text", "text": "What is " }, { "type": "text", "text": "2 + 2?" }]);
    let messages = json!([{ "role": "system", "content": "Be brief." }, { "role": "user", "content": parts }]);
    let asked = json!({ "model": "codex", "messages": messages, "max_completion_tokens": 8 });
    let (status, reply) = post(&server, "/v1/chat/completions", asked.clone()).await;
    assert_eq!(status, 200, "{reply}");
    assert_eq!(reply["choices"][0]["message"], json!({ "role": "assistant", "content": expected }));
    assert_eq!((&reply["object"], &reply["model"]), (&json!("chat.completion"), &json!("cot")));
    assert_eq!(reply["usage"]["prompt_tokens"], ids.len());

    let mut streamed = asked;
    streamed["stream"] = true.into();
    let mut events = events(&server, "/v1/chat/completions", streamed).await;
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let parts: Vec<Value> = events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    assert_eq!(parts[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    assert!(parts.iter().all(|part| part["object"] == "chat.completion.chunk" && part["id"] == parts[0]["id"]));
    let text: String = parts.iter().filter_map(|part| part["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, expected);
    assert_eq!(
        parts.last().unwrap()["choices"][0],
        json!({ "index": 0, "delta": {}, "logprobs": null, "finish_reason": "length" })
    );
    let exposed = server.get("/metrics").await.1;
    let line = "codex_ml_inference_requests_total{endpoint=\"/v1/chat/completions\"} 2";
    assert!(exposed.lines().any(|found| found == line), "{exposed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_requests_get_errors_in_openais_shape() {
    let case = Case::new(64);
    let server = case.ready().await;
    for (path, body, status, told) in [
        ("/v1/completions", json!({ "prompt": "1", "model": "gpt-4" }), 404, "the model \"gpt-4\" is not served here"),
        ("/v1/completions", json!({ "prompt": "1", "n": 2 }), 400, "n: 2: one choice per request"),
        ("/v1/completions", json!({ "prompt": "1", "logprobs": 5 }), 400, "logprobs: 5: log-probabilities"),
        ("/v1/completions", json!({ "prompt": ["1", "2"] }), 400, "prompt: send one prompt per request"),
        ("/v1/completions", json!({ "prompt": "1".repeat(64) }), 400, "the model's context holds 64"),
        (
            "/v1/completions",
            json!({ "prompt": "caf\u{e9}" }),
            400,
            "character 'é' is not in the tokenizer's vocabulary",
        ),
        ("/v1/completions", json!({ "prompt": "1", "temperature": -1 }), 400, "temperature -1 is out of range"),
        ("/v1/completions", json!({ "prompt": "1", "stop": ["a", ""] }), 400, "stop: send at most 4 texts"),
        ("/v1/completions", json!({ "prompt": "1", "max_tokens": 0 }), 400, "max_tokens: 0 is out of range"),
        ("/v1/completions", json!({}), 400, "missing field `prompt`"),
        ("/v1/completions", json!(["1"]), 400, "the request body is not a JSON object"),
        ("/v1/chat/completions", json!({ "messages": [{ "role": "user", "content": "1" }] }), 400, "no chat template"),
    ] {
        let (found, reply) = post(&server, path, body.clone()).await;
        let message = reply["error"]["message"].as_str().unwrap_or_default();
        assert!(found == status && message.contains(told), "{body}: {found} {reply}");
        assert_eq!(reply["error"]["type"], "invalid_request_error", "{body}");
    }
    // What changes nothing is taken.
    let harmless =
        json!({ "prompt": "1", "max_tokens": 2, "n": 1, "tools": [], "logprobs": null, "presence_penalty": 0.0 });
    assert_eq!(post(&server, "/v1/completions", harmless).await.0, 200);
}

/// Without an end, the generation would go on for minutes.
#[tokio::test(flavor = "multi_thread")]
async fn a_generation_ends_when_the_client_of_a_stream_leaves() {
    let case = Case::new(50_000);
    let server = case.ready().await;
    let body = json!({ "prompt": "1+1:", "stream": true }).to_string();
    let head = format!("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut read = String::new();
    while !read.contains("data: ") {
        let mut bytes = [0; 1024];
        let count = client.read(&mut bytes).await.unwrap();
        assert!(count > 0, "{read}");
        read.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    let active = async || -> Value {
        serde_json::from_str::<Value>(&server.get("/status").await.1).unwrap()["active_sessions"].clone()
    };
    assert_eq!(active().await, 1);
    drop(client);
    for _ in 0..500 {
        if active().await == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the request is still running");
}
