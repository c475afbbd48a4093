//! Bad input that the API server refuses with a message that names the field, the value and what would be valid.

use codex_crds::{Evaluation, ReasoningPod, TrainingRun};
use codex_tests::{Error, Result, Team, install, objects, process::output_with, team::blocking};
use serde::Serialize;
use serde_json::{Value, json};

/// A bad object, and the words that the refusal must contain.
struct Case {
    object: Value,
    told: &'static [&'static str],
}

/// Returns `object` with the value at `pointer` replaced; null removes it.
fn with(object: &impl Serialize, pointer: &str, value: Value) -> Value {
    let mut object = serde_json::to_value(object).unwrap();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = object.pointer_mut(parent).unwrap();
    match (parent, value) {
        (Value::Object(map), Value::Null) => drop(map.remove(key)),
        (Value::Object(map), value) => drop(map.insert(key.to_owned(), value)),
        (parent, value) => parent[key.parse::<usize>().unwrap()] = value,
    }
    object
}

fn base_claim(path: &str) -> Value {
    json!({ "persistentVolumeClaim": { "claimName": "given", "path": path } })
}

fn base_run(name: &str) -> Value {
    json!({ "trainingRun": { "name": name } })
}

/// Returns a base from a hub with a token and this field.
fn base_hub(field: &str, value: &str) -> Value {
    let token = json!({ "name": "hugging-face", "key": "token" });
    let mut base = json!({ "huggingFace": { "repository": "a/b", "revision": "main", "tokenSecret": token } });
    base["huggingFace"][field] = json!(value);
    base
}

/// Returns `spec.shadow` of a ReasoningPod.
fn shadow(of: &str, most: &str) -> Value {
    json!({ "of": of, "samplePercent": 10, "maxDivergence": most })
}

/// Returns `spec.rollout` of a ReasoningPod whose canary is compared in these steps.
fn compared(steps: &[i32]) -> Value {
    let agreement = json!({ "samplePercent": 10, "maxDivergence": "0.01" });
    json!({ "steps": steps, "analysis": { "agreement": agreement } })
}

/// Returns `spec.redeploy` of a ReasoningPod.
fn redeploy(schedule: &Value, ring: &str) -> Value {
    let mut run = serde_json::to_value(objects::run("any", &[]).spec).unwrap();
    let mut evaluation = serde_json::to_value(objects::evaluation("any", "any", &"0".repeat(64)).spec).unwrap();
    run["rolloutRing"] = json!(ring);
    for (spec, fields) in [(&mut run, &["suspend"][..]), (&mut evaluation, &["suspend", "trainingRun"])] {
        for field in fields {
            spec.as_object_mut().unwrap().remove(*field);
        }
    }
    let template = json!({ "trainingRun": run, "evaluations": [{ "name": "lite", "spec": evaluation }] });
    json!({ "schedule": schedule, "template": template })
}

/// Returns `spec.model` of an Evaluation.
fn given() -> Value {
    base_claim("llama")
}

