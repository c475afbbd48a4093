//! `/evaluate` over HTTP, with a small untrained model.

use std::{fs, time::Duration};

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{
    evaluation::{Given, Scorer},
    model::{Completion, Generator},
    serving::tests::{Case, Running, request, seeded},
    tasks::{Difficulty, Record},
};

/// A context that takes minutes to fill.
const ENDLESS: usize = 50_000;
const PROMPTS: [&str; 6] = ["347+86:", "1-2:", "9+9:", "5:", "12+34:", "7*8:"];

async fn post(server: &Running, body: &Value) -> (u16, Value) {
    let (status, _, text) = request(server.address, "/evaluate", Some(body.to_string())).await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}")))
}

/// Returns what the model of [`Case::new`] writes to each prompt alone.
fn written(tokens: usize, stop: &[String]) -> Vec<Completion> {
    let mut generator = Generator::load(&seeded(64, 11), 1, codex_configs::Device::Cpu).unwrap();
    let greedy = |_| codex_engine::Sampler::greedy();
    let all = generator.sample_until(&PROMPTS, (tokens, stop), greedy, |_| true).unwrap();
    all.into_iter().map(Result::unwrap).collect()
}

/// Returns problems of which the first two have the model's answers.
fn problems(written: &[Completion]) -> Vec<Value> {
    let answer = |at: usize| if at < 2 { written[at].text.clone() } else { "x".to_owned() };
    PROMPTS.iter().enumerate().map(|(at, prompt)| json!({ "prompt": prompt, "answer": answer(at) })).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_and_scores_are_those_of_the_evaluator() {
    let case = Case::new(64);
    let server = case.ready().await;
    let whole = written(6, &[]);
    let stop = vec![whole[2].text.chars().skip(2).take(2).collect::<String>()];
    assert_eq!(stop[0].chars().count(), 2);
    for stop in [Vec::new(), stop] {
        let expected = written(6, &stop);
        let settings = json!({ "answer": "whole", "max_new_tokens": 6, "stop": stop, "metrics": ["token_f1", "bleu"] });
        let body = json!({ "problems": problems(&expected), "evaluation": settings });
        let (status, reply) = post(&server, &body).await;
        assert_eq!(status, 200, "{reply}");
        assert_eq!(reply["model_digest"], case.expected.model_digest.to_string());
        assert_eq!((&reply["ring"], &reply["preset"]), (&json!("0D_base_"), &json!("base")));
        assert_eq!((&reply["evaluation"]["answer"], &reply["confidence"]), (&json!("whole"), &json!(0.95)));
        let given = |(at, prompt): (usize, &&str)| Given {
            record: Record {
                prompt: (*prompt).to_owned(),
                response: if at < 2 { expected[at].text.clone() } else { "x".to_owned() },
                difficulty: Difficulty::Easy,
                category: String::new(),
                cluster: None,
            },
            is_answer: true,
        };
        let answered = PROMPTS.iter().enumerate().map(given).zip(expected.iter().map(|it| it.text.clone())).collect();
        let scores = Scorer::compose("base", settings.as_object()).unwrap().score(answered);
        assert_eq!(reply["metrics"], serde_json::to_value(&scores.metrics).unwrap());
        let items = reply["items"].as_array().unwrap();
        assert_eq!(items.len(), PROMPTS.len());
        for (at, (item, scored)) in items.iter().zip(&scores.scored).enumerate() {
            let mut own = item.clone();
            let (tokens, end) = (own["tokens"].take(), own["finish_reason"].take());
            own.as_object_mut().unwrap().retain(|name, _| !["tokens", "finish_reason"].contains(&name.as_str()));
            assert_eq!(own, serde_json::to_value(scored).unwrap());
            assert_eq!((&item["line"], &item["correct"]), (&json!(at + 1), &json!(at < 2)));
            assert_eq!(tokens, expected[at].tokens.len());
            assert_eq!(end, if expected[at].end.is_some() { "stop" } else { "length" });
        }
        let tokens: usize = expected.iter().map(|it| it.tokens.len()).sum();
        let prompts: usize = PROMPTS.iter().map(|prompt| prompt.len()).sum();
        assert_eq!(reply["usage"], json!({ "prompt_tokens": prompts, "completion_tokens": tokens }));
    }
    let exposed = server.get("/metrics").await.1;
    assert!(exposed.contains("codex_ml_inference_responses_total{code=\"200\",endpoint=\"/evaluate\"} 2"), "{exposed}");
    assert!(!exposed.contains("codex_ml_inference_latency_seconds_count{endpoint=\"/evaluate\"}"), "{exposed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_record_is_named_with_its_field() {
    let server = Case::new(64).ready().await;
    let fine = json!({ "prompt": "1+1:", "answer": "2" });
    let after = |record: Value| json!({ "problems": [fine, record] });
    let with = |settings: Value| json!({ "problems": [fine], "evaluation": settings });
    for (body, told) in [
        (json!({ "problems": [] }), "problems: 0: send 1 to 50"),
        (json!({ "problems": vec![fine.clone(); 51] }), "problems: 51: send 1 to 50"),
        (after(json!(5)), "problems[1]: send an object with prompt and response or answer"),
        (after(json!({ "answer": "2" })), "problems[1].prompt: is missing"),
        (after(json!({ "prompt": 5, "answer": "2" })), "problems[1].prompt: send a text"),
        (after(json!({ "prompt": "", "answer": "2" })), "problems[1].prompt: 0 characters: write 1 to 16000"),
        (after(json!({ "prompt": "caf\u{e9}", "answer": "2" })), "problems[1].prompt: character 'é' is not in the"),
        (after(json!({ "prompt": "1".repeat(64), "answer": "2" })), "problems[1].prompt: the prompt has 64 tokens"),
        (after(json!({ "prompt": "2:" })), "problems[1].response: is missing: send it, or the answer alone as answer"),
        (
            after(json!({ "prompt": "2:", "response": "#2$", "answer": "2" })),
            "problems[1].answer: response is there, too",
        ),
        (
            after(json!({ "prompt": "2:", "response": "2" })),
            "problems[1].response: it has no answer: end it in #answer$",
        ),
        (after(json!({ "prompt": "2:", "answer": " " })), "problems[1].answer: it has no answer: it is empty"),
        (after(fine.clone()), "problems[1].prompt: it is that of problems[0]: ask each problem once"),
        (after(json!({ "promt": "2:" })), "problems[1].promt: is unknown: a problem has prompt, response, answer"),
        (after(json!({ "prompt": "2:", "answer": "2", "difficulty": "odd" })), "problems[1].difficulty: write easy"),
        (
            after(json!({ "prompt": "2:", "answer": "2", "cluster": "a" })),
            "problems[1].cluster: give a cluster to every",
        ),
        (json!({ "problems": [fine], "preset": "bse" }), "preset \"bse\" is unknown"),
        (with(json!({ "compare": "roughly" })), "evaluation.compare"),
        (with(json!({ "samples": 4, "temperature": 1 })), "evaluation.samples is 4"),
        (with(json!({ "prompt": "chat" })), "problems[0].prompt: evaluation.prompt is chat, but the model has no chat"),
        (json!({ "problems": [fine], "seed": 5 }), "unknown field `seed`"),
        (json!({}), "missing field `problems`"),
    ] {
        let (status, reply) = post(&server, &body).await;
        let error = reply["error"].as_str().unwrap_or_default();
        assert!(status == 422 && error.contains(told), "{body}: {status} {reply}");
        assert!(reply["model_digest"].is_string(), "{reply}");
    }
    let large = json!({ "problems": [{ "prompt": "1:", "answer": "2".repeat(1 << 20) }] });
    assert_eq!(post(&server, &large).await.0, 413);
    let (status, _, text) = request(server.address, "/evaluate", None).await.unwrap();
    assert!(status == 405 && text.contains("/evaluate"), "{status} {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_problem_counts_as_a_request_and_waits_for_its_turn() {
    let mut case = Case::new(64);
    (case.slots, case.queue) = (1, 0);
    case.access.rate = "8/1d".parse().ok();
    let server = case.ready().await;
    let problems: Vec<Value> = PROMPTS.iter().map(|prompt| json!({ "prompt": prompt, "answer": "2" })).collect();
    let body = json!({ "problems": problems, "evaluation": { "max_new_tokens": 3 } });
    // Only one at a time fits, and the last evaluation that begins within the limit is answered.
    for status in [200, 200, 429] {
        let (found, reply) = post(&server, &body).await;
        assert_eq!(found, status, "{reply}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn safety_rules_hold_for_prompts_and_answers() {
    let mut case = Case::new(64);
    let rules = case.path("rules.yaml");
    let text = "rules: [{ id: sum, action: block, literal: 7+7, on: [prompt] }, { id: all, action: block, regex: '(?s).', on: [answer] }]";
    fs::write(&rules, text).unwrap();
    case.filter.rules = Some(rules);
    let server = case.ready().await;
    let asked = |prompt: &str| {
        let problems = json!([{ "prompt": "1+1:", "answer": "2" }, { "prompt": prompt, "answer": "14" }]);
        json!({ "problems": problems, "evaluation": { "max_new_tokens": 3 } })
    };
    let (status, reply) = post(&server, &asked("7+7:")).await;
    let told = "problems[1].prompt: refused by the safety rule \"sum\"";
    assert_eq!((status, reply["error"].as_str()), (422, Some(told)));
    let (status, reply) = post(&server, &asked("8+6:")).await;
    assert_eq!(status, 200, "{reply}");
    for item in reply["items"].as_array().unwrap() {
        assert_eq!((&item["prediction"], &item["finish_reason"]), (&json!(""), &json!("content_filter")));
        assert_eq!(item["correct"], false);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evaluation_ends_at_its_time_limit_and_with_its_client() {
    let endless = json!({
        "problems": [{ "prompt": "1:", "answer": "2" }, { "prompt": "2:", "answer": "2" }],
        "evaluation": { "max_new_tokens": ENDLESS },
    });
    let mut case = Case::new(ENDLESS);
    case.time_limit = Some(Duration::from_secs(1));
    let server = case.ready().await;
    let (status, reply) = post(&server, &endless).await;
    assert!(status == 504 && reply["error"].as_str().unwrap().contains("within the 1 s"), "{status} {reply}");

    let server = Case::new(ENDLESS).ready().await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let body = endless.to_string();
    let head = format!("POST /evaluate HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    client.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let running = async |count: usize| {
        let line = format!("codex_ml_active_sessions {count}");
        while !server.get("/metrics").await.1.lines().any(|found| found == line) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    running(2).await;
    drop(client);
    let idle = tokio::time::timeout(Duration::from_secs(20), running(0)).await;
    assert!(idle.is_ok(), "the problems of a client that went away still run");
}
