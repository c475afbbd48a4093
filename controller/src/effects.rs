//! Effects of a plan: signing, and counting reads. A bundle is created once and never changed.

use std::collections::BTreeMap;

use codex_crds::Reason;
use codex_plan::Effect;
use codex_provenance::{attestation::attestations, oms};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, ResourceExt, api::Patch};
use serde_json::json;
use tracing::{info, warn};

use crate::{
    api::{merge_params, post_params},
    context::Context,
    error::{answered, client_category, refused, said},
    ledger::LedgerError,
    observe::caught_up,
    ownership::{controller, is_controlled_by},
    signer::{BUNDLE, PUBLIC, Signed, SignerError},
};

/// Why an effect failed.
#[derive(Debug, thiserror::Error)]
pub enum EffectError {
    /// The signer does not sign.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// A read cannot be counted.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A request to the API server failed.
    #[error("the ConfigMap {name} cannot be {verb}: {}", said(source))]
    Client {
        /// The name of the ConfigMap.
        name: String,
        /// The operation, as a past participle.
        verb: &'static str,
        /// The client's error.
        #[source]
        source: kube::Error,
    },
    /// Another object has the bundle's name.
    #[error(
        "the ConfigMap {0} exists and does not belong to this TrainingRun: delete it so that the bundle can be created"
    )]
    Taken(String),
    /// An earlier bundle of the same name is being deleted.
    #[error("the ConfigMap {0} is being deleted; the bundle is created when it is gone")]
    Ending(String),
    /// The signed bundle is not UTF-8.
    #[error("the bundle for the ConfigMap {0} is not UTF-8")]
    Text(String),
}

impl EffectError {
    /// Returns the category for metrics and logs.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Signer(source) => source.category(),
            Self::Ledger(source) => source.category(),
            Self::Client { source, .. } => client_category(source),
            Self::Taken(_) => "name_taken",
            Self::Ending(_) => "ending",
            Self::Text(_) => "encoding",
        }
    }

    /// Whether the failure may pass by itself, although the status names it.
    pub fn waits(&self) -> bool {
        matches!(self, Self::Signer(SignerError::Keyless(why)) if why.waits())
    }

    /// Returns the reason of the `Stalled` condition if the failure needs attention, or has to be seen while it is retried. The plan
    /// itself reports a missing signer.
    pub fn needs_attention(&self) -> Option<Reason> {
        match self {
            Self::Signer(SignerError::Keyless(_)) => Some(Reason::SignerUnavailable),
            Self::Client { source, .. } => refused(source).then_some(Reason::Refused),
            Self::Ledger(source) => source.needs_attention(),
            Self::Taken(_) => Some(Reason::NameTaken),
            Self::Signer(_) | Self::Ending(_) | Self::Text(_) => None,
        }
    }
}

/// Executes the effects in order.
///
/// # Errors
/// When an effect fails; later effects are not started.
pub async fn carry_out(context: &Context, effects: &[Effect]) -> Result<(), EffectError> {
    for effect in effects {
        let (statement, result) = match effect {
            Effect::SignModel { config_map, manifest, name } => {
                ("model", sign(context, config_map, &[(BUNDLE, oms::payload(manifest, name).as_slice())]).await)
            }
            Effect::SignPromotion { config_map, promotion, build } => {
                let (payload, others) = (promotion.payload(), attestations(promotion, build));
                let others = others.iter().map(|it| (it.kind.entry(), it.payload.as_slice()));
                let statements: Vec<_> = std::iter::once((BUNDLE, payload.as_slice())).chain(others).collect();
                let result = sign(context, config_map, &statements).await;
                if result.is_ok() {
                    context.metrics.overridden(&promotion.reasons.ring, promotion.reasons.sign_offs.len());
                }
                ("promotion", result)
            }
            Effect::SignReproduction { config_map, reproduction } => {
                ("reproduction", sign(context, config_map, &[(BUNDLE, reproduction.payload().as_slice())]).await)
            }
            Effect::RecordRead(read) => {
                context.ledger.record(context, read).await?;
                continue;
            }
        };
        context.metrics.signed(statement, result.is_ok());
        result?;
    }
    Ok(())
}

/// Signs statements, each under its entry of a ConfigMap, and creates the ConfigMap.
async fn sign(context: &Context, config_map: &ConfigMap, statements: &[(&str, &[u8])]) -> Result<(), EffectError> {
    let name = config_map.name_any();
    let (entries, payloads): (Vec<&str>, Vec<&[u8]>) = statements.iter().copied().unzip();
    let Signed { bundles, key } = context.signer.sign(&payloads).await?;
    let mut data: BTreeMap<String, String> = key.map(|key| (PUBLIC.to_owned(), key)).into_iter().collect();
    for (entry, bundle) in entries.into_iter().zip(bundles) {
        let bundle = String::from_utf8(bundle).map_err(|_| EffectError::Text(name.clone()))?;
        data.insert(entry.to_owned(), bundle);
    }
    let filled = ConfigMap { data: Some(data), immutable: Some(true), ..config_map.clone() };
    let recorded = || payloads.iter().for_each(|payload| context.signer.recorded(payload));
    let namespace = config_map.namespace().unwrap_or_default();
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), &namespace);
    match api.create(&post_params(), &filled).await {
        Ok(created) => {
            context.metrics.wrote("ConfigMap", "create");
            info!("created the signed bundle in the ConfigMap {name}");
            recorded();
            caught_up(&context.stores.config_maps, &created.metadata).await;
            Ok(())
        }
        Err(source) if answered(&source, 409) => {
            adopt(context, &api, config_map).await?;
            recorded();
            Ok(())
        }
        Err(source) => Err(EffectError::Client { name, verb: "created", source }),
    }
}

/// Keeps an existing bundle; the next observation verifies it. Missing labels are restored, because the cache selects
/// objects by label.
async fn adopt(context: &Context, api: &Api<ConfigMap>, wanted: &ConfigMap) -> Result<(), EffectError> {
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
        found = api.patch(&name, &merge_params(), &patch).await.map_err(failed("labelled"))?;
        context.metrics.wrote("ConfigMap", "correct");
        warn!("restored the missing labels of the ConfigMap {name}");
    }
    caught_up(&context.stores.config_maps, &found.metadata).await;
    Ok(())
}
