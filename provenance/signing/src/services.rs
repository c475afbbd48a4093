//! Signing without a key of one's own: what is asked of a certificate authority (Fulcio), a timestamp authority (RFC 3161) and a
//! transparency log (Rekor), and how their answers become a Sigstore bundle. Pure, except for the randomness of keys and
//! signatures: the caller sends the requests.
//!
//! `sigstore-sign` does the same with a client of its own. It is a peer in tests (`tests/keyless/peer.rs`) and not used here:
//!
//! - `Signer::sign_raw_statement` (`src/sign.rs` of version 0.15.1) makes the key, asks Fulcio, Rekor and the timestamp authority, and keeps
//!   nothing in between; its steps are private. Every retry takes another certificate, and writes another entry to the log if Rekor
//!   answered and the timestamp authority did not, because it asks the log first. An entry without a bundle is what `codex log-watch` reports.
//! - Its client is `reqwest`, with HTTP/2 and the `OAuth` flow of `sigstore-oidc`, in all features: more than a hundred crates, which
//!   would add to both images through the features that crates of a workspace share.
//!
//! The requests and answers are the types of `sigstore-rekor` and `sigstore-types`, which the verifier brings anyway.
//!
//! The log comes last, because nothing is ever removed from it.

use codex_provenance::{Identity, text::Printable};
use jiff::Timestamp;
use serde_json::{Value, json};
use sigstore_verify::{
    bundle::BundleV03,
    crypto::{KeyPair, parse_certificate_info},
    rekor::{DsseEntry, HashedRekordV2, LogEntry, RekorV2KeyDetails},
    types::{
        Bundle, DerCertificate, DsseEnvelope, DsseSignature, KeyId, KindVersion, PayloadBytes, Sha256Hash,
        SignatureBytes, TimestampToken, TransparencyLogEntry,
    },
};

use crate::{
    dsse::{IN_TOTO, pre_authentication},
    stamp,
    token::Token,
};

/// Reasons why a signature cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The key of the signature cannot be made or does not sign.
    #[error("the key of this signature cannot be made: {0}")]
    Key(String),
    /// A service gave an answer that cannot be used.
    #[error("{service} gave an answer that cannot be used: {}", Printable(why))]
    Answer {
        /// What was asked.
        service: Service,
        /// Why.
        why: String,
    },
    /// The certificate names somebody else.
    #[error("Fulcio issued a certificate for {found}, but the token is that of {expected}")]
    Identity {
        /// The identity in the certificate.
        found: Identity,
        /// The identity of the token.
        expected: Identity,
    },
    /// The request for a timestamp cannot be encoded.
    #[error("the request for a timestamp cannot be encoded: {0}")]
    Stamp(String),
    /// The bundle cannot be written.
    #[error("the bundle cannot be serialized: {0}")]
    Bundle(String),
}

/// A service that takes part in a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// The certificate authority.
    Fulcio,
    /// The timestamp authority.
    Timestamp,
    /// The transparency log.
    Rekor,
}

impl std::fmt::Display for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fulcio => "Fulcio",
            Self::Timestamp => "the timestamp authority",
            Self::Rekor => "Rekor",
        })
    }
}

/// The version of a log's API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogVersion {
    /// Entries of the kind `dsse` with a signed time.
    V1,
    /// Entries of the kind `hashedrekord` without one: a timestamp is needed beside them.
    V2,
}

/// A key that signs once, before it has a certificate.
pub struct Ephemeral {
    pair: KeyPair,
}

impl Ephemeral {
    /// Makes a key.
    ///
    /// # Errors
    /// Fails if there is no randomness.
    pub fn generate() -> Result<Self, ServiceError> {
        let pair = KeyPair::generate_ecdsa_p256().map_err(|why| ServiceError::Key(why.to_string()))?;
        Ok(Self { pair })
    }

    /// Returns the body of a request to Fulcio's `/api/v2/signingCert`, in JSON. It holds the token.
    ///
    /// # Errors
    /// Fails if the key does not sign.
    pub fn certificate_request(&self, token: &Token) -> Result<Vec<u8>, ServiceError> {
        let failed = |why: sigstore_verify::crypto::Error| ServiceError::Key(why.to_string());
        let proof = self.pair.sign(token.subject().as_bytes()).map_err(failed)?;
        let public = self.pair.public_key_der().map_err(failed)?.to_pem();
        let request = json!({
            "credentials": { "oidcIdentityToken": token.text() },
            "publicKeyRequest": {
                "publicKey": { "algorithm": "ECDSA", "content": public },
                "proofOfPossession": proof,
            },
        });
        Ok(request.to_string().into_bytes())
    }

