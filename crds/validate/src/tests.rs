#![allow(clippy::unwrap_used, reason = "an unexpected result ends the test")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::*;

const RUN: &str = "\
apiVersion: codex-ml.dev/v1alpha1
kind: TrainingRun
metadata:
  name: cot
spec:
  rolloutRing: 0D_base_
  template: cot-starter
  overrides: [training.max_steps=100]
  data:
    - name: arithmetic
      source:
        synthetic: { task: arithmetic, seed: 1, count: 1000 }
  output:
    persistentVolumeClaim: { claimName: models, subPath: runs }
";
const EVALUATION: &str = "\
apiVersion: codex-ml.dev/v1alpha1
kind: Evaluation
metadata:
  name: lite
spec:
  trainingRun: cot
  preset: cot-lite
  gates:
    - { metric: exact_match, min: \"0.95\", minSamples: 500, confidence: \"0.95\" }
";

const POD: &str = "\
apiVersion: codex-ml.dev/v1alpha1
kind: ReasoningPod
metadata:
  name: rc
spec:
  rolloutRing: 0D_base_
  trainingRun: cot
  evaluations: [lite]
";

fn findings(text: &str) -> Vec<String> {
    Validator::new().unwrap().check(text).findings.iter().map(ToString::to_string).collect()
}

/// The only finding after a change of a manifest.
fn one(manifest: &str, from: &str, to: &str) -> String {
    assert!(manifest.contains(from), "{from}");
    let found = findings(&manifest.replacen(from, to, 1));
    let [found] = &found[..] else { panic!("{to}: {found:?}") };
    found.clone()
}

#[test]
fn every_keyword_of_the_schemas_is_applied() {
    fn visit(schema: &Value) {
        for (keyword, value) in schema.as_object().unwrap() {
            assert!(schema::KEYWORDS.contains(&keyword.as_str()), "{keyword}: {value}");
            match keyword.as_str() {
                "properties" => value.as_object().unwrap().values().for_each(visit),
                "items" => visit(value),
                "additionalProperties" if value.is_object() => visit(value),
                // Only beside x-kubernetes-int-or-string, which says the same.
                "anyOf" => assert_eq!(schema["x-kubernetes-int-or-string"], true),
                "format" => assert!(
                    ["date-time", "int32", "int64", "uint", "uint32", "uint64", "double", "uint8", "uint16"]
                        .contains(&value.as_str().unwrap()),
                    "{value}"
                ),
                "x-kubernetes-validations" => {
                    for rule in value.as_array().unwrap() {
                        for keyword in rule.as_object().unwrap().keys() {
                            let known = ["rule", "message", "messageExpression", "fieldPath", "reason"];
                            assert!(known.contains(&keyword.as_str()), "{rule}");
                        }
                    }
                }
                _ => {}
            }
        }
    }
    for kind in &Validator::new().unwrap().kinds {
        visit(&kind.schema);
    }
}

/// Checks every YAML file below a folder of the repository. Returns the number of objects and the findings, each with its file.
fn checked_below(folder: &str) -> (usize, Vec<(PathBuf, Finding)>) {
    let validator = Validator::new().unwrap();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder)];
    let (mut objects, mut findings) = (0, Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "yaml") {
                let checked = validator.check(&fs::read_to_string(&path).unwrap());
                objects += checked.objects;
                findings.extend(checked.findings.into_iter().map(|finding| (path.clone(), finding)));
            }
        }
    }
    (objects, findings)
}

#[test]
fn shipped_manifests_are_valid() {
    let (objects, told) = checked_below("manifests/samples");
    assert!(told.is_empty(), "{told:#?}");
    assert!(objects >= 5, "{objects}");
    assert_eq!(findings(RUN), [""; 0]);
    assert_eq!(findings(EVALUATION), [""; 0]);
}

