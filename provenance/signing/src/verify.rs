//! Verification of a model: exactly these bytes are signed, and allowed in this ring. Pure.
//!
//! Compute the manifest from the bytes that will be used; never read it from a file. Each refusal is one sentence that names
//! the file, the bundle, the key or the ring, and is safe to print.

use std::collections::BTreeSet;

use codex_provenance::{
    ModelDigest, OmsPayloadDigest, PromotionDigest, Sha256,
    attestation::{Attestation, AttestationKind},
    files::Entry,
    manifest::{Difference, Manifest},
    oms::{self, Comparison, ListingError, Statement},
    promotion::{self, Promotion},
    reproduction::Reproduction,
    text::Printable,
};
use codex_verdict::{Refuted, recheck};

use crate::{
    bundle::{self, BundleError, Opened},
    key::PublicKey,
    keyless::{Identity, Keyless},
};

/// Number of files that a message names.
const NAMED: usize = 5;

/// Who is trusted to have signed a bundle.
pub trait Trusts {
    /// Verifies that a trusted signer signed a bundle.
    ///
    /// # Errors
    /// The first fault. The payload of a refused bundle is never returned.
    fn open(&self, bundle: &[u8]) -> Result<Opened, BundleError>;

    /// Returns the fingerprints of those who are named: every key, and every identity that is not a pattern.
    fn fingerprints(&self) -> Vec<Sha256>;
}

/// Keys, one or several.
impl<T: AsRef<[PublicKey]> + ?Sized> Trusts for T {
    fn open(&self, bundle: &[u8]) -> Result<Opened, BundleError> {
        let (payload, key) = bundle::open_with(bundle, self.as_ref())?;
        Ok(Opened { payload, signer: key.fingerprint(), identity: None })
    }

    fn fingerprints(&self) -> Vec<Sha256> {
        self.as_ref().iter().map(PublicKey::fingerprint).collect()
    }
}

/// Keys and identities together.
#[derive(Clone, Debug, Default)]
pub struct Trusted {
    /// The keys.
    pub keys: Vec<PublicKey>,
    /// The identities, each group with the root that verifies it.
    pub identities: Vec<Keyless>,
}

impl Trusted {
    /// Whether nobody is trusted.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.identities.iter().all(Keyless::is_empty)
    }
}

/// A bundle with a certificate is verified as one, and every other bundle with the keys: neither stands in for the other.
impl Trusts for Trusted {
    fn open(&self, bundle: &[u8]) -> Result<Opened, BundleError> {
        let (first, rest) = match self.identities.split_first() {
            // Without keys, the message says that an identity is wanted.
            Some(split) if self.keys.is_empty() || bundle::has_certificate(bundle) => split,
            _ => return self.keys.open(bundle),
        };
        let refused = match first.open(bundle) {
            Err(why) if !rest.is_empty() => why,
            result => return result,
        };
        rest.iter().find_map(|keyless| keyless.open(bundle).ok()).ok_or(refused)
    }

    fn fingerprints(&self) -> Vec<Sha256> {
        let identities = self.identities.iter().flat_map(Trusts::fingerprints);
        self.keys.fingerprints().into_iter().chain(identities).collect()
    }
}

/// The values that a verifier requires. They come from a source that is trusted more than the bundles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Digest of the model.
    pub model_digest: ModelDigest,
    /// Fingerprints of the keys and identities that may have signed the bundles.
    pub key_fingerprints: Vec<Sha256>,
    /// Ring in which the model will be served.
    pub ring: String,
    /// Digest of the promotion statement.
    pub promotion_digest: PromotionDigest,
}

/// The verified content of an OMS bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// Digest of the model: of all files that were compared.
    pub model: ModelDigest,
    /// Digest of the payload of the bundle.
    pub payload: OmsPayloadDigest,
    /// Fingerprint of the key or the identity that signed.
    pub signer: Sha256,
    /// The identity, if it is not a key that signed.
    pub identity: Option<Identity>,
    /// Paths of files that the statement leaves out by its `ignore_paths`. A server loads none of them.
    pub skipped: Vec<String>,
}

