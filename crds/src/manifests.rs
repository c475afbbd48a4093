//! Renders `manifests/crd/`: the three CRDs and the kustomization that names them. Pure but for [`write`].

use std::{fs, io, path::Path};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use crate::{Evaluation, ReasoningPod, TrainingRun};

const HEADER: &str = "# Generated from the types in crds/; crds/tests/manifests.rs says by which command.\n";

/// Why the files could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ManifestsError {
    /// A CRD that YAML cannot carry.
    #[error("the CRD cannot be written as YAML")]
    Yaml(#[from] serde_yaml::Error),
    /// The directory or a file in it.
    #[error("{path} cannot be written")]
    Io {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The three CRDs, each with the name of its file.
pub fn all() -> [(&'static str, CustomResourceDefinition); 3] {
    [
        ("trainingruns.yaml", TrainingRun::crd()),
        ("evaluations.yaml", Evaluation::crd()),
        ("reasoningpods.yaml", ReasoningPod::crd()),
    ]
}

/// The files of `manifests/crd/` by name.
///
/// # Errors
/// When YAML cannot carry a CRD.
pub fn files() -> Result<Vec<(&'static str, String)>, ManifestsError> {
    let mut kustomization =
        format!("{HEADER}apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n");
    let mut files = Vec::new();
    for (name, crd) in all() {
        kustomization.push_str("- ");
        kustomization.push_str(name);
        kustomization.push('\n');
        files.push((name, format!("{HEADER}{}", serde_yaml::to_string(&crd)?)));
    }
    files.push(("kustomization.yaml", kustomization));
    Ok(files)
}

/// Writes [`files`] into `directory`, each under a temporary name first.
///
/// # Errors
/// Whatever the file system refuses.
pub fn write(directory: &Path) -> Result<(), ManifestsError> {
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |source| ManifestsError::Io { path, source }
    };
    fs::create_dir_all(directory).map_err(failed(directory))?;
    for (name, text) in files()? {
        let (path, temporary) = (directory.join(name), directory.join(format!(".{name}.new")));
        fs::write(&temporary, text)
            .and_then(|()| fs::File::open(&temporary)?.sync_all())
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(failed(&path))?;
    }
    Ok(())
}
