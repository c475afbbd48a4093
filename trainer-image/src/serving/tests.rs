//! The server on a loopback address, with a small untrained model.

use std::{collections::BTreeMap, fs, io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use codex_engine::{Layout, ModelConfig, Sampler, Sampling, Shape, initial};
use codex_http::Limits;
use codex_provenance::{
    ConfigDigest, ModelDigest, Sha256,
    attestation::{AttestationKind, Build, Unsigned, attestations},
    golden::{Golden, GoldenPrompt},
    manifest::Manifest,
    oms,
    promotion::{Attested, Evaluation, Object, Promotion, Reasons, Reported, Training},
};
use codex_reports::{Rejected, Reproduction, ServingState, Stage, Times, exit};
use codex_signing::{
    key::{PrivateKey, Signer as _},
    keyless::{Identity, IdentityPattern},
    verify::Expected,
};
use codex_verdict::{Decimal, GateSpec, Measurement, Stated, report_digest};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use super::{
    Paths, ServeError, Server, Shutdown, Source, TrustedRoot,
    access::{self, Access, Client},
    batcher::{Batcher, Job, Piece, Room},
    filter, http,
    metrics::Metrics,
    openai::{Markers, Specials},
    phase::Phase,
    thinking::{Bounds, Granted, Thinking, closing},
    tls,
    verified_load::{Unverified, check, load_verified},
};
use crate::{
    model::{Generator, describe},
    reporting::Reporter,
    text::Tokenizer,
};

const RING: &str = "0D_base_";
/// A context that takes minutes to fill.
const ENDLESS: usize = 50_000;

fn generator(context: usize, slots: usize) -> Generator {
    Generator::load(&files(context), slots, codex_configs::Device::Cpu).unwrap()
}

/// Makes a model that never yields its end token, so that only limits end a response.
fn files(context: usize) -> BTreeMap<String, Vec<u8>> {
    seeded(context, 11)
}

/// Makes one with the weights of a seed.
pub(super) fn seeded(context: usize, seed: u64) -> BTreeMap<String, Vec<u8>> {
    let shape = Shape {
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        max_position_embeddings: context,
        rope_theta: 10_000.0,
    };
    let tokenizer = Tokenizer::characters().unwrap();
    let config = ModelConfig::new(shape, tokenizer.for_model().unwrap()).unwrap();
    let parameters = initial(&config, &Layout::of(&config), seed);
    describe(&config, &parameters, &tokenizer).unwrap()
}

/// Returns a promotion of the model into [`RING`] on one evaluation that passed.
fn promotion(manifest: &Manifest, payload: &[u8], golden: Option<Golden>) -> Promotion {
    let gate = GateSpec { metric: "exact_match".into(), min: Some(Decimal("0.5".into())), ..GateSpec::default() };
    let metrics = BTreeMap::from([("exact_match".to_owned(), Measurement::Share { successes: 9, n: 10 })]);
    let stated = Stated::of(manifest.digest(), &BTreeMap::new(), &metrics, &[gate]).unwrap();
    let evaluation = Evaluation {
        name: "lite".into(),
        uid: "uid".into(),
        preset: "cot-lite".into(),
        config_digest: None,
        report_digest: report_digest(manifest.digest(), &BTreeMap::new(), &metrics, golden.as_ref()),
        gates_digest: stated.gates_digest,
        data: BTreeMap::new(),
        image_id: "image".into(),
        completed_at: "2026-11-28T09:00:00Z".into(),
        evidence: None,
        outcomes: None,
        golden_tokens: golden,
        metrics: stated.metrics,
        gates: stated.gates,
        references: Vec::new(),
        reads: None,
    };
    let training = Training {
        run: Object { name: "run".into(), uid: "uid".into() },
        attested: Attested {
            config_digest: ConfigDigest(Sha256::of("config")),
            image_id: "image".into(),
            completed_at: Some("2026-11-28T08:00:00Z".into()),
            data: None,
        },
        reported: Some(Reported { data: BTreeMap::new() }),
        base: None,
        device: None,
    };
    let (ring, oms_payload) = (RING.into(), oms::payload_digest(payload));
    let reasons = Reasons {
        ring,
        namespace: "team".into(),
        oms_payload,
        training,
        evaluations: vec![evaluation],
        policies: Vec::new(),
        earlier: Vec::new(),
        sign_offs: Vec::new(),
        parity: Vec::new(),
    };
    Promotion { model: manifest.digest(), reasons }
}

fn build() -> Build {
    Build { parameters: json!({}), ..Build::default() }
}

/// A signed and promoted model in a directory, and a server of it.
pub(crate) struct Case {
    root: tempfile::TempDir,
    pub(super) expected: Expected,
    slots: usize,
    queue: usize,
    pub(super) cache: Option<usize>,
    pub(super) prefixes: usize,
    pub(super) batched: Option<usize>,
    drain_delay: Duration,
    drain_deadline: Duration,
    time_limit: Option<Duration>,
    pub(super) granted: Granted,
    limits: Limits,
    key: PrivateKey,
    promotion: Promotion,
    attestations: Vec<(AttestationKind, std::path::PathBuf)>,
    pub(super) access: access::Settings,
    pub(super) filter: filter::Settings,
    tls: Option<tls::Settings>,
    traffic: Option<Duration>,
    pub(super) mirror: Option<std::path::PathBuf>,
    pub(super) shadow: Option<std::path::PathBuf>,
    errors: Option<std::path::PathBuf>,
}

impl Case {
    pub(crate) fn new(context: usize) -> Self {
        Self::of(files(context))
    }

    /// Signs and promotes a model of these files, whose evaluator recorded no golden tokens.
    pub(crate) fn of(files: BTreeMap<String, Vec<u8>>) -> Self {
        Self::promoted(files, None)
    }

    fn promoted(files: BTreeMap<String, Vec<u8>>, golden: Option<Golden>) -> Self {
        let root = tempfile::tempdir().unwrap();
        let model = root.path().join("model");
        fs::create_dir(&model).unwrap();
        for (name, bytes) in files {
            fs::write(model.join(name), bytes).unwrap();
        }
        let key = PrivateKey::generate().unwrap();
        let manifest = Manifest::of_dir(&model).unwrap();
        let payload = oms::payload(&manifest, "tiny");
        let promotion = promotion(&manifest, &payload, golden);
        let write = |name: &str, bytes: &[u8]| fs::write(root.path().join(name), bytes).unwrap();
        write("oms.json", &key.sign(&payload).unwrap());
        write("promotion.json", &key.sign(&promotion.payload()).unwrap());
        write("key.pem", key.public().to_pem().as_bytes());
        let expected = Expected {
            model_digest: manifest.digest(),
            key_fingerprints: vec![key.public().fingerprint()],
            ring: RING.into(),
            promotion_digest: promotion.digest(),
        };
        Self {
            root,
            expected,
            slots: 4,
            queue: 64,
            cache: None,
            prefixes: 1000,
            batched: None,
            drain_delay: Duration::ZERO,
            drain_deadline: Duration::from_secs(30),
            time_limit: None,
            granted: Granted::default(),
            limits: super::LIMITS,
            key,
            promotion,
            attestations: Vec::new(),
            access: access::Settings::default(),
            filter: filter::Settings::default(),
            tls: None,
            traffic: None,
            mirror: None,
            shadow: None,
            errors: None,
        }
    }

    /// Requires the keys of a folder, each with a rate limit that a test does not reach.
    pub(crate) fn require_keys(&mut self, folder: std::path::PathBuf) {
        self.access = access::Settings { keys: Some(folder), rate: "10000/1d".parse().ok(), tokens: None };
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.root.path().join(name)
    }

    /// Signs the attestations about the promotion, and demands every kind of them.
    fn attest(&mut self, key: Option<&PrivateKey>) {
        for Unsigned { kind, payload } in attestations(&self.promotion, &build()) {
            fs::write(self.path(kind.entry()), key.unwrap_or(&self.key).sign(&payload).unwrap()).unwrap();
        }
        self.attestations = AttestationKind::ALL.map(|kind| (kind, self.path(kind.entry()))).into();
    }

    fn paths(&self) -> Paths {
        Paths {
            model: self.path("model"),
            oms_bundle: self.path("oms.json"),
            promotion: self.path("promotion.json"),
            attestations: self.attestations.clone(),
            public_keys: vec![self.path("key.pem")],
            identities: Vec::new(),
            trusted_root: None,
        }
    }

    pub(super) async fn start(&self) -> Running {
        self.serve(self.server()).await
    }

    fn server(&self) -> Server {
        Server {
            source: Source::Signed { paths: self.paths(), expected: self.expected.clone() },
            admin: None,
            access: self.access.clone(),
            filter: self.filter.clone(),
            tls: self.tls.clone(),
            reload: Duration::from_millis(20),
            device: codex_configs::Device::Cpu,
            room: Room {
                running: self.slots,
                queue: self.queue,
                cache: self.cache,
                prefixes: self.prefixes,
                batched: self.batched,
            },
            drain_delay: self.drain_delay,
            drain_deadline: self.drain_deadline,
            time_limit: self.time_limit,
            granted: self.granted,
            limits: self.limits,
            traffic: self.traffic,
            activity: false,
            mirror: self.mirror.clone(),
            shadow: self.shadow.clone(),
            compared: Duration::from_millis(5),
            capture: None,
            errors: self.errors.clone(),
            name: Some("cot".to_owned()),
        }
    }

    /// Serves the model unsigned.
    async fn unsigned(&self) -> Running {
        let source = Source::Unsigned(self.path("model"));
        let server = self.serve(Server { source, name: None, ..self.server() }).await;
        server.until("/ready", 200).await;
        server
    }

    async fn serve(&self, server: Server) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let reporter = Arc::new(Reporter::<ServingState>::from_env().unwrap());
        let stop = Shutdown::default();
        let (reported, stopped) = (Arc::clone(&reporter), stop.clone());
        let end = tokio::spawn(async move { server.run(listener, &reported, &stopped).await });
        Running { address, reporter, stop, end }
    }

    pub(crate) async fn ready(&self) -> Running {
        let server = self.start().await;
        server.until("/ready", 200).await;
        server
    }
}

pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(super) reporter: Arc<Reporter<ServingState>>,
    pub(super) stop: Shutdown,
    pub(super) end: JoinHandle<Result<(), ServeError>>,
}

impl Running {
    pub(super) async fn get(&self, path: &str) -> (u16, String) {
        let (status, _, body) = request(self.address, path, None).await.unwrap();
        (status, body)
    }

    pub(super) async fn until(&self, path: &str, status: u16) {
        for _ in 0..600 {
            // A full server refuses the connection.
            if request(self.address, path, None).await.is_ok_and(|response| response.0 == status) {
                return;
            }
            assert!(!self.end.is_finished(), "the server ended: {:?}", self.reporter.state());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{path} never said {status}");
    }

    pub(super) async fn infer(&self, body: Value) -> (u16, Value) {
        let (status, _, body) = request(self.address, "/infer", Some(body.to_string())).await.unwrap();
        (status, serde_json::from_str(&body).unwrap())
    }
}

/// A request from a thread of its own, over a connection of its own: status, `Retry-After`, body.
pub(super) async fn request(
    address: SocketAddr,
    path: &str,
    body: Option<String>,
) -> io::Result<(u16, Option<String>, String)> {
    let url = format!("http://{address}{path}");
    let work = move || {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let mut response = match body {
            Some(body) => agent.post(url).send(body.as_bytes()),
            None => agent.get(url).call(),
        }
        .map_err(io::Error::other)?;
        let again = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
        Ok((response.status().as_u16(), again, response.body_mut().read_to_string().map_err(io::Error::other)?))
    };
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Starts a server that must refuse and returns why it does.
async fn refusal(case: &Case) -> (ServeError, ServingState) {
    let server = case.start().await;
    // A refused model is never ready.
    while !server.end.is_finished() {
        if let Ok((status, _, _)) = request(server.address, "/ready", None).await {
            assert_eq!(status, 503);
        }
    }
    (server.end.await.unwrap().unwrap_err(), server.reporter.state())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_ready_once_verified_and_responses_have_the_model_digest() {
    let case = Case::new(64);
    let server = case.ready().await;
    let digest = case.expected.model_digest.to_string();
    let state = server.reporter.state();
    assert_eq!((state.stage, state.verified), (Stage::Running, Some(case.expected.model_digest)));
    assert_eq!(state.promotion, Some(case.expected.promotion_digest));
    assert_eq!(state.golden_tokens, Some(Reproduction::Absent));

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

/// Weights are loaded while they are hashed, but only as the signed configuration describes them.
#[test]
fn weights_that_cannot_be_loaded_are_refused_as_changed() {
    for (file, described) in [("model.safetensors", true), ("config.json", false)] {
        let case = Case::new(64);
        let (path, paths) = (case.path("model").join(file), case.paths());
        let mut bytes = fs::read(&path).unwrap();
        // The first character of the JSON in both files: neither can be parsed.
        let at = if described { 8 } else { 0 };
        assert_eq!(bytes[at], b'{');
        bytes[at] = b'x';
        fs::write(&path, bytes).unwrap();
        assert_eq!(Unverified::open(&paths, &case.expected).unwrap().0.described, described, "{file}");
        let mut was_verified = false;
        let room = (2, codex_configs::Device::Cpu);
        let refused = load_verified(&paths, &case.expected, room, || was_verified = true).err().unwrap();
        assert!(matches!(refused, ServeError::Verify(_)) && !was_verified, "{file}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_refused_and_named() {
    let case = Case::new(64);
    let path = case.path("model/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let (error, state) = refusal(&case).await;
    let told =
        "the model is refused: the files of the model differ from the signed ones: model.safetensors was changed: ";
    assert!(error.failure().message.starts_with(told), "{error}");
    assert_eq!((error.exit(), error.failure().reason.as_str()), (exit::BAD_INPUT, "VerificationFailed"));
    assert!(error.failure().is_final);
    assert_eq!((state.stage, state.verified), (Stage::Starting, None));
}

/// Half-sent heads and bodies are closed, and connections beyond the limit; the port stays usable.
#[tokio::test(flavor = "multi_thread")]
async fn half_sent_requests_are_closed_and_connections_are_bounded() {
    let mut case = Case::new(64);
    let patience = Duration::from_secs(1);
    case.limits = Limits { connections: 4, head: patience, body: patience, ..super::LIMITS };
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
}

/// A sparse file of 1 TiB, an added file and a missing one are refused before any byte is read.
#[tokio::test(flavor = "multi_thread")]
async fn names_and_sizes_are_checked_before_anything_is_read() {
    let told = async |spoil: &dyn Fn(&Case)| {
        let case = Case::new(64);
        spoil(&case);
        let failure = refusal(&case).await.0.failure();
        assert_eq!(failure.reason, "VerificationFailed", "{}", failure.message);
        failure.message
    };
    let sparse = |path: std::path::PathBuf| {
        fs::OpenOptions::new().create(true).write(true).truncate(false).open(path).unwrap().set_len(1 << 40).unwrap();
    };
    let grown = told(&|case| sparse(case.path("model/model.safetensors"))).await;
    assert!(grown.contains("a file has another size") && grown.contains("model.safetensors 1099511627776"), "{grown}");
    let added = told(&|case| sparse(case.path("model/pickle.bin"))).await;
    assert!(added.ends_with("the files of the model differ from the signed ones: pickle.bin was added"), "{added}");
    let missing = told(&|case| fs::remove_file(case.path("model/tokenizer.json")).unwrap()).await;
    assert!(missing.ends_with("tokenizer.json is missing"), "{missing}");
    let emptied = told(&|case| {
        fs::remove_dir_all(case.path("model")).unwrap();
        fs::create_dir(case.path("model")).unwrap();
    })
    .await;
    assert!(emptied.contains("contains no files: the volume was replaced or emptied; restore its files"), "{emptied}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mismatched_files_are_refused() {
    let told = async |spoil: &dyn Fn(&mut Case)| {
        let mut case = Case::new(64);
        spoil(&mut case);
        let failure = refusal(&case).await.0.failure();
        assert_eq!(failure.reason, "VerificationFailed", "{}", failure.message);
        failure.message
    };
    let other = Case::new(63);
    let copy = |case: &Case, name: &str| fs::copy(other.path(name), case.path(name)).map(|_| ()).unwrap();
    let key = told(&|case| copy(case, "key.pem")).await;
    assert!(key.contains("the public key has the fingerprint "), "{key}");
    let oms = told(&|case| copy(case, "oms.json")).await;
    assert!(oms.contains("the OMS bundle was signed with another key"), "{oms}");
    let promotion = told(&|case| copy(case, "promotion.json")).await;
    assert!(promotion.contains("the promotion bundle was signed with another key"), "{promotion}");
    let ring = told(&|case| case.expected.ring = "main".into()).await;
    assert!(ring.contains("made for the ring \"0D_base_\", but \"main\" is required"), "{ring}");
    let missing = told(&|case| fs::remove_file(case.path("promotion.json")).unwrap()).await;
    assert!(missing.contains("the promotion bundle "), "{missing}");
    let link = told(&|case| {
        std::os::unix::fs::symlink("/etc/hostname", case.path("model/extra")).unwrap();
    })
    .await;
    assert!(link.contains("\"extra\" is a symbolic link"), "{link}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verified_model_that_cannot_be_loaded_never_answers() {
    let case = Case::new(64);
    fs::remove_dir_all(case.path("model")).unwrap();
    let error = refusal(&case).await.0;
    assert_eq!((error.failure().reason.as_str(), error.exit()), ("ModelUnreadable", exit::FAILED));

    let mut files = files(64);
    files.remove("tokenizer.json");
    let error = checked(files).err().unwrap();
    assert_eq!(error.failure().reason, "ModelUnusable");
    assert!(error.failure().message.contains("tokenizer.json"), "{}", error.failure().message);
    // Its context is too short even for the pinned prompts.
    let error = checked(self::files(6)).err().unwrap();
    assert_eq!(error.failure().reason, "SelfCheckFailed");
}

/// Returns the golden tokens of the model that a case serves.
fn golden() -> Golden {
    generator(64, 2).golden(["347+86:", "5+5:"].into_iter()).unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn golden_tokens_are_reproduced_before_the_server_is_ready() {
    let elsewhere = Golden { instruction_set: "another".to_owned(), ..golden() };
    for (golden, found) in [(golden(), Reproduction::Equal), (elsewhere, Reproduction::Near)] {
        let case = Case::promoted(files(64), Some(golden));
        let server = case.ready().await;
        assert_eq!(server.reporter.state().golden_tokens, Some(found));
        let status: Value = serde_json::from_str(&server.get("/status").await.1).unwrap();
        assert_eq!(status["verified"]["golden_tokens"], found.name());
        let (_, metrics) = server.get("/metrics").await;
        let line = format!("codex_ml_inference_golden_records_total{{result=\"{}\"}} 1", found.name());
        assert!(metrics.contains(&line), "{metrics}");
        // Nothing of it is left in the prefix cache, and all slots are free.
        let (status, reply) = server.infer(json!({ "prompt": "347+86:", "max_new_tokens": 5 })).await;
        assert_eq!(status, 200, "{reply}");
        server.stop.requested.cancel();
        server.end.await.unwrap().unwrap();
    }
}

/// The bytes are those that were signed, but the record is another one, as if the kernels had changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_generates_other_tokens_is_never_ready() {
    let mut forged = golden();
    let mut tokens = forged.read().unwrap().remove(1);
    let right = tokens.tokens[2];
    tokens.tokens[2] = if right == 5 { 6 } else { 5 };
    forged.prompts[1] = GoldenPrompt::new(&tokens);
    let (error, state) = refusal(&Case::promoted(files(64), Some(forged))).await;
    let failure = error.failure();
    assert_eq!((error.exit(), failure.reason.as_str()), (exit::BAD_INPUT, "GoldenTokensDiffer"));
    assert!(failure.is_final);
    let told = "the model does not reproduce the golden tokens of Evaluation lite: prompt 2, token 3: ";
    assert!(failure.message.starts_with(told), "{}", failure.message);
    assert!(failure.message.contains(&format!("but the model generates {right} (")), "{}", failure.message);
    assert_eq!((state.stage, state.golden_tokens), (Stage::Starting, None));
    // A malformed record never gets so far: the statement is refused.
    let malformed = Golden { prompts: Vec::new(), ..golden() };
    let error = refusal(&Case::promoted(files(64), Some(malformed))).await.0;
    assert_eq!(error.failure().reason, "VerificationFailed", "{error}");
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
        serve: super::Serve,
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
fn a_server_takes_only_the_root_and_the_signers_of_its_arguments() {
    let mut case = Case::new(64);
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../provenance/signing/tests/fixtures/keyless/trusted_root.json");
    let identity = Identity { issuer: "https://a".to_owned(), subject: "https://b".to_owned() };
    let told = |paths: &Paths, expected: &Expected| verified(paths, expected).err().unwrap();
    let mut paths = case.paths();
    paths.identities = vec![IdentityPattern::from(&identity)];
    let with = |digest: Sha256| Some(TrustedRoot { path: root.clone(), digest });
    paths.trusted_root = with(Sha256::of("another root"));
    let why = told(&paths, &case.expected);
    assert!(matches!(why, ServeError::Root { .. }) && why.exit() == exit::BAD_INPUT, "{why}");
    // An identity whose fingerprint is not among the arguments.
    paths.trusted_root = with(Sha256::of(fs::read(&root).unwrap()));
    let why = told(&paths, &case.expected).to_string();
    assert!(why.contains(&identity.fingerprint().to_string()), "{why}");
    // Keys and identities together: the key verifies its own bundles.
    case.expected.key_fingerprints.push(identity.fingerprint());
    assert!(verified(&paths, &case.expected).is_ok());
    // An identity alone: what a key signed is refused.
    paths.public_keys.clear();
    let why = told(&paths, &case.expected).to_string();
    assert!(why.contains("is signed with a key; an identity is required"), "{why}");
    paths.trusted_root = Some(TrustedRoot { path: case.path("missing"), digest: Sha256::of("x") });
    assert!(told(&paths, &case.expected).to_string().contains("trusted root"));
}

/// A server verifies the attestations that its arguments demand, over the same model and with the same key.
#[tokio::test(flavor = "multi_thread")]
async fn demanded_attestations_are_verified_before_the_server_is_ready() {
    let attested = || {
        let mut case = Case::new(64);
        case.attest(None);
        case
    };
    attested().ready().await;
    let told = async |spoil: &dyn Fn(&mut Case)| {
        let mut case = attested();
        spoil(&mut case);
        let failure = refusal(&case).await.0.failure();
        assert_eq!(failure.reason, "VerificationFailed", "{}", failure.message);
        failure.message
    };
    let sign = |case: &Case, kind: AttestationKind, payload: &[u8]| {
        fs::write(case.path(kind.entry()), case.key.sign(payload).unwrap()).unwrap();
    };
    let [provenance, test_result, summary] = AttestationKind::ALL;

    let missing = told(&|case| fs::remove_file(case.path(provenance.entry())).unwrap()).await;
    assert!(missing.contains("the attestation ") && missing.contains("slsa-provenance.json"), "{missing}");
    let other_kind = told(&|case| {
        fs::copy(case.path(test_result.entry()), case.path(provenance.entry())).unwrap();
        case.attestations.retain(|(kind, _)| *kind == provenance);
    })
    .await;
    assert!(other_kind.contains("the attestation slsaProvenance is missing"), "{other_kind}");
    let twice = told(&|case| {
        fs::copy(case.path(test_result.entry()), case.path(provenance.entry())).unwrap();
    })
    .await;
    assert!(twice.contains("testResult is given twice"), "{twice}");
    let predicate_type = told(&|case| {
        fs::copy(case.path("promotion.json"), case.path(summary.entry())).unwrap();
    })
    .await;
    assert!(predicate_type.contains("its predicate type is \"https://codex-ml.dev/promotion/v2\""), "{predicate_type}");
    let another_model = told(&|case| {
        let other = Promotion { model: ModelDigest(Sha256::of("another model")), ..case.promotion.clone() };
        for Unsigned { kind, payload } in attestations(&other, &build()) {
            sign(case, kind, &payload);
        }
    })
    .await;
    assert!(another_model.contains("it was made for another model"), "{another_model}");
    let another_promotion = told(&|case| {
        let mut other = case.promotion.clone();
        other.reasons.training.run.uid = "another".to_owned();
        let [Unsigned { kind, payload }, ..] = attestations(&other, &build());
        sign(case, kind, &payload);
    })
    .await;
    assert!(another_promotion.contains("the attestation is refused: "), "{another_promotion}");
    let foreign = told(&|case| case.attest(Some(&PrivateKey::generate().unwrap()))).await;
    assert!(foreign.contains("the attestation was signed with another key"), "{foreign}");
    let unsigned = told(&|case| {
        let path = case.path(test_result.entry());
        let mut bundle: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        bundle["dsseEnvelope"]["signatures"] = json!([]);
        fs::write(path, bundle.to_string()).unwrap();
    })
    .await;
    assert!(unsigned.contains("the attestation has 0 signatures"), "{unsigned}");
    let forged = told(&|case| {
        let path = case.path(test_result.entry());
        let mut bundle: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let other = fs::read(case.path(provenance.entry())).unwrap();
        let other: Value = serde_json::from_slice(&other).unwrap();
        bundle["dsseEnvelope"]["payload"] = other["dsseEnvelope"]["payload"].clone();
        fs::write(path, bundle.to_string()).unwrap();
    })
    .await;
    assert!(forged.contains("the attestation ") && forged.contains("signature"), "{forged}");
}

#[test]
fn identities_come_with_issuers_and_a_root() {
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        serve: super::Serve,
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

fn client() -> Client {
    Client::anonymous(Arc::new(Metrics::new().unwrap()))
}

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new().unwrap())
}

fn job(token: u32, limit: usize) -> Job {
    Job { prompt: vec![token], limit, sampler: Sampler::greedy(), scores: None, bound: None, thinking: None }
}

#[tokio::test]
async fn without_a_free_permit_requests_are_refused() {
    let batcher = Batcher::start(
        generator(64, 4),
        Room { running: 2, queue: 3, cache: None, prefixes: 100, batched: None },
        metrics(),
    )
    .unwrap();
    let all = Arc::clone(&batcher.permits).acquire_many_owned(5).await.unwrap();
    assert_eq!(batcher.active(), 5);
    assert!(
        batcher
            .answer(job(5, 1), &client())
            .await
            .unwrap_err()
            .to_string()
            .contains("5 requests are running or waiting")
    );
    drop(all);
    assert_eq!(batcher.answer(job(5, 7), &client()).await.unwrap().tokens.len(), 7);
    assert!(batcher.answer(job(9_999, 1), &client()).await.unwrap_err().to_string().contains("outside the vocabulary"));
}

#[tokio::test]
async fn an_abandoned_request_is_dropped() {
    let batcher = Batcher::start(
        generator(ENDLESS, 1),
        Room { running: 1, queue: 1, cache: None, prefixes: 0, batched: None },
        metrics(),
    )
    .unwrap();
    let payer = client();
    let abandoned = batcher.answer(job(5, ENDLESS), &payer);
    assert!(tokio::time::timeout(Duration::from_millis(50), abandoned).await.is_err(), "generation has only begun");
    // The only slot is free again, long before the context is full.
    let next = tokio::time::timeout(Duration::from_secs(10), batcher.answer(job(5, 3), &client())).await;
    assert_eq!(next.unwrap().unwrap().tokens.len(), 3);
    assert_eq!(batcher.active(), 0);
}

/// A batcher whose steps compute at most 16 tokens.
fn in_chunks(context: usize) -> Batcher {
    let room = Room { running: 2, queue: 2, cache: None, prefixes: 10_000, batched: Some(16) };
    Batcher::start(generator(context, 4), room, metrics()).unwrap()
}

fn long(tokens: usize, limit: usize) -> Job {
    Job { prompt: (0..tokens as u32).map(|at| 2 + at * at % 9).collect(), ..job(5, limit) }
}

/// The prompt takes 134 steps, in each of which the response goes on.
#[tokio::test]
async fn a_long_prompt_lets_responses_go_on() {
    let batcher = in_chunks(4_000);
    let (first, second) = (client(), client());
    let order = std::sync::Mutex::new(Vec::new());
    let ended = async |name: &'static str, job: Job, client: &Client| {
        let generated = batcher.answer(job, client).await.unwrap();
        order.lock().unwrap().push(name);
        generated.tokens
    };
    let (short, prompt) = tokio::join!(ended("short", job(5, 100), &first), ended("long", long(2_000, 3), &second));
    assert_eq!(*order.lock().unwrap(), ["short", "long"]);
    // Neither has other tokens than it has alone, in one piece.
    let whole = Room { running: 1, queue: 1, cache: None, prefixes: 0, batched: Some(1 << 20) };
    let alone = Batcher::start(generator(4_000, 1), whole, metrics()).unwrap();
    assert_eq!(alone.answer(job(5, 100), &first).await.unwrap().tokens, short);
    assert_eq!(alone.answer(long(2_000, 3), &first).await.unwrap().tokens, prompt);
}

#[tokio::test]
async fn prompts_in_chunks_take_over_what_others_computed() {
    let batcher = in_chunks(4_000);
    let (first, second) = (client(), client());
    let (one, other) = tokio::join!(batcher.answer(long(200, 5), &first), batcher.answer(long(200, 5), &second));
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!(one.tokens, other.tokens);
    assert!(other.cached >= 184, "{}", other.cached);
    let again = batcher.answer(long(200, 5), &first).await.unwrap();
    assert_eq!((again.tokens, again.cached), (one.tokens, 199));
}

/// A request of a random schedule: its prompt, the limit of its response, the seed of its sampler, and when it begins.
#[derive(Clone, Debug)]
struct Asked {
    prompt: Vec<u32>,
    limit: usize,
    seed: u64,
    after: u64,
    /// Whether the client goes away after its first token.
    leaves: bool,
    /// The budget of its reasoning, in which its prompt ends.
    budget: Option<usize>,
}

impl Asked {
    fn job(&self) -> Job {
        let sampling = Sampling { temperature: 1.0, seed: self.seed, ..Sampling::default() };
        let (prompt, sampler) = (self.prompt.clone(), Sampler::new(sampling).unwrap());
        let thinking = self.budget.map(|budget| {
            let tokenizer = Tokenizer::characters().unwrap();
            let bounds = Bounds { markers: Markers::KNOWN[0], opened: true, budget: Some(budget), until: usize::MAX };
            let specials = Arc::new(Specials::of(&tokenizer, tokenizer.ends()));
            Thinking::new(&tokenizer, specials, closing(&tokenizer, bounds.markers).unwrap(), bounds)
        });
        Job { prompt, limit: self.limit, sampler, scores: Some(2), bound: None, thinking }
    }
}

/// The context of the models of random schedules.
const SMALL: usize = 96;

fn asked() -> impl Strategy<Value = Vec<Asked>> {
    let prompt = proptest::collection::vec(2_u32..9, 1..60);
    let budget = proptest::option::weighted(0.3, 0_usize..40);
    let one = (prompt, 1_usize..60, any::<u64>(), 0_u64..4, proptest::bool::weighted(0.1), budget);
    let one = one.prop_map(|(prompt, limit, seed, after, leaves, budget)| Asked {
        prompt,
        limit,
        seed,
        after,
        leaves,
        budget,
    });
    proptest::collection::vec(one, 2..10)
}

/// Returns the tokens with their log-probabilities that each client receives, in pieces.
async fn received(batcher: &Batcher, asked: &[Asked]) -> Vec<Vec<(u32, String)>> {
    let one = async |asked: &Asked| {
        tokio::time::sleep(Duration::from_millis(asked.after)).await;
        let (mut pieces, mut tokens) = (batcher.stream(asked.job(), client()).unwrap(), Vec::new());
        while let Some(piece) = pieces.recv().await {
            match piece {
                Piece::Token(token) => tokens.push((token.id, format!("{:?}", token.scores))),
                Piece::End(end) => {
                    end.unwrap();
                    break;
                }
                Piece::Late(limit) => panic!("there is no time limit of {limit:?}"),
            }
            if asked.leaves {
                break;
            }
        }
        tokens
    };
    futures::future::join_all(asked.iter().map(one)).await
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is pre-empted and when: each client receives every token once, with the bits that it gets alone, and nothing stays.
    #[test]
    fn no_pre_emption_changes_or_repeats_a_token(asked in asked(), cache in SMALL..3 * SMALL, batched in 6_usize..64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let alone = Room { running: 1, queue: 16, cache: None, prefixes: 0, batched: Some(1 << 20) };
            let alone = Batcher::start(generator(SMALL, 1), alone, metrics()).unwrap();
            let crowd = Room { running: 6, queue: 16, cache: Some(cache), prefixes: 64, batched: Some(batched) };
            let crowd = Batcher::start(generator(SMALL, 14), crowd, metrics()).unwrap();
            let expected = received(&alone, &asked).await;
            let found = received(&crowd, &asked).await;
            prop_assert_eq!(expected, found);
            let idle = tokio::time::timeout(Duration::from_secs(10), async {
                while crowd.active() > 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
            prop_assert!(idle.await.is_ok(), "{} requests stay", crowd.active());
            Ok::<_, TestCaseError>(())
        })?;
    }
}

#[tokio::test]
async fn a_full_cache_pre_empts_the_latest_request_and_computes_it_again() {
    let counted = metrics();
    let room = Room { running: 4, queue: 4, cache: Some(2_000), prefixes: 0, batched: Some(32) };
    let batcher = Batcher::start(generator(2_000, 4), room, Arc::clone(&counted)).unwrap();
    let order = std::sync::Mutex::new(Vec::new());
    let payers: Vec<_> = (0..3).map(|_| client()).collect();
    let one = async |name: usize, job: Job| {
        let tokens = batcher.answer(job, &payers[name]).await.unwrap().tokens;
        order.lock().unwrap().push(name);
        tokens
    };
    // All three fit when they begin, and two of them when they end.
    let (first, second, third) = tokio::join!(one(0, job(5, 900)), one(1, job(6, 900)), one(2, job(7, 900)));
    assert_eq!(order.lock().unwrap()[2], 2, "the one that came last ends last");
    let preempted = preemptions(&counted);
    assert!((1.0..=3.0).contains(&preempted), "{preempted}");
    let whole = Room { running: 1, queue: 1, cache: None, prefixes: 0, batched: None };
    let alone = Batcher::start(generator(2_000, 1), whole, metrics()).unwrap();
    for (token, found) in [(5, first), (6, second), (7, third)] {
        assert_eq!(alone.answer(job(token, 900), &client()).await.unwrap().tokens, found);
    }
    // With room for everything none is.
    let counted = metrics();
    let room = Room { cache: None, ..room };
    let batcher = Batcher::start(generator(2_000, 4), room, Arc::clone(&counted)).unwrap();
    let payer = client();
    let all = (0..4).map(|token| batcher.answer(job(5 + token, 700), &payer));
    futures::future::join_all(all).await;
    assert!(preemptions(&counted) < 1.0);
}

fn preemptions(metrics: &Metrics) -> f64 {
    let families = metrics.registry().gather();
    let found = families.iter().find(|family| family.name() == "codex_ml_inference_preemptions_total").unwrap();
    found.get_metric()[0].get_counter().get_value()
}

#[tokio::test]
async fn a_prompt_is_abandoned_between_two_chunks() {
    let batcher = in_chunks(ENDLESS);
    let payer = client();
    let abandoned = batcher.answer(long(ENDLESS - 1, 1), &payer);
    assert!(tokio::time::timeout(Duration::from_millis(50), abandoned).await.is_err(), "the prompt has only begun");
    let next = tokio::time::timeout(Duration::from_secs(10), batcher.answer(job(5, 3), &client())).await;
    assert_eq!(next.unwrap().unwrap().tokens.len(), 3);
    assert_eq!(batcher.active(), 0);
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
    let (status, again, _) = request(address, "/infer", Some("{}".into())).await.unwrap();
    assert_eq!((status, again.as_deref()), (503, Some("1")));
    let (_, _, body) = request(address, "/status", None).await.unwrap();
    assert!(body.contains(r#""status":"refused""#) && body.contains("because"), "{body}");
    serving.abort();
}

#[test]
fn the_public_key_is_read_through_the_links_of_a_config_map() {
    let case = Case::new(64);
    let target = case.path("..data");
    fs::create_dir(&target).unwrap();
    fs::rename(case.path("key.pem"), target.join("key.pem")).unwrap();
    std::os::unix::fs::symlink(Path::new("..data/key.pem"), case.path("key.pem")).unwrap();
    assert!(verified(&case.paths(), &case.expected).is_ok());
}

/// Loads a model from memory, and runs the self-check.
fn checked(files: BTreeMap<String, Vec<u8>>) -> Result<Generator, ServeError> {
    let held = codex_provenance::sealed::Held { files, ..Default::default() };
    let mut generator = Generator::load_held(held, 2, codex_configs::Device::Cpu).map_err(ServeError::Model)?;
    check(&mut generator)?;
    Ok(generator)
}

/// Verifies a model without loading it.
fn verified(paths: &Paths, expected: &Expected) -> Result<codex_signing::verify::Verified, ServeError> {
    Unverified::open(paths, expected)?.0.verify(false)
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
