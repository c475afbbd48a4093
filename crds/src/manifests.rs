//! Renders `manifests/crd/`: the CRDs and their kustomization. Pure, except for [`write`].

use std::{fs, io, path::Path};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

use crate::{ClusterPromotionPolicy, Evaluation, PromotionPolicy, ReasoningPod, SignOff, TrainingRun};

const HEADER: &str = "# Generated from the types in crds/; crds/tests/manifests.rs names the command.\n";

/// Reasons why the manifests cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ManifestsError {
    /// A CRD cannot be serialized.
    #[error("a CRD cannot be serialized as YAML")]
    Yaml(#[from] serde_yaml::Error),
    /// The directory or a file in it cannot be written.
    #[error("{path} cannot be written")]
    Io {
        /// The directory or file.
        path: String,
        /// The error of the file system.
        #[source]
        source: io::Error,
    },
}

/// Returns the CRDs, each with the name of its file.
pub fn all() -> [(&'static str, CustomResourceDefinition); 6] {
    [
        ("trainingruns.yaml", without_null(TrainingRun::crd())),
        ("evaluations.yaml", without_null(Evaluation::crd())),
        ("reasoningpods.yaml", without_null(ReasoningPod::crd())),
        ("clusterpromotionpolicies.yaml", without_null(ClusterPromotionPolicy::crd())),
        ("promotionpolicies.yaml", without_null(PromotionPolicy::crd())),
        ("signoffs.yaml", without_null(SignOff::crd())),
    ]
}

/// Returns a CRD in which no field is nullable. The API server then drops a field that is null, as it does for built-in kinds,
/// so that `affinity: null` is the same as no `affinity`.
fn without_null(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let schemas = crd.spec.versions.iter_mut().filter_map(|version| version.schema.as_mut());
    schemas.filter_map(|schema| schema.open_api_v3_schema.as_mut()).for_each(not_nullable);
    crd
}

fn not_nullable(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    schema.properties.iter_mut().flatten().for_each(|(_, property)| not_nullable(property));
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(item)) => not_nullable(item),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(not_nullable),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(value)) = &mut schema.additional_properties {
        not_nullable(value);
    }
}

/// Quotes the names and list items that YAML 1.1 reads as truth values, such as the field `n`: kubectl and Helm read YAML 1.1.
fn quoted(yaml: &str) -> String {
    let mut text = String::with_capacity(yaml.len());
    for line in yaml.split_inclusive('\n') {
        let (indent, rest) = line.split_at(line.len() - line.trim_start_matches([' ', '-']).len());
        let word = rest.trim_end_matches(['\n', ':']);
        if ["y", "n", "yes", "no", "on", "off"].contains(&word.to_ascii_lowercase().as_str()) {
            text.extend([indent, "\"", word, "\"", &rest[word.len()..]]);
        } else {
            text.push_str(line);
        }
    }
    text
}

/// Returns the name and the contents of each file of `manifests/crd/`.
///
/// # Errors
/// Fails if a CRD cannot be serialized.
pub fn files() -> Result<Vec<(&'static str, String)>, ManifestsError> {
    let mut kustomization =
        format!("{HEADER}apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n");
    let mut files = Vec::new();
    for (name, crd) in all() {
        kustomization.push_str("- ");
        kustomization.push_str(name);
        kustomization.push('\n');
        files.push((name, format!("{HEADER}{}", quoted(&serde_yaml::to_string(&crd)?))));
    }
    files.push(("kustomization.yaml", kustomization));
    Ok(files)
}

/// Writes [`files`] into `directory`. Each file is written under a temporary name, synced and renamed.
///
/// # Errors
/// Fails if a CRD cannot be serialized or the file system refuses to write.
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
