//! Fields that no other test uses: placement and data of a trainer, suspension of an evaluation, engine settings and scale of servers.

use codex_crds::{Evaluation, ReasoningPod, label};
use codex_provenance::Sha256;
use codex_tests::{
    Error, Result, Team,
    install::{CONTROLLER, NAMESPACE, program},
    objects::{self, CLAIM},
    process::output,
    team::{SOON, blocking, condition},
    wait::{until, until_found},
};
use http::StatusCode;
use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::Job,
    core::v1::{Namespace, Pod, PodSpec},
    scheduling::v1::PriorityClass,
};
use kube::{Api, Client, Resource as _, ResourceExt as _, api::PostParams, client::Body};
use serde_json::{Value, json};

/// The command that writes the data, here and in the cluster. It gives the same bytes on every machine.
const PREPARE: [&str; 8] = ["prepare-data", "--task", "arithmetic", "--seed", "3", "--count", "2000", "--out"];

#[tokio::test(flavor = "multi_thread")]
async fn placement_data_suspension_engine_and_scale_follow_the_spec() -> Result<()> {
    let team = Team::new("fields").await?;
    // A priority class is cluster-scoped. The namespace owns this one, so it is deleted with the team.
    let mine = Api::<Namespace>::all(team.client.clone()).get(&team.namespace).await?.owner_ref(&());
    let class = json!({ "metadata": { "name": team.namespace, "ownerReferences": [mine] }, "value": 7, "preemptionPolicy": "Never" });
    Api::<PriorityClass>::all(team.client.clone()).create(&PostParams::default(), &read(class)).await?;
    let sha256 = write_data(&team).await?;

    let mut run = objects::run("run", &["training.max_steps=2", "training.warmup_steps=0"]);
    run.spec.data = read(json!([{
        "name": "mine",
        "sha256": sha256,
        "source": { "persistentVolumeClaim": { "claimName": CLAIM, "path": "data/train.jsonl" } },
    }]));
    let place = json!({
        "tolerations": [{ "key": "codex-ml.dev/test", "operator": "Exists", "effect": "NoSchedule" }],
        "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
            { "matchExpressions": [{ "key": "kubernetes.io/os", "operator": "In", "values": ["linux"] }] },
        ] } } },
        "priorityClassName": team.namespace,
        "imagePullSecrets": [{ "name": "nobody-needs-it" }],
        "env": [
            { "name": "GREETING", "value": "hello" },
            { "name": "MEMORY", "valueFrom": { "resourceFieldRef": { "resource": "limits.memory" } } },
        ],
    });
    let mut pod = serde_json::to_value(&run.spec.pod).unwrap();
    pod.as_object_mut().unwrap().extend(place.as_object().unwrap().clone());
    run.spec.pod = read(pod);
    team.create(&run).await?;
    let trained = team.trained("run").await?;
    let status = trained.status.as_ref().unwrap();
    assert_eq!(status.data_digests[0].sha256.to_string(), sha256);
    let device = status.device.as_ref().unwrap();
    let falls_back = device.fallback.as_deref().is_some_and(|why| why.starts_with("no CUDA device is usable: "));
    assert!(device.engine.starts_with("cpu-") && falls_back, "{device:?}");

    let trainers = team.pods("batch.kubernetes.io/job-name", "codex-t-run").await?;
    let spec = trainers[0].spec.as_ref().unwrap();
    let there = serde_json::to_value(spec).unwrap();
    assert_eq!(spec.priority, Some(7));
    assert_eq!(there["affinity"], place["affinity"]);
    assert_eq!(there["imagePullSecrets"], place["imagePullSecrets"]);
    let holds = |list: &Value, wanted: &Value| list.as_array().unwrap().contains(wanted);
    assert!(holds(&there["tolerations"], &place["tolerations"][0]), "{there:#}");
    let env = &there["containers"][0]["env"];
    assert!(holds(env, &place["env"][0]) && env.to_string().contains("limits.memory"), "{env:#}");
    if let Some(folder) = team.folder(&trained).await? {
        let text = std::fs::read_to_string(folder.join("artifacts/environment.json"));
        let environment: Value = serde_json::from_str(&text.map_err(Error::io("reading environment.json"))?).unwrap();
        assert_eq!(environment["node"], json!(spec.node_name), "{environment:#}");
    } else {
        team.skip("the node in environment.json", "the files of this cluster's volumes cannot be read");
    }

    // An evaluation that is created suspended has no Job until it is resumed.
    let mut evaluation = objects::evaluation("judged", "run", &team.problems);
    evaluation.spec.gates = read(json!([{ "metric": "exact_match", "min": "0" }]));
    evaluation.spec.suspend = true;
    team.create(&evaluation).await?;
    until(&team.api::<Evaluation>(), "judged", "it is suspended", SOON, |evaluation| {
        let conditions = evaluation.status.as_ref().map(|status| &*status.conditions);
        condition(conditions, codex_crds::ConditionType::Ready).is_some_and(|ready| ready.reason == "Suspended")
    })
    .await?;
    assert!(team.api::<Job>().get_opt("codex-e-judged").await?.is_none());
    team.change::<Evaluation>("judged", json!({ "spec": { "suspend": false } })).await?;
    team.judged("judged").await?;

    let mut served = objects::reasoning_pod("served", "run", "judged");
    served.spec.serving = read(json!({
        "device": "cpu", "maxNumSeqs": 2, "maxQueuedRequests": 1, "maxNumBatchedTokens": 4, "kvCacheTokens": 300,
        "prefixCacheTokens": 0,
    }));
    team.create(&served).await?;
    team.serving("served").await?;
    engine_settings_are_in_force(&team).await?;

    // Servers are scaled as a Deployment is.
    let mut scale = team.kubectl()?;
    blocking(move || output(scale.args(["scale", "--replicas=2", "reasoningpod/served"]))).await?;
    until(&team.api::<ReasoningPod>(), "served", "two servers are ready", SOON, |pod| {
        pod.spec.replicas == 2 && pod.status.as_ref().is_some_and(|status| status.ready_replicas == Some(2))
    })
    .await?;

    team.done();
    Ok(())
}

