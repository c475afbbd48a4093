//! The model that a run trains, and the base that it starts from. Reads files.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use codex_configs::{LoraSettings, Method, Optimization};
use codex_engine::{
    EngineState, Layout, Lora, LoraError, ModelConfig, Projection, Settings, engine, initial, lora_engine,
};
use codex_provenance::{
    ModelDigest, Sha256, files,
    manifest::{Manifest, ManifestError},
    oms::SIGNATURE,
};
use codex_signing::{
    bundle,
    key::PublicKey,
    verify::{VerifyError, verify_part},
};

use super::{
    TrainError,
    failure_class::FailureClass,
    state::{Snapshot, State},
};
use crate::{
    artifacts::metadata::BaseModel,
    hub,
    model::{HEAD, ModelError, ModelFiles, describe_adapter, open, read_parameters, rewrite, short},
    text::Tokenizer,
};

/// A base cannot be trained from.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// The method needs a base.
    #[error("training.method={0} needs a base: pass --base DIR, or use training.method=sft")]
    None(&'static str),
    /// The directory has other bytes.
    #[error("--base {} has digest {found}, but --base-digest is {expected}: use the directory with that digest", path.display())]
    Digest {
        /// The directory.
        path: PathBuf,
        /// Its digest.
        found: ModelDigest,
        /// The required digest.
        expected: ModelDigest,
    },
    /// The directory changed while it was used.
    #[error("--base {} had digest {before}, and now has {now}: do not change it during a run", path.display())]
    Changed {
        /// The directory.
        path: PathBuf,
        /// The digest at the start.
        before: ModelDigest,
        /// The digest now.
        now: ModelDigest,
    },
    /// The directory cannot be read.
    #[error("--base {} cannot be read", path.display())]
    Unreadable {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: ManifestError,
    },
    /// The directory has no signature.
    #[error(
        "--base {} has no {SIGNATURE}, but --base-signed-by requires a signature: sign it with model_signing, or use a signed \
         model",
        path.display()
    )]
    Unsigned {
        /// The directory.
        path: PathBuf,
    },
    /// The signature is not that of the required key over these files.
    #[error("--base {} is not signed as --base-signed-by requires", path.display())]
    Signature {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: Box<VerifyError>,
    },
    /// The signature cannot be read.
    #[error("--base {}: {SIGNATURE} cannot be read", path.display())]
    UnreadableSignature {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The directory holds no model that can be trained.
    #[error("--base {} cannot be trained from", path.display())]
    Model {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: ModelError,
    },
    /// The model cannot have adapters.
    #[error("--base {}", path.display())]
    Adapters {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: LoraError,
    },
}

impl BaseError {
    pub(super) fn class(&self) -> FailureClass {
        match self {
            // Another attempt may find the volume mounted.
            Self::Unreadable { .. }
            | Self::UnreadableSignature { .. }
            | Self::Changed { .. }
            | Self::Model { source: ModelError::File(_), .. } => FailureClass::STORAGE_FAILED,
            Self::Unsigned { .. } | Self::Signature { .. } => FailureClass::BASE_MISMATCH,
            _ => FailureClass::INVALID_CONFIGURATION,
        }
    }
}

/// The repository that a base was downloaded from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Owner and name.
    pub repository: String,
    /// The commit.
    pub commit: String,
}

/// A given model in a directory of Hugging Face's form, which a run starts from. Its signature is not one of its files.
#[derive(Debug)]
pub struct Base {
    path: PathBuf,
    digest: ModelDigest,
    origin: Option<Origin>,
    /// Fingerprint of the key whose signature was required.
    signer: Option<Sha256>,
    config: ModelConfig,
    tokenizer: Tokenizer,
}

impl Base {
    /// Reads the directory, and checks that its digest is `expected`, if given: the manifest digest that `codex verify` prints.
    ///
    /// # Errors
    /// The directory cannot be read, has another digest, or holds a model that is not supported.
    pub fn open(path: &Path, expected: Option<ModelDigest>) -> Result<Self, BaseError> {
        Self::open_from(path, expected, None, None)
    }

