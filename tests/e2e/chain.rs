//! The whole chain: a trained model is served, and an untrained one is not.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use codex_crds::{ConditionType, Evaluation, EvaluationPhase, ReasoningPodPhase, TrainingRun, child, label};
use codex_provenance::{attestation::AttestationKind, manifest::Manifest};
use codex_signing::{bundle, key::PublicKey};
use codex_tests::{
    Result, Team, install,
    objects::{self, STEPS, TRACE_COVERAGE},
    process::output,
    team::{SOON, blocking, condition},
    wait::{until, until_gone},
};
use codex_verdict::Verdict;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod, Service},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    ResourceExt as _,
    api::{DeleteParams, ListParams},
};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_trained_model_is_served_and_an_untrained_one_is_not() -> Result<()> {
    let team = Team::new("chain").await?;
    for (name, overrides) in [("learns", vec![]), ("untrained", vec!["training.stop_after=0"])] {
        team.create(&objects::run(name, &overrides)).await?;
        team.create(&objects::evaluation(&format!("{name}-judged"), name, &team.problems)).await?;
        team.create(&objects::reasoning_pod(&format!("{name}-served"), name, &format!("{name}-judged"))).await?;
    }

    // The same gate gives two verdicts, each by a bound.
    let run = team.trained("learns").await?;
    let limit: f64 = TRACE_COVERAGE.parse().unwrap();
    let passed = team.judged("learns-judged").await?;
    let gate = only_gate(&passed);
    assert_eq!(gate.0, Verdict::Passed, "{:#?}", passed.status);
    assert!(gate.1 >= limit, "the lower bound {} reaches {limit}", gate.1);
    let failed = team.judged("untrained-judged").await?;
    let gate = only_gate(&failed);
    assert_eq!(gate.0, Verdict::Failed, "{:#?}", failed.status);
    assert!(gate.2 < limit, "the upper bound {} is below {limit}", gate.2);

    // A failed verdict is not a failure of the operator.
    let status = failed.status.as_ref().unwrap();
    let holds = |kind| condition(Some(&status.conditions), kind).map(|condition| condition.status.as_str());
    assert_eq!((holds(ConditionType::Ready), holds(ConditionType::GatesPassed)), (Some("True"), Some("False")));
    assert_eq!(holds(ConditionType::Stalled), None);

    // The trained model is served, and every status names the same bytes.
    let model = run.status.as_ref().and_then(|status| status.model.clone()).unwrap();
    let judged = passed.status.as_ref().and_then(|status| status.model.clone()).unwrap();
    assert_eq!(judged.digest, model.digest);
    let pod = team.serving("learns-served").await?;
    let status = pod.status.clone().unwrap();
    assert_eq!(status.manifest.as_ref().map(|manifest| manifest.digest), Some(model.digest));
    assert_eq!(status.verified.as_ref().map(|verified| verified.digest), Some(model.digest));
    // The evaluator and the server ran on the same machine.
    let golden = passed.status.as_ref().and_then(|status| status.golden_tokens.clone()).unwrap();
    assert_eq!(golden.read().unwrap().len(), codex_provenance::golden::MAX_PROMPTS);
    assert_eq!(status.verified.as_ref().and_then(|verified| verified.golden_tokens.as_deref()), Some("equal"));
    assert_eq!(status.ready.as_deref(), Some("1/1"));
    let answer = team.infer("learns-served", "12+7:").await?;
    assert_eq!(answer["model_digest"], json!(model.digest), "{answer}");
    assert!(answer["tokens"].as_u64().is_some_and(|tokens| tokens > 0), "{answer}");

    // The untrained one is not, and its status says why.
    let blocked = team.blocked("untrained-served").await?;
    let status = blocked.status.unwrap();
    assert!(
        status.blocked_by.iter().any(|why| why.contains("untrained-judged") && why.contains("trace_coverage")),
        "{status:#?}"
    );
    assert!(
        condition(Some(&status.conditions), ConditionType::Stalled).is_some_and(|stalled| stalled.status == "True")
    );
    assert_eq!((status.manifest, status.promotion), (None, None), "nothing is signed for a model that did not pass");
    assert!(team.api::<Deployment>().get_opt(&child::server("untrained-served")).await?.is_none());

    // No pod has a token for the API server.
    let pods = team.api::<Pod>().list(&ListParams::default()).await?.items;
    assert!(pods.len() >= 5, "two trainers, two evaluators, a server");
    for pod in pods {
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(spec.automount_service_account_token, Some(false), "{}", pod.name_any());
    }

    tables(&team).await?;
    signatures(&team, &run, &pod).await?;
    dry_run(&team).await?;
    Box::pin(pruned(&team)).await?;
    team.done();
    Ok(())
}

