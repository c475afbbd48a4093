//! The ConfigMap `codex-sigstore`: the services of a Sigstore instance, and the trusted root that verifies what they sign.

use std::sync::Arc;

use codex_plan::reasoning_pod::TrustedRoot;
use codex_signing::{
    keyless::Root,
    services::{Endpoints, LogVersion},
};
use k8s_openapi::api::core::v1::ConfigMap;

use crate::error::chain;

/// The name of the ConfigMap.
pub const NAME: &str = "codex-sigstore";
/// The signing configuration, in JSON.
const SIGNING: &str = "signing_config.json";
/// The trusted root, in JSON.
const ROOT: &str = "trusted_root.json";
/// Certificates, in PEM, that the services' own certificates may chain to, besides those of Mozilla.
const AUTHORITIES: &str = "ca.pem";
/// The audience of the token.
const AUDIENCE: &str = "audience";
/// Whether the URLs of services may be unencrypted.
const PLAIN: &str = "allowHTTP";

/// What signs: the services, and who verifies what they answer.
#[derive(Clone)]
pub struct Settings {
    /// The services.
    pub endpoints: Endpoints,
    /// The audience of the token.
    pub audience: String,
    /// More certificates that the services' own may chain to, in PEM.
    pub authorities: Option<String>,
    /// The trusted root.
    pub root: Arc<Root>,
}

impl PartialEq for Settings {
    fn eq(&self, other: &Self) -> bool {
        (&self.endpoints, &self.audience, &self.authorities, self.root.digest())
            == (&other.endpoints, &other.audience, &other.authorities, other.root.digest())
    }
}

fn entry<'a>(config_map: &'a ConfigMap, name: &str) -> Option<&'a str> {
    config_map.data.as_ref()?.get(name).map(|text| text.trim()).filter(|text| !text.is_empty())
}

/// A trusted root, in the forms that verification and plans need.
pub type Rooted = (Arc<Root>, Arc<TrustedRoot>);

/// Returns the trusted root, if the ConfigMap has one.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub fn trusted_root(config_map: Option<&ConfigMap>) -> Result<Option<Rooted>, String> {
    let Some(text) = config_map.and_then(|found| entry(found, ROOT)) else { return Ok(None) };
    let root = Root::from_json(text).map_err(|why| format!("{ROOT:?} of the ConfigMap {NAME}: {}", chain(&why)))?;
    let plan = TrustedRoot { digest: root.digest(), text: text.to_owned(), ends: root.ends() };
    Ok(Some((Arc::new(root), Arc::new(plan))))
}

impl Settings {
    /// Reads what signs. `root` is the trusted root of the same ConfigMap.
    ///
    /// # Errors
    /// A sentence that says what is missing or wrong.
    pub fn read(config_map: Option<&ConfigMap>, root: Option<Arc<Root>>) -> Result<Self, String> {
        let advice = format!("give it {SIGNING:?}, as cosign signing-config create writes it, and {ROOT:?}");
        let Some(found) = config_map else { return Err(format!("the ConfigMap {NAME} does not exist: {advice}")) };
        let signing =
            entry(found, SIGNING).ok_or_else(|| format!("the ConfigMap {NAME} has no {SIGNING:?}: {advice}"))?;
        let root = root.ok_or_else(|| format!("the ConfigMap {NAME} has no {ROOT:?}: {advice}"))?;
        let plain = match entry(found, PLAIN) {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => return Err(format!("{PLAIN:?} of the ConfigMap {NAME} is {other:?}: use true or false")),
        };
        let endpoints = Endpoints::from_json(signing, plain).map_err(|why| {
            let allow = if plain {
                ""
            } else {
                "; \"allowHTTP\": \"true\" allows it on a network that nobody can eavesdrop on"
            };
            let allow = if matches!(why, codex_signing::services::EndpointsError::Plain { .. }) { allow } else { "" };
            format!("{SIGNING:?} of the ConfigMap {NAME}: {}{allow}", chain(&why))
        })?;
        if endpoints.version == LogVersion::V2 && !root.has_timestamps() {
            return Err(format!(
                "{ROOT:?} of the ConfigMap {NAME} names no timestamp authority, and a log of version 2 signs no time: add the one of \
                 {SIGNING:?}"
            ));
        }
        Ok(Self {
            endpoints,
            audience: entry(found, AUDIENCE).unwrap_or("sigstore").to_owned(),
            authorities: entry(found, AUTHORITIES).map(str::to_owned),
            root,
        })
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::{Settings, trusted_root};

    const STAGING: &str = include_str!("../../../provenance/signing/tests/fixtures/keyless/trusted_root.json");

    fn services(scheme: &str) -> String {
        let service = |name: &str, version: u32| {
            json!([{"url": format!("{scheme}://{name}.example.com"), "majorApiVersion": version,
                "validFor": {"start": "2020-01-01T00:00:00Z"}, "operator": "o"}])
        };
        json!({
            "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
            "caUrls": service("fulcio", 1), "rekorTlogUrls": service("rekor", 2), "tsaUrls": service("tsa", 1),
            "rekorTlogConfig": {"selector": "ANY"}, "tsaConfig": {"selector": "ANY"},
        })
        .to_string()
    }

    fn read(entries: &[(&str, &str)]) -> Result<Settings, String> {
        let data = entries.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let found = ConfigMap { data: Some(data), ..ConfigMap::default() };
        let root = trusted_root(Some(&found))?.map(|(root, _)| root);
        Settings::read(Some(&found), root)
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let told = |entries: &[(&str, &str)]| read(entries).err().unwrap();
        let (good, plain) = (services("https"), services("http"));
        assert!(Settings::read(None, None).err().unwrap().contains("codex-sigstore does not exist"));
        assert!(told(&[]).contains("has no \"signing_config.json\""));
        assert!(told(&[("signing_config.json", &good)]).contains("has no \"trusted_root.json\""));
        assert!(
            told(&[("trusted_root.json", "{}")]).starts_with("\"trusted_root.json\" of the ConfigMap codex-sigstore: ")
        );
        let wrong = told(&[("signing_config.json", "{}"), ("trusted_root.json", STAGING)]);
        assert!(wrong.contains("is not a signing configuration"), "{wrong}");
        let wrong = told(&[("signing_config.json", &plain), ("trusted_root.json", STAGING)]);
        assert!(wrong.contains("is not encrypted") && wrong.contains("allowHTTP"), "{wrong}");
        let wrong = told(&[("signing_config.json", &good), ("trusted_root.json", STAGING), ("allowHTTP", "yes")]);
        assert!(wrong.contains("use true or false"), "{wrong}");
        let mut untimed: serde_json::Value = serde_json::from_str(STAGING).unwrap();
        untimed["timestampAuthorities"] = json!([]);
        let wrong = told(&[("signing_config.json", &good), ("trusted_root.json", &untimed.to_string())]);
        assert!(wrong.contains("names no timestamp authority"), "{wrong}");
        let read =
            read(&[("signing_config.json", &plain), ("trusted_root.json", STAGING), ("allowHTTP", "true")]).unwrap();
        assert_eq!(read.audience, "sigstore");
    }
}