    /// Takes the certificate from Fulcio's answer, and signs an in-toto statement.
    ///
    /// # Errors
    /// If the answer has no certificate, or one for another key or another identity than the token's.
    pub fn sign(self, answer: &[u8], token: &Token, payload: &[u8]) -> Result<Draft, ServiceError> {
        let refused = |why: String| ServiceError::Answer { service: Service::Fulcio, why };
        let answer: Value = serde_json::from_slice(answer).map_err(|why| refused(why.to_string()))?;
        let chains = ["signedCertificateEmbeddedSct", "signedCertificateDetachedSct"];
        let first = chains.iter().find_map(|kind| answer[kind].pointer("/chain/certificates/0")?.as_str());
        let pem = first.ok_or_else(|| refused("it has no certificate".to_owned()))?;
        let certificate = DerCertificate::from_pem(pem).map_err(|why| refused(why.to_string()))?;
        let info = parse_certificate_info(&certificate).map_err(|why| refused(why.to_string()))?;
        let own = self.pair.public_key_der().map_err(|why| ServiceError::Key(why.to_string()))?;
        if info.public_key != own {
            return Err(refused("its certificate is for another key".to_owned()));
        }
        let found = Identity {
            issuer: info.issuer.unwrap_or_default(),
            subject: info.identity.map(|name| name.as_str().to_owned()).unwrap_or_default(),
        };
        if found != *token.identity() {
            return Err(ServiceError::Identity { found, expected: token.identity().clone() });
        }
        let encoded = pre_authentication(payload);
        let signature = self.pair.sign(&encoded).map_err(|why| ServiceError::Key(why.to_string()))?;
        let envelope = DsseEnvelope::new(
            IN_TOTO,
            PayloadBytes::new(payload.to_vec()),
            DsseSignature::new(signature.clone(), KeyId::default()),
        );
        let digest = sigstore_verify::crypto::sha256(&encoded);
        Ok(Draft { certificate, ends: info.not_after, envelope, digest, signature, stamp: None, entry: None })
    }
}

/// A signature with its certificate, to which a timestamp and the entry of a log are added.
pub struct Draft {
    certificate: DerCertificate,
    ends: Timestamp,
    envelope: DsseEnvelope,
    /// SHA-256 of the bytes that are signed.
    digest: Sha256Hash,
    signature: SignatureBytes,
    stamp: Option<TimestampToken>,
    entry: Option<TransparencyLogEntry>,
}

impl Draft {
    /// Returns when the certificate ends. A timestamp must be made before that.
    pub fn ends(&self) -> Timestamp {
        self.ends
    }

    /// Whether it has a timestamp.
    pub fn is_stamped(&self) -> bool {
        self.stamp.is_some()
    }

    /// Whether it has the entry of a log.
    pub fn is_logged(&self) -> bool {
        self.entry.is_some()
    }

