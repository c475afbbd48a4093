//! The certificates of the report endpoint.
//!
//! The controller creates its own certificate authority on the first start, keeps it in a Secret, and replaces it before it expires.
//! Every process issues a new serving certificate and does not store it, so the certificate always names the host of `--report-url`.

use std::{net::IpAddr, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};

use x509_cert::{Certificate, der::DecodePem as _};

use tracing::warn;

use crate::{
    MANAGER,
    api::post_params,
    error::{answered, client_category, remedy},
    secrets::{MANAGED_BY, get_or_create, secret, value},
};

/// The name of the Secret with the certificate authority.
pub const SECRET: &str = "codex-reports-tls";
const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";
const YEARS: i64 = 20;
/// From when before its end a process that starts replaces the authority: twice as long as `CodexCertificateExpires` warns.
const REPLACED_BEFORE: SignedDuration = SignedDuration::from_hours(24 * 60);

/// Why no certificate can be issued.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A request to the API server failed.
    #[error("the Secret {SECRET} cannot be read or created: {0}{remedy}", remedy = remedy(.0))]
    Client(#[source] kube::Error),
    /// An entry of the Secret is missing or invalid.
    #[error("the Secret {SECRET} is damaged: {0:?} {1}")]
    Secret(&'static str, &'static str),
    /// The authority ends soon.
    #[error("the certificate authority in the Secret {SECRET} expires at {0}")]
    Ends(Timestamp),
    /// The Secret is damaged, and was made by somebody else.
    #[error(
        "{0}, and it is not the controller's own, because it lacks the label {MANAGED_BY}={MANAGER}: delete it, and it is created anew"
    )]
    Foreign(Box<TlsError>),
    /// The Secret is damaged and cannot be replaced.
    #[error("{0}, and it cannot be replaced: {1}{remedy}; deleting it helps, too", remedy = remedy(.1))]
    Kept(Box<TlsError>, #[source] kube::Error),
    /// A key or a certificate cannot be generated.
    #[error("the certificate of the report endpoint cannot be generated: {0}")]
    Generate(#[source] rcgen::Error),
    /// The TLS library rejects the certificate.
    #[error("the TLS library rejects the certificate of the report endpoint: {0}")]
    Rejected(#[source] rustls::Error),
    /// `--report-url` is not an https URL.
    #[error("--report-url: {0:?} is not an https URL; use https://HOST:PORT/v1/reports")]
    Url(String),
}

impl TlsError {
    /// Returns the category for metrics and logs.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Client(source) | Self::Kept(_, source) => client_category(source),
            Self::Secret(..) | Self::Foreign(_) => "secret",
            Self::Ends(_) | Self::Generate(_) | Self::Rejected(_) => "certificate",
            Self::Url(_) => "flag",
        }
    }
}

/// The certificates of the report endpoint.
pub struct Certificates {
    /// The TLS configuration of the endpoint, with its serving certificate.
    pub server: Arc<ServerConfig>,
    /// The certificate of the authority in PEM, which pods verify the endpoint with.
    pub authority: String,
    /// When the first of the two certificates expires.
    pub expires: Timestamp,
}

/// The certificate authority.
struct Authority {
    certificate: String,
    key: KeyPair,
}

/// Loads the certificate authority and issues a serving certificate. Creates the authority on the first start, and again if its Secret
/// is damaged, or it expires soon or has expired: pods trust the new one as soon as the kubelet has updated the file that they mount.
///
/// # Errors
/// See [`TlsError`].
pub async fn certificates(client: Client, namespace: &str, report_url: &str) -> Result<Certificates, TlsError> {
    certificates_at(client, namespace, report_url, Timestamp::now()).await
}

async fn certificates_at(
    client: Client,
    namespace: &str,
    report_url: &str,
    now: Timestamp,
) -> Result<Certificates, TlsError> {
    let host = host(report_url)?;
    let api: Api<Secret> = Api::namespaced(client, namespace);
    let generate = || Ok(Authority::generate()?.to_secret());
    let secret = get_or_create(&api, SECRET, generate, TlsError::Client).await?;
    let authority = match Authority::read(&secret, now) {
        Err(damage @ TlsError::Secret(..)) => renew(&api, secret, damage, now).await?,
        Ok(authority) if is_own(&secret) => authority.renewed(&api, secret, now).await?,
        read => read?,
    };
    authority.issue(&host, namespace)
}

/// Checks the URL of the report endpoint.
///
/// # Errors
/// If it is not an https URL with a host.
pub fn check_url(report_url: &str) -> Result<(), TlsError> {
    host(report_url).map(drop)
}

/// Whether the controller made the Secret.
fn is_own(secret: &Secret) -> bool {
    let labels = secret.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|manager| manager == MANAGER)
}

