//! A small hub for tests: the API of Hugging Face as far as downloads use it, on loopback. Large files are redirected to a second
//! server, as on Hugging Face.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use codex_provenance::Sha256;

/// The commit of `main`.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The only repository.
pub(crate) const NAME: &str = "org/small";

/// What a test sets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Behaviour {
    /// The files of the repository by their paths.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// Files that are redirected to the second server.
    pub(crate) large: BTreeSet<String>,
    /// The token that every request to the hub must have.
    pub(crate) token: Option<String>,
    /// Status, error code and number of answers of the hub that are refusals before others.
    pub(crate) refusals: Option<(u16, &'static str, usize)>,
    /// Bodies of this file end after so many bytes, so many times.
    pub(crate) cut: Option<(String, usize, usize)>,
    /// Bodies of this file have another first byte, so many times.
    pub(crate) corrupt: Option<(String, usize)>,
    /// Whether ranges are ignored.
    pub(crate) no_ranges: bool,
    /// Whether the list of files has neither sizes nor hashes.
    pub(crate) bare: bool,
    /// The commit that the list of files names.
    pub(crate) commit: Option<String>,
}

/// A request that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Whether it was to the second server.
    pub(crate) storage: bool,
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    pub(crate) range: Option<String>,
}

/// A hub that runs until the test ends.
pub(crate) struct Server {
    pub(crate) endpoint: String,
    pub(crate) behaviour: Arc<Mutex<Behaviour>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    pub(crate) fn start(behaviour: Behaviour) -> Self {
        let [hub, storage] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [endpoint, elsewhere] = [&hub, &storage].map(|it| format!("http://{}", it.local_addr().unwrap()));
        let (behaviour, seen) = (Arc::new(Mutex::new(behaviour)), Arc::default());
        for (listener, is_storage) in [(hub, false), (storage, true)] {
            let (behaviour, seen, elsewhere) = (Arc::clone(&behaviour), Arc::clone(&seen), elsewhere.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    // A client that went away.
                    let _ = serve(&stream.unwrap(), is_storage, &elsewhere, &behaviour, &seen);
                }
            });
        }
        Self { endpoint, behaviour, seen }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().unwrap());
        self.seen.lock().unwrap().clear();
    }
}

/// Returns the hash of Git of a file.
pub(crate) fn git_hash(bytes: &[u8]) -> String {
    let whole = [format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat();
    hex::encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &whole))
}

fn serve(
    mut stream: &TcpStream,
    storage: bool,
    elsewhere: &str,
    behaviour: &Mutex<Behaviour>,
    seen: &Mutex<Vec<Seen>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let header = |name: &str| headers.get(name).cloned();
    let request = Seen { storage, path, authorization: header("authorization"), range: header("range") };
    seen.lock().unwrap().push(request.clone());
    let mut behaviour = behaviour.lock().unwrap();
    let answer =
        if storage { file(&mut behaviour, &request, "/storage/") } else { hub(&mut behaviour, &request, elsewhere) };
    drop(behaviour);
    stream.write_all(&answer)
}

fn answer(status: u16, headers: &[(&str, String)], body: &[u8]) -> Vec<u8> {
    let length = ("content-length", body.len().to_string());
    let own = headers.iter().any(|(name, _)| *name == length.0);
    let fields = headers.iter().chain((!own).then_some(&length));
    let fields: Vec<String> = fields.map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("HTTP/1.1 {status} Answer\r\nconnection: close\r\n{}\r\n", fields.concat());
    [head.as_bytes(), body].concat()
}

