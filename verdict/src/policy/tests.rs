//! Tests of the check of policies.

use std::collections::{BTreeMap, BTreeSet};

use codex_provenance::{DataDigest, Identity, ModelDigest, Sha256, attestation::AttestationKind};
use jiff::Timestamp;

use super::{
    Candidate, Demand, Denied, Earlier, Facts, Lineage, Policy, PolicyKind, PolicyRule, PolicySpec, ReadinessWeights,
    RequiredEvaluation, RequiredParity, RequiredRing, RequiredSignOffs, RequiredSigners, ShadowParity, Signatory,
    SignedOff, SignerIdentity, breaches, demanded_attestations, denials, may_sign, stated,
};
use crate::{Decimal, Gate, GateSpec, Ring};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn rule() -> PolicyRule {
    PolicyRule {
        ring: Ring::Main,
        required_evaluations: Vec::new(),
        requires: None,
        minimum_time_in_ring: None,
        sign_offs: None,
        parity: None,
        signers: None,
        attestations: Vec::new(),
    }
}

fn under(rule: PolicyRule) -> Vec<Policy> {
    let spec = PolicySpec { rules: vec![rule], denied: Denied::default() };
    vec![Policy { kind: PolicyKind::ClusterPromotionPolicy, name: "p".to_owned(), uid: "u".to_owned(), spec }]
}

fn facts() -> Facts {
    Facts {
        ring: Ring::Main,
        evaluations: Vec::new(),
        earlier: Vec::new(),
        sign_offs: Vec::new(),
        parity: Vec::new(),
        attestations: BTreeSet::new(),
        now: at(10_000),
    }
}

fn said(rule: PolicyRule, facts: &Facts) -> Vec<(Demand, String)> {
    breaches(&under(rule), facts).into_iter().map(|breach| (breach.demand, breach.sentence)).collect()
}

fn template(preset: Option<&str>, problems: Option<&str>, min: &str) -> PolicyRule {
    let gate = GateSpec {
        metric: "exact_match".to_owned(),
        min: Some(Decimal(min.to_owned())),
        confidence: Some(Decimal("0.95".to_owned())),
        ..GateSpec::default()
    };
    let template = RequiredEvaluation {
        name: "m0".to_owned(),
        preset: preset.map(str::to_owned),
        problems_sha256: problems.map(|text| DataDigest(Sha256::of(text))),
        gates: vec![gate],
        reads: None,
    };
    PolicyRule { required_evaluations: vec![template], ..rule() }
}

fn candidate(preset: &str, problems: Option<&str>, gates: &[&str]) -> Candidate {
    let gates: Vec<Gate> = gates.iter().map(|text| text.parse().unwrap()).collect();
    let problems = problems.map(|text| DataDigest(Sha256::of(text)));
    let (read, metrics) = (None, BTreeMap::new());
    Candidate { name: "lite".to_owned(), preset: preset.to_owned(), problems, gates, read, metrics }
}

#[test]
fn a_template_is_satisfied_by_one_evaluation_that_is_as_strict() {
    let met = |candidate: Candidate| {
        let facts = Facts { evaluations: vec![candidate], ..facts() };
        said(template(Some("cot-lite"), Some("p"), "0.9"), &facts)
    };
    assert_eq!(met(candidate("cot-lite", Some("p"), &["trace_coverage>=0.1", "exact_match>=0.9@0.95"])), []);
    for (weak, why) in [
        (candidate("cot-hard", Some("p"), &["exact_match>=0.9@0.95"]), "has the preset cot-hard, not cot-lite"),
        (candidate("cot-lite", Some("q"), &["exact_match>=0.9@0.95"]), "read the problems"),
        (candidate("cot-lite", None, &["exact_match>=0.9@0.95"]), "has not reported that it read the problems"),
        (candidate("cot-lite", Some("p"), &["trace_coverage>=0.9@0.95"]), "has no gate on exact_match"),
        (candidate("cot-lite", Some("p"), &["exact_match>=0@0.95"]), "asks for at least 0, not for at least 0.9"),
    ] {
        let told = met(weak);
        assert_eq!((told.len(), told[0].0), (1, Demand::Evaluation));
        let (start, end) = (
            "ClusterPromotionPolicy p, rule for main: no Evaluation satisfies requiredEvaluations[m0]: ",
            "in spec.evaluations",
        );
        assert!(told[0].1.starts_with(start) && told[0].1.ends_with(end) && told[0].1.contains(why), "{}", told[0].1);
    }
    // One of several evaluations is enough, and two halves are not.
    let weak = candidate("cot-lite", Some("p"), &["exact_match>=0.5@0.95"]);
    let strict = candidate("cot-lite", Some("p"), &["exact_match>=0.95@0.99"]);
    let all = Facts { evaluations: vec![weak.clone(), strict], ..facts() };
    assert_eq!(said(template(None, None, "0.9"), &all), []);
    let other = candidate("cot-hard", Some("p"), &["exact_match>=0.95@0.99"]);
    assert_eq!(
        said(template(Some("cot-lite"), None, "0.9"), &Facts { evaluations: vec![weak, other], ..facts() }).len(),
        1
    );
    assert!(said(template(None, None, "0.9"), &facts())[0].1.contains("there is no candidate"));
}

