//! The dashboards and alerts in Debian's Prometheus: after a chain, every panel has data or says why it has none, and no alert is
//! active. With `UPDATE=1` it draws the pictures of `docs/dashboards/` from that data.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    time::{Duration, Instant},
};

use codex_cluster::Target;
use codex_crds::{TrainingRun, TrainingRunPhase};
use codex_metrics::{alerts, dashboard::Panel, dashboards, scrape};
use codex_tests::{
    Result, Team,
    install::repository,
    objects,
    picture::{self, Line},
    prometheus::{Prometheus, Rule, Window, now},
    team::{SOON, TRAINED},
    wait::{until, until_found},
};
use codex_verdict::Decimal;
use serde_json::{Value, json};

/// Steps of the run. Prometheus reads changed targets every five seconds and applies them every five, so a trainer is scraped at
/// the latest ten seconds after its pod has an address; this one runs for longer on an idle machine, and far longer on a busy one.
const STEPS: &str = "training.max_steps=2000";
/// The time limit of the run, which takes three times as many steps as those of other tests.
const LONG: Duration = TRAINED.saturating_mul(3);
/// How long requests are sent: for some scrapes, and for longer if it is drawn.
const TRAFFIC: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(45)];
/// The most points of a series. A panel is about 250 pixels wide.
const POINTS: u32 = 60;
/// The most bytes of a picture.
const PICTURE: usize = 100_000;

