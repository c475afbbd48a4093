//! The controller's role grants exactly the rights that the controller used. Runs after the end-to-end tests, because the
//! audit log then shows what they made the controller do.

use codex_tests::{Installation, Result, rights, skip};

/// Rights that a controller uses only on a new cluster, because its Lease and its Secrets outlive every version.
const ONCE: [&str; 2] = ["create /secrets", "create coordination.k8s.io/leases"];

/// Rights that a controller uses only to repair something of its own that is damaged: the Secret of its certificate authority.
const FOR_REPAIRS: [&str; 1] = ["update /secrets"];

/// Rights that no request uses: the admission plugin `OwnerReferencesPermissionEnforcement`, which the local cluster runs, looks
/// for them when the controller sets owner references that block deletion. Without them its children are refused.
const DEMANDED_BY_ADMISSION: [&str; 3] = [
    "update codex-ml.dev/trainingruns/finalizers",
    "update codex-ml.dev/evaluations/finalizers",
    "update codex-ml.dev/reasoningpods/finalizers",
];

/// Rights that a controller uses only where the Gateway API is installed (`make test-gateway`). Elsewhere it only finds out that there
/// is none.
const WITH_A_GATEWAY: &str = " gateway.networking.k8s.io/httproutes";

#[tokio::test(flavor = "multi_thread")]
async fn the_role_grants_what_the_controller_uses_and_nothing_else() -> Result<()> {
    let installation = Installation::ensure().await?;
    let Some(audit_log) = installation.cluster.audit_log() else {
        skip(installation.cluster.target(), "the rights of the controller", "this cluster shows no audit log");
        return Ok(());
    };
    let client = installation.client().await?;
    let granted = rights::granted(&client).await?;
    let seen = rights::seen(&client, audit_log).await?;
    assert!(seen.forbidden.is_empty(), "forbidden: {:#?}", seen.forbidden);
    let missing: Vec<_> = DEMANDED_BY_ADMISSION.iter().filter(|right| !granted.contains(**right)).collect();
    assert!(missing.is_empty(), "not granted, although children block the deletion of their owner: {missing:#?}");
    let once = |right: &str| ONCE.contains(&right) && seen.ever.contains(right);
    let by_admission = |right: &str| DEMANDED_BY_ADMISSION.contains(&right);
    let unused: Vec<_> = granted
        .difference(&seen.used)
        .filter(|right| !once(right) && !by_admission(right) && !right.ends_with(WITH_A_GATEWAY))
        .filter(|right| !FOR_REPAIRS.contains(&right.as_str()))
        .collect();
    assert!(unused.is_empty(), "granted, and not used by the end-to-end tests (did they run before?): {unused:#?}");
    let elsewhere: Vec<_> = seen.used.difference(&granted).collect();
    assert!(elsewhere.is_empty(), "used, and not granted by the role: {elsewhere:#?}");
    Ok(())
}
