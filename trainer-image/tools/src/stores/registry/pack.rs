//! The manifests of OCI and the layout of `ModelPack`, as far as they are used. Pure.
//!
//! Sources: `image-spec/manifest.md`, `image-index.md` and `artifacts-guidance.md` of the Open Container Initiative; `docs/spec.md`,
//! `docs/annotations.md` and `schema/config-schema.json` of `modelpack/model-spec`; the bundle specification of cosign.

use std::collections::BTreeMap;

use codex_provenance::{
    ModelDigest, Sha256,
    manifest::{File, Manifest},
    oms::SIGNATURE,
};
use serde::{Deserialize, Serialize};

/// The media type of a manifest.
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of a list of manifests.
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The type of an artefact that is a model.
const MODEL: &str = "application/vnd.cncf.model.manifest.v1+json";
/// The media type of the description of a model.
const CONFIG: &str = "application/vnd.cncf.model.config.v1+json";
/// What the media types of layers of a model begin with.
const LAYER: &str = "application/vnd.cncf.model.";
/// The end of the media types of files without an archive.
const RAW: &str = ".v1.raw";
/// The annotation with the path of a layer's file.
const PATH: &str = "org.cncf.model.filepath";
/// The annotation with the model digest.
pub(super) const MODEL_DIGEST: &str = "codex-ml.dev/model-digest";
/// The media type of a configuration that is `{}`.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// The media type of bundles of Sigstore, and the type of artefacts that hold one.
pub(super) const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// Weights, by the ends of their names.
const WEIGHTS: [&str; 7] = ["safetensors", "gguf", "bin", "pt", "pth", "npz", "onnx"];

/// Something in a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub(super) media_type: String,
    /// `sha256:` and hexadecimal digits.
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Returns the descriptor of bytes.
    pub(super) fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self::new(media_type, Sha256::of(bytes), bytes.len() as u64)
    }

    fn new(media_type: &str, sha256: Sha256, size: u64) -> Self {
        let (media_type, digest) = (media_type.to_owned(), format!("sha256:{sha256}"));
        Self { media_type, digest, size, artifact_type: None, annotations: BTreeMap::new() }
    }

    /// Returns the SHA-256 of the contents.
    pub(super) fn sha256(&self) -> Option<Sha256> {
        self.digest.strip_prefix("sha256:")?.parse().ok()
    }
}

/// A manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Packed {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

/// A list of manifests.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    pub(super) manifests: Vec<Descriptor>,
}

impl Default for Index {
    fn default() -> Self {
        Self { schema_version: 2, media_type: Some(INDEX.to_owned()), manifests: Vec::new() }
    }
}

/// A model in a registry.
#[derive(Clone, Debug)]
pub(super) struct Contents {
    /// The files of the model.
    pub(super) manifest: Manifest,
    /// The signature beside them.
    pub(super) signature: Option<File>,
}

/// Returns the manifest of an artefact with these files, and the description of the model, which it names.
pub(super) fn pack(model: &Manifest, signature: Option<&File>, config_json: Option<&[u8]>) -> (Packed, Vec<u8>) {
    let layers: Vec<Descriptor> = model.files.iter().chain(signature).map(layer).collect();
    let config = describe(&layers, config_json);
    let packed = Packed {
        schema_version: 2,
        media_type: Some(MANIFEST.to_owned()),
        artifact_type: Some(MODEL.to_owned()),
        config: Descriptor::of(CONFIG, &config),
        layers,
        subject: None,
        annotations: BTreeMap::from([(MODEL_DIGEST.to_owned(), model.digest().to_string())]),
    };
    (packed, config)
}

fn layer(file: &File) -> Descriptor {
    let name = file.path.rsplit('/').next().unwrap_or_default();
    let stem = name.split('.').next().unwrap_or_default();
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    let kind = if WEIGHTS.contains(&ending) {
        "weight"
    } else if ending == "py" {
        "code"
    } else if name == SIGNATURE || ending == "md" || ["LICENSE", "NOTICE", "README"].contains(&stem) {
        "doc"
    } else {
        "weight.config"
    };
    let mut layer = Descriptor::new(&format!("{LAYER}{kind}{RAW}"), file.sha256, file.size);
    layer.annotations.insert(PATH.to_owned(), file.path.clone());
    layer
}

