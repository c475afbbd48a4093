//! A server serves exactly the signed and promoted model that its arguments name, or nothing.

use std::{collections::BTreeMap, fs, time::Duration};

use codex_crds::{ConditionType, ReasoningPod, ReasoningPodStatus, TrainingRun, child};
use codex_reports::{Report, State, exit};
use codex_signing::key::{PrivateKey, Signer as _};
use codex_tests::{
    Result, Team, objects,
    team::{SOON, condition},
    wait::until,
};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod, PodSpec},
};
use kube::{ResourceExt as _, api::DeleteParams};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_flipped_after_signing_is_never_served() -> Result<()> {
    let team = Team::new("flipped").await?;
    chain(&team, "run", 1).await?;
    let run = team.trained("run").await?;
    let serving = team.serving("run-served").await?;
    let Some(folder) = team.folder(&run).await? else {
        team.skip("a byte flipped after signing", "the files of this cluster's volumes cannot be changed");
        team.done();
        return Ok(());
    };
    let file = folder.join("model/model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, &bytes).unwrap();

    // The running server continues: it no longer reads the volume.
    team.infer("run-served", "1+1:").await?;
    let [old] = &team.pods("codex-ml.dev/reasoning-pod", "run-served").await?[..] else { panic!("one server") };
    team.api::<Pod>().delete(&old.name_any(), &DeleteParams::default()).await?;

    let refused = until(&team.api::<ReasoningPod>(), "run-served", "its status names the file", SOON, |pod| {
        let status = pod.status.as_ref();
        let verified = condition(status.map(|status| &*status.conditions), ConditionType::Verified);
        verified.is_some_and(|it| it.status == "False" && it.message.contains("model.safetensors"))
    })
    .await?;
    let status = refused.status.unwrap();
    let verified = condition(Some(&status.conditions), ConditionType::Verified).unwrap();
    assert_eq!(verified.reason, "VerificationFailed");
    assert_eq!(status.manifest, serving.status.unwrap().manifest, "the signatures stay");
    // The kubelet restarts the new server again and again, and it never becomes ready.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let now = team.pods("codex-ml.dev/reasoning-pod", "run-served").await?;
    let new: Vec<&Pod> = now.iter().filter(|pod| pod.uid() != old.uid()).collect();
    assert!(!new.is_empty() && new.iter().all(|pod| !is_ready(pod)));
    let status = team.api::<ReasoningPod>().get("run-served").await?.status.unwrap();
    assert!(condition(Some(&status.conditions), ConditionType::Ready).is_some_and(|ready| ready.status == "False"));

    // With the byte restored, it serves again without help.
    bytes[last] ^= 1;
    fs::write(&file, &bytes).unwrap();
    for pod in new {
        team.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default()).await?;
    }
    team.serving("run-served").await?;
    team.done();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bundles_of_another_key_another_model_and_another_ring_are_refused() -> Result<()> {
    let team = Team::new("forged").await?;
    chain(&team, "run", 1).await?;
    chain(&team, "other", 2).await?;
    let other = team.serving("other-served").await?.status.unwrap();
    let lower = team.serving("run-served").await?.status.unwrap();
    // Move the run to the next ring: both promotions are genuine, each for its ring.
    let ahead = json!({ "spec": { "rolloutRing": "0B_base_" } });
    team.change::<TrainingRun>("run", ahead.clone()).await?;
    team.change::<ReasoningPod>("run-served", ahead).await?;
    let own = until(&team.api::<ReasoningPod>(), "run-served", "it serves in the next ring", SOON, |pod| {
        let promotion = pod.status.as_ref().and_then(|status| status.promotion.as_ref());
        let ready = condition(pod.status.as_ref().map(|status| &*status.conditions), ConditionType::Ready);
        promotion.is_some_and(|it| it.ring.name() == "0B_base_") && ready.is_some_and(|ready| ready.status == "True")
    })
    .await?
    .status
    .unwrap();

    let genuine = Bundles::of(&team, &own).await?;
    let before = Bundles::of(&team, &lower).await?;
    let foreign = Bundles::of(&team, &other).await?;
    let key = PrivateKey::generate().unwrap();
    let resigned = |bundle: &str| {
        let payload = codex_signing::bundle::open(bundle.as_bytes(), &genuine.public()).unwrap();
        String::from_utf8(key.sign(&payload).unwrap()).unwrap()
    };
    let resigned = Bundles { oms: resigned(&genuine.oms), promotion: resigned(&genuine.promotion), ..genuine.clone() };

    let template = team.api::<Deployment>().get(&child::server("run-served")).await?;
    let template = template.spec.unwrap().template.spec.unwrap();
    let attempt = |name: &'static str, bundles: Bundles| {
        let (team, template, own) = (&team, template.clone(), &own);
        async move { serve(team, name, template, own, bundles).await }
    };

    // The genuine bundles serve, so the attempts below are refused only for what was changed.
    let pod = attempt("genuine", genuine.clone()).await?;
    until(&team.api::<Pod>(), &pod, "it is ready", SOON, is_ready).await?;

    for (name, bundles, told) in [
        ("other-signature", resigned.clone(), vec!["OMS bundle", "key"]),
        (
            "other-key",
            Bundles { key: key.public().to_pem().to_owned(), ..resigned.clone() },
            vec!["the public key has the fingerprint"],
        ),
        (
            "other-promoter",
            Bundles { promotion: resigned.promotion.clone(), ..genuine.clone() },
            vec!["promotion bundle", "key"],
        ),
        ("other-model", Bundles { oms: foreign.oms.clone(), ..genuine.clone() }, vec!["OMS bundle", "another model"]),
        (
            "other-promotion",
            Bundles { promotion: foreign.promotion.clone(), ..genuine.clone() },
            vec!["promotion bundle", "another model"],
        ),
        (
            "other-ring",
            Bundles { promotion: before.promotion.clone(), ..genuine.clone() },
            vec!["0A_base_", "0B_base_"],
        ),
    ] {
        let pod = attempt(name, bundles).await?;
        let ended = until(&team.api::<Pod>(), &pod, "it refuses to serve", SOON, |pod| {
            assert!(!is_ready(pod), "{name} became ready");
            ended(pod).is_some()
        })
        .await?;
        let (code, message) = ended_with(&ended);
        assert_eq!(code, exit::BAD_INPUT, "{name}: {message}");
        let report: Report = serde_json::from_str(&message).unwrap();
        let State::Serving(state) = report.state else { panic!("{report:?}") };
        let failure = state.failure.unwrap();
        assert_eq!(failure.reason, "VerificationFailed");
        assert!(told.iter().all(|word| failure.message.contains(word)), "{name}: {}", failure.message);
    }
    team.done();
    Ok(())
}

