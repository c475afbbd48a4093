use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::{
    canonical::canonical,
    digest::{ConfigDigest, DataDigest, GatesDigest, ModelDigest, OmsPayloadDigest, ReportDigest},
    manifest::{File, Manifest},
    promotion::{Adopted, Attested, Base, Evaluation, Gate, HeldPolicy, Object, Reasons, Reported, Training},
};

fn digest(text: &str) -> Sha256 {
    Sha256::of(text)
}

fn configuration() -> Value {
    json!({ "schemaVersion": 1, "kind": "training", "spec": { "training": { "learning_rate": 0.001, "max_steps": 2000 } } })
}

fn gate(metric: &str, min: &str) -> Gate {
    let gate = json!({
        "metric": metric, "min": min, "confidence": "0.95", "minSamples": 500, "value": "0.99", "n": 500, "verdict": "Passed",
    });
    serde_json::from_value(gate).unwrap()
}

fn evaluation(name: &str, gates: Vec<Gate>) -> Evaluation {
    Evaluation {
        name: name.to_owned(),
        uid: format!("{name}-uid"),
        preset: "cot-lite".to_owned(),
        config_digest: None,
        report_digest: ReportDigest(digest("report")),
        gates_digest: GatesDigest(digest("gates")),
        data: BTreeMap::from([("problems".to_owned(), DataDigest(digest("problems")))]),
        image_id: String::new(),
        completed_at: "2026-11-28T09:00:00Z".to_owned(),
        evidence: None,
        outcomes: None,
        metrics: BTreeMap::new(),
        gates,
        references: Vec::new(),
        golden_tokens: None,
        reads: None,
    }
}

/// The files of the model.
fn files() -> Vec<File> {
    let file = |path: &str| File { path: path.to_owned(), size: 7, sha256: digest(path) };
    vec![file("config.json"), file("model.safetensors")]
}

fn model() -> ModelDigest {
    Manifest::of_hashed(files()).unwrap().digest()
}

fn promotion() -> Promotion {
    let training = Training {
        run: Object { name: "cot".to_owned(), uid: "77aa".to_owned() },
        attested: Attested {
            config_digest: ConfigDigest(Sha256::of(canonical(&configuration()))),
            image_id: format!("registry.example.com/codex@sha256:{}", digest("image")),
            completed_at: Some("2026-11-28T08:00:00Z".to_owned()),
            data: None,
        },
        reported: Some(Reported { data: BTreeMap::from([("arithmetic".to_owned(), DataDigest(digest("data")))]) }),
        base: Some(Base {
            model: ModelDigest(digest("base")),
            source: Some("models/bases/small".to_owned()),
            signer: None,
        }),
        device: None,
        adapter: Some(ModelDigest(digest("adapter"))),
        adopted: None,
    };
    let reasons = Reasons {
        ring: "0D_base_".to_owned(),
        namespace: "team".to_owned(),
        oms_payload: OmsPayloadDigest(digest("oms")),
        training,
        evaluations: vec![evaluation("lite", vec![gate("exact_match", "0.95"), gate("trace_coverage", "0.90")])],
        policies: Vec::new(),
        earlier: Vec::new(),
        sign_offs: Vec::new(),
        parity: Vec::new(),
    };
    Promotion { model: model(), reasons }
}

fn build() -> Build {
    Build {
        parameters: json!({ "template": "cot-starter", "seed": 1, "configuration": configuration() }),
        started_at: Some("2026-11-28T07:00:00Z".to_owned()),
        computation: Some(computation()),
        files: files(),
    }
}

fn computation() -> Computation {
    Computation { program: digest("program"), engine: "cpu-f32".to_owned(), kernels: "x86_64 avx512".to_owned() }
}

/// The promotion of a run that adopted the model of the former run `44bb`.
fn adopting() -> Promotion {
    let mut promotion = promotion();
    promotion.reasons.training.adopted = Some(Adopted {
        run: Object { name: "cot-before".to_owned(), uid: "44bb".to_owned() },
        image_id: format!("registry.example.com/codex@sha256:{}", digest("its image")),
        completed_at: Some("2026-10-01T08:00:00Z".to_owned()),
        provenance: digest("its provenance"),
    });
    promotion
}

fn held(name: &str) -> HeldPolicy {
    HeldPolicy { kind: "PromotionPolicy".to_owned(), name: name.to_owned(), uid: "u".to_owned(), rule: digest(name) }
}