/// The verified content of a promotion bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promoted {
    /// The promotion statement.
    pub promotion: Promotion,
    /// Digest of the promotion statement.
    pub digest: PromotionDigest,
    /// Fingerprint of the key or the identity that signed.
    pub signer: Sha256,
    /// The identity, if it is not a key that signed.
    pub identity: Option<Identity>,
}

/// The verified content of the bundle of a reproduction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reproduced {
    /// The statement.
    pub reproduction: Reproduction,
    /// Fingerprint of the key or the identity that signed.
    pub signer: Sha256,
    /// The identity, if it is not a key that signed.
    pub identity: Option<Identity>,
}

/// The verified content of both bundles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Content of the OMS bundle.
    pub signed: Signed,
    /// Content of the promotion bundle.
    pub promoted: Promoted,
}

/// Reasons why a model is refused.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A public key or an identity is not a trusted one.
    #[error("the public key has the fingerprint {found}, but {} trusted", bundle::trusted(expected))]
    Key {
        /// Fingerprint of the key or identity at hand.
        found: Sha256,
        /// Fingerprints of the trusted keys.
        expected: Vec<Sha256>,
    },
    /// The OMS bundle is refused.
    #[error("the OMS bundle {0}")]
    Oms(#[source] BundleError),
    /// The OMS bundle is validly signed, but does not hold a valid statement.
    #[error("the OMS bundle has no valid model signing statement: {0}")]
    OmsStatement(String),
    /// The files differ from the signed ones.
    #[error("the files of the model differ from the signed ones: {}", name(.0))]
    Files(Vec<Difference>),
    /// The OMS bundle leaves out a file that a server may load.
    #[error("the OMS bundle does not cover {0:?}: its ignore_paths leave the file out, and a server may load it")]
    Uncovered(String),
    /// The OMS bundle leaves out a file of a model that is about to be served.
    #[error(
        "the OMS bundle does not cover {0:?}: its ignore_paths leave the file out, and a server needs every file signed"
    )]
    Skipped(String),
    /// A file has another size than the signed one, or the OMS bundle is for another model.
    #[error(
        "the files and the OMS bundle are not those of the model {expected}: a file has another size, or the bundle was made \
         for another model; sizes found: {}",
        list(sizes.iter().map(|(path, size)| format!("{} {size}", Printable(path))), ", ")
    )]
    Sizes {
        /// Path and size in bytes of each file.
        sizes: Vec<(String, u64)>,
        /// The required model.
        expected: ModelDigest,
    },
    /// The files are the required model, but the OMS bundle is for another one.
    #[error("the OMS bundle was made for another model than {model}: {}", name(.differences))]
    OmsModel {
        /// The model at hand, which is the required one.
        model: ModelDigest,
        /// The differences.
        differences: Vec<Difference>,
    },
    /// The files are signed, but are not the required model.
    #[error("the files are the model {found}, but {expected} is required")]
    Model {
        /// The model at hand.
        found: ModelDigest,
        /// The required model.
        expected: ModelDigest,
    },
    /// The promotion bundle is refused.
    #[error("the promotion bundle {0}")]
    Promotion(#[source] BundleError),
    /// The promotion bundle is validly signed, but does not hold a valid statement.
    #[error("the promotion bundle has no valid promotion statement: {0}")]
    PromotionStatement(String),
    /// The promotion is for another model.
    #[error("the promotion bundle was made for another model: {found}, not {expected}")]
    PromotionModel {
        /// The model that the promotion names.
        found: ModelDigest,
        /// The model at hand.
        expected: ModelDigest,
    },
    /// The promotion is for another OMS statement.
    #[error("the promotion bundle was made for another OMS bundle: payload {found}, not {expected}")]
    PromotionPayload {
        /// The payload that the promotion names.
        found: OmsPayloadDigest,
        /// The payload at hand.
        expected: OmsPayloadDigest,
    },
    /// The promotion is for another ring.
    #[error("the promotion bundle was made for the ring {found:?}, but {expected:?} is required")]
    Ring {
        /// The ring that the promotion names.
        found: String,
        /// The required ring.
        expected: String,
    },
    /// The promotion names no evaluation.
    #[error("the promotion bundle names no evaluation: nothing shows that the model passed")]
    NoEvaluations,
    /// What the promotion says about an evaluation is false, or does not pass.
    #[error("the promotion bundle is refused: evaluation {} {why}", Printable(name))]
    Evaluation {
        /// Name of the Evaluation.
        name: String,
        /// Why.
        #[source]
        why: Refuted,
    },
    /// The bundle of a reproduction is refused.
    #[error("the bundle of the reproduction {0}")]
    Reproduction(#[source] BundleError),
    /// The bundle of a reproduction is validly signed, but does not hold a valid statement.
    #[error("the bundle of the reproduction has no valid statement: {0}")]
    ReproductionStatement(String),
    /// The reproduction is of another model.
    #[error("the bundle of the reproduction was made for another model: {found}, not {expected}")]
    ReproductionModel {
        /// The model that was reproduced.
        found: ModelDigest,
        /// The model at hand.
        expected: ModelDigest,
    },
    /// The bundle of an attestation is refused.
    #[error("the attestation {0}")]
    Attestation(#[source] BundleError),
    /// The attestation is validly signed, but is not one about this promotion.
    #[error("the attestation is refused: {0}")]
    AttestationStatement(String),
    /// Another one signed the attestation than the promotion.
    #[error(
        "the attestation {kind} was signed by {found}, but its promotion by {expected}: take both from the same ConfigMap"
    )]
    AttestationSigner {
        /// The kind of the attestation.
        kind: AttestationKind,
        /// Fingerprint of the key or the identity that signed it.
        found: Sha256,
        /// Fingerprint of the one that signed the promotion.
        expected: Sha256,
    },
    /// An attestation that is required is missing.
    #[error("the attestation {0} is missing")]
    NoAttestation(AttestationKind),
    /// The promotion is for the same model and ring, but is not the required one.
    #[error("the promotion bundle holds the statement {found}, but {expected} is required")]
    PromotionDigest {
        /// The statement at hand.
        found: PromotionDigest,
        /// The required statement.
        expected: PromotionDigest,
    },
}