    /// As [`open`](Self::open), for a directory that was downloaded from `origin`, and that must have a signature by `key`.
    ///
    /// # Errors
    /// As [`open`](Self::open), and the signature is missing, of another key, or not over exactly these files.
    pub fn open_from(
        path: &Path,
        expected: Option<ModelDigest>,
        origin: Option<Origin>,
        key: Option<&PublicKey>,
    ) -> Result<Self, BaseError> {
        let manifest = manifest(path)?;
        let digest = manifest.digest();
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            return Err(BaseError::Digest { path: path.to_owned(), found: digest, expected });
        }
        let signer = key.map(|key| signed_by(path, &manifest, key, origin.is_some())).transpose()?;
        let opened = open(path).map_err(|source| BaseError::Model { path: path.to_owned(), source })?;
        let (config, tokenizer) = (opened.config, opened.tokenizer);
        Ok(Self { path: path.to_owned(), digest, origin, signer, config, tokenizer })
    }

    /// Returns what a report says about the base.
    pub(crate) fn reported(&self) -> codex_reports::Base {
        let commit = self.origin.as_ref().map(|origin| origin.commit.clone());
        codex_reports::Base { digest: self.digest, commit, signer: self.signer }
    }

    /// Returns what `run_metadata.json` says about the base.
    pub(crate) fn described(&self) -> BaseModel {
        let origin = self.origin.clone();
        let (repository, commit) = origin.map(|origin| (origin.repository, origin.commit)).unzip();
        BaseModel { digest: self.digest, source: self.path.clone(), repository, commit, signer: self.signer }
    }

    /// Returns the manifest digest of the directory.
    pub fn digest(&self) -> ModelDigest {
        self.digest
    }

    /// Returns the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the configuration of the model.
    pub(crate) fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Returns the tokenizer of the model.
    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Reads the files into memory, and checks that they are the same as at the start.
    fn files(&self) -> Result<ModelFiles, BaseError> {
        let read = files::walk(&self.path, &besides()).and_then(Manifest::read);
        let (manifest, files) = read.map_err(|source| BaseError::Unreadable { path: self.path.clone(), source })?;
        self.unchanged(manifest.digest())?;
        Ok(files)
    }

    fn unchanged(&self, now: ModelDigest) -> Result<(), BaseError> {
        if now == self.digest {
            return Ok(());
        }
        Err(BaseError::Changed { path: self.path.clone(), before: self.digest, now })
    }

    /// Reads the parameters, in the order of [`Layout::of`]. Files are not held in memory.
    ///
    /// # Errors
    /// A file has changed, or its weights are invalid.
    pub(crate) fn parameters(&self) -> Result<Vec<f32>, BaseError> {
        let read = read_parameters(&self.path, &Layout::of(&self.config));
        // Hashed after reading: weights that changed meanwhile are not used, and the change is reported before its effects.
        self.unchanged(manifest(&self.path)?.digest())?;
        read.map_err(|source| self.refused(source))
    }

    fn refused(&self, source: ModelError) -> BaseError {
        BaseError::Model { path: self.path.clone(), source }
    }

    /// Returns the files of the base with the trained parameters of `model` in it: the same files, and the same tensors in the
    /// same types, of which the trained ones have other values.
    ///
    /// # Errors
    /// A file has changed, or a value is too large for its type.
    pub(crate) fn trained(&self, model: &TrainedModel, trained: &[f32]) -> Result<ModelFiles, BaseError> {
        let mut files = self.files()?;
        let layout = model.layout().map_err(|source| BaseError::Adapters { path: self.path.clone(), source })?;
        let places: BTreeMap<&str, _> =
            layout.tensors().iter().map(|tensor| (short(&tensor.name), tensor.range.clone())).collect();
        let written = rewrite(&mut files, |name, values| {
            if let Some(lora) = &model.lora {
                return lora.merge(&layout, trained, name, values);
            }
            // A tied output projection may be stored as a copy of the embedding, which is the first tensor.
            let place = match (places.get(short(name)), layout.tensors().first()) {
                (None, Some(embedding)) if name == HEAD => &embedding.range,
                (Some(place), _) => place,
                _ => return false,
            };
            values.copy_from_slice(&trained[place.clone()]);
            true
        });
        written.map_err(|source| self.refused(source))?;
        Ok(files)
    }

    /// Returns the files of the base as they are.
    ///
    /// # Errors
    /// A file has changed, or its weights are invalid.
    pub(crate) fn copy(&self) -> Result<ModelFiles, BaseError> {
        // Reading the parameters checks every value.
        drop(self.parameters()?);
        self.files()
    }
}

/// Returns the names that are not files of a base: a signature would change the digest that it signs, and is not one of the
/// model that is trained.
fn besides() -> BTreeSet<String> {
    BTreeSet::from([SIGNATURE.to_owned()])
}

/// Returns the manifest of a directory.
fn manifest(path: &Path) -> Result<Manifest, BaseError> {
    let manifest = Manifest::of_dir_except(path, &besides());
    manifest.map_err(|source| BaseError::Unreadable { path: path.to_owned(), source })
}

/// Checks that a directory has a signature by `key` over its files, and returns the key's fingerprint. A downloaded directory
/// lacks files that a download does not take.
fn signed_by(path: &Path, manifest: &Manifest, key: &PublicKey, downloaded: bool) -> Result<Sha256, BaseError> {
    let bundle = files::read_start(&path.join(SIGNATURE), bundle::MAX_BYTES).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => BaseError::Unsigned { path: path.to_owned() },
        _ => BaseError::UnreadableSignature { path: path.to_owned(), source },
    })?;
    let left_out = |name: &str| downloaded && !hub::is_taken(name);
    let signed = verify_part(manifest, &bundle, key, left_out)
        .map_err(|source| BaseError::Signature { path: path.to_owned(), source: Box::new(source) })?;
    Ok(signed.signer)
}