/// An object that is stored and that the schema refuses could be read, and no longer be changed.
#[test]
fn objects_of_earlier_releases_are_valid() {
    let (objects, mut told) = checked_below("crds/tests/stored");
    told.retain(|(_, finding)| !finding.is_notice);
    assert!(told.is_empty(), "{told:#?}");
    assert!(objects >= 6, "{objects}");
}

#[test]
fn mistyped_fields_and_values_are_named_with_their_line() {
    assert_eq!(
        one(RUN, "  template: cot-starter", "  template: cot-starter\n  sede: 1"),
        "8:3: TrainingRun cot: spec.sede: there is no such field: did you mean seed?"
    );
    assert_eq!(
        one(EVALUATION, "minSamples: 500", "minSample: 500"),
        "9:43: Evaluation lite: spec.gates[0].minSample: there is no such field: did you mean minSamples?"
    );
    assert_eq!(
        one(RUN, "name: arithmetic", "name: 7"),
        "10:7: TrainingRun cot: spec.data[0].name: 7 is a number: write a string, in quotes"
    );
    assert_eq!(
        one(RUN, "name: arithmetic", "name: yes"),
        "10:7: TrainingRun cot: spec.data[0].name: true is a boolean: write a string, in quotes"
    );
    assert!(one(RUN, "0D_base_", "0E_base_").starts_with(
        "6:3: TrainingRun cot: spec.rolloutRing: \"0E_base_\" is not allowed: use one of 0A_base_, 0B_base_"
    ));
    assert_eq!(
        one(RUN, "  rolloutRing: 0D_base_\n", ""),
        "5:1: TrainingRun cot: spec.rolloutRing: this field is required, and it is missing"
    );
    assert_eq!(one(RUN, "  name: cot\n", "  namespace: a\n"), "3:1: TrainingRun: metadata.name: the name is missing");
    assert!(one(RUN, "TrainingRun", "TrainingRuns").contains("there is no kind TrainingRuns in codex-ml.dev/v1alpha1"));
    assert!(one(RUN, "v1alpha1", "v1").contains("use one of codex-ml.dev/v1alpha1 TrainingRun"));
}

#[test]
fn gates_without_power_are_pointed_out() {
    let told = one(EVALUATION, "  gates:\n", "  overrides: [evaluation.limit=400]\n  gates:\n");
    assert_eq!(
        told,
        "10:7: notice: Evaluation lite: spec.gates[0]: the gate on exact_match cannot be decided: minSamples is 500, but at most 400 \
         items are scored"
    );
    let told = one(EVALUATION, "minSamples: 500", "minSamples: 100000");
    assert!(told.starts_with("9:7: notice: ") && told.contains("minSamples is 100000, but at most "), "{told}");
}

#[test]
fn rules_of_the_crds_are_evaluated() {
    let long = "a".repeat(53);
    assert!(one(RUN, "name: cot", &format!("name: {long}")).contains(&format!("TrainingRun {long}: ")));
    let gate = one(EVALUATION, "min: \"0.95\"", "min: \"1.5\"");
    assert!(gate.starts_with("9:30: Evaluation lite: spec.gates[0].min: ") && gate.contains("1.5"), "{gate}");
    let bleu = one(EVALUATION, "metric: exact_match, min: \"0.95\"", "metric: bleu, min: \"101\"");
    assert!(bleu.contains("spec.gates[0].min: ") && bleu.contains("a decimal from 0 to 100"), "{bleu}");
    let by = one(EVALUATION, "min: \"0.95\"", "betterThan: { evaluation: before, by: \"2\" }");
    assert!(
        by.contains("spec.gates[0].betterThan.by: ") && by.contains("by \"2\" is invalid: use a decimal from 0 to 1"),
        "{by}"
    );
    let both = one(EVALUATION, "min: \"0.95\"", "min: \"0.95\", max: \"0.99\"");
    assert!(both.starts_with("9:7: Evaluation lite: spec.gates[0]: "), "{both}");
    let escape = one(RUN, "subPath: runs", "subPath: ../runs");
    assert!(escape.contains("spec.output.persistentVolumeClaim.subPath: "), "{escape}");
    let twice = one(
        RUN,
        "  output:",
        "    - name: arithmetic\n      source:\n        synthetic: { task: arithmetic, seed: 2, count: 10 }\n  output:",
    );
    assert!(twice.contains("spec.data"), "{twice}");
    let pod = "  pod:\n    resources:\n      requests: { memory: ";
    assert_eq!(findings(&format!("{RUN}{pod}1Gi }}\n")), [""; 0]);
    for quantity in ["1GB", "1GiG", "2 Gi", "half"] {
        let found = findings(&format!("{RUN}{pod}{quantity} }}\n"));
        assert!(found.len() == 1 && found[0].contains("spec.pod.resources"), "{quantity}: {found:?}");
    }
}