/// Creates a run with its evaluation and its server.
async fn chain(team: &Team, name: &str, seed: u64) -> Result<()> {
    let mut run = objects::run(name, &[]);
    run.spec.seed = seed;
    team.create(&run).await?;
    team.create(&objects::evaluation(&format!("{name}-judged"), name, &team.problems)).await?;
    team.create(&objects::reasoning_pod(&format!("{name}-served"), name, &format!("{name}-judged"))).await?;
    Ok(())
}

/// The files that a server mounts.
#[derive(Clone, Debug)]
struct Bundles {
    oms: String,
    promotion: String,
    key: String,
}

impl Bundles {
    async fn of(team: &Team, status: &ReasoningPodStatus) -> Result<Self> {
        let config_maps = team.api::<ConfigMap>();
        let mut oms = config_maps.get(&status.manifest.as_ref().unwrap().bundle).await?.data.unwrap();
        let mut promotion = config_maps.get(&status.promotion.as_ref().unwrap().bundle).await?.data.unwrap();
        let mut take = |key: &str| oms.remove(key).unwrap();
        Ok(Self { oms: take("bundle.json"), key: take("key.pem"), promotion: promotion.remove("bundle.json").unwrap() })
    }

    fn public(&self) -> codex_signing::key::PublicKey {
        codex_signing::key::PublicKey::from_pem(&self.key).unwrap()
    }
}

/// Starts a server as the controller would, but with other bundles. Returns the name of its pod.
async fn serve(
    team: &Team,
    name: &str,
    mut template: PodSpec,
    own: &ReasoningPodStatus,
    bundles: Bundles,
) -> Result<String> {
    let mounts = [
        (
            &own.manifest.as_ref().unwrap().bundle,
            format!("{name}-oms"),
            [("bundle.json", bundles.oms), ("key.pem", bundles.key)].to_vec(),
        ),
        (
            &own.promotion.as_ref().unwrap().bundle,
            format!("{name}-promotion"),
            vec![("bundle.json", bundles.promotion)],
        ),
    ];
    for (genuine, forged, files) in mounts {
        let data: BTreeMap<_, _> = files.into_iter().collect();
        let config_map = json!({ "metadata": { "name": forged }, "data": data });
        team.create::<ConfigMap>(&serde_json::from_value(config_map).unwrap()).await?;
        let sources = template.volumes.iter_mut().flatten().filter_map(|volume| volume.config_map.as_mut());
        let mut replaced = 0;
        for source in sources.filter(|source| &source.name == genuine) {
            source.name.clone_from(&forged);
            replaced += 1;
        }
        assert_eq!(replaced, 1, "the server mounts {genuine} once");
    }
    template.restart_policy = Some("Never".to_owned());
    let pod = json!({ "metadata": { "name": name }, "spec": template });
    Ok(team.create::<Pod>(&serde_json::from_value(pod).unwrap()).await?.name_any())
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn ended(pod: &Pod) -> Option<&k8s_openapi::api::core::v1::ContainerStateTerminated> {
    pod.status.as_ref()?.container_statuses.as_ref()?.first()?.state.as_ref()?.terminated.as_ref()
}

fn ended_with(pod: &Pod) -> (i32, String) {
    let ended = ended(pod).unwrap();
    (ended.exit_code, ended.message.clone().unwrap_or_default())
}
