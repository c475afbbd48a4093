use std::{
    fs,
    path::{Path, PathBuf},
};

use codex_provenance::{ModelDigest, manifest::Manifest};
use serde_json::Value;

use super::{
    super::{Fetched, Pushed, Remote, StoreError, fetch, upload::PART},
    Credentials, fetch_bundles, push,
    server::{PASSWORD, Server},
};

/// The size of the weights: some parts, and a short one.
const WEIGHTS: usize = 3 * PART as usize + 77;
const BUNDLE: &str = r#"{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "dsseEnvelope": {"payload": "eyJwcmVkaWNhdGVUeXBlIjoiYSJ9"}}"#;

/// Writes a model with a signature inside, and returns its digest.
fn model(path: &Path) -> ModelDigest {
    fs::create_dir_all(path.join("tokenizer")).unwrap();
    fs::write(path.join("config.json"), r#"{"model_type": "llama", "torch_dtype": "bfloat16"}"#).unwrap();
    fs::write(path.join("tokenizer/größe 1.json"), "[]").unwrap();
    fs::write(path.join("empty"), "").unwrap();
    let weights: Vec<u8> = (0..WEIGHTS).map(|index| (index % 251) as u8).collect();
    fs::write(path.join("model.safetensors"), weights).unwrap();
    let digest = Manifest::of_dir(path).unwrap().digest();
    fs::write(path.join("model.sig"), BUNDLE).unwrap();
    digest
}

async fn sent(source: &Path, remote: &Remote, replace: bool, bundles: &[PathBuf]) -> Result<Pushed, StoreError> {
    push(source, remote.artifact.as_ref().unwrap(), None, replace, bundles, 2, &|| false).await
}

async fn fetched(remote: &Remote, to: &Path, digest: Option<ModelDigest>) -> Result<Fetched, StoreError> {
    fetch(remote, to, digest, 2, &|| false).await
}

fn same(one: &Path, other: &Path) {
    let of = |path| Manifest::of_dir(path).unwrap();
    assert_eq!(of(one), of(other));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_travels_through_a_registry_and_is_the_same() {
    let (place, server) = (tempfile::tempdir().unwrap(), Server::start());
    let at = |name: &str| place.path().join(name);
    let digest = model(&at("model"));
    let pushed = sent(&at("model"), &server.remote(":v1"), false, &[]).await.unwrap();
    assert_eq!((pushed.digest, pushed.sent, pushed.there), (digest, 5, 0));
    // Whoever sees the manifest sees everything.
    let requests = std::mem::take(&mut server.state().requests);
    let writes: Vec<_> = requests.iter().filter(|request| request.starts_with('P')).collect();
    let tagged = writes.iter().position(|request| request.ends_with("manifests/v1")).unwrap();
    assert!(writes[tagged..].iter().all(|request| !request.starts_with("PATCH")), "{writes:?}");
    let artifact = pushed.artifact.unwrap();
    let packed: Value = serde_json::from_slice(&server.state().manifests["v1"]).unwrap();
    assert_eq!(packed["artifactType"], "application/vnd.cncf.model.manifest.v1+json");
    assert_eq!(packed["config"]["mediaType"], "application/vnd.cncf.model.config.v1+json");
    assert_eq!(packed["annotations"]["codex-ml.dev/model-digest"], digest.to_string());
    let layers: Vec<(&str, &str)> = packed["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| {
            (layer["annotations"]["org.cncf.model.filepath"].as_str().unwrap(), layer["mediaType"].as_str().unwrap())
        })
        .collect();
    let kind = |name: &str| layers.iter().find(|(path, _)| *path == name).unwrap().1;
    assert_eq!(kind("model.safetensors"), "application/vnd.cncf.model.weight.v1.raw");
    assert_eq!(kind("config.json"), "application/vnd.cncf.model.weight.config.v1.raw");
    assert_eq!(kind("model.sig"), "application/vnd.cncf.model.doc.v1.raw");
    let config = &server.state().blobs[packed["config"]["digest"].as_str().unwrap()].clone();
    let config: Value = serde_json::from_slice(config).unwrap();
    assert_eq!(config["modelfs"]["diffIds"].as_array().unwrap().len(), 5);
    assert_eq!((&config["descriptor"]["family"], &config["config"]["precision"]), (&"llama".into(), &"bf16".into()));
    for (name, version) in [("tagged", ":v1".to_owned()), ("pinned", format!("@sha256:{artifact}"))] {
        let remote = server.remote(&version);
        let got = fetched(&remote, &at(name), Some(digest)).await.unwrap();
        assert_eq!(got, Fetched { digest, files: 5, bytes: pushed.bytes + BUNDLE.len() as u64, has_manifest: true });
        assert_eq!(remote.artifact.unwrap().digest(), Some(artifact));
        same(&at("model"), &at(name));
    }
    let again = sent(&at("model"), &server.remote(":v1"), false, &[]).await.unwrap();
    assert_eq!((again.sent, again.there, again.artifact), (0, 5, Some(artifact)));
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_connections_lose_nothing() {
    for (forgets, has_no_ranges) in [(false, false), (true, true)] {
        let (place, server) = (tempfile::tempdir().unwrap(), Server::start());
        let at = |name: &str| place.path().join(name);
        let digest = model(&at("model"));
        server.state().lost_parts = 2;
        server.state().forgets = forgets;
        sent(&at("model"), &server.remote(":v1"), false, &[]).await.unwrap();
        let whole = server.state().blobs.values().map(Vec::len).sum::<usize>();
        let moved = std::mem::take(&mut server.state().moved);
        assert_eq!(moved == whole, !forgets, "{moved} of {whole} bytes were sent");
        server.state().cuts = vec![0, 1, 40_000, 9000];
        server.state().has_no_ranges = has_no_ranges;
        fetched(&server.remote(":v1"), &at("got"), Some(digest)).await.unwrap();
        same(&at("model"), &at("got"));
        let files = WEIGHTS + 50 + 2 + BUNDLE.len();
        let moved = server.state().moved;
        assert!(
            server.state().cuts.is_empty() && (moved == files) != has_no_ranges,
            "{moved} of {files} bytes arrived"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bundles_refer_to_the_artifact() {
    for has_referrers in [true, false] {
        let (place, server) = (tempfile::tempdir().unwrap(), Server::start());
        let at = |name: &str| place.path().join(name);
        model(&at("model"));
        server.state().has_referrers = has_referrers;
        let other = at("promotion.sigstore.json");
        fs::write(&other, BUNDLE.replace("eyJ", "eyA")).unwrap();
        for _ in 0..2 {
            sent(&at("model"), &server.remote(":v1"), false, std::slice::from_ref(&other)).await.unwrap();
        }
        let remote = server.remote(":v1");
        let files = fetch_bundles(remote.artifact.as_ref().unwrap(), &at("bundles")).await.unwrap();
        let mut found: Vec<String> = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
        found.sort();
        let mut expected = [BUNDLE.to_owned(), fs::read_to_string(&other).unwrap()];
        expected.sort();
        assert_eq!(found, expected, "referrers {has_referrers}");
        let tags = server.state().manifests.keys().filter(|key| key.starts_with("sha256-")).count();
        assert_eq!(tags, usize::from(!has_referrers));
        fs::write(&other, "{}").unwrap();
        let told = sent(&at("model"), &server.remote(":v1"), false, &[other]).await.unwrap_err().to_string();
        assert!(told.contains("is no bundle"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_what_was_pushed_is_refused() {
    let (place, server) = (tempfile::tempdir().unwrap(), Server::start());
    let at = |name: &str| place.path().join(name);
    let digest = model(&at("model"));
    let told = fetched(&server.remote(":v1"), &at("got"), None).await.unwrap_err().to_string();
    assert!(told.contains("/team/model:v1 does not exist"), "{told}");
    let pushed = sent(&at("model"), &server.remote(":v1"), false, &[]).await.unwrap();
    let wrong: ModelDigest = "0".repeat(64).parse().unwrap();
    let told = fetched(&server.remote(":v1"), &at("got"), Some(wrong)).await.unwrap_err().to_string();
    assert!(told.contains(&digest.to_string()) && !at("got.partial").exists(), "{told}");
    // Another model needs --replace, and then moves the tag.
    fs::write(at("model/config.json"), r#"{"model_type": "other"}"#).unwrap();
    let told = sent(&at("model"), &server.remote(":v1"), false, &[]).await.unwrap_err().to_string();
    assert!(told.contains("holds another model"), "{told}");
    let replaced = sent(&at("model"), &server.remote(":v1"), true, &[]).await.unwrap();
    assert_eq!((replaced.sent, replaced.there), (1, 4));
    assert_ne!(replaced.artifact, pushed.artifact);
    // A registry that returns something else under a digest, or other bytes in a layer.
    let pinned = format!("@sha256:{}", replaced.artifact.unwrap());
    let reference = format!("sha256:{}", replaced.artifact.unwrap());
    let right = server.state().manifests[&reference].clone();
    let other = server.state().manifests[&format!("sha256:{}", pushed.artifact.unwrap())].clone();
    server.state().manifests.insert(reference.clone(), other);
    let told = fetched(&server.remote(&pinned), &at("got"), None).await.unwrap_err().to_string();
    assert!(told.contains("the registry returns another one"), "{told}");
    server.state().manifests.insert(reference, right.clone());
    for bytes in server.state().blobs.values_mut().filter(|bytes| bytes.len() == WEIGHTS) {
        bytes[5] ^= 1;
    }
    let told = fetched(&server.remote(&pinned), &at("got"), None).await.unwrap_err().to_string();
    assert!(told.contains("is not what its manifest says"), "{told}");
    for (from, to, expected) in [
        (".model.manifest.", ".other.manifest.", "it is a"),
        (".weight.v1.raw", ".weight.v1.tar", "archives are not unpacked"),
        ("org.cncf.model.filepath", "other", "has no annotation org.cncf.model.filepath"),
        (&replaced.digest.to_string(), &"0".repeat(64), "is not the digest of its files"),
        ("tokenizer/", "../tokenizer/", "is not a valid path"),
    ] {
        let mut text = String::from_utf8(right.clone()).unwrap().replace(from, to);
        if expected == "it is a" {
            text = text.replace("vnd.cncf.model.config.v1+json", "vnd.other.config.v1+json");
        }
        server.state().manifests.insert("v2".to_owned(), text.into_bytes());
        let told = fetched(&server.remote(":v2"), &at("got"), None).await.unwrap_err().to_string();
        assert!(told.contains(expected), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_what_is_missing_and_quote_no_request() {
    let (place, server) = (tempfile::tempdir().unwrap(), Server::start());
    let at = |name: &str| place.path().join(name);
    model(&at("model"));
    let told =
        fetched(&server.remote_of(":v1", Credentials::Anonymous), &at("got"), None).await.unwrap_err().to_string();
    assert!(told.contains("without credentials: set CODEX_REGISTRY_USERNAME"), "{told}");
    let wrong = Credentials::basic("me", "wrong-password").unwrap();
    let told = fetched(&server.remote_of(":v1", wrong), &at("got"), None).await.unwrap_err().to_string();
    assert!(told.contains("the credentials are wrong") && !told.contains("wrong-password"), "{told}");
    for (status, expected) in [(400, "(TESTED)"), (403, "do not permit this"), (500, "500")] {
        server.state().status = Some(status);
        let told = sent(&at("model"), &server.remote(":v1"), false, &[]).await.unwrap_err().to_string();
        assert!(told.contains(expected), "{told}");
        assert!(!told.contains("Bearer") && !told.contains(PASSWORD) && !told.contains("token"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaves_this_machine_in_clear_text() {
    let place = tempfile::tempdir().unwrap();
    let location: super::super::Location = "oci://registry.invalid/a:1".parse().unwrap();
    let connector = super::super::http::Connector::new(None).unwrap();
    let client = super::Client::new(&location, &connector, Credentials::Anonymous, false).unwrap();
    let url = url::Url::parse("http://registry.invalid/v2/").unwrap();
    let asked = super::client::Asked::default();
    let told = client.send(super::client::Action::Pull, http::Method::GET, &url, asked).await.unwrap_err().to_string();
    assert!(told.contains("has no TLS") && told.contains("--plain-http"), "{told}");
    drop(place);
}
