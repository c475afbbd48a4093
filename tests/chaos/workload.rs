//! What the cluster works on meanwhile: chains of a run, its evaluation and its server, one after another.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use codex_crds::{Evaluation, ReasoningPod, TrainingRun};
use codex_tests::{
    Error, Result, Team,
    objects::{self, PROBLEMS, PROBLEMS_KEY},
};
use kube::Resource;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    invariants::{Ending, unsettled},
    observe::{self, Shared, lock},
};

/// How many chains are under way at once.
const AT_ONCE: usize = 2;
/// The shortest time between two chains.
const INTERVAL: Duration = Duration::from_secs(20);
/// The time limit for creating one object, whatever the API server does.
const PATIENCE: Duration = Duration::from_secs(180);
/// Long enough that a fault meets a trainer at work.
const STEPS: &str = "training.max_steps=1500";
/// Faults kill pods more often than a user would accept.
const RETRIES: i32 = 100;

/// The chains that were created.
#[derive(Default)]
pub(crate) struct Workload {
    chains: Mutex<Vec<(String, Ending)>>,
    stopped: AtomicBool,
}

impl Workload {
    /// Returns the chains that were created, and how each must end.
    pub(crate) fn chains(&self) -> Vec<(String, Ending)> {
        self.chains.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets no further chain begin.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Creates chains until [`Self::stop`].
    ///
    /// # Errors
    /// If an object cannot be created for a long time.
    pub(crate) async fn run(&self, team: &Team, witness: &Shared) -> Result<()> {
        let mut next: Option<Instant> = None;
        while !self.stopped.load(Ordering::Relaxed) {
            let chains = self.chains();
            // A chain is under way until its last object has ended as it must.
            let open = observe::objects(team).await.map(|objects| {
                chains.iter().filter(|chain| !unsettled(std::slice::from_ref(chain), &objects).is_empty()).count()
            });
            if open.is_ok_and(|open| open < AT_ONCE) && next.is_none_or(|next| Instant::now() >= next) {
                next = Some(Instant::now() + INTERVAL);
                self.create(team, witness, chains.len() + 1).await?;
            }
            sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    }

    async fn create(&self, team: &Team, witness: &Shared, number: usize) -> Result<()> {
        let (name, ending) = (format!("chain-{number}"), ending(number));
        println!("{name} begins; it must end so: {ending:?}");
        if ending == Ending::Refused {
            lock(witness).refuses(&name);
        }
        make(team, &run(&name, number, ending)?).await?;
        if ending != Ending::Fails {
            make(team, &evaluation(&name, &team.problems, ending)?).await?;
            make(team, &objects::reasoning_pod(&name, &name, &name)).await?;
        }
        self.chains.lock().unwrap_or_else(PoisonError::into_inner).push((name, ending));
        Ok(())
    }
}

/// Returns how the chain with this number must end: half of them serve.
fn ending(number: usize) -> Ending {
    match number % 4 {
        2 => Ending::Refused,
        0 => Ending::Fails,
        _ => Ending::Serves,
    }
}

fn run(name: &str, number: usize, ending: Ending) -> Result<TrainingRun> {
    let mut run = value(&objects::run(name, &[STEPS]))?;
    run["spec"]["retries"] = json!(RETRIES);
    // Equal runs make equal models, so that only a few seeds may occur.
    run["spec"]["seed"] = json!(1 + number % 2);
    if ending == Ending::Fails {
        let source = json!({ "configMap": { "name": PROBLEMS, "key": PROBLEMS_KEY } });
        run["spec"]["data"] = json!([{ "name": "given", "sha256": "0".repeat(64), "source": source }]);
    }
    read(run)
}

fn evaluation(name: &str, problems: &str, ending: Ending) -> Result<Evaluation> {
    let mut evaluation = value(&objects::evaluation(name, name, problems))?;
    evaluation["spec"]["retries"] = json!(RETRIES);
    if ending == Ending::Refused {
        evaluation["spec"]["gates"] = json!([{ "metric": "exact_match", "min": "1", "minSamples": 100 }]);
    }
    read(evaluation)
}

/// Creates an object, and tries again while the API server cannot.
async fn make<K>(team: &Team, object: &K) -> Result<()>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        match team.create(object).await {
            Ok(_) => return Ok(()),
            // An earlier attempt, whose answer was lost.
            Err(Error::Client(kube::Error::Api(status))) if status.is_already_exists() => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => sleep(Duration::from_secs(1)).await,
        }
    }
}

/// Returns the service of each chain that serves.
pub(crate) fn services(chains: &[(String, Ending)]) -> impl Iterator<Item = &str> {
    chains.iter().filter(|(_, ending)| *ending == Ending::Serves).map(|(name, _)| name.as_str())
}

/// The kind of a pod of the workload, by the label of its owner.
pub(crate) fn label(kind: &str) -> &'static str {
    match kind {
        "trainer" => codex_crds::label::TRAINING_RUN,
        "evaluator" => codex_crds::label::EVALUATION,
        _ => codex_crds::label::REASONING_POD,
    }
}

fn value<K: serde::Serialize>(object: &K) -> Result<Value> {
    serde_json::to_value(object).map_err(|error| Error::Client(kube::Error::SerdeError(error)))
}

fn read<K: serde::de::DeserializeOwned>(value: Value) -> Result<K> {
    serde_json::from_value(value).map_err(|error| Error::Client(kube::Error::SerdeError(error)))
}

/// What can be deleted to end the workload.
pub(crate) async fn delete_all(team: &Team) -> Result<()> {
    let (which, how) = (kube::api::ListParams::default(), kube::api::DeleteParams::background());
    team.api::<ReasoningPod>().delete_collection(&how, &which).await?;
    team.api::<Evaluation>().delete_collection(&how, &which).await?;
    team.api::<TrainingRun>().delete_collection(&how, &which).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chain_can_be_made_and_runs_with_one_seed_are_equal() {
        for number in 1..=8 {
            let ending = ending(number);
            let run = run("a", number, ending).unwrap();
            assert_eq!(run.spec.retries, RETRIES);
            evaluation("a", &"0".repeat(64), ending).unwrap();
        }
        let spec = |number| value(&run("a", number, ending(number)).unwrap().spec).unwrap();
        assert_eq!(spec(1), spec(3));
        assert_ne!(spec(1), spec(2));
        let endings: Vec<_> = (1..=4).map(ending).collect();
        assert_eq!(endings, [Ending::Serves, Ending::Refused, Ending::Serves, Ending::Fails]);
    }
}
