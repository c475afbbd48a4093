//! Models, chats, responses and tools, what is refused, and safety rules.

use super::*;

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
        (
            "/v1/chat/completions",
            json!({ "messages": [], "echo": true }),
            400,
            "echo: true: only /v1/completions repeats the prompt",
        ),
        (
            "/v1/completions",
            json!({ "prompt": "1", "echo": true, "logprobs": 0, "n": 2 }),
            400,
            "n: 2: with echo and logprobs, the prompt is computed for each choice: send 1",
        ),
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
        ("/v1/embeddings", json!({}), 404, "the path \"/v1/embeddings\" does not exist"),
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

#[tokio::test(flavor = "multi_thread")]
async fn safety_rules_hold_for_what_a_prompt_takes_over_as_it_is() {
    let mut files = chat_model("qwen3");
    files.insert("chat_template.jinja".to_owned(), TOOLS.as_bytes().to_vec());
    let mut case = Case::of(files);
    let path = case.path("rules.yaml");
    std::fs::write(&path, "rules: [{ id: word, action: block, literal: bomb, on: [prompt] }]\nknown: { pii: redact }")
        .unwrap();
    case.filter.rules = Some(path);
    case.filter.events = Some(case.path("events.ndjson"));
    let server = case.ready().await;
    let parameters = json!({ "type": "object", "properties": { "a": { "enum": ["1", 2, true, null] } } });
    let function = json!({ "name": "add", "description": "Adds.", "parameters": parameters });
    let call = json!({ "id": "call_1", "type": "function", "function": { "name": "add", "arguments": "{\"a\": \"\\u0031\"}" } });
    let plain = json!({
        "messages": [
            { "role": "user", "name": "ada", "content": "1 + 1?" },
            { "role": "assistant", "tool_calls": [call] },
            { "role": "tool", "tool_call_id": "call_1", "content": "2" },
        ],
        "tools": [{ "type": "function", "function": function }],
        "chat_template_kwargs": { "style": { "tones": ["brief"] } },
        "max_tokens": 2,
    });
    let (status, reply) = post(&server, "/v1/chat/completions", plain.clone()).await;
    assert_eq!(status, 200, "{reply}");
    let (blocked, redacted) = ("refused by the safety rule \"word\"", "a safety rule redacts a part of it");
    let [function, call] = ["/tools/0/function", "/messages/1/tool_calls/0"];
    for (pointer, value, param, told) in [
        ("/messages/0/name", json!("bomb"), "messages[0].name", blocked),
        ("/messages/0/name", json!("ada@example.com"), "messages[0].name", redacted),
        ("/messages/2/tool_call_id", json!("bomb"), "messages[2].tool_call_id", blocked),
        (&format!("{call}/id"), json!("bomb"), "messages[1].tool_calls[0].id", blocked),
        (&format!("{call}/function/name"), json!("bomb"), "messages[1].tool_calls[0].function.name", blocked),
        (
            &format!("{call}/function/arguments"),
            json!("{\"a\": \"\\u0062omb\"}"),
            "messages[1].tool_calls[0].function.arguments.a",
            blocked,
        ),
        (&format!("{function}/name"), json!("bomb"), "tools[0].function.name", blocked),
        (&format!("{function}/description"), json!("Of ada@example.com."), "tools[0].function.description", redacted),
        (
            &format!("{function}/parameters/properties"),
            json!({ "bomb": {} }),
            "tools[0].function.parameters.properties",
            blocked,
        ),
        (
            &format!("{function}/parameters/properties/a/enum/1"),
            json!(4_111_111_111_111_111_u64),
            "tools[0].function.parameters.properties.a.enum[1]",
            redacted,
        ),
        ("/chat_template_kwargs/style/tones/0", json!("bomb"), "chat_template_kwargs.style.tones[0]", blocked),
    ] {
        let mut body = plain.clone();
        *body.pointer_mut(pointer).unwrap() = value;
        let (status, reply) = post(&server, "/v1/chat/completions", body).await;
        let error = &reply["error"];
        assert_eq!(
            (status, &error["code"], &error["param"]),
            (400, &json!("content_filter"), &json!(param)),
            "{reply}"
        );
        assert!(error["message"].as_str().unwrap().starts_with(&format!("{param}: {told}")), "{reply}");
    }
    // Tools that are not shown are no part of the prompt.
    let mut hidden = plain;
    hidden["tools"][0]["function"]["description"] = "bomb".into();
    hidden["tool_choice"] = "none".into();
    assert_eq!(post(&server, "/v1/chat/completions", hidden).await.0, 200);
    let flat = json!({ "input": "1 + 1?", "max_output_tokens": 2, "tools": [{ "type": "function", "name": "bomb" }] });
    let (status, reply) = post(&server, "/v1/responses", flat).await;
    assert_eq!((status, &reply["error"]["param"]), (400, &json!("tools[0].function.name")), "{reply}");
}
