//! What real requests decide: a canary that fails and is rolled back by itself, and a shadow whose answers differ, so that its model
//! is not promoted. Does I/O.

use std::time::{Duration, Instant};

use codex_crds::{ConditionType, ReasoningPod, RolloutPhase};
use codex_tests::{Result, install::infer, team::condition, wait::until, wait::until_found};
use serde_json::Value;

use crate::{
    ask::arithmetic,
    guards::SERVED,
    tour::{SERVING, Tour},
};

/// The time until the kubelet has updated a mounted ConfigMap and enough requests were answered.
const DECIDED: Duration = Duration::from_secs(300);
/// How many different problems are asked, in turn.
const PROBLEMS: usize = 100;

impl Tour<'_> {
    /// Tries safety rules with a canary, breaks them, and shows that the canary is rolled back.
    pub(crate) async fn canary(&self) -> Result<()> {
        let show = &self.show;
        show.heading("Try safety rules with a canary. A mistake in the rules makes its requests fail: it is rolled back by itself");
        show.kubectl(&["apply", "-f", "manifests/samples/demo/canary/rules.yaml"])?;
        show.kubectl(&["apply", "-f", "manifests/samples/demo/canary/cot-rc.yaml"])?;
        until(&self.api::<ReasoningPod>(), SERVED, "its canary is ready", SERVING, |pod| {
            let rollout = pod.status.as_ref().and_then(|status| status.rollout.as_ref());
            rollout.is_some_and(|rollout| rollout.phase == RolloutPhase::Running && rollout.step_started.is_some())
        })
        .await?;
        println!(
            "\n   The canary is ready and gets all requests, while the former server stays. Now the rules break:\n"
        );
        show.kubectl(&["apply", "-f", "manifests/samples/demo/canary/mistake.yaml"])?;
        let mut asked = Traffic::new()?;
        let pod = until_found("the canary is rolled back", DECIDED, async || {
            asked.send(self).await;
            let pod = self.api::<ReasoningPod>().get(SERVED).await?;
            let rollout = pod.status.as_ref().and_then(|status| status.rollout.as_ref());
            Ok(rollout.is_some_and(|rollout| rollout.phase == RolloutPhase::RolledBack).then_some(pod))
        })
        .await?;
        asked.tell("the mistake reached the canary");
        let rollout = pod.status.and_then(|status| status.rollout);
        println!("   rolled back: {}", rollout.map_or_else(String::new, |rollout| rollout.reason));
        let begun = Instant::now();
        until_found("the former server answers alone", SERVING, async || {
            Ok(infer::<Value>(&self.client, &self.namespace, SERVED, "12+34:").await.ok())
        })
        .await?;
        println!(
            "   The former server, which was never stopped, answers again after {:.1} s.\n",
            begun.elapsed().as_secs_f64()
        );
        show.kubectl(&["apply", "-f", "manifests/samples/demo/canary/undo.yaml"])?;
        self.served().await
    }

    /// Lets a model that has learnt less answer copies of the requests, and shows that a policy keeps it from being promoted.
    pub(crate) async fn shadow(&self) -> Result<()> {
        let show = &self.show;
        show.heading("Another candidate answers copies of the requests as a shadow. It answers differently, so it is not promoted");
        show.kubectl(&["apply", "-f", "manifests/samples/demo/shadow/candidate.yaml"])?;
        println!();
        self.trained("cot-next").await?;
        until(&self.api::<ReasoningPod>(), "cot-next", "it is promoted", SERVING, |pod| {
            let status = pod.status.as_ref();
            let ready = condition(status.map(|status| &*status.conditions), ConditionType::Ready);
            ready.is_some_and(|ready| ready.status == "True")
        })
        .await?;
        show.kubectl(&["get", "reasoningpods"])?;
        println!(
            "\n   Its own gates are weak, so it is in 0D_base_. main demands that a shadow agrees with what serves now:\n"
        );
        show.kubectl(&["apply", "-f", "manifests/samples/demo/shadow/policy.yaml"])?;
        show.kubectl(&["apply", "-f", "manifests/samples/demo/shadow/shadow.yaml"])?;
        let mut asked = Traffic::new()?;
        let pod = until_found("the shadow is judged", DECIDED, async || {
            asked.send(self).await;
            let pod = self.api::<ReasoningPod>().get("cot-next").await?;
            let parity = condition(pod.status.as_ref().map(|status| &*status.conditions), ConditionType::ParityHolding);
            Ok(parity.is_some_and(|parity| parity.status != "Unknown").then(|| pod.clone()))
        })
        .await?;
        asked.tell("the incumbent learnt of its shadow and enough requests were compared");
        let status = pod.status.unwrap_or_default();
        let parity = condition(Some(&status.conditions), ConditionType::ParityHolding);
        println!("   {}", parity.map_or_else(String::new, |it| format!("{}: {}", it.reason, it.message)));
        println!("\n   It asks to serve:\n");
        show.kubectl(&["patch", "reasoningpod", "cot-next", "--type=merge", "--patch", r#"{"spec":{"shadow":null}}"#])?;
        let blocked = self.reason("cot-next", ConditionType::PolicyMet, "PolicyUnmet").await?;
        show.kubectl(&["get", "reasoningpod", "cot-next"])?;
        self.tell_blocked(&blocked, "parity")
    }
}

/// Requests to the served model, one after the other.
struct Traffic {
    prompts: Vec<String>,
    sent: usize,
}

impl Traffic {
    fn new() -> Result<Self> {
        let prompts = arithmetic(PROBLEMS)?.into_iter().map(|problem| problem.prompt).collect();
        Ok(Self { prompts, sent: 0 })
    }

    /// Asks the next problem. A failure ends nothing; the client repeats requests that no server takes.
    async fn send(&mut self, tour: &Tour<'_>) {
        let prompt = &self.prompts[self.sent % self.prompts.len()];
        let _ = infer::<Value>(&tour.client, &tour.namespace, SERVED, prompt).await;
        self.sent += 1;
    }

    fn tell(&self, until: &str) {
        println!("\n   {} requests until {until}.", self.sent);
    }
}