/// Returns verdict, lower and upper bound of an evaluation's only gate.
fn only_gate(evaluation: &Evaluation) -> (Verdict, f64, f64) {
    let gates = &evaluation.status.as_ref().unwrap().gates;
    assert_eq!(gates.len(), 1);
    let bound = |bound: &Option<codex_verdict::Decimal>| bound.as_ref().unwrap().to_string().parse().unwrap();
    (gates[0].verdict, bound(&gates[0].lower), bound(&gates[0].upper))
}

/// Checks the tables of `kubectl get`.
async fn tables(team: &Team) -> Result<()> {
    let mut kubectl = team.kubectl()?;
    let runs = blocking(move || output(kubectl.args(["get", "trainingruns"]))).await?;
    let mut lines = runs.lines();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        words(lines.next().unwrap()),
        ["NAME", "RING", "PHASE", "STEPS", "LOSS", "TOK/S", "CHECKPOINT", "MODEL", "AGE"]
    );
    let row = words(lines.next().unwrap());
    let steps = format!("{STEPS}/{STEPS}");
    assert_eq!(row[..4], ["learns", "0A_base_", "Succeeded", steps.as_str()], "{runs}");

    let mut kubectl = team.kubectl()?;
    let evaluations = blocking(move || output(kubectl.args(["get", "evaluations"]))).await?;
    assert!(
        evaluations.lines().any(|line| words(line)[..5] == ["learns-judged", "learns", "Judged", "Passed", "1/1"]),
        "{evaluations}"
    );
    assert!(
        evaluations
            .lines()
            .any(|line| words(line)[..5] == ["untrained-judged", "untrained", "Judged", "Failed", "0/1"]),
        "{evaluations}"
    );

    let mut kubectl = team.kubectl()?;
    let pods = blocking(move || output(kubectl.args(["get", "reasoningpods"]))).await?;
    assert!(pods.lines().any(|line| words(line)[..4] == ["learns-served", "0A_base_", "Serving", "1/1"]), "{pods}");
    assert!(pods.lines().any(|line| words(line)[..3] == ["untrained-served", "0A_base_", "Blocked"]), "{pods}");
    Ok(())
}

