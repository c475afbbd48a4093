//! Hashes a model and loads it from the same bytes at the same time, verifies the digests, and runs a self-check. Reads files.

use std::{
    collections::BTreeSet,
    panic::resume_unwind,
    path::{Path, PathBuf},
    thread,
};

use codex_configs::Device;
use codex_provenance::{
    ModelDigest, Sha256,
    attestation::AttestationKind,
    files,
    manifest::{Manifest, ManifestError},
    sealed::{Hashing, Held},
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

/// A model whose weights are not hashed yet.
pub(super) struct Unverified<'a> {
    paths: &'a Paths,
    expected: &'a Expected,
    oms_bundle: Vec<u8>,
    promotion: Vec<u8>,
    attestations: Vec<Vec<u8>>,
    trusted: Trusted,
    hashing: Hashing,
    /// Whether all files but the weights have the signed bytes.
    pub(super) described: bool,
}

impl<'a> Unverified<'a> {
    /// Checks names and sizes, and hashes every file of the model but the weights.
    pub(super) fn open(paths: &'a Paths, expected: &'a Expected) -> Result<(Self, Held), ServeError> {
        let oms_bundle = read("OMS bundle", &paths.oms_bundle, bundle::MAX_BYTES)?;
        let promotion = read("promotion bundle", &paths.promotion, bundle::MAX_BYTES)?;
        let attestations = paths.attestations.iter().map(|(_, path)| read("attestation", path, bundle::MAX_BYTES));
        let attestations: Vec<Vec<u8>> = attestations.collect::<Result<_, ServeError>>()?;
        let trusted = trusted(paths)?;
        let entries = match files::walk(&paths.model, &BTreeSet::new()) {
            // The kubelet creates the folder of a model on a volume that lacks it.
            Err(ManifestError::Empty) => {
                return Err(ServeError::Gone { path: paths.model.clone(), expected: expected.model_digest });
            }
            walked => walked.map_err(refused(&paths.model))?,
        };
        // Before the first byte is read: a file that was replaced may be larger than the memory.
        let signed = verify_listing(&entries, &oms_bundle, &trusted, expected)?;
        let (held, hashing) = Manifest::begin(&entries, is_kept).map_err(refused(&paths.model))?;
        let described = hashing.kept().iter().all(|file| signed.files.contains(file));
        Ok((Self { paths, expected, oms_bundle, promotion, attestations, trusted, hashing, described }, held))
    }

    /// Hashes the weights, and verifies signature, promotion, ring and attestations against exactly the bytes that the files give.
    /// `loading` says that the model is loaded meanwhile.
    pub(super) fn verify(self, loading: bool) -> Result<Verified, ServeError> {
        let Self { paths, expected, oms_bundle, promotion, attestations, trusted, hashing, .. } = self;
        let hashed = if loading { hashing.finish_beside_loading() } else { hashing.finish() };
        let manifest = hashed.map_err(refused(&paths.model))?;
        let verified = verify_model(&manifest, &oms_bundle, &promotion, &trusted, expected)?;
        let demanded = paths.attestations.iter().map(|(kind, _)| *kind).collect();
        let attestations = attestations.iter().map(Vec::as_slice);
        let attested = verify_demanded(&verified.promoted, attestations, &demanded, &trusted)?;
        tracing::info!(
            model = %verified.signed.model,
            bytes = manifest.size_bytes(),
            signer = %verified.signed.signer,
            promotion = %verified.promoted.digest,
            ring = %verified.promoted.promotion.reasons.ring,
            attestations = attested.len(),
            "verified"
        );
        Ok(verified)
    }
}

/// Loads a signed model while its weights are hashed. Nothing is computed with it before everything is verified.
///
/// `verified` is called when that is so.
pub(super) fn load_verified(
    paths: &Paths,
    expected: &Expected,
    (slots, device): (usize, Device),
    verified: impl FnOnce(),
) -> Result<(Verified, Generator), ServeError> {
    let (unverified, held) = Unverified::open(paths, expected)?;
    // What another configuration describes may not fit into memory, so it is not loaded before it is refused.
    let early = unverified.described;
    let load = move || Generator::load_held(held, slots, device).map_err(ServeError::Model);
    let verify = move || unverified.verify(early).inspect(|_| verified());
    if !early {
        return Ok((verify()?, load()?));
    }
    thread::scope(|scope| {
        let loading = scope.spawn(load);
        let verified = verify();
        let loaded = loading.join().unwrap_or_else(|panic| resume_unwind(panic));
        // Changed weights may fail to load; that they changed says more.
        Ok((verified?, loaded?))
    })
}

fn refused(path: &Path) -> impl FnOnce(ManifestError) -> ServeError {
    move |source| ServeError::Manifest { path: path.to_owned(), source }
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

/// Loads a model that nobody signed while it is hashed, and returns the digest of what was loaded.
pub(super) fn load_unsigned(
    path: &Path,
    (slots, device): (usize, Device),
) -> Result<(ModelDigest, Generator), ServeError> {
    let entries = files::walk(path, &BTreeSet::new()).map_err(refused(path))?;
    let (held, hashing) = Manifest::begin(&entries, is_kept).map_err(refused(path))?;
    let (manifest, loaded) = thread::scope(|scope| {
        let hashed = scope.spawn(|| hashing.finish_beside_loading());
        let loaded = Generator::load_held(held, slots, device);
        (hashed.join().unwrap_or_else(|panic| resume_unwind(panic)), loaded)
    });
    let manifest = manifest.map_err(refused(path))?;
    tracing::warn!(
        model = %manifest.digest(),
        bytes = manifest.size_bytes(),
        "UNSIGNED: nobody judged, signed or promoted this model; only programs on this machine can reach it"
    );
    Ok((manifest.digest(), loaded.map_err(ServeError::Model)?))
}

fn read(what: &'static str, path: &Path, limit: usize) -> Result<Vec<u8>, ServeError> {
    files::read_start(path, limit).map_err(|source| ServeError::Unreadable { what, path: path.to_owned(), source })
}

/// Generates from the self-check's prompts, one by one and in a batch: both must give the same tokens.
pub(super) fn check(generator: &mut Generator) -> Result<(), ServeError> {
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
    Ok(())
}
