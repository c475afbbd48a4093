//! The server on a loopback address, with a small untrained model.

mod batching;
mod lifecycle;
mod requests;
mod verification;

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
    Paths, ServeError, Server, Shutdown, Source,
    access::{self, Access, Client},
    batcher::{Batcher, Job, Piece, Pieces, RequestError},
    capture, filter, http,
    metrics::Metrics,
    openai::{Markers, Specials},
    phase::Phase,
    room::Room,
    thinking::{Bounds, Granted, Thinking, closing},
    tls,
    verified_load::{TrustedRoot, Unverified, check, load_verified},
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
        adapter: None,
        adopted: None,
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

/// A signed and promoted model in a directory, and a server of it.
pub(crate) struct Case {
    root: tempfile::TempDir,
    pub(super) expected: Expected,
    pub(super) slots: usize,
    pub(super) queue: usize,
    pub(super) cache: Option<usize>,
    pub(super) prefixes: usize,
    pub(super) batched: Option<usize>,
    drain_delay: Duration,
    drain_deadline: Duration,
    pub(super) time_limit: Option<Duration>,
    pub(super) granted: Granted,
    limits: Limits,
    key: PrivateKey,
    promotion: Promotion,
    attestations: Vec<(AttestationKind, std::path::PathBuf)>,
    pub(super) access: access::Settings,
    pub(super) filter: filter::Settings,
    tls: Option<tls::Settings>,
    pub(super) traffic: Option<Duration>,
    pub(super) mirror: Option<std::path::PathBuf>,
    pub(super) shadow: Option<std::path::PathBuf>,
    pub(super) compare: Option<std::path::PathBuf>,
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
            compare: None,
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

    /// What attestations say about the training and the files of the model.
    fn build(&self) -> Build {
        let files = Manifest::of_dir(&self.path("model")).unwrap().files;
        Build { parameters: json!({}), files, ..Build::default() }
    }

    /// Signs the attestations about the promotion, and demands every kind of them.
    fn attest(&mut self, key: Option<&PrivateKey>) {
        for Unsigned { kind, payload } in attestations(&self.promotion, &self.build()) {
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
            compare: self.compare.clone(),
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
