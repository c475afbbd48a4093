//! Requests over HTTP: what is answered, what is refused, and what is recorded of it.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_reports_its_requests_and_other_servers_do_not() {
    let quiet = Case::new(64).ready().await;
    assert_eq!(quiet.reporter.state().traffic, None);
    let mut case = Case::new(64);
    case.traffic = Some(Duration::from_millis(5));
    let rules = case.path("rules.yaml");
    fs::write(&rules, "rules: [{ id: sum, action: block, literal: 7+7, on: [prompt] }]").unwrap();
    case.filter.rules = Some(rules);
    let server = case.ready().await;
    let traffic = || server.reporter.state().traffic.unwrap();
    assert_eq!((traffic().requests, traffic().completed), (0, 0));
    for (body, status) in [
        (json!({ "prompt": "347+86:", "max_new_tokens": 5 }), 200),
        (json!({ "prompt": "" }), 422),
        (json!({ "prompt": "7+7:" }), 422),
        (json!({ "prompt": "1+1:", "max_new_tokens": 1 }), 200),
    ] {
        assert_eq!(server.infer(body).await.0, status);
    }
    for _ in 0..600 {
        if traffic().completed == 2 && traffic().requests == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let seen = traffic();
    assert_eq!((seen.requests, seen.errors, seen.refused, seen.completed), (2, 0, 0, 2));
    assert_eq!(seen.rejected, Some(Rejected { keys: 0, prompts: 1, answers: 0 }), "one request has no prompt at all");
    let responses = |times: Option<Times>| times.map(|times| times.responses);
    assert_eq!(responses(seen.first_token), Some(2));
    assert_eq!(responses(seen.inter_token), Some(1), "a response of one token has no time between two");
    for server in [quiet, server] {
        server.stop.requested.cancel();
        server.end.await.unwrap().unwrap();
    }
}

