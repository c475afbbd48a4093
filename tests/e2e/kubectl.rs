//! What GitOps tools and users do to a TrainingRun with kubectl, through its whole life, and to an Evaluation and a ReasoningPod: nothing
//! shows drift, equal manifests change nothing, and the status answers `wait`, `get --watch` and kstatus.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Stdio},
};

use codex_crds::{TrainingRun, TrainingRunPhase, child};
use codex_tests::{
    Error, Result, Team,
    objects::{self, CLAIM},
    process::output,
    team::{SOON, TRAINED, blocking, condition},
    wait::{until, until_found, until_gone},
};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, PersistentVolumeClaim},
};
use kube::{Resource as _, ResourceExt as _, api::ListParams};
use serde::Serialize;
use serde_json::{Value, json};

/// The label of everything in the repository, by which `--prune` selects.
const APP: (&str, &str) = ("example.com/app", "models");
/// Kinds that `--prune` may delete: those of the repository, and those of the children and of the volume.
const PRUNED: [&str; 4] =
    ["codex-ml.dev/v1alpha1/TrainingRun", "batch/v1/Job", "core/v1/ConfigMap", "core/v1/PersistentVolumeClaim"];
/// Fields of the manifests that a user writes; all others keep their defaults.
const WRITTEN: [&str; 12] = [
    "rolloutRing",
    "template",
    "overrides",
    "seed",
    "data",
    "output",
    "pod",
    "trainingRun",
    "preset",
    "gates",
    "evaluations",
    "dryRun",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_run_shows_no_drift_and_answers_every_verb_through_its_life() -> Result<()> {
    let team = Team::new("kubectl").await?;
    let repository = Repository::new(&team)?;
    let runs = team.api::<TrainingRun>();

    // Before it starts. A second run can never start.
    let mut manifest = manifest(&objects::run("run", &[]));
    manifest["spec"]["suspend"] = json!(true);
    repository.write(&manifest)?;
    repository.write(&self::manifest(&objects::run("removed", &["training.batchsize=8"])))?;
    repository.apply(&[]).await?;
    let ready = |run: &TrainingRun, reason: &str| {
        let ready = condition(run.status.as_ref().map(|status| &*status.conditions), codex_crds::ConditionType::Ready);
        ready.is_some_and(|ready| ready.reason == reason)
    };
    let run = until(&runs, "run", "it is suspended", SOON, |run| ready(run, "Suspended")).await?;
    let (uid, first) = (run.uid(), run.meta().generation);
    assert_eq!(kstatus(&json!(run)), Kstatus::InProgress);
    let removed =
        until(&runs, "removed", "its spec is invalid", SOON, |run| ready(run, "InvalidConfiguration")).await?;
    assert_eq!(kstatus(&json!(removed)), Kstatus::Failed);
    repository.shows_no_drift().await?;
    repository.apply(&["--server-side"]).await?;
    repository.shows_no_drift().await?;
    repository.apply(&[]).await?;
    assert_eq!(runs.get("run").await?.meta().generation, first);

    // An edit of a field that may change. It is drift until the repository says the same.
    let mut watched = repository.watch("run")?;
    repository.edit("run", "s/^  suspend: true$/  suspend: false/").await?;
    assert_eq!(runs.get("run").await?.meta().generation, first.map(|first| first + 1), "one change");
    let drift = repository.kubectl(&["diff", "--filename", &repository.folder()]).await.unwrap_err().to_string();
    assert!(drift.contains("-  suspend: false") && drift.contains("+  suspend: true"), "{drift}");
    manifest["spec"].as_object_mut().unwrap().remove("suspend");
    repository.write(&manifest)?;

    // While it runs.
    until(&runs, "run", "it is running", TRAINED, |run| {
        let phase = run.status.as_ref().and_then(|status| status.phase);
        matches!(phase, Some(TrainingRunPhase::Running | TrainingRunPhase::Succeeded))
    })
    .await?;
    repository.apply(&[]).await?;
    repository.shows_no_drift().await?;
    repository.apply(&["--server-side"]).await?;
    repository.shows_no_drift().await?;
    let run = runs.get("run").await?;
    assert_eq!((run.uid(), run.meta().generation), (uid.clone(), first.map(|first| first + 1)));

    // Its end. `kubectl wait` ends with it.
    repository.kubectl(&["wait", "--for=condition=Ready", "--timeout=150s", "trainingrun/run"]).await?;
    let run = team.trained("run").await?;
    assert_eq!(kstatus(&json!(run)), Kstatus::Current);
    let model = run.status.as_ref().and_then(|status| status.model.clone()).unwrap();
    assert_eq!(run.status.as_ref().unwrap().work.attempts, Some(1));
    let job = team.api::<Job>().get(&child::trainer("run")).await?;
    repository.shows_no_drift().await?;
    repository.apply(&["--server-side"]).await?;
    repository.shows_no_drift().await?;
    repository.kubectl(&["replace", "--filename", &repository.path("run")]).await?;
    repository.shows_no_drift().await?;
    repository.apply(&[]).await?;
    repository.shows_no_drift().await?;
    let run = runs.get("run").await?;
    assert_eq!((run.uid(), run.meta().generation), (uid.clone(), first.map(|first| first + 1)));
    let rows = until_found("the rows of the whole life", SOON, async || {
        let rows = watched.rows()?;
        Ok(["Suspended", "Running", "Succeeded"].iter().all(|phase| rows.contains(phase)).then_some(rows))
    })
    .await?;
    let (heading, rows) = rows.split_once('\n').unwrap();
    assert!(heading.starts_with("NAME ") && heading.contains(" PHASE "), "{heading}");
    assert!(rows.lines().count() >= 3 && rows.lines().all(|row| row.starts_with("run ")), "{rows}");

    // Equal values, written otherwise. The API server drops a null and stores the others as they are written, which is another
    // generation; nobody makes anything of it.
    manifest["spec"]["pod"]["affinity"] = Value::Null;
    repository.write(&manifest)?;
    repository.apply(&[]).await?;
    repository.kubectl(&["diff", "--filename", &repository.folder()]).await?;
    assert_eq!(runs.get("run").await?.meta().generation, run.meta().generation, "null is no value");
    manifest["spec"]["pod"].as_object_mut().unwrap().remove("affinity");
    manifest["spec"]["pod"]["tolerations"] = json!([]);
    manifest["spec"]["pod"]["resources"]["requests"] = json!({ "cpu": "0.05", "memory": "65536Ki" });
    repository.write(&manifest)?;
    repository.apply(&[]).await?;
    repository.shows_no_drift().await?;
    let generation = runs.get("run").await?.meta().generation;
    let same = until(&runs, "run", "the equal spec is observed", SOON, |run| {
        run.status.as_ref().is_some_and(|status| status.observed_generation == generation)
    })
    .await?;
    assert_eq!(kstatus(&json!(same)), Kstatus::Current);
    assert_eq!(same.status.as_ref().and_then(|status| status.model.clone()), Some(model));
    let now = team.api::<Job>().get(&child::trainer("run")).await?;
    assert_eq!((now.uid(), now.meta().generation), (job.uid(), job.meta().generation), "its Job is untouched");

    // A manifest that is removed, and pruning. The other run, its children and the volume stay.
    let (label, value) = APP;
    let selected = format!("{label}={value}");
    let mut prune = vec!["--prune", "--selector", &selected];
    prune.extend(PRUNED.iter().flat_map(|kind| ["--prune-allowlist", *kind]));
    let kept = repository.apply(&prune).await?;
    assert!(!kept.contains("pruned"), "{kept}");
    fs::remove_file(repository.path("removed")).map_err(Error::io("removing a manifest"))?;
    let pruned = repository.apply(&prune).await?;
    let gone: Vec<_> = pruned.lines().filter(|line| line.contains("pruned")).collect();
    assert_eq!(gone, ["trainingrun.codex-ml.dev/removed pruned"], "{pruned}");
    until_gone(&runs, "removed", SOON).await?;
    assert_eq!(runs.get("run").await?.uid(), uid);
    team.api::<Job>().get(&child::trainer("run")).await?;
    team.api::<PersistentVolumeClaim>().get(CLAIM).await?;
    let configurations = team.api::<ConfigMap>().list(&ListParams::default()).await?.items;
    let owned =
        configurations.iter().filter(|map| map.owner_references().iter().any(|owner| Some(&owner.uid) == uid.as_ref()));
    assert!(owned.count() > 0, "the configuration of the run");
    team.done();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evaluation_and_a_reasoning_pod_show_no_drift_and_answer_wait() -> Result<()> {
    let team = Team::new("kubectl-chain").await?;
    let repository = Repository::new(&team)?;
    let mut run = manifest(&objects::run("run", &["training.max_steps=1", "training.warmup_steps=0"]));
    run["spec"]["suspend"] = json!(true);
    // The run has learnt nothing in one step, so the gate is on what every model reaches.
    let mut judged = objects::evaluation("judged", "run", &team.problems);
    judged.spec.gates[0].min = Some(codex_verdict::Decimal("0".to_owned()));
    judged.spec.gates[0].confidence = None;
    let served = objects::reasoning_pod("served", "run", "judged");
    // One of each kind that can never be ready.
    let mut invalid = objects::evaluation("invalid", "run", &team.problems);
    invalid.spec.preset = "cotlite".to_owned();
    let mut ahead = objects::reasoning_pod("ahead", "run", "judged");
    ahead.spec.rollout_ring = codex_verdict::Ring::Base0B;
    for manifest in [&run, &manifest(&judged), &manifest(&served), &manifest(&invalid), &manifest(&ahead)] {
        repository.write(manifest)?;
    }
    repository.apply(&[]).await?;

    // `kubectl wait` ends with each condition, and kstatus says the same.
    let wait = async |condition: &str, objects: &[&str], expected: Kstatus| -> Result<()> {
        let condition = format!("--for=condition={condition}");
        for object in objects {
            repository.kubectl(&["wait", &condition, "--timeout=150s", object]).await?;
            let live = repository.live(object).await?;
            assert_eq!(kstatus(&live), expected, "{live:#}");
        }
        Ok(())
    };
    wait("Reconciling", &["evaluation/judged", "reasoningpod/served"], Kstatus::InProgress).await?;
    wait("Stalled", &["evaluation/invalid", "reasoningpod/ahead"], Kstatus::Failed).await?;
    repository.shows_no_drift().await?;

    run["spec"].as_object_mut().unwrap().remove("suspend");
    repository.write(&run)?;
    repository.apply(&[]).await?;
    wait("Ready", &["trainingrun/run", "evaluation/judged", "reasoningpod/served"], Kstatus::Current).await?;
    // The controller has written every status.
    let objects = ["evaluation/judged", "reasoningpod/served"];
    let mut before = Vec::new();
    for object in objects {
        before.push(repository.live(object).await?["metadata"]["generation"].clone());
    }
    repository.shows_no_drift().await?;
    repository.apply(&["--server-side"]).await?;
    repository.shows_no_drift().await?;
    repository.apply(&[]).await?;
    repository.shows_no_drift().await?;
    for (object, before) in objects.into_iter().zip(before) {
        assert_eq!(repository.live(object).await?["metadata"]["generation"], before, "{object}");
    }
    team.done();
    Ok(())
}

/// Returns an object as a user writes it: without the fields that have their defaults.
fn manifest(object: &impl Serialize) -> Value {
    let mut manifest = json!(object);
    manifest["metadata"]["labels"] = json!({ APP.0: APP.1 });
    // Without any annotation, kubectl records `annotations: {}` for client-side apply and the API server does not for server-side apply,
    // so `kubectl diff --server-side` shows that of every kind.
    manifest["metadata"]["annotations"] = json!({ "example.com/contact": "the team" });
    manifest["spec"].as_object_mut().unwrap().retain(|field, _| WRITTEN.contains(&&**field));
    manifest
}

/// A folder with one manifest for each object, and kubectl in the namespace of the team.
struct Repository<'a> {
    team: &'a Team,
    folder: tempfile::TempDir,
}

impl<'a> Repository<'a> {
    fn new(team: &'a Team) -> Result<Self> {
        let folder = tempfile::tempdir().map_err(Error::io("making a temporary folder"))?;
        Ok(Self { team, folder })
    }

    fn folder(&self) -> String {
        self.folder.path().display().to_string()
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}.yaml", self.folder())
    }

    fn write(&self, manifest: &Value) -> Result<()> {
        let path = self.path(manifest["metadata"]["name"].as_str().unwrap());
        fs::write(&path, serde_yaml::to_string(manifest).unwrap()).map_err(Error::io(format!("writing {path}")))
    }

    /// Returns what kubectl prints.
    async fn kubectl(&self, words: &[&str]) -> Result<String> {
        let mut kubectl = self.team.kubectl()?;
        kubectl.args(words);
        blocking(move || output(&mut kubectl)).await
    }

    /// Returns an object as it is stored, such as `evaluation/judged`.
    async fn live(&self, object: &str) -> Result<Value> {
        let live = self.kubectl(&["get", object, "--output=json"]).await?;
        Ok(serde_json::from_str(&live).unwrap())
    }

    async fn apply(&self, flags: &[&str]) -> Result<String> {
        let folder = self.folder();
        self.kubectl(&[&["apply", "--filename", folder.as_str()][..], flags].concat()).await
    }

    /// Runs `kubectl edit` with a script of sed as the editor.
    async fn edit(&self, name: &str, script: &str) -> Result<String> {
        let mut kubectl = self.team.kubectl()?;
        kubectl.args(["edit", &format!("trainingrun/{name}")]);
        kubectl.env("KUBE_EDITOR", format!("sed --in-place '{script}'"));
        blocking(move || output(&mut kubectl)).await
    }

    /// Requires that a client-side and a server-side apply of the folder would change nothing, as tools find out.
    async fn shows_no_drift(&self) -> Result<()> {
        let folder = self.folder();
        for flags in [&["diff"][..], &["diff", "--server-side"]] {
            let words = [flags, &["--filename", folder.as_str()]].concat();
            // kubectl compares two reads, between which the controller may write the status of a run.
            let mut tries = 0;
            while let Err(drift) = self.kubectl(&words).await {
                tries += 1;
                if tries == 5 {
                    return Err(drift);
                }
            }
        }
        let dry = self.apply(&["--server-side", "--dry-run=server", "--output=json"]).await?;
        let dry: Value = serde_json::from_str(&dry).unwrap();
        for applied in dry["items"].as_array().map_or(std::slice::from_ref(&dry), Vec::as_slice) {
            let (kind, name) = (applied["kind"].as_str().unwrap(), applied["metadata"]["name"].as_str().unwrap());
            let live = self.live(&format!("{}/{name}", kind.to_lowercase())).await?;
            assert_eq!(applied["metadata"]["generation"], live["metadata"]["generation"], "{applied:#}");
            assert_eq!(applied["metadata"]["labels"], live["metadata"]["labels"]);
        }
        Ok(())
    }

    /// Starts `kubectl get --watch`.
    fn watch(&self, name: &str) -> Result<Watched> {
        let path = self.folder.path().join("rows");
        let file = File::create(&path).map_err(Error::io(format!("creating {}", path.display())))?;
        let mut kubectl = self.team.kubectl()?;
        kubectl.args(["get", "trainingrun", name, "--watch"]).stdin(Stdio::null()).stdout(file);
        Ok(Watched { child: kubectl.spawn().map_err(Error::io("starting kubectl"))?, path })
    }
}

