//! Whether the admission policies protect the evidence of evaluations: the policies of the cluster are compared with those
//! that are shipped. Pure.
//!
//! Without them, an editor of a namespace can send reports in the name of an evaluator. So the evidence of an evaluation is
//! strong only if every policy and binding equals the shipped one and has existed unchanged since before its Job was created.
//! The principals in `variables` may differ, because clusters run their controllers as different users.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::{
    api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The policies and bindings that are shipped.
const SHIPPED: &str = include_str!("../../../manifests/controller/admission.yaml");
/// The variables that list users, groups and service accounts.
const PRINCIPALS: [&str; 6] = ["controller", "managers", "everything", "housekeepers", "administrators", "gitops"];
/// Groups that hold every tenant.
const EVERYBODY: [&str; 3] = ["system:authenticated", "system:unauthenticated", "system:serviceaccounts"];
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// The state of the admission policies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Admission {
    /// Why the policies protect nothing, if they do not.
    #[serde(default)]
    pub flaw: Option<String>,
    /// When the policies and bindings were last created or changed.
    #[serde(default)]
    pub since: Option<Timestamp>,
    /// The namespaces of the service accounts that the policies list as principals.
    #[serde(default)]
    pub namespaces: BTreeSet<String>,
}

impl Default for Admission {
    fn default() -> Self {
        Self::flawed("the admission policies were not read")
    }
}

impl Admission {
    /// Returns the state of policies that protect nothing, for this reason.
    pub fn flawed(why: impl Into<String>) -> Self {
        Self { flaw: Some(why.into()), since: None, namespaces: BTreeSet::new() }
    }

    /// Compares the policies and bindings of a cluster with the shipped ones. `flawed_until` is when the caller last saw them
    /// with a flaw.
    pub fn assess(
        policies: &[ValidatingAdmissionPolicy],
        bindings: &[ValidatingAdmissionPolicyBinding],
        flawed_until: Option<Timestamp>,
    ) -> Self {
        let live = policies
            .iter()
            .map(|policy| ("ValidatingAdmissionPolicy", &policy.metadata, json!(policy.spec)))
            .chain(bindings.iter().map(|it| ("ValidatingAdmissionPolicyBinding", &it.metadata, json!(it.spec))));
        let live: Vec<_> = live.collect();
        let mut since = flawed_until;
        let mut namespaces = BTreeSet::new();
        for shipped in shipped() {
            let Shipped { kind, name, spec } = &shipped;
            let found = live.iter().find(|(found, metadata, _)| found == kind && metadata.name.as_ref() == Some(name));
            let Some((_, metadata, found)) = found else {
                return Self::flawed(format!(
                    "the {kind} {name} does not exist: apply manifests/controller/admission.yaml"
                ));
            };
            let checked = changed_at(metadata).and_then(|changed| {
                since = since.max(Some(changed));
                compare(spec, found)
            });
            match checked {
                Ok(found) => namespaces.extend(found),
                Err(why) => return Self::flawed(format!("the {kind} {name} {why}")),
            }
        }
        Self { flaw: None, since, namespaces }
    }

    /// Returns whether the policies protect a namespace now.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub fn protects(&self, namespace: &str) -> Result<(), String> {
        if let Some(flaw) = &self.flaw {
            return Err(flaw.clone());
        }
        if self.namespaces.contains(namespace) {
            return Err(format!(
                "the admission policies list a service account of the namespace {namespace} as a principal"
            ));
        }
        Ok(())
    }

    /// Returns whether the policies protected a namespace from before `started`, the creation of a Job, until now.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub(crate) fn protected_since(&self, started: Option<Timestamp>, namespace: &str) -> Result<(), String> {
        self.protects(namespace)?;
        let Some(started) = started else {
            return Err("the Job no longer exists, so it is unknown when it was created".to_owned());
        };
        match self.since {
            Some(since) if since <= started => Ok(()),
            Some(since) => Err(format!(
                "an admission policy was created or changed at {since}, after the Job was created at {started}"
            )),
            None => Err("it is unknown since when the admission policies exist".to_owned()),
        }
    }
}

/// A policy or binding that is shipped.
struct Shipped {
    kind: String,
    name: String,
    spec: Value,
}

