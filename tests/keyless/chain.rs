//! The chain on the local cluster, signed as the controller's service account.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use codex_crds::{ConditionType, ReasoningPod, child};
use codex_provenance::{Identity, attestation::AttestationKind};
use codex_tests::{
    Installation, Result, Team, install, objects,
    process::output,
    team::{SOON, condition},
    wait::until,
};
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::ConfigMap},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, PostParams},
};
use serde_json::Value;

use crate::instance::{Instance, Service, base64};

const SIGSTORE: &str = "codex-sigstore";
const SUBJECT: &str = "https://kubernetes.io/namespaces/codex-system/serviceaccounts/codex-controller";

/// Asks the API server for the issuer of its tokens.
async fn issuer(client: &Client) -> String {
    let request = http::Request::get("/.well-known/openid-configuration").body(Vec::new()).unwrap();
    let discovery: Value = client.request(request).await.unwrap();
    discovery["issuer"].as_str().unwrap().to_owned()
}

fn config_map(instance: &Instance) -> ConfigMap {
    let data = [
        ("signing_config.json", instance.signing_config()),
        ("trusted_root.json", instance.trusted_root()),
        ("allowHTTP", "true".to_owned()),
    ];
    ConfigMap {
        metadata: ObjectMeta { name: Some(SIGSTORE.to_owned()), ..ObjectMeta::default() },
        data: Some(data.into_iter().map(|(name, text)| (name.to_owned(), text)).collect()),
        ..ConfigMap::default()
    }
}

