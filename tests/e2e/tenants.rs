//! A tenant with the `admin` role in a namespace cannot reach the signing key, and one with `view` can change nothing.

use std::fs;

use codex_tests::{
    Error, Result, Team,
    install::{NAMESPACE, SIGNING_KEY, relative, repository},
    objects,
    process::{output, output_with},
    team::blocking,
};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt as _};
use serde_json::json;

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
        // The list of who is trusted, the pinned key, the Lease, and what runs there.
        vec!["patch", "configmap", "codex-trusted-keys", "--type=merge", "--patch={}"],
        vec!["patch", "configmap", SIGNING_KEY, "--type=merge", "--patch={}"],
        vec!["patch", "lease", "codex-controller", "--type=merge", "--patch={}"],
        vec!["patch", "deployment", "codex-controller", "--type=merge", "--patch={}"],
    ] {
        let mut kubectl = team.installation.cluster.kubectl()?;
        kubectl.args(["--namespace", NAMESPACE, &as_user]).args(&words);
        let refused = blocking(move || Ok(output(&mut kubectl))).await?.unwrap_err().to_string();
        assert!(refused.to_lowercase().contains("forbidden"), "{words:?}: {refused}");
    }
    team.done();
    Ok(())
}

/// What the built-in roles may do with our kinds: `view` reads, `edit` also trains and evaluates, `admin` also serves.
#[tokio::test(flavor = "multi_thread")]
async fn the_built_in_roles_have_their_part_of_our_kinds() -> Result<()> {
    let team = Team::new("roles").await?;
    for role in ["view", "edit", "admin"] {
        let account = format!("--serviceaccount={}:{role}", team.namespace);
        let role_flag = format!("--clusterrole={role}");
        for words in [&["create", "serviceaccount", role][..], &["create", "rolebinding", role, &role_flag, &account]] {
            let mut kubectl = team.kubectl()?;
            kubectl.args(words);
            blocking(move || output(&mut kubectl)).await?;
        }
    }
    let trains: &[&str] = &["edit", "admin"];
    for (verb, resource, roles) in [
        ("list", "trainingruns", &["view", "edit", "admin"][..]),
        ("watch", "reasoningpods", &["view", "edit", "admin"]),
        ("create", "trainingruns", trains),
        ("delete", "evaluations", trains),
        ("create", "reasoningpods", &["admin"]),
        ("patch", "reasoningpods", &["admin"]),
        ("patch", "reasoningpods/scale", &["admin"]),
        ("list", "promotionpolicies", &["view", "edit", "admin"]),
        ("list", "signoffs", &["view", "edit", "admin"]),
        ("create", "signoffs", &["admin"]),
        ("create", "promotionpolicies", &[]),
        ("patch", "evaluations/status", &[]),
        ("update", "trainingruns/finalizers", &[]),
    ] {
        for role in ["view", "edit", "admin"] {
            let mut kubectl = team.kubectl()?;
            let (kind, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            kubectl.arg(format!("--as=system:serviceaccount:{}:{role}", team.namespace));
            kubectl.args(["auth", "can-i", verb, &format!("{kind}.codex-ml.dev"), "--subresource", subresource]);
            // kubectl ends with 1 after it printed `no`.
            let allowed = blocking(move || Ok(output(&mut kubectl))).await?.is_ok();
            assert_eq!(allowed, roles.contains(&role), "{role}: {verb} {resource}");
        }
    }
    team.done();
    Ok(())
}

/// `manifests/overlays/tenant` with the namespace of this team: one group trains, another decides what is served, and a pod without
/// `spec.pod.resources` gets the defaults, without which the quota would refuse it.
#[tokio::test(flavor = "multi_thread")]
async fn the_overlay_of_a_team_grants_what_it_says() -> Result<()> {
    let team = Team::new("overlay").await?;
    let folder = tempfile::tempdir().map_err(Error::io("making a temporary folder"))?;
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": team.namespace,
        "resources": [relative(folder.path(), &repository().join("manifests/overlays/tenant"))],
    });
    let file = folder.path().join("kustomization.yaml");
    fs::write(&file, kustomization.to_string()).map_err(Error::io(format!("writing {}", file.display())))?;
    let mut apply = team.installation.cluster.kubectl()?;
    apply.args(["apply", "--kustomize"]).arg(folder.path());
    blocking(move || output(&mut apply)).await?;

    for (resource, group) in [
        ("trainingruns", "researchers"),
        ("evaluations", "researchers"),
        ("reasoningpods", "promoters"),
        ("signoffs", "promoters"),
    ] {
        for asked in ["researchers", "promoters"] {
            let mut kubectl = team.kubectl()?;
            kubectl.args(["--as=somebody", &format!("--as-group=team-a:{asked}")]);
            kubectl.args(["auth", "can-i", "create", &format!("{resource}.codex-ml.dev")]);
            // kubectl ends with 1 after it printed `no`.
            let allowed = blocking(move || Ok(output(&mut kubectl))).await?.is_ok();
            assert_eq!(allowed, asked == group, "{asked}: create {resource}");
        }
    }

    let mut run = objects::run("run", &["training.max_steps=1", "training.warmup_steps=0"]);
    run.spec.pod.worker.resources = None;
    team.create(&run).await?;
    team.trained("run").await?;
    let trainer = json!(team.pods(codex_crds::label::TRAINING_RUN, "run").await?.remove(0).spec);
    let resources = &trainer["containers"][0]["resources"];
    assert_eq!(*resources, json!({ "requests": { "cpu": "1", "memory": "1Gi" }, "limits": { "memory": "4Gi" } }));
    team.done();
    Ok(())
}

