//! Budgets of reasoning.

use super::*;

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
