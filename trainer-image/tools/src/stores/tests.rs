use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use codex_provenance::{ModelDigest, Sha256, manifest::Manifest, oms::SIGNATURE};

use super::{
    Fetched, Location, MANIFEST, Pushed, Remote, StoreError, fetch, push,
    server::{SECRET, Server},
    upload::PART,
};

/// The size of the weights: some parts, and a short one.
const WEIGHTS: usize = 5 * PART as usize + 77;

/// Writes a model with a signature inside, and returns its digest.
fn model(path: &Path) -> ModelDigest {
    fs::create_dir_all(path.join("tokenizer")).unwrap();
    fs::write(path.join("config.json"), "{}").unwrap();
    fs::write(path.join("tokenizer/größe 1.json"), "[]").unwrap();
    let weights: Vec<u8> = (0..WEIGHTS).map(|index| (index % 251) as u8).collect();
    fs::write(path.join("model.safetensors"), weights).unwrap();
    let digest = Manifest::of_dir(path).unwrap().digest();
    fs::write(path.join("model.sig"), "a bundle").unwrap();
    digest
}

async fn sent(source: &Path, remote: &Remote) -> Result<Pushed, StoreError> {
    push(source, remote, None, false, 2, &|| false).await
}

async fn fetched(remote: &Remote, to: &Path, digest: Option<ModelDigest>) -> Result<Fetched, StoreError> {
    fetch(remote, to, digest, 2, &|| false).await
}

