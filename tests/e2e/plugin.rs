//! `kubectl codex` on a real cluster: the plugin is found by kubectl, and shows a chain, its logs and its Events.

use std::{path::PathBuf, process::Command};

use codex_tests::{Result, Team, install::program, objects, process::output, team::blocking};
use serde_json::Value;

/// Runs `kubectl codex` with these words, with the plugin on the path of kubectl.
async fn codex(team: &Team, words: &[&str]) -> Result<String> {
    let plugin = program("kubectl-codex")?;
    let folder = plugin.parent().map(PathBuf::from).unwrap_or_default();
    // kubectl takes no flag before the name of a plugin.
    let mut kubectl = Command::new(team.installation.cluster.kubectl()?.get_program());
    let kubeconfig = team.installation.cluster.kubeconfig();
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(folder).chain(std::env::split_paths(&inherited));
    let path = std::env::join_paths(folders).unwrap_or(inherited.clone());
    kubectl.args(["codex"]).args(words);
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

    let why = codex(&team, &["why", "reasoningpod/refused", "-n", &namespace]).await?;
    assert!(why.contains("trace_coverage") && why.lines().count() == 1, "{why}");
    let logs = codex(&team, &["logs", "run", "-n", &namespace, "-f"]).await?;
    assert!(logs.contains("==> pod codex-t-run-") && logs.lines().count() > 2, "{logs}");
    let top = codex(&team, &["top", "-A"]).await?;
    assert!(top.lines().any(|line| line.contains(&namespace) && line.contains("1/1")), "{top}");
    let events = codex(&team, &["events", "run", "-n", &namespace]).await?;
    assert!(events.contains("job/codex-t-run") && events.contains("trainingrun/run"), "{events}");
    let why = codex(&team, &["why", "absent", "-n", &namespace]).await.unwrap_err().to_string();
    assert!(why.contains("no TrainingRun, Evaluation or ReasoningPod"), "{why}");
    team.done();
    Ok(())
}
