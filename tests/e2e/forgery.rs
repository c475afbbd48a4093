//! What the role `edit` cannot forge: each attack on the evidence of an evaluation is refused by an admission policy.

use codex_crds::{ConditionType, Evaluation, TrainingRun, child};
use codex_tests::{
    Result, Team, objects,
    process::{output, output_with},
    team::{SOON, blocking, condition},
    wait::{until, until_found},
};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::{Value, json};

/// The service account of a user who holds `edit` in the team's namespace and everything on our kinds.
const TENANT: &str = "tenant";

#[tokio::test(flavor = "multi_thread")]
async fn an_editor_of_the_namespace_cannot_forge_evidence() -> Result<()> {
    let team = Team::new("forgery").await?;
    grant_edit(&team).await?;
    team.create(&objects::run("run", &["training.max_steps=1", "training.warmup_steps=0"])).await?;
    team.trained("run").await?;
    // The genuine evaluator never finds a node, so that every attack meets it.
    let mut evaluation = objects::evaluation("judged", "run", &team.problems);
    evaluation.spec.pod.node_selector = [("example.com/nowhere".to_owned(), "true".to_owned())].into();
    team.create(&evaluation).await?;
    let evaluator = until_found("the evaluator's pod", SOON, async || {
        Ok(team.pods(codex_crds::label::EVALUATION, "judged").await?.pop())
    })
    .await?;
    let name = evaluator.name_any();
    assert!(name.starts_with("codex-e-judged-"), "{name}");

    // A token that speaks for the evaluator. Without our audience the same request is granted.
    let bound = token_of(&name);
    allowed(&team, &bound[..6], None).await?;
    refused(&team, "codex-report-tokens", &bound, None).await?;

    // A pod in the evaluator's place: by its labels, by its name, by a label that is added later.
    let copy = copy_of(&evaluator);
    refused(&team, "codex-workloads", &["create", "-f", "-"], Some(&copy)).await?;
    let mut named = plain_pod(&evaluator, "codex-e-judged-zzzzz");
    refused(&team, "codex-workloads", &["create", "-f", "-"], Some(&named)).await?;
    named["metadata"]["name"] = json!("plain");
    allowed(&team, &["create", "-f", "-"], Some(&named)).await?;
    refused(&team, "codex-workloads", &["label", "pod", "plain", "codex-ml.dev/reasoning-pod=served"], None).await?;
    refused(&team, "codex-workloads", &["label", "pod", &name, "mine=true"], None).await?;

    // The Job, and another one under its owner.
    let job = child::evaluator("judged");
    refused(&team, "codex-workloads", &["annotate", "job", &job, "mine=true"], None).await?;
    refused(&team, "codex-workloads", &["create", "job", "codex-e-mine", "--image=mine"], None).await?;
    refused(&team, "codex-workloads", &["create", "deployment", "codex-s-mine", "--image=mine"], None).await?;

    // A way into the evaluator.
    let pod = format!("/api/v1/namespaces/{}/pods/{name}", team.namespace);
    for way in ["exec?command=x&stdout=true", "attach?stdout=true", "portforward", "proxy/"] {
        refused(&team, "codex-connections", &["get", "--raw", &format!("{pod}/{way}")], None).await?;
    }
    let why = debug(&team, &name).await.map(|pod| pod.name_any()).unwrap_err().to_string();
    assert!(why.contains("codex-workloads"), "{why}");

    // A verdict written by hand.
    let verdict = r#"--patch={"status":{"verdict":"Passed"}}"#;
    let patch = ["patch", "evaluation", "judged", "--subresource=status", "--type=merge", verdict];
    refused(&team, "codex-status", &patch, None).await?;
    let status = team.api::<Evaluation>().get("judged").await?.status.unwrap_or_default();
    assert_eq!(status.verdict, None);
    team.done();
    Ok(())
}

/// A trainer's word is called reported and not attested, so its pod may be debugged; evaluators and servers may not be.
#[tokio::test(flavor = "multi_thread")]
async fn a_trainer_may_still_be_debugged() -> Result<()> {
    let team = Team::new("debug").await?;
    grant_edit(&team).await?;
    let mut run = objects::run("run", &["training.max_steps=1", "training.warmup_steps=0"]);
    run.spec.pod.worker.node_selector = [("example.com/nowhere".to_owned(), "true".to_owned())].into();
    team.create(&run).await?;
    let trainer = until_found("the trainer's pod", SOON, async || {
        Ok(team.pods(codex_crds::label::TRAINING_RUN, "run").await?.pop())
    })
    .await?;
    let name = trainer.name_any();
    assert!(name.starts_with("codex-t-run-"), "{name}");
    let debugged = debug(&team, &name).await.unwrap();
    let added = debugged.spec.and_then(|spec| spec.ephemeral_containers).unwrap_or_default();
    assert_eq!(added.iter().map(|container| &*container.name).collect::<Vec<_>>(), ["debugger"]);
    // Nothing else of it may be changed.
    refused(&team, "codex-workloads", &["label", "pod", &name, "mine=true"], None).await?;
    refused(&team, "codex-report-tokens", &token_of(&name), None).await?;
    // Its status does not call the debugged pod changed.
    let ready = |run: &TrainingRun| {
        let conditions = run.status.as_ref().map(|status| &*status.conditions);
        condition(conditions, ConditionType::Ready).map(|ready| ready.reason.clone())
    };
    let run = until(&team.api::<TrainingRun>(), "run", "it waits for a node", SOON, |run| {
        ready(run).as_deref() == Some("WaitingForPod")
    })
    .await?;
    assert_eq!(run.status.unwrap_or_default().attested, None);
    team.done();
    Ok(())
}

