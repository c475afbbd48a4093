//! Signs a model directory with a key made for the occasion and thrown away: writes `oms.json`, `promotion.json` (into the
//! ring `0D_base_`, on an invented evaluation) and `key.pem`. For trying out verifiers; in a cluster only the controller signs.
//!
//! `cargo run --release -p codex-signing --example sign_directory MODEL_DIR OUTPUT_DIR`

use std::{collections::BTreeMap, error::Error, fs, path::PathBuf};

use codex_provenance::{
    ConfigDigest, Sha256,
    manifest::Manifest,
    oms,
    promotion::{Attested, Evaluation, Object, Promotion, Reasons, Reported, Training},
};
use codex_signing::key::{PrivateKey, Signer as _};
use codex_verdict::{Decimal, GateSpec, Measurement, Metric, Ring, Stated};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(model), Some(output)) = (arguments.next(), arguments.next()) else {
        return Err("usage: sign_directory MODEL_DIR OUTPUT_DIR".into());
    };
    let manifest = Manifest::of_dir(&model)?;
    let key = PrivateKey::generate()?;
    let payload = oms::payload(&manifest, "model");
    let none = || "none".to_owned();
    let training = Training {
        run: Object { name: none(), uid: none() },
        attested: Attested {
            config_digest: ConfigDigest(Sha256::of("none")),
            image_id: none(),
            completed_at: None,
            data: None,
        },
        reported: Some(Reported { data: BTreeMap::new() }),
        base: None,
        device: None,
        adapter: None,
        adopted: None,
    };
    // Verifiers require an evaluation that passed; nothing was evaluated here.
    let gate =
        GateSpec { metric: Metric::ExactMatch.to_string(), min: Some(Decimal("0".to_owned())), ..GateSpec::default() };
    let metrics = BTreeMap::from([(gate.metric.clone(), Measurement::Share { successes: 0, n: 1 })]);
    let stated = Stated::of(manifest.digest(), &BTreeMap::new(), &metrics, &[gate])?;
    let evaluation = Evaluation {
        name: none(),
        uid: none(),
        preset: none(),
        config_digest: None,
        report_digest: stated.report_digest,
        gates_digest: stated.gates_digest,
        data: BTreeMap::new(),
        image_id: none(),
        completed_at: none(),
        evidence: None,
        outcomes: None,
        golden_tokens: None,
        metrics: stated.metrics,
        gates: stated.gates,
        references: Vec::new(),
        reads: None,
    };
    let promotion = Promotion {
        model: manifest.digest(),
        reasons: Reasons {
            ring: Ring::Base0D.name().to_owned(),
            namespace: none(),
            oms_payload: oms::payload_digest(&payload),
            training,
            evaluations: vec![evaluation],
            policies: Vec::new(),
            earlier: Vec::new(),
            sign_offs: Vec::new(),
            parity: Vec::new(),
        },
    };
    fs::create_dir_all(&output)?;
    fs::write(output.join("oms.json"), key.sign(&payload)?)?;
    fs::write(output.join("promotion.json"), key.sign(&promotion.payload())?)?;
    fs::write(output.join("key.pem"), key.public().to_pem())?;
    println!("--model-digest {} --key-fingerprint {}", manifest.digest(), key.public().fingerprint());
    println!("--promotion-digest {} --ring {}", promotion.digest(), promotion.reasons.ring);
    Ok(())
}
