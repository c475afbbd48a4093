//! From the command line to the end of the process: readiness, certificates, listeners, drain.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_ready_once_verified_and_responses_have_the_model_digest() {
    let case = Case::new(64);
    let server = case.ready().await;
    let digest = case.expected.model_digest.to_string();
    let state = server.reporter.state();
    assert_eq!((state.stage, state.verified), (Stage::Running, Some(case.expected.model_digest)));
    assert_eq!(state.promotion, Some(case.expected.promotion_digest));
    assert_eq!(state.golden_tokens, Some(Reproduction::Absent));
    assert!(state.device.is_some_and(|device| device.engine.starts_with("cpu") && !device.name.is_empty()));

    let (status, reply) = server.infer(json!({ "prompt": "347+86:", "max_new_tokens": 5 })).await;
    assert_eq!(status, 200, "{reply}");
    assert_eq!((&reply["model_digest"], &reply["tokens"]), (&json!(digest), &json!(5)));
    assert_eq!(reply["finish_reason"], "length");
    assert!(reply.get("answer").is_none() && reply.get("steps").is_none());
    let (_, whole) = server.infer(json!({ "prompt": "347+86:" })).await;
    assert!(whole["completion"].as_str().unwrap().starts_with(reply["completion"].as_str().unwrap()));

    let (_, status) = server.get("/status").await;
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!((&status["status"], &status["ring"]), (&json!("ready"), &json!(RING)));
    assert_eq!(status["verified"]["model_digest"], digest);
    assert_eq!(status["verified"]["golden_tokens"], "absent");
    let mut engine = status["engine"].clone();
    let device = engine.as_object_mut().unwrap().remove("device").unwrap();
    assert!(device.as_str().unwrap().starts_with("cpu-"), "{device}");
    // A step has the tokens that suit a processor, and the cache a whole context for each slot.
    let in_force = json!({
        "max_num_seqs": 4, "max_queued_requests": 64, "max_num_batched_tokens": 256,
        "kv_cache_tokens": 4 * 64, "prefix_cache_tokens": 1000,
    });
    assert_eq!(engine, in_force);
    assert_eq!(status["verified"]["signer"], case.expected.key_fingerprints[0].to_string());
    assert_eq!(server.get("/health").await.0, 200);
    let (_, metrics) = server.get("/metrics").await;
    assert!(metrics.contains("codex_ml_inference_requests_total{endpoint=\"/infer\"} 2"), "{metrics}");
    assert!(metrics.contains("codex_ml_inference_latency_seconds_bucket{endpoint=\"/infer\",le=\"0.7\"} 2"));
    assert!(metrics.contains("codex_ml_active_sessions 0"));
    assert!(metrics.contains("codex_ml_inference_golden_records_total{result=\"different\"} 0"), "{metrics}");

    server.stop.requested.cancel();
    server.end.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsigned_model_is_served_as_such() {
    let case = Case::new(64);
    fs::remove_file(case.path("oms.json")).unwrap();
    let server = case.unsigned().await;
    let digest = case.expected.model_digest.to_string();
    let (status, reply) = server.infer(json!({ "prompt": "1+1:", "max_new_tokens": 2 })).await;
    assert_eq!((status, &reply["model_digest"]), (200, &json!(digest)));
    let status: Value = serde_json::from_str(&server.get("/status").await.1).unwrap();
    assert_eq!(
        (&status["ring"], &status["verified"], &status["model_digest"]),
        (&json!("unsigned"), &Value::Null, &json!(digest))
    );
    let models: Value = serde_json::from_str(&server.get("/v1/models").await.1).unwrap();
    let model = &models["data"][0];
    assert_eq!(
        (&model["id"], &model["ring"], &model["verdict"]),
        (&json!("unsigned"), &json!("unsigned"), &Value::Null)
    );
    assert!(model.get("signer").is_none());
    assert_eq!(server.reporter.state().verified, None);
}

