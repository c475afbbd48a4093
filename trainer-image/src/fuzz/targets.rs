//! What reads bytes of others, each with valid inputs.

use std::{fs, path::Path};

use codex_configs::{DataFormat, DataSettings, Device, Sources, explain_training, is_settings, sweep::Axis};
use codex_fuzz::{TEXT, Target};
use codex_provenance::{
    ModelDigest, Sha256,
    attestation::{Attestation, Build, attestations as statements_beside},
    manifest::Manifest,
    oms,
    promotion::Promotion,
};
use codex_signing::{
    bundle,
    key::{PrivateKey, PublicKey, Signer as _},
    keyless::Root,
    log, trust,
};
use codex_validate::Validator;
use serde_json::{Value, json};

use crate::{
    checklist::Survey,
    evaluation::Baseline,
    import,
    model::{Generator, ModelFiles, read_directory},
    plugins::{Kind, Plugin, testing},
    register,
    safety::{Direction, Rules},
    serving,
    tasks::parse_free_records,
    text::{Message, Role, Tokenizer},
    training,
    verify::tests::promotion,
};

fn file(path: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

pub(super) fn json() -> Target {
    let seeds = vec![
        file("src/text/fixtures/smollm2/tokenizer_config.json"),
        br#"[{"a": [1, -2.5e3, null, "\u00e9"]}]"#.to_vec(),
    ];
    Target::new("json", seeds, TEXT, |bytes| codex_json::from_slice::<Value>(bytes).is_ok())
}

fn report() -> Value {
    json!({
        "schemaVersion": 1, "kind": "TrainingRun", "namespace": "team", "name": "a", "objectUid": "a-uid", "podUid": "pod-uid",
        "attempt": 1, "seq": 7, "configDigest": Sha256::of("config"),
        "state": {"training": {"stage": "Running", "progress": {
            "step": 7, "totalSteps": 100, "loss": 1.5, "tokensPerSecond": 10.0, "etaSeconds": 9,
        }}},
    })
}

pub(super) fn reports() -> Target {
    Target::new("reports", vec![report().to_string().into_bytes()], TEXT, |bytes| {
        let read: Result<codex_reports::Report, _> = serde_json::from_slice(bytes);
        read.is_ok_and(|report| report.contradicts(&report.clone()).is_none())
    })
}

pub(super) fn copies() -> Target {
    let copy = json!({
        "sequence": 7, "model": Sha256::of("model"), "prompt": [1, 2, 3], "promptText": "1+1", "limit": 64,
        "sampling": {"temperature": 0.7, "topP": 0.95, "topK": 0, "seed": 7}, "tokens": [4, 5], "stopped": false,
        "milliseconds": 12,
    });
    Target::new("copies", vec![copy.to_string().into_bytes()], TEXT, |bytes| {
        codex_json::from_slice::<codex_reports::RequestCopy>(bytes).is_ok()
    })
}

pub(super) fn manifests() -> Target {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/samples/real");
    let mut seeds: Vec<_> = fs::read_dir(samples).unwrap().map(|entry| entry.unwrap().path()).collect();
    seeds.retain(|path| path.extension().is_some_and(|ending| ending == "yaml"));
    seeds.sort();
    let validator = Validator::new().unwrap();
    Target::new("manifests", seeds.iter().map(|path| fs::read(path).unwrap()).collect(), TEXT, move |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        validator.check(text).findings.is_empty()
    })
}

pub(super) fn configurations() -> Target {
    let seeds = vec![b"training:\n  max_steps: 20\n  batch_size: 4\n".to_vec(), b"{training: {seed: 1}}\n".to_vec()];
    Target::new("configurations", seeds, TEXT, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let sources = Sources { group: Some("cot-starter"), config: Some(text), ..Sources::default() };
        match explain_training(&sources, 1, None) {
            Ok(explained) => !explained.leaves.is_empty() && is_settings(text),
            // Both seeds are read; whether they are complete matters less here.
            Err(error) => !error.to_string().is_empty(),
        }
    })
}

