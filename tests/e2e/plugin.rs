//! `kubectl codex` on a real cluster: the plugin is found by kubectl, and shows a chain, its logs, its Events and its checklist.

use std::{path::PathBuf, process::Command};

use codex_crds::PromotionPolicy;
use codex_tests::{
    Result, Team,
    install::{program, repository},
    objects,
    process::output,
    team::blocking,
};
use k8s_openapi::api::core::v1::ResourceQuota;
use serde_json::{Value, json};

/// Runs `kubectl codex` with these words, with the plugin on the path of kubectl.
async fn codex(team: &Team, words: &[&str]) -> Result<String> {
    kubectl(team, &["codex"], words).await
}

/// Runs kubectl with these words, with the plugin and its completion on the path.
async fn kubectl(team: &Team, first: &[&str], words: &[&str]) -> Result<String> {
    let plugin = program("kubectl-codex")?;
    let folder = plugin.parent().map(PathBuf::from).unwrap_or_default();
    // kubectl takes no flag before the name of a plugin.
    let mut kubectl = Command::new(team.installation.cluster.kubectl()?.get_program());
    let kubeconfig = team.installation.cluster.kubeconfig();
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let own = [folder, repository().join("controller/kubectl")];
    let folders = own.into_iter().chain(std::env::split_paths(&inherited));
    let path = std::env::join_paths(folders).unwrap_or(inherited.clone());
    kubectl.args(first).args(words);
    kubectl.env("PATH", path).env("KUBECONFIG", kubeconfig);
    blocking(move || output(&mut kubectl)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_shows_a_chain_and_what_blocks_it() -> Result<()> {
    let team = Team::new("plugin").await?;
    let namespace = team.namespace.clone();
    team.create(&objects::run("run", &["training.max_steps=1", "training.warmup_steps=0"])).await?;
    team.trained("run").await?;
    team.create(&objects::evaluation("strict", "run", &team.problems)).await?;
    team.judged("strict").await?;
    team.create(&objects::reasoning_pod("refused", "run", "strict")).await?;
    let blocked =
        |pod: &codex_crds::ReasoningPod| pod.status.as_ref().is_some_and(|status| !status.blocked_by.is_empty());
    codex_tests::wait::until(&team.api(), "refused", "it is blocked", codex_tests::team::SOON, blocked).await?;

    let tree = codex(&team, &["tree", "run", "-n", &namespace]).await?;
    for part in ["TrainingRun run", "Evaluation strict", "ReasoningPod refused", "gate Failed", "blocked by"] {
        assert!(tree.contains(part), "{part} is missing in\n{tree}");
    }
    assert!(!tree.contains('\u{1b}'), "no colours in a pipe\n{tree}");
    let json: Value =
        serde_json::from_str(&codex(&team, &["tree", "run", "-o", "json", "-n", &namespace]).await?).unwrap();
    assert_eq!(json[0]["object"]["phase"], "Succeeded", "{json}");

    // What a shell asks kubectl for when a user presses the tab key.
    let complete = ["__complete", "codex"];
    assert_eq!(kubectl(&team, &complete, &["completion", "z"]).await?, "zsh\tZ shell\n:4\n");
    let names = kubectl(&team, &complete, &["why", "-n", &namespace, "re"]).await?;
    assert_eq!(names, "refused\tReasoningPod\n:4\n");
    let names = kubectl(&team, &complete, &["tree", "-n", &namespace, "trainingrun/"]).await?;
    assert_eq!(names, "trainingrun/run\tTrainingRun\n:4\n");

    let why = codex(&team, &["why", "reasoningpod/refused", "-n", &namespace]).await?;
    assert!(why.contains("trace_coverage") && why.lines().count() == 1, "{why}");
    let logs = codex(&team, &["logs", "run", "-n", &namespace, "-f"]).await?;
    assert!(logs.contains("==> pod codex-t-run-") && logs.lines().count() > 2, "{logs}");
    let top = codex(&team, &["top", "-A"]).await?;
    assert!(top.lines().any(|line| line.contains(&namespace) && line.contains("1/1")), "{top}");
    let events = codex(&team, &["events", "run", "-n", &namespace]).await?;
    assert!(events.contains("job/codex-t-run") && events.contains("trainingrun/run"), "{events}");
    // The checklist names every reason at once, and the survey counts them.
    let target = format!("{namespace}/refused");
    let blocked = codex(&team, &["deploy", "--cluster", &target, "--dry-run"]).await.unwrap_err().to_string();
    assert!(
        blocked.contains("exit status: 1") && blocked.contains("DEPLOYMENT BLOCKED: refused into 0A_base_: "),
        "{blocked}"
    );
    for reason in
        ["evaluations: strict: trace_coverage Failed: ", "signatures: status.manifest is absent", "status report: "]
    {
        assert!(blocked.contains(reason), "{reason} is missing in\n{blocked}");
    }
    let survey = codex(&team, &["status-report", "--cluster", &target, "--format", "json"]).await?;
    let survey: Value = serde_json::from_str(&survey).unwrap();
    assert_eq!((&survey["runs"][0]["gates"], &survey["runs"][0]["gatesPassed"]), (&1.into(), &0.into()), "{survey}");
    let absent = codex(&team, &["deploy", "--cluster", "absent", "-n", &namespace]).await.unwrap_err().to_string();
    assert!(absent.contains("exit status: 2") && absent.contains("there is no ReasoningPod absent"), "{absent}");

    let why = codex(&team, &["why", "absent", "-n", &namespace]).await.unwrap_err().to_string();
    assert!(why.contains("no TrainingRun, Evaluation or ReasoningPod"), "{why}");
    team.done();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_checklist_of_a_served_model_holds_until_a_quota_is_too_small() -> Result<()> {
    let team = Team::new("checklist").await?;
    team.create(&objects::run("run", &[])).await?;
    let mut evaluation = objects::evaluation("judged", "run", &team.problems);
    evaluation.spec.page = true;
    team.create(&evaluation).await?;
    team.create(&objects::reasoning_pod("served", "run", "judged")).await?;
    let run = team.trained("run").await?;
    let page = team.judged("judged").await?.status.and_then(|status| status.page).unwrap();
    if let Some(folder) = team.folder(&run).await? {
        // The path is on the volume, and the folder of the run is runs/UID.
        let volume = folder.ancestors().nth(2).unwrap();
        let html = std::fs::read(volume.join(&page.path)).unwrap();
        assert_eq!(codex_provenance::Sha256::of(&html), page.sha256.0, "{page:?}");
        assert!(String::from_utf8_lossy(&html).contains("trace_coverage"));
    }
    team.serving("served").await?;
    let target = format!("{}/served", team.namespace);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();

    let words = ["status-report", "--cluster", &target, "--date", "2026-11-28", "--pr", "12", "--out", out];
    let survey = codex(&team, &words).await?;
    assert!(survey.starts_with("# Survey of `0A_base_`, pull request 12, 2026-11-28"), "{survey}");
    let written = folder.path().join("survey-0A_base_-12-2026-11-28");
    assert_eq!(std::fs::read_to_string(written.with_extension("md")).unwrap().trim_end(), survey.trim_end());
    let json = written.with_extension("json");
    let read: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!((&read["runs"][0]["evidence"], &read["runs"][0]["deployment"]), (&1.0.into(), &1.0.into()), "{read}");

    let words = ["deploy", "--cluster", &target, "--dry-run", "--status-report", json.to_str().unwrap()];
    let told = codex(&team, &words).await?;
    assert!(told.starts_with("ReasoningPod served may roll out into 0A_base_\nmodel "), "{told}");
    for check in ["artifacts", "manifest", "evaluations", "signatures", "status report", "resources"] {
        assert!(told.contains(&format!("  ok      {check}: ")), "{check} is missing in\n{told}");
    }
    let map = codex(&team, &["repo-map", "--reasoning", "--include", "deployment", "--cluster", &target]).await?;
    assert_eq!(map, "reasoning_status\n  deployment.rollout_ring -> 0A_base_\n  deployment.preset -> custom\n");

    // A policy states other weights, and the quota is too small for the servers.
    let policy: PromotionPolicy = serde_json::from_value(json!({
        "apiVersion": "codex-ml.dev/v1alpha1", "kind": "PromotionPolicy", "metadata": { "name": "weights" },
        "spec": { "readiness": { "evidence": "1", "traces": "0", "deployment": "0" } },
    }))
    .unwrap();
    team.create(&policy).await?;
    let quota: ResourceQuota = serde_json::from_value(json!({
        "metadata": { "name": "small" }, "spec": { "hard": { "requests.cpu": "10m" } },
    }))
    .unwrap();
    team.create(&quota).await?;
    let survey = codex(&team, &["status-report", "--cluster", &target, "--format", "json"]).await?;
    let survey: Value = serde_json::from_str(&survey).unwrap();
    assert_eq!((&survey["readiness"], &survey["weights"]["evidence"]), (&1.0.into(), &1.0.into()), "{survey}");
    let blocked = codex(&team, &words).await.unwrap_err().to_string();
    assert!(blocked.contains("resources: ResourceQuota small allows 0.01 of requests.cpu, others use "), "{blocked}");
    let mut invalid = policy.clone();
    invalid.metadata.name = Some("invalid".to_owned());
    invalid.spec.readiness.as_mut().unwrap().traces = codex_verdict::Decimal("0.5".to_owned());
    let refused = team.create(&invalid).await.unwrap_err().to_string();
    assert!(refused.contains("readiness is invalid: write evidence, traces and deployment"), "{refused}");
    team.done();
    Ok(())
}