/// Half-sent heads and bodies are closed, and connections beyond the limit; the port stays usable.
#[tokio::test(flavor = "multi_thread")]
async fn half_sent_requests_are_closed_and_connections_are_bounded() {
    let mut case = Case::new(64);
    let patience = Duration::from_secs(1);
    case.limits = Limits { connections: 4, head: patience, body: patience, ..crate::serving::LIMITS };
    let server = case.ready().await;
    let send = async |text: &str| {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut rest)).await.unwrap();
        read.map_or_else(|error| assert_eq!(error.kind(), io::ErrorKind::ConnectionReset), drop);
        String::from_utf8(rest).unwrap()
    };
    send("POST /infer HTTP/1.1\r\nHost: x\r\nContent-Le").await;
    let text = send("POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{\"prompt\":").await;
    assert!(text.contains("the body did not arrive within 1s") && text.contains("\"model_digest\":"), "{text}");
    let silent = [(); 4].map(|()| TcpStream::connect(server.address));
    let mut held = Vec::new();
    for stream in silent {
        held.push(stream.await.unwrap());
    }
    assert_eq!(send("").await, "", "a fifth connection is closed");
    drop(held);
    server.until("/ready", 200).await;
    let (_, metrics) = server.get("/metrics").await;
    let refused =
        metrics.lines().find_map(|line| line.strip_prefix("codex_ml_inference_connections_refused_total ")).unwrap();
    assert!(refused.parse::<u64>().unwrap() >= 1, "{refused}");
    for (path, body, status) in [("/elsewhere", None, 404), ("/infer", None, 405), ("/ready", Some("{}"), 405)] {
        let (found, _, text) = request(server.address, path, body.map(str::to_owned)).await.unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(found == status && value["error"].as_str().unwrap().contains(path), "{path}: {found} {text}");
    }
    // Every response names the model.
    let text = send("GET /elsewhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    let digest = format!("x-codex-model-digest: {}", case.expected.model_digest);
    assert!(text.starts_with("HTTP/1.1 404 ") && text.contains(&digest) && text.contains("x-codex-ring: "), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_get_the_tokens_that_each_gets_alone() {
    for batched in [None, Some(3), Some(5)] {
        concurrent_requests(batched).await;
    }
}

async fn concurrent_requests(batched: Option<usize>) {
    let case = Case { slots: 3, batched, ..Case::new(64) };
    let server = Arc::new(case.ready().await);
    let prompts: Vec<String> = (0..20).map(|i| format!("{}+{}:", i * 37 % 100, i * i)).collect();
    let mut alone = generator(64, 1);
    let answers: Vec<_> = prompts
        .iter()
        .map(|prompt| {
            let (server, prompt) = (Arc::clone(&server), prompt.clone());
            tokio::spawn(async move { server.infer(json!({ "prompt": prompt })).await })
        })
        .collect();
    for (prompt, answer) in prompts.iter().zip(answers) {
        let (status, reply) = answer.await.unwrap();
        assert_eq!(status, 200, "{reply}");
        let expected = alone.complete(&[prompt], 64, |_| ()).remove(0).unwrap();
        assert_eq!(reply["completion"], expected.text.strip_suffix('$').unwrap_or(&expected.text));
        assert_eq!(reply["tokens"], expected.tokens.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_request_gets_a_reason() {
    let case = Case::new(64);
    let server = case.ready().await;
    let said = async |body: Value| {
        let (status, reply) = server.infer(body).await;
        assert_eq!(reply["model_digest"], case.expected.model_digest.to_string());
        (status, reply["error"].as_str().unwrap().to_owned())
    };
    let wrong = async |body: Value, told: &str| {
        let (status, error) = said(body).await;
        assert_eq!((status, error.contains(told)), (422, true), "{error}");
    };
    wrong(json!({ "prompt": "" }), "prompt: 0 characters: write 1 to 16000").await;
    wrong(json!({ "prompt": "1".repeat(16_001) }), "prompt: 16001 characters").await;
    wrong(json!({ "prompt": "caf\u{e9}" }), "prompt: character 'é' is not in the tokenizer's vocabulary").await;
    wrong(json!({ "prompt": "1".repeat(64) }), "prompt: the prompt has 64 tokens").await;
    wrong(json!({ "prompt": "1", "max_new_tokens": 0 }), "max_new_tokens: 0 is out of range; use 1 to 64").await;
    wrong(json!({ "prompt": "1", "max_new_tokens": 65 }), "max_new_tokens: 65 is out of range").await;
    wrong(json!({ "prompt": "1", "temperature": 1 }), "unknown field `temperature`").await;
    wrong(json!({}), "missing field `prompt`").await;
    wrong(json!(["1+1:", 5]), "expected an object with prompt, max_new_tokens").await;
    wrong(json!({ "prompt": ["1+1:"] }), "expected a string").await;
    let (status, _, body) = request(server.address, "/infer", Some("{".into())).await.unwrap();
    assert_eq!(status, 400, "{body}");
    let longest = json!({ "prompt": "\u{1F600}".repeat(16_000) });
    let escaped = format!("{{\"prompt\":\"{}\"}}", "\\ud83d\\ude00".repeat(16_000));
    assert_eq!(serde_json::from_str::<Value>(&escaped).unwrap(), longest);
    assert_eq!(request(server.address, "/infer", Some(escaped)).await.unwrap().0, 422, "refused for its characters");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_needs_no_content_type() {
    let case = Case::new(64);
    let server = case.ready().await;
    // `kubectl create --raw` sends this through the API server's proxy.
    let ask = async |body: &'static str| {
        let address = server.address;
        let work = move || {
            use std::io::{Read as _, Write as _};
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            let head =
                format!("POST /infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}", body.len());
            stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        tokio::task::spawn_blocking(work).await.unwrap()
    };
    let answer = ask(r#"{"prompt": "1+1:", "max_new_tokens": 2}"#).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    for (body, told) in [("", "the request body is empty: send"), ("prompt=1", "the request body is not JSON")] {
        let answer = ask(body).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains(told), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn overload_is_refused_early() {
    let case = Case { slots: 1, queue: 1, ..Case::new(400) };
    let server = Arc::new(case.ready().await);
    let flood: Vec<_> = (0..24)
        .map(|_| {
            let address = server.address;
            tokio::spawn(async move { request(address, "/infer", Some(json!({ "prompt": "1+1:" }).to_string())).await })
        })
        .collect();
    let (mut answered, mut refused) = (0, 0);
    for request in flood {
        let (status, again, body) = request.await.unwrap().unwrap();
        match status {
            200 => answered += 1,
            429 => {
                refused += 1;
                assert_eq!(again.as_deref(), Some("1"));
                assert!(body.contains("overloaded: 2 requests are running or waiting"), "{body}");
            }
            other => panic!("{other}: {body}"),
        }
    }
    assert!(answered >= 2 && refused >= 1, "{answered} answered, {refused} refused");
    assert_eq!(server.infer(json!({ "prompt": "1+1:" })).await.0, 200, "there is room again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_ends_at_its_time_limit() {
    let case = Case { time_limit: Some(Duration::from_secs(1)), ..Case::new(ENDLESS) };
    let server = case.ready().await;
    let told = "the response did not end within the 1 s that a request may take here: ask for fewer tokens";
    let (status, body) = server.infer(json!({ "prompt": "1" })).await;
    assert_eq!((status, body["error"].as_str()), (504, Some(told)));
    let asked = json!({ "prompt": "1", "max_tokens": ENDLESS - 10, "stream": true });
    let (status, _, events) = request(server.address, "/v1/completions", Some(asked.to_string())).await.unwrap();
    assert!(status == 200 && events.contains("request_timeout") && events.contains(told), "{events}");
    // Its slot is free again, and a request that ends in time is answered.
    assert_eq!(server.infer(json!({ "prompt": "1", "max_new_tokens": 2 })).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_model_is_reported_on_every_endpoint() {
    let case = Case::new(64);
    let (_phase, watched) = watch::channel(Phase::Refused("the model is refused: because".into()));
    let metrics = Arc::new(Metrics::new().unwrap());
    let app = http::App::new(
        Some(case.expected.clone()),
        http::Gates { access: Access::open(Arc::clone(&metrics)), filter: None, shadow: None, errors: Arc::default() },
        watched,
        metrics,
        None,
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(axum::serve(listener, http::router(app, http::Side::Whole)).into_future());
    let (status, _, body) = request(address, "/ready", None).await.unwrap();
    assert_eq!((status, body.as_str()), (503, r#"{"error":"the model is refused: because"}"#));
    for path in ["/infer", "/evaluate"] {
        let (status, again, _) = request(address, path, Some("{}".into())).await.unwrap();
        assert_eq!((status, again.as_deref()), (503, Some("1")), "{path}");
    }
    let (_, _, body) = request(address, "/status", None).await.unwrap();
    assert!(body.contains(r#""status":"refused""#) && body.contains("because"), "{body}");
    serving.abort();
}

/// Returns the lines of a server's errors.
fn failures(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_a_server_are_lines_without_texts() {
    let mut case = Case::new(64);
    let (rules, path) = (case.path("rules.yaml"), case.path("errors.ndjson"));
    fs::write(&rules, "rules: [{ id: a, action: block, literal: forbidden }]").unwrap();
    case.filter = filter::Settings { rules: Some(rules.clone()), events: None };
    case.errors = Some(path.clone());
    let server = case.ready().await;
    // A refused request is not a failure of the server.
    assert_eq!(server.infer(json!({ "prompt": "forbidden" })).await.0, 422);
    assert_eq!(failures(&path), [Value::Null; 0]);
    fs::write(&rules, "rules: [{ id: a, action: block, literal: secret, what: 5 }]").unwrap();
    for _ in 0..500 {
        if !failures(&path).is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(server.infer(json!({ "prompt": "347+86:" })).await.0, 503);
    // Rules that stay invalid are one line, however often they are read.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let lines = failures(&path);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!((&lines[0]["source"], &lines[0]["reason"]), (&json!("safety_rules"), &json!("ReloadFailed")));
    assert_eq!((&lines[0]["run_id"], &lines[0]["exit_code"]), (&json!("cot"), &Value::Null));
    let text = fs::read_to_string(&path).unwrap();
    assert!(!["secret", "forbidden", "347+86"].iter().any(|said| text.contains(said)), "{text}");
    server.stop.requested.cancel();
    server.end.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_refused_model_is_a_line_with_its_exit_code() {
    let mut case = Case::new(64);
    let path = case.path("errors.ndjson");
    case.errors = Some(path.clone());
    fs::write(case.path("model/config.json"), "{}").unwrap();
    case.start().await.end.await.unwrap().unwrap_err();
    let lines = failures(&path);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!((&lines[0]["source"], &lines[0]["exit_code"]), (&json!("server"), &json!(exit::BAD_INPUT)));
    assert_eq!(lines[0]["reason"], "VerificationFailed");
}

/// The hidden states of a response have the same size whatever was taken over for it and is computed beside it.
#[tokio::test(flavor = "multi_thread")]
async fn traces_measure_the_hidden_states_that_responses_were_chosen_by() {
    const PROMPT: &str = "12+34=46 12+34=46 12+34=46 12+34=46 5:";
    const TOKENS: usize = 6;
    let case = Case::new(64);
    let path = case.path("traces.ndjson");
    let mode = capture::Mode::Activations;
    let settings =
        capture::Settings { path: path.clone(), mode, sample: 1.0, threshold: 1e-9, top: 1, most: 0, size: 1 << 20 };
    let server = case.serve(Server { capture: Some(settings), ..case.server() }).await;
    server.until("/ready", 200).await;
    let ask = async || {
        let (status, reply) = server.infer(json!({ "prompt": PROMPT, "max_new_tokens": TOKENS })).await;
        assert_eq!((status, &reply["tokens"]), (200, &TOKENS.into()), "{reply}");
    };
    ask().await;
    tokio::join!(ask(), ask(), ask());
    let mut written = Vec::new();
    for _ in 0..600 {
        written = fs::read_to_string(&path).unwrap_or_default().lines().map(str::to_owned).collect();
        if written.len() == 4 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The same from a decoder that has nothing else to do.
    let mut alone = generator(64, 1);
    alone.return_states();
    alone.prefill(0, &alone.tokenizer().encode(PROMPT).unwrap()).unwrap();
    let mut sum = vec![0.0; alone.config().hidden_size];
    for _ in 0..TOKENS {
        let step = alone.step_within(usize::MAX, |_, logits| Sampler::greedy().choose(logits)).unwrap();
        sum.iter_mut().zip(&step.states).for_each(|(sum, number)| *sum += f64::from(*number));
    }
    let expected = sum.iter().map(|sum| sum * sum).sum::<f64>().sqrt() / TOKENS as f64;
    assert_eq!(written.len(), 4, "{written:?}");
    for line in written {
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&line["trace_mode"], &line["completion_tokens"]), (&"activations".into(), &TOKENS.into()));
        let norm = line["embedding_norm"].as_f64().unwrap();
        // A number that is read from JSON may differ in its last bit.
        assert!((norm / expected - 1.0).abs() < 1e-12, "{norm}, not {expected}");
    }
}
