//! A year of cycles: a ReasoningPod that redeploys each week, in accelerated weeks of an hour, while processes of the controller end,
//! requests fail and answers get lost. Whether a model is good follows from the uid of its run, so about four of ten fail, and likewise
//! whether its shadow proves parity.

use std::{collections::BTreeMap, time::Duration};

use rand::Rng;
use serde_json::{Value, json};

use super::{
    invariants::{is_alike, is_good, model},
    make,
    sabotage::Sabotage,
    server::NAMESPACE,
    simulator::{Simulator, object_path},
};

/// The cycles of a year.
const WEEKS: i64 = 52;
/// The seconds of an accelerated week.
const WEEK: i64 = 3_600;
/// More writes than a year needs: a cycle needs about 80.
const MOST_WRITES: usize = 20_000;
/// The name of the ReasoningPod.
const POD: &str = "rc";

/// Returns a ReasoningPod that trains, evaluates and promotes a model each hour.
fn redeploying(shadows: bool) -> Value {
    let spec = |object: Value| object["spec"].clone();
    let run = spec(serde_json::to_value(make::run()).unwrap());
    let mut evaluation = spec(serde_json::to_value(make::evaluation()).unwrap());
    evaluation.as_object_mut().unwrap().remove("trainingRun");
    let mut pod = serde_json::to_value(make::pod()).unwrap();
    let object = pod.as_object_mut().unwrap();
    object.remove("status");
    let fields = object["spec"].as_object_mut().unwrap();
    fields.remove("trainingRun");
    fields.remove("evaluations");
    fields.insert("replicas".to_owned(), json!(1));
    let template = json!({"trainingRun": run, "evaluations": [{"name": "lite", "spec": evaluation}]});
    fields.insert("redeploy".to_owned(), json!({"schedule": {"cron": "0 * * * *"}, "template": template}));
    if shadows {
        let shadow = json!({"samplePercent": 50, "maxDivergence": "0.05", "deadlineSeconds": 3_000});
        fields["redeploy"].as_object_mut().unwrap().insert("shadow".to_owned(), shadow);
    }
    let analysis = json!({"intervalSeconds": 5, "minRequests": 1});
    fields.insert("rollout".to_owned(), json!({"steps": [50, 100], "analysis": analysis}));
    pod
}

impl Simulator {
    fn object(&self, plural: &str, name: &str) -> Value {
        self.server.lock().objects.get(&object_path(plural, name)).cloned().unwrap_or_default()
    }

    /// Lets time pass until so many seconds after the first due time.
    async fn until(&mut self, second: i64) {
        let now = self.now().as_second() - make::at(0).as_second();
        self.tick(Duration::from_secs(u64::try_from(second - now).unwrap_or(1))).await;
    }

    /// Something breaks while the cycle is at work.
    async fn trouble(&mut self) {
        let index = self.random.random_range(0..self.processes.len());
        match self.random.random_range(0..4) {
            0 => {
                self.begin(format!("process {index} is killed"));
                self.restart(index, "was killed");
            }
            1 => {
                self.begin("200 of 1,000 requests fail");
                self.server.lock().faults = 200;
            }
            _ => self.begin("nothing breaks"),
        }
        for _ in 0..self.random.random_range(1..8) {
            let now = self.now();
            super::cluster::sync_jobs(&mut self.server.lock(), now);
            super::cluster::start_pods(&mut self.server.lock(), now);
            for pod in self.running() {
                if self.chance(50) {
                    self.finish(&pod);
                }
            }
            self.tick(Duration::from_secs(15)).await;
        }
        self.server.lock().faults = 0;
    }
}