pub(super) fn overrides() -> Target {
    let seeds = vec![
        b"training.max_steps=20".to_vec(),
        b"~data\n+a.b=[1, 2]".to_vec(),
        b"metadata.owner=${training.max_steps}-${oc.env:USER,a}\n~training.stop_after\n++training.batch_size=8"
            .to_vec(),
        b"seed=range(1,3)\ntraining.learning_rate=choice(0.1,2e-3)\ntraining.dtype=glob(*)".to_vec(),
    ];
    Target::new("overrides", seeds, TEXT, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        let all: Vec<String> = text.lines().map(str::to_owned).collect();
        let swept = all.iter().all(|line| match Axis::parse(line) {
            Ok(axis) => !axis.values.is_empty(),
            Err(error) => !error.to_string().is_empty(),
        });
        let sources = Sources { group: Some("cot-starter"), overrides: &all, ..Sources::default() };
        match explain_training(&sources, 1, None) {
            Ok(explained) => swept && !explained.leaves.is_empty(),
            Err(error) => swept && !error.to_string().is_empty(),
        }
    })
}

pub(super) fn gguf() -> Target {
    Target::new("gguf", vec![import::tests::FILE.clone()], 14_000, |bytes| {
        let place = tempfile::tempdir().unwrap();
        let source = place.path().join("source.gguf");
        fs::write(&source, bytes).unwrap();
        import::import(&source, &place.path().join("out")).is_ok()
    })
}

