//! Data files: their part of the configuration, their mounts, and the checks of what pods read. Pure.

use codex_configs::{Data, REFERENCE};
use codex_crds::{ConfigMapKey, DataItem, DataStatus};
use codex_reports::DataFile;

use crate::{
    pod_template::{Access, Mounts, join},
    pods::References,
};

/// Returns the data files in the form of the composed configuration.
///
/// # Errors
/// One sentence about an invalid digest; the API server refuses such objects.
pub(crate) fn configured(data: &[DataItem]) -> Result<Vec<Data>, String> {
    data.iter()
        .enumerate()
        .map(|(index, item)| {
            let sha256 = item.sha256.as_deref().map(str::parse).transpose();
            let synthetic = item.source.synthetic.as_ref().map(|made| codex_configs::Synthetic {
                task: made.task.clone(),
                seed: made.seed,
                count: made.count,
            });
            let sha256 = sha256.map_err(|why| format!("data[{index}].sha256: {why}"))?;
            Ok(Data { name: item.name.clone(), sha256, synthetic })
        })
        .collect()
}

/// Returns the digests that a pod reported, sorted by name, as the status records them. Files that are not among the `named`
/// ones are left out, so that a pod cannot fill the status.
pub(crate) fn digests(files: &[DataFile], named: &[&str]) -> Vec<DataStatus> {
    let files = files.iter().filter(|file| named.contains(&file.name.as_str()));
    let mut digests: Vec<_> = files.map(|file| DataStatus { name: file.name.clone(), sha256: file.sha256 }).collect();
    digests.sort_by(|a, b| a.name.cmp(&b.name));
    digests.dedup_by(|a, b| a.name == b.name);
    digests
}

/// Returns a sentence about the first file whose digest differs from the one in the configuration.
pub(crate) fn mismatch(spec: &[DataItem], expected: &[Data], read: &[DataStatus]) -> Option<String> {
    expected.iter().find_map(|data| {
        let demanded = data.sha256?;
        let found = read.iter().find(|file| file.name == data.name)?.sha256;
        (found != demanded).then(|| {
            format!(
                "{}: the pod read a file with SHA-256 {found}, but {demanded} is required: restore the file, or create \
                 another object with the digest of this file",
                place(spec, &data.name)
            )
        })
    })
}

/// Returns a sentence about the first file of the configuration whose digest the pod did not report.
pub(crate) fn unread(spec: &[DataItem], expected: &[Data], read: &[DataStatus]) -> Option<String> {
    let data = expected.iter().find(|data| !read.iter().any(|file| file.name == data.name))?;
    Some(format!("the pod reported no digest for {}, so the data that it read is unverified", place(spec, &data.name)))
}

fn place(spec: &[DataItem], name: &str) -> String {
    match spec.iter().position(|item| item.name == name) {
        Some(index) => format!("spec.data[{index}] ({name})"),
        None => match name.strip_prefix(REFERENCE) {
            Some(evaluation) => format!("the outcomes of Evaluation {evaluation}"),
            None => format!("the preset's file {name:?}"),
        },
    }
}

/// Mounts data files read-only and adds the argument `--data NAME=PATH` for each.
pub(crate) fn mount_data(data: &[DataItem], mounts: &mut Mounts, args: &mut Vec<String>) {
    for item in data {
        let folder = format!("/data/{}", item.name);
        let file = if let Some(source) = &item.source.config_map {
            mounts.config_map(&source.name, Some(&source.key), &folder);
            &source.key
        } else if let Some(source) = &item.source.persistent_volume_claim {
            mounts.claim(&source.claim_name, "", &folder, Access::Untouched);
            &source.path
        } else {
            // Synthetic data is generated in the pod.
            continue;
        };
        args.extend(["--data".to_owned(), format!("{}={folder}/{}", item.name, join(&[file]))]);
    }
}

/// Returns a sentence for each referenced object that does not exist. `claims` and `keys` are those that hold no data, each with
/// the field that names it.
pub(crate) fn missing(
    data: &[DataItem],
    claims: &[(String, &str)],
    keys: &[(String, &ConfigMapKey)],
    references: &References,
) -> Vec<String> {
    let claim = |field: &str, name: &str| {
        (!references.claims.contains(name)).then(|| {
            format!(
                "{field} names the PersistentVolumeClaim {name:?}, which does not exist in this namespace: create it"
            )
        })
    };
    let key = |field: &str, source: &ConfigMapKey| match references.config_maps.get(&source.name) {
        None => Some(format!(
            "{field}.name names the ConfigMap {:?}, which does not exist in this namespace: create it",
            source.name
        )),
        Some(keys) if !keys.contains(&source.key) => Some(format!(
            "{field}.key is {:?}, which the ConfigMap {:?} does not have: its keys are {}",
            source.key,
            source.name,
            if keys.is_empty() { "none".to_owned() } else { keys.iter().cloned().collect::<Vec<_>>().join(", ") }
        )),
        Some(_) => None,
    };
    let mut missing: Vec<String> = claims.iter().filter_map(|(field, name)| claim(field, name)).collect();
    missing.extend(keys.iter().filter_map(|(field, source)| key(field, source)));
    for (index, item) in data.iter().enumerate() {
        if let Some(source) = &item.source.persistent_volume_claim {
            let field = format!("spec.data[{index}].source.persistentVolumeClaim.claimName");
            missing.extend(claim(&field, &source.claim_name));
        }
        if let Some(source) = &item.source.config_map {
            missing.extend(key(&format!("spec.data[{index}].source.configMap"), source));
        }
    }
    missing
}
