//! The statement of OpenSSF Model Signing v1.0 about the files of a model. Pure.
//!
//! Source: the `model_signing` package 1.1.1, which reads what this module writes and writes what it reads. The subject of
//! the statement is the [`OmsRoot`], which covers contents in their order. The resources in its predicate add the names, so
//! they are compared one by one.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    digest::{ModelDigest, OmsPayloadDigest, OmsRoot, Sha256},
    files::{Entry, IGNORED},
    manifest::{Difference, File, Manifest, SCHEMA},
    statement,
};

/// The predicate type of OpenSSF Model Signing.
pub const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";
/// The name of the bundle inside a model directory. It travels with the files of the model and is none of them.
pub const SIGNATURE: &str = "model.sig";
/// The name of the one resource of a model that is a single file.
const SINGLE_FILE: &str = ".";

/// Extensions of files that a server of a model may load: weights, configuration, tokenizers, templates, code.
const LOADED: [&str; 14] =
    ["safetensors", "json", "jinja", "model", "txt", "bin", "pt", "pth", "ckpt", "gguf", "onnx", "npz", "pkl", "py"];

#[derive(Debug, Serialize, Deserialize)]
struct Predicate {
    serialization: Serialization,
    resources: Vec<Resource>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Serialization {
    method: String,
    hash_type: String,
    allow_symlinks: bool,
    #[serde(default)]
    ignore_paths: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Resource {
    name: String,
    algorithm: String,
    digest: Sha256,
}

/// Returns the bytes to sign for a model. `name` is for people; no verifier checks it.
pub fn payload(manifest: &Manifest, name: &str) -> Vec<u8> {
    let resources = manifest.files.iter().map(|file| Resource {
        name: file.path.clone(),
        algorithm: "sha256".to_owned(),
        digest: file.sha256,
    });
    let predicate = Predicate {
        serialization: Serialization {
            method: "files".to_owned(),
            hash_type: "sha256".to_owned(),
            allow_symlinks: false,
            ignore_paths: IGNORED.map(str::to_owned).to_vec(),
        },
        resources: resources.collect(),
    };
    statement::write(name, manifest.oms_root().0, PREDICATE_TYPE, &predicate)
}

/// Returns the digest that a promotion statement names a payload by.
pub fn payload_digest(payload: &[u8]) -> OmsPayloadDigest {
    OmsPayloadDigest(Sha256::of(payload))
}

/// A statement of OpenSSF Model Signing over files.
#[derive(Clone, Debug)]
pub struct Statement {
    resources: Vec<Resource>,
    ignored: Vec<String>,
}

/// The result of comparing a statement with the files of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// The statement covers exactly these files, except the `skipped` ones, which it leaves out by its `ignore_paths`.
    Same {
        /// Paths that the statement does not cover. A server loads none of them.
        skipped: Vec<String>,
    },
    /// The statement covers other files.
    Different(Vec<Difference>),
    /// The statement leaves out the file at this path by its `ignore_paths`, and a server may load it.
    Uncovered(String),
}

/// Reasons why a listing of a model directory is not what a statement covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListingError {
    /// Files are missing or were added.
    Names(Vec<Difference>),
    /// The statement leaves out the file at this path by its `ignore_paths`.
    Skipped(String),
    /// With these sizes, the digests of the statement make up another model than the expected one.
    Sizes(Vec<(String, u64)>),
}

impl Statement {
    /// Reads the payload of a verified bundle.
    ///
    /// # Errors
    /// Fails if the payload is not a statement of OpenSSF Model Signing over files, or contradicts itself.
    pub fn read(payload: &[u8]) -> Result<Self, String> {
        let (root, Predicate { serialization, resources }) = statement::read(payload, PREDICATE_TYPE)?;
        if (serialization.method.as_str(), serialization.hash_type.as_str()) != ("files", "sha256") {
            return Err(format!(
                "it uses the method {:?} with {:?}; only \"files\" with \"sha256\" is supported",
                serialization.method, serialization.hash_type
            ));
        }
        if let Some(Resource { name, algorithm, .. }) = resources.iter().find(|resource| resource.algorithm != "sha256")
        {
            return Err(format!("it hashes {name:?} with {algorithm:?}; only \"sha256\" is supported"));
        }
        let statement = Self { resources, ignored: serialization.ignore_paths };
        if statement.manifest(&BTreeMap::new()).oms_root() != OmsRoot(root) {
            return Err("its root is not the digest of the resources that it lists".to_owned());
        }
        Ok(statement)
    }