#[test]
fn a_signed_model_needs_its_bundles_and_an_unsigned_one_a_loopback_address() {
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        serve: crate::serving::Serve,
    }
    let parse = |line: &str| Line::try_parse_from(line.split(' ')).map(|line| line.serve);
    let told = parse("codex --model m").err().unwrap().to_string();
    assert!(told.contains("--oms-bundle") && told.contains("--ring"), "{told}");
    for line in [
        "codex m",
        "codex --unsigned",
        "codex m --unsigned --model m",
        "codex m --unsigned --ring main",
        "codex m --unsigned --tls-key k",
        "codex m --unsigned --tls-certificate c",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
    let open = parse("codex m --unsigned --listen 0.0.0.0:8000").unwrap();
    let error = open.run().err().unwrap();
    assert_eq!(error.exit, exit::BAD_INPUT);
    assert!(error.to_string().contains("--listen 0.0.0.0:8000: an unsigned model is served on a loopback"), "{error}");
    assert!(Server::of(parse("codex m --unsigned").unwrap(), Vec::new()).is_some());
    let narrow = parse("codex m --unsigned --slots 8 --max-num-batched-tokens 7").unwrap().run().err().unwrap();
    let told = "--max-num-batched-tokens 7 is less than --slots 8: each running request needs one token of a step; use at least 8";
    assert_eq!((narrow.exit, narrow.to_string().as_str()), (exit::BAD_INPUT, told));
    assert!(parse("codex m --unsigned --max-num-batched-tokens 0").is_err());
}

#[test]
fn identities_come_with_issuers_and_a_root() {
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        serve: crate::serving::Serve,
    }
    let digest = Sha256::of("x").to_string();
    let rest = format!(
        "--model m --model-digest {digest} --oms-bundle o --promotion p --promotion-digest {digest} --key-fingerprint {digest} --ring main"
    );
    let parse = |more: &str| Line::try_parse_from(format!("codex {rest} {more}").split(' ')).map(|line| line.serve);
    let root = format!("--trusted-root r --trusted-root-digest {digest}");
    let one = "--certificate-identity s --certificate-oidc-issuer https://i";
    let serve = parse(&format!("{one} {root}")).unwrap();
    assert_eq!(serve.identities().unwrap(), [IdentityPattern::new("https://i", "s").unwrap()]);
    assert!(Server::of(serve.clone(), serve.identities().unwrap()).is_some());
    for wrong in [one, &root, &format!("--certificate-identity s {root}"), &format!("{one} --trusted-root r"), ""] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
    let attested = parse("--public-key k --attestation testResult=a/b=c").unwrap();
    assert_eq!(attested.attestation, [(AttestationKind::TestResult, "a/b=c".into())]);
    for wrong in ["testResult", "testResult=", "report=r", "=r"] {
        assert!(parse(&format!("--public-key k --attestation {wrong}")).is_err(), "{wrong}");
    }
    let uneven = parse(&format!("{one} --certificate-identity t {root}")).unwrap();
    let why = uneven.identities().unwrap_err().to_string();
    assert!(why.contains("is given 2 times") && why.contains("1 time:"), "{why}");
}

