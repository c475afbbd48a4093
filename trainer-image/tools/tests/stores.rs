//! `codex-tools push` and `fetch` against servers: one that refuses everything, and real ones, with cut connections. `make test-stores`
//! installs the real ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_codex-tools");
const SECRET: &str = "c2VjcmV0LXRoYXQtbm9ib2R5LW1heS1zZWU";

fn tools(environment: &[(&str, String)], arguments: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).env("CODEX_LOG", "trace");
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if ["AWS_", "AZURE_", "GOOGLE_", "SSL_CERT_", "HTTP", "http", "CODEX_REGISTRY_", "DOCKER_", "REGISTRY_"]
            .iter()
            .any(|begin| name.starts_with(begin))
        {
            command.env_remove(name);
        }
    }
    command.envs(environment.iter().map(|(name, value)| (*name, value))).output().unwrap()
}

/// Returns everything that a process said.
fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn model(path: &Path, weights: usize) {
    fs::create_dir_all(path).unwrap();
    fs::write(path.join("config.json"), "{}").unwrap();
    let weights: Vec<u8> = (0..weights).map(|index| (index / 7 % 251) as u8).collect();
    fs::write(path.join("model.safetensors"), weights).unwrap();
    fs::create_dir(path.join("deep")).unwrap();
    fs::write(path.join("deep/a b.json"), "[]").unwrap();
}

/// Answers every request with 403, and quotes what it was asked for.
fn refusing() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut buffer = vec![0; 1 << 16];
            let count = stream.read(&mut buffer).unwrap_or(0);
            let target = String::from_utf8_lossy(&buffer[..count]).lines().next().unwrap_or_default().to_owned();
            // As S3 does for a signature that does not fit.
            let quoted = String::from_utf8_lossy(&buffer[..count]).replace('&', "&amp;").replace('<', "&lt;");
            let body = format!(
                "<Error><Code>AccessDenied</Code><Message>{}</Message><CanonicalRequest>{quoted}</CanonicalRequest></Error>",
                target.replace('&', "&amp;")
            );
            let head = format!("HTTP/1.1 403 Forbidden\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all((head + &body).as_bytes());
        }
    });
    port
}

#[test]
fn no_log_holds_credentials() {
    let place = tempfile::tempdir().unwrap();
    model(&place.path().join("model"), 10);
    let url = format!("http://127.0.0.1:{}", refusing());
    let pair = |name, value: &str| (name, value.to_owned());
    let gcs = place.path().join("service.json");
    fs::write(&gcs, format!(r#"{{"gcs_base_url": "{url}", "disable_oauth": true, "client_email": "", "private_key": "{SECRET}", "private_key_id": ""}}"#)).unwrap();
    let cases = [
        (
            "s3://bucket/a",
            vec![
                pair("AWS_ACCESS_KEY_ID", "AKIATEST"),
                pair("AWS_SECRET_ACCESS_KEY", SECRET),
                pair("AWS_SESSION_TOKEN", &format!("token-{SECRET}")),
                pair("AWS_ENDPOINT_URL", &url),
            ],
        ),
        (
            "az://box/a",
            vec![
                pair("AZURE_STORAGE_ACCOUNT_NAME", "account"),
                pair("AZURE_STORAGE_SAS_TOKEN", &format!("sv=2023&sig={SECRET}")),
                pair("AZURE_ENDPOINT", &url),
                pair("AZURE_ALLOW_HTTP", "true"),
            ],
        ),
        ("gs://bucket/a", vec![pair("GOOGLE_SERVICE_ACCOUNT", gcs.to_str().unwrap())]),
    ];
    let registry = format!("oci://{}/a:1", url.trim_start_matches("http://"));
    let registry =
        (registry.as_str(), vec![pair("CODEX_REGISTRY_USERNAME", "me"), pair("CODEX_REGISTRY_PASSWORD", SECRET)]);
    let cases = cases.into_iter().chain([registry]);
    for (address, environment) in cases {
        let to = place.path().join("got");
        for arguments in
            [["fetch", address, to.to_str().unwrap()], ["push", place.path().join("model").to_str().unwrap(), address]]
        {
            let output = tools(&environment, &arguments);
            let told = said(&output);
            assert_eq!(output.status.code(), Some(2), "{address}: {told}");
            assert!(told.contains("403") || told.contains("Forbidden"), "{address}: {told}");
            assert!(!told.contains(SECRET), "{address}: {told}");
        }
    }
}

#[test]
fn a_folder_needs_no_server() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    model(place.path().join("model").as_path(), 100_000);
    let url = format!("file://{}", at("store/a"));
    let pushed = tools(&[], &["push", &at("model"), &url]);
    assert!(pushed.status.success(), "{}", said(&pushed));
    let line: serde_json::Value = serde_json::from_slice(&pushed.stdout).unwrap();
    let digest = line["digest"].as_str().unwrap();
    let got = tools(&[], &["fetch", &url, &at("got"), "--digest", digest]);
    assert!(got.status.success(), "{}", said(&got));
    assert_eq!(fs::read(at("got/model.safetensors")).unwrap(), fs::read(at("model/model.safetensors")).unwrap());
    let refused = tools(&[], &["fetch", &url, &at("other"), "--digest", &"0".repeat(64)]);
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
}

/// A proxy that cuts the first connections after some bytes of either direction.
struct Proxy {
    port: u16,
    /// Connections that are still to be cut.
    cuts: Arc<AtomicUsize>,
}

impl Proxy {
    fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self { port: listener.local_addr().unwrap().port(), cuts: Arc::default() };
        let cuts = Arc::clone(&proxy.cuts);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let cuts = Arc::clone(&cuts);
                    std::thread::spawn(move || copy(from, to, &cuts));
                }
            }
        });
        proxy
    }
}

