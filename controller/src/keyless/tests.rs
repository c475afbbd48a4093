//! The state of a signature with services that are away, and what is refused. With real services: `tests/keyless`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD};
use codex_provenance::Identity;
use codex_signing::services::{Service, ServiceError};
use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::api::core::v1::ConfigMap;
use rcgen::{
    CertificateParams, CustomExtension, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
    SignatureAlgorithm,
};
use serde_json::{Value, json};

use super::{Away, Http, KeylessError, KeylessSigner, Services, Settings, Unfinished, trusted_root};

const ROOT: &str = include_str!("../../../provenance/signing/tests/fixtures/keyless/trusted_root.json");
const BUNDLE: &str = include_str!("../../../provenance/signing/tests/fixtures/keyless/dsse.sigstore.json");
const ISSUER: &str = "https://kubernetes.default.svc";
const ACCOUNT: &str = "https://kubernetes.io/namespaces/codex-system/serviceaccounts/codex-controller";
const STATEMENT: &[u8] =
    br#"{"_type": "https://in-toto.io/Statement/v1", "predicateType": "x", "predicate": {}, "subject": [
    {"name": "a", "digest": {"sha256": "0000000000000000000000000000000000000000000000000000000000000000"}}]}"#;

/// Services that issue certificates of an authority that nobody trusts. Their log answers with an entry of another log.
struct StandIn {
    asked: Mutex<Vec<Service>>,
    away: Mutex<BTreeSet<Service>>,
    subject: &'static str,
}

impl StandIn {
    fn new(subject: &'static str) -> Arc<Self> {
        Arc::new(Self { asked: Mutex::default(), away: Mutex::default(), subject })
    }

    fn away(&self, services: &[Service]) {
        *self.away.lock().unwrap() = services.iter().copied().collect();
    }

    /// What was asked since the last call.
    fn asked(&self) -> Vec<Service> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn certificate(&self, request: &[u8]) -> Vec<u8> {
        let request: Value = serde_json::from_slice(request).unwrap();
        let pem = request["publicKeyRequest"]["publicKey"]["content"].as_str().unwrap();
        let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let der = STANDARD.decode(base64).unwrap();
        let authority = Issuer::new(CertificateParams::new(Vec::new()).unwrap(), KeyPair::generate().unwrap());
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = vec![SanType::URI(self.subject.try_into().unwrap())];
        let text = [&[0x0c, u8::try_from(ISSUER.len()).unwrap()], ISSUER.as_bytes()].concat();
        params.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 57264, 1, 8], text)];
        let certificate = params.signed_by(&Point(der[der.len() - 65..].to_vec()), &authority).unwrap();
        json!({"signedCertificateEmbeddedSct": {"chain": {"certificates": [certificate.pem()]}}})
            .to_string()
            .into_bytes()
    }
}

/// A public key on P-256, uncompressed.
struct Point(Vec<u8>);

impl PublicKeyData for Point {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl Services for Arc<StandIn> {
    fn ask(&self, service: Service, body: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, Away>> {
        self.asked.lock().unwrap().push(service);
        let url = "https://service".to_owned();
        let answer = if self.away.lock().unwrap().contains(&service) {
            Err(Away::Silent { service, url, why: "refused".to_owned() })
        } else {
            let recorded: Value = serde_json::from_str(BUNDLE).unwrap();
            Ok(match service {
                Service::Fulcio => self.certificate(&body),
                Service::Timestamp => vec![0x30, 0x00],
                Service::Rekor => recorded["verificationMaterial"]["tlogEntries"][0].to_string().into_bytes(),
            })
        };
        std::future::ready(answer).boxed()
    }
}

fn settings(url: &str) -> Settings {
    let service = |version: u32| json!([{"url": url, "majorApiVersion": version, "validFor": {"start": "2020-01-01T00:00:00Z"}, "operator": "o"}]);
    let signing = json!({
        "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
        "caUrls": service(1), "rekorTlogUrls": service(2), "tsaUrls": service(1),
        "rekorTlogConfig": {"selector": "ANY"}, "tsaConfig": {"selector": "ANY"},
    });
    let data = [
        ("signing_config.json", signing.to_string()),
        ("trusted_root.json", ROOT.to_owned()),
        ("allowHTTP", "true".to_owned()),
    ];
    let data = data.into_iter().map(|(name, text)| (name.to_owned(), text)).collect();
    let found = ConfigMap { data: Some(data), ..ConfigMap::default() };
    let root = trusted_root(Some(&found)).unwrap().map(|(root, _)| root);
    Settings::read(Some(&found), root).unwrap()
}

/// Writes the token of the controller's service account.
pub(crate) fn token(folder: &Path, audience: &str) -> PathBuf {
    let claims = json!({
        "iss": ISSUER, "sub": "system:serviceaccount:codex-system:codex-controller", "aud": [audience],
        "kubernetes.io": {"namespace": "codex-system", "serviceaccount": {"name": "codex-controller"}},
    });
    let path = folder.join("token");
    std::fs::write(&path, format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))).unwrap();
    path
}