    /// Returns the body of a request to a timestamp authority, in DER.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub fn stamp_request(&self) -> Result<Vec<u8>, ServiceError> {
        stamp::request(self.signature.as_bytes()).map_err(|why| ServiceError::Stamp(why.to_string()))
    }

    /// Takes the answer of a timestamp authority. The finished bundle shows whether it is right.
    ///
    /// # Errors
    /// If it is empty.
    pub fn stamped(&mut self, answer: Vec<u8>) -> Result<(), ServiceError> {
        if answer.is_empty() {
            return Err(ServiceError::Answer { service: Service::Timestamp, why: "it is empty".to_owned() });
        }
        self.stamp = Some(TimestampToken::new(answer));
        Ok(())
    }

    /// Returns the body of a request to a log, in JSON.
    ///
    /// # Errors
    /// If the envelope cannot be serialized.
    pub fn log_request(&self, version: LogVersion) -> Result<Vec<u8>, ServiceError> {
        let failed = |why: &dyn std::fmt::Display| ServiceError::Bundle(why.to_string());
        match version {
            LogVersion::V1 => {
                let entry = DsseEntry::new(&self.envelope, &self.certificate).map_err(|why| failed(&why))?;
                serde_json::to_vec(&entry).map_err(|why| failed(&why))
            }
            LogVersion::V2 => {
                let details = RekorV2KeyDetails::PkixEcdsaP256Sha256;
                let entry =
                    HashedRekordV2::new_with_certificate(&self.digest, &self.signature, &self.certificate, details);
                serde_json::to_vec(&entry).map_err(|why| failed(&why))
            }
        }
    }

    /// Takes the answer of a log. The finished bundle shows whether it is right.
    ///
    /// # Errors
    /// If it is not the entry of a log.
    pub fn logged(&mut self, answer: &[u8], version: LogVersion) -> Result<(), ServiceError> {
        let refused =
            |why: &dyn std::fmt::Display| ServiceError::Answer { service: Service::Rekor, why: why.to_string() };
        self.entry = Some(match version {
            LogVersion::V1 => {
                let mut entries: std::collections::BTreeMap<String, LogEntry> =
                    serde_json::from_slice(answer).map_err(|why| refused(&why))?;
                let (Some((_, entry)), true) = (entries.pop_first(), entries.is_empty()) else {
                    return Err(refused(&"it does not have exactly one entry"));
                };
                entry.to_bundle_entry(KindVersion::DsseV001).map_err(|why| refused(&why))?
            }
            LogVersion::V2 => serde_json::from_slice(answer).map_err(|why| refused(&why))?,
        });
        Ok(())
    }

    /// Returns the bundle, in JSON. Verify it before it is used: a service may have answered with something else.
    ///
    /// # Errors
    /// If it has no entry of a log, or cannot be serialized.
    pub fn bundle(&self) -> Result<Vec<u8>, ServiceError> {
        let Some(entry) = &self.entry else { return Err(ServiceError::Bundle("it has no log entry".to_owned())) };
        let bundle = BundleV03::with_certificate_and_dsse(self.certificate.clone(), self.envelope.clone())
            .with_tlog_entry(entry.clone());
        let bundle = match &self.stamp {
            Some(stamp) => bundle.with_rfc3161_timestamp(stamp.clone()),
            None => bundle,
        };
        let bundle: Bundle = bundle.into_bundle();
        bundle.to_json().map(String::into_bytes).map_err(|why| ServiceError::Bundle(why.to_string()))
    }
}

/// The services of a Sigstore instance, from its signing configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// Where certificates are requested.
    pub fulcio: String,
    /// Where timestamps are requested; `None` if the log signs a time itself.
    pub timestamp: Option<String>,
    /// Where entries of the log are written.
    pub rekor: String,
    /// The version of the log's API.
    pub version: LogVersion,
}

/// Reasons why a signing configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointsError {
    /// The text is not one.
    #[error("it is not a signing configuration of Sigstore in version 0.2: {}", Printable(.0))]
    Shape(String),
    /// A service is missing.
    #[error("{0} names no service that is valid now")]
    Lacks(&'static str),
    /// A URL is not one.
    #[error("{field}: {} is no URL of a service: write one such as https://fulcio.example.com", Printable(url))]
    Url {
        /// The field.
        field: &'static str,
        /// The URL.
        url: String,
    },
    /// A URL is not encrypted.
    #[error("{field}: {} is not encrypted, and the token would be readable on the way: use https", Printable(url))]
    Plain {
        /// The field.
        field: &'static str,
        /// The URL.
        url: String,
    },
}