impl VerifyError {
    /// Whether a bundle is refused because it is not one, and not because of what it holds.
    pub fn is_shape(&self) -> bool {
        let (Self::Oms(why) | Self::Promotion(why) | Self::Attestation(why) | Self::Reproduction(why)) = self else {
            return false;
        };
        matches!(why, BundleError::Shape(_) | BundleError::TooLarge)
    }
}

fn name(differences: &[Difference]) -> String {
    list(differences.iter().map(ToString::to_string), "; ")
}

/// Joins the first few texts and counts the rest.
fn list(texts: impl ExactSizeIterator<Item = String>, separator: &str) -> String {
    let rest = texts.len().saturating_sub(NAMED);
    let named = texts.take(NAMED).collect::<Vec<_>>().join(separator);
    if rest == 0 { named } else { format!("{named}{separator}and {rest} more") }
}

/// Checks the key, the OMS bundle, and the names and sizes of the files before any file is read. Returns the manifest that the files
/// must have.
///
/// # Errors
/// The first check that fails.
pub fn verify_listing(
    entries: &[Entry],
    bundle: &[u8],
    trusted: &(impl Trusts + ?Sized),
    expected: &Expected,
) -> Result<Manifest, VerifyError> {
    check_keys(trusted, &expected.key_fingerprints)?;
    let Opened { payload, .. } = trusted.open(bundle).map_err(VerifyError::Oms)?;
    let statement = Statement::read(&payload).map_err(VerifyError::OmsStatement)?;
    let expected = expected.model_digest;
    statement.check_listing(entries, expected).map_err(|error| match error {
        ListingError::Names(differences) => VerifyError::Files(differences),
        ListingError::Skipped(path) => VerifyError::Skipped(path),
        ListingError::Sizes(sizes) => VerifyError::Sizes { sizes, expected },
    })
}

/// Checks that every key and identity at hand is one of those with these fingerprints.
///
/// # Errors
/// The first that is not.
pub fn check_keys(trusted: &(impl Trusts + ?Sized), expected: &[Sha256]) -> Result<(), VerifyError> {
    let found = trusted.fingerprints().into_iter().find(|found| !expected.contains(found));
    found.map_or(Ok(()), |found| Err(VerifyError::Key { found, expected: expected.to_vec() }))
}