async fn signer(folder: &Path, services: Box<dyn Services>) -> KeylessSigner {
    let token = token(folder, "sigstore");
    KeylessSigner::new(token, settings("https://service"), services, Arc::new(Unfinished::default())).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_away_costs_nothing_twice() {
    use Service::{Fulcio, Rekor, Timestamp};

    let folder = tempfile::tempdir().unwrap();
    let services = StandIn::new(ACCOUNT);
    let signer = signer(folder.path(), Box::new(Arc::clone(&services))).await;
    assert_eq!(signer.identity(), &Identity { issuer: ISSUER.to_owned(), subject: ACCOUNT.to_owned() });
    services.away(&[Timestamp]);
    let told = signer.sign(STATEMENT).await.unwrap_err();
    assert!(
        told.waits() && told.to_string().contains("the timestamp authority at https://service does not answer"),
        "{told}"
    );
    assert_eq!(services.asked(), [Fulcio, Timestamp]);
    // Other objects do not ask at once, and are told the same.
    assert_eq!(signer.sign(b"{}").await.unwrap_err().to_string(), told.to_string());
    assert_eq!(services.asked(), []);
    tokio::time::advance(Duration::from_secs(6)).await;
    services.away(&[Rekor]);
    assert!(signer.sign(STATEMENT).await.unwrap_err().waits());
    assert_eq!(services.asked(), [Timestamp, Rekor], "the certificate is still there");
    tokio::time::advance(Duration::from_secs(6)).await;
    services.away(&[]);
    let told = signer.sign(STATEMENT).await.unwrap_err();
    assert!(matches!(told, KeylessError::Root(_)) && !told.waits(), "{told}");
    assert!(told.to_string().contains("let trusted_root.json in the ConfigMap codex-sigstore name"), "{told}");
    assert_eq!(services.asked(), [Rekor], "so is the timestamp");
    // What the root refuses is not made again at once: each one is an entry in the log.
    assert!(matches!(signer.sign(STATEMENT).await, Err(KeylessError::Root(_))));
    assert_eq!(services.asked(), []);
    tokio::time::advance(Duration::from_mins(61)).await;
    assert!(signer.sign(STATEMENT).await.is_err());
    assert_eq!(services.asked(), [Fulcio, Timestamp, Rekor]);
}

#[tokio::test]
async fn a_certificate_for_another_account_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let services = StandIn::new("https://kubernetes.io/namespaces/other/serviceaccounts/codex-controller");
    let signer = signer(folder.path(), Box::new(Arc::clone(&services))).await;
    let told = signer.sign(STATEMENT).await.unwrap_err();
    assert!(matches!(told, KeylessError::Service(ServiceError::Identity { .. })) && !told.waits(), "{told}");
    assert_eq!(services.asked(), [Service::Fulcio], "nothing is logged");
}

#[tokio::test]
async fn a_token_that_is_missing_or_for_others_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let refused = async |token: PathBuf| {
        let services: Box<dyn Services> = Box::new(StandIn::new(ACCOUNT));
        KeylessSigner::new(token, settings("https://service"), services, Arc::default()).await.err().unwrap()
    };
    let told = refused(folder.path().join("missing")).await;
    assert!(told.contains("cannot be read") && told.contains("manifests/overlays/keyless"), "{told}");
    let told = refused(token(folder.path(), "vault")).await;
    assert!(told.contains("its audience is vault, not sigstore"), "{told}");
}

#[tokio::test]
async fn statuses_and_silence_are_told_apart() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let http = Http::new(&settings(&url)).unwrap();
    let serving = tokio::spawn(async move {
        for status in ["503 Service Unavailable", "401 Unauthorized", "201 Created"] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 4096];
            let read = stream.read(&mut head).await.unwrap();
            let head = String::from_utf8_lossy(&head[..read]).into_owned();
            assert!(
                head.starts_with("POST /api/v2/signingCert HTTP/1.1") && head.contains("application/json"),
                "{head}"
            );
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let ask = || http.ask(Service::Fulcio, b"{}".to_vec());
    let told = ask().await.unwrap_err();
    assert!(matches!(told, Away::Refused { status: 503, .. }) && told.waits(), "{told}");
    let told = ask().await.unwrap_err();
    assert!(matches!(told, Away::Refused { status: 401, .. }) && !told.waits(), "{told}");
    assert!(told.to_string().ends_with("answered with status 401: no"), "{told}");
    assert_eq!(ask().await.unwrap(), b"no");
    serving.await.unwrap();
    let told = ask().await.unwrap_err();
    assert!(matches!(told, Away::Silent { .. }) && told.waits(), "{told}");
}
