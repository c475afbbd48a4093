//! Promotion policies from files: `codex verify --policy`. Reads files.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use codex_provenance::{Sha256, attestation::AttestationKind, files, promotion::Promotion, text::Printable};
use codex_validate::Validator;
use codex_verdict::{
    Ring,
    policy::{Facts, Lineage, Policy, PolicyKind, PolicySpec, Signatory, breaches, denials, may_sign},
};
use jiff::Timestamp;

use super::Unreadable;
use crate::error::CommandError;

/// Maximum size of a file of policies in bytes.
const MAX_POLICIES: usize = 4 << 20;

/// Reads the policies of these files. A file may also hold other objects.
///
/// # Errors
/// Exit code 2 if a file cannot be read, an object of codex-ml.dev in it is invalid, or it holds no policy.
pub(super) fn read(paths: &[PathBuf]) -> Result<Vec<Policy>, CommandError> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let validator = Validator::new().map_err(|error| CommandError::failed(error.to_string()))?;
    let mut policies = Vec::new();
    for path in paths {
        policies.extend(of_file(&validator, path)?);
    }
    Ok(policies)
}

fn of_file(validator: &Validator, path: &Path) -> Result<Vec<Policy>, CommandError> {
    let shown = path.display().to_string();
    let wrong = |why: String| CommandError::bad_input(format!("--policy: {}: {why}", Printable(&shown)));
    let bytes = files::read_start(path, MAX_POLICIES).map_err(|source| {
        CommandError::bad_input(Unreadable { argument: "--policy", path: path.to_owned(), source })
    })?;
    let text = String::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8 text: save it as UTF-8".to_owned()))?;
    let objects = validator.objects(&text).map_err(|findings| {
        let all: Vec<_> = findings.iter().map(ToString::to_string).collect();
        wrong(all.join("; "))
    })?;
    let mut policies = Vec::new();
    for mut object in objects {
        let kind = match object["kind"].as_str() {
            Some("ClusterPromotionPolicy") => PolicyKind::ClusterPromotionPolicy,
            Some("PromotionPolicy") => PolicyKind::PromotionPolicy,
            _ => continue,
        };
        let text = |pointer: &str| object.pointer(pointer).and_then(|it| it.as_str()).unwrap_or_default().to_owned();
        let (name, uid) = (text("/metadata/name"), text("/metadata/uid"));
        let spec: PolicySpec =
            serde_json::from_value(object["spec"].take()).map_err(|why| wrong(format!("{kind} {name}: {why}")))?;
        policies.push(Policy { kind, name, uid, spec });
    }
    if policies.is_empty() {
        return Err(wrong("it holds no PromotionPolicy and no ClusterPromotionPolicy".to_owned()));
    }
    Ok(policies)
}