#[test]
fn an_invalid_rule_passes_nothing() {
    let strict = candidate("cot-lite", Some("p"), &["exact_match>=0.95@0.99"]);
    let facts = Facts { evaluations: vec![strict], ..facts() };
    let mut invalid = template(None, None, "high");
    assert_eq!(said(invalid.clone(), &facts)[0].0, Demand::Rule);
    invalid.required_evaluations[0].gates.clear();
    assert_eq!(said(invalid, &facts)[0].0, Demand::Rule);
    let timeless = PolicyRule { minimum_time_in_ring: Some("1h".to_owned()), ..rule() };
    assert_eq!(said(timeless, &facts)[0].0, Demand::Rule);
    let requires = Some(RequiredRing { ring: Ring::Base0D });
    let wrong = PolicyRule { requires, minimum_time_in_ring: Some("soon".to_owned()), ..rule() };
    assert_eq!(said(wrong, &facts)[0].0, Demand::Rule);
}

#[test]
fn the_ring_before_and_the_time_there_are_demanded() {
    let wanted = PolicyRule {
        requires: Some(RequiredRing { ring: Ring::Base0D }),
        minimum_time_in_ring: Some("1h".to_owned()),
        ..rule()
    };
    let with = |earlier: &[(Ring, i64)]| {
        let earlier = earlier.iter().map(|(ring, second)| Earlier { ring: *ring, since: at(*second) }).collect();
        breaches(&under(wanted.clone()), &Facts { earlier, ..facts() })
    };
    assert_eq!(with(&[(Ring::Base0D, 6_400)]), []);
    assert_eq!(with(&[(Ring::Base0D, 9_999), (Ring::Base0D, 1)]), [], "the first promotion counts");
    let early = with(&[(Ring::Base0D, 6_401)]);
    assert_eq!((early[0].demand, early[0].due), (Demand::Time, Some(at(10_001))));
    assert!(early[0].sentence.contains("minimumTimeInRing is 1h"), "{}", early[0].sentence);
    let elsewhere = with(&[(Ring::Base0C, 1), (Ring::Main, 1)]);
    assert_eq!((elsewhere[0].demand, elsewhere[0].due), (Demand::Ring, None));
    assert!(elsewhere[0].sentence.contains("no recorded promotion in 0D_base_"), "{}", elsewhere[0].sentence);
}

#[test]
fn people_are_counted_once_and_only_if_they_may_sign() {
    let sign = |by: &str, groups: &[&str], authenticated| SignedOff {
        by: by.to_owned(),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        authenticated,
    };
    let with = |count, by: &[&str], authenticated, sign_offs: Vec<SignedOff>| {
        let names: Vec<String> = by.iter().map(|name| (*name).to_owned()).collect();
        let by_groups = if by.is_empty() { Vec::new() } else { vec!["leads".to_owned()] };
        let sign_offs_wanted = RequiredSignOffs { count, by: names, by_groups, authenticated };
        let rule = PolicyRule { sign_offs: Some(sign_offs_wanted), ..rule() };
        said(rule, &Facts { sign_offs, ..facts() })
    };
    assert_eq!(with(1, &[], false, vec![sign("anyone", &[], false)]), []);
    assert_eq!(with(2, &["ada"], false, vec![sign("ada", &[], false), sign("bob", &["leads"], false)]), []);
    for refused in [
        with(1, &[], false, Vec::new()),
        with(2, &["ada"], false, vec![sign("ada", &[], true), sign("ada", &["leads"], true)]),
        with(1, &["ada"], false, vec![sign("eve", &["others"], true)]),
        with(1, &["ada"], true, vec![sign("ada", &[], false)]),
    ] {
        assert_eq!((refused.len(), refused[0].0), (1, Demand::SignOff));
    }
    let told = with(2, &["ada"], true, vec![sign("ada", &[], true)]).remove(0).1;
    assert!(
        told.contains("1 of 2 sign-offs")
            && told.contains("create 1 more by ada or members of leads, created by the person"),
        "{told}"
    );
}