fn value(unsigned: &Unsigned) -> Value {
    serde_json::from_slice(&unsigned.payload).unwrap()
}

fn schema(kind: AttestationKind) -> Value {
    let name = kind.entry().replace(".json", ".schema.json");
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Compares a value with the keywords of JSON Schema that these schemas use. Of patterns, it knows those for digests and URIs.
fn fault(root: &Value, schema: &Value, found: &Value, at: &str) -> Option<String> {
    let schema = match schema["$ref"].as_str() {
        Some(reference) => root.pointer(reference.trim_start_matches('#')).unwrap(),
        None => schema,
    };
    let is = |name: &str| match name {
        "object" => found.is_object(),
        "array" => found.is_array(),
        "string" => found.is_string(),
        other => panic!("the type {other} is not known here"),
    };
    if schema["type"].as_str().is_some_and(|name| !is(name)) {
        return Some(format!("{at} is not of type {}", schema["type"]));
    }
    if schema.get("const").is_some_and(|one| one != found) {
        return Some(format!("{at} is not {}", schema["const"]));
    }
    if schema["enum"].as_array().is_some_and(|all| !all.contains(found)) {
        return Some(format!("{at} is none of {}", schema["enum"]));
    }
    let text = found.as_str().unwrap_or_default();
    let fits = match schema["pattern"].as_str() {
        None => true,
        Some("^[0-9a-f]{64}$") => text.parse::<Sha256>().is_ok(),
        Some("^[a-z][a-z0-9+.-]*:[^ ]+$") => text.split_once(':').is_some_and(|(scheme, rest)| {
            !rest.is_empty() && !rest.contains(' ') && scheme.bytes().all(|byte| byte.is_ascii_lowercase())
        }),
        Some("^[0-9]+[.][0-9]+$") => text == "1.0",
        Some(time) if time.starts_with("^[0-9]{4}-") => text.ends_with('Z') && text.parse::<jiff::Timestamp>().is_ok(),
        Some(other) => panic!("the pattern {other} is not known here"),
    };
    if !fits {
        return Some(format!("{at} is {text:?}"));
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if found.get(name).is_none() {
            return Some(format!("{at}.{name} is missing"));
        }
    }
    for (name, inner) in found.as_object().into_iter().flatten() {
        let here = format!("{at}.{name}");
        match schema["properties"].get(name) {
            Some(property) => {
                if let Some(fault) = fault(root, property, inner, &here) {
                    return Some(fault);
                }
            }
            None if schema["additionalProperties"] == json!(false) => return Some(format!("{here} is not known")),
            None => {}
        }
    }
    let items = found.as_array().into_iter().flatten().enumerate();
    let least = schema["minItems"].as_u64().unwrap_or_default();
    if found.as_array().is_some_and(|items| (items.len() as u64) < least) {
        return Some(format!("{at} has too few items"));
    }
    items
        .filter(|_| schema.get("items").is_some())
        .find_map(|(index, inner)| fault(root, &schema["items"], inner, &format!("{at}[{index}]")))
}

#[test]
fn each_statement_fits_its_specification() {
    let mut several = promotion();
    several.reasons.policies = vec![held("b"), held("a")];
    let mut one = promotion();
    one.reasons.policies = vec![held("a")];
    for promotion in [promotion(), one, several, adopting()] {
        for unsigned in attestations(&promotion, &build()) {
            let (schema, found) = (schema(unsigned.kind), value(&unsigned));
            assert_eq!(fault(&schema, &schema, &found, "statement"), None, "{found:#}");
            assert_eq!(found["predicateType"], unsigned.kind.predicate_type());
            assert_eq!(found["subject"], json!([{ "name": "model", "digest": { "sha256": model() } }]));
            // What lacks a required field does not fit.
            let mut wrong = found.clone();
            wrong["predicate"] = json!({});
            assert!(fault(&schema, &schema, &wrong, "statement").is_some());
        }
    }
}

#[test]
fn provenance_says_what_the_run_was_given() {
    let [provenance, tests, _, summary] = attestations(&promotion(), &build());
    let provenance = value(&provenance);
    let definition = &provenance["predicate"]["buildDefinition"];
    assert_eq!(definition["externalParameters"]["template"], "cot-starter");
    let names: Vec<_> = definition["resolvedDependencies"].as_array().unwrap().iter().map(|it| &it["name"]).collect();
    assert_eq!(names, ["configuration", "image", "base", "data/arithmetic"]);
    assert_eq!(
        provenance["predicate"]["runDetails"]["metadata"],
        json!({ "invocationId": "77aa", "startedOn": "2026-11-28T07:00:00Z", "finishedOn": "2026-11-28T08:00:00Z" })
    );
    let on = format!("at confidence 0.95 with minSamples 500, problems {}", digest("problems").short());
    assert_eq!(
        value(&tests)["predicate"]["passedTests"],
        json!([format!("exact_match >= 0.95 {on}"), format!("trace_coverage >= 0.9 {on}")])
    );
    let summary = value(&summary);
    assert_eq!(summary["predicate"]["policy"]["uri"], "https://codex-ml.dev/policies/none");
    assert_eq!(summary["predicate"]["verifiedLevels"], json!(["SLSA_BUILD_LEVEL_1", "CODEX_RING_0D_base_"]));
}

/// Nothing claims that a run trained what it adopted.
#[test]
fn provenance_of_an_adopted_model_names_the_run_and_the_image_that_computed_it() {
    let promotion = adopting();
    let build = Build { started_at: None, ..build() };
    let [provenance, ..] = attestations(&promotion, &build);
    let read = Attestation::read(&provenance.payload, &promotion).unwrap();
    let told = read.told(&promotion);
    assert!(told.contains("in the run 44bb from 4 dependencies, and the run 77aa adopted it"), "{told}");
    let provenance = value(&provenance);
    assert_eq!(
        provenance["predicate"]["runDetails"]["metadata"],
        json!({ "invocationId": "44bb", "finishedOn": "2026-10-01T08:00:00Z" })
    );
    let definition = &provenance["predicate"]["buildDefinition"];
    assert_eq!(
        definition["internalParameters"],
        json!({
            "namespace": "team", "trainingRun": "cot-before", "dataIsAttested": false,
            "adoptedBy": { "name": "cot", "uid": "77aa" },
        })
    );
    assert_eq!(definition["resolvedDependencies"][1]["digest"]["sha256"], json!(digest("its image")));
    // Neither statement stands in for the other.
    let mut own = promotion.clone();
    own.reasons.training.adopted = None;
    let [foreign, ..] = attestations(&own, &build);
    let told = Attestation::read(&foreign.payload, &promotion).unwrap_err();
    assert!(told.contains("invocationId is \"77aa\""), "{told}");
    let read = Promotion::read(&promotion.payload()).unwrap();
    assert_eq!(read, promotion);
}

#[test]
fn provenance_records_what_another_run_is_compared_with() {
    let promotion = promotion();
    let recorded = |build: &Build| {
        let [provenance, tests, ..] = attestations(&promotion, build);
        assert_eq!(Attestation::read(&tests.payload, &promotion).unwrap().recorded_build(), None);
        Attestation::read(&provenance.payload, &promotion).unwrap().recorded_build()
    };
    let expected =
        RecordedBuild { parameters: json!({ "template": "cot-starter", "seed": 1 }), computation: computation() };
    assert_eq!(recorded(&build()), Some(expected));
    assert_eq!(recorded(&Build { computation: None, ..build() }), None, "an earlier controller said nothing");
}

#[test]
fn names_uids_and_orders_that_the_record_does_not_name_change_the_summary_alone() {
    let of = |promotion: &Promotion| attestations(promotion, &build()).map(|it| it.payload);
    let [provenance, tests, bom, _] = of(&promotion());
    let mut other = promotion();
    let reasons = &mut other.reasons;
    (reasons.evaluations[0].name, reasons.evaluations[0].uid) = ("again".to_owned(), "again-uid".to_owned());
    reasons.evaluations[0].completed_at = "2026-11-29T09:00:00Z".to_owned();
    reasons.evaluations[0].gates.reverse();
    reasons.evaluations[0].gates[0].min = Some("0.9".to_owned());
    let [same_provenance, same_tests, same_bom, _] = of(&other);
    assert_eq!((provenance, tests, bom), (same_provenance, same_tests, same_bom));
}

#[test]
fn what_was_signed_is_read_and_belongs_together() {
    let promotion = promotion();
    let [provenance, tests, bom, summary] =
        attestations(&promotion, &build()).map(|it| Attestation::read(&it.payload, &promotion).unwrap());
    assert_eq!([provenance.kind, tests.kind, bom.kind, summary.kind], AttestationKind::ALL);
    summary.check_inputs([&provenance, &tests, &bom, &summary]).unwrap();
    let mut other = build();
    other.parameters["seed"] = json!(2);
    let [foreign, ..] = attestations(&promotion, &other);
    let foreign = Attestation::read(&foreign.payload, &promotion).unwrap();
    let told = summary.check_inputs([&foreign]).unwrap_err();
    assert!(told.starts_with("its inputAttestations name another slsaProvenance: "), "{told}");
}

/// Returns the model of an ML-BOM.
fn component(statement: &mut Value) -> &mut Value {
    &mut statement["predicate"]["metadata"]["component"]
}

#[test]
fn an_ml_bom_has_files_data_base_adapter_and_the_interval_of_the_verdict() {
    let mut promotion = promotion();
    let gate = &mut promotion.reasons.evaluations[0].gates[0];
    (gate.lower, gate.upper) = (Some("0.97".to_owned()), Some("1".to_owned()));
    let mut bom = value(&attestations(&promotion, &build())[2])["predicate"].clone();
    assert!(bom["serialNumber"].as_str().unwrap().starts_with("urn:uuid:"));
    let names = |list: &Value| list.as_array().unwrap().iter().map(|it| it["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&bom["components"]), ["arithmetic", "problems"]);
    let model = bom["metadata"]["component"].take();
    assert_eq!((&model["name"], &model["version"]), (&json!("cot"), &json!(promotion.model)));
    assert_eq!(names(&model["components"]), ["config.json", "model.safetensors"]);
    assert_eq!(
        model["pedigree"]["ancestors"][0],
        json!({ "type": "machine-learning-model", "name": "models/bases/small", "version": digest("base") })
    );
    let metrics = &model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"];
    assert_eq!(
        metrics[0],
        json!({
            "type": "exact_match", "slice": format!("cot-lite, problems {}", digest("problems")), "value": "0.99",
            "confidenceInterval": { "lowerBound": "0.97", "upperBound": "1" },
        })
    );
    let told = |name: &str| model["properties"].as_array().unwrap().iter().filter(|it| it["name"] == name).count();
    assert_eq!((told("codex:ring"), told("codex:adapterDigest"), told("codex:gate")), (1, 1, 2));
}

/// A change of a statement, by kind, and what the refusal says.
#[test]
fn a_statement_about_something_else_is_refused() {
    use AttestationKind::{MlBom, SlsaProvenance, TestResult, VerificationSummary};
    type Edit = fn(&mut Value);
    let changes: [(AttestationKind, Edit, &str); 27] = [
        (SlsaProvenance, |it| it["subject"][0]["digest"]["sha256"] = json!(digest("x")), "made for another model"),
        (SlsaProvenance, |it| it["predicateType"] = json!("https://slsa.dev/provenance/v0.2"), "its predicate type is"),
        (SlsaProvenance, |it| it["predicate"]["buildDefinition"]["buildType"] = json!("x"), "buildType is \"x\""),
        (SlsaProvenance, |it| it["predicate"]["runDetails"]["builder"]["id"] = json!("x"), "builder.id is \"x\""),
        (
            SlsaProvenance,
            |it| it["predicate"]["runDetails"]["metadata"]["invocationId"] = json!("other"),
            "invocationId is \"other\"",
        ),
        (
            SlsaProvenance,
            |it| {
                let list = it["predicate"]["buildDefinition"]["resolvedDependencies"].as_array_mut().unwrap();
                list.pop();
            },
            "lacks data/arithmetic",
        ),
        (
            SlsaProvenance,
            |it| {
                let list = it["predicate"]["buildDefinition"]["resolvedDependencies"].as_array_mut().unwrap();
                list.push(descriptor("data/more", digest("more")));
            },
            "names data/more",
        ),
        (
            SlsaProvenance,
            |it| it["predicate"]["buildDefinition"]["externalParameters"]["configuration"]["kind"] = json!("x"),
            "externalParameters.configuration has the digest",
        ),
        (
            SlsaProvenance,
            |it| it["predicate"]["buildDefinition"]["internalParameters"]["dataIsAttested"] = json!("x"),
            "buildDefinition.internalParameters is not that of the promotion",
        ),
        (
            SlsaProvenance,
            |it| it["predicate"]["runDetails"]["metadata"]["finishedOn"] = json!("2030-01-01T00:00:00Z"),
            "runDetails.metadata.finishedOn is not that of the promotion",
        ),
        (
            VerificationSummary,
            |it| it["predicate"]["verifiedLevels"][0] = json!("SLSA_BUILD_LEVEL_3"),
            "verifiedLevels are not",
        ),
        (
            VerificationSummary,
            |it| it["predicate"]["timeVerified"] = json!("2030-01-01T00:00:00Z"),
            "timeVerified is not the time",
        ),
        (MlBom, |it| it["predicate"]["bomFormat"] = json!("SPDX"), "bomFormat is \"SPDX\""),
        (MlBom, |it| it["predicate"]["specVersion"] = json!("1.4"), "specVersion is \"1.4\""),
        (MlBom, |it| drop(component(it)["components"].as_array_mut().unwrap().pop()), "are the files of the model "),
        (MlBom, |it| component(it)["components"][0]["name"] = json!("../x"), "are not the files of a model: "),
        (MlBom, |it| component(it)["components"][0]["properties"] = json!([]), "components[0] needs a name"),
        (
            MlBom,
            |it| {
                let metrics = &mut component(it)["modelCard"]["quantitativeAnalysis"]["performanceMetrics"];
                metrics[0]["confidenceInterval"] = json!({ "lowerBound": "0.99", "upperBound": "1" });
            },
            "performanceMetrics is not that of the promotion",
        ),
        (MlBom, |it| it["predicate"]["components"] = json!([]), "its components is not that of the promotion"),
        (MlBom, |it| drop(component(it)["pedigree"].take()), "pedigree is not that of the promotion"),
        (TestResult, |it| it["predicate"]["result"] = json!("FAILED"), "result is \"FAILED\""),
        (TestResult, |it| it["predicate"]["failedTests"] = json!(["bleu"]), "failedTests is not empty"),
        (TestResult, |it| it["predicate"]["passedTests"] = json!(["bleu"]), "passedTests are not the gates"),
        (VerificationSummary, |it| it["predicate"]["verificationResult"] = json!("FAILED"), "is \"FAILED\""),
        (
            VerificationSummary,
            |it| {
                let uri = it["predicate"]["resourceUri"].as_str().unwrap().replace("0D_base_", "main");
                it["predicate"]["resourceUri"] = json!(uri);
            },
            "resourceUri is \"https://codex-ml.dev/rings/main/",
        ),
        (
            VerificationSummary,
            |it| it["predicate"]["policy"] = json!({ "uri": "https://example.com/lax" }),
            "policy.uri is \"https://example.com/lax\"",
        ),
        (
            VerificationSummary,
            |it| it["predicate"]["inputAttestations"] = json!([]),
            "inputAttestations lack signature",
        ),
    ];
    let promotion = promotion();
    for (kind, edit, why) in changes {
        let signed = attestations(&promotion, &build());
        let mut statement = value(signed.iter().find(|it| it.kind == kind).unwrap());
        edit(&mut statement);
        let told = Attestation::read(&canonical(&statement), &promotion).unwrap_err();
        assert!(told.contains(why), "{kind}: {told}");
    }
}

#[test]
fn a_summary_names_the_policies() {
    let mut promotion = promotion();
    let policy = |promotion: &Promotion| value(&attestations(promotion, &build())[3])["predicate"]["policy"].clone();
    promotion.reasons.policies = vec![held("a")];
    let one = policy(&promotion);
    assert_eq!(one["uri"], "https://codex-ml.dev/policies/PromotionPolicy/a/rules/0D_base_");
    assert_eq!(one["digest"]["sha256"], json!(digest("a")));
    promotion.reasons.policies = vec![held("b"), held("a")];
    let several = policy(&promotion);
    assert_eq!(several["annotations"]["policies"][0]["name"], "a");
    promotion.reasons.policies.reverse();
    assert_eq!(policy(&promotion), several, "their order does not count");
    let [.., summary] = attestations(&promotion, &build());
    promotion.reasons.policies[0].rule = digest("another rule");
    let told = Attestation::read(&summary.payload, &promotion).unwrap_err();
    assert!(told.contains("policy.digest.sha256 is"), "{told}");
}

#[test]
fn kinds_have_names() {
    for kind in AttestationKind::ALL {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
    }
}
