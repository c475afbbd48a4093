//! Everything that stands between an object and its rollout, all of it at once and in plain words. Pure.

use codex_crds::{ConditionType, ModelStatus, Reason, TrainingRun, child};
use kube::ResourceExt;

use super::{
    Bundle, ObservedReasoningPod, Signer,
    rollout::{self, Target},
};
use crate::{
    conditions::{find, is_true},
    evaluation::proof::{Proof, Unproven, proof},
    text::truncate_chars,
};

/// The most characters of a sentence in `status.blockedBy`.
const MAX_SENTENCE: usize = 1_000;

/// What a block is about: the condition that is false because of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum About {
    Training,
    Ring,
    Gates,
    Signing,
    Servers,
}

/// One thing that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) about: About,
    pub(crate) reason: Reason,
    /// Whether it can come right by itself.
    pub(crate) waits: bool,
    pub(crate) sentence: String,
}

/// What is known about the run, the evaluations and the bundles of an object.
#[derive(Default)]
pub(crate) struct Evidence<'a> {
    /// The run and its finished model.
    pub(crate) trained: Option<(&'a TrainingRun, &'a ModelStatus)>,
    /// What every evaluation proves; none as long as one proves nothing.
    pub(crate) proofs: Option<Vec<Proof>>,
    pub(crate) blocks: Vec<Block>,
}

impl<'a> Evidence<'a> {
    pub(crate) fn of(observed: &'a ObservedReasoningPod) -> Self {
        let mut evidence = Self::default();
        evidence.training(observed);
        evidence.ring(observed);
        evidence.gates(observed);
        evidence.signing(observed);
        evidence.servers(observed);
        for block in &mut evidence.blocks {
            block.sentence = truncate_chars(&block.sentence, MAX_SENTENCE);
        }
        evidence
    }

    fn block(&mut self, about: About, reason: Reason, waits: bool, sentence: String) {
        self.blocks.push(Block { about, reason, waits, sentence });
    }

    fn training(&mut self, observed: &'a ObservedReasoningPod) {
        let name = &observed.object.spec.training_run;
        let Some(run) = &observed.run else {
            let sentence = format!("TrainingRun {name} does not exist in this namespace: create it");
            return self.block(About::Training, Reason::NotFound, true, sentence);
        };
        // Nothing is signed for what leaves: its bundles go with it.
        if run.metadata.deletion_timestamp.is_some() {
            self.block(About::Training, Reason::NotFound, true, format!("TrainingRun {name} is being deleted"));
        }
        let conditions = run.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let model = run.status.as_ref().and_then(|status| status.model.as_ref());
        match model.filter(|_| is_true(conditions, ConditionType::Trained)) {
            Some(model) => match rollout::manifest(model) {
                Ok(manifest) if manifest.digest() == model.digest => self.trained = Some((run, model)),
                Ok(manifest) => {
                    let found = manifest.digest();
                    let sentence = format!(
                        "the files in the status of TrainingRun {name} are the model {found}, and it names {}",
                        model.digest
                    );
                    self.block(About::Training, Reason::ModelMismatch, false, sentence);
                }
                Err(why) => {
                    let sentence = format!("the status of TrainingRun {name} holds no manifest: {why}");
                    self.block(About::Training, Reason::ModelMismatch, false, sentence);
                }
            },
            None if is_true(conditions, ConditionType::Stalled) => {
                let why = find(conditions, ConditionType::Stalled).map_or("", |stalled| &stalled.message);
                let sentence = format!("TrainingRun {name} has no model, and it stalled: {why}");
                self.block(About::Training, Reason::WaitingForTraining, false, sentence);
            }
            None => {
                let sentence = format!("TrainingRun {name} has no model yet");
                self.block(About::Training, Reason::WaitingForTraining, true, sentence);
            }
        }
    }

    fn ring(&mut self, observed: &ObservedReasoningPod) {
        let wanted = observed.object.spec.rollout_ring;
        let Some(run) = observed.run.as_ref().filter(|run| run.spec.rollout_ring != wanted) else { return };
        let sentence = format!(
            "the rings differ: TrainingRun {} is in {}, and this ReasoningPod serves {wanted}: bring one to the other's \
             spec.rolloutRing",
            run.name_any(),
            run.spec.rollout_ring
        );
        self.block(About::Ring, Reason::RingsDiffer, false, sentence);
    }