#[test]
fn parity_counts_if_enough_requests_prove_it() {
    let shadow = |compared, agreed, max_divergence: &str, holds| ShadowParity {
        shadow: "next".to_owned(),
        holds,
        compared,
        agreed,
        max_divergence: max_divergence.to_owned(),
    };
    let with = |min_requests, most: Option<&str>, parity: Vec<ShadowParity>| {
        let wanted = RequiredParity { min_requests, max_divergence: most.map(str::to_owned) };
        said(PolicyRule { parity: Some(wanted), ..rule() }, &Facts { parity, ..facts() })
    };
    // 0.99^459 is below 0.01, and 0.99^458 is not.
    assert_eq!(with(459, None, vec![shadow(459, 459, "0.01", true)]), []);
    assert_eq!(with(459, Some("0.01"), vec![shadow(3, 3, "1", true), shadow(459, 459, "0.05", true)]), []);
    for (refused, told) in [
        (
            with(1, None, vec![]),
            "there is no candidate: create a ReasoningPod with spec.shadow, rolloutRing main and the same model",
        ),
        (with(460, None, vec![shadow(459, 459, "0.01", true)]), "ReasoningPod next has compared 459 requests"),
        (with(1, None, vec![shadow(458, 458, "0.01", true)]), "and at most 0.01 is allowed"),
        // A shadow cannot undercut the policy by a limit of its own.
        (with(1, Some("0.01"), vec![shadow(100, 99, "1", true)]), "and at most 0.01 is allowed"),
        (with(1, None, vec![shadow(459, 459, "0.01", false)]), "has not proved parity"),
        (with(1, None, vec![shadow(459, 460, "1", true)]), "states 460 of 459 requests"),
        (with(1, None, vec![shadow(459, 459, "soon", true)]), "at most soon is allowed"),
        (with(0, None, vec![shadow(0, 0, "1", true)]), "states 0 of 0 requests"),
    ] {
        assert_eq!((refused.len(), refused[0].0), (1, Demand::Parity), "{told}");
        assert!(refused[0].1.starts_with("ClusterPromotionPolicy p, rule for main: no shadow with this model in main"));
        assert!(refused[0].1.contains(told), "{}", refused[0].1);
    }
}

#[test]
fn each_list_denies_and_says_which() {
    let (model, base) = (ModelDigest(Sha256::of("m")), ModelDigest(Sha256::of("b")));
    let (file, key) = (DataDigest(Sha256::of("d")), Sha256::of("k"));
    let lineage = Lineage { model: Some(model), base: Some(base), data: [file].into(), key: Some(key.to_string()) };
    let with = |denied: Denied, lineage: &Lineage| {
        let spec = PolicySpec { rules: Vec::new(), denied };
        let policy = Policy { kind: PolicyKind::PromotionPolicy, name: "p".to_owned(), uid: String::new(), spec };
        denials(&[policy], lineage).into_iter().map(|breach| breach.sentence).collect::<Vec<_>>()
    };
    for (denied, list) in [
        (Denied { models: vec![model], ..Denied::default() }, "models"),
        (Denied { models: vec![base], ..Denied::default() }, "models"),
        (Denied { bases: vec![base], ..Denied::default() }, "bases"),
        (Denied { data: vec![file], ..Denied::default() }, "data"),
        (Denied { keys: vec![key], ..Denied::default() }, "keys"),
    ] {
        let told = with(denied, &lineage);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with(&format!("PromotionPolicy p, denied.{list}: the model ")), "{told:?}");
    }
    // A base may be served itself, and a status holds the first digits of a key.
    assert!(with(Denied { bases: vec![model], ..Denied::default() }, &lineage).is_empty());
    let short = Lineage { key: Some(key.short()), ..Lineage::default() };
    assert_eq!(with(Denied { keys: vec![key], ..Denied::default() }, &short).len(), 1);
    assert!(with(Denied { keys: vec![key], ..Denied::default() }, &Lineage::default()).is_empty());
    let unknown = Lineage { key: Some(String::new()), ..Lineage::default() };
    assert!(with(Denied { keys: vec![key], ..Denied::default() }, &unknown).is_empty());
}

