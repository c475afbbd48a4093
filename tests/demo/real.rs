//! The steps of the real demo: a given model is evaluated, fine-tuned with LoRA, evaluated again, signed with its lineage and
//! served; then a harder family is tried beside it. Does I/O.

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use codex_crds::{ReasoningPod, ReasoningPodPhase};
use codex_tests::{
    Error, Installation, Result,
    install::{infer, program, repository},
    process::output,
    wait::until,
};
use codex_verdict::Verdict;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;

use crate::{
    ask::Reply,
    base,
    show::gates,
    tour::{SERVING, Tour, phase},
};

/// The number of questions at the end.
const QUESTIONS: u64 = 3;
/// The time limit for the claim to be bound.
const BOUND: Duration = Duration::from_secs(120);
/// The time after which nothing more is trained, so that the demo ends within 15 minutes.
const LATE: Duration = Duration::from_secs(9 * 60);

/// Runs the demo of the real model.
///
/// # Errors
/// If a step does not have the expected result, or the cluster is not the local one.
pub(crate) async fn run() -> Result<()> {
    let tour = Tour::begin(Installation::ensure().await?).await?;
    let model = tour.given().await?;
    tour.judge_base().await?;
    Box::pin(tour.tune()).await?;
    tour.ask(&model).await?;
    Box::pin(tour.harder()).await?;
    tour.farewell("tuned", "smollm2")
}