async fn year(seed: u64, shadows: bool) -> Result<(), String> {
    let mut simulator = Simulator::bare(seed, Sabotage::None, MOST_WRITES);
    let path = object_path("reasoningpods", POD);
    simulator.server.lock().put(&path, redeploying(shadows));
    simulator.begin("a user asks for a cycle each week");
    let (mut current, mut promoted, mut overrides, mut lost) = (Value::Null, 0, json!(0), 0);
    for week in 1..=WEEKS {
        // `make::at(0)` is a full hour.
        simulator.until(week * WEEK + 1).await;
        simulator.trouble().await;
        simulator.calm().await?;
        simulator.check()?;
        let pod = simulator.object("reasoningpods", POD);
        let (status, redeploy) = (&pod["status"], &pod["status"]["redeploy"]);
        let minute = make::at(week * WEEK).as_second() / 60;
        let run = format!("{POD}-{minute}");
        let shadow = simulator.object("reasoningpods", &run);
        let bundles = simulator.server.lock().of_kind("ConfigMap");
        let wrong = |what: &str| {
            Err(format!("seed {seed}, week {week}: {what}: {status}; its shadow: {}; {bundles:?}", shadow["status"]))
        };
        let latest = &redeploy["history"][0];
        if latest["trainingRun"] != json!(run) || !redeploy["cycle"].is_null() || !redeploy["missed"].is_null() {
            return wrong("the cycle has not ended in its week");
        }
        let uid = simulator.object("trainingruns", &run)["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let disturbed = simulator.server.lock().known.disturbed.contains(&uid);
        // Nothing is served before the first promotion, so that nothing is compared.
        let alike = !shadows || promoted == 0 || is_alike(&uid);
        let good = is_good(&uid) && alike;
        match latest["result"].as_str() {
            Some("Serving") if good => {
                promoted += 1;
                current = json!(run);
                if status["manifest"]["digest"] != json!(model(&uid)) {
                    return wrong("another model is served than the one that was promoted");
                }
            }
            Some("Failed") if !good || disturbed => {
                lost += usize::from(latest["reason"].as_str().unwrap_or_default().contains("lost parity"));
            }
            _ => return wrong("a cycle must be promoted exactly if its model is good"),
        }
        if status["current"]["trainingRun"] != current {
            return wrong("what was served before must be served after a cycle that failed");
        }
        if promoted > 0 && status["phase"] != "Serving" {
            return wrong("the servers do not serve");
        }
        if simulator.server.lock().of_kind("ReasoningPod").len() != 1 {
            return wrong("a shadow outlives its cycle");
        }
        if redeploy["promoted"] != json!(promoted) {
            return wrong("a promoted cycle is not counted once");
        }
        overrides = redeploy["manualOverrides"].clone();
        // Three promoted cycles, what is served before them, and one other are kept.
        let kept = simulator.server.lock().of_kind("TrainingRun").len();
        if kept > 6
            || (!current.is_null() && simulator.object("trainingruns", current.as_str().unwrap_or_default()).is_null())
        {
            return wrong(&format!("{kept} runs are kept"));
        }
    }
    let fewest = if shadows { WEEKS / 5 } else { WEEKS / 3 };
    if !(fewest..=WEEKS - 5).contains(&promoted) || (shadows && lost == 0) {
        return Err(format!(
            "seed {seed}: {promoted} of {WEEKS} cycles were promoted, and {lost} shadows lost parity, so too little was tried"
        ));
    }
    if overrides != json!(0) {
        return Err(format!("seed {seed}: {overrides} manual overrides"));
    }
    let server = simulator.server.lock();
    let mut created: BTreeMap<&str, usize> = BTreeMap::new();
    for line in &server.writes {
        let path = line.split_once("PATCH ").map_or("", |(_, path)| path);
        let of_cycle = ["trainingruns", "evaluations", "reasoningpods"]
            .iter()
            .any(|plural| path.contains(&format!("/{NAMESPACE}/{plural}/")));
        if of_cycle && !path.ends_with("/status") {
            *created.entry(path).or_default() += 1;
        }
    }
    let (shadowed, others): (Vec<&str>, Vec<&str>) =
        created.keys().copied().partition(|path| path.contains("/reasoningpods/"));
    // Each good model after the first promotion has one.
    let compared = usize::try_from(promoted).unwrap_or(0) + lost;
    if shadows && !(compared - 1..=compared + 3).contains(&shadowed.len()) || (!shadows && !shadowed.is_empty()) {
        return Err(format!("seed {seed}: {} shadows for {compared} cycles that were judged by one", shadowed.len()));
    }
    if others.len() != 2 * usize::try_from(WEEKS).unwrap_or(0) || created.values().any(|times| *times != 1) {
        return Err(format!("seed {seed}: not every object of a cycle was created once: {created:?}"));
    }
    Ok(())
}

fn years(seeds: impl IntoIterator<Item = u64>, shadows: bool) {
    for seed in seeds {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(year(seed, shadows)).unwrap_or_else(|failure| panic!("{failure}"));
    }
}

#[test]
fn a_year_of_cycles_promotes_every_good_model_once_and_no_other() {
    years(1..=3, false);
}

#[test]
fn a_year_of_cycles_with_shadows_promotes_only_models_that_hold_parity() {
    years(2..=3, true);
}