#[test]
fn only_named_signers_may_sign() {
    let identity = Identity {
        issuer: "https://kubernetes.default.svc".to_owned(),
        subject: "https://kubernetes.io/namespaces/codex-system/serviceaccounts/codex-controller".to_owned(),
    };
    let entry = |subject: &str| SignerIdentity { issuer: identity.issuer.clone(), subject: subject.to_owned() };
    let told = |signers: RequiredSigners, ring: Ring, signer: Signatory<'_>| {
        let policies = under(PolicyRule { signers: Some(signers), ..rule() });
        may_sign(&policies, ring, signer).into_iter().map(|breach| breach.sentence).collect::<Vec<_>>()
    };
    let key = Signatory { fingerprint: Sha256::of("k"), identity: None };
    let account = Signatory { fingerprint: identity.fingerprint(), identity: Some(&identity) };
    let keys = || RequiredSigners { keys: vec![key.fingerprint], ..RequiredSigners::default() };
    let exact = || RequiredSigners { identities: vec![entry(&identity.subject)], ..RequiredSigners::default() };
    assert!(told(keys(), Ring::Main, key).is_empty() && told(exact(), Ring::Main, account).is_empty());
    let why = &told(keys(), Ring::Main, account)[0];
    assert!(why.contains("rule for main") && why.contains(&identity.subject) && why.contains("only the key"), "{why}");
    assert!(told(exact(), Ring::Main, key)[0].contains("only https://kubernetes.io/"));
    let pattern = |subject: &str| RequiredSigners { identities: vec![entry(subject)], ..RequiredSigners::default() };
    assert!(
        told(pattern("https://kubernetes.io/namespaces/codex-*/serviceaccounts/*"), Ring::Main, account).is_empty()
    );
    for other in ["https://kubernetes.io/*", "https://kubernetes.io/namespaces/*/serviceaccounts/default", ""] {
        assert_eq!(told(pattern(other), Ring::Main, account).len(), 1, "{other}");
    }
    // The fingerprint of an identity in the list of keys names no identity, and nobody is named by an empty rule.
    let confused = RequiredSigners { keys: vec![account.fingerprint], ..RequiredSigners::default() };
    assert_eq!(told(confused, Ring::Main, account).len(), 1);
    assert!(told(RequiredSigners::default(), Ring::Main, key)[0].contains("only nobody may"));
    assert!(told(RequiredSigners::default(), Ring::Base0D, key).is_empty(), "another ring");
}

#[test]
fn rules_of_other_rings_do_not_apply() {
    let wanted = PolicyRule { requires: Some(RequiredRing { ring: Ring::Base0D }), ..rule() };
    let facts = Facts { ring: Ring::Base0D, ..facts() };
    assert_eq!(said(wanted.clone(), &facts), []);
    assert!(stated(&under(wanted.clone()), Ring::Base0D).is_empty());
    let held = stated(&under(wanted), Ring::Main);
    assert_eq!((held[0].kind.as_str(), held[0].name.as_str()), ("ClusterPromotionPolicy", "p"));
}

#[test]
fn attestations_are_demanded_by_every_policy() {
    use AttestationKind::{SlsaProvenance, TestResult, VerificationSummary};
    let wanted = PolicyRule { attestations: vec![SlsaProvenance, VerificationSummary], ..rule() };
    let with = |attestations: &[AttestationKind]| {
        said(wanted.clone(), &Facts { attestations: attestations.iter().copied().collect(), ..facts() })
    };
    assert_eq!(with(&[SlsaProvenance, VerificationSummary]), []);
    let told = with(&[SlsaProvenance, TestResult]);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].0, Demand::Attestation);
    assert!(told[0].1.contains("rule for main: the promotion has no valid verificationSummary: "), "{told:?}");
    assert!(with(&[])[0].1.contains("no valid slsaProvenance, verificationSummary: "));
    let mut policies = under(wanted.clone());
    policies.extend(under(PolicyRule { attestations: vec![TestResult], ..rule() }));
    let all = [SlsaProvenance, TestResult, VerificationSummary];
    assert_eq!(demanded_attestations(&policies, Ring::Main), all.into());
    assert!(demanded_attestations(&policies, Ring::Base0A).is_empty());
    // What a rule demands is part of its digest, so that a promotion is signed again when it changes.
    let digest = |rule: PolicyRule| stated(&under(rule), Ring::Main)[0].rule;
    assert_ne!(digest(wanted), digest(rule()));
}

#[test]
fn weights_of_readiness_sum_to_one() {
    let weights = |[evidence, traces, deployment]: [&str; 3]| {
        let decimal = |text: &str| Decimal(text.to_owned());
        ReadinessWeights { evidence: decimal(evidence), traces: decimal(traces), deployment: decimal(deployment) }
            .numbers()
    };
    assert_eq!(weights(["0.5", "0.2", "0.3"]).unwrap().map(f64::to_bits), [0.5, 0.2, 0.3].map(f64::to_bits));
    assert!(weights(["0.1", "0.2", "0.7"]).is_ok() && weights(["0", "0", "1"]).is_ok());
    for wrong in [["0.5", "0.2", "0.300001"], ["1.5", "-0.5", "0"], ["1", "0", "NaN"], ["1", "", "0"]] {
        let why = weights(wrong).unwrap_err();
        assert!(why.contains("that sum to 1, such as \"0.5\""), "{why}");
    }
}
