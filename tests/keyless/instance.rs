//! A Sigstore instance of this machine: its three services as processes, its signing configuration and its trusted root.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use codex_provenance::Sha256;
use rcgen::{KeyPair, PublicKeyData as _};
use serde_json::{Value, json};

/// How long a service may take to start.
const PATIENCE: Duration = Duration::from_secs(60);
/// The name with which the log signs its checkpoints. cosign requires it as the host of the log's address in the trusted root.
const LOG: &str = "rekor.codex.test";
/// Before any test.
const START: &str = "2026-01-01T00:00:00Z";

/// The services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Service {
    Fulcio,
    Timestamp,
    Rekor,
}

/// A running instance; its processes are killed when it is dropped.
pub(crate) struct Instance {
    host: String,
    ports: [u16; 3],
    log_key: KeyPair,
    processes: Vec<(Service, Child)>,
    folder: tempfile::TempDir,
}

impl Instance {
    /// Starts the services on an address of this machine. Fulcio accepts the tokens of `issuer`, whose certificate chains to
    /// `authority`, in PEM.
    pub(crate) fn start(host: &str, issuer: &str, authority: Option<&str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log_key = KeyPair::generate().unwrap();
        fs::write(folder.path().join("rekor.pem"), log_key.serialize_pem()).unwrap();
        fs::create_dir(folder.path().join("log")).unwrap();
        let mut entry = json!({"IssuerURL": issuer, "ClientID": "sigstore", "Type": "kubernetes"});
        if let Some(pem) = authority {
            entry["CACert"] = json!(pem);
        }
        // In JSON, Fulcio names the fields so.
        let config = json!({"OIDCIssuers": {issuer: entry}}).to_string();
        fs::write(folder.path().join("fulcio.json"), config).unwrap();
        let ports = [free(host), free(host), free(host)];
        let mut instance = Self { host: host.to_owned(), ports, log_key, processes: Vec::new(), folder };
        for service in [Service::Fulcio, Service::Timestamp, Service::Rekor] {
            instance.run(service);
        }
        instance
    }

