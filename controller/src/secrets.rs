//! The controller's own objects in its own namespace: Secrets that it creates on the first start and reads afterwards.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, api::ObjectMeta};

use crate::{MANAGER, api::create_once};

/// The label that names who made an object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// Returns the metadata of an object of the controller's own.
pub fn metadata(name: &str, component: &str) -> ObjectMeta {
    let label = |key: &str, value: &str| (format!("app.kubernetes.io/{key}"), value.to_owned());
    let labels = BTreeMap::from([
        label("name", "codex-controller"),
        label("component", component),
        label("part-of", "codex"),
        label("managed-by", MANAGER),
    ]);
    ObjectMeta { name: Some(name.to_owned()), labels: Some(labels), ..ObjectMeta::default() }
}

/// Returns an opaque Secret with this data.
pub fn secret<const N: usize>(name: &str, component: &str, data: [(&str, &[u8]); N]) -> Secret {
    Secret {
        metadata: metadata(name, component),
        type_: Some("Opaque".to_owned()),
        data: Some(data.into_iter().map(|(key, bytes)| (key.to_owned(), ByteString(bytes.to_vec()))).collect()),
        ..Secret::default()
    }
}

/// Returns the Secret `name`. If it does not exist, `generate` makes it and it is created.
///
/// # Errors
/// The error of `generate`, or that of a request, converted by `failed`.
pub async fn get_or_create<E>(
    api: &Api<Secret>,
    name: &str,
    generate: impl FnOnce() -> Result<Secret, E>,
    failed: impl Fn(kube::Error) -> E,
) -> Result<Secret, E> {
    match api.get_opt(name).await.map_err(&failed)? {
        Some(secret) => Ok(secret),
        None => create_once(api, &generate()?).await.map_err(&failed),
    }
}

/// Returns the value of a key.
pub fn value<'a>(secret: &'a Secret, key: &str) -> Option<&'a [u8]> {
    secret.data.as_ref()?.get(key).map(|bytes| bytes.0.as_slice())
}
