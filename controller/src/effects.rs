//! Effects: signing. A bundle is created once and never changed. I/O.

use codex_crds::Reason;
use codex_plan::Effect;
use codex_provenance::{oms, promotion::Promotion};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tracing::{info, warn};

use crate::{
    MANAGER,
    context::Context,
    error::{answered, client_category, refused, said},
    observe::{
        caught_up,
        workers::{controller, is_controlled_by},
    },
    signer::SignerError,
};

/// The key of a bundle in its ConfigMap.
pub const BUNDLE: &str = "bundle.json";
/// The key of the public key beside it.
const KEY: &str = "key.pem";

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum EffectError {
    /// The signer.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// The API server.
    #[error("the ConfigMap {name} cannot be {verb}: {}", said(source))]
    Client {
        /// Which.
        name: String,
        /// What was tried.
        verb: &'static str,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// Somebody else's object has the bundle's name.
    #[error(
        "the ConfigMap {0} exists and was not made by this controller for this run: delete it to have the bundle signed"
    )]
    Taken(String),
    /// The old one has to go first.
    #[error("the ConfigMap {0} is being deleted: waiting until it is gone")]
    Ending(String),
    /// A bundle that is no text.
    #[error("the bundle for the ConfigMap {0} is no text")]
    Text(String),
}

impl EffectError {
    /// A word for metric labels.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Signer(source) => source.category(),
            Self::Client { source, .. } => client_category(source),
            Self::Taken(_) => "name_taken",
            Self::Ending(_) => "ending",
            Self::Text(_) => "encoding",
        }
    }

    /// Why a person has to do something, if one has to. That there is no signer is the plan's to say.
    pub fn needs_attention(&self) -> Option<Reason> {
        match self {
            Self::Client { source, .. } => refused(source).then_some(Reason::Refused),
            Self::Taken(_) => Some(Reason::NameTaken),
            Self::Signer(_) | Self::Ending(_) | Self::Text(_) => None,
        }
    }
}

/// Does what has to be done, in order.
///
/// # Errors
/// The first that fails; those after it are not begun.
pub async fn carry_out(context: &Context, effects: &[Effect]) -> Result<(), EffectError> {
    for effect in effects {
        match effect {
            Effect::SignModel { config_map, manifest, name } => {
                sign(context, config_map, &oms::payload(manifest, name)).await?;
            }
            Effect::SignPromotion { config_map, model, reasons } => {
                let promotion = Promotion { model: *model, reasons: reasons.clone() };
                sign(context, config_map, &promotion.payload()).await?;
            }
        }
    }
    Ok(())
}

async fn sign(context: &Context, config_map: &ConfigMap, payload: &[u8]) -> Result<(), EffectError> {
    let name = config_map.name_any();
    let bundle = context.signer.sign(payload)?;
    let bundle = String::from_utf8(bundle).map_err(|_| EffectError::Text(name.clone()))?;
    let key = context.signer.public().to_pem().to_owned();
    let filled = ConfigMap {
        data: Some([(BUNDLE.to_owned(), bundle), (KEY.to_owned(), key)].into()),
        immutable: Some(true),
        ..config_map.clone()
    };
    let namespace = config_map.namespace().unwrap_or_default();
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), &namespace);
    let post = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
    match api.create(&post, &filled).await {
        Ok(created) => {
            context.metrics.wrote("ConfigMap", "create");
            info!("signed: the ConfigMap {name}");
            caught_up(&context.stores.config_maps, &created).await;
            Ok(())
        }
        Err(source) if answered(&source, 409) => signed_before(context, &api, config_map).await,
        Err(source) => Err(EffectError::Client { name, verb: "created", source }),
    }
}

/// Leaves a bundle that exists as it is: the next observation says what it is worth. For that it has to be seen, so labels
/// that somebody took away are put back.
async fn signed_before(context: &Context, api: &Api<ConfigMap>, wanted: &ConfigMap) -> Result<(), EffectError> {
    let name = wanted.name_any();
    let failed = |verb| {
        let name = name.clone();
        move |source| EffectError::Client { name, verb, source }
    };
    let mut found = api.get(&name).await.map_err(failed("read"))?;
    if !controller(wanted).is_some_and(|run| is_controlled_by(&found, &run.uid)) {
        return Err(EffectError::Taken(name));
    }
    if found.metadata.deletion_timestamp.is_some() {
        return Err(EffectError::Ending(name));
    }
    if wanted.labels().iter().any(|(key, value)| found.labels().get(key) != Some(value)) {
        let patch = Patch::Merge(json!({ "metadata": { "labels": wanted.labels() } }));
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        found = api.patch(&name, &params, &patch).await.map_err(failed("labelled"))?;
        context.metrics.wrote("ConfigMap", "correct");
        warn!("the ConfigMap {name} had lost its labels and has them again");
    }
    caught_up(&context.stores.config_maps, &found).await;
    Ok(())
}
