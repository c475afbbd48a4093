//! The certificate of a server, read again when its files change. Does I/O.

use std::{
    fmt, fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use codex_provenance::Sha256;
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

/// The most bytes of a file.
const MAX_BYTES: u64 = 1 << 20;

/// The files of a certificate.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// The certificate and those that lead to its authority, in PEM.
    pub(super) certificate: PathBuf,
    /// The private key, in PEM.
    pub(super) key: PathBuf,
}

/// A reason why a server has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{flag} {path:?} cannot be read")]
    Unreadable {
        /// The argument that names it.
        flag: &'static str,
        /// Its path.
        path: PathBuf,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// A file does not contain what it should.
    #[error("{flag} {path:?} contains no {what}: write {right}")]
    Missing {
        /// The argument that names it.
        flag: &'static str,
        /// Its path.
        path: PathBuf,
        /// What it should contain.
        what: &'static str,
        /// What is right.
        right: &'static str,
    },
    /// The certificate and the key cannot be used together.
    #[error("--tls-certificate {certificate:?} cannot be used with --tls-key {key:?}")]
    Rejected {
        /// The path of the certificate.
        certificate: PathBuf,
        /// The path of the key.
        key: PathBuf,
        /// The error of the TLS library.
        #[source]
        source: rustls::Error,
    },
}