    /// Starts a service, and waits until it answers.
    pub(crate) fn run(&mut self, service: Service) {
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        let port = self.port(service).to_string();
        let other = || free("127.0.0.1").to_string();
        let (variable, arguments) = match service {
            Service::Fulcio => (
                "FULCIO",
                vec![
                    "serve".to_owned(),
                    format!("--host={}", self.host),
                    format!("--port={port}"),
                    "--grpc-host=127.0.0.1".to_owned(),
                    format!("--grpc-port={}", other()),
                    format!("--metrics-port={}", other()),
                    format!("--legacy-unix-domain-socket={}", at("fulcio.sock")),
                    // Certificates of a private instance are in no log of certificates.
                    "--ct-log-url=".to_owned(),
                    "--ca=ephemeralca".to_owned(),
                    format!("--config-path={}", at("fulcio.json")),
                ],
            ),
            Service::Timestamp => (
                "TIMESTAMP_SERVER",
                vec![
                    "serve".to_owned(),
                    format!("--host={}", self.host),
                    format!("--port={port}"),
                    "--timestamp-signer=memory".to_owned(),
                    "--disable-ntp-monitoring".to_owned(),
                ],
            ),
            Service::Rekor => (
                "REKOR_SERVER",
                vec![
                    "serve".to_owned(),
                    format!("--http-address={}", self.host),
                    format!("--http-port={port}"),
                    format!("--grpc-port={}", other()),
                    format!("--http-metrics-port={}", other()),
                    format!("--hostname={LOG}"),
                    format!("--storage-dir={}", at("log")),
                    format!("--signer-filepath={}", at("rekor.pem")),
                    "--checkpoint-interval=2s".to_owned(),
                    "--batch-max-age=200ms".to_owned(),
                ],
            ),
        };
        let program = program(variable);
        let log = fs::File::options().create(true).append(true).open(at(&format!("{variable}.log"))).unwrap();
        let mut command = Command::new(&program);
        command.args(arguments).current_dir(self.folder.path()).env("HOME", self.folder.path());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        self.processes.push((service, child));
        let since = Instant::now();
        let path = match service {
            Service::Fulcio => "/api/v2/trustBundle",
            Service::Timestamp => "/ping",
            Service::Rekor => "/healthz",
        };
        while get(&self.host, self.port(service), path).is_none_or(|(status, _)| status == 503) {
            let (_, child) = self.processes.last_mut().unwrap();
            let ended = child.try_wait().unwrap();
            if ended.is_some() || since.elapsed() > PATIENCE {
                let told = fs::read_to_string(self.folder.path().join(format!("{variable}.log"))).unwrap_or_default();
                panic!("{service:?} did not start ({ended:?}): {told}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Kills a service.
    pub(crate) fn kill(&mut self, service: Service) {
        let place = self.processes.iter().position(|(known, _)| *known == service).unwrap();
        let (_, mut child) = self.processes.remove(place);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn port(&self, service: Service) -> u16 {
        self.ports[service as usize]
    }

    pub(crate) fn url(&self, service: Service) -> String {
        let path = if service == Service::Timestamp { "/api/v1/timestamp" } else { "" };
        format!("http://{}:{}{path}", self.host, self.port(service))
    }

    /// Returns the folder in which Rekor keeps its log: a checkpoint, and tiles.
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Returns the signing configuration, in JSON.
    pub(crate) fn signing_config(&self) -> String {
        let service = |service, version: u32| {
            json!([{
                "url": self.url(service), "majorApiVersion": version, "validFor": {"start": START}, "operator": "codex.test",
            }])
        };
        json!({
            "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            "caUrls": service(Service::Fulcio, 1),
            "rekorTlogUrls": service(Service::Rekor, 2),
            "tsaUrls": service(Service::Timestamp, 1),
            "rekorTlogConfig": {"selector": "ANY"},
            "tsaConfig": {"selector": "ANY"},
        })
        .to_string()
    }

    /// Returns the trusted root, in JSON.
    pub(crate) fn trusted_root(&self) -> String {
        let (_, bundle) = get(&self.host, self.port(Service::Fulcio), "/api/v2/trustBundle").unwrap();
        let bundle: Value = serde_json::from_str(&bundle).unwrap();
        let fulcio: Vec<&str> =
            bundle["chains"][0]["certificates"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
        let (_, stamps) = get(&self.host, self.port(Service::Timestamp), "/api/v1/timestamp/certchain").unwrap();
        let authority = |url: String, chain: &str| {
            json!([{
                "subject": {"organization": "codex.test", "commonName": "test"},
                "uri": url,
                "certChain": {"certificates": certificates(chain)},
                "validFor": {"start": START},
            }])
        };
        let log = self.log_key.subject_public_key_info();
        json!({
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [{
                "baseUrl": format!("https://{LOG}"),
                "hashAlgorithm": "SHA2_256",
                "publicKey": {
                    "rawBytes": base64(&log), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": {"start": START},
                },
                "logId": {"keyId": base64(Sha256::of(&log).bytes())},
            }],
            "certificateAuthorities": authority(self.url(Service::Fulcio), &fulcio.join("\n")),
            "ctlogs": [],
            "timestampAuthorities": authority(self.url(Service::Timestamp), &stamps),
        })
        .to_string()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        for (_, child) in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The program that an environment variable of `make test-keyless` names.
fn program(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set: run `make test-keyless`"));
    let path = PathBuf::from(path);
    assert!(path.is_file(), "{variable}: {} does not exist: run `make test-keyless`", path.display());
    path
}

fn free(host: &str) -> u16 {
    TcpListener::bind((host, 0)).unwrap().local_addr().unwrap().port()
}

/// Asks with HTTP 1.0, whose answers end with the connection.
pub(crate) fn get(host: &str, port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect((host, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}\r\nAccept: */*\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// The certificates of a PEM file, as a trusted root has them.
fn certificates(pem: &str) -> Vec<Value> {
    let blocks = pem.split("-----BEGIN CERTIFICATE-----").skip(1);
    let bodies = blocks.map(|block| block.split("-----END").next().unwrap());
    bodies.map(|body| json!({"rawBytes": body.split_whitespace().collect::<String>()})).collect()
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    use ::base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.encode(bytes)
}
