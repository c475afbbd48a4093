//! Tests: a registry with tokens, which cuts connections and refuses ranges when it is told to.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use codex_provenance::Sha256;

use super::{
    super::{Location, Remote, http::Connector},
    Client, Credentials,
};

pub(super) const PASSWORD: &str = "a-secret-that-nobody-may-see";
const TOKEN: &str = "a-token-that-nobody-may-see";

#[derive(Default)]
pub(super) struct State {
    pub(super) blobs: BTreeMap<String, Vec<u8>>,
    pub(super) manifests: BTreeMap<String, Vec<u8>>,
    uploads: BTreeMap<String, Vec<u8>>,
    /// After how many bytes of a blob the next answers are cut.
    pub(super) cuts: Vec<usize>,
    /// How many of the next parts are lost after half of their bytes were taken.
    pub(super) lost_parts: usize,
    /// Whether an upload is forgotten when a part is lost.
    pub(super) forgets: bool,
    /// Whether parts of blobs are not sent.
    pub(super) has_no_ranges: bool,
    /// Whether it has a list of referrers.
    pub(super) has_referrers: bool,
    /// The status of every answer with a token, and a body that quotes the request.
    pub(super) status: Option<u16>,
    /// Methods and paths.
    pub(super) requests: Vec<String>,
    /// Bytes of blobs that were sent or taken.
    pub(super) moved: usize,
}

#[derive(Clone)]
pub(super) struct Server {
    state: Arc<Mutex<State>>,
    pub(super) port: u16,
}