/// The model that a run trains: its shape, and the adapters if only these are trained.
#[derive(Clone, Debug)]
pub(crate) struct TrainedModel {
    pub(crate) config: ModelConfig,
    pub(crate) lora: Option<Lora>,
    /// Number of trained parameters.
    pub(crate) trained: usize,
}

impl TrainedModel {
    /// Returns a model of which all parameters are trained.
    pub(crate) fn whole(config: ModelConfig) -> Self {
        Self { trained: config.parameters(), config, lora: None }
    }

    /// Returns what a run with these settings trains of a base.
    ///
    /// # Errors
    /// The base cannot have adapters.
    pub(crate) fn of_base(base: &Base, training: &Optimization) -> Result<Self, BaseError> {
        Self::of_config(&base.path, base.config().clone(), training)
    }

    /// As [`of_base`](Self::of_base), for the base in the directory `path` with this configuration.
    ///
    /// # Errors
    /// The base cannot have adapters.
    pub(crate) fn of_config(path: &Path, config: ModelConfig, training: &Optimization) -> Result<Self, BaseError> {
        if !training.trains_adapters() {
            return Ok(Self::whole(config));
        }
        let lora = lora(&training.lora);
        let layout = lora.layout(&config).map_err(|source| BaseError::Adapters { path: path.to_owned(), source })?;
        Ok(Self { config, lora: Some(lora), trained: layout.size() })
    }

    /// Returns the layout of the trained parameters.
    pub(crate) fn layout(&self) -> Result<Layout, LoraError> {
        match &self.lora {
            None => Ok(Layout::of(&self.config)),
            Some(lora) => lora.layout(&self.config),
        }
    }

    /// Returns the state of a snapshot, or the initial one.
    ///
    /// # Errors
    /// When the base cannot be read, or the snapshot is of another model.
    pub(crate) fn state(
        &self,
        base: Option<&Base>,
        seed: u64,
        settings: Settings,
        snapshot: impl FnOnce(&Arc<Layout>) -> Result<Option<Snapshot>, TrainError>,
    ) -> Result<State, TrainError> {
        let layout = Arc::new(self.layout().map_err(codex_engine::EngineError::from)?);
        let snapshot = snapshot(&layout)?;
        let config = self.config.clone();
        let make = |state: Option<EngineState>| -> Result<_, TrainError> {
            let of = |parameters| EngineState::new(layout.clone(), parameters);
            let engine = match (base, &self.lora) {
                (Some(base), Some(lora)) => {
                    let initial = || lora.initial(&config, seed).map(of);
                    let state = state.map_or_else(initial, Ok).map_err(codex_engine::EngineError::from)?;
                    lora_engine(config.clone(), &base.parameters()?, lora.clone(), state, settings)?
                }
                (base, _) => {
                    let state = match (state, base) {
                        (Some(state), _) => state,
                        (None, Some(base)) => of(base.parameters()?),
                        (None, None) => of(initial(&config, &layout, seed)),
                    };
                    engine(config.clone(), state, settings)?
                }
            };
            Ok(engine)
        };
        match snapshot {
            None => Ok(State::begin(make(None)?)),
            Some(snapshot) => State::resume(snapshot, |state| make(Some(state))),
        }
    }

    /// Returns all parameters of the model, of which `trained` are the trained ones.
    ///
    /// # Errors
    /// When the base cannot be read.
    pub(crate) fn parameters(&self, base: Option<&Base>, trained: &[f32]) -> Result<Option<Vec<f32>>, BaseError> {
        let (Some(base), Some(lora)) = (base, &self.lora) else { return Ok(None) };
        let refused = |source| BaseError::Adapters { path: base.path.clone(), source };
        let adapters = lora.layout(&self.config).map_err(refused)?;
        let mut parameters = base.parameters()?;
        for tensor in Layout::of(&self.config).tensors() {
            lora.merge(&adapters, trained, &tensor.name, &mut parameters[tensor.range.clone()]);
        }
        Ok(Some(parameters))
    }

    /// Returns the files of the adapter, if only that is trained.
    ///
    /// # Errors
    /// When the weights cannot be encoded.
    pub(crate) fn adapter(&self, trained: &[f32]) -> Result<Option<ModelFiles>, TrainError> {
        let Some(lora) = &self.lora else { return Ok(None) };
        let layout = lora.layout(&self.config).map_err(codex_engine::EngineError::from)?;
        Ok(Some(describe_adapter(lora, &layout, trained)?))
    }
}

/// Returns the name of a method that needs a base; `None` for one that does not.
pub(crate) fn needs_base(method: Method) -> Option<&'static str> {
    match method {
        Method::Sft => None,
        Method::Lora => Some("lora"),
        Method::Dpo => Some("dpo"),
        Method::Grpo => Some("grpo"),
        Method::None => Some("none"),
    }
}

/// Returns the engine's settings of LoRA. The configuration has only names of projections.
fn lora(settings: &LoraSettings) -> Lora {
    let targets = settings.targets.iter().filter_map(|name| Projection::of(name)).collect();
    Lora { rank: settings.rank, alpha: settings.alpha, dropout: settings.dropout, targets }
}
