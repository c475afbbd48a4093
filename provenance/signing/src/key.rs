//! P-256 keys: making, storing, signing, verifying. Pure but for the randomness that keys and signatures take.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use codex_provenance::Sha256;
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

/// The length of a P-256 public key in DER with both coordinates.
const P256_DER: usize = 91;

/// Why a key is refused or does not sign.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The text is no key.
    #[error("the {what} cannot be read: {source}")]
    Unreadable {
        /// Which key.
        what: &'static str,
        /// What the parser said.
        #[source]
        source: SigstoreError,
    },
    /// The text is no PEM.
    #[error("the {what} is no PEM: it has no line -----BEGIN PUBLIC KEY-----")]
    NotPem {
        /// Which key.
        what: &'static str,
    },
    /// A private key where a public one is wanted.
    #[error("the {what} is a private key: give the public one that belongs to it, and show this one to nobody")]
    Private {
        /// Which key.
        what: &'static str,
    },
    /// A key of another kind.
    #[error("the {what} is of another kind: only uncompressed ECDSA keys on the curve P-256 are accepted")]
    AnotherKind {
        /// Which key.
        what: &'static str,
    },
    /// No randomness, say.
    #[error("no key could be made: {0}")]
    Make(#[source] SigstoreError),
    /// No randomness, say.
    #[error("the key does not sign: {0}")]
    Sign(#[source] SigstoreError),
    /// The bundle could not be written as JSON.
    #[error("the bundle cannot be written: {0}")]
    Bundle(#[source] serde_json::Error),
}

/// Whoever vouches for statements.
pub trait Signer: Send + Sync {
    /// Who it is, as `status` shows it: a key's fingerprint.
    fn identity(&self) -> String;

    /// Signs an in-toto statement and returns the Sigstore bundle, in JSON.
    ///
    /// # Errors
    /// When the signer is not able to sign.
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, KeyError>;
}

/// A private key. It shows itself to nobody by accident: `Debug` prints the fingerprint.
pub struct PrivateKey {
    keys: EcdsaKeys,
    signer: EcdsaSigner,
    public: PublicKey,
}

impl PrivateKey {
    /// Makes a key from the system's randomness.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        EcdsaKeys::new(EllipticCurve::P256).and_then(Self::of).map_err(KeyError::Make)
    }

    /// Reads a PKCS#8 key (`PRIVATE KEY`).
    ///
    /// # Errors
    /// When it is no such key, or of another curve.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        Self::read(EcdsaKeys::from_pem(pem.as_bytes()))
    }

    /// Reads a key in cosign's encrypted form (`ENCRYPTED SIGSTORE PRIVATE KEY`).
    ///
    /// # Errors
    /// When it is no such key, the password is another one, or the key is of another curve.
    pub fn from_encrypted_pem(pem: &str, password: &[u8]) -> Result<Self, KeyError> {
        Self::read(EcdsaKeys::from_encrypted_pem(pem.as_bytes(), password))
    }

    fn read(keys: Result<EcdsaKeys, SigstoreError>) -> Result<Self, KeyError> {
        const WHAT: &str = "private key";
        let unreadable = |source| KeyError::Unreadable { what: WHAT, source };
        let keys = keys.map_err(unreadable)?;
        if !matches!(keys.to_wrapped_ecdsa_keys().map_err(unreadable)?, ECDSAKeys::P256(_)) {
            return Err(KeyError::AnotherKind { what: WHAT });
        }
        Self::of(keys).map_err(unreadable)
    }

    fn of(keys: EcdsaKeys) -> Result<Self, SigstoreError> {
        let signer = EcdsaSigner::from_ecdsa_keys(&keys)?;
        let public = PublicKey::of(keys.public_key_to_der()?);
        Ok(Self { keys, signer, public })
    }

    /// The key that others verify with.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The key in PKCS#8, readable by everybody who holds the text.
    ///
    /// # Errors
    /// When the key cannot be encoded.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, KeyError> {
        let pem = self.keys.private_key_to_pem().map_err(KeyError::Make)?;
        Ok(Zeroizing::new(pem.replace("\r\n", "\n")))
    }

    /// The key in cosign's encrypted form.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn to_encrypted_pem(&self, password: &[u8]) -> Result<Zeroizing<String>, KeyError> {
        let pem = self.keys.private_key_to_encrypted_pem(password).map_err(KeyError::Make)?;
        Ok(Zeroizing::new(pem.replace("\r\n", "\n")))
    }
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
}

impl PublicKey {
    /// Reads a key in PEM (`PUBLIC KEY`). Line ends and white space around it do not count.
    ///
    /// # Errors
    /// When it is no such key, or of another kind.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        const WHAT: &str = "public key";
        if pem.contains("PRIVATE KEY-----") {
            return Err(KeyError::Private { what: WHAT });
        }
        if !pem.contains("-----BEGIN PUBLIC KEY-----") {
            return Err(KeyError::NotPem { what: WHAT });
        }
        let key = CosignVerificationKey::try_from_pem(pem.as_bytes())
            .map_err(|source| KeyError::Unreadable { what: WHAT, source })?;
        match key {
            CosignVerificationKey::ECDSA_P256_SHA256_ASN1(der) if der.len() == P256_DER => Ok(Self::of(der)),
            _ => Err(KeyError::AnotherKind { what: WHAT }),
        }
    }

    fn of(der: Vec<u8>) -> Self {
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
        Self { verifier: CosignVerificationKey::ECDSA_P256_SHA256_ASN1(der), pem }
    }

    /// The key in PEM: 64 columns, line feeds, one at the end.
    pub fn to_pem(&self) -> &str {
        &self.pem
    }

    /// SHA-256 of [`PublicKey::to_pem`], which is also the hint in bundles.
    pub fn fingerprint(&self) -> Sha256 {
        Sha256::of(&self.pem)
    }

    /// Whether a DER-encoded signature was made over `message` by this key.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.verifier.verify_signature(Signature::Raw(signature), message).is_ok()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PublicKey").field(&self.fingerprint()).finish()
    }
}