/// Checks that `bundle` is signed by one who is trusted and covers exactly the files of `manifest`, names included. `demanded` is the
/// required model digest, if there is one.
///
/// # Errors
/// The first check that fails.
pub fn verify_signature(
    manifest: &Manifest,
    bundle: &[u8],
    trusted: &(impl Trusts + ?Sized),
    demanded: Option<ModelDigest>,
) -> Result<Signed, VerifyError> {
    signature(manifest, bundle, trusted, demanded, |_| false)
}

/// As [`verify_signature`], for a directory that may lack the signed files that `left_out` names, because a download does not
/// take them. Every file that is there must be signed.
///
/// # Errors
/// The first check that fails.
pub fn verify_part(
    manifest: &Manifest,
    bundle: &[u8],
    trusted: &(impl Trusts + ?Sized),
    left_out: impl Fn(&str) -> bool,
) -> Result<Signed, VerifyError> {
    signature(manifest, bundle, trusted, None, left_out)
}

fn signature(
    manifest: &Manifest,
    bundle: &[u8],
    trusted: &(impl Trusts + ?Sized),
    demanded: Option<ModelDigest>,
    left_out: impl Fn(&str) -> bool,
) -> Result<Signed, VerifyError> {
    let Opened { payload, signer, identity } = trusted.open(bundle).map_err(VerifyError::Oms)?;
    let model = manifest.digest();
    let statement = Statement::read(&payload).map_err(VerifyError::OmsStatement)?.about_part(manifest, left_out);
    let skipped = match statement.compare(manifest).map_err(VerifyError::OmsStatement)? {
        Comparison::Different(differences) if demanded == Some(model) => {
            return Err(VerifyError::OmsModel { model, differences });
        }
        Comparison::Different(differences) => return Err(VerifyError::Files(differences)),
        Comparison::Uncovered(path) => return Err(VerifyError::Uncovered(path)),
        Comparison::Same { skipped } => skipped,
    };
    if let Some(expected) = demanded
        && expected != model
    {
        return Err(VerifyError::Model { found: model, expected });
    }
    Ok(Signed { model, payload: oms::payload_digest(&payload), signer, identity, skipped })
}

/// Checks that `bundle` is signed by one who is trusted and promotes the model of `signed` into `ring`, and judges every gate again from
/// the measurements in the statement: at least one evaluation is required, and all must pass. `demanded` is the required digest
/// of the promotion statement, if there is one.
///
/// # Errors
/// The first check that fails.
pub fn verify_promotion(
    signed: &Signed,
    bundle: &[u8],
    trusted: &(impl Trusts + ?Sized),
    ring: &str,
    demanded: Option<PromotionDigest>,
) -> Result<Promoted, VerifyError> {
    let promoted = open_promotion(bundle, trusted)?;
    let Promoted { promotion, digest, .. } = &promoted;
    if promotion.model != signed.model {
        return Err(VerifyError::PromotionModel { found: promotion.model, expected: signed.model });
    }
    if promotion.reasons.oms_payload != signed.payload {
        let found = promotion.reasons.oms_payload;
        return Err(VerifyError::PromotionPayload { found, expected: signed.payload });
    }
    if promotion.reasons.ring != ring {
        return Err(VerifyError::Ring { found: promotion.reasons.ring.clone(), expected: ring.to_owned() });
    }
    if let Some(expected) = demanded.filter(|expected| expected != digest) {
        return Err(VerifyError::PromotionDigest { found: *digest, expected });
    }
    check_evaluations(promotion)?;
    Ok(promoted)
}

/// Checks that `bundle` is signed by one who is trusted and states that `model` was trained again.
///
/// # Errors
/// The first check that fails.
pub fn verify_reproduction(
    model: ModelDigest,
    bundle: &[u8],
    trusted: &(impl Trusts + ?Sized),
) -> Result<Reproduced, VerifyError> {
    let Opened { payload, signer, identity } = trusted.open(bundle).map_err(VerifyError::Reproduction)?;
    let reproduction = Reproduction::read(&payload).map_err(VerifyError::ReproductionStatement)?;
    if reproduction.model != model {
        return Err(VerifyError::ReproductionModel { found: reproduction.model, expected: model });
    }
    Ok(Reproduced { reproduction, signer, identity })
}

