//! What each fault does. A fault ends before the next one begins, and leaves the cluster whole.

use std::time::Duration;

use codex_cluster::Component;
use codex_tests::{
    Error, Result, host,
    team::blocking,
    wait::{until_found, until_gone},
};
use http::StatusCode;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Node, Pod},
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    lies::{self, Answer, Judgement, Refusal},
    observe::lock,
    plan::{Fault, Planned, late},
    proxy::Mode,
    relay::Traffic,
    scene::{LEADS, PATIENCE, Scene, is_running},
    workload::label,
};

/// How long to wait for a pod of a kind that works.
const POD: Duration = Duration::from_secs(75);
/// Connections that a flood holds open, and requests that it sends at once.
const HELD: usize = 300;
const AT_ONCE: usize = 12;
/// The pod that lies.
const LIAR: &str = "liar";

/// What became of a fault.
pub(crate) enum Outcome {
    /// It happened, and this is what it met.
    Done(String),
    /// It met nothing, for this reason.
    Skipped(String),
}

impl Scene {
    /// Lets a fault happen, and ends it.
    ///
    /// # Errors
    /// If the cluster does not recover from it.
    pub(crate) async fn inject(&self, planned: &Planned) -> Result<Outcome> {
        let Planned { lasts, choice, .. } = *planned;
        let outcome = match planned.fault {
            Fault::ControllerKilled => self.kill_leader().await,
            Fault::ControllerPaused => self.pause_leader(lasts).await,
            Fault::ControllerDeleted => self.delete_leader().await,
            Fault::ApiServerKilled => self.down(Component::ApiServer, lasts).await,
            Fault::EtcdKilled => self.down(Component::Etcd, lasts).await,
            Fault::KubeletKilled => self.down(Component::Kubelet, lasts).await,
            Fault::ApiServerPaused => self.still(Component::ApiServer, lasts).await,
            Fault::EtcdPaused => self.still(Component::Etcd, lasts).await,
            Fault::ControllerManagerPaused => self.still(Component::ControllerManager, lasts).await,
            Fault::SchedulerPaused => self.still(Component::Scheduler, lasts).await,
            Fault::NodeCordoned => self.cordon(lasts).await,
            Fault::NodeDeleted => self.delete_node(lasts).await,
            Fault::TrainerDeleted => self.delete_pod("trainer", choice).await,
            Fault::EvaluatorDeleted => self.delete_pod("evaluator", choice).await,
            Fault::ServerDeleted => self.delete_pod("server", choice).await,
            Fault::TrainerKilled => self.kill_pod("trainer", choice).await,
            Fault::EvaluatorKilled => self.kill_pod("evaluator", choice).await,
            Fault::ServerKilled => self.kill_pod("server", choice).await,
            Fault::WatchesCut => self.cut_watches(lasts).await,
            Fault::Conflicts => self.disturb(Mode::Conflict, lasts).await,
            Fault::TooManyRequests => self.disturb(Mode::Refuse(StatusCode::TOO_MANY_REQUESTS), lasts).await,
            Fault::ServerErrors => self.disturb(Mode::Refuse(StatusCode::INTERNAL_SERVER_ERROR), lasts).await,
            Fault::SlowAnswers => self.disturb(Mode::Slow(late(self.lease)), lasts).await,
            Fault::LostAnswers => self.disturb(Mode::Lose, lasts).await,
            Fault::ReportsFlooded => self.flood(lasts).await,
            Fault::ReportsSlow => self.delay_reports(Traffic::Slow, lasts).await,
            Fault::ReportsCut => self.delay_reports(Traffic::Cut, lasts).await,
            Fault::PodLies => self.lie(choice).await,
            Fault::DiskFull => self.fill_disk(lasts).await,
        };
        self.mend().await?;
        outcome
    }

    async fn kill_leader(&self) -> Result<Outcome> {
        let leader = self.leader().await?;
        signal(&leader, "KILL")?;
        Ok(Outcome::Done(leader.name_any()))
    }

