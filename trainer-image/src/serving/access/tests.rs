//! API keys and limits over HTTP, with a small untrained model.

use std::{fs, net::SocketAddr, time::Duration};

use serde_json::{Value, json};

use crate::serving::{
    access::Settings,
    tests::{Case, Running},
};

const ALICE: &str = "sk-alice-0123456789";
const BOB: &str = "sk-bob-0123456789ab";

/// A server with these keys.
async fn guarded(keys: &[(&str, &str)], settings: Settings) -> (Case, Running) {
    let mut case = Case::new(64);
    let folder = case.path("keys");
    fs::create_dir(&folder).unwrap();
    for (name, key) in keys {
        fs::write(folder.join(name), key).unwrap();
    }
    case.access = Settings { keys: Some(folder), ..settings };
    let server = case.ready().await;
    (case, server)
}

/// Sends a prompt to a path: status, headers, body.
async fn send(
    address: SocketAddr,
    path: &str,
    header: impl Into<Option<(&'static str, String)>>,
) -> (u16, Vec<(String, String)>, Value) {
    let url = format!("http://{address}{path}");
    let limit = if path == "/infer" { "max_new_tokens" } else { "max_tokens" };
    let header: Option<(&str, String)> = header.into();
    let work = move || {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let mut request = agent.post(url);
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let body = json!({ "prompt": "1+1:", (limit): 3 }).to_string();
        let mut response = request.send(body.as_bytes()).unwrap();
        let headers = response.headers().iter();
        let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
        let body = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), headers, serde_json::from_str(&body).unwrap())
    };
    tokio::task::spawn_blocking(work).await.unwrap()
}

fn key(key: &str) -> (&'static str, String) {
    ("x-api-key", key.to_owned())
}

