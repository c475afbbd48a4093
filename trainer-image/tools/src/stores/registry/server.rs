//! Tests: a registry with tokens, which cuts connections and refuses ranges when it is told to.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use codex_provenance::Sha256;

use super::{
    super::{
        Location, Remote,
        http::Connector,
        test_http::{Answer, Request, cut, reply, serve},
    },
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

pub(super) struct Server {
    state: Arc<Mutex<State>>,
    pub(super) port: u16,
}

impl Server {
    pub(super) fn start() -> Self {
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = Arc::clone(&state);
        let port = serve(move |port, request| answer(&mut shared.lock().unwrap(), port, request));
        Self { state, port }
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
}

fn answer(state: &mut State, port: u16, request: Request) -> Option<Answer> {
    let (method, target) = (request.method.as_str(), request.target.as_str());
    state.requests.push(format!("{method} {target}"));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if path == "/token" {
        let right = Credentials::basic("me", PASSWORD).unwrap();
        let Credentials::Basic(value) = right else { return None };
        let is_right = request.header("authorization").as_deref() == value.to_str().ok();
        let text = format!(r#"{{"token": "{TOKEN}"}}"#);
        return if is_right { reply(200, "", text.as_bytes()) } else { reply(401, "", b"") };
    }
    if request.header("authorization") != Some(format!("Bearer {TOKEN}")) {
        let challenge =
            format!("WWW-Authenticate: Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"test\"\r\n");
        return reply(401, &challenge, b"");
    }
    if let Some(status) = state.status {
        let quoted = request.lines.join(" ").replace('"', "'");
        let text = format!(r#"{{"errors": [{{"code": "TESTED", "message": "{quoted}"}}]}}"#);
        return reply(status, "", text.as_bytes());
    }
    let path = path.strip_prefix("/v2/team/model/").unwrap();
    let (kind, name) = path.split_once('/').unwrap();
    match (method, kind) {
        ("GET" | "HEAD", "manifests") => match state.manifests.get(name) {
            Some(bytes) => reply(200, "", bytes),
            None => reply(404, "", b""),
        },
        ("PUT", "manifests") => {
            let digest = format!("sha256:{}", Sha256::of(&request.body));
            let subject = String::from_utf8_lossy(&request.body).contains("\"subject\"") && state.has_referrers;
            state.manifests.insert(name.to_owned(), request.body.clone());
            state.manifests.insert(digest, request.body);
            reply(201, if subject { "OCI-Subject: sha256:0\r\n" } else { "" }, b"")
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
            reply(200, "", serde_json::json!({ "schemaVersion": 2, "manifests": found }).to_string().as_bytes())
        }
        ("GET" | "HEAD", "blobs") if !name.starts_with("uploads/") => {
            let Some(bytes) = state.blobs.get(name).cloned() else { return reply(404, "", b"") };
            if method == "HEAD" {
                return cut(200, "", bytes.len(), b"");
            }
            let range = request.header("range").filter(|_| !state.has_no_ranges);
            let begin = range
                .as_ref()
                .map_or(0, |range| range.trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().unwrap());
            let head = format!("Content-Range: bytes {begin}-{}/{}\r\n", bytes.len() - 1, bytes.len());
            let (status, head) = if range.is_some() { (206, head.as_str()) } else { (200, "") };
            let rest = &bytes[begin..];
            let end = state.cuts.pop().unwrap_or(rest.len()).min(rest.len());
            state.moved += end;
            cut(status, head, rest.len(), &rest[..end])
        }
        ("POST", "blobs") => {
            let id = format!("u{}", state.requests.len());
            state.uploads.insert(id.clone(), Vec::new());
            let head = format!("Location: /v2/team/model/blobs/uploads/{id}?state=secret\r\n");
            reply(202, &head, b"")
        }
        (_, "blobs") => {
            let id = name.trim_start_matches("uploads/").to_owned();
            let Some(there) = state.uploads.get(&id).cloned() else { return reply(404, "", b"") };
            let location = |length: usize| {
                format!(
                    "Location: /v2/team/model/blobs/uploads/{id}?state={length}\r\nRange: 0-{}\r\n",
                    length.max(1) - 1
                )
            };
            match method {
                "GET" => reply(204, &location(there.len()), b""),
                "PATCH" => {
                    let begin: usize =
                        request.header("content-range").unwrap().split('-').next().unwrap().parse().unwrap();
                    if begin != there.len() {
                        return reply(416, &location(there.len()), b"");
                    }
                    if state.lost_parts > 0 {
                        state.lost_parts -= 1;
                        let half = [&there[..], &request.body[..request.body.len() / 2]].concat();
                        state.moved += request.body.len() / 2;
                        if state.forgets {
                            state.uploads.remove(&id)
                        } else {
                            state.uploads.insert(id, half)
                        };
                        return None;
                    }
                    state.moved += request.body.len();
                    let whole = [there, request.body].concat();
                    let head = location(whole.len());
                    state.uploads.insert(id, whole);
                    reply(202, &head, b"")
                }
                "PUT" => {
                    state.moved += request.body.len();
                    let whole = [there, request.body].concat();
                    let digest = format!("sha256:{}", Sha256::of(&whole));
                    let named = query.split('&').find_map(|pair| pair.strip_prefix("digest=")).unwrap();
                    if named.replace("%3A", ":") != digest {
                        let text = br#"{"errors": [{"code": "DIGEST_INVALID", "message": "no"}]}"#;
                        return reply(400, "", text);
                    }
                    state.uploads.remove(&id);
                    state.blobs.insert(digest, whole);
                    reply(201, "", b"")
                }
                _ => reply(405, "", b""),
            }
        }
        _ => reply(404, "", b""),
    }
}