/// Returns the description of a model. It follows from the files alone, so that the same files have the same digest.
fn describe(layers: &[Descriptor], config_json: Option<&[u8]>) -> Vec<u8> {
    let known: serde_json::Value = config_json.and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default();
    let text = |name: &str| known.get(name).and_then(|value| value.as_str());
    let mut config = serde_json::Map::new();
    let ends = |end: &str| layers.iter().any(|layer| layer.annotations[PATH].ends_with(end));
    if let Some(format) = ["safetensors", "gguf", "onnx"].into_iter().find(|end| ends(&format!(".{end}"))) {
        config.insert("format".to_owned(), format.into());
    }
    let precision = match text("dtype").or_else(|| text("torch_dtype")) {
        Some("bfloat16") => Some("bf16"),
        Some("float16") => Some("fp16"),
        Some("float32") => Some("fp32"),
        _ => None,
    };
    config.extend(precision.map(|precision| ("precision".to_owned(), precision.into())));
    let mut descriptor = serde_json::Map::new();
    descriptor.extend(text("model_type").map(|family| ("family".to_owned(), family.into())));
    let digests: Vec<&str> = layers.iter().map(|layer| layer.digest.as_str()).collect();
    let modelfs = serde_json::json!({ "type": "layers", "diffIds": digests });
    let whole = serde_json::json!({ "descriptor": descriptor, "modelfs": modelfs, "config": config });
    whole.to_string().into_bytes()
}

impl Packed {
    /// Returns the bytes that are pushed.
    pub(super) fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// A sentence that names what is wrong.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let packed: Self = codex_json::from_slice(bytes).map_err(|why| why.to_string())?;
        match packed.media_type.as_deref() {
            None | Some(MANIFEST) => Ok(packed),
            Some(other) => Err(format!("its media type is {other:?}, not {MANIFEST:?}")),
        }
    }

    /// Returns the files of a model.
    ///
    /// # Errors
    /// It is no model, or a layer is an archive or has no path.
    pub(super) fn contents(&self) -> Result<Contents, String> {
        let kind = self.artifact_type.as_deref().unwrap_or(&self.config.media_type);
        if kind != MODEL && self.config.media_type != CONFIG {
            return Err(format!("it is a {kind:?}, not a ModelPack artefact ({MODEL:?})"));
        }
        let mut files = Vec::new();
        for layer in &self.layers {
            let Descriptor { media_type, digest, size, annotations, .. } = layer;
            if !media_type.starts_with(LAYER) || !media_type.ends_with(RAW) {
                let right = "pack its files as raw layers";
                return Err(format!("the layer {digest} is a {media_type:?}, and archives are not unpacked: {right}"));
            }
            let path = annotations.get(PATH).ok_or_else(|| format!("the layer {digest} has no annotation {PATH}"))?;
            let sha256 = layer.sha256().ok_or_else(|| format!("the layer of {path:?} has no SHA-256"))?;
            files.push(File { path: path.clone(), size: *size, sha256 });
        }
        let is_signature = |file: &File| file.path == SIGNATURE;
        let signature = files.iter().find(|file| is_signature(file)).cloned();
        files.retain(|file| !is_signature(file));
        let manifest = Manifest::of_hashed(files).map_err(|why| why.to_string())?;
        let found = manifest.digest();
        let named = self.annotations.get(MODEL_DIGEST).map(|text| text.parse::<ModelDigest>());
        match named {
            Some(named) if named.as_ref().ok() != Some(&found) => {
                Err(format!("its annotation {MODEL_DIGEST} is not the digest of its files, {found}"))
            }
            _ => Ok(Contents { manifest, signature }),
        }
    }
}

/// Returns the manifest of an artefact that holds a bundle and refers to `subject`, and its configuration.
pub(super) fn attach(subject: Descriptor, bundle: &[u8]) -> (Packed, &'static [u8]) {
    let config = b"{}";
    let mut annotations = BTreeMap::new();
    let wire: serde_json::Value = serde_json::from_slice(bundle).unwrap_or_default();
    if let Some(envelope) = wire.get("dsseEnvelope") {
        annotations.insert("dev.sigstore.bundle.content".to_owned(), "dsse-envelope".to_owned());
        annotations.extend(predicate(envelope).map(|kind| ("dev.sigstore.bundle.predicateType".to_owned(), kind)));
    } else {
        annotations.insert("dev.sigstore.bundle.content".to_owned(), "message-signature".to_owned());
    }
    let packed = Packed {
        schema_version: 2,
        media_type: Some(MANIFEST.to_owned()),
        artifact_type: Some(BUNDLE.to_owned()),
        config: Descriptor::of(EMPTY, config),
        layers: vec![Descriptor::of(BUNDLE, bundle)],
        subject: Some(subject),
        annotations,
    };
    (packed, config)
}

/// Returns the type of the statement in an envelope.
fn predicate(envelope: &serde_json::Value) -> Option<String> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let payload = STANDARD.decode(envelope.get("payload")?.as_str()?).ok()?;
    let statement: serde_json::Value = serde_json::from_slice(&payload).ok()?;
    Some(statement.get("predicateType")?.as_str()?.to_owned())
}

impl Packed {
    /// Returns the entry of this manifest in the list of what refers to its subject.
    pub(super) fn entry(&self) -> Descriptor {
        let mut entry = Descriptor::of(MANIFEST, &self.bytes());
        entry.artifact_type.clone_from(&self.artifact_type);
        entry.annotations.clone_from(&self.annotations);
        entry
    }
}
