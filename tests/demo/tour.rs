//! The steps of the demo, from nothing to a served model, and what else the operator refuses. Does I/O.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use codex_cluster::Target;
use codex_crds::{Evaluation, ReasoningPod, ReasoningPodPhase, TrainingRun, TrainingRunPhase};
use codex_tests::{
    Error, Installation, Result,
    install::infer,
    wait::{Sight, until},
};
use codex_verdict::Verdict;
use k8s_openapi::{NamespaceResourceScope, api::core::v1::Namespace};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;

use crate::{
    ask::{Reply, baseline, held_out},
    pictures::Pictures,
    show::{Show, gates},
};

/// Labels the namespaces of the demo.
pub(crate) const MARK: &str = "codex-ml.dev/demo";
/// The interval of progress lines.
const BEAT: Duration = Duration::from_secs(10);
const TRAINING: Duration = Duration::from_secs(3600);
const JUDGING: Duration = Duration::from_secs(1200);
pub(crate) const SERVING: Duration = Duration::from_secs(180);

/// Runs the demo of the small model.
///
/// # Errors
/// If a step does not have the expected result.
pub(crate) async fn run() -> Result<()> {
    let tour = Tour::begin(Installation::ensure().await?).await?;
    let pictures = Pictures::begin(&tour.installation.cluster, &tour.client, &tour.namespace).await?;
    let steps = async {
        Box::pin(tour.passes()).await?;
        Box::pin(tour.verify()).await?;
        Box::pin(tour.stopped_early()).await?;
        Box::pin(tour.jump()).await?;
        Box::pin(tour.sign_off()).await?;
        Box::pin(tour.rotate()).await?;
        Box::pin(tour.canary()).await?;
        Box::pin(tour.shadow()).await?;
        Box::pin(tour.revoke()).await
    };
    let Some(pictures) = pictures else {
        steps.await?;
        return tour.farewell("cot-lite", "cot-rc");
    };
    tokio::select! {
        done = steps => done,
        () = pictures.follow() => Ok(()),
    }?;
    tour.show.heading("The four dashboards with the data of this demo, as a page for your browser");
    println!("   {}", pictures.finish().await?.display());
    tour.farewell("cot-lite", "cot-rc")
}

/// A namespace of its own, in which a demo runs.
pub(crate) struct Tour<'a> {
    pub(crate) installation: &'a Installation,
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) show: Show<'a>,
}