    /// Pauses the leader until another controller leads, and longer.
    async fn pause_leader(&self, lasts: Duration) -> Result<Outcome> {
        let leader = self.leader().await?;
        let old = leader.name_any();
        signal(&leader, "STOP")?;
        let stopped = Instant::now();
        let next = until_found("another controller takes the Lease", LEADS, async || {
            let holder = self.holder().await.unwrap_or_default();
            Ok((!holder.is_empty() && holder != old).then_some(holder))
        })
        .await;
        let took = stopped.elapsed().as_secs_f32();
        sleep(lasts).await;
        signal(&leader, "CONT")?;
        Ok(Outcome::Done(format!("{old}, until {} led {took:.1} s later", next?)))
    }

    async fn delete_leader(&self) -> Result<Outcome> {
        let leader = self.leader().await?.name_any();
        self.system::<Pod>().delete(&leader, &DeleteParams::default()).await?;
        Ok(Outcome::Done(leader))
    }

    /// Kills a component, and starts it again after a while.
    async fn down(&self, component: Component, lasts: Duration) -> Result<Outcome> {
        let cluster = self.cluster.clone();
        blocking(move || Ok(cluster.kill_component(component)?)).await?;
        sleep(lasts).await;
        let cluster = self.cluster.clone();
        blocking(move || Ok(cluster.start_component(component)?)).await?;
        Ok(Outcome::Done(component.name().to_owned()))
    }

    /// Pauses a component for a while.
    async fn still(&self, component: Component, lasts: Duration) -> Result<Outcome> {
        self.cluster.pause_component(component)?;
        sleep(lasts).await;
        self.cluster.continue_component(component)?;
        Ok(Outcome::Done(component.name().to_owned()))
    }

    async fn cordon(&self, lasts: Duration) -> Result<Outcome> {
        let nodes: Api<Node> = Api::all(self.team.client.clone());
        let cordoned = Patch::Merge(json!({ "spec": { "unschedulable": true } }));
        nodes.patch(self.node, &PatchParams::default(), &cordoned).await?;
        sleep(lasts).await;
        Ok(Outcome::Done(self.node.to_owned()))
    }

    /// Deletes the node. Its kubelet registers it again when it is restarted, as after a repair of the machine.
    async fn delete_node(&self, lasts: Duration) -> Result<Outcome> {
        let nodes: Api<Node> = Api::all(self.team.client.clone());
        nodes.delete(self.node, &DeleteParams::background()).await?;
        sleep(lasts).await;
        Ok(Outcome::Done(self.node.to_owned()))
    }

