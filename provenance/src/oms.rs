//! The statement of OpenSSF Model Signing v1.0 about a model's files. Pure.
//!
//! Source: the `model_signing` package 1.1.1, which reads what this module writes and writes what it reads. The
//! statement's subject is the [`OmsRoot`], which binds contents in their order; names are bound by the resources in its
//! predicate, which are therefore compared one by one, and by [`OmsPayloadDigest`].

use serde::{Deserialize, Serialize};

use crate::{
    digest::{OmsPayloadDigest, OmsRoot, Sha256},
    files::IGNORED,
    manifest::{Difference, Manifest},
    statement,
};

/// The predicate type of OpenSSF Model Signing.
pub const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";

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

#[derive(Debug, Serialize, Deserialize)]
struct Resource {
    name: String,
    algorithm: String,
    digest: Sha256,
}

/// The bytes to sign for a model; `name` is what people call it and is checked by nobody.
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

/// The digest that a promotion statement binds a payload by.
pub fn payload_digest(payload: &[u8]) -> OmsPayloadDigest {
    OmsPayloadDigest(Sha256::of(payload))
}

/// What a statement has to say about a manifest that was computed from bytes at hand.
#[derive(Debug)]
pub enum Verdict {
    /// It names exactly these files, with these contents, in this order.
    Same,
    /// It names others.
    Different(Vec<Difference>),
}

/// Compares a signed payload with a manifest, resource by resource.
///
/// # Errors
/// Why the payload is no statement of OpenSSF Model Signing over files, or contradicts itself.
pub fn compare(payload: &[u8], manifest: &Manifest) -> Result<Verdict, String> {
    let (root, Predicate { serialization, resources }) = statement::read(payload, PREDICATE_TYPE)?;
    if (serialization.method.as_str(), serialization.hash_type.as_str()) != ("files", "sha256") {
        return Err(format!(
            "it serialises by {:?} with {:?}, and \"files\" with \"sha256\" is the one known here",
            serialization.method, serialization.hash_type
        ));
    }
    if let Some(Resource { name, algorithm, .. }) = resources.iter().find(|resource| resource.algorithm != "sha256") {
        return Err(format!("it hashes {name:?} with {algorithm:?}, and \"sha256\" is the one known here"));
    }
    // Sizes are not part of the statement: those at hand stand in, so that only names and contents are compared.
    let size_of = |name: &str| manifest.files.iter().find(|file| file.path == name).map_or(0, |file| file.size);
    let signed = Manifest {
        schema: manifest.schema,
        files: resources
            .into_iter()
            .map(|Resource { name, digest, .. }| crate::manifest::File {
                size: size_of(&name),
                path: name,
                sha256: digest,
            })
            .collect(),
    };
    if signed.oms_root() != OmsRoot(root) {
        return Err("its root is not the digest of the resources that it lists".to_owned());
    }
    let differences = signed.diff(manifest);
    if !differences.is_empty() {
        return Ok(Verdict::Different(differences));
    }
    if signed != *manifest {
        return Err("it lists a file twice, or its files in another order than model signing does".to_owned());
    }
    Ok(Verdict::Same)
}