impl<'a> Tour<'a> {
    /// Creates a new namespace. Deletes those of earlier demos, because their servers use the node's resources.
    pub(crate) async fn begin(installation: &'a Installation) -> Result<Self> {
        println!("The operator of this working tree, on a real cluster.");
        let client = installation.client().await?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        for earlier in namespaces.list(&ListParams::default().labels(MARK)).await? {
            println!("Deleting the earlier demo's namespace {}.", earlier.name_any());
            namespaces.delete(&earlier.name_any(), &DeleteParams::default()).await?;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let namespace = format!("codex-demo-{:x}", now & 0x00ff_ffff);
        let labels = json!({ MARK: "true", "pod-security.kubernetes.io/enforce": "restricted" });
        let object = json!({ "metadata": { "name": namespace, "labels": labels } });
        let object: Namespace = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
        namespaces.create(&PostParams::default(), &object).await?;
        let show = Show::new(installation, &namespace);
        println!("Everything below happens in the namespace {namespace}.");
        Ok(Self { installation, client, namespace, show })
    }

    /// Trains, evaluates, signs and serves the model that passes, and asks it questions.
    async fn passes(&self) -> Result<()> {
        let show = &self.show;
        show.heading(
            "Train a small reasoning model: a TrainingRun, an Evaluation and a ReasoningPod, as git would hold them",
        );
        show.kubectl(&["apply", "-f", "manifests/samples/demo/passes"])?;
        println!();
        self.trained("cot-starter").await?;
        show.kubectl(&["get", "trainingruns"])?;

        show.heading("Evaluate it on held-out problems that no training data contains, not even as an inner step");
        let judged = self.judged("cot-lite").await?;
        show.kubectl(&["get", "evaluations"])?;
        gates(&judged);
        let (right, problems) = baseline()?;
        println!(
            "\n   The pinned baseline, a model of the same size trained on answers without steps, gets {right} of {problems} right."
        );
        if judged.status.and_then(|status| status.verdict) != Some(Verdict::Passed) {
            return Err(Error::Impossible {
                what: "the first model passes its gates".to_owned(),
                why: "the verdict above is not Passed".to_owned(),
                state: "the operator behaved correctly: nothing was signed and nothing is served".to_owned(),
            });
        }

        show.heading("Sign and serve it: the server verifies the bytes in its memory before it becomes ready");
        let api: Api<ReasoningPod> = self.api();
        until(&api, "cot-rc", "it serves", SERVING, |pod| phase(pod) == Some(ReasoningPodPhase::Serving)).await?;
        show.kubectl(&["get", "reasoningpods"])?;
        self.questions().await
    }

    async fn questions(&self) -> Result<()> {
        self.show.heading("Ask it three questions, drawn at random from the held-out problems");
        println!(
            "   It writes its steps, one column of digits at a time from the right with the carry, then the answer.\n"
        );
        for problem in held_out()? {
            let reply: Reply = infer(&self.client, &self.namespace, "cot-rc", &problem.prompt).await?;
            println!("   {}", problem.prompt);
            for step in reply.steps.iter().flatten() {
                println!("      {step}");
            }
            let verdict = if reply.answer.as_deref() == problem.answer() {
                "right".to_owned()
            } else {
                format!("WRONG, it is {}", problem.answer().unwrap_or_default())
            };
            println!("      answer {}: {verdict}\n", reply.answer.as_deref().unwrap_or(&reply.completion));
        }
        Ok(())
    }

    /// Evaluates the model that was stopped too early, and shows that it is refused.
    async fn stopped_early(&self) -> Result<()> {
        let show = &self.show;
        show.heading("Train the same model, but stop long before it has learnt");
        show.kubectl(&["apply", "-f", "manifests/samples/demo/stopped-early"])?;
        println!();
        self.trained("cot-early").await?;
        let judged = self.judged("cot-lite-early").await?;
        show.kubectl(&["get", "trainingruns,evaluations"])?;
        gates(&judged);
        if judged.status.and_then(|status| status.verdict) != Some(Verdict::Failed) {
            return Err(Error::Impossible {
                what: "the second model fails its gates by their bounds".to_owned(),
                why: "the verdict above is not Failed".to_owned(),
                state: "see the messages of the gates".to_owned(),
            });
        }

        show.heading("It is not served, and its ReasoningPod says why");
        let api: Api<ReasoningPod> = self.api();
        let blocked = until(&api, "cot-rc-early", "it is blocked by the verdict", SERVING, |pod| {
            let why = pod.status.iter().flat_map(|status| &status.blocked_by);
            phase(pod) == Some(ReasoningPodPhase::Blocked) && why.clone().any(|why| why.contains("cot-lite-early"))
        })
        .await?;
        show.kubectl(&["get", "reasoningpods"])?;
        println!();
        for why in blocked.status.iter().flat_map(|status| &status.blocked_by) {
            println!("   blocked by: {}", why.replace("); ", ");\n               "));
        }
        Ok(())
    }

    pub(crate) fn farewell(&self, evaluation: &str, pod: &str) -> Result<()> {
        self.show.heading("Done. Where to look next, and how to stop");
        let cluster = &self.installation.cluster;
        let (namespace, kubectl) = (&self.namespace, cluster.bin("kubectl")?);
        let tools = kubectl.parent().unwrap_or(&kubectl).display();
        println!("   export KUBECONFIG={} PATH={tools}:$PATH\n", cluster.kubeconfig().display());
        let mut lines = vec![
            (format!("kubectl -n {namespace} describe evaluation {evaluation}"), "the numbers behind the verdict"),
            (format!("kubectl -n {namespace} describe reasoningpod {pod}"), "conditions and Events, in sentences"),
            (format!("kubectl -n {namespace} get configmaps"), "the signed statements: codex-oms-…, codex-promo-…"),
            ("kubectl -n codex-system logs deployment/codex-controller".to_owned(), "the operator's log"),
            (
                format!("kubectl delete namespace {namespace}"),
                "deletes everything of the demo; the model is served until then",
            ),
        ];
        if *cluster.target() == Target::Local {
            lines.push(("make cluster-down".to_owned(), "also stops the cluster, and keeps built programs"));
        }
        for (command, what) in lines {
            println!("   {command:<58} # {what}");
        }
        println!("\n   README.md says how to verify the signatures yourself.");
        Ok(())
    }

    /// Waits for a run's model and prints its progress.
    pub(crate) async fn trained(&self, name: &str) -> Result<()> {
        let api: Api<TrainingRun> = self.api();
        let (begun, mut told) = (Instant::now(), None::<(Instant, String)>);
        loop {
            let run = api.get(name).await?;
            let status = run.status.clone().unwrap_or_default();
            let finished = match status.phase {
                Some(TrainingRunPhase::Succeeded) => true,
                Some(TrainingRunPhase::Failed) => {
                    let why = status.conditions.iter().find(|condition| condition.type_ == "Ready");
                    return Err(Error::Impossible {
                        what: format!("TrainingRun {name} succeeds"),
                        why: why.map_or_else(String::new, |condition| condition.message.clone()),
                        state: format!("kubectl -n {} describe trainingrun {name}", self.namespace),
                    });
                }
                _ => false,
            };
            let state = format!("{:?} {:?}", status.phase, status.progress.map(|progress| progress.step));
            let news = told.as_ref().is_none_or(|(when, last)| *last != state && when.elapsed() >= BEAT);
            if news || finished {
                self.show.progress(&run);
                told = Some((Instant::now(), state));
            }
            if finished {
                println!();
                return Ok(());
            }
            if begun.elapsed() > TRAINING {
                return Err(Error::Timeout {
                    what: format!("TrainingRun {name} succeeds"),
                    patience: TRAINING,
                    state: format!("kubectl -n {} describe trainingrun {name}", self.namespace),
                });
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    pub(crate) async fn judged(&self, name: &str) -> Result<Evaluation> {
        until(&self.api::<Evaluation>(), name, "its verdict is there", JUDGING, |evaluation| {
            if evaluation.status.as_ref().is_some_and(|status| status.verdict.is_some()) {
                Sight::There
            } else {
                Sight::NotYet
            }
        })
        .await
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

pub(crate) fn phase(pod: &ReasoningPod) -> Option<ReasoningPodPhase> {
    pod.status.as_ref().and_then(|status| status.phase)
}
