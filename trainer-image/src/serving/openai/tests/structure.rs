//! Structured output and the arguments of strict functions.

use super::*;

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
