//! The check of policies. Each breach is one sentence that cites the policy and the rule, and says what would satisfy it. Pure.

use std::collections::BTreeSet;

use codex_provenance::{attestation::AttestationKind, promotion};
use jiff::{SignedDuration, Timestamp};

use super::{
    Candidate, Facts, Lineage, Policy, PolicyRule, RequiredEvaluation, RequiredSignOffs, Signatory, SignedOff, parity,
    period, reads, strict::weaker,
};
use crate::{Gate, Ring};

/// The part of a rule that a breach is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Demand {
    /// The rule itself is invalid.
    Rule,
    /// `requiredEvaluations`.
    Evaluation,
    /// `requires`.
    Ring,
    /// `minimumTimeInRing`.
    Time,
    /// `signOffs`.
    SignOff,
    /// `parity`.
    Parity,
    /// `signers`.
    Signer,
    /// `attestations`.
    Attestation,
    /// `denied`.
    Denied,
}

/// A demand of a policy that is not met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    /// The part of the policy.
    pub demand: Demand,
    /// When it is met without a change, if only time is missing.
    pub due: Option<Timestamp>,
    /// Policy, rule, what is missing, and what would satisfy it.
    pub sentence: String,
}

/// Returns the demands of the policies that are not met, in the order of the policies.
pub fn breaches(policies: &[Policy], facts: &Facts) -> Vec<Breach> {
    let rules = policies.iter().filter_map(|policy| Some((policy, policy.rule(facts.ring)?)));
    rules.flat_map(|(policy, rule)| of_rule(policy, rule, facts)).collect()
}

fn of_rule(policy: &Policy, rule: &PolicyRule, facts: &Facts) -> Vec<Breach> {
    let cite = |demand, due, said: String| Breach {
        demand,
        due,
        sentence: format!("{policy}, rule for {}: {said}", rule.ring),
    };
    let mut found = Vec::new();
    for template in &rule.required_evaluations {
        found.extend(evaluation(template, facts).err().map(|(demand, said)| cite(demand, None, said)));
    }
    found.extend(ring(rule, facts).err().map(|(demand, due, said)| cite(demand, due, said)));
    let signed = rule.sign_offs.as_ref().and_then(|wanted| sign_offs(wanted, &facts.sign_offs).err());
    found.extend(signed.map(|said| cite(Demand::SignOff, None, said)));
    let compared = rule.parity.as_ref().and_then(|wanted| parity::check(wanted, rule.ring, &facts.parity).err());
    found.extend(compared.map(|said| cite(Demand::Parity, None, said)));
    let missing = rule.attestations.iter().filter(|kind| !facts.attestations.contains(kind));
    let missing: Vec<&str> = missing.map(|kind| kind.name()).collect();
    if !missing.is_empty() {
        let said = format!(
            "the promotion has no valid {}: take it from the ConfigMap of the promotion, or have the promotion signed again",
            missing.join(", ")
        );
        found.push(cite(Demand::Attestation, None, said));
    }
    found
}

/// Returns the attestations that the rules for a ring demand.
pub fn demanded_attestations(policies: &[Policy], ring: Ring) -> BTreeSet<AttestationKind> {
    policies.iter().filter_map(|policy| policy.rule(ring)).flat_map(|rule| rule.attestations.iter().copied()).collect()
}

/// Returns the gates that the policies' budgets of reads made stricter for a ring, as this candidate passed them.
pub fn divided(policies: &[Policy], ring: Ring, candidate: &Candidate) -> Vec<promotion::Divided> {
    let rules = policies.iter().filter_map(|policy| Some((policy, policy.rule(ring)?)));
    let templates =
        rules.flat_map(|(policy, rule)| rule.required_evaluations.iter().map(move |template| (policy, template)));
    let of = |(policy, template): (&Policy, &RequiredEvaluation)| {
        let wanted: Vec<Gate> = template.gates.iter().map(Gate::try_from).collect::<Result<_, _>>().ok()?;
        let satisfies = falls_short(candidate, template, &wanted).is_none();
        satisfies.then(|| reads::passed_again(policy, template, &wanted, candidate))
    };
    templates.filter_map(of).flatten().collect()
}