/// Adds a debugging container to a pod as the tenant.
async fn debug(team: &Team, pod: &str) -> kube::Result<Pod> {
    let harmless = json!({ "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } });
    let debugger = json!({ "name": "debugger", "image": "mine", "securityContext": harmless });
    let debugger = json!({ "spec": { "ephemeralContainers": [debugger] } });
    let client = kube::Client::try_from(impersonated(team).await.unwrap())?;
    let api: kube::Api<Pod> = kube::Api::namespaced(client, &team.namespace);
    let patch = kube::api::Patch::Strategic(debugger);
    api.patch_ephemeral_containers(pod, &kube::api::PatchParams::default(), &patch).await
}

/// What kubectl is told to mint a token that speaks for a pod.
fn token_of(pod: &str) -> [&str; 7] {
    [
        "create",
        "token",
        "default",
        "--bound-object-kind=Pod",
        "--bound-object-name",
        pod,
        "--audience=codex-ml.dev/reports",
    ]
}

/// Gives the tenant the rights of an editor, and more: everything on our kinds, and ephemeral containers.
async fn grant_edit(team: &Team) -> Result<()> {
    let account = format!("--serviceaccount={}:{TENANT}", team.namespace);
    let role = ["create", "role", "codex-everything", "--verb=*", "--resource=evaluations.codex-ml.dev"];
    let more = ["--resource=evaluations.codex-ml.dev/status,pods/ephemeralcontainers"];
    for words in [
        &["create", "serviceaccount", TENANT][..],
        &["create", "rolebinding", "edits", "--clusterrole=edit", &account],
        &[&role[..], &more].concat(),
        &["create", "rolebinding", "everything", "--role=codex-everything", &account],
    ] {
        let mut kubectl = team.kubectl()?;
        kubectl.args(words);
        blocking(move || output(&mut kubectl)).await?;
    }
    Ok(())
}

/// Runs kubectl as the tenant and returns its output.
async fn allowed(team: &Team, words: &[&str], input: Option<&Value>) -> Result<String> {
    let mut kubectl = team.kubectl()?;
    kubectl.arg(format!("--as=system:serviceaccount:{}:{TENANT}", team.namespace)).args(words);
    let input = input.map(Value::to_string);
    blocking(move || match input {
        Some(input) => output_with(&mut kubectl, &input),
        None => output(&mut kubectl),
    })
    .await
}

/// Asserts that a policy refuses what kubectl asks for as the tenant.
async fn refused(team: &Team, policy: &str, words: &[&str], input: Option<&Value>) -> Result<()> {
    let why = match allowed(team, words, input).await {
        Ok(done) => panic!("{words:?} was allowed: {done}"),
        Err(why) => why.to_string(),
    };
    assert!(why.contains(&format!("ValidatingAdmissionPolicy '{policy}'")), "{words:?}: {why}");
    Ok(())
}

/// A client with the tenant's rights.
async fn impersonated(team: &Team) -> Result<kube::Config> {
    let mut config = team.installation.config().await?;
    config.auth_info.impersonate = Some(format!("system:serviceaccount:{}:{TENANT}", team.namespace));
    Ok(config)
}

/// The evaluator's pod again, under another name: its labels, its owner, its spec.
fn copy_of(evaluator: &Pod) -> Value {
    let mut copy = plain_pod(evaluator, "copied");
    copy["metadata"]["labels"] = json!(evaluator.metadata.labels);
    let mut owners = json!(evaluator.metadata.owner_references);
    for owner in owners.as_array_mut().into_iter().flatten() {
        // OwnerReferencesPermissionEnforcement refuses a blocking owner before any policy is asked.
        owner["blockOwnerDeletion"] = json!(false);
    }
    copy["metadata"]["ownerReferences"] = owners;
    copy
}

/// A pod that the namespace's Pod Security level allows and that never finds a node.
fn plain_pod(evaluator: &Pod, name: &str) -> Value {
    let mut spec = json!(evaluator.spec);
    for field in ["nodeName", "tolerations", "serviceAccount", "priority", "preemptionPolicy"] {
        spec.as_object_mut().unwrap().remove(field);
    }
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name }, "spec": spec })
}