/// A panel that has no data here: its dashboard, its title, why, and whether that is certain.
type Absent = (&'static str, &'static str, &'static str, bool);

/// The panels without data. Each says so on the dashboard.
const ABSENT: [Absent; 26] = [
    ("codex-operator", "Keys", "the key of the tests does not expire", true),
    ("codex-operator", "Failures by category", "only what neighbours do can fail", false),
    ("codex-operator", "Spans", "no collector", true),
    ("codex-rings", "Redeployments", "only a neighbour is redeployed", false),
    ("codex-runs", "Gradient noise scale", "training.gradient_noise_scale", true),
    ("codex-runs", "Epsilon", "training.privacy", true),
    ("codex-runs", "Reward margin", "DPO", true),
    ("codex-runs", "Preference accuracy", "DPO", true),
    ("codex-runs", "Reward", "GRPO", true),
    ("codex-runs", "Reward deviation", "GRPO", true),
    ("codex-runs", "Right answers", "GRPO", true),
    ("codex-runs", "Solved prompts", "GRPO", true),
    ("codex-runs", "Entropy", "GRPO", true),
    ("codex-runs", "Answer length", "GRPO", true),
    ("codex-runs", "Truncated answers", "GRPO", true),
    ("codex-runs", "Utilization", "GPU", true),
    ("codex-runs", "Memory", "GPU", true),
    ("codex-runs", "Temperature", "GPU", true),
    ("codex-runs", "Power", "GPU", true),
    ("codex-serving", "Requests by API key", "API keys", true),
    ("codex-serving", "Tokens by API key", "API keys", true),
    ("codex-serving", "Safety rules", "safety rules", true),
    ("codex-serving", "Held requests", "only a neighbour stops while idle", false),
    ("codex-serving", "Time held", "only a neighbour stops while idle", false),
    ("codex-serving", "Activations", "only a neighbour stops while idle", false),
    ("codex-serving", "Requests to activators", "only a neighbour stops while idle", false),
];

/// The alerts that may be active beside a healthy chain, and why.
const ACTIVE: [(&str, &str); 7] = [
    ("CodexCanaryRolledBack", "a neighbour lets a canary fail"),
    ("CodexParityLost", "a neighbour compares different models"),
    ("CodexServingUnverified", "a neighbour tampers with what is served"),
    ("CodexReportsRefused", "a neighbour forges reports"),
    ("CodexReconcileErrors", "a neighbour creates objects that cannot be reconciled"),
    ("CodexLatencyBudgetFast", "the machine is busy with the neighbours"),
    ("CodexLatencyBudgetSlow", "the machine is busy with the neighbours"),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_panel_has_data_and_no_alert_is_active_after_a_healthy_chain() -> Result<()> {
    let team = Team::new("dashboards").await?;
    let missing = if *team.installation.cluster.target() != Target::Local {
        Some("pods of another cluster may be out of reach of this machine")
    } else if !Prometheus::is_installed()? {
        Some("prometheus is missing; install Debian's package prometheus")
    } else {
        None
    };
    if let Some(why) = missing {
        team.skip("the dashboards in Prometheus", why);
        team.done();
        return Ok(());
    }
    let prometheus = Prometheus::start(team.client.clone(), &team.namespace).await?;
    prometheus.scraped(scrape::CONTROLLER, SOON).await?;
    let start = now();

    chain(&team, &prometheus).await?;
    let window = Window::new(start, now(), POINTS);
    let mut told = Vec::new();
    for board in dashboards::all() {
        let mut data = Vec::new();
        for panel in board.panels() {
            let lines = prometheus.panel(panel, window, &team.namespace).await?;
            told.extend(complaint(board.uid, panel, &lines));
            data.push(lines);
        }
        let picture = picture::draw(&board, window, &data);
        assert!(picture.len() <= PICTURE, "the picture of {} has {} bytes", board.uid, picture.len());
        if draws() {
            let folder = repository().join("docs/dashboards");
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(format!("{}.svg", board.uid.trim_start_matches("codex-"))), picture).unwrap();
        }
    }
    assert!(told.is_empty(), "{told:#?}");

    let rules = prometheus.rules().await?;
    let names: BTreeSet<_> = rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(names, alerts::ALL.iter().map(|alert| alert.name).collect());
    for rule in &rules {
        assert_eq!((rule.health.as_str(), rule.last_error.as_str()), ("ok", ""), "{}", rule.name);
    }
    // A scrape that took too long makes an alert pending for a moment.
    let mut last = Vec::new();
    let quiet = until_found("no alert is active", SOON, async || {
        last = active(&prometheus.rules().await?);
        Ok(last.is_empty().then_some(()))
    });
    let quiet = quiet.await;
    assert!(quiet.is_ok(), "{quiet:?}: {last:#?}");
    team.done();
    Ok(())
}

/// Returns whether the pictures are to be written.
fn draws() -> bool {
    env::var_os("UPDATE").is_some()
}

/// Trains, judges and serves a model while it is scraped; beside it are an Evaluation that fails, a ReasoningPod that it blocks, and
/// an Evaluation that is inconclusive.
async fn chain(team: &Team, prometheus: &Prometheus) -> Result<()> {
    team.create(&objects::run("learns", &[STEPS, "training.eval_every=300"])).await?;
    team.create(&objects::evaluation("judged", "learns", &team.problems)).await?;
    team.create(&objects::reasoning_pod("served", "learns", "judged")).await?;
    let mut missed = objects::evaluation("missed", "learns", &team.problems);
    let gate = &mut missed.spec.gates[0];
    (gate.min, gate.max) = (None, Some(Decimal("0.01".to_owned())));
    team.create(&missed).await?;
    team.create(&objects::reasoning_pod("waits", "learns", "missed")).await?;
    let mut doubtful = objects::evaluation("doubtful", "learns", &team.problems);
    doubtful.spec.gates[0].min_samples = Some(1000);
    team.create(&doubtful).await?;

    prometheus.scraped(scrape::TRAINER, SOON).await?;
    until(&team.api::<TrainingRun>(), "learns", "its model is there", LONG, |run| {
        run.status.as_ref().and_then(|status| status.phase) == Some(TrainingRunPhase::Succeeded)
    })
    .await?;
    for evaluation in ["judged", "missed", "doubtful"] {
        team.judged(evaluation).await?;
    }
    team.blocked("waits").await?;
    team.serving("served").await?;
    prometheus.scraped(scrape::SERVER, SOON).await?;

    let (begun, mut asked) = (Instant::now(), 0);
    while begun.elapsed() < TRAFFIC[usize::from(draws())] {
        asked += 1;
        let prompt = format!("{}+{}:", asked % 90 + 10, asked * 7 % 90 + 10);
        team.infer("served", &prompt).await?;
        let bound = json!({ "prompt": prompt, "max_tokens": 8, "structured_outputs": { "choice": ["yes", "no"] } });
        post(team, "v1/completions", &bound).await?;
        let refused = post(team, "v1/completions", &json!({ "prompt": 5 })).await;
        assert!(refused.is_err(), "a prompt that is no text is refused: {refused:?}");
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    Ok(())
}

/// Sends a request to the served model.
async fn post(team: &Team, path: &str, body: &Value) -> Result<Value> {
    let path = format!("/api/v1/namespaces/{}/services/served:8000/proxy/{path}", team.namespace);
    let request = http::Request::post(path).header(http::header::CONTENT_TYPE, "application/json");
    let request = request.body(body.to_string().into_bytes()).map_err(kube::Error::HttpError)?;
    Ok(team.client.request(request).await?)
}

/// Says what is wrong with the data of a panel, if anything is.
fn complaint(board: &str, panel: &Panel, lines: &[Line]) -> Option<String> {
    let has_data = lines.iter().flat_map(|line| &line.points).any(|(_, value)| value.is_finite());
    let listed = ABSENT.iter().find(|(uid, title, ..)| (*uid, *title) == (board, panel.title));
    let place = format!("{board}: {}", panel.title);
    match listed {
        None if !has_data => Some(format!("{place} has no data")),
        Some((.., why, true)) if has_data => Some(format!("{place} has data, but should have none: {why}")),
        Some((.., why, _)) if panel.empty == Panel::new(panel.shape, panel.unit, "", "").empty => {
            Some(format!("{place} may have no data ({why}), and does not say so with when_empty"))
        }
        _ => None,
    }
}

/// Returns the alerts that are pending or fire and should not, each with its labels.
fn active(rules: &[Rule]) -> Vec<(String, BTreeMap<String, String>)> {
    let unexpected = rules.iter().filter(|rule| ACTIVE.iter().all(|(name, _)| *name != rule.name));
    let alerts = unexpected.flat_map(|rule| rule.alerts.iter().map(|alert| (rule.name.clone(), alert.labels.clone())));
    alerts.collect()
}

/// A panel or an alert that was renamed must not stay in a list.
#[test]
fn what_the_lists_name_exists() {
    let boards = dashboards::all();
    for (uid, title, ..) in ABSENT {
        let found = boards.iter().any(|board| board.uid == uid && board.panels().any(|panel| panel.title == title));
        assert!(found, "there is no panel {title} on {uid}");
    }
    for (name, _) in ACTIVE {
        assert!(alerts::ALL.iter().any(|alert| alert.name == name), "there is no alert {name}");
    }
}