/// Checks that an evaluation satisfies a template.
fn evaluation(template: &RequiredEvaluation, facts: &Facts) -> Result<(), (Demand, String)> {
    let name = &template.name;
    let mut wanted = Vec::new();
    for (index, gate) in template.gates.iter().enumerate() {
        wanted.push(Gate::try_from(gate).map_err(|why| {
            (Demand::Rule, format!("requiredEvaluations[{name}].gates[{index}] is invalid, so nothing passes: {why}"))
        })?);
    }
    if wanted.is_empty() {
        let said = format!("requiredEvaluations[{name}].gates is empty, so nothing passes: name at least one gate");
        return Err((Demand::Rule, said));
    }
    if let Some(budget) = &template.reads {
        reads::check(*budget, &wanted)
            .map_err(|why| (Demand::Rule, format!("requiredEvaluations[{name}].{why}, so nothing passes")))?;
    }
    let mut closest = Vec::new();
    for candidate in &facts.evaluations {
        match falls_short(candidate, template, &wanted) {
            None => return Ok(()),
            Some(why) => closest.push(format!("Evaluation {} {why}", candidate.name)),
        }
    }
    let found = if closest.is_empty() { "there is no candidate".to_owned() } else { closest.join("; ") };
    let preset = template.preset.as_ref().map(|preset| format!(" of preset {preset}")).unwrap_or_default();
    let gates: Vec<_> = wanted.iter().map(|gate| format!("{} {}", gate.metric, demanded(gate))).collect();
    let said = format!(
        "no Evaluation satisfies requiredEvaluations[{name}]: {found}: name an Evaluation{preset} that asks for {} in spec.evaluations",
        gates.join(" and ")
    );
    Err((Demand::Evaluation, said))
}

fn demanded(gate: &Gate) -> String {
    let confidence = gate.confidence.map(|level| format!(" at confidence {level}")).unwrap_or_default();
    let samples = gate.min_samples.map(|count| format!(" with minSamples {count}")).unwrap_or_default();
    format!("{}{confidence}{samples}", gate.bound)
}

/// Returns why a candidate does not satisfy a template.
fn falls_short(candidate: &Candidate, template: &RequiredEvaluation, wanted: &[Gate]) -> Option<String> {
    if let Some(preset) = template.preset.as_ref().filter(|preset| **preset != candidate.preset) {
        return Some(format!("has the preset {}, not {preset}", candidate.preset));
    }
    if let Some(problems) = template.problems_sha256 {
        match candidate.problems {
            Some(read) if read == problems => {}
            Some(read) => return Some(format!("read the problems {}, not {}", read.short(), problems.short())),
            None => return Some(format!("has not reported that it read the problems {}", problems.short())),
        }
    }
    let weak = wanted.iter().find_map(|wanted| {
        let own = candidate.gates.iter().filter(|gate| gate.metric == wanted.metric);
        let mut reasons = Vec::new();
        for gate in own {
            reasons.push(weaker(gate, wanted)?);
        }
        let metric = wanted.metric;
        Some(
            reasons
                .pop()
                .map_or_else(|| format!("has no gate on {metric}"), |why| format!("has a gate on {metric} that {why}")),
        )
    });
    weak.or_else(|| template.reads.and_then(|budget| reads::exceeded(candidate, budget, wanted)))
}

/// Checks the ring before, and the time there.
fn ring(rule: &PolicyRule, facts: &Facts) -> Result<(), (Demand, Option<Timestamp>, String)> {
    let wanted = match &rule.minimum_time_in_ring {
        Some(text) => {
            let invalid = |why| (Demand::Rule, None, format!("minimumTimeInRing is invalid, so nothing passes: {why}"));
            Some((text, period(text).map_err(invalid)?))
        }
        None => None,
    };
    let Some(required) = &rule.requires else {
        if wanted.is_none() {
            return Ok(());
        }
        let said = "minimumTimeInRing has no ring to count in, so nothing passes: set requires.ring";
        return Err((Demand::Rule, None, said.to_owned()));
    };
    let before = required.ring;
    let first = facts.earlier.iter().filter(|earlier| earlier.ring == before).map(|earlier| earlier.since).min();
    let Some(first) = first else {
        let said = format!(
            "the model has no recorded promotion in {before}: promote the same model there first, with TrainingRun and \
             ReasoningPod in that ring"
        );
        return Err((Demand::Ring, None, said));
    };
    let Some((text, seconds)) = wanted else { return Ok(()) };
    let due = first.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
    if due > facts.now {
        let said = format!(
            "the model was promoted in {before} at {first}, and minimumTimeInRing is {text}: it can be promoted from {due} on"
        );
        return Err((Demand::Time, Some(due), said));
    }
    Ok(())
}