/// Replaces an authority that is damaged or ends by a new one. If another process does so first, its authority is returned.
async fn renew(api: &Api<Secret>, found: Secret, damage: TlsError, now: Timestamp) -> Result<Authority, TlsError> {
    if !is_own(&found) {
        return Err(TlsError::Foreign(Box::new(damage)));
    }
    let mut renewed = found;
    renewed.data.get_or_insert_default().extend(Authority::generate()?.to_secret().data.unwrap_or_default());
    let kept = match api.replace(SECRET, &post_params(), &renewed).await {
        Ok(secret) => {
            warn!("{damage}; it was replaced by a new certificate authority");
            secret
        }
        Err(failure) if answered(&failure, 409) => api.get(SECRET).await.map_err(TlsError::Client)?,
        Err(failure) => return Err(TlsError::Kept(Box::new(damage), failure)),
    };
    Authority::read(&kept, now)
}

impl Authority {
    fn generate() -> Result<Self, TlsError> {
        let key = KeyPair::generate().map_err(TlsError::Generate)?;
        let certificate = Self::params()?.self_signed(&key).map_err(TlsError::Generate)?.pem();
        Ok(Self { certificate, key })
    }

    /// Returns this authority, or a new one in its place if it ends soon. If it cannot be replaced, it stays in use until its end.
    async fn renewed(self, api: &Api<Secret>, found: Secret, now: Timestamp) -> Result<Self, TlsError> {
        let ends = expiry(&self.certificate)?;
        if ends > now + REPLACED_BEFORE {
            return Ok(self);
        }
        Ok(renew(api, found, TlsError::Ends(ends), now).await.unwrap_or_else(|failure| {
            warn!("{failure}");
            self
        }))
    }

    fn to_secret(&self) -> Secret {
        let key = self.key.serialize_pem();
        secret(SECRET, "report-endpoint", [(CERTIFICATE, self.certificate.as_bytes()), (KEY, key.as_bytes())])
    }

    /// Reads the authority. It must be valid at `now`, and its certificate that of its key.
    fn read(secret: &Secret, now: Timestamp) -> Result<Self, TlsError> {
        let text = |name: &'static str| {
            let bytes = value(secret, name).ok_or(TlsError::Secret(name, "is missing"))?;
            String::from_utf8(bytes.to_vec()).map_err(|_| TlsError::Secret(name, "is not UTF-8"))
        };
        let key = KeyPair::from_pem(&text(KEY)?).map_err(|_| TlsError::Secret(KEY, "is no private key in PEM"))?;
        let certificate = text(CERTIFICATE)?;
        let read = parsed(&certificate)?;
        if read.tbs_certificate.subject_public_key_info.subject_public_key.raw_bytes() != key.public_key_raw() {
            return Err(TlsError::Secret(CERTIFICATE, "is the certificate of another key"));
        }
        if expiry(&certificate)? <= now {
            return Err(TlsError::Secret(CERTIFICATE, "has expired"));
        }
        Ok(Self { certificate, key })
    }

    /// Returns the parameters of the authority. They are the same in every process, so that certificates issued from the
    /// key alone chain to the stored certificate.
    fn params() -> Result<CertificateParams, TlsError> {
        let mut params = params(Vec::new(), "codex report endpoint CA")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(params)
    }

    fn issue(self, host: &str, namespace: &str) -> Result<Certificates, TlsError> {
        let service = format!("codex-controller.{namespace}.svc");
        let mut names = vec![host.to_owned(), service.clone(), format!("{service}.cluster.local")];
        names.dedup();
        let key = KeyPair::generate().map_err(TlsError::Generate)?;
        let mut params = params(names, "codex-controller")?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::new(Self::params()?, self.key);
        let certificate = params.signed_by(&key, &issuer).map_err(TlsError::Generate)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Rejected)?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .map_err(TlsError::Rejected)?;
        let expires = expiry(&self.certificate)?.min(expiry(&certificate.pem())?);
        Ok(Certificates { server: Arc::new(server), authority: self.certificate, expires })
    }
}

fn params(names: Vec<String>, common_name: &str) -> Result<CertificateParams, TlsError> {
    let addresses: Vec<IpAddr> = names.iter().filter_map(|name| name.parse().ok()).collect();
    let names: Vec<String> = names.into_iter().filter(|name| name.parse::<IpAddr>().is_err()).collect();
    let mut params = CertificateParams::new(names).map_err(TlsError::Generate)?;
    params.subject_alt_names.extend(addresses.into_iter().map(SanType::IpAddress));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = Timestamp::now();
    // The clocks of nodes may differ slightly.
    let from = now - SignedDuration::from_hours(1);
    let until = now + SignedDuration::from_hours(24 * 365 * YEARS);
    let date = |time: Timestamp| {
        let date = time.to_zoned(jiff::tz::TimeZone::UTC).date();
        rcgen::date_time_ymd(i32::from(date.year()), date.month() as u8, date.day() as u8)
    };
    params.not_before = date(from);
    params.not_after = date(until);
    Ok(params)
}