/// Checks a promotion statement, given the attestations beside it that are valid and those who signed it and its model: first the
/// deny-lists, then the rules for its ring. The time in a ring counts until `now`.
///
/// # Errors
/// The sentences of everything that does not hold.
pub(super) fn check(
    policies: &[Policy],
    promotion: &Promotion,
    attestations: BTreeSet<AttestationKind>,
    signers: &[Signatory<'_>],
    now: Timestamp,
) -> Result<(), String> {
    let ring: Ring = promotion.reasons.ring.parse().map_err(|why| format!("the promotion statement: {why}"))?;
    let mut refused = Vec::new();
    let denied = signers.iter().flat_map(|it| denials(policies, &Lineage::of_statement(promotion, it.fingerprint)));
    let barred = signers.iter().flat_map(|it| may_sign(policies, ring, *it));
    for breach in denied.chain(barred) {
        if !refused.contains(&breach) {
            refused.push(breach);
        }
    }
    let facts = Facts::of_statement(promotion, ring, now).map_err(|why| format!("the promotion statement: {why}"))?;
    refused.extend(breaches(policies, &Facts { attestations, ..facts }));
    if refused.is_empty() {
        return Ok(());
    }
    let all: Vec<_> = refused.iter().map(|breach| Printable(&breach.sentence).to_string()).collect();
    Err(all.join("; "))
}

/// Checks that no policy denies the signer of a reproduction.
///
/// # Errors
/// The policy that does.
pub(super) fn check_reproduction(policies: &[Policy], signer: Sha256) -> Result<(), String> {
    match policies.iter().find(|policy| policy.spec.denied.keys.contains(&signer)) {
        Some(policy) => Err(format!(
            "{}, denied.keys: the reproduction is signed with the key {}, which is revoked: have it signed with another key, or leave it \
             out",
            Printable(&policy.to_string()),
            signer.short()
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use codex_provenance::{ModelDigest, Sha256, manifest::Manifest, promotion::Base};

    use super::super::{
        Outcome,
        tests::{fingerprint, signed, signed_with, verify},
    };
    use crate::error::CommandError;

    /// What `--policy` says about the signed model, under a policy with this spec.
    fn under(root: &Path, spec: &serde_json::Value) -> Result<Outcome, CommandError> {
        let policy = serde_json::json!({
            "apiVersion": "codex-ml.dev/v1alpha1", "kind": "ClusterPromotionPolicy", "metadata": { "name": "guard" },
            "spec": spec,
        });
        fs::write(root.join("policy.json"), policy.to_string()).unwrap();
        let pin = fingerprint(root);
        verify(
            root,
            &["--promotion", "promotion.json", "--ring", "main", "--fingerprint", &pin, "--policy", "policy.json"],
        )
    }

    #[test]
    fn policies_refuse_what_they_deny_and_rules_that_are_not_met() {
        let base = ModelDigest(Sha256::of("base"));
        let root = signed_with("cot-lite", Some(Base { model: base, signer: None, source: None }));
        let pin = fingerprint(root.path());
        let model = Manifest::of_dir_except(&root.path().join("model"), &BTreeSet::from(["model.sig".to_owned()]))
            .unwrap()
            .digest();
        let template = |min: &str| {
            serde_json::json!([{
                "name": "m1", "preset": "cot-lite",
                "gates": [{ "metric": "exact_match", "min": min, "confidence": "0.95", "minSamples": 500 }],
            }])
        };
        let rule = |rule: serde_json::Value| serde_json::json!({ "rules": [rule] });
        let held =
            under(root.path(), &rule(serde_json::json!({ "ring": "main", "requiredEvaluations": template("0.9") })));
        let told = held.ok().unwrap().to_string();
        assert!(told.lines().any(|line| line == "held       ClusterPromotionPolicy guard"), "{told}");
        let compared = |ring: &str, count: u32| {
            rule(serde_json::json!({ "ring": ring, "parity": { "minRequests": count, "maxDivergence": "0.01" } }))
        };
        assert!(under(root.path(), &compared("main", 459)).is_ok(), "the statement names a shadow with parity");
        let elsewhere = rule(serde_json::json!({ "ring": "0D_base_", "requiredEvaluations": template("1") }));
        assert!(under(root.path(), &elsewhere).is_ok(), "a rule for another ring");
        let denied = |list: &str, digest: String| serde_json::json!({ "denied": { list: [digest] } });
        for (spec, why) in [
            (denied("models", model.to_string()), "guard, denied.models: the model"),
            (denied("bases", base.to_string()), "guard, denied.bases: the model"),
            (denied("data", Sha256::of("d").to_string()), "guard, denied.data: the model"),
            (denied("keys", pin), "guard, denied.keys: the model"),
            (
                rule(serde_json::json!({ "ring": "main", "requiredEvaluations": template("0.99") })),
                "guard, rule for main: no Evaluation satisfies requiredEvaluations[m1]",
            ),
            (
                rule(serde_json::json!({ "ring": "main", "requires": { "ring": "0D_base_" } })),
                "no recorded promotion in 0D_base_",
            ),
            (rule(serde_json::json!({ "ring": "main", "signOffs": { "count": 1 } })), "0 of 1 sign-offs"),
            (compared("main", 460), "guard, rule for main: no shadow with this model in main has proved parity"),
        ] {
            let refused = under(root.path(), &spec).err().unwrap();
            assert_eq!(refused.exit, 1, "{refused}");
            assert!(refused.to_string().contains(why), "{refused}");
        }
    }

    #[test]
    fn a_file_without_a_valid_policy_is_bad_input() {
        let root = signed();
        let parity = |ring: &str, wanted: &serde_json::Value| serde_json::json!({ "rules": [{ "ring": ring, "parity": wanted }] });
        for (spec, why) in [
            (serde_json::json!({ "rules": [{ "ring": "0E_base_" }] }), "0E_base_"),
            (serde_json::json!({ "denied": { "models": ["abc"] } }), "spec.denied.models[0]"),
            (serde_json::json!({ "rules": [{ "ring": "main" }] }), "must demand something"),
            (parity("main", &serde_json::json!({ "minRequests": 0 })), "parity.minRequests must be from 1 to 1000000"),
            (
                parity("main", &serde_json::json!({ "minRequests": 9, "maxDivergence": "0.0" })),
                "parity.maxDivergence \"0.0\" is invalid: use a decimal above 0",
            ),
            (parity("main", &serde_json::json!({ "minRequests": 9, "requests": 9 })), "requests"),
            (parity("0A_base_", &serde_json::json!({ "minRequests": 9 })), "rules[].parity cannot hold in 0A_base_"),
        ] {
            let refused = under(root.path(), &spec).err().unwrap();
            assert_eq!(refused.exit, 2, "{refused}");
            assert!(refused.to_string().contains(why) && refused.to_string().contains("policy.json"), "{refused}");
        }
        fs::write(root.path().join("none.yaml"), "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: a }\n").unwrap();
        let all = ["--promotion", "promotion.json", "--ring", "main", "--policy", "none.yaml"];
        let refused = verify(root.path(), &all).err().unwrap();
        assert!(refused.to_string().contains("it holds no PromotionPolicy"), "{refused}");
        let refused =
            verify(root.path(), &["--promotion", "promotion.json", "--ring", "main", "--policy", "absent.yaml"]);
        assert_eq!(refused.err().unwrap().exit, 2);
    }
}