fn shipped() -> impl Iterator<Item = Shipped> {
    serde_yaml::Deserializer::from_str(SHIPPED).filter_map(|document| {
        let mut document = Value::deserialize(document).ok()?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let (kind, name) = (text(&document["kind"])?, text(&document["metadata"]["name"])?);
        Some(Shipped { kind, name, spec: document["spec"].take() })
    })
}

/// Returns when an object was created or last changed by another writer than that of its status.
fn changed_at(metadata: &ObjectMeta) -> Result<Timestamp, String> {
    if metadata.deletion_timestamp.is_some() {
        return Err("is being deleted".to_owned());
    }
    let fields = metadata.managed_fields.as_deref().unwrap_or_default();
    if fields.is_empty() {
        return Err("has no managed fields, so it is unknown when it was changed".to_owned());
    }
    let changes = fields.iter().filter(|entry| entry.subresource.as_deref() != Some("status"));
    let times = changes.filter_map(|entry| entry.time.as_ref()).chain(&metadata.creation_timestamp);
    times.map(|time| time.0).max().ok_or_else(|| "has no creation time".to_owned())
}

/// Compares the spec of a policy or binding with the shipped one. Returns the namespaces of the service accounts that it lists.
fn compare(shipped: &Value, live: &Value) -> Result<BTreeSet<String>, String> {
    let (mut shipped, mut live) = (shipped.clone(), live.clone());
    for spec in [&mut shipped, &mut live] {
        without_defaults(spec);
        fold(spec);
    }
    take_principals(&mut shipped);
    let lists = take_principals(&mut live);
    if let Some(path) = difference(&shipped, &live, "spec") {
        return Err(format!("differs from the shipped one in {path}: apply manifests/controller/admission.yaml"));
    }
    let mut namespaces = BTreeSet::new();
    for (variable, expression) in lists {
        let listed = literals(&expression).ok_or_else(|| {
            format!(
                "has a variable {variable} that is no list of names in quotes: list users, groups or service accounts"
            )
        })?;
        for name in listed {
            if EVERYBODY.iter().any(|group| name == *group || name.starts_with(&format!("{group}:"))) {
                return Err(format!("lists {name} in its variable {variable}, and every tenant is in that group"));
            }
            if let Some((namespace, _)) = name.strip_prefix(SERVICE_ACCOUNT).and_then(|rest| rest.split_once(':')) {
                namespaces.insert(namespace.to_owned());
            }
        }
    }
    Ok(namespaces)
}

/// Replaces line breaks, with the white space around them, by one space. kustomize doubles some of them in long expressions, and
/// they mean nothing in CEL outside texts in triple quotes, which the shipped expressions do not have.
fn fold(value: &mut Value) {
    match value {
        Value::String(text) if text.contains('\n') => {
            *text = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
        }
        Value::Array(values) => values.iter_mut().for_each(fold),
        Value::Object(fields) => fields.values_mut().for_each(fold),
        _ => {}
    }
}

/// Removes what the API server fills in.
fn without_defaults(spec: &mut Value) {
    let Some(constraints) = spec.get_mut("matchConstraints").and_then(Value::as_object_mut) else { return };
    let defaults =
        [("matchPolicy", json!("Equivalent")), ("namespaceSelector", json!({})), ("objectSelector", json!({}))];
    for (field, default) in defaults {
        if constraints.get(field) == Some(&default) {
            constraints.remove(field);
        }
    }
    for rule in constraints.get_mut("resourceRules").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(rule) = rule.as_object_mut().filter(|rule| rule.get("scope") == Some(&json!("*"))) {
            rule.remove("scope");
        }
    }
}

/// Empties the variables that list principals. Returns their names and expressions.
fn take_principals(spec: &mut Value) -> Vec<(String, String)> {
    let variables = spec.get_mut("variables").and_then(Value::as_array_mut).into_iter().flatten();
    variables
        .filter_map(|variable| {
            let name = variable["name"].as_str().filter(|name| PRINCIPALS.contains(name))?.to_owned();
            let expression = variable["expression"].take().as_str()?.to_owned();
            Some((name, expression))
        })
        .collect()
}