impl Tour<'_> {
    /// Fetches the weights and puts them, and the training data, where the samples expect them.
    async fn given(&self) -> Result<PathBuf> {
        self.show.heading("Fetch a pretrained model, SmolLM2-135M-Instruct, and import it with `codex import`");
        let model = base::fetch()?;
        println!("   {}", model.display());
        self.show.kubectl(&["apply", "-f", "manifests/samples/real/claim.yaml"])?;
        let volume = self.bind().await?;
        let directory = self.installation.cluster.volume_directory(&volume).ok_or_else(|| Error::Impossible {
            what: "the weights are copied to the claim".to_owned(),
            why: "the cluster is not the local one, so its volumes are not on this machine".to_owned(),
            state: "README.md says how to fill a claim on another cluster".to_owned(),
        })?;
        base::copy(&model, &directory.join("bases/smollm2-135m-instruct"))?;
        self.training_data("chain-sum")?;
        Ok(model)
    }

    /// Makes the training data of a family a ConfigMap of its name.
    fn training_data(&self, family: &str) -> Result<()> {
        let data = repository().join(format!("configs/benchmarks/gym-{family}/train.jsonl"));
        self.show.kubectl(&["create", "configmap", family, &format!("--from-file={}", data.display())])
    }

    /// Binds the claim to a free volume, and returns the volume's name. The local cluster waits for a pod otherwise.
    async fn bind(&self) -> Result<String> {
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let free = volumes.list(&ListParams::default()).await?.items.into_iter().find(|volume| {
            let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
            phase == Some("Available") && volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_none())
        });
        let volume = free.map(|volume| volume.name_any()).ok_or_else(|| Error::Impossible {
            what: "the claim `models` is bound".to_owned(),
            why: "the cluster has no free volume".to_owned(),
            state: "kubectl get persistentvolumes".to_owned(),
        })?;
        let claims = self.api::<PersistentVolumeClaim>();
        let bind = Patch::Merge(json!({ "spec": { "volumeName": volume } }));
        claims.patch("models", &PatchParams::default(), &bind).await?;
        until(&claims, "models", "it is bound", BOUND, |claim| {
            claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
        })
        .await?;
        Ok(volume)
    }

    /// Evaluates the model as it was given.
    async fn judge_base(&self) -> Result<()> {
        self.show.heading("Evaluate the given model on 200 held-out problems of reasoning-gym's chain_sum");
        self.show.kubectl(&["apply", "-f", "manifests/samples/real/base.yaml"])?;
        let judged = self.judged("base").await?;
        self.show.kubectl(&["get", "evaluations"])?;
        gates(&judged);
        Ok(())
    }

    /// Fine-tunes it, evaluates the result, and waits until it serves.
    async fn tune(&self) -> Result<()> {
        self.show
            .heading("Fine-tune it with LoRA on 2,400 other problems, and evaluate it on the same held-out problems");
        self.show.kubectl(&["apply", "-f", "manifests/samples/real/tuned.yaml"])?;
        println!();
        self.trained("smollm2-chain-sum").await?;
        self.show.kubectl(&["get", "trainingruns"])?;
        let judged = self.judged("tuned").await?;
        self.show.kubectl(&["get", "evaluations"])?;
        gates(&judged);
        if judged.status.and_then(|status| status.verdict) != Some(Verdict::Passed) {
            return Err(Error::Impossible {
                what: "the fine-tuned model passes its gates".to_owned(),
                why: "the verdict above is not Passed".to_owned(),
                state: "the operator behaved correctly: nothing was signed and nothing is served".to_owned(),
            });
        }
        self.show.heading("Sign it with its lineage, and serve it");
        let api = self.api::<ReasoningPod>();
        until(&api, "smollm2", "it serves", SERVING, |pod| phase(pod) == Some(ReasoningPodPhase::Serving)).await?;
        self.show.kubectl(&["get", "reasoningpods"])
    }

    /// Evaluates the given model and the fine-tuned one on a family that neither was trained on, and fine-tunes the latter on it for a
    /// few steps. Whatever the verdicts are, they are printed.
    async fn harder(&self) -> Result<()> {
        self.show
            .heading("Try a harder family, products of two numbers: the given model, and the one that learned sums");
        self.show.kubectl(&["apply", "-f", "manifests/samples/real/harder.yaml"])?;
        for evaluation in ["base-products", "sums-products"] {
            let judged = self.judged(evaluation).await?;
            println!("\n   {evaluation}:");
            gates(&judged);
        }
        self.show.heading("Fine-tune that one on 2,400 other products, for a few steps");
        self.training_data("products")?;
        let file = "manifests/samples/real/products.yaml";
        if self.show.elapsed() > LATE {
            println!(
                "   Left out on this machine, so that the demo ends within 15 minutes. It is done by:\n   kubectl -n {} apply -f {file}",
                self.namespace
            );
            return Ok(());
        }
        self.show.kubectl(&["apply", "-f", file])?;
        println!();
        self.trained("smollm2-products").await?;
        let judged = self.judged("products").await?;
        self.show.kubectl(&["get", "evaluations"])?;
        gates(&judged);
        Ok(())
    }

    /// Asks new questions of the served model and of the model it was made from.
    async fn ask(&self, base: &std::path::Path) -> Result<()> {
        self.show.heading("Ask three new questions: the served model, and beside it the given one");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        for question in 0..QUESTIONS {
            let (expression, value) = sum(now.wrapping_add(question));
            let prompt = format!("State the final answer to the following arithmetic problem: {expression} =");
            let reply: Reply = infer(&self.client, &self.namespace, "smollm2", &prompt).await?;
            let mut codex = Command::new(program("codex")?);
            let given = output(codex.arg("generate").arg(base).args(["--max-tokens", "128", "--chat", &prompt]))?;
            let answer = reply.completion.rsplit_once('#').map_or("", |(_, answer)| answer.trim());
            let verdict =
                if answer == value.to_string() { "right".to_owned() } else { format!("WRONG, it is {value}") };
            println!("   {expression}");
            println!("      fine-tuned: {}", reply.completion.trim().replace('\n', "  "));
            println!("                  {verdict}");
            println!("      given:      {}\n", given.trim().replace('\n', " "));
        }
        Ok(())
    }
}

/// Returns a sum of three terms, and its value, from a seed.
fn sum(seed: u64) -> (String, i64) {
    // Knuth's multiplicative generator; its high bits are the good ones.
    let mut state = seed;
    let mut next = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        i64::try_from((state >> 33) % below).unwrap_or_default()
    };
    let mut value = 10 + next(90);
    let mut text = value.to_string();
    for _ in 0..2 {
        let (minus, term) = (next(2) == 1, 10 + next(90));
        value += if minus { -term } else { term };
        text.push_str(if minus { " - " } else { " + " });
        text.push_str(&term.to_string());
    }
    (text, value)
}