/// Checks that the run owns both bundles, that they are immutable, and that two verifiers accept them.
async fn signatures(team: &Team, run: &TrainingRun, pod: &codex_crds::ReasoningPod) -> Result<()> {
    let status = pod.status.as_ref().unwrap();
    let (manifest, promotion) = (status.manifest.as_ref().unwrap(), status.promotion.as_ref().unwrap());
    let files = tempfile::tempdir().unwrap();
    for (name, config_map) in [("oms", &manifest.bundle), ("promotion", &promotion.bundle)] {
        let config_map = team.api::<ConfigMap>().get(config_map).await?;
        assert_eq!(config_map.immutable, Some(true));
        assert_eq!(config_map.owner_references()[0].uid, run.uid().unwrap());
        let data: BTreeMap<_, _> = config_map.data.unwrap();
        fs::write(files.path().join(format!("{name}.json")), &data["bundle.json"]).unwrap();
        fs::write(files.path().join("key.pem"), &data["key.pem"]).unwrap();
        for entry in AttestationKind::ALL.map(AttestationKind::entry).into_iter().filter(|_| name == "promotion") {
            fs::write(files.path().join(entry), &data[entry]).unwrap();
        }
    }
    let Some(folder) = team.folder(run).await? else {
        team.skip("the signatures over the model's files", "the files of this cluster's volumes cannot be read");
        return Ok(());
    };
    let model = folder.join("model");
    let on_disk = Manifest::of_dir(&model).unwrap();
    let recorded = run.status.as_ref().and_then(|status| status.model.as_ref()).unwrap();
    assert_eq!(on_disk.digest(), recorded.digest, "the digest is that of the bytes on the volume");
    assert_eq!(on_disk.files.len(), recorded.files.len());

    let pinned = codex_provenance::Sha256::of(fs::read(files.path().join("key.pem")).unwrap()).to_string();
    let verify = |model: &Path| {
        let mut codex = Command::new(install::program("codex").unwrap());
        codex.arg("verify").arg(model).arg("--bundle").arg(files.path().join("oms.json"));
        codex.arg("--key").arg(files.path().join("key.pem")).args(["--fingerprint", &pinned]);
        codex.arg("--promotion").arg(files.path().join("promotion.json")).args(["--ring", "0A_base_"]);
        for entry in AttestationKind::ALL.map(AttestationKind::entry) {
            codex.arg("--attestation").arg(files.path().join(entry));
        }
        codex
    };
    let told = output(&mut verify(&model))?;
    let attested = told.lines().filter(|line| line.starts_with("attested ")).count();
    assert_eq!(attested, AttestationKind::ALL.len(), "{told}");
    // The composed configuration is part of the provenance.
    let provenance = fs::read(files.path().join(AttestationKind::SlsaProvenance.entry())).unwrap();
    let key = PublicKey::from_pem(&fs::read_to_string(files.path().join("key.pem")).unwrap()).unwrap();
    let statement: Value = serde_json::from_slice(&bundle::open(&provenance, &key).unwrap()).unwrap();
    let parameters = &statement["predicate"]["buildDefinition"]["externalParameters"];
    assert_eq!(parameters["configuration"]["kind"], "TrainingRun", "{parameters:#}");
    peer_accepts(&model, files.path()).await?;

    // Neither accepts other bytes.
    let copy = files.path().join("model");
    fs::create_dir(&copy).unwrap();
    for file in &on_disk.files {
        fs::copy(model.join(&file.path), copy.join(&file.path)).unwrap();
    }
    flip(&copy.join("config.json"));
    let refused = output(&mut verify(&copy)).unwrap_err().to_string();
    assert!(refused.contains("config.json"), "{refused}");
    let refused = peer(&copy, files.path()).await?.unwrap_err().to_string();
    assert!(refused.contains("config.json") || refused.to_lowercase().contains("mismatch"), "{refused}");
    Ok(())
}

