//! ECDSA keys: generation, storage, signing and verifying. Pure, except for the randomness of keys and signatures.
//!
//! Keys on P-256 (with SHA-256) and P-384 (with SHA-384) verify; only keys on P-256 sign.

use std::fmt;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1, EcdsaKeyPair, ParsedPublicKey,
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use codex_provenance::{Sha256, text::Printable};
use sigstore::{
    crypto::{
        CosignVerificationKey, Signature,
        signing_key::{
            KeyPair, Signer as _,
            ecdsa::{
                ECDSAKeys, EllipticCurve,
                ec::{EcdsaKeys, EcdsaSigner},
            },
        },
    },
    errors::SigstoreError,
};
use zeroize::Zeroizing;

use crate::{bundle, dsse::pre_authentication};

/// What a private key must be.
const WANTED: &str = "give one ECDSA key on the curve P-256 in PEM, unencrypted as openssl genpkey -algorithm EC -pkeyopt \
                      ec_paramgen_curve:P-256 writes it, or encrypted as cosign generate-key-pair writes it";
/// The labels of cosign's encrypted form.
const COSIGN: [&str; 2] = ["ENCRYPTED SIGSTORE PRIVATE KEY", "ENCRYPTED COSIGN PRIVATE KEY"];

/// Reasons why a key is refused or does not sign.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The text is not a key.
    #[error("the {what} cannot be read: {}", Printable(&source.to_string()))]
    Unreadable {
        /// The kind of key.
        what: &'static str,
        /// The error of the parser.
        #[source]
        source: SigstoreError,
    },
    /// The block of a PEM file is damaged. The parser's error would quote bytes of it.
    #[error("the {what} is damaged: its PEM block is not the base64 of a key")]
    Damaged {
        /// The kind of key.
        what: &'static str,
    },
    /// The text is not PEM.
    #[error("the {what} is not PEM: the line -----BEGIN PUBLIC KEY----- is missing")]
    NotPem {
        /// The kind of key.
        what: &'static str,
    },
    /// The text holds several PEM blocks.
    #[error("the {what} has {count} PEM blocks: give a file with exactly one public key")]
    Several {
        /// The kind of key.
        what: &'static str,
        /// Number of blocks.
        count: usize,
    },
    /// The text holds a PEM block of another kind.
    #[error("the {what} is a PEM block {label:?}: give a PUBLIC KEY")]
    Label {
        /// The kind of key.
        what: &'static str,
        /// Label of the block.
        label: String,
    },
    /// A private key cannot be read, or cannot sign.
    #[error("the private key is {found}: {WANTED}")]
    UnusablePrivate {
        /// What was found instead.
        found: String,
    },
    /// A private key is given as a public one.
    #[error("the file of the {what} holds a private key: give the {what} instead, and keep the private key secret")]
    Private {
        /// The kind of key.
        what: &'static str,
    },
    /// The key is of another kind.
    #[error("the {what} is of another kind: only uncompressed ECDSA keys on the curves {curves} are supported")]
    AnotherKind {
        /// The kind of key.
        what: &'static str,
        /// The supported curves.
        curves: &'static str,
    },
    /// The point of a public key is not on its curve.
    #[error("the {what} is invalid: its point is not on the curve")]
    OffCurve {
        /// The kind of key.
        what: &'static str,
    },
    /// A key cannot be generated or encoded.
    #[error("the key cannot be generated or encoded: {0}")]
    Make(#[source] SigstoreError),
    /// The key cannot sign.
    #[error("the key cannot sign: {0}")]
    Sign(#[source] SigstoreError),
    /// The bundle cannot be serialized.
    #[error("the bundle cannot be serialized: {0}")]
    Bundle(#[source] serde_json::Error),
}

/// A signer of statements.
pub trait Signer: Send + Sync {
    /// Returns the identity that `status` shows: the fingerprint of a key.
    fn identity(&self) -> String;

    /// Signs an in-toto statement and returns the Sigstore bundle, in JSON.
    ///
    /// # Errors
    /// Fails if the key cannot sign.
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, KeyError>;
}

/// A private key on the curve P-256. `Debug` prints only its fingerprint.
pub struct PrivateKey {
    keys: EcdsaKeys,
    signer: EcdsaSigner,
    public: PublicKey,
}

impl PrivateKey {
    /// Generates a key.
    ///
    /// # Errors
    /// Fails if there is no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        EcdsaKeys::new(EllipticCurve::P256).and_then(Self::of).map_err(KeyError::Make)
    }

    /// Reads a key in PKCS#8 (`PRIVATE KEY`), SEC 1 (`EC PRIVATE KEY`) or cosign's encrypted form (`ENCRYPTED SIGSTORE PRIVATE
    /// KEY`). Line ends, text and blocks around the key, such as `EC PARAMETERS` or its public key, do not count. `password` is for
    /// an encrypted key, and may be empty; a key that is not encrypted needs none.
    ///
    /// # Errors
    /// Fails if the text has no such key or several, or the key is damaged or on another curve, or encrypted in another form or
    /// with another password.
    pub fn from_pem(pem: &str, password: &[u8]) -> Result<Self, KeyError> {
        let unusable = |found: &str| KeyError::UnusablePrivate { found: found.to_owned() };
        let blocks = pem::parse_many(pem).map_err(|_| unusable("damaged PEM"))?;
        let keys: Vec<_> = blocks.iter().filter(|block| block.tag().ends_with("PRIVATE KEY")).collect();
        let key = match keys.as_slice() {
            [key] => key,
            [] if blocks.is_empty() => return Err(unusable("not PEM")),
            [] => return Err(unusable(&format!("missing among the PEM blocks ({})", labels(&blocks)))),
            keys => return Err(unusable(&format!("given {} times", keys.len()))),
        };
        let tag = key.tag();
        if COSIGN.contains(&tag) {
            let alone = Zeroizing::new(pem::encode(key));
            return Self::read(EcdsaKeys::from_encrypted_pem(alone.as_bytes(), password))
                .map_err(|_| unusable("encrypted by cosign, and the password does not decrypt it to such a key"));
        }
        if tag.starts_with("ENCRYPTED") || key.headers().get("Proc-Type").is_some() {
            return Err(unusable("encrypted (openssl pkey -in FILE -out private.pem decrypts it)"));
        }
        let other = || unusable("of another kind or on another curve, or damaged");
        match tag {
            "PRIVATE KEY" => Self::read(EcdsaKeys::from_der(key.contents())).map_err(|_| other()),
            "EC PRIVATE KEY" => {
                let pair = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, key.contents());
                let der = pair.map_err(|_| other())?.to_pkcs8v1().map_err(|_| other())?;
                Self::read(EcdsaKeys::from_der(der.as_ref())).map_err(|_| other())
            }
            tag => Err(unusable(&format!("a PEM block {:?}", tag.chars().take(40).collect::<String>()))),
        }
    }

    fn read(keys: Result<EcdsaKeys, SigstoreError>) -> Result<Self, KeyError> {
        const WHAT: &str = "private key";
        let unreadable = |source| KeyError::Unreadable { what: WHAT, source };
        let keys = keys.map_err(unreadable)?;
        if !matches!(keys.to_wrapped_ecdsa_keys().map_err(unreadable)?, ECDSAKeys::P256(_)) {
            return Err(KeyError::AnotherKind { what: WHAT, curves: "P-256" });
        }
        Self::of(keys).map_err(unreadable)
    }

    fn of(keys: EcdsaKeys) -> Result<Self, SigstoreError> {
        let signer = EcdsaSigner::from_ecdsa_keys(&keys)?;
        let public = PublicKey::of(CosignVerificationKey::ECDSA_P256_SHA256_ASN1, keys.public_key_to_der()?);
        Ok(Self { keys, signer, public })
    }

    /// Returns the public key.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Returns the key in PKCS#8, unencrypted.
    ///
    /// # Errors
    /// Fails if the key cannot be encoded.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, KeyError> {
        let pem = self.keys.private_key_to_pem().map_err(KeyError::Make)?;
        Ok(Zeroizing::new(pem.replace("\r\n", "\n")))
    }

    /// Returns the key in cosign's encrypted form.
    ///
    /// # Errors
    /// Fails if there is no randomness.
    pub fn to_encrypted_pem(&self, password: &[u8]) -> Result<Zeroizing<String>, KeyError> {
        let pem = self.keys.private_key_to_encrypted_pem(password).map_err(KeyError::Make)?;
        Ok(Zeroizing::new(pem.replace("\r\n", "\n")))
    }
}