fn cases() -> Vec<Case> {
    let run = objects::run("bad", &[]);
    let digest = "0".repeat(64);
    let evaluation = objects::evaluation("bad", "run", &digest);
    let pod = objects::reasoning_pod("bad", "run", "judged");
    let shadowing = with(&pod, "/spec/shadow", shadow("other", "0.01"));
    let redeploying = with(&pod, "/spec/redeploy", redeploy(&json!({ "cron": "0 3 * * 1" }), "0A_base_"));
    let encrypted = with(&pod, "/spec/serving", json!({ "tls": { "secret": "team-tls" } }));
    let judged_given = with(&with(&evaluation, "/spec/trainingRun", Value::Null), "/spec/model", given());
    let output = json!({ "persistentVolumeClaim": { "claimName": "a" } });
    let both_bases = json!({ "persistentVolumeClaim": { "claimName": "a" }, "trainingRun": { "name": "b" } });
    let run = |pointer, value, told| Case { object: with(&run, pointer, value), told };
    let evaluation = |pointer, value, told| Case { object: with(&evaluation, pointer, value), told };
    let pod = |pointer, value, told| Case { object: with(&pod, pointer, value), told };
    let config_map = json!({ "configMap": { "name": "a", "key": "b" } });
    let named = |name: &str| json!({ "configMap": { "name": name, "key": "b" } });
    let claims = json!({ "claims": [{ "name": "gpu" }] });
    let claim = json!({ "persistentVolumeClaim": { "claimName": "../secrets", "path": "b" } });
    vec![
        run("/spec/rolloutRing", json!("0E_base_"), &["spec.rolloutRing", "0E_base_", "0A_base_", "main"]),
        pod("/spec/rolloutRing", json!("Main"), &["spec.rolloutRing", "Main", "0A_base_", "main"]),
        run("/metadata/name", json!("a".repeat(53)), &["metadata.name", "52 characters"]),
        run("/spec/template", Value::Null, &["spec.template", "Required"]),
        run("/spec/seed", json!(-1), &["spec.seed", "-1", "greater than or equal to 0"]),
        run("/spec/seeds", json!(1), &["unknown field", "spec.seeds"]),
        run("/spec/config", json!("#".repeat(32_769)), &["spec.config", "32768"]),
        run("/spec/retries", json!(-1), &["spec.retries", "-1"]),
        run("/spec/data", json!([]), &["spec.data", "at least 1"]),
        run(
            "/spec/data/0/source",
            config_map.clone(),
            &["data[].sha256 is required", "64 lower-case hexadecimal digits"],
        ),
        run("/spec/data/0/source/configMap", config_map["configMap"].clone(), &["exactly one of configMap"]),
        run("/spec/data/0/source", named("train set"), &["name \"train set\" is invalid", "such as"]),
        // The API server does not show a message that contains a line break.
        run("/spec/data/0/source", named("train\n"), &["spec.data[0].source.configMap.name", "Invalid value"]),
        run("/spec/data/0/source", claim, &["claimName \"../secrets\" is invalid"]),
        run("/spec/output/persistentVolumeClaim/claimName", json!("My_Claim"), &["claimName \"My_Claim\" is invalid"]),
        run("/spec/data/0/sha256", json!("ABC"), &["spec.data[0].sha256", "ABC"]),
        run(
            "/spec/output/persistentVolumeClaim/subPath",
            json!("../other"),
            &["subPath \"../other\" is invalid", "without ..", "such as runs"],
        ),
        run("/spec/pod/resources", json!({ "limits": { "memory": "1GB" } }), &["spec.pod.resources", "not 1GB"]),
        run("/spec/pod/resources", json!({ "limits": { "memory": "1GiG" } }), &["must hold quantities"]),
        evaluation("/spec/pod/resources", json!({ "requests": { "memory": "2 Gi" } }), &["must hold quantities"]),
        pod("/spec/pod/resources", json!({ "requests": { "cpu": "half" } }), &["must hold quantities"]),
        run(
            "/spec/pod/env",
            json!([{ "name": "CODEX_REPORT_URL", "value": "x" }]),
            &["CODEX_", "reserved for the controller"],
        ),
        run(
            "/spec/pod/env",
            json!([{ "name": "A", "value": "x" }, { "name": "A", "value": "y" }]),
            &["spec.pod.env[1]", "Duplicate value", "\"A\""],
        ),
        run(
            "/spec/pod/env",
            json!([{ "name": "A", "valueFrom": { "fileKeyRef": { "volumeName": "v", "path": "p", "key": "k" } } }]),
            &["unknown field", "spec.pod.env[0].valueFrom.fileKeyRef"],
        ),
        run("/spec/pod/resources", claims.clone(), &["pod.resources.claims must name entries of pod.resourceClaims"]),
        evaluation("/spec/pod/resources", claims, &["pod.resources.claims must name entries of pod.resourceClaims"]),
        run(
            "/spec/pod/imagePullSecrets",
            json!([{ "name": "registry" }, { "name": "registry" }]),
            &["spec.pod.imagePullSecrets[1]", "Duplicate value", "registry"],
        ),
        run("/spec/base", json!({}), &["exactly one of persistentVolumeClaim, trainingRun and huggingFace"]),
        run("/spec/base", both_bases, &["exactly one of persistentVolumeClaim, trainingRun and huggingFace"]),
        run("/spec/base", base_claim("/models"), &["path \"/models\" is invalid", "without .."]),
        run("/spec/base", base_claim("a/../../b"), &["path \"a/../../b\" is invalid", "without .."]),
        run("/spec/base", base_run("bad"), &["spec.base.trainingRun.name is the TrainingRun itself"]),
        run("/spec/base", base_run(""), &["spec.base.trainingRun.name"]),
        run(
            "/spec/base",
            with(&base_run("other"), "/digest", json!("abc")),
            &["digest \"abc\" is invalid", "64 lower-case"],
        ),
        run(
            "/spec/base",
            json!({ "huggingFace": { "repository": "a/b" } }),
            &["spec.base.huggingFace.revision", "Required value"],
        ),
        run("/spec/base", base_hub("repository", "small"), &["repository \"small\" is invalid", "an owner and a name"]),
        run("/spec/base", base_hub("repository", "a/../b"), &["repository \"a/../b\" is invalid"]),
        run("/spec/base", base_hub("revision", "a b"), &["revision \"a b\" is invalid", "such as main"]),
        run("/spec/base", base_hub("endpoint", "hub.example"), &["endpoint \"hub.example\" is invalid"]),
        run("/spec/base", base_hub("endpoint", "http://hub"), &["must begin with https:// if tokenSecret is set"]),
        run(
            "/spec/base",
            with(&base_run("other"), "/signedBy", json!({ "configMap": { "name": "a", "key": "b" } })),
            &["spec.base.signedBy must be absent with spec.base.trainingRun"],
        ),
        evaluation("/spec/trainingRun", Value::Null, &["exactly one of trainingRun and model"]),
        evaluation("/spec/model", given(), &["exactly one of trainingRun and model"]),
        evaluation("/spec/output", output, &["spec.output is required with spec.model, and must be absent"]),
        Case { object: judged_given.clone(), told: &["spec.output is required with spec.model"] },
        Case {
            object: with(&judged_given, "/spec/model/digest", json!("ABC")),
            told: &["digest \"ABC\" is invalid", "64 lower-case"],
        },
        evaluation("/spec/gates", json!([]), &["spec.gates", "at least 1"]),
        evaluation(
            "/spec/gates/0",
            json!({ "metric": "exact_match" }),
            &["exactly one of min, max, betterThan and notWorseThan", "min: \"0.95\""],
        ),
        evaluation("/spec/gates/0/max", json!("1"), &["exactly one of min, max, betterThan and notWorseThan"]),
        evaluation("/spec/gates/0/min", json!("NaN"), &["spec.gates[0].min", "NaN"]),
        evaluation("/spec/gates/0/min", json!("high"), &["spec.gates[0].min", "high"]),
        evaluation("/spec/gates/0/min", json!(0.95), &["spec.gates[0].min", "string"]),
        evaluation("/spec/gates/0/confidence", json!("1.5"), &["confidence", "above 0.5 and below 1"]),
        evaluation("/spec/data/0/name", json!("questions"), &["problems, baseline or plugin-metric"]),
        evaluation("/spec/pod/image", json!("mine"), &["unknown field", "spec.pod.image"]),
        evaluation(
            "/spec/schedule",
            json!({ "cron": "0 3 * * 1", "concurrencyPolicy": "Allow" }),
            &["spec.schedule.concurrencyPolicy", "use Forbid or Replace; Allow is not supported"],
        ),
        pod("/spec/evaluations", json!([]), &["spec.evaluations", "at least 1"]),
        pod("/spec/evaluations", json!(["a", "a"]), &["name each Evaluation once"]),
        pod("/spec/replicas", json!(-1), &["spec.replicas", "-1"]),
        pod("/spec/pod/env", json!([]), &["unknown field", "spec.pod.env"]),
        // The pod of this object requests CPU.
        pod(
            "/spec",
            json!({ "rolloutRing": "main", "trainingRun": "run", "evaluations": ["judged"], "autoscaling": {} }),
            &["spec.pod.resources requests no CPU"],
        ),
        pod("/spec/autoscaling", json!({ "minReplicas": 3, "maxReplicas": 2 }), &["must not be above"]),
        pod("/spec/autoscaling", json!({ "metrics": {} }), &["must set queueDepth"]),
        pod("/spec/autoscaling", json!({ "metrics": { "p95Seconds": "0.0" } }), &["p95Seconds", "0.0", "above 0"]),
        pod("/spec/shadow", shadow("bad", "0.01"), &["spec.shadow.of is the ReasoningPod itself"]),
        pod("/spec/shadow", shadow("other", "0.0"), &["spec.shadow.maxDivergence must be above 0"]),
        pod("/spec/shadow", shadow("other", "2"), &["maxDivergence", "2", "from 0 to 1"]),
        Case {
            object: with(&shadowing, "/spec/shadow/samplePercent", json!(0)),
            told: &["spec.shadow.samplePercent", "greater than or equal to 1"],
        },
        Case {
            object: with(&shadowing, "/spec/rollout", json!({})),
            told: &["spec.shadow excludes spec.autoscaling, spec.rollout and spec.serving"],
        },
        pod("/spec", json!({ "rolloutRing": "main" }), &["spec must name what is served"]),
        pod(
            "/spec/redeploy",
            redeploy(&json!({ "cron": "soon" }), "0A_base_"),
            &["spec.redeploy.schedule.cron", "such as 0 3 * * 1"],
        ),
        pod(
            "/spec/redeploy",
            redeploy(&json!({ "cron": "0 3 * * 1", "concurrencyPolicy": "Replace" }), "0A_base_"),
            &["spec.redeploy.schedule.concurrencyPolicy must be Forbid"],
        ),
        pod(
            "/spec/redeploy",
            redeploy(&json!({ "cron": "0 3 * * 1" }), "main"),
            &["spec.redeploy.template.trainingRun.rolloutRing and spec.rolloutRing differ"],
        ),
        Case {
            object: with(
                &with(&redeploying, "/metadata/name", json!("a-name-of-twenty-eight-chars")),
                "/spec/replicas",
                json!(2),
            ),
            told: &["at most 27 characters"],
        },
        Case {
            object: with(&redeploying, "/spec/redeploy/template/evaluations/0/name", json!("Lite")),
            told: &["template.evaluations[].name", "lower-case letters"],
        },
        Case {
            object: with(&redeploying, "/spec/redeploy/template/evaluations/0/spec/gates/0/min", json!("high")),
            told: &["spec.redeploy.template.evaluations[0].spec.gates[0].min", "high"],
        },
        Case {
            object: with(&redeploying, "/spec/redeploy/template/trainingRun/suspend", json!(true)),
            told: &["unknown field", "spec.redeploy.template.trainingRun.suspend"],
        },
        Case {
            object: with(&redeploying, "/spec/shadow", shadow("other", "0.01")),
            told: &["spec.shadow excludes spec.redeploy"],
        },
        Case {
            object: with(&encrypted, "/spec/rollout", json!({ "gateway": { "parentRefs": [{ "name": "public" }] } })),
            told: &["spec.serving.tls excludes spec.rollout.gateway"],
        },
        Case {
            object: with(&encrypted, "/spec/rollout", compared(&[5, 100])),
            told: &["spec.serving.tls excludes spec.rollout.analysis.agreement"],
        },
        Case {
            object: with(&encrypted, "/spec/autoscaling", json!({ "minReplicas": 0, "metrics": { "queueDepth": 4 } })),
            told: &["spec.autoscaling.minReplicas 0 excludes spec.rollout and spec.redeploy", "spec.serving.tls"],
        },
        Case {
            object: with(
                &with(&redeploying, "/spec/serving", json!({ "tls": { "secret": "team-tls" } })),
                "/spec/redeploy/shadow",
                json!({ "samplePercent": 10, "maxDivergence": "0.01" }),
            ),
            told: &["spec.serving.tls excludes spec.redeploy.shadow"],
        },
        pod(
            "/spec/serving",
            json!({ "tls": { "secret": "Team_TLS" } }),
            &["spec.serving.tls.secret", "such as team-tls"],
        ),
        pod(
            "/spec/serving",
            json!({ "thinkingBudget": -1 }),
            &["spec.serving.thinkingBudget", "greater than or equal to 0"],
        ),
        pod(
            "/spec/serving",
            json!({ "maxNumSeqs": 16, "maxNumBatchedTokens": 15 }),
            &["spec.serving.maxNumBatchedTokens must be at least spec.serving.maxNumSeqs"],
        ),
        pod("/spec/serving", json!({ "device": "gpu" }), &["spec.serving.device", "gpu", "cuda"]),
        evaluation("/spec/device", json!("gpu"), &["spec.device", "gpu", "cuda"]),
        pod(
            "/spec/autoscaling",
            json!({ "idleSeconds": 60, "metrics": { "queueDepth": 4 } }),
            &["spec.autoscaling.idleSeconds", "set minReplicas to 0"],
        ),
        pod(
            "/spec/autoscaling",
            json!({ "minReplicas": 0, "idleSeconds": 9, "metrics": { "queueDepth": 4 } }),
            &["spec.autoscaling.idleSeconds", "greater than or equal to 10"],
        ),
        pod("/spec/rollout", json!({ "steps": [5, 50] }), &["spec.rollout.steps", "end with 100"]),
        pod("/spec/rollout", json!({ "steps": [50, 50, 100] }), &["spec.rollout.steps", "different"]),
        pod("/spec/rollout", json!({ "analysis": { "maxErrorRate": "1.5" } }), &["maxErrorRate", "1.5", "from 0 to 1"]),
        pod("/spec/rollout", compared(&[100]), &["spec.rollout.analysis.agreement needs a step below 100"]),
        pod(
            "/spec/rollout",
            json!({ "analysis": { "maxInterTokenSeconds": "3" } }),
            &["maxInterTokenSeconds", "at most 2.5"],
        ),
        pod(
            "/spec/rollout",
            json!({ "gateway": { "parentRefs": [{ "name": "Public" }] } }),
            &["spec.rollout.gateway.parentRefs[].name", "Public", "such as public"],
        ),
        pod(
            "/spec/rollout",
            json!({ "gateway": { "parentRefs": [{ "name": "public" }], "hostnames": ["https://models"] } }),
            &["spec.rollout.gateway.hostnames[]", "such as models.example.com"],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_objects_are_refused_with_a_message() -> Result<()> {
    let team = Team::new("refusals").await?;
    let mut silent = Vec::new();
    for Case { object, told } in cases() {
        let refused = refusal(&team, &["create"], &object).await?;
        let missing: Vec<_> = told.iter().filter(|word| !refused.contains(**word)).collect();
        if !missing.is_empty() {
            silent.push(format!("{missing:?} not in: {refused}"));
        }
        // `codex validate` refuses the same, and names the same field.
        let Some(offline) = validated(&object)? else {
            silent.push(format!("codex validate accepted {object}"));
            continue;
        };
        let missing: Vec<_> = told.iter().filter(|it| it.starts_with("spec.") && !offline.contains(**it)).collect();
        if !missing.is_empty() {
            silent.push(format!("{missing:?} not in: {offline}"));
        }
    }
    let run = objects::run("good", &[]);
    let evaluation = objects::evaluation("good", "run", &"0".repeat(64));
    let pod = objects::reasoning_pod("good", "run", "judged");
    let redeploying = with(&pod, "/spec/redeploy", redeploy(&json!({ "cron": "@weekly" }), "0A_base_"));
    for object in [with(&run, "/spec/seed", json!(7)), with(&evaluation, "/spec/retries", json!(1)), redeploying] {
        assert_eq!(validated(&object)?, None);
        let mut kubectl = team.kubectl()?;
        kubectl.args(["create", "--dry-run=server", "--validate=strict", "--filename=-"]);
        blocking(move || output_with(&mut kubectl, &object.to_string())).await?;
    }
    assert!(silent.is_empty(), "{}", silent.join("\n"));
    team.done();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_define_a_result_are_immutable_and_rings_are_not_skipped() -> Result<()> {
    let team = Team::new("changes").await?;
    let mut run = objects::run("run", &[]);
    run.spec.suspend = true;
    let run: TrainingRun = team.create(&run).await?;
    let mut evaluation = objects::evaluation("judged", "run", &team.problems);
    evaluation.spec.suspend = true;
    let evaluation: Evaluation = team.create(&evaluation).await?;
    let mut based = objects::run("based", &[]);
    (based.spec.suspend, based.spec.base) = (true, Some(read(base_claim("llama"))));
    let based: TrainingRun = team.create(&based).await?;
    let mut of_given = objects::evaluation("given", "run", &team.problems);
    of_given.spec.suspend = true;
    (of_given.spec.training_run, of_given.spec.model) = (None, Some(read(given())));
    of_given.spec.output = Some(read(json!({ "persistentVolumeClaim": { "claimName": objects::CLAIM } })));
    let of_given: Evaluation = team.create(&of_given).await?;
    let from_run_to_model = with(&evaluation, "/spec/trainingRun", Value::Null);
    let from_run_to_model =
        with(&with(&from_run_to_model, "/spec/model", given()), "/spec/output", json!(of_given.spec.output));
    let mut pod = objects::reasoning_pod("served", "run", "judged");
    pod.spec.dry_run = true;
    let pod: ReasoningPod = team.create(&pod).await?;

    let synthetic = json!({ "synthetic": { "task": "arithmetic", "seed": 1, "count": 7 } });
    let gate = json!({ "metric": "trace_coverage", "min": "0" });
    let cases = [
        (with(&run, "/spec/rolloutRing", json!("0C_base_")), "spec.rolloutRing moves forward one ring at a time"),
        (with(&pod, "/spec/rolloutRing", json!("main")), "spec.rolloutRing moves forward one ring at a time"),
        (with(&run, "/spec/seed", json!(2)), "spec.seed is immutable"),
        (with(&run, "/spec/seed", Value::Null), "spec.seed is immutable"),
        (with(&run, "/spec/template", json!("answers-only")), "spec.template is immutable"),
        (with(&run, "/spec/overrides", json!([])), "spec.overrides is immutable"),
        (with(&run, "/spec/config", json!("metadata: {owner: me}")), "spec.config is immutable"),
        (with(&evaluation, "/spec/device", json!("cpu")), "spec.device is immutable"),
        (with(&evaluation, "/spec/page", json!(true)), "spec.page is immutable"),
        (with(&run, "/spec/data/0/source", synthetic), "spec.data is immutable"),
        (with(&run, "/spec/output/persistentVolumeClaim/subPath", json!("other")), "spec.output is immutable"),
        (with(&run, "/spec/base", base_run("other")), "spec.base is immutable"),
        (with(&based, "/spec/base", Value::Null), "spec.base is immutable"),
        (with(&based, "/spec/base", base_run("other")), "spec.base is immutable"),
        (with(&based, "/spec/base", base_hub("revision", "main")), "spec.base is immutable"),
        (
            with(&based, "/spec/base/signedBy", json!({ "configMap": { "name": "a", "key": "b" } })),
            "spec.base is immutable",
        ),
        (with(&run, "/spec/pod/image", json!("mine")), "spec.pod.image and spec.pod.env are immutable"),
        (with(&evaluation, "/spec/gates/0", gate), "spec.gates is immutable"),
        (with(&evaluation, "/spec/preset", json!("other")), "spec.preset is immutable"),
        (with(&evaluation, "/spec/trainingRun", json!("other")), "spec.trainingRun is immutable"),
        (with(&of_given, "/spec/model/digest", json!("0".repeat(64))), "spec.model is immutable"),
        (with(&of_given, "/spec/output/persistentVolumeClaim/subPath", json!("b")), "spec.output is immutable"),
        (from_run_to_model, "spec.trainingRun is immutable"),
        (with(&evaluation, "/spec/pod", json!({})), "spec.pod is immutable"),
        (with(&pod, "/spec/pod", json!({})), "spec.pod is immutable"),
    ];
    let settings = [
        ("runtimeClassName", json!("nvidia")),
        ("sharedMemory", json!("1Gi")),
        ("resourceClaims", json!([{ "name": "gpu", "resourceClaimTemplateName": "gpu" }])),
        ("securityContext", json!({ "runAsUser": 1001 })),
        ("securityContext", json!({ "supplementalGroups": [7] })),
    ];
    let settings = settings.into_iter().flat_map(|(field, value)| {
        let pointer = format!("/spec/pod/{field}");
        [with(&evaluation, &pointer, value.clone()), with(&pod, &pointer, value)]
    });
    let cases = cases.into_iter().chain(settings.map(|object| (object, "spec.pod is immutable")));
    for (mut object, told) in cases {
        // Without the version, the refusal cannot be a conflict.
        object["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        let refused = refusal(&team, &["replace"], &object).await?;
        assert!(refused.contains(told), "{told:?} is not in: {refused}");
    }
    // One ring forward and any number back are valid.
    for ring in ["0B_base_", "0C_base_", "0A_base_"] {
        team.change::<TrainingRun>("run", json!({ "spec": { "rolloutRing": ring } })).await?;
    }
    team.done();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_values_written_otherwise_are_no_change() -> Result<()> {
    let team = Team::new("equal").await?;
    let mut run = objects::run("run", &[]);
    (run.spec.suspend, run.spec.base) = (true, Some(read(base_claim("llama"))));
    let run: TrainingRun = team.create(&run).await?;
    let mut evaluation = objects::evaluation("judged", "run", &team.problems);
    evaluation.spec.suspend = true;
    let evaluation: Evaluation = team.create(&evaluation).await?;
    let mut pod = objects::reasoning_pod("served", "run", "judged");
    pod.spec.dry_run = true;
    let pod: ReasoningPod = team.create(&pod).await?;
    let mut cases = vec![
        with(&run, "/spec/config", json!("")),
        with(&run, "/spec/output/persistentVolumeClaim/subPath", json!("runs/")),
        with(&run, "/spec/output/persistentVolumeClaim/subPath", json!("./runs")),
        with(&run, "/spec/base/persistentVolumeClaim/path", json!("llama/")),
        with(&run, "/spec/pod/env", json!([])),
    ];
    for object in [json!(run), json!(evaluation), json!(pod)] {
        let mut resources = object["spec"]["pod"]["resources"].clone();
        resources["requests"] = json!({ "cpu": "0.05", "memory": "65536Ki" });
        let pods = [
            ("tolerations", json!([])),
            ("affinity", json!(null)),
            ("affinity", json!({})),
            ("nodeSelector", json!({})),
            ("imagePullSecrets", json!([])),
            ("resourceClaims", json!([])),
            ("securityContext", json!({})),
            ("securityContext", json!({ "supplementalGroups": [] })),
            ("resources", resources),
        ];
        cases.extend(pods.into_iter().map(|(field, value)| {
            let mut object = object.clone();
            object["spec"]["pod"][field] = value;
            object
        }));
    }
    for mut object in cases {
        object["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        let mut kubectl = team.kubectl()?;
        kubectl.args(["replace", "--dry-run=server", "--validate=strict", "--filename=-"]);
        blocking(move || output_with(&mut kubectl, &object.to_string())).await?;
    }
    team.done();
    Ok(())
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Returns what `codex validate` says of an object that it refuses.
fn validated(object: &Value) -> Result<Option<String>> {
    let mut codex = std::process::Command::new(install::program("codex")?);
    match output_with(codex.args(["validate", "-"]), &object.to_string()) {
        Ok(_) => Ok(None),
        Err(Error::Command { output, .. }) => Ok(Some(output)),
        Err(other) => Err(other),
    }
}

/// Returns the error of kubectl for an object that the API server must refuse. Nothing is stored either way.
async fn refusal(team: &Team, verb: &[&str], object: &Value) -> Result<String> {
    let mut kubectl = team.kubectl()?;
    kubectl.args(verb).args(["--dry-run=server", "--validate=strict", "--filename=-"]);
    let text = object.to_string();
    match blocking(move || Ok(output_with(&mut kubectl, &text))).await? {
        Err(Error::Command { output, .. }) => Ok(output),
        Err(other) => Err(other),
        Ok(_) => panic!("the API server accepted {object:#}"),
    }
}