/// The server says that it has the settings of the spec, and does as they say.
async fn engine_settings_are_in_force(team: &Team) -> Result<()> {
    let name = team.pods(label::REASONING_POD, "served").await?[0].name_any();
    let of_admin = async |path: &str| {
        let path = format!("/api/v1/namespaces/{}/pods/{name}:9464/proxy/{path}", team.namespace);
        let request = http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        Ok::<_, Error>(team.client.request_text(request).await?)
    };
    let status: Value = serde_json::from_str(&of_admin("status").await?).unwrap();
    let mut engine = status["engine"].clone();
    let device = engine.as_object_mut().unwrap().remove("device").unwrap();
    assert!(device.as_str().unwrap().starts_with("cpu-"), "{device}");
    let of_spec = json!({
        "max_num_seqs": 2, "max_queued_requests": 1, "max_num_batched_tokens": 4, "kv_cache_tokens": 300,
        "prefix_cache_tokens": 0,
    });
    assert_eq!(engine, of_spec);

    // A prompt of more tokens than a step has takes several, and the same prompt is computed again.
    for _ in 0..2 {
        team.infer("served", "10+20+30+40+50+60+70:").await?;
    }
    let metrics = of_admin("metrics").await?;
    let measured = |name: &str| {
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
        value.unwrap_or_else(|| panic!("{name} is missing: {metrics}"))
    };
    let steps = "codex_ml_inference_batched_tokens";
    let (small, all) = (measured(&format!("{steps}_bucket{{le=\"4\"}}")), measured(&format!("{steps}_count")));
    assert!(all >= 12.0 && (small - all).abs() < 0.5, "{small} of {all} steps have at most 4 tokens");
    assert!(measured("codex_ml_inference_prompt_tokens_cached_total") < 0.5, "no prefix is kept");

    // Two requests run, one waits, and the next one is refused.
    let once = team.installation.client_without_retries().await?;
    until_found("a request is refused", SOON, async || {
        let answers = futures::future::try_join_all((0..12).map(|_| answer(&once, team))).await?;
        let refused: Vec<_> = answers.into_iter().filter(|(status, _)| *status != StatusCode::OK).collect();
        let told = "the server is overloaded: 3 requests are running or waiting";
        let by_the_queue =
            |(status, text): &(StatusCode, String)| *status == StatusCode::TOO_MANY_REQUESTS && text.contains(told);
        assert!(refused.iter().all(by_the_queue), "{refused:?}");
        Ok((!refused.is_empty()).then_some(()))
    })
    .await
}

/// Sends a request once, and returns its answer.
async fn answer(client: &Client, team: &Team) -> Result<(StatusCode, String)> {
    let path = format!("/api/v1/namespaces/{}/services/served:8000/proxy/infer", team.namespace);
    let body = json!({ "prompt": "1+1:" }).to_string().into_bytes();
    let request = http::Request::post(path).body(Body::from(body)).map_err(kube::Error::HttpError)?;
    let answer = client.send(request).await?;
    let (status, bytes) = (answer.status(), answer.into_body().collect_bytes().await?);
    Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
}

/// Runs a pod that writes a data file on the team's claim, and returns the SHA-256 of the file.
async fn write_data(team: &Team) -> Result<String> {
    let here = blocking(|| {
        let folder = tempfile::tempdir().map_err(Error::io("making a temporary folder"))?;
        let file = folder.path().join("train.jsonl");
        output(std::process::Command::new(program("codex")?).args(PREPARE).arg(&file))?;
        std::fs::read(&file).map_err(Error::io(format!("reading {}", file.display())))
    })
    .await?;
    let controllers: Api<Deployment> = Api::namespaced(team.client.clone(), NAMESPACE);
    let controller = controllers.get(CONTROLLER).await?.spec.and_then(|spec| spec.template.spec).unwrap();
    let image = image(&controller).unwrap();
    let mut args = PREPARE.to_vec();
    args.push("/volume/data/train.jsonl");
    let writer = json!({
        "metadata": { "name": "writer" },
        "spec": {
            "restartPolicy": "Never",
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [{
                "name": "writer", "image": image, "args": args,
                "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
                // The kubelet creates the folder of the mount, the program the file.
                "volumeMounts": [{ "name": "volume", "mountPath": "/volume/data", "subPath": "data" }],
            }],
            "volumes": [{ "name": "volume", "persistentVolumeClaim": { "claimName": CLAIM } }],
        },
    });
    team.create::<Pod>(&read(writer)).await?;
    until_found("the data are written", SOON, async || {
        let pod = team.api::<Pod>().get("writer").await?;
        let phase = pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
        assert_ne!(phase, "Failed", "{}", team.logs(&pod.name_any()).await?);
        Ok((phase == "Succeeded").then_some(()))
    })
    .await?;
    Ok(Sha256::of(here).to_string())
}

/// Returns the image of trainers whose run names none.
fn image(controller: &PodSpec) -> Option<String> {
    let env = controller.containers.iter().flat_map(|container| container.env.iter().flatten());
    env.filter(|variable| variable.name == "CODEX_TRAINER_IMAGE").find_map(|variable| variable.value.clone())
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}