    fn gates(&mut self, observed: &ObservedReasoningPod) {
        let spec = &observed.object.spec;
        let uid = observed.run.as_ref().and_then(ResourceExt::uid);
        let model = self.trained.map(|(_, model)| model.digest);
        let mut proofs = Vec::new();
        for name in &spec.evaluations {
            let Some(evaluation) = observed.evaluations.get(name) else {
                let sentence = format!("Evaluation {name} does not exist in this namespace: create it");
                self.block(About::Gates, Reason::NotFound, true, sentence);
                continue;
            };
            if evaluation.metadata.deletion_timestamp.is_some() {
                self.block(About::Gates, Reason::NotFound, true, format!("Evaluation {name} is being deleted"));
                continue;
            }
            match proof(evaluation, &spec.training_run, uid.as_deref(), model) {
                Ok(proof) => proofs.push(proof),
                Err(Unproven { reason, waits, sentence }) => self.block(About::Gates, reason, waits, sentence),
            }
        }
        // The API server takes no empty list; an object that came by it anyhow proves nothing.
        if spec.evaluations.is_empty() {
            let sentence = "spec.evaluations is empty: name at least one Evaluation".to_owned();
            self.block(About::Gates, Reason::WaitingForVerdict, false, sentence);
        } else if proofs.len() == spec.evaluations.len() && model.is_some() {
            self.proofs = Some(proofs);
        }
    }

    fn signing(&mut self, observed: &ObservedReasoningPod) {
        if let Signer::Unavailable { reason, .. } = &observed.signer {
            let sentence = format!("nothing can be signed: {reason}");
            self.block(About::Signing, Reason::SignerUnavailable, false, sentence);
        }
        let names = rollout::bundle_names(&observed.object, observed.run.as_ref(), &observed.evaluations);
        let oms = Worth::of(&observed.oms);
        let mut promotion = Worth::of(&observed.promotion);
        let expected = rollout::key(observed, self).map(|key| key.digest());
        if let (Bundle::Valid(signed), Some(expected)) = (&observed.promotion, expected)
            && signed.key != expected
        {
            promotion = Worth::Refused(Reason::VerificationFailed, "it promotes on other evidence".to_owned());
        }
        for (name, worth) in [(names.oms, oms), (names.promotion, promotion)] {
            let (Some(name), Worth::Refused(reason, why)) = (name, worth) else { continue };
            let sentence = format!(
                "the bundle in ConfigMap {name} cannot be used: {why}; nothing is signed again by itself: restore the key, \
                 or delete the ConfigMap to have it signed anew"
            );
            self.block(About::Signing, reason, false, sentence);
        }
    }

    /// What serves stays while something blocks; where that cannot be, somebody has to know.
    fn servers(&mut self, observed: &ObservedReasoningPod) {
        let lost = observed.tampered && Target::recorded(observed).is_none() && !observed.object.spec.dry_run;
        if self.blocks.is_empty() || !lost {
            return;
        }
        let sentence = format!(
            "the pod template of the Deployment {} was changed, and the status does not say what it was with the key that \
             is pinned now: delete the Deployment, and servers come back once nothing else blocks",
            child::server(&observed.object.name_any())
        );
        self.block(About::Servers, Reason::NameTaken, false, sentence);
    }
}

enum Worth {
    Usable,
    Refused(Reason, String),
}

impl Worth {
    fn of<T>(bundle: &Bundle<T>) -> Self {
        match bundle {
            Bundle::Absent | Bundle::Valid(_) => Self::Usable,
            Bundle::Unchecked => {
                Self::Refused(Reason::SignerUnavailable, "there is no key to check it with".to_owned())
            }
            Bundle::Foreign(why) => Self::Refused(Reason::ForeignSignature, why.clone()),
            Bundle::Invalid(why) => Self::Refused(Reason::VerificationFailed, why.clone()),
        }
    }
}
