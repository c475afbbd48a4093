//! Effects: signing. A bundle is created once and never changed. I/O.

use codex_crds::Reason;
use codex_plan::Effect;
use codex_provenance::{oms, promotion::Promotion};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, ResourceExt, api::PostParams};
use tracing::info;

use crate::{
    MANAGER,
    context::Context,
    error::{answered, client_category, refused, said},
    observe::caught_up,
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
    #[error("the ConfigMap {name} cannot be created: {}", said(source))]
    Client {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
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
            Self::Text(_) => "encoding",
        }
    }

    /// Why a person has to do something, if one has to. That there is no signer is the plan's to say.
    pub fn needs_a_person(&self) -> Option<Reason> {
        match self {
            Self::Client { source, .. } => refused(source).then_some(Reason::Refused),
            Self::Signer(_) | Self::Text(_) => None,
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
        // Signed before: the next observation says what it is worth.
        Err(source) if answered(&source, 409) => Ok(()),
        Err(source) => Err(EffectError::Client { name, source }),
    }
}