fn hub(behaviour: &mut Behaviour, request: &Seen, elsewhere: &str) -> Vec<u8> {
    if let Some((status, code, left)) = behaviour.refusals.as_mut().filter(|(_, _, left)| *left > 0) {
        *left -= 1;
        return answer(*status, &[("x-error-code", (*code).to_owned()), ("retry-after", "0".to_owned())], b"no");
    }
    let bearer = behaviour.token.as_ref().map(|token| format!("Bearer {token}"));
    if bearer.is_some() && request.authorization != bearer {
        return answer(401, &[("x-error-code", "RepoNotFound".to_owned())], b"secret words");
    }
    let api = format!("/api/models/{NAME}/revision/");
    if let Some(revision) = request.path.strip_prefix(&api) {
        let revision = revision.strip_suffix("?blobs=true").unwrap_or_default();
        if !["main", "refs%2Fpr%2F1", COMMIT].contains(&revision) {
            return answer(404, &[("x-error-code", "RevisionNotFound".to_owned())], b"");
        }
        return answer(200, &[], listing(behaviour).to_string().as_bytes());
    }
    let resolve = format!("/{NAME}/resolve/{COMMIT}/");
    let Some(name) = request.path.strip_prefix(&resolve) else {
        return answer(404, &[("x-error-code", "RepoNotFound".to_owned())], b"");
    };
    let commit = ("x-repo-commit", COMMIT.to_owned());
    if behaviour.large.contains(name) {
        let bytes = &behaviour.files[name];
        let headers = [
            commit,
            ("location", format!("{elsewhere}/storage/{name}?signature=s3cret")),
            ("x-linked-etag", format!("\"{}\"", Sha256::of(bytes))),
            ("x-linked-size", bytes.len().to_string()),
        ];
        return answer(302, &headers, b"");
    }
    file(behaviour, request, &resolve)
}

fn listing(behaviour: &Behaviour) -> serde_json::Value {
    let files = behaviour.files.iter().map(|(name, bytes)| {
        let mut file = serde_json::json!({"rfilename": name});
        if !behaviour.bare {
            file["size"] = bytes.len().into();
            file["blobId"] = git_hash(bytes).into();
            if behaviour.large.contains(name) {
                file["blobId"] = git_hash(b"pointer").into();
                file["lfs"] = serde_json::json!({"sha256": Sha256::of(bytes), "size": bytes.len(), "pointerSize": 1});
            }
        }
        file
    });
    let commit = behaviour.commit.as_deref().unwrap_or(COMMIT);
    serde_json::json!({"id": NAME, "sha": commit, "siblings": files.collect::<Vec<_>>()})
}

/// Returns a file, or the range of it that is asked for.
fn file(behaviour: &mut Behaviour, request: &Seen, prefix: &str) -> Vec<u8> {
    let path = request.path.split('?').next().unwrap_or_default();
    let name = path.strip_prefix(prefix).unwrap_or_default().to_owned();
    let Some(bytes) = behaviour.files.get(&name) else {
        return answer(404, &[("x-error-code", "EntryNotFound".to_owned())], b"");
    };
    let mut body = bytes.clone();
    if let Some((_, left)) = behaviour.corrupt.as_mut().filter(|(file, left)| *file == name && *left > 0) {
        *left -= 1;
        body[0] ^= 1;
    }
    let size = body.len();
    // A storage has tags of its own.
    let tag = if request.storage { "\"0123456789abcdef\"".to_owned() } else { format!("\"{}\"", git_hash(bytes)) };
    let mut headers = vec![("etag", tag)];
    let range = request.range.as_ref().filter(|_| !behaviour.no_ranges);
    let first = range.map(|range| range.trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().unwrap());
    let status = match first {
        Some(first) if first >= size => {
            return answer(416, &[("content-range", format!("bytes */{size}"))], b"");
        }
        Some(first) => {
            headers.push(("content-range", format!("bytes {first}-{}/{size}", size - 1)));
            body.drain(..first);
            206
        }
        None => 200,
    };
    headers.push(("content-length", body.len().to_string()));
    if let Some((_, at, left)) = behaviour.cut.as_mut().filter(|(file, _, left)| *file == name && *left > 0) {
        *left -= 1;
        body.truncate(*at);
    }
    answer(status, &headers, &body)
}