#[test]
fn a_template_in_a_config_map_is_pointed_out() {
    let run = RUN.replacen("cot-starter", "ours", 1);
    let from = |run: &str, digest: &str| {
        let source = "configMap: { name: templates, key: ours.yaml }";
        findings(&format!("{run}  templateFrom: {{ {source}, sha256: \"{digest}\" }}\n"))
    };
    let zeros = "0".repeat(64);
    let found = from(&run, &zeros);
    assert!(found.len() == 1 && found[0].contains(": notice"), "{found:?}");
    assert!(found[0].contains("the template is in the ConfigMap templates"), "{found:?}");
    assert!(from(RUN, &zeros).iter().any(|it| it.contains("give yours another one")));
    assert!(from(&run, "abc").iter().any(|it| it.contains("spec.templateFrom.sha256")));
}

#[test]
fn a_template_in_a_config_map_of_the_same_file_is_checked() {
    let run = RUN.replacen("cot-starter", "ours", 1);
    let with = |text: &str| {
        let source = "configMap: { name: templates, key: ours.yaml }";
        let digest = codex_configs::template_digest("defaults: [cot-starter]");
        let map = format!("metadata: {{ name: templates }}\ndata: {{ ours.yaml: {text:?} }}");
        findings(&format!(
            "{run}  templateFrom: {{ {source}, sha256: \"{digest}\" }}\n---\napiVersion: v1\nkind: ConfigMap\n{map}\n"
        ))
    };
    assert_eq!(with("defaults: [cot-starter]"), [""; 0]);
    let found = with("defaults: [cot-startr]");
    assert!(found.iter().any(|it| it.contains("spec.templateFrom.sha256")), "{found:?}");
    assert!(found.iter().any(|it| it.contains("did you mean cot-starter?")), "{found:?}");
}