    async fn delete_pod(&self, kind: &str, choice: u64) -> Result<Outcome> {
        let Some(pod) = self.find(kind, choice).await else { return Ok(missing(kind)) };
        match self.team.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(missing(kind)),
            deleted => deleted.map(|_| Outcome::Done(pod.name_any())).map_err(Error::from),
        }
    }

    async fn kill_pod(&self, kind: &str, choice: u64) -> Result<Outcome> {
        let Some(pod) = self.find(kind, choice).await else { return Ok(missing(kind)) };
        match signal(&pod, "KILL") {
            Ok(0) | Err(Error::Command { .. }) => Ok(missing(kind)),
            killed => killed.map(|_| Outcome::Done(pod.name_any())),
        }
    }

    /// Finds a pod of a kind that works; `None` if there is none in time.
    async fn find(&self, kind: &str, choice: u64) -> Option<Pod> {
        let deadline = Instant::now() + POD;
        let every = kube::api::ListParams::default().labels(label(kind));
        while Instant::now() < deadline {
            let pods = self.team.api::<Pod>().list(&every).await.map(|list| list.items).unwrap_or_default();
            let mut working: Vec<Pod> = pods.into_iter().filter(is_running).collect();
            working.sort_by_key(Pod::creation_timestamp);
            if !working.is_empty() {
                let index = usize::try_from(choice).unwrap_or(0) % working.len();
                return Some(working.swap_remove(index));
            }
            sleep(Duration::from_millis(200)).await;
        }
        None
    }

    async fn cut_watches(&self, lasts: Duration) -> Result<Outcome> {
        let end = Instant::now() + lasts;
        let mut cuts = 0;
        while Instant::now() < end {
            self.proxy.cut();
            cuts += 1;
            sleep(Duration::from_secs(2)).await;
        }
        Ok(Outcome::Done(format!("{cuts} times")))
    }

    /// Lets the proxy disturb requests for a while.
    async fn disturb(&self, mode: Mode, lasts: Duration) -> Result<Outcome> {
        let (requests, disturbed) = self.proxy.counts();
        self.proxy.set(mode);
        sleep(lasts).await;
        self.proxy.set(Mode::Pass);
        let now = self.proxy.counts();
        Ok(Outcome::Done(format!("{} of {} requests", now.1 - disturbed, now.0 - requests)))
    }

    async fn delay_reports(&self, traffic: Traffic, lasts: Duration) -> Result<Outcome> {
        self.relay.set(traffic);
        sleep(lasts).await;
        self.relay.set(Traffic::Pass);
        Ok(Outcome::Done("the report endpoint".to_owned()))
    }

    /// Holds connections to the endpoint open with half a handshake, and sends reports with made-up tokens.
    async fn flood(&self, lasts: Duration) -> Result<Outcome> {
        let end = Instant::now() + lasts;
        let mut held = Vec::new();
        for _ in 0..HELD {
            if let Ok(mut stream) = TcpStream::connect(self.relay.address()).await {
                // The beginning of a TLS record.
                let _ = stream.write_all(&[0x16, 0x03, 0x01]).await;
                held.push(stream);
            }
        }
        let mut senders = JoinSet::new();
        for number in 0..AT_ONCE {
            let (sender, witness) = (self.sender.clone(), self.witness.clone());
            senders.spawn(async move {
                let (mut sent, mut refused) = (0_usize, 0_usize);
                while Instant::now() < end {
                    let token = format!("{number}.{sent}.c");
                    let status = sender.post(Some(&token), &[], b"{}".to_vec()).await;
                    // The endpoint may be overloaded by a flood.
                    let answer = Answer { what: "a report of a flood", expected: Refusal::Status(401), status };
                    refused += usize::from(lock(&witness).see_lie(&answer) == Judgement::Refused);
                    sent += 1;
                }
                (sent, refused)
            });
        }
        let (mut sent, mut refused) = (0, 0);
        while let Some(ended) = senders.join_next().await {
            let of_one = ended.unwrap_or_default();
            (sent, refused) = (sent + of_one.0, refused + of_one.1);
        }
        Ok(Outcome::Done(format!("{} connections and {sent} reports, {refused} of them refused", held.len())))
    }

    async fn fill_disk(&self, lasts: Duration) -> Result<Outcome> {
        let filled = self.volume.fill();
        sleep(lasts).await;
        self.volume.free()?;
        Ok(Outcome::Done(format!("{} bytes were free", filled?)))
    }

    /// Tells every lie about the run of a trainer.
    async fn lie(&self, choice: u64) -> Result<Outcome> {
        // An earlier fault may have left the endpoint without a leader.
        self.leader().await?;
        let Some(trainer) = self.find("trainer", choice).await else { return Ok(missing("trainer")) };
        let Some(own) = self.token(&trainer).await else { return Ok(missing("trainer")) };
        let liar = self.liar().await?;
        let told = self.tell_lies(&trainer, &own, &liar).await;
        let pods = self.team.api::<Pod>();
        pods.delete(LIAR, &DeleteParams::default().grace_period(0)).await?;
        until_gone(&pods, LIAR, PATIENCE).await?;
        told
    }

    async fn tell_lies(&self, trainer: &Pod, own: &str, liar: &Pod) -> Result<Outcome> {
        let Some(foreign) = self.token(liar).await else {
            return Ok(Outcome::Skipped("the pod that lies was not started in time".to_owned()));
        };
        let Some(truth) = self.truth(trainer).await? else { return Ok(missing("trainer")) };
        let stranger = liar.uid().unwrap_or_default();
        let beside = if truth["name"] == "chain-1" { "chain-2" } else { "chain-1" };
        let mut answers = Vec::new();
        for lie in lies::lies(&truth, own, (&foreign, &stranger), beside) {
            answers.push(self.sender.tell(&lie).await);
        }
        let exists = self.exists(trainer).await? && self.exists(liar).await?;
        lock(&self.witness).see_lies(&answers, exists);
        if !exists {
            return Ok(Outcome::Skipped(format!("{} went while it lied", trainer.name_any())));
        }
        let answers: Vec<_> = answers.iter().map(Answer::to_string).collect();
        Ok(Outcome::Done(format!("about {}: {}", trainer.name_any(), answers.join(" "))))
    }

    /// Whether a pod still exists and is not being deleted.
    async fn exists(&self, pod: &Pod) -> Result<bool> {
        let found = self.team.api::<Pod>().get_opt(&pod.name_any()).await?;
        Ok(found.is_some_and(|found| found.uid() == pod.uid() && found.metadata.deletion_timestamp.is_none()))
    }

    /// Creates the pod that lies. Its image does not exist, so that it has a token and runs nothing.
    async fn liar(&self) -> Result<Pod> {
        let harmless = json!({ "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } });
        let token = json!({ "serviceAccountToken": {
            "audience": codex_reports::AUDIENCE, "expirationSeconds": 3600, "path": "token",
        }});
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": LIAR },
            "spec": {
                "securityContext": { "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": { "type": "RuntimeDefault" } },
                "containers": [{
                    "name": LIAR, "image": "nowhere.invalid/liar:0", "imagePullPolicy": "Never", "securityContext": harmless,
                    "volumeMounts": [{ "name": "token", "mountPath": "/token" }],
                }],
                "volumes": [{ "name": "token", "projected": { "sources": [token] } }],
            },
        }))
        .map_err(|error| Error::Client(kube::Error::SerdeError(error)))?;
        self.team.create(&pod).await
    }

    /// Reads the token of a pod from the node's disk; `None` if it does not appear in time.
    async fn token(&self, pod: &Pod) -> Option<String> {
        let folder = self.cluster.pod_directory(&pod.uid()?)?;
        let file = folder.join("volumes/kubernetes.io~projected/token/token");
        let deadline = Instant::now() + POD / 2;
        loop {
            match tokio::fs::read_to_string(&file).await {
                Ok(token) => return Some(token.trim().to_owned()),
                Err(_) if Instant::now() > deadline => return None,
                Err(_) => sleep(Duration::from_millis(200)).await,
            }
        }
    }

    /// Returns a report that the trainer could send; `None` if its run is gone.
    async fn truth(&self, trainer: &Pod) -> Result<Option<Value>> {
        let name = trainer.labels().get(label("trainer")).cloned().unwrap_or_default();
        let job = self.team.api::<Job>().get_opt(&codex_crds::child::trainer(&name)).await?;
        let Some(job) = job else { return Ok(None) };
        let owner = job.owner_references().first().map(|owner| owner.uid.clone());
        Ok(Some(json!({
            "schemaVersion": codex_reports::SCHEMA_VERSION,
            "kind": "TrainingRun",
            "namespace": self.team.namespace,
            "name": name,
            "objectUid": owner,
            "podUid": trainer.uid(),
            "attempt": 1,
            "seq": 1_000_000,
            "configDigest": job.annotations().get(codex_crds::annotation::CONFIG_DIGEST),
            "state": { "training": { "stage": "Running", "progress": {
                "step": 1499, "totalSteps": 1500, "loss": 0.25, "tokensPerSecond": 10.0, "etaSeconds": 1,
            }}},
        })))
    }
}

fn signal(pod: &Pod, signal: &str) -> Result<usize> {
    host::signal_pod(&pod.uid().unwrap_or_default(), signal)
}

fn missing(kind: &str) -> Outcome {
    Outcome::Skipped(format!("no {kind} worked"))
}