    /// Returns the statement without the files that are not in `manifest` and that `left_out` names: what it says about the
    /// part of a model that is at hand.
    #[must_use]
    pub fn about_part(&self, manifest: &Manifest, left_out: impl Fn(&str) -> bool) -> Self {
        let there: BTreeSet<&str> = manifest.files.iter().map(|file| &*file.path).collect();
        let mut part = self.clone();
        part.resources.retain(|resource| there.contains(&*resource.name) || !left_out(&resource.name));
        part
    }

    /// The statement as a manifest. Sizes are not part of a statement, so they are taken from `sizes`.
    fn manifest(&self, sizes: &BTreeMap<&str, u64>) -> Manifest {
        let file = |resource: &Resource| File {
            size: sizes.get(&*resource.name).copied().unwrap_or(0),
            path: resource.name.clone(),
            sha256: resource.digest,
        };
        Manifest { schema: SCHEMA, files: self.resources.iter().map(file).collect() }
    }

    /// The statement about the model with the files `paths`. Model signing gives the file of a single-file model no name, so
    /// it gets the one at hand.
    fn about(&self, paths: &BTreeMap<&str, u64>) -> Self {
        let mut named = self.clone();
        if let ([resource], Some((path, _)), 1) = (named.resources.as_mut_slice(), paths.first_key_value(), paths.len())
            && resource.name == SINGLE_FILE
        {
            (*path).clone_into(&mut resource.name);
        }
        named
    }

    /// Whether `ignore_paths` names the path or a directory above it.
    fn ignores(&self, path: &str) -> bool {
        self.ignored.iter().any(|ignored| {
            let ignored = ignored.strip_prefix("./").unwrap_or(ignored).trim_end_matches('/');
            let rest = path.strip_prefix(ignored).filter(|_| !ignored.is_empty());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }

    /// The names that the statement covers.
    fn names(&self) -> BTreeSet<&str> {
        self.resources.iter().map(|resource| &*resource.name).collect()
    }

    /// Compares the statement with a manifest that was computed from the files at hand.
    ///
    /// # Errors
    /// Fails if the statement lists a file twice or in an order that model signing does not use.
    pub fn compare(&self, manifest: &Manifest) -> Result<Comparison, String> {
        let sizes = manifest.files.iter().map(|file| (&*file.path, file.size)).collect();
        let statement = self.about(&sizes);
        let names = statement.names();
        let (skipped, covered): (Vec<_>, Vec<_>) =
            manifest.files.iter().partition(|file| !names.contains(&*file.path) && statement.ignores(&file.path));
        if let Some(file) = skipped.iter().find(|file| may_be_loaded(&file.path)) {
            return Ok(Comparison::Uncovered(file.path.clone()));
        }
        let covered = Manifest { schema: manifest.schema, files: covered.into_iter().cloned().collect() };
        let signed = statement.manifest(&sizes);
        let differences = signed.diff(&covered);
        if !differences.is_empty() {
            return Ok(Comparison::Different(differences));
        }
        if signed != covered {
            return Err("it lists a file twice, or its files in another order than model signing does".to_owned());
        }
        Ok(Comparison::Same { skipped: skipped.into_iter().map(|file| file.path.clone()).collect() })
    }

    /// Compares a listing with the statement before any file is read. Names must be those of the statement. Sizes are right
    /// if, with them, the digests of the statement make up the model `expected`, because a model digest covers sizes.
    ///
    /// # Errors
    /// [`ListingError`] says what differs.
    pub fn check_listing(&self, entries: &[Entry], expected: ModelDigest) -> Result<Manifest, ListingError> {
        let sizes: BTreeMap<_, _> = entries.iter().map(|entry| (&*entry.path, entry.size)).collect();
        let statement = self.about(&sizes);
        let names = statement.names();
        let missing = names.iter().filter(|name| !sizes.contains_key(*name)).map(|name| (*name).to_owned());
        let added = sizes.keys().filter(|path| !names.contains(*path)).map(|path| (*path).to_owned());
        let added: Vec<_> = added.collect();
        let mut differences: Vec<_> = missing.map(|path| Difference::Missing { path }).collect();
        if differences.is_empty()
            && let Some(path) = added.iter().find(|path| statement.ignores(path))
        {
            return Err(ListingError::Skipped(path.clone()));
        }
        differences.extend(added.into_iter().map(|path| Difference::Added { path }));
        if !differences.is_empty() {
            return Err(ListingError::Names(differences));
        }
        let manifest = statement.manifest(&sizes);
        if manifest.digest() != expected {
            return Err(ListingError::Sizes(entries.iter().map(|entry| (entry.path.clone(), entry.size)).collect()));
        }
        Ok(manifest)
    }
}

/// Whether a server of a model may load a file of this name.
fn may_be_loaded(path: &str) -> bool {
    let extension = path.rsplit('/').next().and_then(|name| name.rsplit_once('.')).map(|(_, extension)| extension);
    extension.is_some_and(|extension| LOADED.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}