/// Checks attestations about a verified promotion: the one who signed it signed each of them, each says what it says, and a summary
/// among them names the others. Returns them in the order in which they are given.
///
/// # Errors
/// The first check that fails.
pub fn verify_attestations<'b>(
    promoted: &Promoted,
    bundles: impl IntoIterator<Item = &'b [u8]>,
    trusted: &(impl Trusts + ?Sized),
) -> Result<Vec<Attestation>, VerifyError> {
    let mut found: Vec<Attestation> = Vec::new();
    for bundle in bundles {
        let Opened { payload, signer, .. } = trusted.open(bundle).map_err(VerifyError::Attestation)?;
        let attestation =
            Attestation::read(&payload, &promoted.promotion).map_err(VerifyError::AttestationStatement)?;
        let kind = attestation.kind;
        if signer != promoted.signer {
            return Err(VerifyError::AttestationSigner { kind, found: signer, expected: promoted.signer });
        }
        if found.iter().any(|other| other.kind == kind) {
            return Err(VerifyError::AttestationStatement(format!("{kind} is given twice")));
        }
        found.push(attestation);
    }
    for summary in &found {
        summary
            .check_inputs(&found)
            .map_err(|why| VerifyError::AttestationStatement(format!("{}: {why}", summary.kind)))?;
    }
    Ok(found)
}

/// Checks attestations about a verified promotion as [`verify_attestations`] does, and that every demanded kind is among them.
///
/// # Errors
/// The first check that fails.
pub fn verify_demanded<'b>(
    promoted: &Promoted,
    bundles: impl IntoIterator<Item = &'b [u8]>,
    demanded: &BTreeSet<AttestationKind>,
    trusted: &(impl Trusts + ?Sized),
) -> Result<Vec<Attestation>, VerifyError> {
    let found = verify_attestations(promoted, bundles, trusted)?;
    match demanded.iter().find(|kind| found.iter().all(|it| it.kind != **kind)) {
        Some(kind) => Err(VerifyError::NoAttestation(*kind)),
        None => Ok(found),
    }
}

/// Reads a recorded promotion, whatever its model and ring: it must be signed by one who is trusted, and its gates are judged again.
///
/// # Errors
/// The first check that fails.
pub fn read_promotion(bundle: &[u8], trusted: &(impl Trusts + ?Sized)) -> Result<Promoted, VerifyError> {
    let promoted = open_promotion(bundle, trusted)?;
    check_evaluations(&promoted.promotion)?;
    Ok(promoted)
}

fn open_promotion(bundle: &[u8], trusted: &(impl Trusts + ?Sized)) -> Result<Promoted, VerifyError> {
    let Opened { payload, signer, identity } = trusted.open(bundle).map_err(VerifyError::Promotion)?;
    let promotion = Promotion::read(&payload).map_err(VerifyError::PromotionStatement)?;
    Ok(Promoted { promotion, digest: promotion::payload_digest(&payload), signer, identity })
}

fn check_evaluations(promotion: &Promotion) -> Result<(), VerifyError> {
    if promotion.reasons.evaluations.is_empty() {
        return Err(VerifyError::NoEvaluations);
    }
    for evaluation in &promotion.reasons.evaluations {
        recheck(promotion.model, evaluation)
            .map_err(|why| VerifyError::Evaluation { name: evaluation.name.clone(), why })?;
    }
    Ok(())
}

/// Makes all checks of a server: the key, the files, the OMS bundle, the promotion bundle and the ring.
///
/// # Errors
/// The first check that fails.
pub fn verify_model(
    manifest: &Manifest,
    oms_bundle: &[u8],
    promotion_bundle: &[u8],
    trusted: &(impl Trusts + ?Sized),
    expected: &Expected,
) -> Result<Verified, VerifyError> {
    check_keys(trusted, &expected.key_fingerprints)?;
    let signed = verify_signature(manifest, oms_bundle, trusted, Some(expected.model_digest))?;
    let promoted =
        verify_promotion(&signed, promotion_bundle, trusted, &expected.ring, Some(expected.promotion_digest))?;
    // An identity that only a pattern admits is not among those at hand.
    let found = [signed.signer, promoted.signer].into_iter().find(|found| !expected.key_fingerprints.contains(found));
    if let Some(found) = found {
        return Err(VerifyError::Key { found, expected: expected.key_fingerprints.clone() });
    }
    Ok(Verified { signed, promoted })
}
