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
    assert_eq!((&model["verdict"], &model["evaluations"][0]["verdict"]), (&json!("Passed"), &json!("Passed")));
    assert_eq!((&model["signer"], &model["base"]), (&json!(case.expected.key_fingerprints[0]), &Value::Null));
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
    let usage = json!({
        "prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16, "prompt_tokens_details": { "cached_tokens": 0 },
        "completion_tokens_details": { "reasoning_tokens": 0 }, "reasoning_tokens": 0,
    });
    assert_eq!(reply["usage"], usage);
    assert_eq!(reply["system_fingerprint"], format!("{}@0D_base_", case.expected.model_digest.short()));

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
    let files = chat_model("smollm2");
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
        ("/v1/completions", json!({ "prompt": "1", "n": 17 }), 400, "n: 17 is out of range; use 1 to 16"),
        ("/v1/completions", json!({ "prompt": "1", "n": 0 }), 400, "n: 0 is out of range"),
        ("/v1/completions", json!({ "prompt": "1", "logprobs": 21 }), 400, "logprobs: 21 is out of range; use 0 to 20"),
        ("/v1/completions", json!({ "prompt": "1", "echo": true }), 400, "echo: true: the prompt is not repeated"),
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

#[tokio::test(flavor = "multi_thread")]
async fn choices_have_their_seeds_and_log_probabilities_are_those_of_the_model() {
    let case = Case::new(64);
    let server = case.ready().await;
    let asked = json!({ "prompt": "347+86:", "max_tokens": 6, "temperature": 1.5, "seed": 3, "n": 3, "logprobs": 2 });
    let (status, reply) = post(&server, "/v1/completions", asked.clone()).await;
    assert_eq!(status, 200, "{reply}");
    let choices = reply["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    let mut shown_tokens = 0;
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        let mut alone = asked.clone();
        (alone["n"], alone["seed"]) = (json!(1), json!(3 + index));
        let alone = post(&server, "/v1/completions", alone).await.1;
        assert_eq!(
            (&alone["choices"][0]["text"], &alone["choices"][0]["logprobs"]),
            (&choice["text"], &choice["logprobs"])
        );
        let scores = &choice["logprobs"];
        let tokens: Vec<&str> = scores["tokens"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
        // Special tokens have names and no text.
        shown_tokens += tokens.len() as u64;
        let shown: String = tokens.iter().copied().filter(|token| token.chars().count() == 1).collect();
        assert_eq!(shown, choice["text"].as_str().unwrap());
        let offsets: Vec<usize> = serde_json::from_value(scores["text_offset"].clone()).unwrap();
        assert!(offsets[0] == 0 && offsets.is_sorted() && offsets.len() == tokens.len(), "{offsets:?}");
        for (token, top) in tokens.iter().zip(scores["top_logprobs"].as_array().unwrap()) {
            let top = top.as_object().unwrap();
            assert!(top.contains_key(*token) && (2..=3).contains(&top.len()), "{top:?}");
            let sum: f64 = top.values().map(|value| value.as_f64().unwrap().exp()).sum();
            assert!(sum > 0.0 && sum <= 1.000_001, "{sum}");
        }
    }
    assert_ne!(choices[0]["text"], choices[1]["text"]);
    // An end token is counted and not shown.
    let counted = reply["usage"]["completion_tokens"].as_u64().unwrap();
    assert!((shown_tokens..=18).contains(&counted) && shown_tokens > 0, "{shown_tokens} {counted}");
    // Streamed, the pieces of each choice are its text.
    let mut streamed = asked;
    streamed["stream"] = true.into();
    let mut events = events(&server, "/v1/completions", streamed).await;
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let mut texts = vec![String::new(); 3];
    let mut ends = 0;
    for event in events {
        let choice = serde_json::from_str::<Value>(&event).unwrap()["choices"][0].take();
        texts[choice["index"].as_u64().unwrap() as usize].push_str(choice["text"].as_str().unwrap());
        ends += usize::from(!choice["finish_reason"].is_null());
    }
    assert_eq!(ends, 3);
    assert!(texts.iter().zip(choices).all(|(text, choice)| choice["text"] == *text.as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn chats_show_log_probabilities_if_they_are_asked_for() {
    let server = Case::of(chat_model("smollm2")).ready().await;
    let messages = json!([{ "role": "user", "content": "Hi" }]);
    let asked = json!({ "messages": messages, "max_tokens": 3, "logprobs": true, "top_logprobs": 2 });
    let (_, reply) = post(&server, "/v1/chat/completions", asked).await;
    let content = reply["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len() as u64, reply["usage"]["completion_tokens"].as_u64().unwrap(), "{reply}");
    for entry in content {
        let top = entry["top_logprobs"].as_array().unwrap();
        // Greedily, the most likely token is chosen.
        assert_eq!((top.len(), &top[0]["token"], &top[0]["logprob"]), (2, &entry["token"], &entry["logprob"]));
        assert!(top[1]["logprob"].as_f64() <= top[0]["logprob"].as_f64());
        let bytes: Vec<u8> = serde_json::from_value(entry["bytes"].clone()).unwrap();
        assert_eq!(bytes, entry["token"].as_str().unwrap().as_bytes());
    }
    let (status, reply) =
        post(&server, "/v1/chat/completions", json!({ "messages": messages, "top_logprobs": 2 })).await;
    assert!(status == 400 && reply.to_string().contains("\\\"logprobs\\\": true"), "{reply}");
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_are_the_answers_of_chats() {
    let server = Case::of(chat_model("smollm2")).ready().await;
    let messages =
        json!([{ "role": "system", "content": "Be brief." }, { "role": "user", "content": "What is 2 + 2?" }]);
    let chat = json!({ "messages": messages, "max_tokens": 8 });
    let (_, expected) = post(&server, "/v1/chat/completions", chat).await;
    let text = &expected["choices"][0]["message"]["content"];
    let items = json!([{ "role": "user", "content": [{ "type": "input_text", "text": "What is 2 + 2?" }] }]);
    for input in [json!("What is 2 + 2?"), items] {
        let asked =
            json!({ "instructions": "Be brief.", "input": input, "max_output_tokens": 8, "metadata": { "a": "b" } });
        let (status, reply) = post(&server, "/v1/responses", asked.clone()).await;
        assert_eq!(status, 200, "{reply}");
        let item = &reply["output"][0];
        assert_eq!(
            (&item["type"], &item["role"], &item["content"][0]["text"]),
            (&json!("message"), &json!("assistant"), text)
        );
        assert_eq!(
            (&reply["status"], &reply["object"], &reply["store"]),
            (&json!("incomplete"), &json!("response"), &json!(false))
        );
        assert_eq!(reply["incomplete_details"]["reason"], "max_output_tokens");
        assert_eq!(reply["usage"]["input_tokens"], expected["usage"]["prompt_tokens"]);
        assert_eq!((&reply["usage"]["output_tokens"], &reply["metadata"]["a"]), (&json!(8), &json!("b")));

        let mut streamed = asked;
        streamed["stream"] = true.into();
        let parts = events(&server, "/v1/responses", streamed).await;
        let parts: Vec<Value> = parts.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
        assert!(parts.iter().enumerate().all(|(number, part)| part["sequence_number"] == number), "{parts:?}");
        let types: Vec<&str> = parts.iter().map(|part| part["type"].as_str().unwrap()).collect();
        assert_eq!(
            types[..4],
            ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
        );
        assert_eq!(types.last(), Some(&"response.incomplete"));
        let deltas: String = parts.iter().filter_map(|part| part["delta"].as_str()).collect();
        assert_eq!(*text, deltas);
        let done = &parts.last().unwrap()["response"];
        assert_eq!((&done["output"][0]["content"], &done["usage"]["output_tokens"]), (&item["content"], &json!(8)));
    }
    for (body, told) in [
        (
            json!({ "input": "1", "previous_response_id": "resp_1" }),
            "previous_response_id: this server stores no responses",
        ),
        (json!({ "input": "1", "background": true }), "background: true: this server answers at once"),
        (json!({ "input": "1", "text": { "format": { "type": "xml" } } }), "text.format.type: \"xml\": use \"text\""),
        (json!({ "input": [{ "type": "computer_call" }] }), "input[0]: type \"computer_call\" is not supported"),
        (json!({ "input": [{ "role": "user" }] }), "input[0].content: is missing"),
        (
            json!({ "input": "1", "tools": [{ "type": "web_search" }] }),
            "tools[0]: type \"web_search\": this server runs no tools",
        ),
        (json!({ "input": [] }), "input: send a text or at least one item"),
        (json!({}), "missing field `input`"),
    ] {
        let (status, reply) = post(&server, "/v1/responses", body.clone()).await;
        let message = reply["error"]["message"].as_str().unwrap_or_default();
        assert!(status == 400 && message.contains(told), "{body}: {status} {reply}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_stand_in_the_prompt_and_can_be_forced() {
    let mut files = chat_model("qwen3");
    files.insert("chat_template.jinja".to_owned(), TOOLS.as_bytes().to_vec());
    let server = Case::of(files).ready().await;
    let tool = json!({ "type": "function", "function": { "name": "add", "description": "Adds.", "parameters": { "type": "object" } } });
    let messages = json!([
        { "role": "user", "content": "1 + 1?" },
        { "role": "assistant", "tool_calls": [
            { "id": "call_1", "type": "function", "function": { "name": "add", "arguments": "{\"a\": 1}" } }
        ] },
        { "role": "tool", "tool_call_id": "call_1", "content": "2" },
    ]);
    let asked = |choice: Value| {
        let tools = json!([tool]);
        json!({ "messages": messages, "tools": tools, "tool_choice": choice, "max_tokens": 4 })
    };
    let tokens = async |body: Value| {
        let (status, reply) = post(&server, "/v1/chat/completions", body).await;
        assert_eq!(status, 200, "{reply}");
        (reply["usage"]["prompt_tokens"].as_u64().unwrap(), reply["choices"][0]["message"].clone())
    };
    let (auto, _) = tokens(asked(json!("auto"))).await;
    let (none, _) = tokens(asked(json!("none"))).await;
    let (without, _) = tokens(json!({ "messages": messages, "max_tokens": 4 })).await;
    let (named, message) = tokens(asked(json!({ "type": "function", "function": { "name": "add" } }))).await;
    assert!(auto > none && none == without && named > auto, "{auto} {none} {without} {named}");
    // What this model writes is no call, so that it is content.
    let content = message["content"].as_str().unwrap();
    assert!(content.starts_with("<tool_call>\n{\"name\": \"add\", \"arguments\": "), "{content}");
    for (body, told) in [
        (asked(json!("sometimes")), "tool_choice: \"sometimes\": use \"auto\""),
        (
            asked(json!({ "type": "function", "function": { "name": "sub" } })),
            "tool_choice: \"sub\" is not among the tools",
        ),
        (json!({ "messages": messages, "tools": [{ "type": "function" }] }), "tools[0]: send {\"type\": \"function\""),
        (json!({ "messages": messages, "tool_choice": "required" }), "tool_choice: \"required\" needs tools"),
    ] {
        let (status, reply) = post(&server, "/v1/chat/completions", body).await;
        assert!(status == 400 && reply["error"]["message"].as_str().unwrap().contains(told), "{reply}");
    }
    let plain = Case::of(chat_model("smollm2")).ready().await;
    let (status, reply) = post(&plain, "/v1/chat/completions", asked(json!("auto"))).await;
    assert!(status == 400 && reply.to_string().contains("chat template has no place for tools"), "{reply}");
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

#[tokio::test(flavor = "multi_thread")]
async fn answers_follow_their_schema_in_all_apis_and_whatever_else_runs() {
    let server = std::sync::Arc::new(Case::of(chat_model("smollm2")).ready().await);
    let messages = json!([{ "role": "user", "content": "Are you?" }]);
    let format =
        json!({ "type": "json_schema", "json_schema": { "name": "answer", "strict": true, "schema": short_schema() } });
    let asked = json!({
        "messages": messages, "response_format": format, "temperature": 1.0, "seed": 5, "n": 2, "logprobs": true, "top_logprobs": 1,
    });
    let (status, reply) = post(&server, "/v1/chat/completions", asked.clone()).await;
    assert_eq!(status, 200, "{reply}");
    for choice in reply["choices"].as_array().unwrap() {
        assert_eq!(choice["finish_reason"], "stop");
        follows_the_short_schema(choice["message"]["content"].as_str().unwrap());
        // They are the model's, which would have said something else.
        assert!(choice["logprobs"]["content"].as_array().is_some_and(|all| !all.is_empty()));
    }
    // The same answers while others run, bound and free.
    let others: Vec<_> = (0..6)
        .map(|seed| {
            let (address, messages) = (server.address, messages.clone());
            let mut other = json!({ "messages": messages, "temperature": 1.0, "seed": seed, "max_tokens": 60 });
            if seed % 2 == 0 {
                other["guided_regex"] = "[a-z]{40,50}".into();
            }
            tokio::spawn(
                async move { request(address, "/v1/chat/completions", Some(other.to_string())).await.unwrap() },
            )
        })
        .collect();
    let (_, again) = post(&server, "/v1/chat/completions", asked.clone()).await;
    assert_eq!(again["choices"], reply["choices"]);
    for other in others {
        assert_eq!(other.await.unwrap().0, 200);
    }
    // Streamed, as text and in responses.
    let mut streamed = asked;
    (streamed["stream"], streamed["n"]) = (true.into(), 1.into());
    let parts = events(&server, "/v1/chat/completions", streamed).await;
    let parts: Vec<Value> = parts.iter().filter_map(|event| serde_json::from_str(event).ok()).collect();
    let text: String = parts.iter().filter_map(|part| part["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(reply["choices"][0]["message"]["content"], text);
    let format = json!({ "type": "json_schema", "name": "answer", "schema": short_schema() });
    let asked = json!({ "input": "Are you?", "text": { "format": format } });
    let (status, reply) = post(&server, "/v1/responses", asked).await;
    assert_eq!((status, &reply["status"], &reply["text"]["format"]), (200, &json!("completed"), &format), "{reply}");
    follows_the_short_schema(reply["output"][0]["content"][0]["text"].as_str().unwrap());
    let asked = json!({ "prompt": "Are you?", "structured_outputs": { "choice": ["yes", "no"] } });
    let (status, reply) = post(&server, "/v1/completions", asked).await;
    assert!(status == 200 && (reply["choices"][0]["text"] == "yes" || reply["choices"][0]["text"] == "no"), "{reply}");
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    // A limit that cuts an answer is named.
    let cut = json!({ "prompt": "Are you?", "guided_json": short_schema(), "max_tokens": 2 });
    assert_eq!(post(&server, "/v1/completions", cut).await.1["choices"][0]["finish_reason"], "length");
    let exposed = server.get("/metrics").await.1;
    let counted = |name: &str| {
        let line =
            exposed.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {exposed}"));
        line.trim().parse::<u64>().unwrap()
    };
    assert!(counted("codex_ml_inference_grammar_seconds_count") > 0);
    assert!(counted("codex_ml_inference_first_token_seconds_count") >= 12);
    assert!(counted("codex_ml_inference_queue_seconds_count") >= 12);
    assert!(counted("codex_ml_inference_inter_token_seconds_count") > 0);
    assert_eq!(counted("codex_ml_inference_requests_waiting"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_structure_that_cannot_bind_is_refused_with_its_field() {
    let server = Case::of(chat_model("smollm2")).ready().await;
    let format = |schema: Value| json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
    for (field, value, param) in [
        ("guided_regex", json!("("), "guided_regex"),
        ("guided_grammar", json!("start: missing"), "guided_grammar"),
        ("structured_outputs", json!({ "json": { "type": "strange" } }), "structured_outputs.json"),
        ("response_format", format(json!({ "$ref": "#/nowhere" })), "response_format.json_schema.schema"),
        ("response_format", json!({ "type": "xml" }), "response_format.type"),
    ] {
        let mut asked = json!({ "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 4 });
        asked[field] = value;
        let (status, reply) = post(&server, "/v1/chat/completions", asked).await;
        let error = &reply["error"];
        assert_eq!(
            (status, &error["type"], &error["param"]),
            (400, &json!("invalid_request_error"), &json!(param)),
            "{reply}"
        );
        assert!(error["message"].as_str().is_some_and(|told| told.starts_with(param) && told.len() > param.len() + 8));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reasoning_that_the_template_ended_leaves_the_answer_bound() {
    let server = Case::of(chat_model("qwen3")).ready().await;
    let asked = json!({
        "messages": [{ "role": "user", "content": "Are you?" }], "chat_template_kwargs": { "enable_thinking": false },
        "guided_json": short_schema(),
    });
    let (status, reply) = post(&server, "/v1/chat/completions", asked).await;
    assert_eq!((status, &reply["choices"][0]["finish_reason"]), (200, &json!("stop")), "{reply}");
    follows_the_short_schema(reply["choices"][0]["message"]["content"].as_str().unwrap());
    assert_eq!(reply["choices"][0]["message"].get("reasoning"), None);
}

/// A chat template that begins the reasoning itself.
const THINKS: &str = r"{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% else %}<think>
{% endif %}{% endif %}";

/// A model that reasons until it is stopped.
fn thinks() -> BTreeMap<String, Vec<u8>> {
    let mut files = chat_model("qwen3");
    files.insert("chat_template.jinja".to_owned(), THINKS.as_bytes().to_vec());
    files
}

/// The tokens that close the reasoning of this model: a line break and the marker.
const CLOSING: usize = 2;

#[tokio::test(flavor = "multi_thread")]
async fn reasoning_is_closed_at_its_budget_and_the_model_goes_on_with_the_answer() {
    let files = thinks();
    let server = Case::of(files.clone()).ready().await;
    let messages = json!([{ "role": "user", "content": "What is 2 + 2?" }]);
    let asked = json!({ "messages": messages, "max_tokens": 30, "thinking_token_budget": 12 });
    let (status, reply) = post(&server, "/v1/chat/completions", asked.clone()).await;
    assert_eq!(status, 200, "{reply}");

    // What the model says by itself, and then after the tokens that close its reasoning.
    let mut generator = Generator::load(&files, 1, codex_configs::Device::Cpu).unwrap();
    let tokenizer = generator.tokenizer().clone();
    let user = Message { role: Role::User, content: "What is 2 + 2?".to_owned() };
    let mut ids = tokenizer.encode_chat(&[user]).unwrap();
    let mut say = |ids: &[u32], count: usize| -> Vec<u32> {
        generator.prefill(0, ids).unwrap();
        let tokens = (0..count).map(|_| generator.step().unwrap()[0].token).collect();
        generator.release(0);
        tokens
    };
    let thought = say(&ids, 12);
    let closing = [tokenizer.encode_more("\n").unwrap(), vec![tokenizer.id("</think>").unwrap()]].concat();
    assert_eq!(closing.len(), CLOSING);
    ids.extend(thought.iter().chain(&closing));
    let answer = say(&ids, 30 - 12 - CLOSING);
    let message = &reply["choices"][0]["message"];
    assert_eq!(message["reasoning"], tokenizer.decode(&thought).unwrap().trim());
    assert_eq!(message["content"], tokenizer.decode(&answer).unwrap().trim_start());
    assert_eq!(reply["usage"]["completion_tokens"], 30);
    assert_eq!(reply["usage"]["completion_tokens_details"]["reasoning_tokens"], 12 + CLOSING);

    // Streams tell the same parts apart, and so do responses.
    let mut streamed = asked.clone();
    streamed["stream"] = true.into();
    let parts = events(&server, "/v1/chat/completions", streamed).await;
    let parts: Vec<Value> = parts.iter().filter_map(|event| serde_json::from_str(event).ok()).collect();
    for name in ["reasoning_content", "content"] {
        let text: String = parts.iter().filter_map(|part| part["choices"][0]["delta"][name].as_str()).collect();
        assert_eq!(message[name], text);
    }
    let response = json!({ "input": "What is 2 + 2?", "max_output_tokens": 30, "reasoning": { "max_tokens": 12 } });
    let (status, reply) = post(&server, "/v1/responses", response).await;
    assert_eq!((status, &reply["output"][0]["type"]), (200, &json!("reasoning")), "{reply}");
    assert_eq!(reply["output"][1]["content"][0]["text"], message["content"]);
    assert_eq!(reply["usage"]["output_tokens_details"]["reasoning_tokens"], 12 + CLOSING);
    // A completion is one text, with the marker.
    let prompt = "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n<think>\n";
    let completion = json!({ "prompt": prompt, "max_tokens": 30, "thinking_budget": 3 });
    let (status, reply) = post(&server, "/v1/completions", completion).await;
    assert!(status == 200 && reply["choices"][0]["text"].as_str().unwrap().contains("\n</think>"), "{reply}");

    let exposed = server.get("/metrics").await.1;
    let line = "codex_ml_inference_reasoning_closed_total{result=\"budget\"} 4";
    assert!(exposed.lines().any(|found| found == line), "{exposed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn budgets_hold_with_seeds_grammars_and_whatever_else_runs() {
    let server = Case::of(thinks()).ready().await;
    let messages = json!([{ "role": "user", "content": "Are you?" }]);
    let asked = json!({
        "messages": messages, "temperature": 1.0, "seed": 5, "n": 2, "thinking_token_budget": 9, "guided_json": short_schema(),
    });
    let (status, reply) = post(&server, "/v1/chat/completions", asked.clone()).await;
    assert_eq!(status, 200, "{reply}");
    for choice in reply["choices"].as_array().unwrap() {
        assert_eq!(choice["finish_reason"], "stop");
        follows_the_short_schema(choice["message"]["content"].as_str().unwrap());
        assert!(choice["message"]["reasoning"].as_str().is_some_and(|text| !text.is_empty()), "{choice}");
    }
    // A character that the budget would cut is completed.
    let reasoned = reply["usage"]["reasoning_tokens"].as_u64().unwrap() as usize;
    assert!((2 * (9 + CLOSING)..=2 * (9 + 3 + CLOSING)).contains(&reasoned), "{reasoned}");
    let others: Vec<_> = (0..6)
        .map(|seed| {
            let (address, messages) = (server.address, messages.clone());
            let mut other = json!({ "messages": messages, "temperature": 1.0, "seed": seed, "max_tokens": 40 });
            if seed % 2 == 0 {
                other["thinking_token_budget"] = (seed * 3).into();
            }
            tokio::spawn(
                async move { request(address, "/v1/chat/completions", Some(other.to_string())).await.unwrap() },
            )
        })
        .collect();
    let (_, again) = post(&server, "/v1/chat/completions", asked).await;
    assert_eq!(again["choices"], reply["choices"]);
    for other in others {
        assert_eq!(other.await.unwrap().0, 200);
    }
    // Without a place for reasoning the budget changes nothing.
    let ended = |budget: Value| json!({ "messages": messages, "max_tokens": 8, "enable_thinking": false, "thinking_token_budget": budget });
    let (_, free) = post(&server, "/v1/chat/completions", ended(Value::Null)).await;
    let (_, bound) = post(&server, "/v1/chat/completions", ended(0.into())).await;
    assert_eq!(free["choices"], bound["choices"]);
    assert_eq!((free["choices"][0]["message"].get("reasoning"), &free["usage"]["reasoning_tokens"]), (None, &json!(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_grants_a_budget_and_keeps_a_reserve_for_the_answer() {
    let mut case = Case::of(thinks());
    let asked = json!({ "messages": [{ "role": "user", "content": "Are you?" }], "max_tokens": 40 });
    let reasoned = async |case: &Case, budget: Option<i64>| {
        let (server, mut asked) = (case.ready().await, asked.clone());
        if let Some(budget) = budget {
            asked["thinking_token_budget"] = budget.into();
        }
        let (status, reply) = post(&server, "/v1/chat/completions", asked).await;
        assert_eq!(status, 200, "{reply}");
        let empty = reply["choices"][0]["message"]["content"] == "";
        (reply["usage"]["reasoning_tokens"].as_u64().unwrap() as usize, empty)
    };
    assert_eq!(reasoned(&case, None).await, (40, true), "by itself it never answers");
    case.granted = Granted { budget: Some(6), reserve: 0 };
    assert_eq!(reasoned(&case, None).await, (6 + CLOSING, false));
    assert_eq!(reasoned(&case, Some(20)).await, (20 + CLOSING, false));
    assert_eq!(reasoned(&case, Some(-1)).await, (40, true));
    case.granted = Granted { budget: None, reserve: 10 };
    assert_eq!(reasoned(&case, None).await, (30, false));
    assert_eq!(reasoned(&case, Some(35)).await, (30, false));
    assert_eq!(reasoned(&case, Some(5)).await, (5 + CLOSING, false));
    // More than there is: the answer gets what closing the reasoning leaves.
    case.granted = Granted { budget: None, reserve: 1_000 };
    assert_eq!(reasoned(&case, Some(5)).await, (CLOSING, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_leaves_no_answer_is_refused_with_its_field() {
    let server = Case::of(thinks()).ready().await;
    let messages = json!([{ "role": "user", "content": "Hi" }]);
    for (path, body, param, told) in [
        (
            "/v1/chat/completions",
            json!({ "messages": messages, "max_tokens": 20, "thinking_budget": 18 }),
            "thinking_budget",
            "18 and the 2 tokens that close the reasoning leave none of the 20 of max_tokens for the answer: use at most 17",
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": messages, "thinking_token_budget": "lots" }),
            "thinking_token_budget",
            "\"lots\": send a whole number of tokens, or -1 for no limit",
        ),
        (
            "/v1/responses",
            json!({ "input": "Hi", "reasoning": { "max_tokens": -5 } }),
            "reasoning.max_tokens",
            "-5: send a whole number",
        ),
        (
            "/v1/completions",
            json!({ "prompt": "Hi", "max_tokens": 3, "thinking_token_budget": 3 }),
            "thinking_token_budget",
            "use at most 0, or raise max_tokens",
        ),
        ("/v1/responses", json!({ "input": "Hi", "enable_thinking": 1 }), "enable_thinking", "1: send true or false"),
    ] {
        let (status, reply) = post(&server, path, body).await;
        let error = &reply["error"];
        assert_eq!((status, &error["type"], &error["param"]), (400, &json!("invalid_request_error"), &json!(param)));
        let message = error["message"].as_str().unwrap();
        assert!(message.starts_with(param) && message.contains(told), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_of_a_strict_function_follow_its_schema() {
    let mut files = chat_model("qwen3");
    files.insert("chat_template.jinja".to_owned(), TOOLS.as_bytes().to_vec());
    let server = Case::of(files).ready().await;
    let tool =
        json!({ "type": "function", "function": { "name": "tell", "strict": true, "parameters": short_schema() } });
    let choice = json!({ "type": "function", "function": { "name": "tell" } });
    let messages = json!([{ "role": "user", "content": "Are you?" }]);
    let asked = json!({ "messages": messages, "tools": [tool], "tool_choice": choice });
    let (status, reply) = post(&server, "/v1/chat/completions", asked.clone()).await;
    assert_eq!((status, &reply["choices"][0]["finish_reason"]), (200, &json!("tool_calls")), "{reply}");
    let call = &reply["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!(call["name"], "tell");
    follows_the_short_schema(call["arguments"].as_str().unwrap());

    let flat = json!({ "type": "function", "name": "tell", "strict": true, "parameters": short_schema() });
    let response =
        json!({ "input": "Are you?", "tools": [flat], "tool_choice": { "type": "function", "name": "tell" } });
    let (status, reply) = post(&server, "/v1/responses", response).await;
    assert_eq!((status, &reply["output"][0]["type"]), (200, &json!("function_call")), "{reply}");
    follows_the_short_schema(reply["output"][0]["arguments"].as_str().unwrap());

    let mut both = asked.clone();
    both["response_format"] = json!({ "type": "json_object" });
    let mut bad = asked;
    bad["tools"][0]["function"]["parameters"] = json!({ "type": "strange" });
    for (body, told) in [(both, "response_format: the model must call a tool"), (bad, "tools[0].function.parameters: ")]
    {
        let (status, reply) = post(&server, "/v1/chat/completions", body).await;
        assert!(status == 400 && reply["error"]["message"].as_str().unwrap().starts_with(told), "{reply}");
    }
}

/// The tokens of an answer are the same whether its prompt was computed, taken over, or evicted before.
#[tokio::test(flavor = "multi_thread")]
async fn prefixes_are_taken_over_within_their_bound_and_change_no_token() {
    let long = |last: char| format!("{}{last}:", "12+34=46 ".repeat(5));
    for (prefixes, kept) in [(1000, true), (0, false), (60, false)] {
        let mut case = Case::new(128);
        case.prefixes = prefixes;
        let server = case.ready().await;
        let ask = async |prompt: String| {
            let body = json!({ "prompt": prompt, "max_tokens": 12, "logprobs": 3 });
            let (status, reply) = post(&server, "/v1/completions", body).await;
            assert_eq!(status, 200, "{reply}");
            (reply["choices"].clone(), reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap())
        };
        let (first, cached) = ask(long('1')).await;
        assert_eq!(cached, 0);
        let (again, cached) = ask(long('1')).await;
        assert_eq!(again, first);
        // The last token of a prompt is computed. The bound holds one prompt with its answer, or none.
        assert_eq!(cached, if prefixes == 0 { 0 } else { 46 }, "{prefixes}");
        let (_, cached) = ask(long('2')).await;
        assert_eq!(cached, if prefixes == 0 { 0 } else { 45 }, "{prefixes}");
        let (_, cached) = ask("9".repeat(40)).await;
        assert_eq!(cached, 0);
        let (again, cached) = ask(long('1')).await;
        assert_eq!((again, cached > 0), (first, kept), "{prefixes}");
        let exposed = server.get("/metrics").await.1;
        let counted =
            exposed.lines().find_map(|line| line.strip_prefix("codex_ml_inference_prompt_tokens_cached_total "));
        assert_eq!(counted.unwrap().parse::<u64>().unwrap() > 0, prefixes > 0, "{exposed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn safety_rules_hold_for_prompts_and_answers_of_every_endpoint() {
    let mut case = Case::of(chat_model("smollm2"));
    let path = case.path("rules.yaml");
    std::fs::write(&path, "rules: [{ id: word, action: block, literal: bomb, on: [prompt] }]\nknown: { pii: redact }")
        .unwrap();
    case.filter.rules = Some(path.clone());
    case.filter.events = Some(case.path("events.ndjson"));
    let server = case.ready().await;
    let chat = |text: &str, stream: bool| json!({ "messages": [{ "role": "user", "content": text }], "max_tokens": 6, "stream": stream });
    for (path, body) in [
        ("/v1/chat/completions", chat("a bomb", false)),
        ("/v1/completions", json!({ "prompt": "a bomb", "max_tokens": 6 })),
        ("/v1/responses", json!({ "input": "a bomb" })),
    ] {
        let (status, reply) = post(&server, path, body).await;
        assert_eq!((status, &reply["error"]["code"]), (400, &json!("content_filter")), "{reply}");
        assert!(reply.to_string().contains("the prompt is refused by the safety rule \\\"word\\\""), "{reply}");
    }
    let (status, reply) = post(&server, "/infer", json!({ "prompt": "a bomb" })).await;
    assert!(status == 422 && reply["error"].as_str().unwrap().contains("safety rule"), "{reply}");
    let answer = async |text: &str| post(&server, "/v1/chat/completions", chat(text, false)).await.1;
    let (card, redacted) = (answer("card 4111 1111 1111 1111").await, answer("card {REDACTED}").await);
    assert_eq!(
        (&card["choices"], &card["usage"]["total_tokens"]),
        (&redacted["choices"], &redacted["usage"]["total_tokens"])
    );
    let logged = std::fs::read_to_string(case.path("events.ndjson")).unwrap();
    assert_eq!(logged.lines().count(), 5, "{logged}");
    assert!(!logged.contains("4111"), "{logged}");
    let exposed = server.get("/metrics").await.1;
    for (rule, action, result, count) in [("word", "block", "refused", 4), ("pii.card", "redact", "passed", 1)] {
        let labels = format!("{{action=\"{action}\",direction=\"prompt\",result=\"{result}\",rule=\"{rule}\"}}");
        let line = format!("codex_ml_inference_safety_hits_total{labels} {count}");
        assert!(exposed.lines().any(|found| found == line), "{line}: {exposed}");
    }

    let until = async |rules: &str, expected: &dyn Fn(u16, &Value) -> bool| {
        std::fs::write(&path, rules).unwrap();
        for _ in 0..500 {
            let (status, reply) = post(&server, "/v1/chat/completions", chat("Hi", false)).await;
            if expected(status, &reply) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{rules}");
    };
    let plain = answer("Hi").await["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let hidden = plain.lines().map(|line| "{REDACTED}".repeat(line.chars().count())).collect::<Vec<_>>().join("\n");
    until("rules: [{ id: all, action: redact, regex: '.', on: [answer] }]", &|_, reply| {
        reply["choices"][0]["message"]["content"].as_str().is_some_and(|text| text.trim_end() == hidden.trim_end())
    })
    .await;
    let parts = events(&server, "/v1/chat/completions", chat("Hi", true)).await;
    let text: String = parts
        .iter()
        .filter_map(|part| serde_json::from_str::<Value>(part).ok())
        .filter_map(|part| part["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(text.trim_end(), hidden.trim_end());
    until("rules: [{ id: all, action: block, regex: '.', on: [answer] }]", &|_, reply| {
        let choice = &reply["choices"][0];
        choice["finish_reason"] == "content_filter" && choice["message"]["content"] == ""
    })
    .await;
    until("rules: 5", &|status, reply| status == 503 && reply.to_string().contains("no text is admitted")).await;
    until("rules: []", &|status, _| status == 200).await;
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