impl Server {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self { state: Arc::default(), port: listener.local_addr().unwrap().port() };
        let serving = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serving = serving.clone();
                std::thread::spawn(move || serving.answer(stream));
            }
        });
        server
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Returns what is at a version of the repository `team/model`.
    pub(super) fn remote(&self, version: &str) -> Remote {
        self.remote_of(version, Credentials::basic("me", PASSWORD).unwrap())
    }

    pub(super) fn remote_of(&self, version: &str, credentials: Credentials) -> Remote {
        let location: Location = format!("oci://127.0.0.1:{}/team/model{version}", self.port).parse().unwrap();
        let mut client = Client::new(&location, &Connector::new(None).unwrap(), credentials, false).unwrap();
        client.pause = Duration::from_millis(1);
        Remote { pause: Duration::from_millis(1), ..Remote::of_registry(client, &location).unwrap() }
    }

    fn answer(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if line == "\r\n" {
                break;
            }
            lines.push(line.trim_end().to_owned());
        }
        let header = |name: &str| {
            let found = lines.iter().filter_map(|line| line.split_once(": "));
            found.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).next()
        };
        let mut first = lines[0].split(' ');
        let (method, target) = (first.next().unwrap(), first.next().unwrap());
        let mut body = vec![0; header("content-length").map_or(0, |length| length.parse().unwrap())];
        reader.read_exact(&mut body).unwrap();
        let mut state = self.state();
        state.requests.push(format!("{method} {target}"));
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if path == "/token" {
            let right = Credentials::basic("me", PASSWORD).unwrap();
            let Credentials::Basic(value) = right else { return };
            let is_right = header("authorization").as_deref() == value.to_str().ok();
            let text = format!(r#"{{"token": "{TOKEN}"}}"#);
            return if is_right { reply(stream, 200, "", text.as_bytes()) } else { reply(stream, 401, "", b"") };
        }
        if header("authorization") != Some(format!("Bearer {TOKEN}")) {
            let challenge =
                format!("WWW-Authenticate: Bearer realm=\"http://127.0.0.1:{}/token\",service=\"test\"\r\n", self.port);
            return reply(stream, 401, &challenge, b"");
        }
        if let Some(status) = state.status {
            let quoted = lines.join(" ").replace('"', "'");
            let text = format!(r#"{{"errors": [{{"code": "TESTED", "message": "{quoted}"}}]}}"#);
            return reply(stream, status, "", text.as_bytes());
        }
        let path = path.strip_prefix("/v2/team/model/").unwrap();
        let (kind, name) = path.split_once('/').unwrap();
        match (method, kind) {
            ("GET" | "HEAD", "manifests") => match state.manifests.get(name) {
                Some(bytes) => reply(stream, 200, "", bytes),
                None => reply(stream, 404, "", b""),
            },
            ("PUT", "manifests") => {
                let digest = format!("sha256:{}", Sha256::of(&body));
                let subject = String::from_utf8_lossy(&body).contains("\"subject\"") && state.has_referrers;
                state.manifests.insert(name.to_owned(), body.clone());
                state.manifests.insert(digest, body);
                reply(stream, 201, if subject { "OCI-Subject: sha256:0\r\n" } else { "" }, b"");
            }
            ("GET", "referrers") if state.has_referrers => {
                let of = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
                let found = state.manifests.iter().filter(|(key, bytes)| {
                    key.starts_with("sha256:") && of(bytes)["subject"]["digest"].as_str() == Some(name)
                });
                let found: Vec<_> = found
                    .map(|(key, bytes)| {
                        serde_json::json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": key,
                            "size": bytes.len(), "artifactType": of(bytes)["artifactType"] })
                    })
                    .collect();
                reply(
                    stream,
                    200,
                    "",
                    serde_json::json!({ "schemaVersion": 2, "manifests": found }).to_string().as_bytes(),
                );
            }
            ("GET" | "HEAD", "blobs") if !name.starts_with("uploads/") => {
                let Some(bytes) = state.blobs.get(name).cloned() else { return reply(stream, 404, "", b"") };
                if method == "HEAD" {
                    return send(stream, 200, "", bytes.len(), b"");
                }
                let range = header("range").filter(|_| !state.has_no_ranges);
                let begin = range.as_ref().map_or(0, |range| {
                    range.trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().unwrap()
                });
                let head = format!("Content-Range: bytes {begin}-{}/{}\r\n", bytes.len() - 1, bytes.len());
                let (status, head) = if range.is_some() { (206, head.as_str()) } else { (200, "") };
                let rest = &bytes[begin..];
                let cut = state.cuts.pop().unwrap_or(rest.len()).min(rest.len());
                state.moved += cut;
                drop(state);
                send(stream, status, head, rest.len(), &rest[..cut]);
            }
            ("POST", "blobs") => {
                let id = format!("u{}", state.requests.len());
                state.uploads.insert(id.clone(), Vec::new());
                let head = format!("Location: /v2/team/model/blobs/uploads/{id}?state=secret\r\n");
                reply(stream, 202, &head, b"");
            }
            (_, "blobs") => {
                let id = name.trim_start_matches("uploads/").to_owned();
                let Some(there) = state.uploads.get(&id).cloned() else { return reply(stream, 404, "", b"") };
                let location = |length: usize| {
                    format!(
                        "Location: /v2/team/model/blobs/uploads/{id}?state={length}\r\nRange: 0-{}\r\n",
                        length.max(1) - 1
                    )
                };
                match method {
                    "GET" => reply(stream, 204, &location(there.len()), b""),
                    "PATCH" => {
                        let begin: usize = header("content-range").unwrap().split('-').next().unwrap().parse().unwrap();
                        if begin != there.len() {
                            return reply(stream, 416, &location(there.len()), b"");
                        }
                        if state.lost_parts > 0 {
                            state.lost_parts -= 1;
                            let half = [&there[..], &body[..body.len() / 2]].concat();
                            state.moved += body.len() / 2;
                            if state.forgets {
                                state.uploads.remove(&id)
                            } else {
                                state.uploads.insert(id, half)
                            };
                            return;
                        }
                        state.moved += body.len();
                        let whole = [there, body].concat();
                        let head = location(whole.len());
                        state.uploads.insert(id, whole);
                        reply(stream, 202, &head, b"");
                    }
                    "PUT" => {
                        state.moved += body.len();
                        let whole = [there, body].concat();
                        let digest = format!("sha256:{}", Sha256::of(&whole));
                        let named = query.split('&').find_map(|pair| pair.strip_prefix("digest=")).unwrap();
                        if named.replace("%3A", ":") != digest {
                            let text = br#"{"errors": [{"code": "DIGEST_INVALID", "message": "no"}]}"#;
                            return reply(stream, 400, "", text);
                        }
                        state.uploads.remove(&id);
                        state.blobs.insert(digest, whole);
                        reply(stream, 201, "", b"");
                    }
                    _ => reply(stream, 405, "", b""),
                }
            }
            _ => reply(stream, 404, "", b""),
        }
    }
}

fn reply(stream: TcpStream, status: u16, head: &str, body: &[u8]) {
    send(stream, status, head, body.len(), body);
}

/// Sends an answer that promises `length` bytes.
fn send(mut stream: TcpStream, status: u16, head: &str, length: usize, body: &[u8]) {
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n{head}\r\n");
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}