/// A running `kubectl get --watch`; killed when dropped.
struct Watched {
    child: Child,
    path: PathBuf,
}

impl Watched {
    /// Returns the rows so far.
    fn rows(&mut self) -> Result<String> {
        let ended = self.child.try_wait().map_err(Error::io("waiting for kubectl"))?;
        assert!(ended.is_none(), "the watch ended: {ended:?}");
        fs::read_to_string(&self.path).map_err(Error::io(format!("reading {}", self.path.display())))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What kstatus says about an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kstatus {
    Current,
    InProgress,
    Failed,
    Terminating,
}

/// Returns the status of an object of a kind that kstatus does not know, by its rules: `checkGenericProperties` and
/// `checkReadyCondition` of `pkg/kstatus/status` in sigs.k8s.io/cli-utils. Flux and kpt wait by these.
fn kstatus(object: &Value) -> Kstatus {
    let (metadata, status) = (&object["metadata"], &object["status"]);
    if !metadata["deletionTimestamp"].is_null() {
        return Kstatus::Terminating;
    }
    if !status["observedGeneration"].is_null() && status["observedGeneration"] != metadata["generation"] {
        return Kstatus::InProgress;
    }
    let conditions = status["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    let of = |kind: &str| conditions.iter().find(|condition| condition["type"] == kind);
    let deciding = conditions.iter().find(|condition| {
        condition["status"] == "True" && (condition["type"] == "Reconciling" || condition["type"] == "Stalled")
    });
    match (deciding, of("Ready")) {
        (Some(deciding), _) if deciding["type"] == "Stalled" => Kstatus::Failed,
        (Some(_), _) => Kstatus::InProgress,
        (None, Some(ready)) if ready["status"] != "True" => Kstatus::InProgress,
        // An object without known conditions is current.
        (None, _) => Kstatus::Current,
    }
}

#[test]
fn kstatus_follows_generation_conditions_and_deletion() {
    let object = |seen: i64, conditions: &[(&str, &str)]| {
        let conditions: Vec<_> =
            conditions.iter().map(|(kind, status)| json!({ "type": kind, "status": status })).collect();
        json!({ "metadata": { "generation": 2 }, "status": { "observedGeneration": seen, "conditions": conditions } })
    };
    for (object, expected) in [
        (object(1, &[("Ready", "True")]), Kstatus::InProgress),
        (object(2, &[("Ready", "True")]), Kstatus::Current),
        (object(2, &[("Ready", "False")]), Kstatus::InProgress),
        (object(2, &[("Ready", "Unknown")]), Kstatus::InProgress),
        (object(2, &[("Ready", "False"), ("Stalled", "True")]), Kstatus::Failed),
        (object(2, &[("Ready", "False"), ("Stalled", "False"), ("Reconciling", "True")]), Kstatus::InProgress),
        (json!({ "metadata": { "generation": 1 } }), Kstatus::Current),
        (json!({ "metadata": { "generation": 1, "deletionTimestamp": "now" } }), Kstatus::Terminating),
    ] {
        assert_eq!(kstatus(&object), expected, "{object:#}");
    }
}