impl Endpoints {
    /// Reads a signing configuration in JSON, as `cosign signing-config create` writes it: the first service of each kind that is
    /// valid now, and of the logs one with the highest version. With `plain`, URLs need no encryption.
    ///
    /// # Errors
    /// The first fault.
    pub fn from_json(text: &str, plain: bool) -> Result<Self, EndpointsError> {
        let config = sigstore_verify::trust_root::SigningConfig::from_json(text)
            .map_err(|why| EndpointsError::Shape(why.to_string()))?;
        let check = |field, url: &str| {
            let url = url.trim_end_matches('/').to_owned();
            match url.split_once("://") {
                Some(("https", rest)) if !rest.is_empty() => Ok(url),
                Some(("http", rest)) if !rest.is_empty() && plain => Ok(url),
                Some(("http", rest)) if !rest.is_empty() => Err(EndpointsError::Plain { field, url }),
                _ => Err(EndpointsError::Url { field, url }),
            }
        };
        let fulcio = config.fulcio_url().ok_or(EndpointsError::Lacks("caUrls"))?;
        let rekor = config.rekor_url(None).ok_or(EndpointsError::Lacks("rekorTlogUrls"))?;
        let version = if rekor.major_api_version == 1 { LogVersion::V1 } else { LogVersion::V2 };
        let timestamp = config.tsa_url().map(|it| check("tsaUrls", &it.url)).transpose()?;
        if timestamp.is_none() && version == LogVersion::V2 {
            return Err(EndpointsError::Lacks("tsaUrls"));
        }
        let log = match version {
            LogVersion::V1 => "/api/v1/log/entries",
            LogVersion::V2 => "/api/v2/log/entries",
        };
        Ok(Self {
            fulcio: format!("{}/api/v2/signingCert", check("caUrls", &fulcio.url)?),
            timestamp,
            rekor: format!("{}{log}", check("rekorTlogUrls", &rekor.url)?),
            version,
        })
    }

    /// Returns the URL of a service.
    pub fn url(&self, service: Service) -> Option<&str> {
        match service {
            Service::Fulcio => Some(&self.fulcio),
            Service::Timestamp => self.timestamp.as_deref(),
            Service::Rekor => Some(&self.rekor),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Endpoints, EndpointsError, LogVersion};

    fn config() -> Value {
        let service = |url: &str, version: u32| {
            let valid = json!({"start": "2020-01-01T00:00:00Z"});
            json!([{"url": url, "majorApiVersion": version, "validFor": valid, "operator": "o"}])
        };
        json!({
            "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            "caUrls": service("https://fulcio.example.com/", 1),
            "rekorTlogUrls": service("https://rekor.example.com", 2),
            "tsaUrls": service("https://tsa.example.com/api/v1/timestamp", 1),
            "rekorTlogConfig": {"selector": "ANY"},
            "tsaConfig": {"selector": "ANY"},
        })
    }

    fn read(config: &Value) -> Result<Endpoints, EndpointsError> {
        Endpoints::from_json(&config.to_string(), false)
    }

    #[test]
    fn services_come_from_the_signing_configuration() {
        assert_eq!(
            read(&config()),
            Ok(Endpoints {
                fulcio: "https://fulcio.example.com/api/v2/signingCert".to_owned(),
                timestamp: Some("https://tsa.example.com/api/v1/timestamp".to_owned()),
                rekor: "https://rekor.example.com/api/v2/log/entries".to_owned(),
                version: LogVersion::V2,
            })
        );
        let mut first = config();
        first["rekorTlogUrls"][0]["majorApiVersion"] = json!(1);
        first["tsaUrls"] = json!([]);
        let first = read(&first).unwrap();
        assert_eq!((first.version, first.timestamp), (LogVersion::V1, None));
        assert_eq!(first.rekor, "https://rekor.example.com/api/v1/log/entries");
    }

    #[test]
    fn what_is_missing_is_named() {
        for (field, wanted) in [("caUrls", "caUrls"), ("rekorTlogUrls", "rekorTlogUrls"), ("tsaUrls", "tsaUrls")] {
            let mut lacking = config();
            lacking[field] = json!([]);
            assert_eq!(read(&lacking), Err(EndpointsError::Lacks(wanted)));
            // A service that is no longer valid is none.
            let mut ended = config();
            ended[field][0]["validFor"]["end"] = json!("2021-01-01T00:00:00Z");
            assert_eq!(read(&ended), Err(EndpointsError::Lacks(wanted)));
            let mut plain = config();
            plain[field][0]["url"] = json!("http://service.example.com");
            assert!(matches!(read(&plain), Err(EndpointsError::Plain { .. })), "{field}");
            assert!(Endpoints::from_json(&plain.to_string(), true).is_ok());
            plain[field][0]["url"] = json!("service.example.com");
            assert!(matches!(read(&plain), Err(EndpointsError::Url { .. })), "{field}");
        }
        assert!(matches!(Endpoints::from_json("{}", false), Err(EndpointsError::Shape(_))));
    }
}
