//! The resolved configuration file: a composed configuration with its digest. Pods read no other form. Pure.

use codex_provenance::{ConfigDigest, Sha256};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::ConfigError;

/// Version of the format of the file. A new key is no new version: `keys` says how it leaves the digests of others as they are.
pub const SCHEMA_VERSION: u32 = 1;
/// The kinds of objects whose pods read such a file.
const KINDS: [&str; 2] = ["TrainingRun", "Evaluation"];
/// Maximum seed. Larger JSON numbers are not exact.
pub const MAX_SEED: u64 = (1 << 53) - 1;

/// The configuration of a kind of pod.
pub trait Spec: Serialize + DeserializeOwned {
    /// Kind of the object that owns the pod.
    const KIND: &'static str;

    /// Returns the seed.
    fn seed(&self) -> u64;

    /// Checks every value, and values against each other.
    ///
    /// # Errors
    /// [`ConfigError`] names the first invalid value.
    fn check(&self) -> Result<(), ConfigError>;
}

/// A checked configuration and its digest.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved<T> {
    spec: T,
    digest: ConfigDigest,
}

/// The value that the digest covers.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Digested<'a, T> {
    schema_version: u32,
    kind: &'static str,
    spec: &'a T,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a, T> {
    schema_version: u32,
    digest: ConfigDigest,
    kind: &'static str,
    spec: &'a T,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Read {
    digest: String,
    #[serde(rename = "kind")]
    _kind: String,
    spec: serde_yaml::Value,
}

impl<T: Spec> Resolved<T> {
    /// Checks `spec` and hashes it: SHA-256 over the canonical JSON (RFC 8785) of `{schemaVersion, kind, spec}`.
    ///
    /// # Errors
    /// [`ConfigError`] names the first invalid value of `spec`.
    pub fn new(spec: T) -> Result<Self, ConfigError> {
        if spec.seed() > MAX_SEED {
            return Err(ConfigError::Seed(spec.seed()));
        }
        spec.check()?;
        let digested = Digested { schema_version: SCHEMA_VERSION, kind: T::KIND, spec: &spec };
        let canonical =
            serde_json_canonicalizer::to_vec(&digested).map_err(|source| ConfigError::Canonical { source })?;
        Ok(Self { digest: ConfigDigest(Sha256::of(canonical)), spec })
    }

    /// Returns the configuration.
    pub fn spec(&self) -> &T {
        &self.spec
    }

    /// Returns the digest of the configuration.
    pub fn digest(&self) -> ConfigDigest {
        self.digest
    }

    /// Returns the value whose canonical JSON (RFC 8785) has the digest; `None` if JSON cannot represent it.
    pub fn digested(&self) -> Option<serde_json::Value> {
        let digested = Digested { schema_version: SCHEMA_VERSION, kind: T::KIND, spec: &self.spec };
        let value = serde_json::to_value(&digested).ok()?;
        // A number that another type would round is not left to the reader.
        let canonical = serde_json_canonicalizer::to_vec(&value).ok()?;
        (Sha256::of(canonical) == self.digest.0).then_some(value)
    }

    /// Returns the contents of the resolved configuration file.
    ///
    /// # Errors
    /// [`ConfigError::NotResolved`] if YAML cannot represent a value.
    pub fn to_yaml(&self) -> Result<String, ConfigError> {
        let written = Written { schema_version: SCHEMA_VERSION, digest: self.digest, kind: T::KIND, spec: &self.spec };
        serde_yaml::to_string(&written).map_err(|source| ConfigError::NotResolved { source })
    }

    /// Reads a resolved configuration file, checks its values and compares its digest.
    ///
    /// # Errors
    /// [`ConfigError`] if the file is not a resolved configuration, has another version, kind, shape or digest, or holds an
    /// invalid value.
    pub fn from_yaml(bytes: &[u8]) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::NotResolved { source };
        // Nothing of a file is quoted before it is known to be a configuration: it may be a token or a key. The version comes
        // first, because a file of another version may have any shape.
        let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
        if [[0xff, 0xfe], [0xfe, 0xff]].iter().any(|mark| bytes.starts_with(mark)) {
            return Err(ConfigError::Utf16);
        }
        let any: serde_yaml::Value = serde_yaml::from_slice(bytes).map_err(|error| ConfigError::ForeignText {
            place: error.location().map(|place| (place.line(), place.column())),
        })?;
        let serde_yaml::Value::Mapping(mut any) = any else { return Err(ConfigError::Foreign) };
        let version = any.remove("schemaVersion").and_then(|version| version.as_u64());
        let version = version.ok_or(ConfigError::Foreign)?;
        if version != u64::from(SCHEMA_VERSION) {
            return Err(ConfigError::Version { found: version });
        }
        let kind = any.get("kind").and_then(|kind| KINDS.into_iter().find(|known| kind == *known));
        let kind = kind.ok_or(ConfigError::Foreign)?;
        if kind != T::KIND {
            return Err(ConfigError::Kind { found: kind, wanted: T::KIND });
        }
        let read: Read = serde_yaml::from_value(any.into()).map_err(unreadable)?;
        let resolved = Self::new(serde_yaml::from_value(read.spec).map_err(unreadable)?)?;
        if read.digest != resolved.digest.to_string() {
            return Err(ConfigError::Digest { written: read.digest, computed: resolved.digest });
        }
        Ok(resolved)
    }
}
