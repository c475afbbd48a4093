//! Hashes a model, verifies the digests, loads the model from the bytes that were hashed, and runs a self-check. Reads files.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use codex_configs::Device;
use codex_provenance::{
    ModelDigest, Sha256,
    attestation::AttestationKind,
    files,
    manifest::{Held, Manifest, ManifestError},
};
use codex_signing::{
    bundle,
    key::PublicKey,
    keyless::{IdentityPattern, Keyless, MAX_ROOT, Root},
    verify::{Expected, Trusted, Verified, verify_demanded, verify_listing, verify_model},
};

use super::ServeError;
use crate::model::{GenerateError, Generator, is_kept};

/// Prompts of the self-check; short enough for every context.
const SELF_CHECK: [&str; 3] = ["347+86:", "208-9:", "5+5:"];
/// Tokens that the self-check generates for each prompt.
const SELF_CHECK_TOKENS: usize = 32;

/// The paths of a server's files.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    pub(super) model: PathBuf,
    pub(super) oms_bundle: PathBuf,
    pub(super) promotion: PathBuf,
    /// The attestations that must be beside the promotion.
    pub(super) attestations: Vec<(AttestationKind, PathBuf)>,
    pub(super) public_keys: Vec<PathBuf>,
    /// The identities that may have signed; they need a trusted root.
    pub(super) identities: Vec<IdentityPattern>,
    pub(super) trusted_root: Option<TrustedRoot>,
}

/// A trusted root, and the digest that it must have.
#[derive(Clone, Debug)]
pub(super) struct TrustedRoot {
    pub(super) path: PathBuf,
    pub(super) digest: Sha256,
}

/// Maximum size of a key file in bytes.
const MAX_KEY: usize = 64 << 10;

/// Checks names and sizes, hashes every file of the model, and verifies signature, promotion, ring and attestations against exactly the
/// bytes that the returned files give.
pub(super) fn read_verified(paths: &Paths, expected: &Expected) -> Result<(Verified, Held), ServeError> {
    let oms_bundle = read("OMS bundle", &paths.oms_bundle, bundle::MAX_BYTES)?;
    let promotion = read("promotion bundle", &paths.promotion, bundle::MAX_BYTES)?;
    let attestations = paths.attestations.iter().map(|(_, path)| read("attestation", path, bundle::MAX_BYTES));
    let attestations: Vec<Vec<u8>> = attestations.collect::<Result<_, ServeError>>()?;
    let trusted = trusted(paths)?;
    let refused = |source| ServeError::Manifest { path: paths.model.clone(), source };
    let entries = match files::walk(&paths.model, &BTreeSet::new()) {
        // The kubelet creates the folder of a model on a volume that lacks it.
        Err(ManifestError::Empty) => {
            return Err(ServeError::Gone { path: paths.model.clone(), expected: expected.model_digest });
        }
        walked => walked.map_err(refused)?,
    };
    // Before the first byte is read: a file that was replaced may be larger than the memory.
    verify_listing(&entries, &oms_bundle, &trusted, expected)?;
    let (manifest, held) = Manifest::hold(&entries, is_kept).map_err(refused)?;
    let verified = verify_model(&manifest, &oms_bundle, &promotion, &trusted, expected)?;
    let demanded = paths.attestations.iter().map(|(kind, _)| *kind).collect();
    let attested = verify_demanded(&verified.promoted, attestations.iter().map(Vec::as_slice), &demanded, &trusted)?;
    tracing::info!(
        model = %verified.signed.model,
        bytes = manifest.size_bytes(),
        signer = %verified.signed.signer,
        promotion = %verified.promoted.digest,
        ring = %verified.promoted.promotion.reasons.ring,
        attestations = attested.len(),
        "verified"
    );
    Ok((verified, held))
}

/// Reads who is trusted to have signed.
fn trusted(paths: &Paths) -> Result<Trusted, ServeError> {
    let mut keys = Vec::with_capacity(paths.public_keys.len());
    for path in &paths.public_keys {
        keys.push(PublicKey::from_pem(&String::from_utf8_lossy(&read("public key", path, MAX_KEY)?))?);
    }
    let Some(TrustedRoot { path, digest }) = &paths.trusted_root else {
        return Ok(Trusted { keys, identities: Vec::new() });
    };
    let text = read("trusted root", path, MAX_ROOT)?;
    let root = Root::from_json(&String::from_utf8_lossy(&text))?;
    let found = Sha256::of(&text);
    if found != *digest {
        return Err(ServeError::Root { path: path.clone(), found, expected: *digest });
    }
    Ok(Trusted { keys, identities: vec![Keyless::of(root.into(), paths.identities.clone())] })
}

/// Reads every file of a model that nobody signed, and returns the digest of what was read.
pub(super) fn read_unsigned(path: &Path) -> Result<(ModelDigest, Held), ServeError> {
    let refused = |source| ServeError::Manifest { path: path.to_owned(), source };
    let entries = files::walk(path, &BTreeSet::new()).map_err(refused)?;
    let (manifest, held) = Manifest::hold(&entries, is_kept).map_err(refused)?;
    tracing::warn!(
        model = %manifest.digest(),
        bytes = manifest.size_bytes(),
        "UNSIGNED: nobody judged, signed or promoted this model; only programs on this machine can reach it"
    );
    Ok((manifest.digest(), held))
}

fn read(what: &'static str, path: &Path, limit: usize) -> Result<Vec<u8>, ServeError> {
    files::read_start(path, limit).map_err(|source| ServeError::Unreadable { what, path: path.to_owned(), source })
}

/// Loads the model and generates from the self-check's prompts, one by one and in a batch: both must give the same tokens.
pub(super) fn load_checked(held: Held, slots: usize, device: Device) -> Result<Generator, ServeError> {
    let mut generator = Generator::load_held(held, slots, device).map_err(ServeError::Model)?;
    let failed = |prompt: &str, error: GenerateError| ServeError::SelfCheck(format!("{prompt:?}: {error}"));
    let together = generator.complete(&SELF_CHECK, SELF_CHECK_TOKENS, |_| ());
    for (prompt, batched) in SELF_CHECK.into_iter().zip(together) {
        let batched = batched.map_err(|error| failed(prompt, error))?;
        for alone in generator.complete(&[prompt], SELF_CHECK_TOKENS, |_| ()) {
            let alone = alone.map_err(|error| failed(prompt, error))?;
            if alone != batched {
                let told = format!("{prompt:?} gives {:?} alone and {:?} in a batch", alone.text, batched.text);
                return Err(ServeError::SelfCheck(told));
            }
            tracing::info!(prompt, completion = alone.text, "self-check");
        }
    }
    Ok(generator)
}