#[test]
fn settings_of_servers_are_checked() {
    let pod = |more: &str| format!("{POD}  {more}\n");
    for right in [
        "serving: { device: cuda, maxNumSeqs: 16, maxNumBatchedTokens: 16, kvCacheTokens: 8589934592, prefixCacheTokens: 0 }",
        "serving: { maxNumBatchedTokens: 8, maxQueuedRequests: 0 }",
        "shadow: { of: live, samplePercent: 10, maxDivergence: \"0.01\" }\n  serving: { device: cpu, maxNumSeqs: 2 }",
        "rollout: { analysis: { maxFirstTokenSeconds: \"30\", maxInterTokenSeconds: \"2.5\", maxRefusalRate: \"0.05\" } }",
        "rollout: { analysis: { maxFirstTokenSeconds: \"0.001\", maxInterTokenSeconds: \"0.05\" } }",
        "rollout: { analysis: { agreement: { samplePercent: 10, maxDivergence: \"0\" } } }",
        "rollout: { steps: [99, 100], analysis: { agreement: { samplePercent: 100, maxDivergence: \"0.01\" } } }",
    ] {
        assert_eq!(findings(&pod(right)), [""; 0], "{right}");
    }
    for (wrong, told) in [
        ("serving: { maxNumSeqs: 16, maxNumBatchedTokens: 15 }", "spec.serving.maxNumBatchedTokens must be at least"),
        ("serving: { maxNumBatchedTokens: 7 }", "spec.serving.maxNumSeqs, which is 8 by default"),
        ("serving: { maxNumSeqs: 0 }", "spec.serving.maxNumSeqs"),
        ("serving: { kvCacheTokens: 0 }", "spec.serving.kvCacheTokens"),
        ("serving: { device: gpu }", "use one of auto, cpu, cuda"),
        (
            "shadow: { of: live, samplePercent: 10, maxDivergence: \"0.01\" }\n  serving: { rateLimit: 5/60s }",
            "spec.shadow excludes spec.autoscaling, spec.rollout and spec.serving.apiKeys",
        ),
        ("rollout: { analysis: { maxFirstTokenSeconds: \"30.1\" } }", "seconds above 0 and at most 30"),
        ("rollout: { analysis: { maxFirstTokenSeconds: \"0.0\" } }", "seconds above 0 and at most 30"),
        ("rollout: { analysis: { maxInterTokenSeconds: \"2.51\" } }", "seconds above 0 and at most 2.5"),
        ("rollout: { analysis: { maxRefusalRate: \"5\" } }", "a decimal from 0 to 1"),
        (
            "rollout: { analysis: { agreement: { samplePercent: 10, maxDivergence: \"1.01\" } } }",
            "spec.rollout.analysis.agreement.maxDivergence",
        ),
        ("rollout: { analysis: { agreement: { samplePercent: 0, maxDivergence: \"0.01\" } } }", "samplePercent"),
        (
            "rollout: { steps: [100], analysis: { agreement: { samplePercent: 10, maxDivergence: \"0.01\" } } }",
            "spec.rollout.analysis.agreement needs a step below 100",
        ),
        (
            "rollout: { analysis: { agreement: { samplePercent: 10, maxDivergence: \"0.01\" } } }\n  serving: { tls: { secret: a } }",
            "spec.serving.tls excludes spec.rollout.analysis.agreement",
        ),
    ] {
        let found = findings(&pod(wrong));
        assert!(found.len() == 1 && found[0].contains(told), "{wrong}: {found:?}");
    }
    assert!(one(EVALUATION, "  preset:", "  device: gpu\n  preset:").contains("use one of auto, cpu, cuda"));
    let given = EVALUATION.replacen("  preset:", "  device: cpu\n  preset:", 1);
    assert_eq!(findings(&given), [""; 0]);
}

#[test]
fn concurrency_policies_are_checked() {
    let with = |policy: &str| {
        findings(&format!("{EVALUATION}  schedule: {{ cron: '0 3 * * 1', concurrencyPolicy: {policy} }}\n"))
    };
    for right in ["Forbid", "Replace"] {
        assert_eq!(with(right), [""; 0], "{right}");
    }
    for wrong in ["Allow", "replace"] {
        let told = with(wrong).concat();
        let sentence =
            format!("schedule.concurrencyPolicy \"{wrong}\" is invalid: use Forbid or Replace; Allow is not supported");
        assert!(told.contains("spec.schedule.concurrencyPolicy: ") && told.contains(&sentence), "{told}");
    }
    // A cycle is not replaced.
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/samples/flywheel/weekly.yaml");
    let weekly = fs::read_to_string(path).unwrap();
    let schedule = "    schedule:\n";
    let told = one(&weekly, schedule, &format!("{schedule}      concurrencyPolicy: Replace\n"));
    assert!(told.contains("spec.redeploy.schedule.concurrencyPolicy must be Forbid, because a cycle "), "{told}");
}

