//! What policies are checked against: a model, where it comes from and what speaks for it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use codex_provenance::{DataDigest, Identity, ModelDigest, Sha256, attestation::AttestationKind, promotion};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::ShadowParity;
use crate::{Gate, GateSpec, Measurement, Ring, measurements, recheck};

/// The name of the file of problems among the data of an evaluation.
pub const PROBLEMS: &str = "problems";

/// Where a model comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Lineage {
    /// The model; `None` if it is not known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelDigest>,
    /// The model from which its training started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<ModelDigest>,
    /// Files that it was trained on, and files that it was judged with.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub data: BTreeSet<DataDigest>,
    /// The key that signs or signed it: a fingerprint, or the first digits of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl Lineage {
    /// Returns what a promotion statement says, signed with the key of this fingerprint.
    pub fn of_statement(promotion: &promotion::Promotion, key: Sha256) -> Self {
        let reasons = &promotion.reasons;
        let trained = reasons.training.data().into_iter().flat_map(BTreeMap::values);
        let judged = reasons.evaluations.iter().flat_map(|evaluation| evaluation.data.values());
        Self {
            model: Some(promotion.model),
            base: reasons.training.base.as_ref().map(|base| base.model),
            data: trained.chain(judged).copied().collect(),
            key: Some(key.to_string()),
        }
    }
}

/// An evaluation that may satisfy a template.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Its preset.
    pub preset: String,
    /// The problems that its evaluator read; `None` until it has reported.
    pub problems: Option<DataDigest>,
    /// Its gates.
    pub gates: Vec<Gate>,
    /// Which read of its problems its verdict was, from 1; `None` if that is not recorded.
    pub read: Option<u64>,
    /// What its evaluator measured; empty until it has reported.
    pub metrics: BTreeMap<String, Measurement>,
}

impl Candidate {
    /// Returns the evaluation of these gates and data. Invalid gates are left out: they satisfy nothing.
    pub fn new(name: String, preset: String, gates: &[GateSpec], data: &BTreeMap<String, DataDigest>) -> Self {
        let gates = gates.iter().filter_map(|gate| Gate::try_from(gate).ok()).collect();
        Self { name, preset, problems: data.get(PROBLEMS).copied(), gates, read: None, metrics: BTreeMap::new() }
    }

    /// Sets which read of its problems its verdict was, and what was measured in it.
    #[must_use]
    pub fn measured(self, read: Option<u64>, metrics: BTreeMap<String, Measurement>) -> Self {
        Self { read, metrics, ..self }
    }

    /// Returns the evaluation that a promotion statement names.
    pub fn of_statement(evaluation: &promotion::Evaluation) -> Self {
        let gates: Vec<GateSpec> = evaluation.gates.iter().map(recheck::spec).collect();
        let read = evaluation.reads.as_ref().map(|read| read.number);
        Self::new(evaluation.name.clone(), evaluation.preset.clone(), &gates, &evaluation.data)
            .measured(read, measurements(&evaluation.metrics).unwrap_or_default())
    }
}

/// A recorded promotion of the same model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Earlier {
    /// The ring.
    pub ring: Ring,
    /// When it was recorded.
    pub since: Timestamp,
}

/// One who signs: a key, or an identity that a certificate names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signatory<'a> {
    /// The fingerprint of the key or the identity.
    pub fingerprint: Sha256,
    /// The identity, if it is not a key.
    pub identity: Option<&'a Identity>,
}

/// A sign-off that counts: it names the digests of this model and of its reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedOff {
    /// The user name.
    pub by: String,
    /// Groups of the user.
    pub groups: Vec<String>,
    /// Whether the user created the sign-off.
    pub authenticated: bool,
}

/// Everything that the rules of a ring are checked against.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// The ring that the model is promoted into.
    pub ring: Ring,
    /// Evaluations of the model.
    pub evaluations: Vec<Candidate>,
    /// Recorded promotions of the same model.
    pub earlier: Vec<Earlier>,
    /// Sign-offs that count.
    pub sign_offs: Vec<SignedOff>,
    /// What shadows with the same model in this ring have compared.
    pub parity: Vec<ShadowParity>,
    /// Attestations about the promotion that are valid, or are signed with it.
    pub attestations: BTreeSet<AttestationKind>,
    /// The time.
    pub now: Timestamp,
}

impl Facts {
    /// Returns what a promotion statement says. Sign-offs, earlier promotions and parity are those that it names. It has no
    /// attestations: they are beside it.
    ///
    /// # Errors
    /// A sentence that names the field that cannot be read.
    pub fn of_statement(promotion: &promotion::Promotion, ring: Ring, now: Timestamp) -> Result<Self, String> {
        let reasons = &promotion.reasons;
        let earlier = |earlier: &promotion::Earlier| {
            let since = earlier.since.parse().map_err(|_| format!("earlier[].since {:?} is no time", earlier.since))?;
            Ok::<_, String>(Earlier {
                ring: earlier.ring.parse().map_err(|why| format!("earlier[].ring: {why}"))?,
                since,
            })
        };
        let signed = |signed: &promotion::SignOff| SignedOff {
            by: signed.by.clone(),
            groups: signed.groups.clone(),
            authenticated: signed.authenticated,
        };
        Ok(Self {
            ring,
            evaluations: reasons.evaluations.iter().map(Candidate::of_statement).collect(),
            earlier: reasons.earlier.iter().map(earlier).collect::<Result<_, _>>()?,
            sign_offs: reasons.sign_offs.iter().map(signed).collect(),
            parity: reasons.parity.iter().map(ShadowParity::of_statement).collect(),
            attestations: BTreeSet::new(),
            now,
        })
    }
}