/// `view` is not the right to read Secrets, mint tokens, connect to pods or change anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_can_read_objects_and_do_nothing_else() -> Result<()> {
    let team = Team::new("viewer").await?;
    team.create(&objects::run("run", &["training.max_steps=1", "training.warmup_steps=0"])).await?;
    team.trained("run").await?;
    let trainer = team.pods(codex_crds::label::TRAINING_RUN, "run").await?.remove(0).name_any();
    let account = format!("--serviceaccount={}:viewer", team.namespace);
    for words in [
        &["create", "serviceaccount", "viewer"][..],
        &["create", "rolebinding", "views", "--clusterrole=view", &account],
    ] {
        let mut kubectl = team.kubectl()?;
        kubectl.args(words);
        blocking(move || output(&mut kubectl)).await?;
    }
    let run = async |words: &[&str]| {
        let mut kubectl = team.kubectl()?;
        kubectl.arg(format!("--as=system:serviceaccount:{}:viewer", team.namespace)).args(words);
        blocking(move || Ok(output(&mut kubectl))).await
    };
    for allowed in [&["get", "trainingruns,evaluations,reasoningpods,configmaps,pods"][..], &["logs", &trainer]] {
        run(allowed).await?.map_err(|why| panic!("{allowed:?}: {why}")).ok();
    }
    let connection = format!("/api/v1/namespaces/{}/pods/{trainer}/exec?command=x", team.namespace);
    for refused in [
        &["get", "secrets"][..],
        &["create", "token", "default", "--bound-object-kind=Pod", "--bound-object-name", &trainer],
        &["get", "--raw", &connection],
        &["delete", "pod", &trainer],
        &["annotate", "trainingrun", "run", "mine=true"],
        &["patch", "trainingrun", "run", "--subresource=status", "--type=merge", "--patch={\"status\":{}}"],
        &["delete", "trainingrun", "run"],
        &["create", "configmap", "mine"],
    ] {
        let why = match run(refused).await? {
            Ok(done) => panic!("{refused:?} was allowed: {done}"),
            Err(why) => why.to_string().to_lowercase(),
        };
        assert!(why.contains("forbidden"), "{refused:?}: {why}");
    }
    team.done();
    Ok(())
}

/// A trainer runs any image and reads Secrets: the right to write ReasoningPods is not the right to have them create trainers.
#[tokio::test(flavor = "multi_thread")]
async fn only_who_may_train_may_write_a_redeploy() -> Result<()> {
    let team = Team::new("redeployer").await?;
    let account = format!("--serviceaccount={}:promoter", team.namespace);
    let words = [
        vec!["create", "serviceaccount", "promoter"],
        vec!["create", "rolebinding", "promotes", "--clusterrole=codex-promoter", &account],
    ];
    for words in words {
        let mut kubectl = team.kubectl()?;
        kubectl.args(words);
        blocking(move || output(&mut kubectl)).await?;
    }
    let sample = include_str!("../../manifests/samples/flywheel/weekly.yaml");
    let objects = sample.split("\n---\n").find(|text| text.contains("kind: ReasoningPod")).unwrap_or_default();
    let apply = async |name: &str, text: String| {
        let mut kubectl = team.kubectl()?;
        kubectl.arg(format!("--as=system:serviceaccount:{}:promoter", team.namespace));
        kubectl.args(["create", "--filename=-"]);
        let text = text.replace("name: cot-weekly\n", &format!("name: {name}\n"));
        blocking(move || Ok(output_with(&mut kubectl, &text))).await
    };
    let why = apply("weekly", objects.to_owned()).await?.unwrap_err().to_string();
    assert!(why.contains("spec.redeploy creates TrainingRuns and Evaluations"), "{why}");
    let plain = "apiVersion: codex-ml.dev/v1alpha1\nkind: ReasoningPod\nmetadata:\n  name: cot-weekly\nspec:\n  rolloutRing: 0D_base_\n  \
                 trainingRun: none\n  evaluations: [none]\n";
    apply("plain", plain.to_owned()).await?.map_err(|why| panic!("{why}")).ok();
    let mut kubectl = team.kubectl()?;
    kubectl.args(["create", "rolebinding", "trains", "--clusterrole=codex-editor", &account]);
    blocking(move || output(&mut kubectl)).await?;
    apply("weekly", objects.to_owned()).await?.map_err(|why| panic!("{why}")).ok();
    team.done();
    Ok(())
}