#[test]
fn ids_of_pods_are_checked() {
    for manifest in [RUN, EVALUATION, POD] {
        let with = |ids: &str| findings(&format!("{manifest}  pod: {{ securityContext: {{ {ids} }} }}\n"));
        let right = "runAsUser: 1000, runAsGroup: 0, fsGroup: 2147483647, supplementalGroups: [0, 5]";
        assert_eq!(with(right), [""; 0]);
        for (wrong, field) in [
            ("runAsUser: 0", "spec.pod.securityContext.runAsUser"),
            ("runAsGroup: -1", "spec.pod.securityContext.runAsGroup"),
            ("fsGroup: 2147483648", "spec.pod.securityContext.fsGroup"),
            ("supplementalGroups: [-1]", "spec.pod.securityContext.supplementalGroups[0]"),
            ("runAsNonRoot: false", "spec.pod.securityContext.runAsNonRoot"),
        ] {
            let found = with(wrong);
            assert!(found.len() == 1 && found[0].contains(field), "{wrong}: {found:?}");
        }
    }
}

#[test]
fn bases_are_checked() {
    let with = |base: &str| findings(&format!("{RUN}  base: {base}\n"));
    let hub = |fields: &str| with(&format!("{{ huggingFace: {{ {fields} }} }}"));
    let token = "tokenSecret: { name: hugging-face, key: token }";
    for fields in [
        "repository: HuggingFaceTB/SmolLM2-135M_x.y, revision: main",
        "repository: a/b, revision: refs/pr/1, endpoint: 'http://hub.example:8080/sub/'",
        &format!("repository: a/b, revision: v1.0+x, endpoint: 'https://hub.example', {token}"),
    ] {
        assert_eq!(hub(fields), [""; 0], "{fields}");
    }
    for (fields, told) in [
        ("repository: a/b".to_owned(), "revision"),
        ("repository: small, revision: main".to_owned(), "an owner and a name"),
        ("repository: a/b/c, revision: main".to_owned(), "an owner and a name"),
        ("repository: a/b..c, revision: main".to_owned(), "an owner and a name"),
        ("repository: a./b, revision: main".to_owned(), "an owner and a name"),
        ("repository: a/b, revision: a//b".to_owned(), "a branch, a tag or a commit"),
        ("repository: a/b, revision: ../a".to_owned(), "a branch, a tag or a commit"),
        ("repository: a/b, revision: a/".to_owned(), "a branch, a tag or a commit"),
        ("repository: a/b, revision: main, endpoint: 'https://me:pw@hub'".to_owned(), "an address without a user"),
        ("repository: a/b, revision: main, endpoint: 'https://hub?a=b'".to_owned(), "an address without a user"),
        ("repository: a/b, revision: main, endpoint: 'file:///hub'".to_owned(), "an address without a user"),
        (
            format!("repository: a/b, revision: main, endpoint: 'http://hub.example', {token}"),
            "must begin with https:// if tokenSecret is set",
        ),
    ] {
        let found = hub(&fields);
        assert!(found.len() == 1 && found[0].contains(told), "{fields}: {found:?}");
    }
    let claim = "persistentVolumeClaim: { claimName: given }";
    let signer = "signedBy: { configMap: { name: signers, key: team.pem } }";
    assert_eq!(with(&format!("{{ {claim}, {signer} }}")), [""; 0]);
    let both = with(&format!("{{ {claim}, huggingFace: {{ repository: a/b, revision: main }} }}"));
    assert!(both.len() == 1 && both[0].contains("exactly one of persistentVolumeClaim, trainingRun and huggingFace"));
    let run = with(&format!("{{ trainingRun: {{ name: b }}, {signer} }}"));
    assert!(run.len() == 1 && run[0].contains("must be absent with spec.base.trainingRun"), "{run:?}");
}

#[test]
fn reproductions_are_checked() {
    let with = |fields: &str| findings(&format!("{RUN}{fields}"));
    assert_eq!(with("  reproduces: { name: other }\n"), [""; 0]);
    let told = with("  reproduces: { name: cot }\n").concat();
    assert!(told.contains("spec.reproduces.name is the TrainingRun itself"), "{told}");
    let told = with("  reproduces: { name: other }\n  pod: { image: mine }\n").concat();
    assert!(told.contains("spec.pod.image must be absent with spec.reproduces"), "{told}");
    let told = with("  reproduces: { name: Other }\n").concat();
    assert!(told.contains("lower-case letters"), "{told}");
}

