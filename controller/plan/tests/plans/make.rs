//! Values for tests: settings, a model, objects, what pods say.

use std::{collections::BTreeMap, sync::Arc};

use codex_crds::{Evaluation, ReasoningPod, TrainingRun};
use codex_plan::{RunAs, Settings, evaluation::LedgerRead};
use codex_provenance::{
    ConfigDigest, DataDigest, Sha256,
    manifest::{File, Manifest},
};
use codex_reports::{
    Base, Checkpoint, Comparison, Computation, DataFile, Difference, EvaluationState, Failure, Kind, Model, Progress,
    Report, SCHEMA_VERSION, Stage, State, TrainingState,
};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub(crate) fn settings() -> Arc<Settings> {
    Arc::new(Settings {
        version: "0.1.0".to_owned(),
        trainer_image: "codex:dev".to_owned(),
        cuda_image: None,
        run_as: RunAs::default(),
        attested_images: Vec::new(),
        worker_image: "codex:dev".to_owned(),
        report_url: "https://codex-controller.codex-system.svc:8443/v1/reports".to_owned(),
        report_ca: "-----BEGIN CERTIFICATE-----\n".to_owned(),
        controller_namespace: "codex-system".to_owned(),
        report_port: 8443,
    })
}

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

pub(crate) fn from<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

pub(crate) fn data_digest() -> DataDigest {
    DataDigest(Sha256::of("data"))
}

pub(crate) fn run() -> TrainingRun {
    from(json!({
        "apiVersion": "codex-ml.dev/v1alpha1", "kind": "TrainingRun",
        "metadata": {"name": "cot", "namespace": "team", "uid": "run-1", "generation": 1},
        "spec": {
            "rolloutRing": "0D_base_", "template": "cot-starter", "seed": 1,
            "data": [
                {"name": "made", "source": {"synthetic": {"task": "arithmetic", "seed": 1, "count": 10000}}},
                {"name": "file", "sha256": data_digest(),
                 "source": {"configMap": {"name": "problems", "key": "train.jsonl"}}},
            ],
            "output": {"persistentVolumeClaim": {"claimName": "output", "subPath": "runs"}},
            "retries": 2,
        },
    }))
}

pub(crate) fn evaluation() -> Evaluation {
    from(json!({
        "apiVersion": "codex-ml.dev/v1alpha1", "kind": "Evaluation",
        "metadata": {"name": "lite", "namespace": "team", "uid": "evaluation-1", "generation": 1},
        "spec": {
            "trainingRun": "cot", "preset": "cot-lite", "retries": 2,
            "gates": [{"metric": "exact_match", "min": "0.95", "confidence": "0.95"}],
        },
    }))
}

pub(crate) fn pod() -> ReasoningPod {
    from(json!({
        "apiVersion": "codex-ml.dev/v1alpha1", "kind": "ReasoningPod",
        "metadata": {"name": "rc", "namespace": "team", "uid": "pod-1", "generation": 1},
        "spec": {"rolloutRing": "0D_base_", "trainingRun": "cot", "evaluations": ["lite"], "dryRun": false, "replicas": 2},
    }))
}

pub(crate) fn manifest(contents: &str) -> Manifest {
    let file = |path: &str| File { path: path.to_owned(), size: 7, sha256: Sha256::of(format!("{path} {contents}")) };
    Manifest::of_hashed(["config.json", "model.safetensors", "tokenizer.json"].map(file)).unwrap()
}

pub(crate) fn model(contents: &str) -> Model {
    let manifest = manifest(contents);
    Model { digest: manifest.digest(), oms_root: manifest.oms_root(), manifest, parameters: 220_000, adapter: None }
}

fn data_files() -> Vec<DataFile> {
    [("made", Sha256::of("made")), ("file", data_digest().0)]
        .map(|(name, sha256)| DataFile { name: name.to_owned(), sha256: DataDigest(sha256), size: 9, records: Some(3) })
        .to_vec()
}

/// A report about an object by one of its pods.
pub(crate) fn report(
    kind: Kind,
    object: &str,
    pod: &str,
    seq: u64,
    config: Option<ConfigDigest>,
    state: State,
) -> Report {
    Report {
        schema_version: SCHEMA_VERSION,
        kind,
        namespace: "team".to_owned(),
        name: "any".to_owned(),
        object_uid: object.to_owned(),
        pod_uid: pod.to_owned(),
        attempt: 1,
        seq,
        config_digest: config,
        digest: None,
        state,
    }
}

