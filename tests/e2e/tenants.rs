//! A tenant with the `admin` role in a namespace cannot reach the signing key.

use codex_tests::{
    Result, Team,
    install::{NAMESPACE, SIGNING_KEY},
    process::output,
    team::blocking,
};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_cannot_read_the_signing_key() -> Result<()> {
    let team = Team::new("tenant").await?;
    let secrets: Api<Secret> = Api::namespaced(team.client.clone(), NAMESPACE);
    assert!(secrets.get(SIGNING_KEY).await?.data.is_some_and(|data| !data.is_empty()), "there is a key to protect");

    let (mut account, mut binding) = (team.kubectl()?, team.kubectl()?);
    let namespace = team.namespace.clone();
    let user = format!("system:serviceaccount:{namespace}:tenant");
    let editor = format!("--serviceaccount={namespace}:tenant");
    blocking(move || {
        output(account.args(["create", "serviceaccount", "tenant"]))?;
        output(binding.args(["create", "rolebinding", "tenant", "--clusterrole=admin", &editor]))
    })
    .await?;

    // The tenant can read Secrets in its own namespace …
    let (mut own, as_user) = (team.kubectl()?, format!("--as={user}"));
    let tenant = as_user.clone();
    blocking(move || output(own.args(["get", "secrets", &tenant]))).await?;
    // … and nothing in the controller's, in any of these ways.
    for words in [
        vec!["get", "secret", SIGNING_KEY],
        vec!["get", "secrets"],
        vec!["get", "pods"],
        vec!["create", "token", "codex-controller"],
        vec!["exec", "deployment/codex-controller", "--", "/codex-controller"],
    ] {
        let mut kubectl = team.installation.cluster.kubectl()?;
        kubectl.args(["--namespace", NAMESPACE, &as_user]).args(&words);
        let refused = blocking(move || Ok(output(&mut kubectl))).await?.unwrap_err().to_string();
        assert!(refused.to_lowercase().contains("forbidden"), "{words:?}: {refused}");
    }
    team.done();
    Ok(())
}
