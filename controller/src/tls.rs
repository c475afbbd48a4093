//! The certificates of the report endpoint.
//!
//! The controller creates its own certificate authority on the first start and keeps it in a Secret. Every process issues
//! a new serving certificate and does not store it, so the certificate always names the host of `--report-url`.

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

use crate::{
    error::client_category,
    secrets::{get_or_create, secret, value},
};

/// The name of the Secret with the certificate authority.
pub const SECRET: &str = "codex-reports-tls";
const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";
const YEARS: i64 = 20;

/// Why no certificate can be issued.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A request to the API server failed.
    #[error("the Secret {SECRET} cannot be read or created: {0}")]
    Client(#[source] kube::Error),
    /// A key of the Secret is missing or invalid.
    #[error(
        "the Secret {SECRET} has no valid value under {0:?}: delete the Secret and restart the controller to recreate it"
    )]
    Secret(&'static str),
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
            Self::Client(source) => client_category(source),
            Self::Secret(_) => "secret",
            Self::Generate(_) | Self::Rejected(_) => "certificate",
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

/// Loads the certificate authority and issues a serving certificate. Creates the authority on the first start.
///
/// # Errors
/// See [`TlsError`].
pub async fn certificates(client: Client, namespace: &str, report_url: &str) -> Result<Certificates, TlsError> {
    let host = host(report_url)?;
    let api: Api<Secret> = Api::namespaced(client, namespace);
    let generate = || Ok(Authority::generate()?.to_secret());
    let secret = get_or_create(&api, SECRET, generate, TlsError::Client).await?;
    Authority::read(&secret)?.issue(&host, namespace)
}

impl Authority {
    fn generate() -> Result<Self, TlsError> {
        let key = KeyPair::generate().map_err(TlsError::Generate)?;
        let certificate = Self::params()?.self_signed(&key).map_err(TlsError::Generate)?.pem();
        Ok(Self { certificate, key })
    }

    fn to_secret(&self) -> Secret {
        let key = self.key.serialize_pem();
        secret(SECRET, "report-endpoint", [(CERTIFICATE, self.certificate.as_bytes()), (KEY, key.as_bytes())])
    }

    fn read(secret: &Secret) -> Result<Self, TlsError> {
        let text = |name: &'static str| {
            let bytes = value(secret, name).ok_or(TlsError::Secret(name))?;
            String::from_utf8(bytes.to_vec()).map_err(|_| TlsError::Secret(name))
        };
        let key = KeyPair::from_pem(&text(KEY)?).map_err(|_| TlsError::Secret(KEY))?;
        Ok(Self { certificate: text(CERTIFICATE)?, key })
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

/// Returns when a certificate in PEM expires.
fn expiry(pem: &str) -> Result<Timestamp, TlsError> {
    let unreadable = TlsError::Secret(CERTIFICATE);
    let Ok(certificate) = Certificate::from_pem(pem) else { return Err(unreadable) };
    let expires = certificate.tbs_certificate.validity.not_after.to_unix_duration();
    i64::try_from(expires.as_secs()).ok().and_then(|second| Timestamp::from_second(second).ok()).ok_or(unreadable)
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

    use super::{Authority, host};

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
            let issued = Authority::read(&secret).unwrap().issue(url_host, "codex-system").unwrap();
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