/// A certificate that connections use, until its files change.
pub(super) struct Certificate {
    settings: Settings,
    provider: Arc<CryptoProvider>,
    current: RwLock<Arc<CertifiedKey>>,
    /// The digest of the files that were read last, valid or not.
    seen: Mutex<Sha256>,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    /// A file cannot be read or is invalid, or the certificate is that of another key.
    pub(super) fn new(settings: Settings) -> Result<Arc<Self>, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let files = Files::read(&settings)?;
        let current = RwLock::new(Arc::new(files.certified(&settings, &provider)?));
        let seen = Mutex::new(files.digest());
        Ok(Arc::new(Self { settings, provider, current, seen }))
    }

    /// Reads the files again if they changed. A certificate that cannot be used is logged, and the one before stays in use.
    ///
    /// # Errors
    /// One sentence: a file cannot be read, or the new certificate is refused.
    pub(super) fn reload(&self) -> Result<(), String> {
        let files = Files::read(&self.settings).map_err(|error| {
            // A volume that is being replaced; the next time tells.
            let told = crate::error::chain(&error);
            tracing::debug!(error = told, "the certificate was not read");
            told
        })?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let digest = files.digest();
        if *seen == digest {
            return Ok(());
        }
        *seen = digest;
        let certified = files.certified(&self.settings, &self.provider).map_err(|error| {
            let told = crate::error::chain(&error);
            tracing::error!(error = told, "the new certificate is refused; the old one stays in use");
            told
        })?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certified);
        tracing::info!("new connections use the new certificate");
        Ok(())
    }

    /// Returns the settings of a server that shows this certificate.
    ///
    /// # Errors
    /// The TLS library refuses its own defaults.
    pub(super) fn config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, TlsError> {
        let config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(|source| self.settings.rejected(source))?;
        let mut config =
            config.with_no_client_auth().with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn current(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl Settings {
    fn rejected(&self, source: rustls::Error) -> TlsError {
        TlsError::Rejected { certificate: self.certificate.clone(), key: self.key.clone(), source }
    }
}

/// The bytes of both files.
struct Files {
    certificate: Vec<u8>,
    key: zeroize::Zeroizing<Vec<u8>>,
}

impl Files {
    fn read(settings: &Settings) -> Result<Self, TlsError> {
        let read = |flag, path: &Path| {
            bounded(path).map_err(|source| TlsError::Unreadable { flag, path: path.to_owned(), source })
        };
        let certificate = read("--tls-certificate", &settings.certificate)?;
        Ok(Self { certificate, key: read("--tls-key", &settings.key)?.into() })
    }

    fn digest(&self) -> Sha256 {
        Sha256::of(format!("{}\n{}", Sha256::of(&self.certificate), Sha256::of(&*self.key)))
    }

    /// Returns the certificates with the key.
    fn certified(&self, settings: &Settings, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
        let lacks = |flag, path: &Path, what, right| TlsError::Missing { flag, path: path.to_owned(), what, right };
        let chain: Result<Vec<CertificateDer<'static>>, _> =
            CertificateDer::pem_slice_iter(&self.certificate).collect();
        let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(|| {
            let right =
                "the server's certificate first, then those that signed it, as the key tls.crt of a Secret has them";
            lacks("--tls-certificate", &settings.certificate, "certificates in PEM", right)
        })?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| {
            let right = "a key in PKCS #8, PKCS #1 or SEC 1 form, as the key tls.key of a Secret has it";
            lacks("--tls-key", &settings.key, "private key in PEM", right)
        })?;
        CertifiedKey::from_der(chain, key, provider).map_err(|source| settings.rejected(source))
    }
}

/// Reads a file that is not large.
fn bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            let folder = Self(tempfile::tempdir().unwrap());
            folder.issue();
            folder
        }

        fn settings(&self) -> Settings {
            Settings { certificate: self.0.path().join("tls.crt"), key: self.0.path().join("tls.key") }
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.0.path().join(name), text).unwrap();
        }

        /// Writes a new certificate with its key and returns it.
        fn issue(&self) -> Vec<u8> {
            let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            self.write("tls.crt", &made.cert.pem());
            self.write("tls.key", &made.signing_key.serialize_pem());
            made.cert.der().to_vec()
        }
    }

    fn shown(certificate: &Certificate) -> Vec<u8> {
        certificate.current().cert[0].to_vec()
    }

    #[test]
    fn a_new_certificate_is_used_and_an_invalid_one_is_not() {
        let folder = Folder::new();
        let first = folder.issue();
        let certificate = Certificate::new(folder.settings()).unwrap();
        certificate.reload().unwrap();
        assert_eq!(shown(&certificate), first);
        let second = folder.issue();
        certificate.reload().unwrap();
        assert_eq!(shown(&certificate), second);
        let key = fs::read_to_string(folder.settings().key).unwrap();
        folder.write("tls.key", "no key");
        let refused = certificate.reload().unwrap_err();
        assert!(refused.contains("tls.key") && !refused.contains("no key"), "{refused}");
        assert_eq!(shown(&certificate), second);
        fs::remove_file(folder.settings().key).unwrap();
        certificate.reload().unwrap_err();
        assert_eq!(shown(&certificate), second);
        // The key is that of another certificate until both are there.
        folder.issue();
        folder.write("tls.key", &key);
        certificate.reload().unwrap_err();
        // The same files are refused once.
        certificate.reload().unwrap();
        assert_eq!(shown(&certificate), second);
        let last = folder.issue();
        certificate.reload().unwrap();
        assert_eq!(shown(&certificate), last);
        assert_eq!(certificate.config().unwrap().alpn_protocols, [b"http/1.1".to_vec()]);
    }

    #[test]
    fn refusals_name_the_argument_and_quote_no_file() {
        for (name, text, told) in [
            ("tls.crt", Some("secret words"), "contains no certificates in PEM: write the server's certificate first"),
            ("tls.key", Some("secret words"), "contains no private key in PEM: write a key in PKCS #8"),
            ("tls.crt", None, "cannot be read"),
            ("tls.key", None, "cannot be read"),
        ] {
            let folder = Folder::new();
            match text {
                Some(text) => folder.write(name, text),
                None => fs::remove_file(folder.0.path().join(name)).unwrap(),
            }
            let refused = chain(&Certificate::new(folder.settings()).unwrap_err());
            let flag = if name == "tls.crt" { "--tls-certificate" } else { "--tls-key" };
            assert!(refused.starts_with(flag) && refused.contains(told), "{refused}");
            assert!(!refused.contains("secret"), "{refused}");
        }
        let (folder, other) = (Folder::new(), Folder::new());
        fs::copy(other.settings().key, folder.settings().key).unwrap();
        let refused = chain(&Certificate::new(folder.settings()).unwrap_err());
        assert!(refused.contains("cannot be used with --tls-key"), "{refused}");
        let large = Folder::new();
        large.write("tls.crt", &"a".repeat(MAX_BYTES as usize + 1));
        let refused = chain(&Certificate::new(large.settings()).unwrap_err());
        assert!(refused.contains("it has more than 1048576 bytes"), "{refused}");
    }
}
