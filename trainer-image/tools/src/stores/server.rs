//! Tests: a server with the part of S3's protocol that is used, which cuts connections when it is told to.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use super::{
    Location, Remote,
    http::Connector,
    test_http::{Answer, Request, cut, reply, serve},
};

pub(super) const SECRET: &str = "a-secret-that-nobody-may-see";

/// An object.
#[derive(Clone, Default)]
pub(super) struct Object {
    pub(super) bytes: Vec<u8>,
    /// What the store keeps beside it.
    pub(super) sha256: Option<String>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, BTreeMap<u32, Vec<u8>>>,
    /// After how many bytes of a body the next answers are cut.
    pub(super) cuts: Vec<usize>,
    /// How many of the next uploads of parts are cut before an answer.
    pub(super) lost_parts: usize,
    /// The status of every answer, in place of the right one.
    pub(super) status: Option<u16>,
    /// Methods and paths.
    pub(super) requests: Vec<String>,
    /// Bytes of bodies of objects that were sent, but for manifests.
    pub(super) sent: usize,
}

pub(super) struct Server {
    state: Arc<Mutex<State>>,
    port: u16,
}

impl Server {
    pub(super) fn start() -> Self {
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = Arc::clone(&state);
        let port = serve(move |_, request| answer(&mut shared.lock().unwrap(), request));
        Self { state, port }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Returns the store at a prefix.
    pub(super) fn remote(&self, prefix: &str) -> Remote {
        let location: Location = format!("s3://bucket/{prefix}").parse().unwrap();
        let short = std::time::Duration::from_millis(1);
        let backoff = object_store::BackoffConfig { init_backoff: short, max_backoff: short, base: 2.0 };
        let retry = object_store::RetryConfig { backoff, max_retries: 2, ..object_store::RetryConfig::default() };
        let store = object_store::aws::AmazonS3Builder::new()
            .with_endpoint(format!("http://127.0.0.1:{}", self.port))
            .with_bucket_name("bucket")
            .with_region("us-east-1")
            .with_access_key_id("AKIATEST")
            .with_secret_access_key(SECRET)
            .with_retry(retry)
            .with_http_connector(Connector::new(None).unwrap())
            .build()
            .unwrap();
        Remote { store: Arc::new(store), location, pause: short, artifact: None }
    }
}

fn answer(state: &mut State, request: Request) -> Option<Answer> {
    let (method, target) = (request.method.as_str(), request.target.as_str());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let key = decoded(path.trim_start_matches("/bucket").trim_start_matches('/'));
    let query: BTreeMap<&str, &str> = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect();
    state.requests.push(format!("{method} {target}"));
    if let Some(status) = state.status {
        return reply(status, "", format!("<Error><Code>No</Code><Message>{target}</Message></Error>").as_bytes());
    }
    match (method, query.contains_key("uploads"), query.get("uploadId").copied()) {
        ("GET", ..) if query.contains_key("list-type") => {
            let prefix = decoded(query.get("prefix").unwrap_or(&""));
            let found = state.objects.iter().filter(|(key, _)| key.starts_with(&prefix));
            let found: Vec<String> = found
                .map(|(key, object)| {
                    format!(
                        "<Contents><Key>{key}</Key><LastModified>2026-11-28T09:00:00.000Z</LastModified>\
                         <ETag>{}</ETag><Size>{}</Size></Contents>",
                        tag(object),
                        object.bytes.len()
                    )
                })
                .collect();
            let found = found.concat();
            let text = format!("<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>");
            reply(200, "", text.as_bytes())
        }
        ("GET" | "HEAD", ..) => {
            let Some(object) = state.objects.get(&key).cloned() else { return reply(404, "", b"") };
            if request.header("if-match").is_some_and(|expected| expected != tag(&object)) {
                return reply(412, "", b"");
            }
            let total = object.bytes.len();
            let range = request.header("range").map(|range| range.trim_start_matches("bytes=").to_owned());
            let start: usize = range.as_ref().map_or(0, |range| range.split('-').next().unwrap().parse().unwrap());
            let meta = object.sha256.as_ref().map_or(String::new(), |sum| format!("x-amz-meta-sha256: {sum}\r\n"));
            let mut head = format!("ETag: {}\r\nLast-Modified: Sat, 28 Nov 2026 09:00:00 GMT\r\n{meta}", tag(&object));
            if range.is_some() {
                let range = format!("Content-Range: bytes {start}-{}/{total}\r\n", total - 1);
                head.push_str(&range);
            }
            let status = if range.is_some() { 206 } else { 200 };
            let bytes = &object.bytes[start..];
            let is_manifest = key.ends_with(super::MANIFEST);
            let end = if method == "HEAD" || is_manifest { None } else { state.cuts.pop() };
            let body = &bytes[..end.unwrap_or(bytes.len()).min(bytes.len())];
            if method == "GET" && !is_manifest {
                state.sent += body.len();
            }
            let length = bytes.len();
            cut(status, &head, length, if method == "HEAD" { &[] } else { body })
        }
        ("PUT", _, None) => {
            let sha256 = request.header("x-amz-meta-sha256");
            state.objects.insert(key, Object { bytes: request.body, sha256 });
            reply(200, "ETag: \"1\"\r\n", b"")
        }
        ("PUT", _, Some(upload)) => {
            if state.lost_parts > 0 {
                state.lost_parts -= 1;
                return None;
            }
            let number = query["partNumber"].parse().unwrap();
            state.uploads.get_mut(upload).unwrap().insert(number, request.body);
            reply(200, &format!("ETag: \"p{number}\"\r\n"), b"")
        }
        ("POST", true, _) => {
            let upload = format!("upload-{}", state.requests.len());
            state.uploads.insert(upload.clone(), BTreeMap::new());
            state.objects.entry(format!("meta-{upload}")).or_default().sha256 = request.header("x-amz-meta-sha256");
            let text =
                format!("<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>");
            reply(200, "", text.as_bytes())
        }
        ("POST", _, Some(upload)) => {
            let parts = state.uploads.remove(upload).unwrap();
            let sha256 = state.objects.remove(&format!("meta-{upload}")).unwrap().sha256;
            state.objects.insert(key, Object { bytes: parts.into_values().flatten().collect(), sha256 });
            let text = "<CompleteMultipartUploadResult><ETag>\"1\"</ETag></CompleteMultipartUploadResult>";
            reply(200, "", text.as_bytes())
        }
        ("DELETE", _, Some(upload)) => {
            state.uploads.remove(upload);
            state.objects.remove(&format!("meta-{upload}"));
            reply(204, "", b"")
        }
        ("DELETE", ..) => {
            state.objects.remove(&key);
            reply(204, "", b"")
        }
        ("POST", ..) => {
            let text = String::from_utf8(request.body).unwrap();
            let keys = text.split("<Key>").skip(1).map(|rest| rest.split("</Key>").next().unwrap().to_owned());
            let mut told = String::new();
            for key in keys {
                state.objects.remove(&key);
                told.extend(["<Deleted><Key>", &key, "</Key></Deleted>"]);
            }
            reply(200, "", format!("<DeleteResult>{told}</DeleteResult>").as_bytes())
        }
        _ => reply(405, "", b""),
    }
}

/// Decodes `%XX`.
fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, after @ ..] = rest {
        rest = after;
        if *first == b'%' {
            let digits = std::str::from_utf8(&after[..2]).unwrap();
            bytes.push(u8::from_str_radix(digits, 16).unwrap());
            rest = &after[2..];
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn tag(object: &Object) -> String {
    format!("\"{}\"", codex_provenance::Sha256::of(&object.bytes).short())
}