/// Asks for a path over HTTPS with one trusted certificate, and returns the status.
async fn over_tls(address: SocketAddr, path: &'static str, trusted: Vec<u8>) -> Result<u16, String> {
    use ureq::tls::{Certificate, RootCerts, TlsConfig};

    let work = move || {
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(vec![Certificate::from_der(&trusted).to_owned()])))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .build();
        let agent: ureq::Agent =
            ureq::Agent::config_builder().tls_config(tls).http_status_as_error(false).build().into();
        let url = format!("https://localhost:{}{path}", address.port());
        agent.get(url).call().map(|response| response.status().as_u16()).map_err(|error| error.to_string())
    };
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Lets the server show a new certificate for localhost, and returns it.
fn issue(case: &mut Case) -> Vec<u8> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(case.path("tls.key"), made.signing_key.serialize_pem()).unwrap();
    fs::write(case.path("tls.crt"), made.cert.pem()).unwrap();
    case.tls = Some(tls::Settings { certificate: case.path("tls.crt"), key: case.path("tls.key") });
    made.cert.der().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_served_and_replaced_without_a_restart() {
    let mut case = Case::new(64);
    let first = issue(&mut case);
    let server = case.start().await;
    let until = async |trusted: &[u8]| {
        for _ in 0..600 {
            if over_tls(server.address, "/ready", trusted.to_vec()).await == Ok(200) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the certificate is not served");
    };
    until(&first).await;
    // Plain HTTP is no answer.
    assert!(request(server.address, "/ready", None).await.is_err());
    let second = issue(&mut case);
    until(&second).await;
    assert!(over_tls(server.address, "/ready", first).await.is_err());

    fs::write(case.path("tls.crt"), "no certificate").unwrap();
    let error = refusal_to_start(&case).await;
    assert_eq!((error.failure().reason.as_str(), error.exit()), ("InvalidSettings", exit::BAD_INPUT));
    assert!(error.failure().message.contains("--tls-certificate"), "{}", error.failure().message);
}

/// Starts a server that ends before it listens, and returns why.
async fn refusal_to_start(case: &Case) -> ServeError {
    let server = case.start().await;
    server.end.await.unwrap().unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_is_unready_first_and_then_answers_running_requests() {
    let case = Case { drain_delay: Duration::from_millis(500), ..Case::new(1_500) };
    let server = case.ready().await;
    let address = server.address;
    let question = json!({ "prompt": "1+1:" }).to_string();
    let under_way = tokio::spawn(async move { request(address, "/infer", Some(question)).await });
    while !server.get("/metrics").await.1.contains("codex_ml_active_sessions 1") {}
    server.stop.requested.cancel();
    server.until("/ready", 503).await;
    let late = server.infer(json!({ "prompt": "1+1:", "max_new_tokens": 1 })).await;
    assert_eq!(late.0, 200, "clients with old endpoints still get answers");
    // A connection that its client keeps ends with an answer, so that the next request reaches another server.
    let mut kept = TcpStream::connect(address).await.unwrap();
    kept.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut last = String::new();
    kept.read_to_string(&mut last).await.unwrap();
    assert!(last.starts_with("HTTP/1.1 200 ") && last.contains("\r\nconnection: close\r\n"), "{last}");
    assert_eq!(server.get("/health").await.0, 200);
    server.end.await.unwrap().unwrap();
    assert_eq!(under_way.await.unwrap().unwrap().0, 200);
    assert!(request(address, "/health", None).await.is_err(), "the listener is closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_has_a_listener_of_its_own() {
    let mut case = Case { drain_delay: Duration::from_secs(1), ..Case::new(64) };
    let keys = case.path("keys");
    fs::create_dir(&keys).unwrap();
    fs::write(keys.join("alice"), "sk-alice-0123456789").unwrap();
    case.require_keys(keys);
    let trusted = issue(&mut case);
    let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = admin.local_addr().unwrap();
    let server = case.serve(Server { admin: Some(admin), ..case.server() }).await;
    let of_admin = async |path: &str| {
        let (status, _, body) = request(address, path, None).await.unwrap();
        (status, body)
    };
    while of_admin("/ready").await.0 != 200 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // No key, and no TLS.
    assert!(of_admin("/metrics").await.1.contains("codex_ml_inference_requests_total"));
    assert!(of_admin("/status").await.1.contains(r#""status":"ready""#));
    assert_eq!(of_admin("/health").await.0, 200);
    for path in ["/v1/models", "/infer", "/v1/chat/completions"] {
        assert_eq!(of_admin(path).await.0, 404, "{path}");
    }
    // Clients find neither metrics nor readiness, and need both TLS and a key.
    assert!(request(server.address, "/health", None).await.is_err(), "plain HTTP");
    let (public, stop) = (server.address, server.stop.clone());
    for (path, status) in [("/health", 200), ("/metrics", 404), ("/ready", 404), ("/status", 401), ("/v1/models", 401)]
    {
        assert_eq!(over_tls(public, path, trusted.clone()).await, Ok(status), "{path}");
    }
    // During the drain it says so until the end.
    stop.requested.cancel();
    while of_admin("/ready").await.0 != 503 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(of_admin("/health").await.0, 200);
    server.end.await.unwrap().unwrap();
    // It ends with the server.
    while request(address, "/health", None).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_at_its_deadline() {
    let case = Case { drain_deadline: Duration::from_millis(200), ..Case::new(ENDLESS) };
    let server = case.ready().await;
    let address = server.address;
    let question = json!({ "prompt": "1+1:" }).to_string();
    let under_way = tokio::spawn(async move { request(address, "/infer", Some(question)).await });
    while !server.get("/metrics").await.1.contains("codex_ml_active_sessions 1") {}
    server.stop.requested.cancel();
    let error = server.end.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "1 request did not finish within 0.2 seconds and was aborted");
    assert_eq!(error.exit(), exit::FAILED);
    under_way.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_stopped_before_it_is_ready_exits() {
    let case = Case::new(64);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stop = Shutdown::default();
    stop.requested.cancel();
    let server = case.server();
    let reporter = Reporter::<ServingState>::from_env().unwrap();
    server.run(listener, &reporter, &stop).await.unwrap();
    assert_eq!(reporter.state().failure, None);
}