#[test]
fn configurations_are_composed() {
    assert_eq!(
        one(RUN, "cot-starter", "cot-stater"),
        "7:3: TrainingRun cot: spec.template: template \"cot-stater\" is unknown (did you mean cot-starter?): \
         use one of answers-only, cot-padded, cot-plus, cot-starter, lora"
    );
    let setting = one(RUN, "max_steps=100", "max_stepz=100");
    assert!(setting.contains("max_stepz") && setting.contains("max_steps"), "{setting}");
    let method = one(RUN, "training.max_steps=100", "training.method=lora");
    assert!(method.ends_with("training.method is lora: it needs a base; set spec.base, or write sft"), "{method}");
    let method = one(RUN, "training.max_steps=100", "training.method=dpo");
    assert!(method.contains("synthetic tasks have no rejected responses"), "{method}");
    let preset = one(EVALUATION, "preset: cot-lite", "preset: cotlite");
    assert!(preset.starts_with("7:3: Evaluation lite: spec.preset: preset \"cotlite\" is unknown"), "{preset}");
}

#[test]
fn files_of_many_objects_are_read() {
    let validator = Validator::new().unwrap();
    let other = "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: a }\n";
    let checked = validator.check(&format!("\u{feff}---\n{other}---\n# nothing\n---\n{RUN}---\n{EVALUATION}"));
    assert_eq!(checked, Checked { objects: 2, others: 1, findings: vec![] });
    let indented = format!("    {}\n", RUN.trim_end().replace('\n', "\n    "));
    let list = format!("apiVersion: v1\nkind: List\nitems:\n  - \n{}", indented.replace("cot-starter", "none"));
    let checked = validator.check(&list);
    assert_eq!((checked.objects, checked.findings.len()), (1, 1), "{checked:?}");
    assert_eq!(checked.findings[0].position.line, 11);
    let json = serde_json::to_string(&serde_yaml::from_str::<Value>(RUN).unwrap()).unwrap();
    assert_eq!(validator.check(&json).objects, 1);
}

#[test]
fn what_is_no_yaml_is_refused_with_its_place() {
    for (text, told) in [
        ("a: [1", "no valid YAML: "),
        ("a: 1\na: 2\n", "no valid YAML: "),
        ("a:\n\t- 1\n", "no valid YAML: "),
        ("- 1\n", "an object needs the fields apiVersion and kind, both strings"),
        ("a: &a { b: 1 }\nc:\n  <<: *a\n", "the merge key << is not part of YAML 1.2"),
    ] {
        let found = findings(text);
        assert!(found.len() == 1 && found[0].contains(told), "{text}: {found:?}");
    }
}

#[test]
fn plain_scalars_are_what_kubectl_reads() {
    let read = |text: &str| document::read(&format!("a: {text}\n")).unwrap()[0].value["a"].clone();
    for (text, value) in [
        ("yes", Value::Bool(true)),
        ("off", Value::Bool(false)),
        ("n", Value::Bool(false)),
        ("'yes'", Value::from("yes")),
        ("012", Value::from(10)),
        ("0o12", Value::from(10)),
        ("0x1f", Value::from(31)),
        ("1_000", Value::from(1000)),
        ("-7", Value::from(-7)),
        ("1e3", Value::from(1000.0)),
        ("0.5", Value::from(0.5)),
        ("0D_base_", Value::from("0D_base_")),
        ("500m", Value::from("500m")),
        ("1Gi", Value::from("1Gi")),
        ("~", Value::Null),
        ("!!str 7", Value::from("7")),
        ("2026-01-31", Value::from("2026-01-31")),
    ] {
        assert_eq!(read(text), value, "{text}");
    }
}

const POLICY: &str = "\
apiVersion: codex-ml.dev/v1alpha1
kind: PromotionPolicy
metadata:
  name: guard
