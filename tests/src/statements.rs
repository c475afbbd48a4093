//! Every kind of statement that the controller signs about a model, for the programs of others that verify them. Reads the model.

use std::{collections::BTreeMap, path::Path};

use codex_provenance::{
    ConfigDigest, Sha256,
    attestation::{Build, attestations},
    manifest::Manifest,
    oms,
    promotion::{self, Attested, Evaluation, Object, Promotion, Reasons, Training},
};
use codex_verdict::{Decimal, GateSpec, Measurement, Stated};

use crate::{Error, Result};

/// The ring of the promotion.
pub const RING: &str = "0D_base_";

/// A statement that the controller signs.
#[derive(Clone, Debug)]
pub struct Statement {
    /// Its name: that of its bundle in a ConfigMap, but for the signature (oms) and the promotion.
    pub name: &'static str,
    /// The type of its predicate.
    pub predicate_type: &'static str,
    /// The digest that it is about: the root of the OMS statement, or the model digest.
    pub subject: Sha256,
    /// The bytes to sign.
    pub payload: Vec<u8>,
}

/// Returns every kind of statement about a model that passed one gate: 495 of 500 answers were right.
///
/// # Errors
/// If the model cannot be read.
pub fn statements(model: &Path) -> Result<Vec<Statement>> {
    let unreadable = |why: &dyn std::fmt::Display| Error::Unreadable { path: model.to_owned(), why: why.to_string() };
    let manifest = Manifest::of_dir(model).map_err(|why| unreadable(&why))?;
    let signed = oms::payload(&manifest, "cot-starter");
    let evaluation = evaluation(&manifest).map_err(|why| unreadable(&why))?;
    let promotion = promotion(&manifest, oms::payload_digest(&signed), evaluation);
    let (root, subject) = (manifest.oms_root().0, manifest.digest().0);
    let others = attestations(&promotion, &Build { files: manifest.files, ..Build::default() }).map(|it| {
        let name = it.kind.entry().trim_end_matches(".json");
        Statement { name, predicate_type: it.kind.predicate_type(), subject, payload: it.payload }
    });
    let signature = Statement { name: "oms", predicate_type: oms::PREDICATE_TYPE, subject: root, payload: signed };
    let promoted = Statement {
        name: "promotion",
        predicate_type: promotion::PREDICATE_TYPE,
        subject,
        payload: promotion.payload(),
    };
    Ok([signature, promoted].into_iter().chain(others).collect())
}

fn evaluation(manifest: &Manifest) -> std::result::Result<Evaluation, codex_verdict::GateError> {
    let gate = GateSpec {
        metric: "exact_match".into(),
        min: Some(Decimal("0.95".into())),
        confidence: Some(Decimal("0.95".into())),
        min_samples: Some(500),
        ..GateSpec::default()
    };
    let metrics = BTreeMap::from([("exact_match".to_owned(), Measurement::Share { successes: 495, n: 500 })]);
    let stated = Stated::of(manifest.digest(), &BTreeMap::new(), &metrics, &[gate])?;
    Ok(Evaluation {
        name: "lite".into(),
        uid: "3f0c".into(),
        preset: "cot-lite".into(),
        config_digest: Some(ConfigDigest(Sha256::of("evaluation"))),
        report_digest: stated.report_digest,
        gates_digest: stated.gates_digest,
        data: BTreeMap::new(),
        image_id: "sha256:0002".into(),
        completed_at: "2026-11-28T09:00:00Z".into(),
        evidence: None,
        outcomes: None,
        golden_tokens: None,
        metrics: stated.metrics,
        gates: stated.gates,
        references: Vec::new(),
        reads: None,
    })
}

fn promotion(
    manifest: &Manifest,
    oms_payload: codex_provenance::OmsPayloadDigest,
    evaluation: Evaluation,
) -> Promotion {
    let attested = Attested {
        config_digest: ConfigDigest(Sha256::of("config")),
        image_id: "sha256:0001".into(),
        completed_at: Some("2026-11-28T08:00:00Z".into()),
        data: Some(BTreeMap::new()),
    };
    let run = Object { name: "cot-starter".into(), uid: "77aa".into() };
    Promotion {
        model: manifest.digest(),
        reasons: Reasons {
            ring: RING.into(),
            namespace: "team".into(),
            oms_payload,
            training: Training {
                run,
                attested,
                reported: None,
                base: None,
                device: None,
                adapter: None,
                adopted: None,
            },
            evaluations: vec![evaluation],
            policies: Vec::new(),
            earlier: Vec::new(),
            sign_offs: Vec::new(),
            parity: Vec::new(),
        },
    }
}