fn flip(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

/// Checks that OpenSSF's own verifier accepts the model.
async fn peer_accepts(model: &Path, files: &Path) -> Result<()> {
    peer(model, files).await?.map(drop)
}

async fn peer(model: &Path, files: &Path) -> Result<Result<String>> {
    let (model, files) = (model.to_owned(), files.to_owned());
    blocking(move || {
        let mut verify = Command::new(codex_tests::peers::model_signing()?);
        verify.args(["verify", "key"]).arg(model).arg("--signature").arg(files.join("oms.json"));
        Ok(output(verify.arg("--public_key").arg(files.join("key.pem"))))
    })
    .await
}

/// Checks that turning `dryRun` on stops the server and keeps the signatures.
async fn dry_run(team: &Team) -> Result<()> {
    let name = "learns-served";
    let server = child::server(name);
    let before = team.serving(name).await?.status.unwrap();
    team.change::<codex_crds::ReasoningPod>(name, json!({ "spec": { "dryRun": true } })).await?;
    until(&team.api::<codex_crds::ReasoningPod>(), name, "a clean dry run", SOON, |pod| {
        let status = pod.status.as_ref();
        let ready = condition(status.map(|status| &*status.conditions), ConditionType::Ready);
        status.and_then(|status| status.phase) == Some(ReasoningPodPhase::DryRun)
            && ready.is_some_and(|ready| ready.status == "True" && ready.reason == "DryRun")
    })
    .await?;
    until_gone(&team.api::<Deployment>(), &server, SOON).await?;
    until_gone(&team.api::<Service>(), name, SOON).await?;
    until_gone(&team.api::<PodDisruptionBudget>(), &server, SOON).await?;
    until_gone(&team.api::<NetworkPolicy>(), &server, SOON).await?;
    for bundle in [&before.manifest.as_ref().unwrap().bundle, &before.promotion.as_ref().unwrap().bundle] {
        team.api::<ConfigMap>().get(bundle).await?;
    }
    team.change::<codex_crds::ReasoningPod>(name, json!({ "spec": { "dryRun": false } })).await?;
    let after = team.serving(name).await?.status.unwrap();
    assert_eq!((after.manifest, after.promotion), (before.manifest, before.promotion));
    Ok(())
}

/// Checks that a server outlives its run and can start again, and that a run of the same name makes the verdict a former one.
async fn pruned(team: &Team) -> Result<()> {
    let (runs, evaluations) = (team.api::<TrainingRun>(), team.api::<Evaluation>());
    let name = "learns-served";
    let before = team.serving(name).await?;
    runs.delete("learns", &DeleteParams::background()).await?;
    until_gone(&runs, "learns", SOON).await?;
    let status = team.blocked(name).await?.status.unwrap();
    assert!(status.blocked_by.iter().any(|why| why.contains("TrainingRun learns")), "{:?}", status.blocked_by);
    let uid = before.uid().unwrap();
    for bundle in [&status.manifest.as_ref().unwrap().bundle, &status.promotion.as_ref().unwrap().bundle] {
        until(&team.api::<ConfigMap>(), bundle, "only the ReasoningPod owns it", SOON, |bundle| {
            bundle.owner_references().iter().map(|owner| &owner.uid).eq([&uid])
        })
        .await?;
    }
    // Another pod mounts them.
    let former = team.pods(label::REASONING_POD, name).await?;
    for pod in &former {
        team.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default()).await?;
        until_gone(&team.api::<Pod>(), &pod.name_any(), SOON).await?;
    }
    until(&team.api::<Deployment>(), &child::server(name), "another server is ready", SOON, |servers| {
        servers.status.as_ref().and_then(|status| status.ready_replicas) == Some(1)
    })
    .await?;
    team.infer(name, "12+7:").await?;
    // The verdict stays, until another run has the name.
    let ready = |evaluation: &Evaluation| {
        let status = evaluation.status.as_ref().unwrap();
        let ready = condition(Some(&status.conditions), ConditionType::Ready).unwrap().clone();
        (status.verdict, ready.status, ready.reason, ready.message)
    };
    until(&evaluations, "learns-judged", "it says that its run is gone", SOON, |evaluation| {
        let (verdict, status, _, message) = ready(evaluation);
        verdict == Some(Verdict::Passed) && status == "True" && message.contains("TrainingRun learns no longer exists")
    })
    .await?;
    let mut again = objects::run("learns", &[]);
    again.spec.suspend = true;
    team.create(&again).await?;
    until(&evaluations, "learns-judged", "it says that its run was replaced", SOON, |evaluation| {
        let (verdict, status, reason, _) = ready(evaluation);
        let phase = evaluation.status.as_ref().unwrap().phase;
        verdict == Some(Verdict::Passed)
            && (&*status, &*reason) == ("False", "Replaced")
            && phase == Some(EvaluationPhase::Stalled)
    })
    .await?;
    Ok(())
}
