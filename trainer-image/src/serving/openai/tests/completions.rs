//! Completions: text, choices, log-probabilities, prefixes, and what ends a stream.

use super::*;

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

/// Returns the log-probabilities of a model's next tokens after each prefix of a text, each prefix a prompt of its own.
fn scored_alone(files: &BTreeMap<String, Vec<u8>>, ids: &[u32]) -> Vec<LogProbabilities> {
    let mut generator = Generator::load(files, 1, codex_configs::Device::Cpu).unwrap();
    (1..ids.len())
        .map(|at| {
            generator.prefill(0, &ids[..at]).unwrap();
            let mut found = LogProbabilities::default();
            let scores = |_, logits: &[f32]| {
                found = LogProbabilities::of(logits, ids[at], 1);
                ids[at]
            };
            generator.step_by(scores).unwrap();
            generator.release(0);
            generator.forget(0);
            found
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_is_repeated_with_its_log_probabilities() {
    let files = chat_model("smollm2");
    let text =
        "caf\u{e9} \u{1f600}: the sea is wide, and the lamp is lit. The keeper of the light climbs the stairs again.";
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/text/fixtures/smollm2");
    let ids = Tokenizer::load(&fixture).unwrap().encode(text).unwrap();
    let expected = scored_alone(&files, &ids);
    for batched in [None, Some(5)] {
        let mut case = Case::of(files.clone());
        case.batched = batched;
        let server = std::sync::Arc::new(case.ready().await);
        // Held prefixes and other requests change nothing.
        let plain = json!({ "prompt": text, "max_tokens": 4 });
        let (_, alone) = post(&server, "/v1/completions", plain.clone()).await;
        let other = json!({ "prompt": &text[..20], "max_tokens": 40 }).to_string();
        let address = server.address;
        let other = tokio::spawn(async move { request(address, "/v1/completions", Some(other)).await.unwrap() });
        for (prompt, tokens) in [(json!(text), 4), (json!([ids]), 1), (json!(ids), 0)] {
            let asked = json!({ "prompt": prompt, "max_tokens": tokens, "echo": true, "logprobs": 1 });
            let (status, reply) = post(&server, "/v1/completions", asked.clone()).await;
            assert_eq!(status, 200, "{reply}");
            let choice = &reply["choices"][0];
            let all = choice["text"].as_str().unwrap();
            let rest = all.strip_prefix(text).unwrap_or_else(|| panic!("{all}"));
            // A character that lacks bytes is shown as U+FFFD.
            let shown = rest.trim_end_matches('\u{fffd}');
            assert!(alone["choices"][0]["text"].as_str().unwrap().starts_with(shown), "{rest}");
            assert_eq!(reply["usage"]["prompt_tokens"], ids.len());
            let generated = reply["usage"]["completion_tokens"].as_u64().unwrap() as usize;
            assert!(generated <= tokens && (generated > 0) == (tokens > 0), "{generated}");
            if tokens == 0 {
                assert_eq!((rest, &choice["finish_reason"]), ("", &json!("length")));
            }
            let scores = &choice["logprobs"];
            let length = |name: &str| scores[name].as_array().unwrap().len();
            // The harness leaves out the last token, and takes all others to be those of the prompt.
            let names = ["tokens", "token_logprobs", "top_logprobs", "text_offset"];
            let lengths = names.map(length);
            assert!(lengths.iter().all(|length| *length == lengths[0]), "{lengths:?}");
            // Of several generated tokens, those after the text are left out.
            let least = ids.len() + generated.min(1);
            assert!((least..=ids.len() + generated).contains(&lengths[0]), "{lengths:?}");
            assert_eq!((&scores["token_logprobs"][0], &scores["top_logprobs"][0]), (&Value::Null, &Value::Null));
            for (at, own) in expected.iter().enumerate() {
                let single = |value: &Value| value.as_f64().unwrap() as f32;
                assert_eq!(single(&scores["token_logprobs"][at + 1]).to_bits(), own.chosen.to_bits(), "{at}");
                let top = scores["top_logprobs"][at + 1].as_object().unwrap();
                let most = top.values().map(single).fold(f32::NEG_INFINITY, f32::max);
                assert_eq!(most.to_bits(), own.top[0].1.to_bits(), "{at}");
            }
            let offsets: Vec<usize> = serde_json::from_value(scores["text_offset"].clone()).unwrap();
            assert!(offsets.is_sorted() && offsets[0] == 0, "{offsets:?}");
            let characters: Vec<char> = all.chars().collect();
            for (at, token) in scores["tokens"].as_array().unwrap().iter().take(ids.len()).enumerate() {
                let token = token.as_str().unwrap();
                // Tokens that hold a part of a character have names.
                if token.is_ascii() {
                    let found: String = characters[offsets[at]..].iter().take(token.chars().count()).collect();
                    assert_eq!(found, token, "{at}");
                }
            }

            let mut streamed = asked;
            streamed["stream"] = true.into();
            let mut parts = events(&server, "/v1/completions", streamed).await;
            assert_eq!(parts.pop().unwrap(), "[DONE]");
            let parts: Vec<Value> = parts.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
            let streamed: String = parts.iter().filter_map(|part| part["choices"][0]["text"].as_str()).collect();
            assert_eq!(streamed, all);
        }
        assert_eq!(other.await.unwrap().0, 200);
        // Without log-probabilities, the prompt is text alone.
        let mut repeated = plain;
        repeated["echo"] = true.into();
        let (_, reply) = post(&server, "/v1/completions", repeated).await;
        let expected = format!("{text}{}", alone["choices"][0]["text"].as_str().unwrap());
        assert_eq!((&reply["choices"][0]["text"], &reply["choices"][0]["logprobs"]), (&json!(expected), &Value::Null));
    }
}

/// The tokens of an answer are the same whether its prompt was computed, taken over, or evicted before.
#[tokio::test(flavor = "multi_thread")]
async fn prefixes_are_taken_over_within_their_bound_and_change_no_token() {
    let long = |last: char| format!("{}{last}:", "12+34=46 ".repeat(5));
    for (prefixes, kept, whole) in [(1000, true, 2), (0, false, 5), (60, false, 3)] {
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
        // Of five prompts, those that were computed whole, and all.
        let length = "codex_ml_inference_prompt_cached_length_tokens";
        for (series, count) in [("_bucket{le=\"0\"}", whole), ("_count", 5)] {
            let line = format!("{length}{series} {count}");
            assert!(exposed.lines().any(|found| found == line), "{prefixes}: {line}: {exposed}");
        }
    }
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