/// Returns the texts in a CEL expression that consists of lists and maps of texts; `None` for any other expression.
fn literals(expression: &str) -> Option<Vec<String>> {
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        match first {
            '\'' | '"' => {
                let (text, after) = rest[1..].split_once(first)?;
                if text.contains('\\') {
                    return None;
                }
                found.push(text.to_owned());
                rest = after;
            }
            '[' | ']' | '{' | '}' | ',' | ':' => rest = &rest[1..],
            space if space.is_whitespace() => rest = &rest[space.len_utf8()..],
            _ => return None,
        }
    }
    Some(found)
}

/// Returns the path of the first difference.
fn difference(wanted: &Value, found: &Value, path: &str) -> Option<String> {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => {
            let names: BTreeSet<_> = wanted.keys().chain(found.keys()).collect();
            names.into_iter().find_map(|name| {
                let value = |object: &serde_json::Map<String, Value>| object.get(name).cloned().unwrap_or_default();
                difference(&value(wanted), &value(found), &format!("{path}.{name}"))
            })
        }
        (Value::Array(wanted), Value::Array(found)) if wanted.len() == found.len() => {
            let mut pairs = wanted.iter().zip(found).enumerate();
            pairs.find_map(|(index, (wanted, found))| difference(wanted, found, &format!("{path}[{index}]")))
        }
        (wanted, found) => (wanted != found).then(|| path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the flaw says, and the change that causes it.
    type Change = (&'static str, fn(&mut Vec<Value>));

    const CREATED: &str = "2027-01-01T00:00:00Z";

    /// What an API server makes of the shipped policies.
    fn cluster() -> Vec<Value> {
        shipped()
            .map(|Shipped { kind, name, mut spec }| {
                if let Some(constraints) = spec.get_mut("matchConstraints") {
                    constraints["matchPolicy"] = json!("Equivalent");
                    constraints["namespaceSelector"] = json!({});
                    constraints["objectSelector"] = json!({});
                    for rule in constraints["resourceRules"].as_array_mut().unwrap() {
                        rule["scope"] = json!("*");
                    }
                }
                let fields = json!([
                    {"manager": "kubectl", "operation": "Apply", "time": CREATED},
                    {"manager": "kube-controller-manager", "operation": "Update", "subresource": "status",
                     "time": "2027-01-01T00:00:05Z"},
                ]);
                let metadata = json!({"name": name, "creationTimestamp": CREATED, "managedFields": fields});
                json!({"kind": kind, "metadata": metadata, "spec": spec})
            })
            .collect()
    }

    fn assess(objects: &[Value]) -> Admission {
        fn of<K: serde::de::DeserializeOwned>(objects: &[Value], kind: &str) -> Vec<K> {
            let found = objects.iter().filter(|it| it["kind"] == kind).cloned();
            found.map(|it| serde_json::from_value(it).unwrap()).collect()
        }
        let (policies, bindings) =
            (of(objects, "ValidatingAdmissionPolicy"), of(objects, "ValidatingAdmissionPolicyBinding"));
        Admission::assess(&policies, &bindings, None)
    }

    fn policy<'a>(objects: &'a mut [Value], name: &str) -> &'a mut Value {
        objects
            .iter_mut()
            .find(|it| it["metadata"]["name"] == name && it["kind"] == "ValidatingAdmissionPolicy")
            .unwrap()
    }

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn line_breaks_that_kustomize_doubles_are_no_difference() {
        let objects = cluster();
        let doubled = serde_json::to_string(&objects).unwrap().replace("\\n", "\\n\\n");
        let doubled: Vec<Value> = serde_json::from_str(&doubled).unwrap();
        assert_ne!(doubled, objects);
        assert_eq!(assess(&doubled), assess(&objects));
        assert_eq!(assess(&doubled).flaw, None);
    }

    #[test]
    fn shipped_policies_protect_what_starts_after_them() {
        let state = assess(&cluster());
        assert_eq!((state.flaw.clone(), state.since), (None, Some(time(CREATED))));
        assert!(state.namespaces.contains("codex-system") && state.namespaces.contains("kube-system"));
        assert_eq!(state.protected_since(Some(time("2027-01-01T00:00:00Z")), "team"), Ok(()));
        let late = state.protected_since(Some(time("2026-12-31T23:59:59Z")), "team").unwrap_err();
        assert!(late.contains("after the Job was created"), "{late}");
        assert!(state.protected_since(None, "team").is_err());
        let own = state.protected_since(Some(time("2027-01-01T00:00:00Z")), "kube-system").unwrap_err();
        assert!(own.contains("kube-system"), "{own}");
        assert!(Admission::default().protected_since(Some(time("2028-01-01T00:00:00Z")), "team").is_err());
    }

    #[test]
    fn every_missing_or_changed_part_is_a_flaw() {
        let whole = cluster();
        assert_eq!(whole.len(), 10);
        for index in 0..whole.len() {
            let mut objects = whole.clone();
            let gone = objects.remove(index);
            let flaw = assess(&objects).flaw.unwrap();
            let name = gone["metadata"]["name"].as_str().unwrap();
            assert!(flaw.contains(name) && flaw.contains("does not exist"), "{flaw}");
        }
        let changes: &[Change] = &[
            ("codex-status differs from the shipped one in spec.validations[0].expression", |objects| {
                policy(objects, "codex-status")["spec"]["validations"][0]["expression"] = json!("true");
            }),
            ("spec.failurePolicy", |objects| {
                policy(objects, "codex-workloads")["spec"]["failurePolicy"] = json!("Ignore");
            }),
            ("spec.matchConstraints.namespaceSelector", |objects| {
                policy(objects, "codex-workloads")["spec"]["matchConstraints"]["namespaceSelector"] =
                    json!({"matchLabels": {"a": "b"}});
            }),
            ("spec.matchConditions", |objects| {
                let conditions = &mut policy(objects, "codex-connections")["spec"]["matchConditions"];
                conditions.as_array_mut().unwrap().push(json!({"name": "never", "expression": "false"}));
            }),
            ("spec.validationActions[0]", |objects| {
                let binding = objects.iter_mut().find(|it| it["kind"] == "ValidatingAdmissionPolicyBinding").unwrap();
                binding["spec"]["validationActions"] = json!(["Audit"]);
            }),
            ("spec.matchResources", |objects| {
                let binding = objects.iter_mut().find(|it| it["kind"] == "ValidatingAdmissionPolicyBinding").unwrap();
                binding["spec"]["matchResources"] = json!({"namespaceSelector": {"matchLabels": {"a": "b"}}});
            }),
            ("has no managed fields", |objects| {
                policy(objects, "codex-status")["metadata"].as_object_mut().unwrap().remove("managedFields");
            }),
            ("is being deleted", |objects| {
                policy(objects, "codex-status")["metadata"]["deletionTimestamp"] = json!(CREATED);
            }),
            ("lists system:authenticated in its variable administrators", |objects| {
                policy(objects, "codex-status")["spec"]["variables"][1]["expression"] =
                    json!("['system:authenticated']");
            }),
            ("lists system:serviceaccounts:team", |objects| {
                policy(objects, "codex-status")["spec"]["variables"][1]["expression"] =
                    json!("['system:serviceaccounts:team']");
            }),
            ("lists system:serviceaccounts in its variable gitops", |objects| {
                policy(objects, "codex-sign-offs")["spec"]["variables"][0]["expression"] =
                    json!("['system:serviceaccounts']");
            }),
            ("codex-sign-offs differs from the shipped one in spec.validations[1].expression", |objects| {
                policy(objects, "codex-sign-offs")["spec"]["validations"][1]["expression"] = json!("true");
            }),
            ("no list of names", |objects| {
                policy(objects, "codex-status")["spec"]["variables"][0]["expression"] =
                    json!("[request.userInfo.username]");
            }),
        ];
        for (said, change) in changes {
            let mut objects = whole.clone();
            change(&mut objects);
            let flaw = assess(&objects).flaw.unwrap_or_else(|| panic!("{said} passed"));
            assert!(flaw.contains(said), "{flaw}");
        }
    }

    #[test]
    fn principals_may_differ_and_a_later_change_counts() {
        let mut objects = cluster();
        let status = policy(&mut objects, "codex-status");
        status["spec"]["variables"][0]["expression"] = json!("[\"system:serviceaccount:ml:codex\"]");
        status["metadata"]["managedFields"][0]["time"] = json!("2027-02-01T00:00:00Z");
        let state = assess(&objects);
        assert_eq!((state.flaw, state.since), (None, Some(time("2027-02-01T00:00:00Z"))));
        assert!(state.namespaces.contains("ml"));
    }
}