/// Waits until the condition `Signed` says something.
async fn until_signed_says(team: &Team, name: &str, words: &str) -> Result<ReasoningPod> {
    until(&team.api::<ReasoningPod>(), name, words, SOON, |pod| {
        let signed = condition(pod.status.as_ref().map(|status| &*status.conditions), ConditionType::Signed);
        signed.is_some_and(|signed| signed.message.contains(words))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_promoted_and_served_without_a_key() -> Result<()> {
    // `make test-keyless` names the overlay that is installed.
    assert_eq!(std::env::var("CODEX_TESTS_BASE").as_deref(), Ok("overlays/keyless"), "run `make test-keyless`");
    let installation = Installation::ensure().await?;
    let client = installation.client().await?;
    let issuer = issuer(&client).await;
    let authority = installation.config().await?.root_cert.unwrap_or_default();
    let authority = authority
        .iter()
        .map(|der| format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", base64(der)));
    let authority = authority.collect::<Vec<_>>().concat();
    let host = installation.cluster.host_address()?.to_string();
    let mut instance = tokio::task::block_in_place(|| {
        Instance::start(&host, &issuer, Some(&authority).filter(|pem| !pem.is_empty()).map(String::as_str))
    });
    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), install::NAMESPACE);
    let _ = config_maps.delete(SIGSTORE, &DeleteParams::default()).await;

    let team = Team::new("keyless").await?;
    team.create(&objects::run("learns", &[])).await?;
    team.create(&objects::evaluation("judged", "learns", &team.problems)).await?;
    team.create(&objects::reasoning_pod("served", "learns", "judged")).await?;
    let run = team.trained("learns").await?;
    team.judged("judged").await?;

    // Nothing is configured: the controller runs, and says what is missing.
    until_signed_says(&team, "served", "the ConfigMap codex-sigstore does not exist").await?;
    // The log is away: the status names it while it is asked again.
    tokio::task::block_in_place(|| instance.kill(Service::Rekor));
    config_maps.create(&PostParams::default(), &config_map(&instance)).await?;
    let waiting = until_signed_says(&team, "served", "Rekor at http://").await?;
    let reconciling = condition(waiting.status.as_ref().map(|status| &*status.conditions), ConditionType::Reconciling);
    assert!(reconciling.is_some_and(|condition| condition.status == "True"), "{:#?}", waiting.status);
    tokio::task::block_in_place(|| instance.run(Service::Rekor));

    // A server verifies the same identity with the same root.
    let served = team.serving("served").await?;
    let status = served.status.clone().unwrap();
    let identity = Identity { issuer: issuer.clone(), subject: SUBJECT.to_owned() };
    let (manifest, promotion) = (status.manifest.as_ref().unwrap(), status.promotion.as_ref().unwrap());
    assert_eq!((manifest.signer.as_str(), promotion.signer.as_ref()), (&*identity.fingerprint().short(), None));
    let deployment = team.api::<Deployment>().get(&child::server("served")).await?;
    let containers = deployment.spec.unwrap().template.spec.unwrap().containers;
    let arguments = containers[0].args.clone().unwrap();
    assert!(
        arguments.contains(&SUBJECT.to_owned()) && !arguments.contains(&"--public-key".to_owned()),
        "{arguments:?}"
    );
    let answer = team.infer("served", "12+7:").await?;
    assert!(answer["tokens"].as_u64().is_some_and(|tokens| tokens > 0), "{answer}");

    // So does anyone who trusts the identity, and nobody who trusts another one.
    let files = tempfile::tempdir().unwrap();
    for (name, bundle) in [("oms", &manifest.bundle), ("promotion", &promotion.bundle)] {
        let found = team.api::<ConfigMap>().get(bundle).await?;
        assert_eq!((found.immutable, found.owner_references()[0].uid.clone()), (Some(true), run.uid().unwrap()));
        let data: BTreeMap<_, _> = found.data.unwrap();
        assert!(!data.contains_key("key.pem"));
        fs::write(files.path().join(format!("{name}.json")), &data["bundle.json"]).unwrap();
        for entry in AttestationKind::ALL.map(AttestationKind::entry) {
            assert_eq!(data.contains_key(entry), name == "promotion", "{entry}");
            if let Some(bundle) = data.get(entry) {
                fs::write(files.path().join(entry), bundle).unwrap();
            }
        }
    }
    fs::write(files.path().join("root.json"), instance.trusted_root()).unwrap();
    if let Some(folder) = team.folder(&run).await? {
        verify(&folder.join("model"), files.path(), SUBJECT, &issuer)?;
        let other = SUBJECT.replace("codex-controller", "default");
        let refused = verify(&folder.join("model"), files.path(), &other, &issuer).unwrap_err().to_string();
        assert!(refused.contains("was signed by another identity"), "{refused}");
    } else {
        team.skip("codex verify with the identity", "the files of this cluster's volumes cannot be read");
    }

    // Every entry of the log is one of these bundles, and without them none is explained.
    let explained = watch(&instance.log(), files.path(), files.path(), &issuer)?;
    assert!(explained.contains("of 6 by this identity, 0 unexplained"), "{explained}");
    let nothing = tempfile::tempdir().unwrap();
    let told = watch(&instance.log(), files.path(), nothing.path(), &issuer).unwrap_err().to_string();
    assert!(told.contains("of 6 by this identity, 6 unexplained"), "{told}");
    team.done();
    let _ = config_maps.delete(SIGSTORE, &DeleteParams::default()).await;
    Ok(())
}

fn verify(model: &Path, files: &Path, identity: &str, issuer: &str) -> Result<String> {
    let mut codex = Command::new(install::program("codex")?);
    codex.arg("verify").arg(model).arg("--bundle").arg(files.join("oms.json"));
    codex.arg("--promotion").arg(files.join("promotion.json")).args(["--ring", "0A_base_"]);
    for entry in AttestationKind::ALL.map(AttestationKind::entry) {
        codex.arg("--attestation").arg(files.join(entry));
    }
    codex.arg("--trusted-root").arg(files.join("root.json"));
    output(codex.args(["--certificate-identity", identity, "--certificate-oidc-issuer", issuer]))
}

fn watch(log: &Path, files: &Path, bundles: &Path, issuer: &str) -> Result<String> {
    let mut codex = Command::new(install::program("codex")?);
    codex.arg("log-watch").arg("--log").arg(log).arg("--bundles").arg(bundles);
    codex.arg("--trusted-root").arg(files.join("root.json"));
    output(codex.args(["--certificate-identity", SUBJECT, "--certificate-oidc-issuer", issuer]))
}