fn header(headers: &[(String, String)], name: &str) -> Option<String> {
    headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_requests_with_a_key_are_answered_and_probes_stay_open() {
    let (_case, server) = guarded(&[("alice", ALICE), ("bob", BOB)], Settings::default()).await;
    for path in ["/infer", "/v1/completions"] {
        for given in [None, Some(key("sk-wrong-0123456789")), Some(("authorization", format!("Basic {ALICE}")))] {
            let (status, headers, body) = send(server.address, path, given).await;
            assert_eq!(status, 401, "{body}");
            assert_eq!(body["error"]["code"], "invalid_api_key");
            assert_eq!(header(&headers, "www-authenticate").as_deref(), Some("Bearer"));
            assert!(!body.to_string().contains("sk-"), "{body}");
        }
        for given in [key(ALICE), ("authorization", format!("Bearer {BOB}"))] {
            let (status, headers, body) = send(server.address, path, given).await;
            assert_eq!(status, 200, "{body}");
            assert_eq!(header(&headers, "x-codex-ring").as_deref(), Some("0D_base_"));
            assert_eq!(header(&headers, "x-codex-model-digest").map(|digest| digest.len()), Some(64));
        }
    }
    for (path, status) in [("/health", 200), ("/ready", 200), ("/metrics", 200), ("/status", 401), ("/v1/models", 401)]
    {
        assert_eq!(server.get(path).await.0, status, "{path}");
    }
    let exposed = server.get("/metrics").await.1;
    for line in [
        "codex_ml_inference_key_requests_total{key=\"alice\",result=\"admitted\"} 2",
        // Four tokens of the prompt and three of the response, twice.
        "codex_ml_inference_key_tokens_total{key=\"alice\"} 14",
        "codex_ml_inference_responses_total{code=\"401\",endpoint=\"/infer\"} 3",
    ] {
        assert!(exposed.lines().any(|found| found == line), "{line}: {exposed}");
    }
    assert!(!exposed.contains("sk-"));
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_refuse_each_key_by_itself() {
    let carol = r#"{"key": "sk-carol-0123456789", "rate": "5/1d", "endpoints": ["/v1/completions"]}"#;
    let settings = Settings { rate: "2/1d".parse().ok(), ..Settings::default() };
    let (_case, server) = guarded(&[("alice", ALICE), ("bob", BOB), ("carol", carol)], settings).await;
    for status in [200, 200, 429, 429] {
        let (found, headers, body) = send(server.address, "/infer", key(ALICE)).await;
        assert_eq!(found, status, "{body}");
        if status == 429 {
            let wait: u64 = header(&headers, "retry-after").unwrap().parse().unwrap();
            assert!((86_000..=86_400).contains(&wait), "{wait}");
            assert_eq!(body["error"]["code"], "rate_limit_exceeded");
            assert!(
                body["error"]["message"].as_str().unwrap().contains("rate limit of 2/86400s is used up: retry in 8")
            );
        }
    }
    assert_eq!(send(server.address, "/infer", key(BOB)).await.0, 200);
    let (status, _, body) = send(server.address, "/infer", key("sk-carol-0123456789")).await;
    assert_eq!((status, &body["error"]["type"]), (403, &json!("permission_error")), "{body}");
    assert!(body["error"]["message"].as_str().unwrap().contains("\"carol\" may not call /infer"), "{body}");
    for status in [200, 200, 200, 200, 200, 429] {
        assert_eq!(send(server.address, "/v1/completions", key("sk-carol-0123456789")).await.0, status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_budget_refuses_once_it_is_used_up() {
    let settings = Settings { tokens: "8/1d".parse().ok(), ..Settings::default() };
    let (_case, server) = guarded(&[("alice", ALICE)], settings).await;
    // Seven tokens each: the second begins with one left.
    for status in [200, 200, 429] {
        let (found, _, body) = send(server.address, "/infer", key(ALICE)).await;
        assert_eq!(found, status, "{body}");
        if status == 429 {
            assert_eq!(body["error"]["code"], "token_budget_exceeded");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_keys_a_limit_holds_for_all_clients() {
    let mut case = Case::new(64);
    case.access.rate = "1/1d".parse().ok();
    let server = case.ready().await;
    assert_eq!(send(server.address, "/infer", None::<(&str, String)>).await.0, 200);
    assert_eq!(send(server.address, "/v1/completions", key(ALICE)).await.0, 429);
    assert_eq!(server.get("/v1/models").await.0, 200, "only what generates is counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_rotated_without_a_restart() {
    let (case, server) = guarded(&[("alice", ALICE)], Settings::default()).await;
    let until = async |presented: &str, status: u16| {
        for _ in 0..500 {
            let found = send(server.address, "/infer", key(presented)).await.0;
            // Each attempt counts, so that in the end a valid key is limited.
            if found == status || (status == 200 && found == 429) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{presented} never got {status}");
    };
    until(ALICE, 200).await;
    fs::write(case.path("keys/bob"), BOB).unwrap();
    until(BOB, 200).await;
    fs::remove_file(case.path("keys/alice")).unwrap();
    until(ALICE, 401).await;
    until(BOB, 200).await;
    // An invalid entry admits nobody; an unreadable folder changes nothing.
    fs::write(case.path("keys/alice"), "short").unwrap();
    fs::write(case.path("keys/carol"), "sk-carol-0123456789").unwrap();
    until("sk-carol-0123456789", 200).await;
    until("short", 401).await;
    fs::rename(case.path("keys"), case.path("elsewhere")).unwrap();
    tokio::time::sleep(Duration::from_millis(60)).await;
    until("sk-carol-0123456789", 200).await;
    fs::create_dir(case.path("keys")).unwrap();
    until("sk-carol-0123456789", 401).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_keys_stop_the_server_before_it_serves() {
    let mut case = Case::new(64);
    let folder = case.path("keys");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("alice"), "short").unwrap();
    case.access.keys = Some(folder);
    let error = case.start().await.end.await.unwrap().unwrap_err();
    assert_eq!((error.exit(), error.failure().reason.as_str()), (2, "InvalidSettings"));
    assert!(error.to_string().contains("the API key \"alice\" is invalid: write 16 to 512 characters"), "{error}");
}