/// Checks that enough people have signed.
fn sign_offs(wanted: &RequiredSignOffs, signed: &[SignedOff]) -> Result<(), String> {
    let listed = |signed: &&SignedOff| {
        (wanted.by.is_empty() && wanted.by_groups.is_empty())
            || wanted.by.contains(&signed.by)
            || signed.groups.iter().any(|group| wanted.by_groups.contains(group))
    };
    let counted = signed.iter().filter(listed).filter(|signed| signed.authenticated || !wanted.authenticated);
    let people: BTreeSet<&str> = counted.map(|signed| signed.by.as_str()).collect();
    let (found, count) = (people.len(), wanted.count);
    if u32::try_from(found).unwrap_or(u32::MAX) >= count {
        return Ok(());
    }
    let names = |names: &[String], what: &str| (!names.is_empty()).then(|| format!("{what}{}", names.join(", ")));
    let by: Vec<_> = [names(&wanted.by, ""), names(&wanted.by_groups, "members of ")].into_iter().flatten().collect();
    let by = if by.is_empty() { "anyone".to_owned() } else { by.join(" or ") };
    let own = if wanted.authenticated { ", created by the person who signs" } else { "" };
    Err(format!(
        "{found} of {count} sign-offs for exactly this model and these reports: create {} more by {by}{own} (kind SignOff)",
        count.saturating_sub(u32::try_from(found).unwrap_or(u32::MAX))
    ))
}

/// Returns the rules for a ring that do not let someone sign.
pub fn may_sign(policies: &[Policy], ring: Ring, signer: Signatory<'_>) -> Vec<Breach> {
    let rules = policies.iter().filter_map(|policy| Some((policy, policy.rule(ring)?.signers.as_ref()?)));
    let bars = rules.filter(|(_, wanted)| match signer.identity {
        Some(identity) => !wanted.identities.iter().any(|it| it.admits(identity)),
        None => !wanted.keys.contains(&signer.fingerprint),
    });
    bars.map(|(policy, wanted)| {
        let keys = wanted.keys.iter().map(|key| format!("the key {}", key.short()));
        let identities = wanted.identities.iter().map(|it| format!("{} (issuer {})", it.subject, it.issuer));
        let named: Vec<_> = keys.chain(identities).collect();
        let named = if named.is_empty() { "nobody".to_owned() } else { named.join(" or ") };
        let who = match signer.identity {
            Some(identity) => identity.to_string(),
            None => format!("the key {}", signer.fingerprint.short()),
        };
        Breach {
            demand: Demand::Signer,
            due: None,
            sentence: format!(
                "{policy}, rule for {ring}: {who} signed, but only {named} may: have it signed by one of them"
            ),
        }
    })
    .collect()
}

/// Returns the entries of deny-lists that concern a model.
pub fn denials(policies: &[Policy], lineage: &Lineage) -> Vec<Breach> {
    policies.iter().flat_map(|policy| of_lists(policy, lineage)).collect()
}

fn of_lists(policy: &Policy, lineage: &Lineage) -> Vec<Breach> {
    let denied = &policy.spec.denied;
    let cite = |list: &str, said: String| Breach {
        demand: Demand::Denied,
        due: None,
        sentence: format!(
            "{policy}, denied.{list}: {said}: serve another model, or remove the digest from the list if it was wrong"
        ),
    };
    let model = lineage.model.map_or_else(|| "the model".to_owned(), |model| format!("the model {}", model.short()));
    let mut found = Vec::new();
    found.extend(
        lineage.model.filter(|it| denied.models.contains(it)).map(|_| cite("models", format!("{model} is revoked"))),
    );
    if let Some(base) = lineage.base {
        let list =
            [("bases", &denied.bases), ("models", &denied.models)].into_iter().find(|(_, list)| list.contains(&base));
        found.extend(
            list.map(|(list, _)| cite(list, format!("{model} was trained from {}, which is revoked", base.short()))),
        );
    }
    for file in lineage.data.iter().filter(|file| denied.data.contains(file)) {
        found.push(cite(
            "data",
            format!("{model} was trained or judged with the file {}, which is revoked", file.short()),
        ));
    }
    if let Some(key) = lineage.key.as_ref().filter(|key| !key.is_empty())
        && denied.keys.iter().any(|denied| denied.to_string().starts_with(key.as_str()))
    {
        let key: String = key.chars().take(12).collect();
        found.push(cite("keys", format!("{model} is signed with the key {key}, which is revoked")));
    }
    found
}