pub(crate) fn training(step: u64) -> TrainingState {
    TrainingState {
        stage: Stage::Running,
        progress: Some(Progress {
            step,
            total_steps: 900,
            loss: Some(1.312_71),
            tokens_per_second: Some(21_480.4),
            eta_seconds: Some(23),
            learning_rate: Some(0.004_875),
            gradient_norm: Some(0.731_25),
            gflops: Some(61.4),
            data_wait: Some(0.012_5),
            memory_bytes: Some(314_572_800),
            val_loss: None,
        }),
        steps_executed: step,
        last_checkpoint: Some(Checkpoint { step: step / 100 * 100, digest: Sha256::of(step.to_string()) }),
        data: data_files(),
        ..TrainingState::default()
    }
}

pub(crate) fn trained(contents: &str) -> TrainingState {
    TrainingState { stage: Stage::Finished, model: Some(model(contents)), ..training(900) }
}

/// What a trainer computes with.
pub(crate) fn computation() -> Computation {
    Computation {
        program: Sha256::of("program"),
        engine: "cpu-f32".to_owned(),
        kernels: "x86_64 avx512".to_owned(),
        mixed: false,
    }
}

/// A trainer that started from the base of these contents.
pub(crate) fn training_from(base: &str, step: u64) -> TrainingState {
    TrainingState { base: Some(Base::of(model(base).digest)), ..training(step) }
}

pub(crate) fn failure(reason: &str, message: &str) -> Failure {
    Failure { is_final: true, reason: reason.to_owned(), message: message.to_owned() }
}

pub(crate) fn evaluated(contents: &str, right: u64) -> EvaluationState {
    EvaluationState {
        stage: Stage::Finished,
        done: 500,
        total: 500,
        model_digest: Some(model(contents).digest),
        data: codex_configs::benchmark("cot-lite")
            .iter()
            .map(|file| DataFile {
                name: file.name.to_owned(),
                sha256: file.digest(),
                size: file.contents().len() as u64,
                records: Some(500),
            })
            .collect(),
        metrics: BTreeMap::from([
            ("exact_match".to_owned(), codex_verdict::Measurement::Share { successes: right, n: 500 }),
            (
                "trace_coverage".to_owned(),
                codex_verdict::Measurement::Mean { n: 500, sum: Some(499.25), sum_of_squares: Some(499.0) },
            ),
        ]),
        outcomes: Some(outcomes(right)),
        ..EvaluationState::default()
    }
}

/// What the ledger says of the first read of the problems of `cot-lite`.
pub(crate) fn reads() -> BTreeMap<DataDigest, LedgerRead> {
    let problems =
        codex_configs::benchmark("cot-lite").iter().find(|file| file.name == codex_configs::PROBLEMS).unwrap();
    BTreeMap::from([(problems.digest(), LedgerRead::Number(1))])
}

/// What a shadow has compared with the model of the contents `b`. Each response took 0.3 s, that of the other server 0.2 s.
pub(crate) fn comparison(compared: u64, agreed: u64, identical: u64) -> Comparison {
    let mut comparison = Comparison::of(model("b").digest);
    (comparison.compared, comparison.agreed, comparison.identical) = (compared, agreed, identical);
    for _ in 0..compared {
        codex_reports::latency_buckets(&mut comparison.latency, 0.3);
        codex_reports::latency_buckets(&mut comparison.other_latency, 0.2);
    }
    comparison.first_difference =
        (identical < compared).then_some(Difference { token: 3, gap_thousandths: Some(1_250) });
    comparison
}

/// The digest of the outcomes of an evaluation with so many right answers.
pub(crate) fn outcomes(right: u64) -> DataDigest {
    DataDigest(Sha256::of(format!("outcomes of {right}")))
}

/// An evaluator that compared with the Evaluation `before`, which had 100 right answers: so many answers are right only here,
/// and so many only there.
pub(crate) fn compared(contents: &str, right: u64, (wins, losses): (u64, u64)) -> EvaluationState {
    let mut state = evaluated(contents, right);
    state.data.push(DataFile {
        name: "reference-before".to_owned(),
        sha256: outcomes(100),
        size: 9,
        records: Some(500),
    });
    let pairs = codex_verdict::Measurement::Duel { wins, ties: 500 - wins - losses, losses };
    state.metrics.insert("exact_match@before".to_owned(), pairs);
    state
}
