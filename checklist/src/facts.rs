//! What is known about a run and its model, wherever it was found. Pure.

use codex_provenance::{ConfigDigest, ModelDigest, Sha256};
use codex_verdict::{GateResult, Ring, Verdict};

use crate::{Allowances, Chain};

/// What is known about a run and its model.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The objects; without them, what needs them does not hold.
    pub chain: Option<&'a Chain>,
    /// The ring to promote into.
    pub ring: Ring,
    /// The records of the run.
    pub records: Records,
    /// The model, or why it is unknown, in one sentence.
    pub model: Result<Model, String>,
    /// The Evaluations of the chain, in its order.
    pub judged: Vec<Judged>,
    /// The models that reports measured, each with the name of its report. Used without a chain, whose Evaluations name theirs.
    pub measured: Vec<(String, ModelDigest)>,
    /// Sentences about reports that cannot be used.
    pub damaged: Vec<String>,
    /// The values of `trace_coverage` that reports about the model measured.
    pub coverage: Vec<f64>,
    /// What is known about the signatures.
    pub signatures: Signatures,
    /// Whether signatures are left to the operator.
    pub unsigned: bool,
    /// The limits of the namespace.
    pub allowances: Allowances,
}

impl Facts<'_> {
    /// Returns the digest of the model, if it is known.
    pub fn digest(&self) -> Option<ModelDigest> {
        self.model.as_ref().ok().map(|model| model.digest)
    }
}

/// A model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    /// Its digest.
    pub digest: ModelDigest,
    /// Number of its files.
    pub files: usize,
    /// Size of its files in bytes.
    pub bytes: u64,
}

/// The records of a run: its metadata, its configuration and its data.
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// What is missing, cannot be used or contradicts the objects, in sentences.
    pub lacks: Vec<String>,
    /// The run, if its record can be read.
    pub run: Option<Record>,
    /// Where identity, configuration and data are recorded, for messages.
    pub sources: [String; 3],
}

/// The record of a run.
#[derive(Clone, Debug)]
pub struct Record {
    /// The id of the run.
    pub id: String,
    /// Its template.
    pub template: String,
    /// The digest of its configuration, as it names it.
    pub config: ConfigDigest,
    /// The digest of the configuration at hand; `None` if none is.
    pub config_found: Option<ConfigDigest>,
    /// The version of its data, as it names it; `None` if it names none.
    pub data: Option<Sha256>,
    /// The version of the data files at hand, or why it cannot be computed; `None` if none are.
    pub data_found: Option<Result<Sha256, String>>,
}

/// An Evaluation of a chain with its results.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Name of the Evaluation.
    pub name: String,
    /// The results of its gates; empty if nothing was judged.
    pub gates: Vec<GateResult>,
    /// Number of gates; 1 if they are unknown.
    pub asked: usize,
    /// The digest of the report, if there is one.
    pub report: Option<Sha256>,
    /// The model of the report, if there is one.
    pub model: Option<ModelDigest>,
    /// Why nothing was judged.
    pub why: Option<String>,
}

impl Judged {
    /// Returns an Evaluation that is not judged, with its number of gates and the reason.
    pub fn without(name: &str, asked: usize, why: String) -> Self {
        Self { name: name.to_owned(), gates: Vec::new(), asked, report: None, model: None, why: Some(why) }
    }

    /// Returns the verdict over all gates; `None` if nothing was judged.
    pub fn verdict(&self) -> Option<Verdict> {
        self.gates.iter().map(|result| result.verdict).min()
    }

    /// Returns the number of gates that passed.
    pub fn passed(&self) -> usize {
        self.gates.iter().filter(|result| result.verdict == Verdict::Passed).count()
    }
}

/// What is known about the signatures of a model.
#[derive(Clone, Debug)]
pub enum Signatures {
    /// No bundle is at hand; the sentence says what to do.
    Missing(String),
    /// Bundles are at hand.
    Given {
        /// What they say, in sentences.
        found: Vec<String>,
        /// Why they are not accepted, in sentences; empty if they are.
        reasons: Vec<String>,
    },
}