spec:
  rules:
    - ring: main
      requires: { ring: 0D_base_ }
      minimumTimeInRing: 24h
      requiredEvaluations:
        - name: m1
          gates:
            - { metric: exact_match, min: \"0.95\" }
";
const SIGN_OFF: &str = "\
apiVersion: codex-ml.dev/v1alpha1
kind: SignOff
metadata:
  name: by-ada
spec:
  evaluation: lite
  by: ada@example.com
  reason: read the report
  modelDigest: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
  reportDigest: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
";

#[test]
fn policies_and_sign_offs_are_checked() {
    assert_eq!(findings(POLICY), [""; 0]);
    assert_eq!(findings(&POLICY.replace("kind: P", "kind: ClusterP")), [""; 0]);
    assert_eq!(findings(&POLICY.replace("minimumTimeInRing: 24h", "attestations: [slsaProvenance]")), [""; 0]);
    assert_eq!(findings(SIGN_OFF), [""; 0]);
    let weighed = |evidence: &str, traces: &str| {
        format!("  readiness: {{ evidence: \"{evidence}\", traces: \"{traces}\", deployment: \"0\" }}\n  rules:\n")
    };
    for (evidence, traces) in [("0.5", "0.5"), ("1", "0"), ("0.333333", "0.666667")] {
        assert_eq!(findings(&POLICY.replace("  rules:\n", &weighed(evidence, traces))), [""; 0]);
    }
    for (from, to, said) in [
        ("ring: 0D_base_", "ring: main", "rules[].requires.ring must come before rules[].ring"),
        (
            "minimumTimeInRing: 24h",
            "minimumTimeInRing: a day",
            "minimumTimeInRing \"a day\" is invalid: use days, hours",
        ),
        ("      requires: { ring: 0D_base_ }\n", "", "rules[].minimumTimeInRing needs rules[].requires"),
        (
            "    - ring: main\n",
            "    - { ring: main, signOffs: { count: 1 } }\n    - ring: main\n",
            "must name each ring once",
        ),
        (
            "        - name: m1\n",
            "        - { name: m1, gates: [{ metric: exact_match, min: \"1\" }] }\n        - name: m1\n",
            "must be unique",
        ),
        ("min: \"0.95\"", "min: \"0.95\", max: \"1\"", "exactly one of min, max"),
        ("minimumTimeInRing: 24h", "signOffs: { count: 0 }", "count"),
        ("minimumTimeInRing: 24h", "attestations: [provenance]", "attestations[0]"),
        (
            "  rules:\n",
            weighed("0.5", "0.6").as_str(),
            "readiness is invalid: write evidence, traces and deployment as decimals",
        ),
        ("  rules:\n", weighed("0.5", "-0.5").as_str(), "that sum to 1"),
        ("  rules:\n", weighed("0.5", "half").as_str(), "that sum to 1"),
    ] {
        let found = one(POLICY, from, to);
        assert!(found.contains(said), "{to}: {found}");
    }
    for (from, to, said) in [
        ("  evaluation: lite\n", "", "exactly one of evaluation and reasoningPod"),
        ("evaluation: lite", "evaluation: lite\n  reasoningPod: rc", "exactly one of evaluation and reasoningPod"),
        ("modelDigest: aa", "modelDigest: AA", "modelDigest"),
        ("  reason: read the report\n", "", "reason"),
    ] {
        let found = one(SIGN_OFF, from, to);
        assert!(found.contains(said), "{to}: {found}");
    }
}

#[test]
fn objects_of_a_file_are_returned_only_if_all_are_valid() {
    let validator = Validator::new().unwrap();
    let all = validator
        .objects(&format!("{POLICY}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{}}\n---\n{SIGN_OFF}"))
        .unwrap();
    let kinds: Vec<_> = all.iter().map(|object| object["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["PromotionPolicy", "SignOff"]);
    assert_eq!(validator.objects(&POLICY.replace("24h", "soon")).unwrap_err().len(), 1);
}