/// Copies bytes; after 3 MB of one connection, cuts it if any is left to be cut.
fn copy(mut from: TcpStream, mut to: TcpStream, cuts: &AtomicUsize) {
    let (mut buffer, mut copied) = (vec![0; 1 << 16], 0);
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let more = |left: usize| left.checked_sub(1);
        copied += count;
        if copied > 3_000_000 && cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok() {
            let _ = from.shutdown(Shutdown::Both);
            break;
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

/// A server that ends with its test.
struct Real(Child);

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The folder in which `make test-stores` installs servers.
fn installed(name: &str) -> PathBuf {
    let folder = std::env::var_os("STORES").expect("STORES names the folder of the servers: make test-stores");
    let path = PathBuf::from(folder).join(name);
    assert!(path.exists(), "{} is missing: make test-stores", path.display());
    path
}

/// Starts a server and waits until it accepts connections.
fn start(command: &mut Command, port: u16) -> Real {
    let server = Real(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    for _ in 0..300 {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return server;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{command:?} accepts no connections after 30 s");
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Pushes a model and fetches it again, both over connections that are cut.
fn travels(proxy: &Proxy, environment: &[(&str, String)], secret: &str, address: &str) {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    model(place.path().join("model").as_path(), 40_000_000);
    let run = |arguments: &[&str]| -> serde_json::Value {
        let output = tools(environment, arguments);
        let told = said(&output);
        assert!(output.status.success(), "{address}: {}", &told[told.len().saturating_sub(4000)..]);
        assert!(!told.contains(secret), "{address}: a log holds the secret");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    proxy.cuts.store(2, Ordering::SeqCst);
    let pushed = run(&["push", &at("model"), address]);
    assert_eq!(proxy.cuts.load(Ordering::SeqCst), 0, "no upload was cut");
    assert_eq!(pushed["sent"], 3);
    assert_eq!(run(&["push", &at("model"), address])["there"], 3, "what is there is not sent again");
    proxy.cuts.store(5, Ordering::SeqCst);
    let digest = pushed["digest"].as_str().unwrap();
    let got = run(&["fetch", address, &at("got"), "--digest", digest]);
    assert_eq!(proxy.cuts.load(Ordering::SeqCst), 0, "no download was cut");
    assert_eq!((&got["digest"], &got["manifest"]), (&pushed["digest"], &true.into()));
    for file in ["config.json", "model.safetensors", "deep/a b.json"] {
        let [one, other] = ["model", "got"].map(|folder| fs::read(place.path().join(folder).join(file)).unwrap());
        assert!(one == other, "{address}: {file} differs");
    }
    fs::write(at("model/config.json"), "{\"x\": 1}").unwrap();
    fs::remove_file(at("model/deep/a b.json")).unwrap();
    let refused = tools(environment, &["push", &at("model"), address]);
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    let replaced = run(&["push", &at("model"), address, "--replace"]);
    assert_eq!((&replaced["sent"], &replaced["there"]), (&1.into(), &1.into()));
    run(&["fetch", address, &at("new"), "--digest", replaced["digest"].as_str().unwrap()]);
    assert!(!Path::new(&at("new/deep")).exists());
}

#[test]
#[ignore = "needs s3rver: make test-stores"]
fn s3() {
    let (place, port) = (tempfile::tempdir().unwrap(), free_port());
    let mut command = Command::new(installed("node_modules/.bin/s3rver"));
    command.arg("--directory").arg(place.path()).args(["--address", "127.0.0.1", "--port", &port.to_string()]);
    let _server = start(command.args(["--configure-bucket", "models"]), port);
    let proxy = Proxy::start(port);
    let environment = [
        ("AWS_ACCESS_KEY_ID", "S3RVER".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "S3RVER".to_owned()),
        ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", proxy.port)),
    ];
    // The name and the secret of this server are one word, which addresses do not have.
    travels(&proxy, &environment, "Signature=S3RVER", "s3://models/runs/a");
}

#[test]
#[ignore = "needs fake-gcs-server: make test-stores"]
fn gcs() {
    // This server takes objects in the form of Google's JSON API only, and the client writes in that of its XML API: the server has
    // the objects when it starts, and only fetching is tested.
    let (place, port) = (tempfile::tempdir().unwrap(), free_port());
    let (source, got) = (place.path().join("model"), place.path().join("got"));
    model(&source, 40_000_000);
    let data = place.path().join("data");
    let pushed = tools(&[], &["push", source.to_str().unwrap(), &format!("file://{}/models/runs/a", data.display())]);
    assert!(pushed.status.success(), "{}", said(&pushed));
    let pushed: serde_json::Value = serde_json::from_slice(&pushed.stdout).unwrap();
    let proxy = Proxy::start(port);
    let mut command = Command::new(installed("bin/fake-gcs-server"));
    command.args(["-scheme", "http", "-host", "127.0.0.1", "-port", &port.to_string(), "-backend", "memory"]);
    let public = format!("127.0.0.1:{}", proxy.port);
    let _server = start(command.arg("-data").arg(&data).args(["-public-host", &public]), port);
    let account = tempfile::NamedTempFile::new().unwrap();
    let text = format!(
        r#"{{"gcs_base_url": "http://{public}", "disable_oauth": true, "client_email": "", "private_key": "{SECRET}", "private_key_id": ""}}"#
    );
    fs::write(account.path(), text).unwrap();
    let environment = [("GOOGLE_SERVICE_ACCOUNT", account.path().to_str().unwrap().to_owned())];
    proxy.cuts.store(5, Ordering::SeqCst);
    let digest = pushed["digest"].as_str().unwrap();
    let output = tools(&environment, &["fetch", "gs://models/runs/a", got.to_str().unwrap(), "--digest", digest]);
    let told = said(&output);
    assert!(output.status.success() && !told.contains(SECRET), "{told}");
    assert_eq!(proxy.cuts.load(Ordering::SeqCst), 0, "no download was cut");
    for file in ["config.json", "model.safetensors", "deep/a b.json"] {
        assert!(fs::read(source.join(file)).unwrap() == fs::read(got.join(file)).unwrap(), "{file} differs");
    }
}

/// The account of Azurite, which its documentation names.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

#[test]
#[ignore = "needs azurite: make test-stores"]
fn azure() {
    let (place, port) = (tempfile::tempdir().unwrap(), free_port());
    let mut command = Command::new(installed("node_modules/.bin/azurite-blob"));
    command.args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string(), "--skipApiVersionCheck"]);
    let _server = start(command.arg("--location").arg(place.path()), port);
    make_container(port);
    let proxy = Proxy::start(port);
    let environment = [
        ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT.to_owned()),
        ("AZURE_STORAGE_ACCOUNT_KEY", KEY.to_owned()),
        ("AZURE_STORAGE_USE_EMULATOR", "true".to_owned()),
        ("AZURITE_BLOB_STORAGE_URL", format!("http://127.0.0.1:{}", proxy.port)),
    ];
    travels(&proxy, &environment, KEY, "az://models/runs/a");
}

/// The password of the registry and its hash, by `htpasswd -nbB me PASSWORD`.
const PASSWORD: &str = "a-password-that-nobody-may-see";
const HASHED: &str = "$2b$04$0Op9jhZcjeNQC2xgQc1j.O7R7tyHMlx7FElU24gduG1.P1chsT9ja";

#[test]
#[ignore = "needs docker-registry: make test-stores"]
fn oci() {
    let (place, port) = (tempfile::tempdir().unwrap(), free_port());
    let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("passwords"), format!("me:{HASHED}\n")).unwrap();
    let configuration = format!(
        "version: 0.1\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: '127.0.0.1:{port}' }}\n\
         auth: {{ htpasswd: {{ realm: test, path: {} }} }}\n",
        at("data"),
        at("passwords")
    );
    fs::write(at("config.yml"), configuration).unwrap();
    let mut command = Command::new(installed("docker-registry/usr/bin/docker-registry"));
    let _server = start(command.args(["serve", &at("config.yml")]), port);
    let proxy = Proxy::start(port);
    // As `docker login` writes it.
    let auth = {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        STANDARD.encode(format!("me:{PASSWORD}"))
    };
    let config = format!(r#"{{"auths": {{"127.0.0.1:{}": {{"auth": "{auth}"}}}}}}"#, proxy.port);
    fs::write(at("config.json"), config).unwrap();
    let environment = [("DOCKER_CONFIG", place.path().to_str().unwrap().to_owned())];
    let address = format!("oci://127.0.0.1:{}/team/model:v1", proxy.port);
    travels(&proxy, &environment, &auth, &address);
    // A signature travels in the model and refers to it, and the digest pins both.
    model(Path::new(&at("model")), 1000);
    let bundle = r#"{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "dsseEnvelope": {}}"#;
    fs::write(at("model/model.sig"), bundle).unwrap();
    let run = |arguments: &[&str]| -> serde_json::Value {
        let output = tools(&environment, arguments);
        let told = said(&output);
        assert!(output.status.success(), "{}", &told[told.len().saturating_sub(4000)..]);
        assert!(!told.contains(&auth) && !told.contains(PASSWORD), "a log holds the password");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let pushed = run(&["push", &at("model"), &address.replace(":v1", ":v2")]);
    let pinned = address.replace(":v1", &format!("@{}", pushed["artifact"].as_str().unwrap()));
    let digest = pushed["digest"].as_str().unwrap();
    let got = run(&["fetch", &pinned, &at("got"), "--digest", digest, "--bundles", &at("bundles")]);
    assert_eq!((&got["digest"], &got["artifact"]), (&pushed["digest"], &pushed["artifact"]));
    assert_eq!(fs::read_to_string(at("got/model.sig")).unwrap(), bundle);
    let file = got["bundles"][0].as_str().unwrap();
    assert_eq!(fs::read_to_string(file).unwrap(), bundle);
    let refused = tools(&[], &["fetch", &pinned, &at("other")]);
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    assert!(said(&refused).contains("set CODEX_REGISTRY_USERNAME"), "{}", said(&refused));
}

/// Makes the container `models`, with a request as Azure's documentation has it.
fn make_container(port: u16) {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use hmac::Mac as _;

    let date = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let headers = format!("x-ms-date:{date}\nx-ms-version:2021-08-06");
    let signed = format!("PUT\n\n\n\n\n\n\n\n\n\n\n\n{headers}\n/{ACCOUNT}/{ACCOUNT}/models\nrestype:container");
    let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(&STANDARD.decode(KEY).unwrap()).unwrap();
    mac.update(signed.as_bytes());
    let signature = STANDARD.encode(mac.finalize().into_bytes());
    let request = format!(
        "PUT /{ACCOUNT}/models?restype=container HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 0\r\nConnection: close\r\n\
         x-ms-date: {date}\r\nx-ms-version: 2021-08-06\r\nAuthorization: SharedKey {ACCOUNT}:{signature}\r\n\r\n"
    );
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
}
