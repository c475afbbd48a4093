//! Signs a model directory with a key made for the occasion and thrown away: writes `oms.json`, `promotion.json` (into the
//! ring `0D_base_`, without evaluations) and `key.pem`. For trying out verifiers; in a cluster only the controller signs.
//!
//! `cargo run --release -p codex-signing --example sign_directory MODEL_DIR OUTPUT_DIR`

use std::{collections::BTreeMap, error::Error, fs, path::PathBuf};

use codex_provenance::{
    ConfigDigest, Sha256,
    manifest::Manifest,
    oms,
    promotion::{Promotion, Reasons, Training},
};
use codex_signing::key::{PrivateKey, Signer as _};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(model), Some(output)) = (arguments.next(), arguments.next()) else {
        return Err("usage: sign_directory MODEL_DIR OUTPUT_DIR".into());
    };
    let manifest = Manifest::of_dir(&model)?;
    let key = PrivateKey::generate()?;
    let payload = oms::payload(&manifest, "model");
    let training = Training {
        run_uid: "none".to_owned(),
        config_digest: ConfigDigest(Sha256::of("none")),
        data: BTreeMap::new(),
        image_id: "none".to_owned(),
    };
    let promotion = Promotion {
        model: manifest.digest(),
        reasons: Reasons {
            ring: "0D_base_".to_owned(),
            oms_payload: oms::payload_digest(&payload),
            training,
            evaluations: Vec::new(),
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