/// Returns the labels of PEM blocks, for a message.
fn labels(blocks: &[pem::Pem]) -> String {
    let labels = blocks.iter().take(4).map(|block| block.tag().chars().take(40).collect::<String>());
    Printable(&labels.collect::<Vec<_>>().join(", ")).to_string()
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateKey").field("fingerprint", &self.public.fingerprint()).finish_non_exhaustive()
    }
}

impl Signer for PrivateKey {
    fn identity(&self) -> String {
        self.public.fingerprint().to_string()
    }

    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, KeyError> {
        let signature = self.signer.sign(&pre_authentication(payload)).map_err(KeyError::Sign)?;
        bundle::assemble(payload, signature, self.public.fingerprint()).map_err(KeyError::Bundle)
    }
}

/// A public key.
#[derive(Clone)]
pub struct PublicKey {
    verifier: CosignVerificationKey,
    pem: String,
    der_digest: Sha256,
}

impl PublicKey {
    /// Reads a PEM file with exactly one public key (`PUBLIC KEY`). Line ends and text around the block do not count.
    ///
    /// # Errors
    /// Fails if the text has no block or several, the block is not a public key, the key is not an uncompressed ECDSA key on
    /// P-256 or P-384, or its point is not on the curve.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        const WHAT: &str = "public key";
        if pem.contains("PRIVATE KEY-----") {
            return Err(KeyError::Private { what: WHAT });
        }
        let labels = pem.split("-----BEGIN ").skip(1).map(|rest| rest.split("-----").next().unwrap_or_default());
        match labels.collect::<Vec<_>>().as_slice() {
            ["PUBLIC KEY"] => {}
            [] => return Err(KeyError::NotPem { what: WHAT }),
            [label] => return Err(KeyError::Label { what: WHAT, label: label.chars().take(40).collect() }),
            labels => return Err(KeyError::Several { what: WHAT, count: labels.len() }),
        }
        let key = CosignVerificationKey::try_from_pem(pem.as_bytes()).map_err(|_| KeyError::Damaged { what: WHAT })?;
        // Each coordinate has the length of the curve. A key in another form would have another fingerprint.
        let uncompressed =
            |der: &[u8], length: usize| der.len() > 2 * length && der.get(der.len() - 2 * length - 1) == Some(&4);
        match key {
            CosignVerificationKey::ECDSA_P256_SHA256_ASN1(der) if uncompressed(&der, 32) => {
                ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &der).map_err(|_| KeyError::OffCurve { what: WHAT })?;
                Ok(Self::of(CosignVerificationKey::ECDSA_P256_SHA256_ASN1, der))
            }
            CosignVerificationKey::ECDSA_P384_SHA384_ASN1(der) if uncompressed(&der, 48) => {
                ParsedPublicKey::new(&ECDSA_P384_SHA384_ASN1, &der).map_err(|_| KeyError::OffCurve { what: WHAT })?;
                Ok(Self::of(CosignVerificationKey::ECDSA_P384_SHA384_ASN1, der))
            }
            _ => Err(KeyError::AnotherKind { what: WHAT, curves: "P-256 and P-384" }),
        }
    }

    fn of(verifier: fn(Vec<u8>) -> CosignVerificationKey, der: Vec<u8>) -> Self {
        let text = STANDARD.encode(&der);
        let mut pem = String::from("-----BEGIN PUBLIC KEY-----\n");
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(64));
            pem.push_str(line);
            pem.push('\n');
            rest = after;
        }
        pem.push_str("-----END PUBLIC KEY-----\n");
        let der_digest = Sha256::of(&der);
        Self { verifier: verifier(der), pem, der_digest }
    }

    /// Returns the key in PEM, with 64 columns and a line feed at the end of each line.
    pub fn to_pem(&self) -> &str {
        &self.pem
    }

    /// Returns the SHA-256 of [`PublicKey::to_pem`], which is also the hint in bundles.
    pub fn fingerprint(&self) -> Sha256 {
        Sha256::of(&self.pem)
    }

    /// Whether a hint is a digest of another key. A hint in another form says nothing.
    pub(crate) fn differs_from(&self, hint: &str) -> bool {
        digest_in(hint).is_some_and(|digest| digest != self.fingerprint() && digest != self.der_digest)
    }

    /// Whether a hint is a digest of this key.
    pub(crate) fn is_named_by(&self, hint: &str) -> bool {
        digest_in(hint).is_some_and(|digest| digest == self.fingerprint() || digest == self.der_digest)
    }

    /// Whether a DER-encoded signature was made over `message` with this key.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.verifier.verify_signature(Signature::Raw(signature), message).is_ok()
    }
}

/// One trusted key, where several may be.
impl AsRef<[PublicKey]> for PublicKey {
    fn as_ref(&self) -> &[PublicKey] {
        std::slice::from_ref(self)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PublicKey").field(&self.fingerprint()).finish()
    }
}

/// Reads the SHA-256 digest in a hint: hexadecimal or base64, with or without `sha256:` before it.
fn digest_in(hint: &str) -> Option<Sha256> {
    let hint = match hint.split_at_checked(7) {
        Some((prefix, rest)) if prefix.eq_ignore_ascii_case("sha256:") => rest,
        _ => hint,
    };
    let decoded = || STANDARD.decode(hint).or_else(|_| STANDARD_NO_PAD.decode(hint)).ok()?.try_into().ok();
    hint.to_ascii_lowercase().parse().ok().or_else(|| decoded().map(|raw: [u8; 32]| raw.into()))
}