fn trained() -> ModelFiles {
    read_directory(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/fixtures/trained")).unwrap()
}

/// A model directory one of whose files is the input.
fn model_with(name: &'static str, target_name: &'static str, head: usize) -> Target {
    let files = trained();
    Target::new(target_name, vec![files[name].clone()], head, move |bytes| {
        let mut files = files.clone();
        files.insert(name.to_owned(), bytes.to_vec());
        Generator::load(&files, 1, Device::Cpu).is_ok()
    })
}

pub(super) fn model_directories() -> Target {
    model_with("model.safetensors", "model_directories", 2_000)
}

pub(super) fn model_configurations() -> Target {
    model_with("config.json", "model_configurations", TEXT)
}

pub(super) fn tokenizers() -> Target {
    let families = ["smollm2", "llama3"].map(|family| file(&format!("src/text/fixtures/{family}/tokenizer.json")));
    let seeds = families.into_iter().chain([trained()["tokenizer.json"].clone()]).collect();
    Target::new("tokenizers", seeds, TEXT, |bytes| {
        let files = ModelFiles::from([("tokenizer.json".to_owned(), bytes.to_vec())]);
        let Ok(tokenizer) = Tokenizer::from_files(&files) else { return false };
        // A text may have no tokens in a mutated vocabulary.
        tokenizer.encode("12+7: Hello").and_then(|ids| tokenizer.decode(&ids)).map_or(true, |_| true)
    })
}

pub(super) fn templates() -> Target {
    let json = file("src/text/fixtures/smollm2/tokenizer.json");
    let message = |role, content: &str| Message { role, content: content.to_owned() };
    let messages = [message(Role::System, "Be brief."), message(Role::User, "Hello")];
    let seeds = vec![
        file("src/text/fixtures/smollm2/tokenizer_config.json"),
        br#"{"chat_template": "{% for it in messages %}{{ it.role | upper }}: {{ it.content.strip() }}\n{% endfor %}"}"#.to_vec(),
    ];
    Target::new("templates", seeds, TEXT, move |bytes| {
        let config = ("tokenizer_config.json".to_owned(), bytes.to_vec());
        let files = ModelFiles::from([("tokenizer.json".to_owned(), json.clone()), config]);
        Tokenizer::from_files(&files).and_then(|tokenizer| tokenizer.render_chat(&messages)).is_ok()
    })
}

pub(super) fn plugins() -> Target {
    Target::new("plugins", vec![testing::even(4)], TEXT, |bytes| {
        let loaded = [Kind::Metric, Kind::Filter].map(|kind| Plugin::load(bytes, kind));
        let [Ok(metric), Ok(filter)] = loaded else { return false };
        metric.metric("1+1:", "2", "#2$").is_ok() && filter.keeps("1+1:", "2").is_ok()
    })
}

pub(super) fn rules() -> Target {
    let rules = br#"
outputCap: 100
known: { secrets: redact, sql: block }
rules:
- { id: word, action: block, literal: "a.b", ignoreCase: true }
- { id: name, action: redact, regex: "Mr [A-Z]\\w+", on: [answer] }
"#;
    Target::new("rules", vec![rules.to_vec()], TEXT, |bytes| {
        Rules::parse(bytes).is_ok_and(|rules| {
            drop(rules.check("of Mr Smith", Direction::Answer));
            rules.check("a.b", Direction::Prompt).text.is_none()
        })
    })
}

/// Returns whether a file of this name has records, or preferences.
fn has_records(file: &str, bytes: &[u8], settings: &DataSettings) -> bool {
    [false, true].into_iter().any(|preferences| training::read_records(file, bytes, settings, preferences).is_ok())
}

fn examples(name: &'static str, file: &'static str, seeds: Vec<Vec<u8>>, head: usize) -> Target {
    let settings = training::data_settings(DataFormat::Auto);
    Target::new(name, seeds, head, move |bytes| has_records(file, bytes, &settings))
}

pub(super) fn records() -> Target {
    let line = br##"{"prompt": "1+1:", "response": "#2$", "difficulty": "easy", "category": "addition"}"##;
    let chat = br#"{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}"#;
    let texts = br#"{"prompt": "1+1:", "chosen": "2", "rejected": "3"}"#;
    let chats = br#"{"chosen": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}], "rejected": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "No"}]}"#;
    let seeds = vec![line.to_vec(), chat.to_vec(), texts.to_vec(), chats.to_vec(), [&line[..], b"\n", line].concat()];
    let settings = training::data_settings(DataFormat::Auto);
    Target::new("records", seeds, TEXT, move |bytes| {
        let free = parse_free_records("a.jsonl", bytes).is_ok();
        has_records("a.jsonl", bytes, &settings) || free
    })
}

pub(super) fn tables() -> Target {
    examples("tables", "a.csv", vec![b"prompt,response\n1+1:,#2$\n\"a \"\"b\"\"\",c\n".to_vec()], TEXT)
}

pub(super) fn parquet() -> Target {
    examples("parquet", "a.parquet", vec![file("src/training/data/fixtures/chat.parquet")], TEXT)
}

pub(super) fn predictions() -> Target {
    let seeds = vec![br#"{"prompt": "1+1:", "prediction": "2"}"#.to_vec()];
    Target::new("predictions", seeds, TEXT, |bytes| Baseline::parse("a.jsonl", bytes).is_ok())
}

fn signed() -> (PrivateKey, Vec<u8>) {
    let key = PrivateKey::generate().unwrap();
    let files = std::collections::BTreeMap::from([("model.safetensors".to_owned(), b"weights".to_vec())]);
    let manifest = Manifest::of_files(&files).unwrap();
    let bundle = key.sign(&oms::payload(&manifest, "a")).unwrap();
    (key, bundle)
}

pub(super) fn bundles() -> Target {
    let (key, bundle) = signed();
    Target::new("bundles", vec![bundle], TEXT, move |bytes| bundle::open(bytes, key.public()).is_ok())
}

pub(super) fn statements() -> Target {
    let (key, bundle) = signed();
    let payload = bundle::open(&bundle, key.public()).unwrap();
    Target::new("statements", vec![payload], TEXT, |bytes| {
        // What is read as a promotion was no statement about files.
        drop(Promotion::read(bytes));
        oms::Statement::read(bytes).is_ok_and(|statement| {
            drop(statement.check_listing(&[], ModelDigest(Sha256::of("other"))));
            true
        })
    })
}

pub(super) fn attestations() -> Target {
    let manifest = Manifest::of_files(&std::collections::BTreeMap::from([("a".to_owned(), "b")])).unwrap();
    let promotion = promotion(&manifest, b"payload", "lite", None);
    let parameters = json!({ "template": "cot-starter" });
    let build = Build { parameters, files: manifest.files.clone(), ..Build::default() };
    let seeds = statements_beside(&promotion, &build).map(|it| it.payload).into();
    Target::new("attestations", seeds, TEXT, move |bytes| {
        Attestation::read(bytes, &promotion).is_ok_and(|read| {
            drop(read.told(&promotion));
            read.check_inputs([&read]).is_ok()
        })
    })
}

/// A trusted root, and a bundle that an identity signed.
fn keyless() -> [Vec<u8>; 2] {
    let folder = "../provenance/signing/tests/fixtures/keyless";
    ["trusted_root.json", "dsse.sigstore.json"].map(|name| file(&format!("{folder}/{name}")))
}

pub(super) fn roots() -> Target {
    let [root, _] = keyless();
    Target::new("roots", vec![root], TEXT, |bytes| {
        std::str::from_utf8(bytes).is_ok_and(|text| Root::from_json(text).is_ok())
    })
}

pub(super) fn identities() -> Target {
    let [root, bundle] = keyless();
    let root = Root::from_json(&String::from_utf8(root).unwrap()).unwrap();
    Target::new("identities", vec![bundle], TEXT, move |bytes| root.identify(bytes).is_ok())
}

pub(super) fn logs() -> Target {
    let [root, bundle] = keyless();
    let keys = log::LogKeys::of_root(&String::from_utf8(root).unwrap()).unwrap();
    let bundle: Value = serde_json::from_slice(&bundle).unwrap();
    let proof = &bundle["verificationMaterial"]["tlogEntries"][0]["inclusionProof"];
    let checkpoint = proof["checkpoint"]["envelope"].as_str().unwrap().as_bytes().to_vec();
    let [entry] = &log::logged(&bundle).unwrap()[..] else { panic!("one entry") };
    let tile = [&u16::try_from(entry.len()).unwrap().to_be_bytes()[..], entry].concat();
    Target::new("logs", vec![checkpoint, tile], TEXT, move |bytes| {
        let tile =
            log::entries(bytes, 0, 1).map(|entries| entries.iter().any(|entry| !log::identities(entry).is_empty()));
        std::str::from_utf8(bytes).is_ok_and(|text| keys.open(text).is_ok()) || tile.unwrap_or_default()
    })
}

pub(super) fn keys() -> Target {
    let (key, _) = signed();
    let public = key.public().to_pem().as_bytes().to_vec();
    let private = key.to_pem().unwrap().as_bytes().to_vec();
    Target::new("keys", vec![public, private], TEXT, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return false };
        trust::read(text).is_ok() || PublicKey::from_pem(text).is_ok() || PrivateKey::from_pem(text, b"").is_ok()
    })
}