fn unreadable() -> TlsError {
    TlsError::Secret(CERTIFICATE, "is no certificate in PEM")
}

fn parsed(pem: &str) -> Result<Certificate, TlsError> {
    Certificate::from_pem(pem).map_err(|_| unreadable())
}

/// Returns when a certificate in PEM expires.
fn expiry(pem: &str) -> Result<Timestamp, TlsError> {
    let expires = parsed(pem)?.tbs_certificate.validity.not_after.to_unix_duration();
    i64::try_from(expires.as_secs()).ok().and_then(|second| Timestamp::from_second(second).ok()).ok_or_else(unreadable)
}

/// Returns the host of an https URL.
fn host(url: &str) -> Result<String, TlsError> {
    let invalid = || TlsError::Url(url.to_owned());
    let parsed: axum::http::Uri = url.parse().map_err(|_| invalid())?;
    match (parsed.scheme_str(), parsed.host()) {
        (Some("https"), Some(host)) => Ok(host.trim_matches(['[', ']']).to_owned()),
        _ => Err(invalid()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier},
        pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    };

    use jiff::{SignedDuration, Timestamp};
    use k8s_openapi::{ByteString, api::core::v1::Secret};
    use kube::Api as KubeApi;
    use serde_json::json;

    use super::{
        Authority, CERTIFICATE, KEY, REPLACED_BEFORE, SECRET, TlsError, certificates, certificates_at, expiry, host,
    };
    use crate::tests::world::Api;

    const PATH: &str = "/api/v1/namespaces/codex-system/secrets/codex-reports-tls";
    const URL: &str = "https://codex-controller.codex-system.svc:8443/v1/reports";

    /// Returns the ways to damage the Secret of an authority, each with words of the message.
    fn damaged() -> Vec<(Secret, &'static str)> {
        let (good, other) = (Authority::generate().unwrap().to_secret(), Authority::generate().unwrap().to_secret());
        let with = |name: &str, value: Option<ByteString>| {
            let mut secret = good.clone();
            let data = secret.data.as_mut().unwrap();
            match value {
                Some(value) => drop(data.insert(name.to_owned(), value)),
                None => drop(data.remove(name)),
            }
            secret
        };
        let text = |text: &str| Some(ByteString(text.into()));
        vec![
            (with(KEY, None), "\"ca.key\" is missing"),
            (with(KEY, text("")), "\"ca.key\" is no private key"),
            (with(KEY, Some(ByteString(vec![0xff]))), "\"ca.key\" is not UTF-8"),
            (with(CERTIFICATE, None), "\"ca.crt\" is missing"),
            (with(CERTIFICATE, text("no certificate")), "\"ca.crt\" is no certificate"),
            (with(CERTIFICATE, other.data.unwrap().remove(CERTIFICATE)), "is the certificate of another key"),
        ]
    }

    #[test]
    fn damage_and_expiry_of_the_authority_are_named() {
        let now = Timestamp::now();
        for (secret, told) in damaged() {
            let failure = Authority::read(&secret, now).err().unwrap().to_string();
            assert!(
                failure.starts_with("the Secret codex-reports-tls is damaged") && failure.contains(told),
                "{failure}"
            );
        }
        let good = Authority::generate().unwrap().to_secret();
        let later = now + SignedDuration::from_hours(24 * 365 * 21);
        assert!(Authority::read(&good, later).err().unwrap().to_string().contains("has expired"));
    }

    #[tokio::test]
    async fn a_damaged_authority_of_the_controller_is_replaced() {
        for (secret, told) in damaged() {
            let api = Api::default();
            let mut object = serde_json::to_value(secret).unwrap();
            object["data"]["note"] = json!("eA==");
            api.put(PATH, object);
            let first = certificates(api.client(), "codex-system", URL).await.unwrap();
            let writes = api.requests().into_iter().filter(|line| !line.starts_with("GET")).collect::<Vec<_>>();
            assert_eq!(writes, [format!("PUT {PATH} as codex-controller")], "{told}");
            assert_eq!(api.object(PATH).unwrap()["data"]["note"], "eA==", "what else it holds stays");
            let second = certificates(api.client(), "codex-system", URL).await.unwrap();
            assert_eq!(second.authority, first.authority, "it is stored");
            assert_eq!(api.requests(), [format!("GET {PATH}")]);
        }
    }

    #[tokio::test]
    async fn a_damaged_secret_of_somebody_else_or_without_the_right_to_replace_it_stays() {
        let api = Api::default();
        let (mut secret, _) = damaged().remove(0);
        api.put(PATH, serde_json::to_value(&secret).unwrap());
        api.fail(&format!("PUT {PATH}"), Some(403));
        let failure = certificates(api.client(), "codex-system", URL).await.err().unwrap();
        let told = failure.to_string();
        assert!(
            matches!(failure, TlsError::Kept(..)) && told.contains("rbac.yaml") && told.contains("is missing"),
            "{told}"
        );
        api.fail(&format!("PUT {PATH}"), None);
        secret.metadata.labels = None;
        api.put(PATH, serde_json::to_value(&secret).unwrap());
        let told = certificates(api.client(), "codex-system", URL).await.err().unwrap().to_string();
        assert!(told.contains("is not the controller's own") && told.contains("delete it"), "{told}");
        let kept: Secret = KubeApi::namespaced(api.client(), "codex-system").get(SECRET).await.unwrap();
        assert_eq!(kept.data, secret.data);
    }

    /// No condition is needed for the certificates of the endpoint: a start renews both before they expire.
    #[tokio::test]
    async fn an_authority_is_replaced_before_it_expires() {
        let made = Authority::generate().unwrap();
        let mut secret = made.to_secret();
        let due = expiry(&made.certificate).unwrap() - REPLACED_BEFORE;
        let start = async |secret: &Secret, at: Timestamp, status: Option<u16>| {
            let api = Api::default();
            api.put(PATH, serde_json::to_value(secret).unwrap());
            api.fail(&format!("PUT {PATH}"), status);
            let loaded = certificates_at(api.client(), "codex-system", URL, at).await.unwrap();
            let stored: Secret = serde_json::from_value(api.object(PATH).unwrap()).unwrap();
            (loaded, stored)
        };
        let (early, stored) = start(&secret, due - SignedDuration::from_secs(1), None).await;
        assert!(early.authority == made.certificate && stored.data == secret.data);
        let (renewed, stored) = start(&secret, due, None).await;
        assert!(renewed.authority != made.certificate && renewed.expires > due);
        assert_eq!(Authority::read(&stored, due).unwrap().certificate, renewed.authority, "it is stored");

        // It is used to its end where it cannot be replaced, or is somebody else's.
        let (kept, stored) = start(&secret, due, Some(403)).await;
        assert!(kept.authority == made.certificate && stored.data == secret.data);
        secret.metadata.labels = None;
        let (foreign, stored) = start(&secret, due, None).await;
        assert!(foreign.authority == made.certificate && stored.data == secret.data);
    }

    /// Returns the serving certificate that a client receives.
    fn shown(config: &rustls::ServerConfig) -> CertificateDer<'static> {
        let mut server = rustls::ServerConnection::new(Arc::new(config.clone())).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let (sender, receiver) = std::sync::mpsc::channel();
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Tell(sender)))
            .with_no_client_auth();
        let name = ServerName::try_from("x").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(client), name).unwrap();
        for _ in 0..4 {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets().unwrap();
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets().unwrap();
        }
        receiver.recv().unwrap()
    }

    #[derive(Debug)]
    struct Tell(std::sync::mpsc::Sender<CertificateDer<'static>>);

    impl ServerCertVerifier for Tell {
        fn verify_server_cert(
            &self,
            certificate: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            self.0.send(certificate.clone().into_owned()).unwrap();
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
        }
    }

    #[test]
    fn a_certificate_issued_after_a_restart_chains_to_the_stored_authority() {
        let made = Authority::generate().unwrap();
        let secret = made.to_secret();
        for url_host in ["10.213.0.1", "fd00::1", "reports.example"] {
            let issued = Authority::read(&secret, Timestamp::now()).unwrap().issue(url_host, "codex-system").unwrap();
            assert_eq!(issued.authority, made.certificate);
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(issued.authority.as_bytes()).unwrap()).unwrap();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
            let certificate = shown(&issued.server);
            for name in
                [url_host, "codex-controller.codex-system.svc", "codex-controller.codex-system.svc.cluster.local"]
            {
                let name = ServerName::try_from(name).unwrap();
                verifier.verify_server_cert(&certificate, &[], &name, &[], UnixTime::now()).unwrap();
            }
            let foreign = ServerName::try_from("elsewhere.example").unwrap();
            assert!(verifier.verify_server_cert(&certificate, &[], &foreign, &[], UnixTime::now()).is_err());
        }
    }

    #[test]
    fn a_report_url_must_be_https_and_name_a_host() {
        assert_eq!(host("https://10.213.0.1:9443/v1/reports").unwrap(), "10.213.0.1");
        assert_eq!(host("https://[fd00::1]:9443/v1/reports").unwrap(), "fd00::1");
        for bad in ["http://a/v1/reports", "a", "", "https://"] {
            assert!(host(bad).unwrap_err().to_string().contains("https://HOST:PORT"), "{bad}");
        }
    }
}