fn same(one: &Path, other: &Path) {
    let of = |path| Manifest::of_dir(path).unwrap();
    assert_eq!(of(one), of(other));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_travels_through_a_store_and_is_the_same() {
    let (place, server) = (tempfile::tempdir().unwrap(), Server::start());
    let at = |name: &str| place.path().join(name);
    let digest = model(&at("model"));
    let remote = server.remote("models/a");
    let pushed = sent(&at("model"), &remote).await.unwrap();
    assert_eq!((pushed.digest, pushed.sent, pushed.there), (digest, 4, 0));
    // Whoever sees the manifest sees everything.
    let requests = std::mem::take(&mut server.state().requests);
    let writes: Vec<_> =
        requests.iter().filter(|request| request.starts_with("PUT") || request.contains("uploadId")).collect();
    assert!(writes.last().unwrap().ends_with(MANIFEST), "{writes:?}");
    assert_eq!(requests.iter().filter(|request| request.contains("partNumber")).count(), 6, "{requests:?}");
    let got = fetched(&remote, &at("got"), Some(digest)).await.unwrap();
    assert_eq!(got, Fetched { digest, files: 4, bytes: pushed.bytes + 8, has_manifest: true });
    same(&at("model"), &at("got"));
    assert!(!at("got.partial").exists());
    let again = sent(&at("model"), &remote).await.unwrap();
    assert_eq!((again.sent, again.there), (0, 4));
    let told = fetched(&remote, &at("got"), None).await.unwrap_err().to_string();
    assert!(told.contains("exists: name a directory that does not exist yet"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_connections_lose_nothing() {
    let (place, server) = (tempfile::tempdir().unwrap(), Server::start());
    let at = |name: &str| place.path().join(name);
    let digest = model(&at("model"));
    let remote = server.remote("a");
    server.state().lost_parts = 2;
    sent(&at("model"), &remote).await.unwrap();
    server.state().cuts = [vec![9000; 20], vec![0, 1, 4000]].concat();
    fetched(&remote, &at("got"), Some(digest)).await.unwrap();
    same(&at("model"), &at("got"));
    let whole = WEIGHTS + 2 + 2 + 8;
    let sent = server.state().sent;
    assert!(server.state().cuts.is_empty() && sent == whole, "{sent} bytes for {whole}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_transfer_goes_on() {
    let (place, server) = (tempfile::tempdir().unwrap(), Server::start());
    let at = |name: &str| place.path().join(name);
    let digest = model(&at("model"));
    let remote = server.remote("a");
    let asked = AtomicUsize::new(0);
    let stop = || asked.fetch_add(1, Ordering::Relaxed) >= 4;
    let result = push(&at("model"), &remote, None, false, 1, &stop).await;
    assert!(matches!(result, Err(StoreError::Interrupted)), "{result:?}");
    let told = fetched(&remote, &at("early"), Some(digest)).await;
    assert!(told.is_err(), "a part of a model is none: {told:?}");
    let rest = sent(&at("model"), &remote).await.unwrap();
    assert!(rest.there > 0 && rest.sent > 0, "{rest:?}");
    // Ended in the middle of the weights, whose bytes stay.
    server.state().cuts = vec![100_000; 1];
    let stop = || asked.fetch_add(1, Ordering::Relaxed) >= 2;
    let mut attempts = 0;
    loop {
        asked.store(0, Ordering::Relaxed);
        match fetch(&remote, &at("got"), Some(digest), 1, &stop).await {
            Err(StoreError::Interrupted) => attempts += 1,
            result => {
                result.unwrap();
                break;
            }
        }
        assert!(attempts < 100 && !at("got").exists());
    }
    assert!(attempts > 1, "{attempts}");
    same(&at("model"), &at("got"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_what_was_pushed_is_refused() {
    let (place, server) = (tempfile::tempdir().unwrap(), Server::start());
    let at = |name: &str| place.path().join(name);
    let digest = model(&at("model"));
    let remote = server.remote("a");
    sent(&at("model"), &remote).await.unwrap();
    let other = ModelDigest(Sha256::of("other"));
    server.state().requests.clear();
    let told = fetched(&remote, &at("got"), Some(other)).await.unwrap_err().to_string();
    assert!(told.contains(&format!("has the digest {digest}, but --digest is {other}")), "{told}");
    assert_eq!(server.state().requests.len(), 1, "nothing but the manifest was asked for");
    let told = push(&at("model"), &server.remote("b"), Some(other), false, 2, &|| false).await.unwrap_err().to_string();
    assert!(told.contains("but --digest is"), "{told}");
    // The same size, and other bytes.
    server.state().objects.get_mut("a/model.safetensors").unwrap().bytes[WEIGHTS / 2] ^= 1;
    let told = fetched(&remote, &at("got"), None).await.unwrap_err().to_string();
    assert!(told.contains("model.safetensors is not what its manifest says"), "{told}");
    assert!(!at("got").exists());
    server.state().objects.get_mut("a/model.safetensors").unwrap().bytes.pop();
    let told = fetched(&remote, &at("got"), None).await.unwrap_err().to_string();
    assert!(told.contains(&format!("{} bytes, not {WEIGHTS} bytes", WEIGHTS - 1)), "{told}");
    server.state().objects.remove("a/model.safetensors");
    let told = fetched(&remote, &at("got"), None).await.unwrap_err().to_string();
    assert!(told.contains("s3://bucket/a/model.safetensors does not exist"), "{told}");
    server.state().objects.get_mut(&format!("a/{MANIFEST}")).unwrap().bytes = b"{\"schema\": 1}".to_vec();
    assert!(matches!(fetched(&remote, &at("got"), None).await, Err(StoreError::Manifest { .. })));
    let told = fetched(&server.remote("nowhere"), &at("got"), None).await.unwrap_err().to_string();
    assert!(told.contains("s3://bucket/nowhere does not exist"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_model_is_replaced_only_when_asked_to() {
    let (place, server) = (tempfile::tempdir().unwrap(), Server::start());
    let at = |name: &str| place.path().join(name);
    let old = model(&at("old"));
    model(&at("new"));
    fs::write(at("new/config.json"), "{\"x\": 1}").unwrap();
    fs::remove_dir_all(at("new/tokenizer")).unwrap();
    let remote = server.remote("a");
    sent(&at("old"), &remote).await.unwrap();
    let told = sent(&at("new"), &remote).await.unwrap_err().to_string();
    assert!(told.contains(&format!("holds another model, {old}: use another address, or --replace")), "{told}");
    let pushed = push(&at("new"), &remote, None, true, 2, &|| false).await.unwrap();
    assert_eq!((pushed.sent, pushed.there), (1, 2), "the weights and the signature are the same");
    fetched(&remote, &at("got"), Some(pushed.digest)).await.unwrap();
    same(&at("new"), &at("got"));
    assert!(!server.state().objects.keys().any(|key| key.contains("tokenizer")));
    // A model below the address is another one, and the signature of the old one is not that of an unsigned one.
    sent(&at("old"), &server.remote("a/b")).await.unwrap();
    fs::remove_file(at("new").join(SIGNATURE)).unwrap();
    fs::write(at("new/config.json"), "{\"x\": 2}").unwrap();
    push(&at("new"), &remote, None, true, 2, &|| false).await.unwrap();
    assert!(!server.state().objects.contains_key(&format!("a/{SIGNATURE}")));
    fetched(&server.remote("a/b"), &at("below"), Some(old)).await.unwrap();
    same(&at("old"), &at("below"));
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_without_a_manifest_are_fetched_by_their_version() {
    let (place, server) = (tempfile::tempdir().unwrap(), Server::start());
    let at = |name: &str| place.path().join(name);
    let put = |key: &str, bytes: &[u8]| {
        server.state().objects.insert(key.to_owned(), super::server::Object { bytes: bytes.to_vec(), sha256: None });
    };
    put("data/train.jsonl", &[b'a'; 5000]);
    put("data/deep/val.jsonl", b"{}");
    let digest = fetched(&server.remote("data"), &at("data"), None).await.unwrap();
    assert!(!digest.has_manifest && digest.files == 2);
    assert_eq!(fs::read(at("data/train.jsonl")).unwrap(), [b'a'; 5000]);
    // One object, and a digest as of that directory.
    let one = fetched(&server.remote("data/train.jsonl"), &at("one"), None).await.unwrap();
    assert_eq!(one.digest, Manifest::of_dir(&at("one")).unwrap().digest());
    // An attempt at an older version is not gone on with.
    fs::create_dir(at("new.partial")).unwrap();
    fs::write(at("new.partial/train.jsonl.0123456789ab.partial"), [b'x'; 100]).unwrap();
    fetched(&server.remote("data/train.jsonl"), &at("new"), Some(one.digest)).await.unwrap();
    assert_eq!(fs::read_dir(at("new")).unwrap().count(), 1);
    // Nor is a whole file of an older version taken for this one.
    fs::create_dir(at("stale.partial")).unwrap();
    fs::write(at("stale.partial/train.jsonl"), [b'x'; 5000]).unwrap();
    fetched(&server.remote("data/train.jsonl"), &at("stale"), Some(one.digest)).await.unwrap();
    put("bad/a", b"1");
    put("bad/A", b"2");
    let told = fetched(&server.remote("bad"), &at("bad"), None).await.unwrap_err().to_string();
    assert!(told.contains("cannot be a file here"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_hold_no_credentials() {
    let (place, server) = (tempfile::tempdir().unwrap(), Server::start());
    server.state().status = Some(403);
    let error = fetched(&server.remote("a"), &place.path().join("got"), None).await.unwrap_err();
    let told = format!("{error} {error:?}");
    assert!(told.contains("403") && !told.contains(SECRET) && !told.contains("AKIATEST"), "{told}");
    assert_eq!(codex::error::CommandError::from(error).exit, 2);
    // Clear text to another machine is refused before anything is sent.
    let mut remote = server.remote("a");
    let store = object_store::aws::AmazonS3Builder::new().with_endpoint("http://store.example").with_bucket_name("b");
    let store = store.with_access_key_id("AKIATEST").with_secret_access_key(SECRET).with_region("x");
    let store = store.with_http_connector(super::http::Connector::new(None).unwrap()).build().unwrap();
    remote.store = std::sync::Arc::new(store);
    let told = fetched(&remote, &place.path().join("got"), None).await.unwrap_err().to_string();
    assert!(told.contains("has no TLS: use https"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_a_store_too() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let digest = model(&at("model"));
    let location: Location = format!("file://{}/models/a b", place.path().display()).parse().unwrap();
    let remote = Remote::open(&location, false).unwrap();
    assert_eq!(sent(&at("model"), &remote).await.unwrap().sent, 4);
    assert_eq!(sent(&at("model"), &remote).await.unwrap().there, 4);
    assert!(at("models/a b").join(MANIFEST).is_file());
    fetched(&remote, &at("got"), Some(digest)).await.unwrap();
    same(&at("model"), &at("got"));
    fs::write(at("models/a b/config.json"), "[]").unwrap();
    assert!(matches!(fetched(&remote, &at("other"), None).await, Err(StoreError::Changed { .. })));
    // The damaged file is sent again.
    assert_eq!(sent(&at("model"), &remote).await.unwrap().sent, 1);
    fetched(&remote, &at("other"), None).await.unwrap();
}