pub(super) fn requests() -> Target {
    let seeds = [
        r#"{"model": "codex", "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}], "stream": true}"#,
        r#"{"prompt": "1+1:", "max_tokens": 8, "temperature": 0.5, "stop": ["\n"]}"#,
        r#"{"prompt": "1", "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}}"#,
        r#"{"prompt": "1", "structured_outputs": {"choice": ["a", "b"]}, "guided_regex": null}"#,
    ];
    Target::new("requests", seeds.map(|body| body.as_bytes().to_vec()).to_vec(), TEXT, |bytes| {
        serving::read_any(bytes) > 0
    })
}

pub(super) fn expectations() -> Target {
    let digest = Sha256::of("model").to_string();
    let seeds = [format!("{digest}\n"), format!("{digest}  ./config.json\n{digest} *model.safetensors\n")];
    Target::new("expectations", seeds.map(String::into_bytes).to_vec(), TEXT, register::is_expectation)
}

pub(super) fn surveys() -> Target {
    let check = json!({ "subject": "ring", "state": "holds", "found": ["both are in main"], "reasons": [] });
    let run = json!({
        "name": "run", "runId": null, "model": Sha256::of("model"), "readiness": 0.5, "evidence": 0.5, "traces": 0.5,
        "deployment": 0.5, "gatesPassed": 1, "gates": 2, "checks": [check],
    });
    let survey = json!({
        "schemaVersion": 1, "ring": "main", "pr": 12, "date": "2026-11-28",
        "weights": { "evidence": 0.5, "traces": 0.2, "deployment": 0.3 }, "readiness": 0.5, "runs": [run],
    });
    Target::new("surveys", vec![survey.to_string().into_bytes()], TEXT, |bytes| {
        let read = codex_json::from_slice::<Survey>(bytes);
        // The page for people takes any text.
        read.is_ok_and(|survey| !survey.markdown().is_empty())
    })
}
